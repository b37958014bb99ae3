"""LEMS with KFAC-SVD (ICML 2026), rebuilt from the description of the method: the strongest published rule for language models that trains
nothing. `ranksearch.proxies.LEMS` is its choice of ranks for any network and types; here are its own factors, and anchors that are measured
without computing the blocks in front of them again. Factors are two-sided, with a moment of output gradients over tokens.

What the description leaves open, and what is done here: gradients are those of the text's own tokens; the energy of the curves is that in
the two-sided metric, as the factors are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ranksearch.allocators import Additive, Problem
from ranksearch.decompositions import Moments
from ranksearch.networks.surgery import factorized
from ranksearch.proxies.lems import ANCHOR, block_of, deepened
from ranksearch.sites import Site, Sites, evaluating, run
from ranksearch.space import Configuration, SearchSpace
from ranksearch.space.spectra import Spectra
from ranksearch.statistics import Statistics

MIDDLE = 0.75  # share of the positions of a sequence whose gradients count: those in the middle
CLIP = (0.1, 10.0)  # of the mean norm: what a gradient's norm is brought to where it is outside
SHRINK_INPUT, SHRINK_OUTPUT = 0.1, 0.3  # towards the identity of the same trace

Loss = Callable[[Any, Any], Tensor]


# -- KFAC-SVD ------------------------------------------------------------------------------------------------------------


def kfac_moments(
    model: nn.Module, sites: Sites, batches: Sequence[tuple[Any, Any]], loss: Loss, statistics: Statistics
) -> dict[str, Moments]:
    """The metric of KFAC-SVD, by site.

    Args:
        batches: pairs of inputs and targets.
        loss: mean over a batch; its scale does not matter.
        statistics: of the same batches, for the moments of inputs.
    """
    sums = {site.name: torch.zeros(site.c_out, site.c_out, dtype=torch.float64) for site in sites}
    with evaluating(model), torch.enable_grad(), ExitStack() as stack:
        for site in sites:
            stack.callback(model.get_submodule(site.name).register_forward_hook(_watch(sums[site.name])).remove)
        for inputs, targets in batches:
            loss(run(model, inputs), targets).backward()
    found = {}
    for site in sites:
        inputs = statistics.input_moment(site.name, shrink=False)
        assert inputs is not None
        found[site.name] = Moments(towards_trace(inputs, SHRINK_INPUT), towards_trace(sums[site.name][None], SHRINK_OUTPUT))
    return found


def _watch(total: Tensor) -> Callable[..., Tensor]:
    def observe(gradient: Tensor) -> None:
        total.add_(token_moment(gradient.detach()).to(total.device))

    def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        if not output.requires_grad:  # the weights are frozen: gradients begin at the first layers
            output = output.detach().requires_grad_().clone()
        output.register_hook(observe)
        return output

    return hook


def token_moment(gradient: Tensor) -> Tensor:
    """Sum of g g^T over the tokens in the middle of each sequence, clipped, float64.

    Args:
        gradient: shape (sequences, length, d).
    """
    length = gradient.shape[1]
    edge = round(length * (1 - MIDDLE) / 2)
    rows = gradient[:, edge : length - edge].flatten(0, 1).double()
    norms = rows.norm(dim=1, keepdim=True)
    mean = norms.mean()
    rows = rows * (norms.clamp(CLIP[0] * mean, CLIP[1] * mean) / norms.clamp_min(torch.finfo(torch.float64).tiny))
    return rows.T @ rows


def towards_trace(moment: Tensor, weight: float) -> Tensor:
    """(1 - weight) M + weight tr(M) / d I, shape (groups, d, d)."""
    size = moment.shape[-1]
    mean = moment.diagonal(dim1=1, dim2=2).mean(dim=1)
    return (1 - weight) * moment + weight * mean[:, None, None] * torch.eye(size, dtype=moment.dtype)


# -- LEMS ----------------------------------------------------------------------------------------------------------------


def anchor_rank(site: Site) -> int:
    """A tenth of the rank at which two factors have as many parameters as the dense layer."""
    return max(round(ANCHOR * site.c_out * site.c_in / (site.c_out + site.c_in)), 1)


def anchors(spectra: Spectra, batches: Sequence[Any], divergence: Loss, known: dict[str, float]) -> Iterator[str]:
    """Measure, per site, the divergence of the whole network's outputs from its own when that site alone is cut to its `anchor_rank`. What
    is in ``known`` is not measured again; what is measured is added to it, and its site yielded."""
    model = spectra.model
    with evaluating(model):
        dense = _Dense(model, {path for site in spectra.sites if (path := block_of(site.name)[0]) is not None}, batches)
        for site in spectra.sites:
            if site.name not in known:
                with dense.before(site.name) as replay, _replaced(model, site.name, spectra):
                    values = [float(divergence(replay(k), answer)) for k, answer in enumerate(dense.answers)]
                known[site.name] = float(np.mean(values))
                yield site.name


class _Dense:
    """What the dense network and each of its blocks answer, so that blocks in front of a change need not be computed again."""

    def __init__(self, model: nn.Module, lists: Collection[str], batches: Sequence[Any]) -> None:
        self._model, self._batches, self._now = model, batches, 0
        self._blocks = {path: list(model.get_submodule(path).children()) for path in lists}
        self._kept: dict[nn.Module, list[Any]] = {block: [] for blocks in self._blocks.values() for block in blocks}
        with ExitStack() as stack:
            for block, kept in self._kept.items():
                stack.callback(block.register_forward_hook(lambda _m, _a, out, kept=kept: kept.append(out)).remove)
            self.answers = [run(model, batch) for batch in batches]

    @contextmanager
    def before(self, name: str) -> Iterator[Callable[[int], Any]]:
        """Forward passes, by the number of the batch, in which the blocks in front of that of a layer answer with what is kept."""
        path, number = block_of(name)
        with ExitStack() as stack:
            for block in self._blocks[path][:number] if path is not None else ():
                block.forward = lambda *_args, kept=self._kept[block], **_options: kept[self._now]  # type: ignore[method-assign]
                stack.callback(vars(block).pop, "forward")
            yield self._pass

    def _pass(self, index: int) -> Any:
        self._now = index
        return run(self._model, self._batches[index])


@contextmanager
def _replaced(model: nn.Module, name: str, spectra: Spectra) -> Iterator[None]:
    """The model with one layer at its `anchor_rank`, in place."""
    site, original = spectra.sites[name], model.get_submodule(name)
    model.set_submodule(name, factorized(spectra, site, "svd", (anchor_rank(site),)))
    try:
        yield
    finally:
        model.set_submodule(name, original)


def curves(space: SearchSpace, measured: Mapping[str, float], spectra: Spectra) -> list[np.ndarray]:
    """What every option adds, before the depth factor: its relative energy lost over that of the anchor, times the anchor's divergence."""
    found = []
    for ladder in space.ladders:
        site = ladder.site
        errors = spectra.decomposition("svd").errors(spectra.state(site, "svd"))
        at = float(errors.frobenius[int(np.flatnonzero(errors.ranks[:, 0] == anchor_rank(site))[0])]) ** 2
        values = np.square(ladder.column("frobenius")) / max(at, 1e-300) * max(measured[site.name], 0.0)
        values[-1] = 0.0
        found.append(values)
    return found


def allocate(
    space: SearchSpace,
    spectra: Spectra,
    measured: Mapping[str, float],
    budgets: Mapping[str, float],
    loss: Callable[[Configuration], float],
) -> Configuration:
    """The best of the optima that differ in the depth factor, by the measured ``loss`` of the whole network; the first has none."""
    base = curves(space, measured, spectra)
    tried: dict[str, tuple[float, Configuration]] = {}
    for table in deepened(base, [block_of(ladder.site.name)[1] for ladder in space.ladders]):
        configuration = space.configuration(Additive(seconds=5).allocate(Problem(space, table, budgets)).indices)
        if configuration.id not in tried:
            tried[configuration.id] = loss(configuration), configuration
    return min(tried.values(), key=lambda one: one[0])[1]
