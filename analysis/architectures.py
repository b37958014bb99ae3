"""Networks of transformers, small and with random weights: which layers are sites, and whether everything works on the network in which
all of them are factorized. Prints the table of docs/models.md; nothing is downloaded.

    OMP_NUM_THREADS=1 python analysis/architectures.py [--only bert llama] [--ask ONNX]

Every site is factorized by ``svd`` at half of its full rank, and held against the dense network with the composed weights in
the place of its own."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from small_transformers import ARCHITECTURES, Architecture
from torch import Tensor, nn

from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.networks import export, pretrained
from ranksearch.networks.programs import ONNX, PROGRAM, write
from ranksearch.networks.surgery import build
from ranksearch.sites import evaluating, find_sites, run, tensors_of
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra

# -- what is asked of each ---------------------------------------------------------------------------------------------


class Check:
    """One network with every site factorized, and the dense network with the weights that the factors stand for in the place of its own.
    Methods raise AssertionError where the two differ; ``program`` and ``compiled`` hold a network against itself. With ``dense`` they
    ask the same of the composed network alone."""

    def __init__(self, architecture: Architecture, decomposition: str = "svd") -> None:
        self.architecture, self.decomposition = architecture, decomposition
        self.model, self.example = architecture.make(), dict(architecture.inputs)
        self.sites = find_sites(self.model, self.example)
        self.spectra = Spectra(self.model, self.sites, [d for d in DECOMPOSITIONS if d.name == decomposition])
        self.configuration = self._half()
        self.built, self.dense = build(self.spectra, self.configuration), self._composed()

    def _half(self) -> Configuration:
        """Every site at half of its full rank."""
        decomposition = self.spectra.decomposition(self.decomposition)
        ranks = {s.name: decomposition.ranks(s) for s in self.sites if decomposition.undefined(s) is None}
        return Configuration({name: (self.decomposition, tuple(map(int, r[(len(r) - 1) // 2]))) for name, r in ranks.items()})

    def _composed(self) -> nn.Module:
        model = copy.deepcopy(self.model)
        for name, decomposition, rank in self.configuration.choices:
            site = self.sites[name]
            weight = self.spectra.decomposition(decomposition).compose(site, self.spectra.factors(site, decomposition, rank))
            parameter = model.get_submodule(site.name).get_parameter("weight")
            stored = weight.reshape(site.c_out, -1).T if site.kind in ("embedding", "transformers_conv1d") else weight
            with torch.no_grad():
                parameter.copy_(stored.reshape(parameter.shape))
        return model

    def forward(self) -> None:
        """The outputs are those of the composed weights."""
        same(outputs(self.built, self.example), outputs(self.dense, self.example))

    def costs(self) -> None:
        """Parameters and MACs of what was built are those that the options say; of one example, since types that put their weight
        together do so once for a batch."""
        one = {name: value[:1] for name, value in self.example.items()}
        sites = find_sites(self.model, one, check=False)
        expected = sites.total
        for name, decomposition, rank in self.configuration.choices:
            expected = expected - sites[name].cost + self.spectra.decomposition(decomposition).cost(sites[name], rank)
        found = find_sites(self.built, one, check=False).total
        assert found == expected, f"{found}, expected {expected}"

    def gradients(self, *, dense: bool = False) -> None:
        """Parameters that are no factors have the gradients of the composed network. The weight W is linear in every factor F, so that
        <dL/dF, F> = <dL/dW, W> for each of them."""
        wanted = gradients(self.dense, self.example)
        if dense:
            return
        got = gradients(self.built, self.example)
        largest = max(float(grad.abs().max()) for grad in wanted.values() if grad.numel())
        common = [name for name in wanted if name in got]
        same([got[name] for name in common], [wanted[name] for name in common], scale=largest)
        built, dense = dict(self.built.named_parameters()), dict(self.dense.named_parameters())
        for name, _, _ in self.configuration.choices:
            weight = f"{self.sites[name].name}.weight"
            if weight not in wanted:
                continue
            along = float((wanted[weight] * dense[weight].detach()).sum())
            factors = [key for key in built if key.startswith(f"{name}.") and key not in dense and not key.endswith("bias")]
            assert factors, f"{name} has no factors"
            for key in factors:
                assert key in got, f"{key} has no gradient"
                scale = max(abs(along), largest * float(dense[weight].detach().norm()))
                assert abs(float((got[key] * built[key].detach()).sum()) - along) <= 1e-4 * scale, f"{key}: its gradient is another"

    def generate(self) -> None:
        """Greedy words are those of the composed network."""
        given = {name: x[:, :4] if name == "input_ids" else x for name, x in self.example.items() if not name.startswith("decoder")}
        with torch.no_grad():
            wanted, got = (m.generate(**given, max_new_tokens=6, min_new_tokens=6, do_sample=False) for m in (self.dense, self.built))
        assert torch.equal(wanted, got), f"{got.tolist()}, expected {wanted.tolist()}"

    def reload(self) -> None:
        """What was written and is read onto a network of other weights computes the same."""
        with tempfile.TemporaryDirectory() as folder:
            target = self._save(self.built, self.configuration, folder, self.example)
            host = self.architecture.make()
            with torch.no_grad():
                for parameter in host.parameters():
                    parameter.add_(0.01)
            loaded = export.load(target, host, self.example)
        same(outputs(loaded, self.example), outputs(self.built, self.example), tolerance=1e-6)

    def pretrained(self) -> None:
        """What ``save_pretrained`` writes is loaded by the code in the folder, with the keys checked, and computes the same."""
        with tempfile.TemporaryDirectory() as folder:
            self.built.save_pretrained(folder)
            loaded = pretrained.load(folder).eval()
        same(outputs(loaded, self.example), outputs(self.built, self.example), tolerance=1e-6)

    def _save(self, model: nn.Module, configuration: Configuration, folder: str, example: Any, **options: Any) -> Path:
        manifest = {"configuration": {s: [d, list(r)] for s, d, r in configuration.choices}}
        return export.save(model, Path(folder) / "net", manifest=manifest, example=example, **options)

    def program(self, *, dense: bool = False) -> None:
        """``torch.export`` with any batch and the other sizes that the network takes, run at several and compared."""
        self._program(PROGRAM, dense=dense)

    def onnx(self, *, dense: bool = False) -> None:
        """The same as an ONNX program, in ONNX Runtime."""
        self._program(ONNX, dense=dense)

    def _program(self, kind: str, *, dense: bool) -> None:
        example = self.example | ({"use_cache": False} if self.architecture.generates else {})  # a cache is no output of a program
        model = copy.deepcopy(self.dense if dense else self.built).eval()
        with tempfile.TemporaryDirectory() as folder:
            facts = write(model, example, Path(folder), torch_export=kind == PROGRAM, onnx=kind == ONNX)
        assert facts["difference"][kind] is not None, "it was not run"

    def compiled(self, *, dense: bool = False) -> None:
        """``torch.compile`` without kernels: the graph is what may break."""
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = self.dense if dense else self.built
        with torch.no_grad():
            got = torch.compile(model, backend="eager")(**self.example)
        same(got, outputs(model, self.example))


def outputs(model: nn.Module, example: Any) -> Any:
    with evaluating(model):
        torch.manual_seed(0)
        return run(model, example)


def gradients(model: nn.Module, example: Any) -> dict[str, Tensor]:
    """Of a sum of all outputs with weights from -1 to 1, by name of the parameter; parameters that get none are left out."""
    model.zero_grad()
    torch.manual_seed(0)
    total: Any = 0.0
    for _, value in tensors_of(run(model, example)):
        if value.is_floating_point() and value.requires_grad:
            total = total + (value * torch.linspace(-1, 1, value.numel()).reshape(value.shape)).sum()
    total.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(got: Any, wanted: Any, *, tolerance: float = 1e-4, scale: float | None = None) -> None:
    """Raises AssertionError where two outputs differ by more than ``tolerance`` of the largest value of each tensor, or of ``scale``."""
    new, old = (list(tensors_of(value)) for value in (got, wanted))
    assert len(new) == len(old), f"{len(new)} tensors, expected {len(old)}"
    for (name, a), (_, b) in zip(new, old, strict=True):
        most = scale if scale is not None else float(b.detach().abs().max()) if b.is_floating_point() and b.numel() else 0.0
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * most, msg=lambda text, name=name: f"{name}: {text}")


# -- the table -----------------------------------------------------------------------------------------------------------

COLUMNS = {
    "outputs": Check.forward, "costs": Check.costs, "gradients": Check.gradients, "generate": Check.generate, "reload": Check.reload,
    "`from_pretrained`": Check.pretrained, "`torch.export`": Check.program, "ONNX": Check.onnx, "`torch.compile`": Check.compiled,
}  # fmt: skip
_ALSO_DENSE = (Check.gradients, Check.program, Check.onnx, Check.compiled)  # what the dense network may fail too


@dataclasses.dataclass(frozen=True)
class Row:
    """What was found for one architecture."""

    name: str
    model: str
    sites: int
    covered: float  # share of the parameters that are in sites
    skipped: str  # the largest of what is left out
    answers: Mapping[str, str]  # by column: "yes", "as dense" or what went wrong


def examined(name: str, decomposition: str = "svd", columns: Sequence[str] = tuple(COLUMNS)) -> Row:
    """Put one architecture to the questions of some columns."""
    architecture = ARCHITECTURES[name]
    check = Check(architecture, decomposition)
    answers = {}
    for column, question in ((name, COLUMNS[name]) for name in columns):
        answers[column] = "" if column == "generate" and not architecture.generates else _answer(check, question)
    total = check.sites.total.params
    left = sorted((s for s in check.sites.skipped if s.params > 0.01 * total), key=lambda s: -s.params)
    kinds = ", ".join(dict.fromkeys(s.type for s in left))
    return Row(name, architecture.model, len(check.sites), sum(s.cost.params for s in check.sites) / total, kinds, answers)


def _answer(check: Check, question: Callable[..., None]) -> str:
    error = _failure(question, check)
    if error is None:
        return "yes"
    if question in _ALSO_DENSE and _failure(question, check, dense=True) is not None:
        return "as dense"
    return f"**{error}**"


def _failure(question: Callable[..., None], *args: Any, **options: Any) -> str | None:
    try:
        question(*args, **options)
    except Exception as error:  # whatever a network says is an answer
        return " ".join(f"{type(error).__name__}: {error}".split())[:160]
    return None


def markdown(rows: Sequence[Row]) -> Iterator[str]:
    """Lines of the table."""
    titles = ["network", "class", "sites", "weights in them", "largest that are left", *rows[0].answers]
    yield f"| {' | '.join(titles)} |"
    yield f"|{' --- |' * len(titles)}"
    for row in rows:
        cells = [row.name, row.model, str(row.sites), f"{row.covered:.0%}", row.skipped, *row.answers.values()]
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(ARCHITECTURES), metavar="NAME", help="these alone; default: all")
    parser.add_argument("--ask", nargs="+", choices=list(COLUMNS), metavar="COLUMN", help="these columns alone; default: all")
    parser.add_argument("--type", default="svd", choices=[d.name for d in DECOMPOSITIONS if d.name != "dense"], help="default: svd")
    options = parser.parse_args()
    rows = []
    for name in options.only or ARCHITECTURES:
        start = time.perf_counter()
        rows.append(examined(name, options.type, options.ask or list(COLUMNS)))
        said = ", ".join(f"{column} {answer}" for column, answer in rows[-1].answers.items() if answer)
        print(f"{name}: {time.perf_counter() - start:.0f} s, {said}", file=sys.stderr, flush=True)
    print("\n".join(markdown(rows)))
    good = sum(all(answer in ("", "yes", "as dense") for answer in row.answers.values()) for row in rows)
    print(f"\n{good} of {len(rows)} work in all columns (transformers {transformers.__version__}, torch {torch.__version__}).")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    main()
