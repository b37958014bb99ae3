"""Recurrent layers, matrix by matrix: the same outputs, gradients and costs as torch's own, and every matrix a site."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from ranksearch.decompositions import SVD
from ranksearch.errors import InvalidModel
from ranksearch.networks import export
from ranksearch.networks.reconstruction import reconstruct
from ranksearch.networks.surgery import build
from ranksearch.sites import UnpackedRecurrent, find_sites, tensors_of, unpack_recurrent
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra
from ranksearch.statistics import collect

D, H, BATCH, TIME = 5, 6, 3, 4
LAYERS: list[tuple[type[nn.RNNBase], dict[str, Any]]] = [
    (nn.LSTM, {}),
    (nn.LSTM, {"num_layers": 2, "bidirectional": True, "proj_size": 4, "batch_first": True}),
    (nn.GRU, {"num_layers": 2, "bidirectional": True}),
    (nn.GRU, {"bias": False, "batch_first": True}),
    (nn.RNN, {"nonlinearity": "relu", "num_layers": 2}),
    (nn.RNN, {"bidirectional": True}),
]


def layer(kind: Any, options: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return kind(D, H, **options).double()


def states(made: Any, batch: int | None) -> Any:
    """Initial states that are not zero."""
    count = made.num_layers * (2 if made.bidirectional else 1)
    shapes = [(count, *([] if batch is None else [batch]), size) for size in (made.proj_size or H, H)]
    found = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    return tuple(found) if made.mode == "LSTM" else found[0]


def inputs(made: Any) -> list[tuple[Any, ...]]:
    """Every form of a call that torch has."""
    torch.manual_seed(1)
    batch = torch.randn(BATCH, TIME, D, dtype=torch.float64)
    given = batch if made.batch_first else batch.transpose(0, 1)
    ordered = pack_padded_sequence(batch, torch.tensor([4, 2, 1]), batch_first=True)
    mixed = pack_padded_sequence(batch, torch.tensor([2, 4, 3]), batch_first=True, enforce_sorted=False)
    return [
        (given,), (given, states(made, BATCH)), (batch[0],), (batch[0], states(made, None)), (ordered,), (mixed,),
        (mixed, states(made, BATCH)),
    ]  # fmt: skip


def same(got: Any, wanted: Any) -> None:
    assert isinstance(got[0], PackedSequence) == isinstance(wanted[0], PackedSequence)
    for (_, a), (_, b) in zip(tensors_of(got), tensors_of(wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("kind", "options"), LAYERS, ids=str)
@pytest.mark.parametrize("kernel", [False, True])
def test_outputs_and_states_are_those_of_torch(kind: type[nn.RNNBase], options: dict[str, Any], kernel: bool) -> None:
    made = layer(kind, options)
    before = copy.deepcopy(made.state_dict())
    unpacked: Any = unpack_recurrent(made)
    unpacked.kernel = kernel
    assert isinstance(unpacked, UnpackedRecurrent) and unpacked.training == made.training
    unpacked.flatten_parameters()
    for args in inputs(made):
        same(unpacked(*args), made(*args))
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    assert sum(p.numel() for p in unpacked.parameters()) == sum(p.numel() for p in made.parameters())


@pytest.mark.parametrize(("kind", "options"), LAYERS, ids=str)
def test_gradients_are_those_of_torch(kind: type[nn.RNNBase], options: dict[str, Any]) -> None:
    made = layer(kind, options)
    unpacked: Any = unpack_recurrent(made)
    for network in (made, unpacked):
        output, last = network(*inputs(made)[-1])
        torch.stack([tensor.square().sum() for _, tensor in tensors_of((output.data, last))]).sum().backward()
    for name, parameter in made.named_parameters():
        what, _, end = name.partition("_")
        torch.testing.assert_close(unpacked.get_parameter(f"{end}.{what}").grad, parameter.grad, rtol=1e-10, atol=1e-12)


def test_dropout_is_between_layers_and_in_training_alone() -> None:
    """Where everything is dropped, the second layer sees zeros: no random number decides that."""
    made = layer(nn.LSTM, {"num_layers": 2, "dropout": 1.0})
    unpacked = unpack_recurrent(made)
    (given,) = inputs(made)[0]
    same(unpacked(given), made(given))
    same(unpacked.eval()(given), made.eval()(given))
    assert bool((unpacked.train()(given)[0] != unpacked.eval()(given)[0]).any())


class Tagger(nn.Module):
    def __init__(self, kind: Any = nn.LSTM, **options: Any) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(9, D), kind(D, H, batch_first=True, **options)
        self.head = nn.Linear(H, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        self.rnn.flatten_parameters()
        return self.head(self.rnn(self.embed(tokens))[0])


TOKENS = torch.tensor([[1, 5, 2, 8], [4, 3, 7, 0]])
RANKS = {"rnn.ih_l0": ("svd", (2,)), "rnn.hh_l0": ("svd", (3,))}


def tagger(kind: type[nn.RNNBase] = nn.LSTM) -> Any:
    torch.manual_seed(0)
    return Tagger(kind).double().eval()


def oracle(spectra: Spectra, made: Any) -> Any:
    """The dense network with torch's own layer, its matrices those that the factors amount to."""
    network = copy.deepcopy(made)
    for name, (_, rank) in RANKS.items():
        site = spectra.sites[name]
        weight = SVD().compose(site, spectra.factors(site, "svd", rank)).reshape(site.shape[:2])
        network.get_submodule("rnn").get_parameter(f"weight_{name.removeprefix('rnn.')}").data.copy_(weight)
    return network


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_matrices_are_sites_with_costs_of_every_step(kind: type[nn.RNNBase]) -> None:
    made = tagger(kind)
    dense, unpacked = find_sites(made, TOKENS), unpack_recurrent(made)
    assert {s.name: "unpack_recurrent" in s.reason for s in dense.skipped} == {"rnn": True}
    sites = find_sites(unpacked, TOKENS)
    assert [site.name for site in sites] == ["embed", "rnn.ih_l0", "rnn.hh_l0", "head"]
    assert sites.total == dense.total
    gates = (4 if kind is nn.LSTM else 3) * H
    assert sites["rnn.hh_l0"].cost.macs == TIME * gates * H and sites["rnn.ih_l0"].cost.macs == TIME * gates * D
    spectra = Spectra(unpacked, sites, [SVD()])
    built: Any = build(spectra, Configuration(RANKS))
    wanted = oracle(spectra, made)(TOKENS)
    torch.testing.assert_close(built(TOKENS), wanted, rtol=1e-11, atol=1e-11)
    total = sites.total
    for name, (_, rank) in RANKS.items():
        total = total - sites[name].cost + SVD().cost(sites[name], rank)
    assert find_sites(built, TOKENS, check=False).total == total
    built.rnn.kernel = True
    torch.testing.assert_close(built(TOKENS), wanted, rtol=1e-11, atol=1e-11)
    assert bool((wanted - made(TOKENS)).abs().max() > 1e-3)


