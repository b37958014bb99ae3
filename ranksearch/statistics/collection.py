"""Calibration statistics: streaming passes over batches give, per site, the second moment A of its (im2col) inputs and G of the
loss gradient at its outputs (K-FAC for convolutions: Grosse and Martens, arXiv 1602.01407)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ranksearch.errors import InvalidArgument
from ranksearch.home import user_path
from ranksearch.sites import Site, Sites, batch_size, copied, device_of, map_tensors, run, tensors_of
from ranksearch.sites.observe import forward
from ranksearch.statistics import files
from ranksearch.statistics.collector import Collector, SiteStatistics, observing
from ranksearch.statistics.inputs import LARGEST, SharedInputs
from ranksearch.statistics.labels import UNIT, GivenLabels, Labels, SampledLabels
from ranksearch.statistics.memory import check_room, passes
from ranksearch.statistics.shrinkage import SHRINKAGE
from ranksearch.statistics.statistics import Statistics
from ranksearch.tensors import absorb
from ranksearch.threads import few_of, threads

_SAMPLED = SampledLabels()


def collect(
    model: nn.Module,
    sites: Sites,
    batches: Iterable[Any],
    *,
    labels: Labels | None = _SAMPLED,
    diagonal: bool = False,
    chunk_bytes: int = 64 << 20,
    moment_bytes: int | None = None,
    cache: str | Path | None = None,
) -> Statistics:
    """Collect statistics in one pass over the data, or in several where they are too large to be in memory at a time. The model runs in
    evaluation mode and is left as it was.

    A pass needs more memory than a forward-backward pass does: per site 8 (groups d^2 + groups (c_out / groups)^2) bytes for the
    accumulators (see `accumulator_bytes`; sites that are given the same tensors share those of their inputs), up to twice that while they
    are read out, and ``chunk_bytes`` for lowered inputs. The result is the same for the same seed, machine and thread count, in
    however many passes.

    Args:
        model: any module; the last of its outputs that is needed is what the loss takes.
        sites: where to collect.
        batches: inputs, one forward pass each (see `ranksearch.sites.run`), examples stacked as in the one that the sites were found
            with; with `GivenLabels` pairs of inputs and targets.
        labels: which labels the gradients are of: `SampledLabels` (the true Fisher) or `GivenLabels` (the empirical one). None makes
            no backward pass, and the statistics have no output moments.
        diagonal: the diagonal of the Fisher is collected too, from per-example weight gradients (about one more pass).
        chunk_bytes: bound on the lowered inputs held at a time.
        moment_bytes: bound on the accumulators of one pass (one site takes what it takes), where there is a ``cache`` in which the
            others' are kept meanwhile; None: an eighth of the memory of the machine, or of the model's GPU if that has less.
        cache: folder; statistics of the same weights, sites, data and settings are read from there, the moments of a site when they
            are used, unless all are small. All batches are then held at once.

    Raises:
        InvalidArgument: no batch, ``diagonal`` without labels, or moments that the machine has no memory for.
    """
    if diagonal and labels is None:
        raise InvalidArgument("diagonal=True needs gradients: give labels, SampledLabels() or GivenLabels()")
    wanted = _Wanted(labels, diagonal, chunk_bytes)
    if cache is None:
        remedy = "; with cache=FOLDER they are kept there, and collected one after the other"
        check_room(sites.sites, gradients=labels is not None, diagonal=diagonal, device=device_of(model), remedy=remedy)
        found = _pass(model, sites, sites.sites, batches, wanted)
        return Statistics({site.name: site for site in sites}, found, _uncovered(sites, found, gradients=labels is not None))
    batches = list(batches)
    path = user_path(cache) / f"statistics-{_digest(model, sites, batches, labels, diagonal)}.safetensors"
    if (known := files.load(path)) is None:
        _write(path, model, sites, batches, wanted, moment_bytes)
        known = files.load(path)
        assert known is not None
    return Statistics({site.name: site for site in sites}, *known)


@dataclass(frozen=True)
class _Wanted:
    """What is collected, and how."""

    labels: Labels | None
    diagonal: bool
    chunk_bytes: int


def _write(path: Path, model: nn.Module, sites: Sites, batches: list[Any], wanted: _Wanted, moment_bytes: int | None) -> None:
    """Collect into a file; or, where the moments of all sites are too many at a time, pass by pass into a file per site."""
    gradients, device = wanted.labels is not None, device_of(model)
    groups = passes(sites, moment_bytes, gradients=gradients, diagonal=wanted.diagonal, device=device)
    for group in groups:
        check_room(group, gradients=gradients, diagonal=wanted.diagonal, device=device)
    writer = files.Writer(path, in_pieces=len(groups) > 1)
    for group in groups:
        found = _pass(model, sites, group, batches, wanted)
        writer.add(found, _uncovered(group, found, gradients=gradients))
    writer.close()


def _pass(model: nn.Module, sites: Sites, group: Iterable[Site], batches: Iterable[Any], wanted: _Wanted) -> dict[str, SiteStatistics]:
    """The statistics of some sites, from one pass over the data; from a second one of those whose inputs turned out not to be another
    site's, in this pass, after all. One-shot batches have no second pass, so that there every site has sums of its own."""
    sharing = isinstance(batches, Sequence)
    found, apart = _collected(model, sites, group, batches, wanted, sharing=sharing)
    if apart:
        found |= _collected(model, sites, [site for site in group if site.name in apart], batches, wanted, sharing=False)[0]
    return {site.name: found[site.name] for site in group}


