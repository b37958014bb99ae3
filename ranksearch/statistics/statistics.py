"""Calibration statistics as they are used: per site the second moment A of its (im2col) inputs and G of the loss gradient at its
outputs (K-FAC for convolutions: Grosse and Martens, arXiv 1602.01407)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ranksearch.decompositions import Kronecker, Moments
from ranksearch.decompositions.kronecker import trace
from ranksearch.errors import InvalidArgument
from ranksearch.sites import Site
from ranksearch.statistics.collector import SiteStatistics
from ranksearch.statistics.inputs import LARGEST, factored
from ranksearch.statistics.lazy import MadeMoments
from ranksearch.statistics.memory import machine_memory, moment_bytes
from ranksearch.statistics.moments import kronecker
from ranksearch.statistics.shrinkage import shrunk, shrunk_product

MomentKind = Literal["activation", "fisher", "output"]
COPIES = 4  # of a large moment at a time: itself, shrunk, floored, and its half


@dataclass(frozen=True)
class Statistics:
    """The statistics of every site, by name."""

    sites: dict[str, Site]
    of: Mapping[str, SiteStatistics]  # in memory, or read from files one by one
    uncovered: dict[str, str] = field(default_factory=dict)  # site -> what is missing there, and why

    def input_moment(self, name: str, *, center: bool = False, shrink: bool = True) -> Tensor | Kronecker | None:
        """A: the mean of a a^T over examples and positions, shape (groups, d, d), of patches above ``LARGEST`` as the product of its
        marginals over channels and taps; None for a large embedding.

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
            return self._product(s, center=center, shrink=shrink)
        moment = s.input / rows
        if center:
            mean = s.mean / rows
            moment = moment - mean[:, :, None] * mean[:, None, :]
        return shrunk(moment, s.input_shrinkage) if shrink else moment

    def _product(self, s: SiteStatistics, *, center: bool, shrink: bool) -> Kronecker:
        """A as the product of its marginals, or of those of the covariance."""
        assert s.channel is not None and s.tap is not None
        rows = max(s.rows, 1)
        channel, tap = s.channel / rows, s.tap / rows
        if center:
            mean = (s.mean / rows).unflatten(1, (channel.shape[1], -1))  # (groups, channels, taps)
            channel, tap = channel - mean @ mean.mT, tap - mean.mT @ mean
        moment = kronecker(channel, tap)
        return shrunk_product(moment, s.input_shrinkage) if shrink else moment

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

    def moments(self, metric: MomentKind = "fisher", *, center: bool = False, shrink: bool = True) -> Mapping[str, Moments]:
        """Moments per site for `Spectra`, each made when it is asked for (`ranksearch.statistics.lazy`). "activation" has A alone,
        "output" G alone, "fisher" both.

        The rows of a large embedding count as equally likely: A = I / rows is kept as a factor of G, so that the error of the
            embedding has the unit of the others. Sites that lack what the metric needs (see ``uncovered``) get the moments that
            there are. This makes a d x d float64 matrix per site and group; of sites kept in Kronecker form its two factors.

        Raises:
            InvalidArgument: the metric needs gradients that were not collected, or matrices that the machine has no memory for.
        """
        if metric not in ("activation", "fisher", "output"):
            raise InvalidArgument(f"metric={metric!r} is none of activation, fisher, output")
        if metric != "output":
            self._check_memory()
        if metric != "activation" and all(s.gradient is None for s in self.of.values()):
            raise InvalidArgument(f"metric={metric!r} needs output gradients: collect with labels, SampledLabels() or GivenLabels()")
        return MadeMoments({name: partial(self._moments, name, metric, center, shrink) for name in self.of})

    def _moments(self, name: str, metric: MomentKind, center: bool, shrink: bool) -> Moments:
        a = self.input_moment(name, center=center, shrink=shrink) if metric != "output" else None
        g = self.output_moment(name, shrink=shrink) if metric != "activation" else None
        counts, site = self.of[name].counts, self.sites[name]
        if counts is not None and a is None:  # without A the scale of an embedding is in G
            rows = counts.numel() if metric != "output" else 1
            g = (torch.eye(site.c_out, dtype=torch.float64)[None] if g is None else g) * (site.scale**2 / rows)
        return Moments(a, g)

    def sees(self, name: str, part: Literal["input", "output"]) -> bool:
        """False where a moment of a site is zero in all groups; a moment that is not kept counts as the identity, which sees."""
        s = self.of[name]
        if part == "output":
            return s.gradient is None or _alive(s.gradient)
        if s.counts is not None:
            return s.counts.numel() > LARGEST or bool(s.counts.any())
        return all(_alive(moment) for moment in (s.input, s.channel, s.tap) if moment is not None)

    def _check_memory(self) -> None:
        """Refuses, before any work, what could not be held: the moment of one site as one matrix, and what floors and factorizes it."""
        memory = machine_memory()
        for site in self.sites.values():
            width = site.c_in // site.groups * site.kernel[0] * site.kernel[1]
            needed = COPIES * moment_bytes(site)
            if needed > memory and site.kind != "embedding":
                form = ", as a product of channels and taps" if factored(site) else ""
                raise InvalidArgument(
                    f"site={site.name!r}: its input moment, {site.groups} x {width} x {width}{form}, takes {needed / 2**30:.1f} GiB, and "
                    f"this machine has {memory / 2**30:.1f}; leave the layer out with exclude={site.name!r}, or take metric='weight'"
                )

    def fisher_ratio(self, name: str) -> float | None:
        """E|dL/dW|^2 over tr(G) tr(A): the exact trace of the Fisher, from per-example gradients, over that of K-FAC. It is above 1
        where gradients of different positions are correlated. None unless ``diagonal=True`` was given to `collect`."""
        s = self.of[name]
        a, g = self.input_moment(name, shrink=False), self.output_moment(name, shrink=False)
        if s.fisher_diagonal is None or a is None or g is None:
            return None
        product = (trace(a) * trace(g)).sum()
        return float(s.fisher_diagonal.sum() / s.sampled / product) if product > 0 else None


def _alive(moment: Tensor) -> bool:
    """False for a moment that sees nothing in any group."""
    return bool((moment.diagonal(dim1=1, dim2=2).sum(dim=1) > 0).any())