def test_moments_are_those_of_inputs_and_hidden_states() -> None:
    made = tagger()
    unpacked: Any = unpack_recurrent(made)
    found = collect(unpacked, find_sites(unpacked, TOKENS), [TOKENS])
    embedded = made.embed(TOKENS)
    outputs = made.rnn(embedded)[0]
    before = torch.cat([torch.zeros_like(outputs[:, :1]), outputs[:, :-1]], dim=1)  # what a step is given
    for name, rows in (("rnn.ih_l0", embedded), ("rnn.hh_l0", before)):
        flat = rows.detach().flatten(0, 1)
        got = found.input_moment(name, shrink=False)
        assert got is not None
        torch.testing.assert_close(got[0], flat.T @ flat / len(flat), rtol=1e-5, atol=1e-7)
        output = found.output_moment(name)
        assert output is not None and bool(output.any())


def test_reconstruction_fits_recurrent_factors() -> None:
    unpacked = unpack_recurrent(tagger())
    spectra = Spectra(unpacked, find_sites(unpacked, TOKENS), [SVD()])
    built = build(spectra, Configuration(RANKS))
    done = reconstruct(built, spectra, Configuration(RANKS), [TOKENS], held_out=0)
    assert [each.site for each in done] == list(RANKS)
    assert all(each.after <= each.before for each in done)


