"""Recurrent cells, matrix by matrix: the same states, gradients and costs as torch's own, and every matrix a site."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ranksearch.decompositions import SVD
from ranksearch.errors import InvalidModel
from ranksearch.networks import export
from ranksearch.networks.surgery import build
from ranksearch.sites import UnpackedCell, find_sites, tensors_of, unpack_recurrent
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra

D, H, BATCH, TIME = 5, 6, 3, 4
CELLS: list[tuple[Any, dict[str, Any]]] = [
    (nn.LSTMCell, {}), (nn.LSTMCell, {"bias": False}), (nn.GRUCell, {}), (nn.GRUCell, {"bias": False}), (nn.RNNCell, {}),
    (nn.RNNCell, {"nonlinearity": "relu"}),
]  # fmt: skip
RANKS = {"cell.ih": ("svd", (2,)), "cell.hh": ("svd", (3,))}


def made_of(kind: Any, options: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return kind(D, H, **options).double()


def calls(cell: Any) -> list[tuple[Any, ...]]:
    """With a batch and without, with a state and without."""
    torch.manual_seed(1)
    found = []
    for shape in ([BATCH], []):
        states = tuple(torch.randn(*shape, H, dtype=torch.float64) for _ in range(2))
        given = torch.randn(*shape, D, dtype=torch.float64)
        found += [(given,), (given, states if isinstance(cell, nn.LSTMCell) else states[0])]
    return found


@pytest.mark.parametrize(("kind", "options"), CELLS, ids=str)
def test_states_and_gradients_are_those_of_torch(kind: Any, options: dict[str, Any]) -> None:
    cell = made_of(kind, options)
    unpacked: Any = unpack_recurrent(cell)
    assert isinstance(unpacked, UnpackedCell)
    for args in calls(cell):
        got, wanted = unpacked(*args), cell(*args)
        assert type(got) is type(wanted)
        for (_, a), (_, b) in zip(tensors_of(got), tensors_of(wanted), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    for network in (cell, unpacked):
        torch.stack([tensor.square().sum() for _, tensor in tensors_of(network(*calls(cell)[1]))]).sum().backward()
    for name, parameter in cell.named_parameters():
        what, _, part = name.partition("_")
        torch.testing.assert_close(unpacked.get_parameter(f"{part}.{what}").grad, parameter.grad, rtol=1e-10, atol=1e-12)


class Reader(nn.Module):
    """A loop over the steps of a sequence, in the model's own words."""

    def __init__(self, kind: Any = nn.LSTMCell) -> None:
        super().__init__()
        self.cell, self.head = kind(D, H), nn.Linear(H, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


def reader(kind: Any) -> tuple[Reader, Tensor]:
    torch.manual_seed(0)
    return Reader(kind).double().eval(), torch.randn(BATCH, TIME, D, dtype=torch.float64)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell])
def test_matrices_are_sites_with_costs_of_every_step(kind: Any) -> None:
    made, x = reader(kind)
    dense = find_sites(made, x)
    assert {s.name: "unpack_recurrent" in s.reason for s in dense.skipped} == {"cell": True}
    unpacked = unpack_recurrent(made)
    sites = find_sites(unpacked, x)
    assert [site.name for site in sites] == ["cell.ih", "cell.hh", "head"] and sites.total == dense.total
    gates = (4 if kind is nn.LSTMCell else 3) * H
    assert (sites["cell.ih"].cost.macs, sites["cell.hh"].cost.macs) == (TIME * gates * D, TIME * gates * H)
    spectra = Spectra(unpacked, sites, [SVD()])
    built = build(spectra, Configuration(RANKS))
    for name, (_, rank) in RANKS.items():
        site = sites[name]
        weight = SVD().compose(site, spectra.factors(site, "svd", rank)).reshape(site.shape[:2])
        made.cell.get_parameter(f"weight_{name.removeprefix('cell.')}").data.copy_(weight)
    torch.testing.assert_close(built(x), made(x), rtol=1e-11, atol=1e-11)


def test_a_folder_loads_onto_the_dense_network_without_ranksearch(tmp_path: Path) -> None:
    made, x = reader(nn.GRUCell)
    unpacked, x = unpack_recurrent(made.float()), x.float()
    built = build(Spectra(unpacked, find_sites(unpacked, x), [SVD()]), Configuration(RANKS))
    manifest = {"configuration": {name: [kind, list(rank)] for name, (kind, rank) in RANKS.items()}}
    folder = export.save(built, tmp_path / "net", manifest=manifest, example=x)
    spec = importlib.util.spec_from_file_location("written_cell", folder / "modeling.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loaded = module.load(Reader(nn.GRUCell))
    torch.testing.assert_close(loaded(x), built(x), rtol=0, atol=0)
    assert type(loaded.cell).__module__ == "written_cell"


class Doubled(nn.LSTMCell):
    def forward(self, input: Any, hx: Any = None) -> Any:
        return super().forward(2 * input, hx)


class Own(nn.RNNCellBase):
    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden, True, 4)

    def forward(self, input: Any, hx: Any = None) -> Any:
        return input @ self.weight_ih.T, input @ self.weight_hh.T[: input.shape[-1]]


@pytest.mark.parametrize(("kind", "reason"), [(Doubled, "its forward pass computes something else"), (Own, "Own is another kind of cell")])
def test_other_cells_are_refused(kind: Any, reason: str) -> None:
    made, _ = reader(kind)
    with pytest.raises(InvalidModel, match=rf"'cell' cannot be unpacked: {reason}"):
        unpack_recurrent(made)


def test_what_the_unpacked_cell_does_not_have_is_said() -> None:
    unpacked: Any = unpack_recurrent(made_of(nn.LSTMCell, {}))
    with pytest.raises(AttributeError, match=r"weight_hh is hh\.weight here"):
        _ = unpacked.weight_hh
