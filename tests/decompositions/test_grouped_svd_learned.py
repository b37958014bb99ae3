"""Groups of channels that are learned: against every partition there is, against the given groups, and on layers whose groups are known."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ranksearch.decompositions import KNOWN, AnyDecomposition, Moments
from ranksearch.decompositions.grouped_svd import GroupedSVD
from ranksearch.decompositions.grouped_svd_learned import GroupedSVDLearned
from ranksearch.decompositions.learned_groups import kept, partition
from ranksearch.decompositions.metric import conditioned, residual_energy
from ranksearch.networks import export
from ranksearch.networks.reconstruction import reconstruct
from ranksearch.networks.surgery import build
from ranksearch.sites import Call, Site, find_sites
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra

SITE = Site("c", "conv2d", 10, 8, (3, 3), padding=(1, 1), calls=(Call(1, (5, 5), (5, 5)),))
LEARNED, PLAIN = GroupedSVDLearned(), GroupedSVD()
BOTH: tuple[AnyDecomposition, ...] = (LEARNED, PLAIN)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moment(size: int, seed: int) -> Tensor:
    factor = random(1, size, 2 * size, seed=seed) * torch.linspace(0.2, 2.0, 2 * size, dtype=torch.float64)
    return factor @ factor.mT / size


METRICS = {
    "weight": Moments(), "activation": Moments(moment(72, 1)), "fisher": Moments(moment(72, 1), moment(10, 2)),
    "output": Moments(None, moment(10, 2)),
}  # fmt: skip


def planted(rank: int, shuffled: Tensor) -> Tensor:
    """A weight of two groups, each of a rank of its own, with its channels in another order."""
    parts = [random(10, rank, seed=k) @ random(rank, 36, seed=10 + k) for k in range(2)]
    return torch.cat([part.reshape(10, 4, 3, 3) for part in parts], dim=1)[:, shuffled]


def test_no_partition_keeps_more_than_the_best_of_all_and_none_less_than_the_given_one() -> None:
    """All ten partitions of six channels into two groups; energies by singular values."""
    for seed in range(8):
        blocks, given = random(5, 6, 2, seed=seed), torch.arange(6)
        order = partition(blocks, 2, 2, [given])
        assert sorted(order.tolist()) == list(range(6))

        def energy(groups: list[list[int]], blocks: Tensor = blocks) -> float:
            return sum(float(torch.linalg.svdvals(blocks[:, group].flatten(1))[:2].square().sum()) for group in groups)

        every = [[[0, *pair], [c for c in range(1, 6) if c not in pair]] for pair in itertools.combinations(range(1, 6), 2)]
        best, found = max(map(energy, every)), energy([order[:3].tolist(), order[3:].tolist()])
        assert found == pytest.approx(kept(blocks, order, 2, 2)) and found <= best * (1 + 1e-12)
        assert found >= energy([[0, 1, 2], [3, 4, 5]]) * (1 - 1e-12)


def test_no_channel_is_better_off_in_another_groups_directions() -> None:
    """Where turns end: no partition of one size keeps more in the directions that the groups found have."""
    for seed in range(6):
        blocks = random(8, 16, 2, seed=seed)
        groups = partition(blocks, 4, 1, [torch.arange(16)]).reshape(4, 4).tolist()
        bases = [torch.linalg.svd(blocks[:, group].flatten(1))[0][:, :1] for group in groups]
        energies = np.stack([(basis.T @ blocks.permute(1, 0, 2)).square().sum(dim=(1, 2)).numpy() for basis in bases])  # (groups, channels)
        places = np.repeat(energies, 4, axis=0)
        best = places[linear_sum_assignment(places, maximize=True)].sum()
        assert sum(energies[number, group].sum() for number, group in enumerate(groups)) >= best * (1 - 1e-8)


def test_turns_bring_channels_that_are_astray_home() -> None:
    """Three channels of a group have a direction that is orthogonal to the other groups', one has the next group's. Each group's leading
    direction is that of its three, so that the best assignment to directions is the one without loss."""
    for seed in range(3):
        directions = torch.linalg.qr(random(12, 12, seed=seed))[0][:, :4]
        taps = torch.nn.functional.normalize(random(16, 3, seed=seed + 10), dim=1)
        own = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 0])
        blocks = directions[:, own, None] * taps
        assert kept(blocks, torch.arange(16), 4, 1) == pytest.approx(12)
        order = partition(blocks, 4, 1, [torch.arange(16)])
        assert kept(blocks, order, 4, 1) == pytest.approx(16)
        assert all(len(set(own[group].tolist())) == 1 for group in order.split(4))


def test_exchanges_lead_away_from_where_turns_stand_still() -> None:
    """A strong channel in each of two groups: both groups have its direction, and the weak ones gain nothing by a move. Exchanging a
    strong channel for the weak one of the other group loses nothing any more. Of the four ways to number the channels, any exchange
    across the groups is such a one for two."""
    solved = 0
    for strong in itertools.product((0, 1), (2, 3)):
        blocks = torch.zeros(2, 4, 1, dtype=torch.float64)
        blocks[1] = 1.0
        for channel in strong:
            blocks[:, channel, 0] = torch.tensor([2.0, 0.0])
        assert kept(blocks, torch.arange(4), 2, 1) == pytest.approx(8)
        solved += kept(blocks, partition(blocks, 2, 1, [torch.arange(4)]), 2, 1) == pytest.approx(10)
    assert solved >= 2


@pytest.mark.parametrize("metric", list(METRICS))
def test_groups_that_are_there_are_found(metric: str) -> None:
    shuffled = torch.tensor([3, 6, 0, 5, 7, 1, 4, 2])
    weight, moments = planted(2, shuffled), METRICS[metric]
    errors = [d.errors(d.prepare(SITE, weight, moments)) for d in BOTH]
    row = [int(np.flatnonzero((e.ranks == (2, 2)).all(axis=1))[0]) for e in errors]
    assert errors[0].frobenius[row[0]] < 1e-6 and errors[1].frobenius[row[1]] > 0.05
    order, left, right = LEARNED.factors(LEARNED.prepare(SITE, weight, moments), (2, 2))
    torch.testing.assert_close(LEARNED.compose(SITE, (order, left, right)), weight)
    groups = {frozenset(shuffled[order[half]].tolist()) for half in (slice(4), slice(4, 8))}
    assert groups == {frozenset(range(4)), frozenset(range(4, 8))}


@pytest.mark.parametrize("metric", list(METRICS))
def test_no_option_loses_more_than_with_the_given_groups_and_all_cost_the_same(metric: str) -> None:
    weight, moments = random(10, 8, 3, 3, seed=5), METRICS[metric]
    states: list[Any] = [d.prepare(SITE, weight, moments) for d in BOTH]
    errors = [d.errors(state) for d, state in zip(BOTH, states, strict=True)]
    plain = dict(zip(map(tuple, errors[1].ranks.tolist()), errors[1].frobenius, strict=True))
    pairs = [(tuple(r), e, plain[tuple(r)]) for r, e in zip(errors[0].ranks.tolist(), errors[0].frobenius, strict=True)]
    assert all(learned <= given * (1 + 1e-9) + 1e-9 for _, learned, given in pairs)
    assert all(np.array_equal(a, b) for a, b in zip(LEARNED.costs(SITE, errors[0].ranks), PLAIN.costs(SITE, errors[0].ranks), strict=True))
    for rank in ((2, 1), (2, 3), (4, 2)):
        lost = []
        for decomposition, state in zip(BOTH, states, strict=True):
            away = weight - decomposition.compose(SITE, decomposition.factors(state, rank))
            lost.append(residual_energy(away[None], conditioned(moments, weight)))
        assert lost[0] <= lost[1] * (1 + 1e-9)


def test_groups_of_single_channels_have_no_order() -> None:
    assert (LEARNED.ranks(SITE)[:, 0] < 8).all() and 8 in PLAIN.ranks(SITE)[:, 0]
    assert "grouped_svd" in (LEARNED.undefined(Site("c", "conv2d", 6, 3, (3, 3), calls=(Call(1, (5, 5), (5, 5)),))) or "")


def test_the_order_is_stored_as_a_buffer_and_comes_back_in_files_and_under_reconstruction(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(216, 4)).eval()
    x = random(24, 3, 8, 8).float()
    for kind in ("grouped_svd_learned", "grouped_svd_learned@int4"):
        spectra, configuration = Spectra(model, find_sites(model, x), KNOWN), Configuration({"2": (kind, (2, 3))})
        network = build(spectra, configuration).eval()
        order = network.get_buffer("2.0.order").clone()
        assert "2.0.order" in network.state_dict() and order.dtype == torch.int32 and sorted(order.tolist()) == list(range(8))
        site, rank = spectra.sites["2"], np.array([[2, 3]])
        stored = spectra.decomposition(kind).held(site, rank)
        assert stored is not None
        integers, numbers = stored
        held = sum(t.numel() * t.itemsize for t in network.get_submodule("2").state_dict().values())
        assert held == int(integers[0]) + 4 * int(numbers[0])
        reconstruct(network, spectra, configuration, list(x.split(6)))
        assert torch.equal(network.get_buffer("2.0.order"), order)
        manifest = {"configuration": {"2": [kind, [2, 3]]}}
        folder = export.save(network, tmp_path / kind, manifest=manifest, example=x, torch_export=True)
        spec = importlib.util.spec_from_file_location("modeling", folder / "modeling.py")
        assert spec is not None and spec.loader is not None
        code = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(code)
        other = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(216, 4))
        with torch.no_grad():
            assert torch.equal(code.load(other)(x), network.eval()(x)) and torch.equal(export.load(folder, model)(x), network(x))
