"""Factorized language models without any training, all with `svd`, on real text: ours against the rules of others. Every network that is
measured goes into FOLDER at once, so that a run that was ended goes on where it was, and several runs fill one table; ``--table`` writes
it. ``--shrinkage`` instead gives the held-out error of layers by the weight that shrinkage gives the diagonal.

    python analysis/language_models.py --model MODEL --calibration TEXT --text TEXT [TEXT ...] --folder FOLDER [--minutes 9] [--table]

MODEL is any causal model in the layout of transformers, with its tokenizer."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lems
import torch
from subjects import resumed
from texts import causal, stream
from torch import Tensor, nn

from ranksearch.allocators import BALF, Additive, Allocator, Problem, Uniform
from ranksearch.decompositions import SVD, Moments
from ranksearch.decompositions.metric import floored, half
from ranksearch.home import user_path
from ranksearch.networks.distillation import distill
from ranksearch.networks.reconstruction import reconstruct
from ranksearch.networks.surgery import build
from ranksearch.proxies import CalibrationLoss, Energy, Frobenius, TableProxy
from ranksearch.search.refit import refit
from ranksearch.sites import evaluating, find_sites, map_tensors, run
from ranksearch.space import Configuration, SearchSpace, build_space
from ranksearch.space.spectra import Spectra
from ranksearch.statistics import SampledLabels, Statistics, collect
from ranksearch.statistics.shrinkage import shrunk
from ranksearch.surrogate import curves
from ranksearch.tasks import LanguageModel

PROMPTS = ("The weather in the mountains", "In the year 1969, scientists", "The government announced on Monday that")


class OutOfTime(Exception):
    """The minutes of this run are over; the next one goes on."""


@dataclass(frozen=True)
class Rule:
    """How ranks are chosen, in which metric factors are made, and whether they are fitted afterwards.

    Attributes:
        metric: ``weight``, ``activation`` (inputs as they are), ``fisher`` (inputs and output gradients, shrunk), ``kfac`` (`lems`).
        choose: of a `Prepared` and budgets.
        fit: to the calibration, layer by layer.
        taught: as a whole the dense network's answers, on other sequences of the calibration text.
    """

    metric: str
    choose: Callable[[Prepared, Mapping[str, float]], Configuration]
    fit: bool = False
    taught: bool = False


def _solved(allocator: Allocator, proxy: TableProxy) -> Callable[[Prepared, Mapping[str, float]], Configuration]:
    def choose(prepared: Prepared, budgets: Mapping[str, float]) -> Configuration:
        space = prepared.space
        return space.configuration(allocator.allocate(Problem(space, proxy.table(space), budgets)).indices)

    return choose


def _lems(prepared: Prepared, budgets: Mapping[str, float]) -> Configuration:
    return lems.allocate(prepared.space, prepared.spectra, prepared.subject.anchors(prepared.spectra), budgets, prepared.loss)


def _refitted(prepared: Prepared, budgets: Mapping[str, float]) -> Configuration:
    """The exact optimum, then a model of the loss that is fitted to measured networks and solved again (`ranksearch.search.refit`)."""
    space, rounds, each = prepared.space, *prepared.subject.given.refit
    found = refit(
        space, curves(space, Energy().table(space)), lambda indices: prepared.loss(space.configuration(indices)), budgets,
        rounds=rounds, each=each,
    )  # fmt: skip
    return space.configuration(found.indices)


RULES = {
    "plain_svd": Rule("weight", _solved(Uniform(), Frobenius())),
    "svd_llm": Rule("activation", _solved(Uniform(), Frobenius())),
    "balf": Rule("activation", _solved(BALF(), Frobenius())),
    "rocket": Rule("activation", _solved(Additive(), Frobenius())),  # its knapsack, solved exactly: the sum of relative output errors
    "lems": Rule("kfac", _lems),
    "fisher": Rule("fisher", _solved(Additive(), Energy())),
    "refit": Rule("fisher", _refitted),
    "ours": Rule("fisher", _refitted, fit=True),
    "fisher, fitted": Rule("fisher", _solved(Additive(), Energy()), fit=True),
    "fisher, taught": Rule("fisher", _solved(Additive(), Energy()), fit=True, taught=True),
}


class Subject:
    """One network and its calibration."""

    def __init__(self, given: argparse.Namespace, seed: int, results: Results) -> None:
        self.given, self.seed, self.results = given, seed, results
        model, self.tokenizer = causal(given.model)
        self.model = model.to(given.device)
        self.tasks = {text.name: self._task(text) for text in given.text}
        count, length = given.sequences, given.length
        start = seed * count * length
        tokens = self._stream(given.calibration)[start : start + count * length].reshape(count, length)
        self.task = LanguageModel(train=tokens, validation=tokens, batch_size=given.batch)
        self.batches = list(self.task.labelled(-(-count // given.batch)))
        self.sites = find_sites(self.model, self.batches[0][0], include=given.layers)
        self.kept: tuple[str, Spectra] | None = None

    def _stream(self, text: Path) -> Tensor:
        needed = max(self.given.sequences * self.given.length * (max(self.given.seeds) + 1), math.prod(self.given.evaluated))
        return stream(self.tokenizer, text, needed)

    def _task(self, text: Path) -> LanguageModel:
        count, length = self.given.evaluated
        tokens = self._stream(text)[: count * length]
        return LanguageModel(train=tokens, validation=tokens, length=length, batch_size=self.given.batch)

    def lessons(self) -> Iterator[Any]:
        """Batches of inputs that a network is taught on: the parts of the calibration text that follow those of all seeds, as far as it
        goes."""
        count, length = self.given.steps * self.given.batch, self.given.length
        start = (max(self.given.seeds) + 1) * self.given.sequences * length + self.seed * count * length
        end = start + count * length
        found = stream(self.tokenizer, self.given.calibration, end)[start:end]
        tokens = found[: len(found) // length * length].reshape(-1, length)
        return LanguageModel(train=tokens, validation=tokens, batch_size=self.given.batch).calibration(self.given.steps)

    @property
    def inputs(self) -> list[Any]:
        return [inputs for inputs, _ in self.batches]

    @cached_property
    def statistics(self) -> Statistics:
        labels = SampledLabels(samples=2, loss=self.task.loss, sample=self.task.sample_targets)
        return collect(self.model, self.sites, self.inputs, labels=labels, cache=self.given.folder / "statistics")

    def moments(self, metric: str) -> dict[str, Moments] | None:
        if metric == "weight":
            return None
        if metric == "kfac":
            return lems.kfac_moments(self.model, self.sites, self.batches, self.task.loss, self.statistics)
        return self.statistics.moments(metric, shrink=metric == "fisher")  # type: ignore[arg-type]

    def prepared(self, metric: str, round_to: int) -> Prepared:
        if self.kept is None or self.kept[0] != metric:
            self.kept = None  # one at a time: spectra are large
            options: dict[str, Any] = {"cache_bytes": 1 << 30, "cache": self.given.folder / "spectra", "device": self.given.prepare}
            self.kept = metric, Spectra(self.model, self.sites, [SVD()], moments=self.moments(metric), **options)
        spectra = self.kept[1]
        return Prepared(self, spectra, build_space(spectra, round_to=round_to, example=self.inputs[0]))

    def anchors(self, spectra: Spectra) -> dict[str, float]:
        """`lems.anchors`, of which every one is kept."""
        known = self.results.anchors(self.seed)
        for name in lems.anchors(spectra, self.inputs[:1], self.task.divergence, known):
            self.results.add_anchor(self.seed, name, known[name])
        return known

    def measure(self, network: nn.Module) -> dict[str, float]:
        return {name: task.measure(network)["perplexity"] for name, task in self.tasks.items()}

    def says(self, network: Any) -> list[str]:
        """How it goes on, greedily."""
        found = []
        for prompt in PROMPTS:
            given = self.tokenizer(prompt, return_tensors="pt").to(self.given.device)
            out = network.generate(**given, max_new_tokens=24, do_sample=False, pad_token_id=self.tokenizer.eos_token_id)
            found.append(self.tokenizer.decode(out[0], skip_special_tokens=True))
        return found


@dataclass(frozen=True)
class Prepared:
    """A subject in a metric."""

    subject: Subject
    spectra: Spectra
    space: SearchSpace

    def budgets(self, share: float) -> dict[str, float]:
        """A share of the parameters of the layers that may be factorized, as a share of the network's."""
        dense = self.space.baseline["params"]
        return {"params": (dense - (1 - share) * (dense - self.space.fixed["params"])) / dense}

    @cached_property
    def loss(self) -> Callable[[Configuration], float]:
        """The divergence from the dense network on the first batch of the calibration, in nats per token."""
        model, inputs = self.subject.model, self.subject.inputs[0]
        with evaluating(model):
            answers = map_tensors(lambda t: t.detach(), run(model, inputs))
        measured = CalibrationLoss(self.spectra, [(inputs, answers)], self.subject.task.divergence, cache_bytes=512 << 20)

        def loss(configuration: Configuration) -> float:
            self.subject.results.check_time()
            return measured(configuration)

        return loss

    def kept(self, configuration: Configuration) -> float:
        """Which share of the parameters of the layers that may be factorized is left."""
        fixed, dense = self.space.fixed["params"], self.space.baseline["params"]
        return (self.space.cost(self.space.indices(configuration))["params"] - fixed) / (dense - fixed)

    def network(self, configuration: Configuration, rule: Rule) -> nn.Module:
        network = build(self.spectra, configuration).eval()
        if rule.fit:
            reconstruct(network, self.spectra, configuration, self.subject.inputs)
        if rule.taught:
            divergence = self.subject.task.divergence
            distill(network, self.spectra, configuration, self.subject.lessons, steps=self.subject.given.steps, divergence=divergence)
        return network


