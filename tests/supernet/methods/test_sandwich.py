"""Distillation of the dense network into smaller ones."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from method_cases import (
    CHOICES,
    Fixed,
    batch,
    close,
    gradients,
    network,
    oracle,
    projector,
    supernet,
)
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.errors import InvalidArgument
from ranksearch.sites import find_sites
from ranksearch.space import Configuration, build_space, named
from ranksearch.space.spectra import Spectra
from ranksearch.supernet import RankSupernet
from ranksearch.supernet.methods import Sandwich
from ranksearch.supernet.sampling import SmallRank
from ranksearch.supernet.train import _plain


@pytest.mark.parametrize(("random", "temperature"), [(0, 1.0), (1, 1.0), (3, 1.0), (1, 3.0), (1, 0.5)])
def test_sandwich_distils_the_dense_network_into_smaller_ones(random, temperature):
    net = supernet()
    method = Sandwich(net, F.cross_entropy, sampling=SmallRank(net.space), random=random, weight=0.7, temperature=temperature, seed=3)
    generator = np.random.default_rng(3)
    configurations = [method.sampling.smallest(), *(method.sampling.draw(generator) for _ in range(random))]
    inputs, targets = batch()
    model = copy.deepcopy(net.model)
    outputs = model(inputs)
    soft = (outputs.detach() / temperature).softmax(1)
    total = F.cross_entropy(outputs, targets)
    for configuration in configurations:
        student = supernet().extract(configuration).train()(inputs)
        total = total + 0.7 * temperature**2 * F.cross_entropy(student / temperature, soft)
    value = method.loss(batch())
    assert value.detach() == pytest.approx(float(total.detach()), rel=1e-9)


def test_the_teacher_gets_no_gradient_from_its_students():
    net = supernet()
    configuration = Configuration({name: (kind, rank) for name, kind, rank in CHOICES.choices})
    method = Sandwich(net, F.cross_entropy, sampling=Fixed(net.space, configuration), random=0)
    _, g = oracle(net, batch())
    lows, projections = {}, {}
    for name, kind, rank in configuration.choices:
        lows[f"{name}.weight"], projections[f"{name}.weight"] = projector(kind, net.weight(name).detach(), rank[0])
    soft = copy.deepcopy(net.model)(batch()[0]).detach().softmax(1)
    _, g_low = oracle(net, (batch()[0], soft), lows)
    found = gradients(net, method.loss(batch()))
    for name, dense in g.items():
        assert close(found[name], dense + (projections[name](g_low[name]) if name in projections else g_low[name])), name


def test_other_outputs_need_a_distillation_of_their_own():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = self.body(x)
            return {"scores": y, "mean": y.mean()}

    model = Pair()
    spectra = Spectra(model, find_sites(model, torch.zeros(1, 3, 8, 8).double()), named("svd"))
    net = RankSupernet(model, build_space(spectra), spectra=spectra)
    loss = lambda outputs, targets: F.cross_entropy(outputs["scores"], targets)  # noqa: E731
    with pytest.raises(InvalidArgument, match=r"answers with dict, not logits.*distillation"):
        Sandwich(net, loss).loss(batch())
    own = lambda outputs, teacher: F.mse_loss(outputs["scores"], teacher["scores"])  # noqa: E731
    assert Sandwich(net, loss, distillation=own).loss(batch()).isfinite()
    with pytest.raises(InvalidArgument, match=r"temperature=3.0: it is of logits alone"):
        Sandwich(net, loss, distillation=own, temperature=3.0)


def test_a_temperature_is_part_of_what_a_supernet_is_found_by():
    net = supernet()
    plain, soft = (_plain(Sandwich(net, F.cross_entropy, sampling=SmallRank(net.space), temperature=t)) for t in (1.0, 3.0))
    assert soft.pop("temperature") == 3.0 and plain == soft, "at 1 it is that of earlier versions"
