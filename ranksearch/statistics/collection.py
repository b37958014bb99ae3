"""Calibration statistics: one streaming pass over batches gives, per site, the second moment A of its (im2col)
inputs and G of the loss gradient at its outputs (K-FAC for convolutions: Grosse and Martens, arXiv 1602.01407)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ranksearch.decompositions import Moments
from ranksearch.errors import InvalidArgument
from ranksearch.home import replacing, user_path
from ranksearch.sites import Site, Sites, batch_size, copied, run, tensors_of
from ranksearch.sites.observe import forward
from ranksearch.statistics.collector import LARGEST, Collector, SiteStatistics, observing
from ranksearch.statistics.labels import UNIT, GivenLabels, Labels, SampledLabels
from ranksearch.statistics.moments import kronecker
from ranksearch.statistics.shrinkage import SHRINKAGE, shrunk
from ranksearch.tensors import absorb, save

MomentKind = Literal["activation", "fisher", "output"]
_SAMPLED = SampledLabels()
COPIES = 4  # of a large moment at a time: itself, shrunk, floored, and its half


@dataclass(frozen=True)
class Statistics:
    """The statistics of every site, by name."""

    sites: dict[str, Site]
    of: dict[str, SiteStatistics]
    uncovered: dict[str, str] = field(default_factory=dict)  # site -> what is missing there, and why

    def input_moment(self, name: str, *, center: bool = False, shrink: bool = True) -> Tensor | None:
        """A: the mean of a a^T over examples and positions, shape (groups, d, d); None for a large embedding.

        Args:
            center: take the covariance instead. A shift of a layer's mean output costs nothing where batch norm is
                re-estimated afterwards, so the covariance is the better metric there.
            shrink: draw it towards its diagonal, as far as its sampling noise asks for (`ranksearch.statistics.shrinkage`).
        """
        site, s = self.sites[name], self.of[name]
        if s.counts is not None:
            return None if s.counts.numel() > LARGEST else torch.diag_embed(s.counts * (site.scale**2 / max(s.rows, 1)))[None]
        rows = max(s.rows, 1)
        if s.input is None:
            assert s.channel is not None and s.tap is not None
            moment = kronecker(site, s.channel / rows, s.tap / rows)
        else:
            moment = s.input / rows
        if center:
            mean = s.mean / rows
            moment = moment - mean[:, :, None] * mean[:, None, :]
        return shrunk(moment, s.input_shrinkage) if shrink else moment

    def output_moment(self, name: str, *, shrink: bool = True) -> Tensor | None:
        """G: the mean over examples (and label samples) of the sum over positions of g g^T, where g is the gradient of that
        example's loss at the output; shape (groups, c_out / groups, c_out / groups). None if it was not collected.

        With A the *mean* over positions and G the *sum*, tr(G dW A dW^T) / 2 estimates the rise of the mean loss of
        an example: the Fisher form E[(sum_p g_p^T dW a_p)^2] / 2, under K-FAC's assumptions that g and a are
        independent and that gradients of different positions are uncorrelated (arXiv 1602.01407, section 3.1)."""
        s = self.of[name]
        if s.gradient is None or s.output_shrinkage is None:
            return None
        moment = s.gradient / max(s.sampled, 1)
        return shrunk(moment, s.output_shrinkage) if shrink else moment

    def moments(self, metric: MomentKind = "fisher", *, center: bool = False, shrink: bool = True) -> dict[str, Moments]:
        """Moments per site for `Spectra`. "activation" has A alone, "output" G alone, "fisher" both.

        The rows of a large embedding count as equally likely: A = I / rows is kept as a factor of G, so that the error of the
            embedding has the unit of the others. Sites that lack what the metric needs (see ``uncovered``) get the moments that
            there are. This makes a d x d float64 matrix per site and group, also for sites kept in Kronecker form.

        Raises:
            InvalidArgument: the metric needs gradients that were not collected, or matrices that the machine has no memory for.
        """
        if metric not in ("activation", "fisher", "output"):
            raise InvalidArgument(f"metric={metric!r} is none of activation, fisher, output")
        if metric != "output":
            self._check_memory()
        if metric != "activation" and all(s.gradient is None for s in self.of.values()):
            raise InvalidArgument(f"metric={metric!r} needs output gradients: collect with labels, SampledLabels() or GivenLabels()")
        result = {}
        for name in self.of:
            a = self.input_moment(name, center=center, shrink=shrink) if metric != "output" else None
            g = self.output_moment(name, shrink=shrink) if metric != "activation" else None
            counts, site = self.of[name].counts, self.sites[name]
            if counts is not None and a is None:  # without A the scale of an embedding is in G
                rows = counts.numel() if metric != "output" else 1
                g = (torch.eye(site.c_out, dtype=torch.float64)[None] if g is None else g) * (site.scale**2 / rows)
            result[name] = Moments(a, g)
        return result

    def _check_memory(self) -> None:
        """Refuses, before any work, what could not be held: a Kronecker product as one matrix, and what floors and factorizes it."""
        for name, s in self.of.items():
            if s.channel is None:
                continue
            site, memory = self.sites[name], _memory()
            width = site.c_in // site.groups * site.kernel[0] * site.kernel[1]
            needed = COPIES * 8 * site.groups * width**2
            if needed > memory:
                raise InvalidArgument(
                    f"site={name!r}: its input moment, {site.groups} x {width} x {width}, takes {needed / 2**30:.1f} GiB, and this machine "
                    f"has {memory / 2**30:.1f}; leave the layer out with exclude={name!r}, or take metric='weight'"
                )

    def fisher_ratio(self, name: str) -> float | None:
        """E|dL/dW|^2 over tr(G) tr(A): the exact trace of the Fisher, from per-example gradients, over that of K-FAC. It is above 1
        where gradients of different positions are correlated. None unless ``diagonal=True`` was given to `collect`."""
        s = self.of[name]
        a, g = self.input_moment(name, shrink=False), self.output_moment(name, shrink=False)
        if s.fisher_diagonal is None or a is None or g is None:
            return None
        factored = (a.diagonal(dim1=1, dim2=2).sum(1) * g.diagonal(dim1=1, dim2=2).sum(1)).sum()
        return float(s.fisher_diagonal.sum() / s.sampled / factored) if factored > 0 else None


def collect(
    model: nn.Module,
    sites: Sites,
    batches: Iterable[Any],
    *,
    labels: Labels | None = _SAMPLED,
    diagonal: bool = False,
    chunk_bytes: int = 64 << 20,
    cache: str | Path | None = None,
) -> Statistics:
    """Collect statistics in one pass over the data. The model runs in evaluation mode and is left as it was.

    The pass needs more memory than a forward-backward pass does: per site 8 (groups d^2 + groups (c_out / groups)^2) bytes for the
    accumulators (see `accumulator_bytes`), twice that while they are read out, and ``chunk_bytes`` for lowered inputs. Its result is
    the same for the same seed, machine and thread count.

    Args:
        model: any module; the last of its outputs that is needed is what the loss takes.
        sites: where to collect.
        batches: inputs, one forward pass each (see `ranksearch.sites.run`), examples stacked as in the one that the sites were found
            with; with `GivenLabels` pairs of inputs and targets.
        labels: which labels the gradients are of: `SampledLabels` (the true Fisher) or `GivenLabels` (the empirical one). None makes
            no backward pass, and the statistics have no output moments.
        diagonal: the diagonal of the Fisher is collected too, from per-example weight gradients (about one more pass).
        chunk_bytes: bound on the lowered inputs held at a time.
        cache: folder; statistics of the same weights, sites, data and settings are read from there. All batches are
            then held at once.

    Raises:
        InvalidArgument: no batch, ``diagonal`` without labels, or moments that the machine has no memory for.
    """
    if diagonal and labels is None:
        raise InvalidArgument("diagonal=True needs gradients: give labels, SampledLabels() or GivenLabels()")
    if cache is None:
        return _collected(model, sites, batches, labels, diagonal, chunk_bytes)
    batches = list(batches)
    path = user_path(cache) / f"statistics-{_digest(model, sites, batches, labels, diagonal)}.safetensors"
    if path.exists():
        return _load(path, sites)
    statistics = _collected(model, sites, batches, labels, diagonal, chunk_bytes)
    _save(path, statistics)
    return statistics


def _collected(
    model: nn.Module, sites: Sites, batches: Iterable[Any], labels: Labels | None, diagonal: bool, chunk_bytes: int
) -> Statistics:
    _check_room(sites, gradients=labels is not None, diagonal=diagonal)
    collectors = {site.name: Collector(site, chunk_bytes, gradient=labels is not None, diagonal=diagonal) for site in sites}
    differentiate = None if labels is None else _Differentiation(labels, collectors.values())
    seen = 0
    with observing(model, sites, collectors, backward=labels is not None):
        for batch in batches:
            seen += 1
            inputs, targets = (batch, None) if labels is None else labels.split(batch)
            size = batch_size(inputs, sites.batch_dim)
            for collector in collectors.values():
                collector.begin(size)
            with torch.set_grad_enabled(labels is not None):
                outputs = run(model, inputs)
            if differentiate is not None:
                differentiate(outputs, targets, size)
    if not seen:
        raise InvalidArgument("batches is empty: statistics need at least one batch")
    found = {name: collector.result() for name, collector in collectors.items()}
    return Statistics({site.name: site for site in sites}, found, _uncovered(sites, found, gradients=labels is not None))


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


def _check_room(sites: Sites, *, gradients: bool, diagonal: bool) -> None:
    """Refuses, before any work, moments that the machine could not hold while they are read out."""
    needed, memory = 2 * accumulator_bytes(sites, gradients=gradients, diagonal=diagonal), _memory()
    if needed > memory:
        largest = max(sites, key=lambda site: accumulator_bytes([site], gradients=gradients, diagonal=diagonal))
        raise InvalidArgument(
            f"sites: the moments of {len(sites)} layers take {needed / 2**30:.1f} GiB, and this machine has {memory / 2**30:.1f}; leave "
            f"out the largest, such as exclude={largest.name!r}, or take metric='weight'"
        )


def _memory() -> float:
    """Bytes of the machine; infinite where it does not say."""
    known = {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(getattr(os, "sysconf_names", ()))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if known else float("inf")


def accumulator_bytes(sites: Iterable[Site], *, gradients: bool = True, diagonal: bool = False) -> int:
    """Bytes that the float64 accumulators of `collect` hold, all sites together; ``gradients``: with those of output moments."""
    total = 0
    for site in sites:
        c, taps = site.c_in // site.groups, site.kernel[0] * site.kernel[1]
        if site.kind == "embedding":
            inner = site.c_in
        elif c * taps > LARGEST:
            inner = site.groups * (c * c + taps * taps)
        else:
            inner = site.groups * (c * taps) ** 2
        total += 8 * (inner + (site.groups * (site.c_out // site.groups) ** 2 if gradients else 0))
        total += 8 * site.c_out * c * taps if diagonal else 0
    return total


def _uncovered(sites: Sites, found: Mapping[str, SiteStatistics], *, gradients: bool) -> dict[str, str]:
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
    digest = hashlib.sha256(repr([sites.sites, settings]).encode())
    absorb(digest, (("", tensor) for _, tensor in sorted(model.state_dict().items())))
    batches = list(batches)
    absorb(digest, (("", tensor) for _, tensor in tensors_of(batches)))
    # the same weights may be in another network: what it computes counts to the last bit, since here that costs only time
    if first := batches[:1]:
        inputs = first[0][0] if isinstance(labels, GivenLabels) else first[0]
        absorb(digest, tensors_of(forward(model, copied(model, share=True), inputs)))
    return digest.hexdigest()[:20]


_ARRAYS = ("input", "mean", "input_shrinkage", "gradient", "output_shrinkage", "channel", "tap", "counts", "fisher_diagonal")


def _save(path: Path, statistics: Statistics) -> None:
    tensors, numbers = {}, {}
    for name, s in statistics.of.items():
        numbers[name] = [s.examples, s.rows, s.sampled]
        tensors |= {f"{name}:{key}": getattr(s, key).cpu().contiguous() for key in _ARRAYS if getattr(s, key) is not None}
    with replacing(path) as unfinished:
        save(tensors, unfinished, {"numbers": json.dumps(numbers), "uncovered": json.dumps(statistics.uncovered)})


def _load(path: Path, sites: Sites) -> Statistics:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        arrays: dict[str, dict[str, Tensor]] = {}
        for key in file.keys():  # noqa: SIM118 - not a mapping
            name, _, array = key.rpartition(":")
            arrays.setdefault(name, {})[array] = file.get_tensor(key)
    found = {}
    for name, (examples, rows, sampled) in json.loads(metadata["numbers"]).items():
        found[name] = SiteStatistics(examples, rows, sampled, **{key: arrays[name].get(key) for key in _ARRAYS})  # type: ignore[arg-type]
    return Statistics({site.name: site for site in sites}, found, json.loads(metadata["uncovered"]))