# -- what was measured -----------------------------------------------------------------------------------------------------


class Results:
    """A folder of what was measured, one JSON line each, that several runs write to, one after the other."""

    def __init__(self, given: argparse.Namespace) -> None:
        self._folder, self._end = given.folder, time.monotonic() + 60 * given.minutes
        self._folder.mkdir(parents=True, exist_ok=True)
        names = ("layers", "sequences", "length", "evaluated", "refit", "batch")
        settings = {name: getattr(given, name) for name in names} | {"texts": [t.name for t in (given.calibration, *given.text)]}
        kept = self._folder / "settings.json"
        if kept.exists() and json.loads(kept.read_text()) != json.loads(json.dumps(settings)):
            raise SystemExit(f"--folder {self._folder}: holds results of other settings, {kept.read_text().strip()}; name another one")
        kept.write_text(json.dumps(settings) + "\n")

    def check_time(self) -> None:
        """Raises OutOfTime when the minutes of this run are over."""
        if time.monotonic() > self._end:
            raise OutOfTime

    def _rows(self, name: str) -> list[dict[str, Any]]:
        return resumed(self._folder / f"{name}.jsonl")

    def _add(self, name: str, row: Mapping[str, Any]) -> None:
        with (self._folder / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def networks(self) -> list[dict[str, Any]]:
        """What was measured: ``seed``, ``share``, ``round_to``, ``rule``, ``kept`` (share of the parameters), ``perplexity`` by text,
        and of some ``said``."""
        return self._rows("networks")

    def add_network(self, row: Mapping[str, Any]) -> None:
        self._add("networks", row)

    def choice(self, key: Mapping[str, Any]) -> Configuration | None:
        """A configuration that a rule chose before."""
        found = [row for row in self._rows("choices") if all(row[name] == value for name, value in key.items())]
        return Configuration({name: (kind, tuple(rank)) for name, kind, rank in found[0]["choices"]}) if found else None

    def add_choice(self, key: Mapping[str, Any], configuration: Configuration) -> None:
        self._add("choices", {**key, "choices": [[name, kind, list(rank)] for name, kind, rank in configuration.choices]})

    def anchors(self, seed: int) -> dict[str, float]:
        """What `lems.anchors` measured."""
        return {row["site"]: row["divergence"] for row in self._rows("anchors") if row["seed"] == seed}

    def add_anchor(self, seed: int, site: str, divergence: float) -> None:
        """Keep one, unless the run is over."""
        self._add("anchors", {"seed": seed, "site": site, "divergence": divergence})
        self.check_time()


def measured(given: argparse.Namespace, results: Results) -> Iterator[str]:
    """Measure what is not there yet, seed by seed and metric by metric; a line for each network."""
    for seed in given.seeds:
        done = [{name: row[name] for name in ("seed", "share", "round_to", "rule")} for row in results.networks()]
        wanted = [
            {"seed": seed if RULES[rule].metric != "weight" else 0, "share": share, "round_to": round_to, "rule": rule}
            for rule in given.rules for share in given.shares for round_to in given.round_to
        ]  # fmt: skip
        wanted = [key for key in wanted if key not in done]
        dense = {"seed": 0, "share": 1.0, "round_to": 1, "rule": "dense"}
        if not wanted and dense in done:
            continue
        subject = Subject(given, seed, results)
        if dense not in done:
            results.add_network({**dense, "kept": 1.0, "perplexity": subject.measure(subject.model), "said": subject.says(subject.model)})
        for key in wanted:
            results.check_time()
            start = time.perf_counter()
            rule, prepared = RULES[key["rule"]], subject.prepared(RULES[key["rule"]].metric, key["round_to"])
            configuration = results.choice(chosen := key | {"rule": _chooser(key["rule"])})
            if configuration is None:
                configuration = rule.choose(prepared, prepared.budgets(key["share"]))
                results.add_choice(chosen, configuration)
            network = prepared.network(configuration, rule)
            row = {**key, "perplexity": subject.measure(network), "kept": prepared.kept(configuration), "id": configuration.id}
            if key["rule"] == "ours":
                row["said"] = subject.says(network)
            results.add_network(row)
            yield f"{key}: {row['perplexity']} ({time.perf_counter() - start:.0f} s)"


def _chooser(rule: str) -> str:
    """The first rule that chooses as this one does."""
    return next(name for name, other in RULES.items() if other.choose is RULES[rule].choose)


def table(results: Results) -> str:
    """Rules down, shares and texts across: the mean over seeds of the perplexity, and the least and the largest where there are several;
    one table for free ranks and one for every multiple; then what networks say."""
    rows, lines = results.networks(), []
    dense = next(row for row in rows if row["rule"] == "dense")
    for round_to in sorted({row["round_to"] for row in rows}):
        shares = sorted({row["share"] for row in rows if row["round_to"] == round_to and row["share"] < 1}, reverse=True)
        columns = [(share, text) for share in shares for text in dense["perplexity"]]
        heads = " | ".join(f"{share:g}, {text}" for share, text in columns)
        title = "free" if round_to == 1 else f"multiples of {round_to}"
        lines += [f"Ranks: {title}", "", f"| rule | {heads} |", "|---" * (len(columns) + 1) + "|"]
        lines.append("| dense | " + " | ".join(f"{dense['perplexity'][text]:.1f}" for _, text in columns) + " |")
        for rule in RULES:
            cells = [_cell([r["perplexity"][text] for r in rows if (r["rule"], r["share"], r["round_to"]) == (rule, share, round_to)])
                     for share, text in columns]  # fmt: skip
            lines += [f"| {rule} | {' | '.join(cells)} |"] if any(cells) else []
        lines.append("")
    for row in rows:
        if row["rule"] in ("dense", "ours") and row["seed"] == 0:
            lines += [f"{row['rule']}, {row['share']:g}, multiples of {row['round_to']}:", "", *(f"> {said!r}" for said in row["said"]), ""]
    return "\n".join(lines)


def _cell(found: list[float]) -> str:
    spread = f" ({min(found):,.1f} to {max(found):,.1f})" if len(found) > 1 else ""
    return f"{statistics.mean(found):,.1f}{spread}" if found else ""


def shrinkage(given: argparse.Namespace) -> str:
    """Geometric mean over layers of the relative error of outputs on other text, when each is cut to the first share at uniform ranks by
    a whitened SVD, by the weight of the diagonal; ``noise`` is the weight that `Statistics` finds."""
    subject = Subject(given, 0, Results(given))
    task = next(iter(subject.tasks.values()))
    seen = collect(subject.model, subject.sites, subject.inputs, labels=None)
    fresh = collect(subject.model, subject.sites, list(task.calibration(given.sequences)), labels=None)
    tried = (0, 0.01, 0.1, 0.3, 0.6, 1)
    weights: dict[str, Callable[[str], torch.Tensor]] = {f"{w:g}": lambda _name, w=w: torch.tensor([w]) for w in tried}
    weights["noise"] = lambda name: seen.of[name].input_shrinkage
    errors = {name: 0.0 for name in weights}
    for site in list(subject.sites)[:: given.every]:
        weight = subject.model.get_submodule(site.name).get_parameter("weight").double()
        truth, moment = (found.input_moment(site.name, shrink=False) for found in (fresh, seen))
        assert truth is not None and moment is not None
        rank = int(given.shares[0] * weight.numel() / sum(weight.shape))
        for name, chosen in weights.items():
            residual = weight - _whitened(weight, shrunk(moment, chosen(site.name))[0], rank)
            errors[name] += float(((residual @ truth[0] * residual).sum() / (weight @ truth[0] * weight).sum()).log())
    count = len(range(0, len(subject.sites), given.every))
    lines = ["| weight of the diagonal | relative error |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {torch.tensor(total / count).exp():.4f} |" for name, total in errors.items())])