def test_a_folder_loads_onto_the_dense_network_without_ranksearch(tmp_path: Path) -> None:
    made = tagger().float()
    unpacked = unpack_recurrent(made)
    spectra = Spectra(unpacked, find_sites(unpacked, TOKENS), [SVD()])
    built = build(spectra, Configuration(RANKS))
    manifest = {"configuration": {name: [kind, list(rank)] for name, (kind, rank) in RANKS.items()}}
    folder = export.save(built, tmp_path / "net", manifest=manifest, example=TOKENS)
    text = (folder / "modeling.py").read_text()
    assert not any(line.startswith(("import ranksearch", "from ranksearch")) for line in text.splitlines())
    spec = importlib.util.spec_from_file_location("written", folder / "modeling.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loaded = module.load(Tagger())
    torch.testing.assert_close(loaded(TOKENS), built(TOKENS), rtol=0, atol=0)
    assert type(loaded.rnn).__module__ == "written"


@pytest.mark.parametrize("kernel", [False, True])
def test_a_program_takes_any_batch(kernel: bool) -> None:
    unpacked: Any = unpack_recurrent(tagger())
    unpacked.rnn.kernel = kernel
    program = torch.export.export(unpacked, (TOKENS,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    more = torch.cat([TOKENS, TOKENS.flip(1)])
    torch.testing.assert_close(program(more), unpacked(more), rtol=1e-11, atol=1e-11)


class Doubled(nn.LSTM):
    def forward(self, input: Any, hx: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(2 * input, hx)


class Keyed(nn.LSTM):
    def forward(self, *, steps: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(steps)


class Gated(nn.LSTM):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Doubled, "its forward pass computes something else"), (Keyed, "its forward pass is another"), (Gated, "it holds 'gain' besides")],
)
def test_other_layers_are_refused(kind: Any, reason: str) -> None:
    made = tagger()
    made.rnn = kind(D, H, batch_first=True).double()
    with pytest.raises(InvalidModel, match=rf"'rnn' cannot be unpacked: {reason}"):
        unpack_recurrent(made)
    assert isinstance(unpack_recurrent(made, exclude="rnn").get_submodule("rnn"), kind)


def test_weights_of_another_form_are_refused() -> None:
    made = tagger()
    nn.utils.parametrizations.weight_norm(made.rnn, "weight_hh_l0")
    with pytest.raises(InvalidModel, match="no plain parameters"):
        unpack_recurrent(made)
    made = tagger()
    made.other = nn.Module()
    made.other.weight = made.rnn.weight_hh_l0
    with pytest.raises(InvalidModel, match="also used by 'other'"):
        unpack_recurrent(made)


def test_what_the_unpacked_layer_does_not_have_is_said() -> None:
    unpacked: Any = unpack_recurrent(layer(nn.LSTM, {}))
    with pytest.raises(AttributeError, match=r"weight_hh_l0 is hh_l0\.weight here"):
        _ = unpacked.weight_hh_l0
    with pytest.raises(RuntimeError, match=r"hx has shape \(1, 1, 6\), expected \(1, 3, 6\)"):
        unpacked(torch.randn(TIME, BATCH, D).double(), (torch.zeros(1, 1, H).double(), torch.zeros(1, 1, H).double()))
