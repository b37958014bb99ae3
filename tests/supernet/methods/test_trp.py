"""Trained rank pruning against LAPACK's truncation and nuclear norm."""

from __future__ import annotations

import pytest
import torch
from method_cases import (
    batch,
    close,
    gradients,
    optimizer_of,
    oracle,
    steps,
    supernet,
)
from torch import Tensor
from torch.nn import functional as F

from ranksearch.decompositions.folding import FOLDINGS
from ranksearch.supernet.methods import TRP


@pytest.mark.parametrize("folding", ["channel", "spatial", "decoupled"])
def test_trp_truncates_by_energy_and_adds_the_nuclear_subgradient_once(folding):
    net = supernet()
    method = TRP(net, F.cross_entropy, folding=folding, period=2, loss_of_energy=0.3, nuclear=0.01)
    assert method.sites == ("3", "5")  # neither the first convolution nor the linear layer
    optimizer = optimizer_of(net)
    steps(method, optimizer, 1, 1)
    before = {name: net.weight(name).detach().clone() for name in ("0", "3", "5", "9")}
    method.after_step(2)
    assert torch.equal(net.weight("0"), before["0"]) and torch.equal(net.weight("9"), before["9"])
    subgradient = {}
    for name in ("3", "5"):
        weight = before[name]
        o, i, kh, kw = weight.shape
        spatial = weight.permute(1, 2, 0, 3).reshape(1, i * kh, o * kw)
        rows = {"channel": weight.reshape(1, o, -1), "spatial": spatial, "decoupled": weight.flatten(2)}
        u, s, vh = torch.linalg.svd(rows[folding], full_matrices=False)
        kept = s.square().sum(0).cumsum(0) / s.square().sum()
        rank = int((kept < 0.7).sum()) + 1
        assert 1 <= rank < s.shape[1]

        def back(m: Tensor, shape: tuple[int, ...] = (o, i, kh, kw)) -> Tensor:
            o, i, kh, kw = shape
            return m.reshape(i, kh, o, kw).permute(2, 0, 1, 3) if folding == "spatial" else m.reshape(shape)

        assert close(net.weight(name).detach(), back((u[..., :rank] * s[:, None, :rank]) @ vh[:, :rank]))
        subgradient[f"{name}.weight"] = 0.01 * back(u[..., :rank] @ vh[:, :rank])
        assert method.ranks[name] == rank
    loss, g = oracle(net, batch(7))
    value = method.loss(batch(7))
    nuclear = sum(float((w * net.model.get_parameter(n).detach()).sum()) for n, w in subgradient.items())
    folded = [FOLDINGS[method.decomposition].fold(net.sites[n], net.weight(n).detach()) for n in ("3", "5")]
    norms = sum(float(torch.linalg.svdvals(m).sum()) for m in folded)
    assert nuclear == pytest.approx(0.01 * norms)  # at the truncated weight the term is the nuclear norm
    assert float(value.detach() - loss) == pytest.approx(nuclear)
    found = gradients(net, value)
    assert all(close(found[n], w + subgradient.get(n, 0.0), 1e-8) for n, w in g.items())
    method.after_step(3)  # no truncation: the term is gone
    assert torch.equal(method.loss(batch(7)).detach(), loss)


def test_trp_final_ranks_are_on_the_ladders():
    net = supernet()
    method = TRP(net, F.cross_entropy, period=1, loss_of_energy=0.6)
    steps(method, optimizer_of(net), 1, 3)
    configuration = method.configuration()
    net.space.indices(configuration)
    for name in method.sites:
        kind, rank = configuration[name]
        sigma = torch.linalg.svdvals(net.weight(name).detach().flatten(1))
        needed = int((sigma >= 0.05 * sigma[0]).sum())
        assert needed == method.ranks[name]
        assert (kind == "svd" and rank[0] >= needed) or kind == "dense"
    assert configuration.choices
