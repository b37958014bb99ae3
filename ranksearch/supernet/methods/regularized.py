"""STN (arXiv 2205.15198) trains with a low-rank regularizer and chooses structures and ranks afterwards, under any storage
constraint, without retraining. The paper's formulas could not be obtained; what stands here follows its abstract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from ranksearch import checks
from ranksearch.allocators import Problem, STNStorage
from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.decompositions.folding import MODES, Folding, unfoldings
from ranksearch.decompositions.symmetric import eigvalsh
from ranksearch.errors import InvalidArgument
from ranksearch.networks import surgery
from ranksearch.sites import Site
from ranksearch.space import Configuration, build_space
from ranksearch.space.spectra import Spectra
from ranksearch.supernet.methods._base import Batch, Loss, Method
from ranksearch.supernet.methods._truncations import polar
from ranksearch.supernet.network import RankSupernet, canonical

Form = Literal["gram", "subgradient"]


@final
class Regularized(Method):
    """The loss is L(W) + strength * the sum over sites and unfoldings of weight * |unfolded W|_*.

    Since the paper's regularizer could not be had, this one is our choice: the sum of the nuclear norms of all mode unfoldings (Liu
    et al. 2013, tensor completion), with equal weights that add up to 1 per site and the strength of TRP's nuclear term.

    Args:
        strength: of the regularizer.
        form: ``subgradient``, the cheap one: <W, S> with S = sum of weight * U V^T, anew every ``every`` steps and held fixed
            in between, where it is a lower bound of the norm and equal to it when fresh; ``gram``: the sum of square roots
            of the eigenvalues of the smaller Gram matrix, exact at every step, with its exact gradient.
        every: steps between sub-gradients.
        modes: weights of the unfoldings ``out``, ``in``, ``height``, ``width``, made to add up to 1 per site; default: equal.
    """

    name = "regularized"

    def __init__(
        self,
        supernet: RankSupernet,
        loss: Loss,
        *,
        seed: int = 0,
        strength: float = 3e-4,
        form: Form = "subgradient",
        every: int = 10,
        modes: Mapping[str, float] | None = None,
    ) -> None:
        checks.number("strength", strength, above=0)
        if form not in ("gram", "subgradient"):
            raise InvalidArgument(f"form={form!r} is none of gram, subgradient")
        checks.whole("every", every, least=1)
        weights = dict.fromkeys(MODES, 1.0) if modes is None else dict(modes)
        unknown = sorted(set(weights) - set(MODES))
        if unknown or not weights:
            raise InvalidArgument(f"modes={modes!r}: give weights for some of {', '.join(MODES)}")
        for mode, value in weights.items():
            checks.number(f"modes[{mode!r}]", value, least=0)
        super().__init__(supernet, loss, seed=seed)
        self.strength, self.form, self.every = strength, form, every
        self.modes = [[mode, float(value)] for mode, value in sorted(weights.items())]
        self._unfoldings: dict[str, list[tuple[Folding, float]]] = {}
        for site in supernet.sites:
            shares = [(folding, weights.get(mode, 0.0)) for mode, folding in MODES.items() if folding in unfoldings(site)]
            total = sum(share for _, share in shares)
            if total > 0:
                self._unfoldings[site.name] = [(folding, share / total) for folding, share in shares if share > 0]
        if not self._unfoldings:
            raise InvalidArgument(f"modes={modes!r}: no site of this network has one of these unfoldings; leave modes out")
        self._subgradients: dict[str, Tensor] = {}  # canonical, by site

    def loss(self, batch: Batch) -> Tensor:
        return self.dense(batch) + self.strength * self.penalty()

    def penalty(self) -> Tensor:
        """The weighted sum of nuclear norms, without the strength; differentiable in the weights."""
        if self.form == "subgradient" and not self._subgradients:
            self._subgradients = {name: self._subgradient(self.supernet.sites[name], dense) for name, dense in self._covered()}
        parts = []
        for name, unfolded in self._unfoldings.items():
            site, weight = self.supernet.sites[name], self.supernet.weight(name)
            dense = canonical(weight, site)
            if self.form == "gram":
                parts += [share * nuclear_norm(folding.fold(site, dense)) for folding, share in unfolded]
            else:
                parts.append((dense * self._subgradients[name]).sum())
        return torch.stack(parts).sum()

    def _covered(self) -> list[tuple[str, Tensor]]:
        return [(name, dense) for name, dense in self.weights().items() if name in self._unfoldings]

    def _subgradient(self, site: Site, dense: Tensor) -> Tensor:
        total = torch.zeros_like(dense)
        for folding, share in self._unfoldings[site.name]:
            total += share * folding.unfold(site, polar(folding.fold(site, dense)))
        return total

    def after_step(self, step: int) -> None:
        if step % self.every == 0:
            self._subgradients = {}  # made anew by the next loss
        super().after_step(step)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {f"subgradient.{name}": value for name, value in self._subgradients.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        found = {key.removeprefix("subgradient."): value for key, value in state.items() if key.startswith("subgradient.")}
        self._subgradients = {name: value.to(self.supernet.weight(name)) for name, value in found.items()}


def nuclear_norm(matrices: Tensor) -> Tensor:
    """Sum of the singular values of a batch of matrices, shape (batch, m, n), from the eigenvalues of the smaller Gram
    matrix, in float64. The gradient U V^T needs no gap between singular values; those below 1e-6 of the largest, where
    the norm has a kink, count as zero."""
    with torch.autocast(matrices.device.type, enabled=False):
        wide = matrices.double()
        gram = wide @ wide.mT if wide.shape[1] <= wide.shape[2] else wide.mT @ wide
        values = eigvalsh(gram)
        floor = (values.detach()[:, -1:] * 1e-12).clamp_min(torch.finfo(torch.float64).tiny)
        counts = values > floor  # the root of the others is never taken, so that its gradient is finite
        return torch.where(counts, torch.where(counts, values, 1.0).sqrt(), 0.0).sum().to(matrices.dtype)


def sized(
    supernet: RankSupernet, params: Sequence[float], *, types: Sequence[str] = ("adaptive",)
) -> list[tuple[Configuration, nn.Module]]:
    """Networks of several sizes from one trained supernet, without retraining: types and ranks by `STNStorage` on the
    spectra of the weights as they are, built by surgery. Batch-norm statistics are the dense network's: re-estimate them.

    Args:
        params: storage constraints, of the whole network; up to 1 shares of the dense network's.
        types: that layers may take besides dense; the paper's are learned per layer, `adaptive`.

    Raises:
        InfeasibleBudget: a constraint below what the types can reach.
    """
    chosen = [d for d in DECOMPOSITIONS if d.name in types]
    if len(chosen) != len(set(types)):
        raise InvalidArgument(f"types={tuple(types)!r}: known are: {', '.join(d.name for d in DECOMPOSITIONS)}")
    spectra = Spectra(supernet.model, supernet.sites, chosen)
    space = build_space(spectra)
    table = space.table("frobenius")
    found = []
    for budget in params:
        allocation = STNStorage().allocate(Problem(space, table, {"params": budget}))
        configuration = space.configuration(allocation.indices)
        found.append((configuration, surgery.build(spectra, configuration)))
    return found
