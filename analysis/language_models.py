"""Factorized language models without any training: rules of choosing ranks, all with `svd`, on real text. Writes a markdown table of
perplexities, dense network first; ``--shrinkage`` instead the held-out error of layers by the weight that shrinkage gives the diagonal.

    python analysis/language_models.py --model FOLDER --calibration TEXT --text TEXT [TEXT ...] [--layers '*mlp*'] [--shares 0.95 0.9]

FOLDER is any causal model in the layout of transformers, with its tokenizer."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ranksearch.allocators import BALF, Additive, Allocator, Problem, Uniform
from ranksearch.decompositions import SVD, Moments
from ranksearch.decompositions.metric import floored, half
from ranksearch.home import user_path
from ranksearch.networks.reconstruction import reconstruct
from ranksearch.networks.surgery import build
from ranksearch.proxies import Energy, Frobenius, TableProxy
from ranksearch.sites import find_sites
from ranksearch.space import Configuration, SearchSpace, build_space
from ranksearch.space.spectra import Spectra
from ranksearch.statistics import SampledLabels, Statistics, collect
from ranksearch.statistics.shrinkage import shrunk
from ranksearch.tasks import LanguageModel


@dataclass(frozen=True)
class Rule:
    """How ranks are chosen, and in which metric factors are made."""

    metric: str
    allocator: Allocator
    proxy: TableProxy
    shrink: bool = True
    fit: bool = False


RULES = {
    "plain_svd": Rule("weight", Uniform(), Frobenius()),
    "svd_llm": Rule("activation", Uniform(), Frobenius(), shrink=False),
    "balf": Rule("activation", BALF(), Frobenius(), shrink=False),
    "rocket": Rule("activation", Additive(), Frobenius(), shrink=False),  # dynamic programming on relative output error
    "activation_uniform": Rule("activation", Uniform(), Frobenius()),
    "activation": Rule("activation", Additive(), Frobenius()),
    "fisher_uniform": Rule("fisher", Uniform(), Frobenius()),
    "fisher": Rule("fisher", Additive(), Energy()),
    "fisher_reconstructed": Rule("fisher", Additive(), Energy(), fit=True),
}


class Subject:
    """One network, its calibration, and the spaces of each metric, made once."""

    def __init__(self, given: argparse.Namespace, seed: int) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.given = given
        self.model: nn.Module = AutoModelForCausalLM.from_pretrained(given.model, local_files_only=True).float().eval()
        self.model.requires_grad_(False)
        tokenizer = AutoTokenizer.from_pretrained(given.model, local_files_only=True)
        self.tasks = {text.name: self._task(tokenizer, text) for text in given.text}
        stream = self._stream(tokenizer, given.calibration)
        count, length = given.sequences, given.length
        start = seed * count * length
        self.batches = list(self._calibration(stream[start : start + count * length].reshape(count, length)).calibration(count))
        self.sites = find_sites(self.model, self.batches[0], include=given.layers)
        self.kept: dict[tuple[str, bool], tuple[Spectra, SearchSpace]] = {}

    def _stream(self, tokenizer: Any, text: Path) -> torch.Tensor:
        return torch.tensor(tokenizer(text.read_bytes().decode("utf-8", errors="replace"))["input_ids"])

    def _task(self, tokenizer: Any, text: Path) -> LanguageModel:
        count, length = self.given.evaluated
        tokens = self._stream(tokenizer, text)[: count * length]
        reference = self.model if self.given.divergence else None
        return LanguageModel(train=tokens, validation=tokens, length=length, batch_size=2, reference=reference)

    def _calibration(self, tokens: torch.Tensor) -> LanguageModel:
        return LanguageModel(train=tokens, validation=tokens, batch_size=4)

    @cached_property
    def statistics(self) -> Statistics:
        task = next(iter(self.tasks.values()))
        fisher = any(RULES[name].metric == "fisher" for name in self.given.rules)
        labels = SampledLabels(loss=task.loss, sample=task.sample_targets) if fisher else None
        return collect(self.model, self.sites, self.batches, labels=labels)

    def space(self, metric: str, shrink: bool) -> tuple[Spectra, SearchSpace]:
        key = metric, shrink or metric == "weight"
        if key not in self.kept:
            self.kept.clear()  # one at a time: the spectra are large
            moments: dict[str, Moments] | None = None
            if metric != "weight":
                moments = self.statistics.moments(metric, shrink=shrink)  # type: ignore[arg-type]
            spectra = Spectra(self.model, self.sites, [SVD()], moments=moments)
            self.kept[key] = spectra, build_space(spectra, round_to=self.given.round_to, example=self.batches[0])
        return self.kept[key]

    def choose(self, rule: Rule, share: float) -> tuple[Spectra, Configuration]:
        """The configuration of a rule at a share of the parameters of the layers that may be factorized."""
        spectra, space = self.space(rule.metric, rule.shrink)
        dense = space.baseline["params"]
        sites = dense - space.fixed["params"]
        problem = Problem(space, rule.proxy.table(space), {"params": (dense - (1 - share) * sites) / dense})
        return spectra, space.configuration(rule.allocator.allocate(problem).indices)

    def network(self, rule: Rule, share: float) -> nn.Module:
        spectra, configuration = self.choose(rule, share)
        network = build(spectra, configuration).eval()
        if rule.fit:
            reconstruct(network, spectra, configuration, self.batches)
        return network

    def measure(self, network: nn.Module) -> dict[str, dict[str, float]]:
        return {name: task.measure(network) for name, task in self.tasks.items()}


def table(given: argparse.Namespace) -> str:
    """Rules down, shares and texts across: perplexity, and with ``--divergence`` the KL divergence from the dense network."""
    rows: dict[str, list[str]] = {"dense": []}
    heads = [f"{share:g}, {text.name}, seed {seed}" for seed in range(given.seeds) for share in given.shares for text in given.text]
    for seed in range(given.seeds):
        subject = Subject(given, seed)
        dense = subject.measure(subject.model)
        rows["dense"] += [_cell(found) for _ in given.shares for found in dense.values()]
        for name in given.rules:
            for share in given.shares:
                start = time.perf_counter()
                found = subject.measure(subject.network(RULES[name], share))
                rows.setdefault(name, []).extend(_cell(one) for one in found.values())
                print(f"{name} {share:g}: {' | '.join(map(_cell, found.values()))} ({time.perf_counter() - start:.0f} s)", flush=True)
    lines = ["| rule | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    return "\n".join([*lines, *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items())])


def _cell(found: dict[str, float]) -> str:
    return f"{found['perplexity']:.1f}" + (f" ({found['divergence']:.3f})" if "divergence" in found else "")


def shrinkage(given: argparse.Namespace) -> str:
    """Geometric mean over layers of the relative error of outputs on other text, when each is cut to the first share at uniform ranks by
    a whitened SVD, by the weight of the diagonal; ``noise`` is the weight that `Statistics` finds."""
    subject = Subject(given, 0)
    task = next(iter(subject.tasks.values()))
    seen = collect(subject.model, subject.sites, subject.batches, labels=None)
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
    parser.add_argument("--layers", default="*mlp*", help="glob of the layers that may be factorized")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.95], help="of the parameters of these layers")
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--sequences", type=int, default=16, help="of calibration")
    parser.add_argument("--length", type=int, default=128, help="tokens of each")
    parser.add_argument("--evaluated", type=int, nargs=2, default=(8, 256), help="sequences of each text, and their length")
    parser.add_argument("--round-to", type=int, default=1, help="ranks are multiples of this")
    parser.add_argument("--seeds", type=int, default=1, help="calibrations on different parts of the text")
    parser.add_argument("--divergence", action="store_true", help="the KL divergence from the dense network as well, in nats")
    parser.add_argument("--shrinkage", action="store_true", help="held-out errors by the weight of the diagonal instead")
    parser.add_argument("--every", type=int, default=1, help="with --shrinkage: every so many layers")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=user_path, default=None, help="markdown file")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    text = shrinkage(given) if given.shrinkage else table(given)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