def _whitened(weight: torch.Tensor, moment: torch.Tensor, rank: int) -> torch.Tensor:
    """The best weight of a rank in tr(R A R^T), by an eigendecomposition of the smaller side."""
    if weight.shape[0] <= weight.shape[1]:
        kept = torch.linalg.eigh(weight @ moment @ weight.T)[1][:, -rank:]
        return kept @ (kept.T @ weight)
    root = half(floored(moment[None]))[0]
    output = weight @ root
    kept = torch.linalg.eigh(output.T @ output)[1][:, -rank:]
    return output @ kept @ torch.linalg.solve_triangular(root.T, kept, upper=True).T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=user_path, required=True)
    parser.add_argument("--calibration", type=user_path, required=True, help="text file for second moments")
    parser.add_argument("--text", type=user_path, nargs="+", required=True, help="text files to measure on")
    parser.add_argument("--folder", type=user_path, required=True, help="for what is measured")
    parser.add_argument("--layers", default="*.layers.*", help="glob of the layers that may be factorized")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.9, 0.8, 0.6], help="of the parameters of these layers")
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--round-to", type=int, nargs="+", default=[1], help="ranks are multiples of this")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="each is a calibration on another part of the text")
    parser.add_argument("--sequences", type=int, default=8, help="of calibration")
    parser.add_argument("--length", type=int, default=256, help="tokens of each")
    parser.add_argument("--evaluated", type=int, nargs=2, default=(4, 256), help="sequences of each text, and their length")
    parser.add_argument("--steps", type=int, default=80, help="batches that networks are taught on")
    parser.add_argument("--refit", type=int, nargs=2, default=(1, 6), help="rounds of measured networks, and how many in each")
    parser.add_argument("--minutes", type=float, default=1e6, help="end the run after these; the next one goes on")
    parser.add_argument("--table", action="store_true", help="write the table of what is there, and measure nothing")
    parser.add_argument("--shrinkage", action="store_true", help="held-out errors by the weight of the diagonal instead")
    parser.add_argument("--every", type=int, default=1, help="with --shrinkage: every so many layers")
    parser.add_argument("--batch", type=int, default=1, help="sequences of a forward pass; ranks are chosen by the first")
    parser.add_argument("--device", default="cpu", help="where networks run")
    parser.add_argument("--prepare", help="where layers are factorized; default: where networks run")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.table:
        print(table(Results(given)))
    elif given.shrinkage:
        print(shrinkage(given))
    else:
        try:
            for line in measured(given, Results(given)):
                print(line, flush=True)
        except OutOfTime:
            print("out of time: run the same command again", flush=True)


if __name__ == "__main__":
    main()
