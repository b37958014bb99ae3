"""The statistics that a study's metric and its proxies need, collected once with the settings that were measured best
(`analysis/one_shot.py`), and the moments that errors are taken in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import nn

from ranksearch.decompositions import Moments
from ranksearch.home import home
from ranksearch.sites import Sites, device_of
from ranksearch.statistics.collection import collect
from ranksearch.statistics.labels import UNIT, GivenLabels, SampledLabels
from ranksearch.statistics.lazy import Chosen
from ranksearch.statistics.memory import accumulator_bytes, passes
from ranksearch.statistics.shrinkage import SHRINKAGE
from ranksearch.statistics.statistics import Statistics
from ranksearch.tasks import Task

MetricName = Literal["weight", "activation", "fisher"]
TEMPERATURE = 3.0  # of the softmax that labels are sampled from: a trained network is nearly certain of its own images
SAMPLES = 2  # labels per example
SEED = 0  # of the sampled labels; not the study's: studies that differ in their seed alone have one space and one store


def settings(metric: MetricName, calibration: int, task: Task) -> str:
    """What the moments of a metric depend on, besides the weights and the task's own fingerprint, in words that say which Fisher
    they are of. The weight metric depends on nothing: its words are empty."""
    if metric == "weight":
        return ""
    base = f"metric={metric},calibration={calibration},shrinkage={SHRINKAGE}"
    if metric == "activation":
        return base
    if task.predictive is None:
        return f"{base},targets=given"
    if task.predictive == "other":
        return f"{base},targets=sampled,samples={SAMPLES},seed={SEED}"
    return f"{base},temperature={TEMPERATURE:g},samples={SAMPLES},seed={SEED},unit={UNIT}"


def statistics(model: nn.Module, sites: Sites, task: Task, *, calibration: int, gradients: bool, diagonal: bool = False) -> Statistics:
    """The statistics of one pass over the first ``calibration`` batches of the task, cached in ``home()/cache/statistics``.

    Where the task declares what distribution of targets the outputs stand for (`Task.predictive`), targets are sampled from it, at
    ``TEMPERATURE`` if it is categorical, and the gradients are those of the true Fisher. For other tasks they are those of the
    empirical Fisher: of the task's own loss at the given targets. The result is the same on one machine and thread count.

    Args:
        calibration: batches.
        gradients: whether output moments are collected too, and not the inputs' alone.
        diagonal: whether the diagonal of the Fisher is collected too, which `DiagonalFisher` needs.
    """
    cache = home() / "cache" / "statistics" / task.fingerprint()  # the task's own loss is part of its fingerprint
    if not gradients:
        return collect(model, sites, task.calibration(calibration), labels=None, cache=cache)
    if task.predictive is None:
        return collect(model, sites, task.labelled(calibration), labels=GivenLabels(task.loss), diagonal=diagonal, cache=cache)
    if task.predictive == "categorical":  # the labels' own cross entropy, softened, is the task's loss
        labels = SampledLabels(SAMPLES, temperature=TEMPERATURE, sample=task.sample_targets, seed=SEED)
    else:
        labels = SampledLabels(SAMPLES, loss=task.loss, sample=task.sample_targets, seed=SEED)
    return collect(model, sites, task.calibration(calibration), labels=labels, diagonal=diagonal, cache=cache)


def announced(model: nn.Module, sites: Sites, metric: MetricName, calibration: int) -> str:
    """What `statistics` is about to do, in words, with the memory that it takes."""
    gradients = metric == "fisher"
    size = accumulator_bytes(sites, gradients=gradients) / 2**30
    words = f"collecting statistics of {calibration} batches for the {metric} metric: {size:.2g} GiB of moments of {len(sites)} layers"
    groups = passes(sites, None, gradients=gradients, device=device_of(model))
    if len(groups) < 2:
        return words
    most = max(accumulator_bytes(group, gradients=gradients) for group in groups) / 2**30
    return f"{words}, at most {most:.2g} GiB of them in memory at a time, in {len(groups)} passes over the data"


def moments(found: Statistics, metric: MetricName) -> Mapping[str, Moments]:
    """The moments of a metric for `Spectra`. A site of which nothing is known (never called, no gradient reaches it,
    inputs that are zero) is left out: its errors are then taken in the weight metric.

    Inputs are not taken about their mean. Where batch norm is re-estimated a shift of a layer's mean output costs nothing,
    but the covariance was no better there (`docs/results/rules.md`), and far worse where it is not."""
    if metric == "weight":
        return {}
    every = found.moments(metric)
    parts: tuple[Literal["input", "output"], ...] = ("input", "output") if metric == "fisher" else ("input",)
    return Chosen(every, [name for name in every if all(found.sees(name, part) for part in parts)])