def _collected(
    model: nn.Module, sites: Sites, group: Iterable[Site], batches: Iterable[Any], wanted: _Wanted, *, sharing: bool
) -> tuple[dict[str, SiteStatistics], set[str]]:
    """The statistics of some sites, and which of them are not in it, since their inputs were not what they seemed to be."""
    labels, shared = wanted.labels, SharedInputs(wanted.chunk_bytes, sharing=sharing)
    collectors = {
        site.name: Collector(site, shared, wanted.chunk_bytes, gradient=labels is not None, diagonal=wanted.diagonal) for site in group
    }
    differentiate = None if labels is None else _Differentiation(labels, collectors.values())
    seen, device = 0, device_of(model)
    with threads(few_of(model)), observing(model, collectors, backward=labels is not None):
        for batch in batches:
            seen += 1
            inputs, targets = (batch, None) if labels is None else labels.split(batch)
            size = batch_size(inputs, sites.batch_dim)
            shared.begin(size)
            for collector in collectors.values():
                collector.begin(size)
            with torch.set_grad_enabled(labels is not None):
                outputs = run(model, inputs)
            if differentiate is not None:
                differentiate(outputs, map_tensors(lambda target: target.to(device), targets), size)
    if not seen:
        raise InvalidArgument("batches is empty: statistics need at least one batch")
    shared.settle()
    return {name: collector.result() for name, collector in collectors.items() if name not in shared.apart}, shared.apart


class _Differentiation:
    """The backward passes of a run over the data; the collectors' hooks see what they bring."""

    def __init__(self, labels: Labels, collectors: Iterable[Collector]) -> None:
        self._passes, self._losses, self._collectors = labels.passes, labels.start(), collectors

    def __call__(self, outputs: Any, targets: Any, size: int) -> None:
        """All passes of one batch of ``size`` examples."""
        for number, loss in enumerate(self._losses(outputs, targets), 1):
            if loss.requires_grad:
                (loss * size).backward(retain_graph=number < self._passes)
            for collector in self._collectors:
                collector.end_sample()


def _uncovered(sites: Iterable[Site], found: Mapping[str, SiteStatistics], *, gradients: bool) -> dict[str, str]:
    missing = {}
    for site in sites:
        s = found[site.name]
        if s.rows == 0:
            missing[site.name] = "not called on any batch: no statistics"
        elif site.head is not None:
            missing[site.name] = f"tied to the head {site.head.name!r}: only its use as an embedding is in the statistics"
        elif s.counts is not None and s.counts.numel() > LARGEST:
            missing[site.name] = f"an embedding of {s.counts.numel()} rows: these count as equally likely"
        elif s.channel is not None:
            missing[site.name] = f"im2col dimension over {LARGEST}: the input moment is a Kronecker product of channels and taps"
        elif gradients and s.gradient is not None and not bool(s.gradient.any()):
            missing[site.name] = "no gradient reached it: the loss does not depend on it"
    return missing


# -- the cache ---------------------------------------------------------------------------------------------------


def _digest(model: nn.Module, sites: Sites, batches: Iterable[Any], labels: Labels | None, diagonal: bool) -> str:
    kind, samples, temperature, *rest = (None, 1, 1.0, 0, "", "") if labels is None else labels.key()
    settings = [UNIT, SHRINKAGE, kind, samples, temperature, diagonal, *rest]
    if any(site.kind == "transformers_conv1d" for site in sites):
        settings.append("runs of tokens")  # earlier versions took each for a sample
    digest = hashlib.sha256(repr([sites.sites, settings]).encode())
    absorb(digest, (("", tensor) for _, tensor in sorted(model.state_dict().items())))
    batches = list(batches)
    absorb(digest, (("", tensor) for _, tensor in tensors_of(batches)))
    # the same weights may be in another network: what it computes counts to the last bit, since here that costs only time
    if first := batches[:1]:
        inputs = first[0][0] if isinstance(labels, GivenLabels) else first[0]
        absorb(digest, tensors_of(forward(model, copied(model, share=True), inputs)))
    return digest.hexdigest()[:20]
