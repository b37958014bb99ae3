"""Ordinary training: the model's own loss and gradient."""

from __future__ import annotations

import torch
from method_cases import (
    batch,
    gradients,
    make,
    oracle,
    supernet,
)


def test_plain_is_the_models_own_loss_and_gradient():
    net = supernet()
    loss, expected = oracle(net, batch())
    value = make("plain", net).loss(batch())
    assert torch.equal(value.detach(), loss)
    found = gradients(net, value)
    assert all(torch.equal(found[name], g) for name, g in expected.items())
