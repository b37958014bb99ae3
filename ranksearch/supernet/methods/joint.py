"""Decomposable-Net (arXiv 1910.13141): every step trains the dense network and one low-rank network of the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ranksearch import checks
from ranksearch.decompositions.folding import FOLDINGS
from ranksearch.decompositions.singular import svd
from ranksearch.errors import InvalidArgument
from ranksearch.space import DENSE
from ranksearch.supernet.methods._base import Batch, Loss, Method, projecting
from ranksearch.supernet.network import RankSupernet, canonical, layered
from ranksearch.supernet.sampling import Ratio, Sampling

CLIP = 0.99  # largest sigma_j^2 / sigma_i^2 in the gradient through the SVD (IJCAI version)


@final
class Joint(Method):
    """The loss is (1 - l) L(W) + l L(W_r), where r is drawn at every step.

    The two published versions are settings of this class. The first one (arXiv v1) is the default: W_r = U_r U_r^T W with U_r held
    fixed, bases are made anew every 2 steps (`RankSupernet`'s ``refresh_every``), and the share of bases, ordered by sigma /
    sigma_1, is uniform in [0.01, 1]. The IJCAI version is ``gradient="svd"``, ``sampling=Ratio(space, low=0.01, high=0.25, criterion="raw",
    least=5)``. Per-layer rescaling is the IJCAI version's and on by default with both. Both papers train from
    scratch: in a network that is trained already the full-rank gradient is next to nothing, and rescaling to its norm leaves
    little to learn from; fine-tune with ``rescale=False``.
    Both passes share scale, shift and biases; the low-rank pass has batch-norm statistics of its own.

    Args:
        weight: l, 0.5 in the paper (0.4 in the first version's comparisons).
        gradient: ``projection``: U_r held fixed; ``svd``: through the truncated SVD, with the terms that couple kept and
            dropped singular vectors (see `TruncatedSVD`), for the SVD kinds.
        rescale: give each layer's low-rank gradient the norm of its full-rank gradient, before they are weighted.
        sampling: default `Ratio`; in spaces with other types than svd, with all types that project.
    """

    name = "joint"
    draws = True

    def __init__(
        self,
        supernet: RankSupernet,
        loss: Loss,
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
        weight: float = 0.5,
        gradient: Literal["projection", "svd"] = "projection",
        rescale: bool = True,
    ) -> None:
        checks.number("weight", weight, above=0, below=1)
        if gradient not in ("projection", "svd"):
            raise InvalidArgument(f"gradient={gradient!r} is none of projection, svd")
        if not isinstance(rescale, bool):
            raise InvalidArgument(f"rescale={rescale!r}: must be true or false")
        if sampling is None:
            sampling = default_ratio(supernet, [t for t in projecting(supernet) if gradient == "projection" or t in FOLDINGS])
        if gradient == "svd":
            others = sorted(set().union(*(l.present for l in sampling.space.ladders)) - {*FOLDINGS, "dense"})
            if others:
                raise InvalidArgument(
                    f"gradient='svd' with sampling of {', '.join(others)}: only {', '.join(FOLDINGS)} have a truncated SVD; "
                    "give the sampling types= of these, or take gradient='projection'"
                )
        super().__init__(supernet, loss, sampling=sampling, seed=seed)
        self.weight, self.gradient, self.rescale = weight, gradient, rescale

    def loss(self, batch: Batch) -> Tensor:
        assert self.sampling is not None
        inputs, targets = batch
        configuration = self.sampling.draw(self.generator)
        full: dict[str, Tensor] = {}
        low: dict[str, Tensor] = {}
        for site in self.supernet.sites:
            weight = self.supernet.weight(site.name)
            full[site.name], low[site.name] = fork(weight, self.weight, rescale=self.rescale)
        outputs = self.run(DENSE, inputs, full)
        dense = self.criterion(outputs, targets)
        if self.gradient == "svd":
            for name, decomposition, rank in configuration.choices:
                site = self.supernet.sites[name]
                folding = FOLDINGS[decomposition]
                matrices = folding.fold(site, canonical(low[site.name], site))
                truncated = folding.unfold(site, truncated_svd(matrices, rank[0]))
                low[site.name] = layered(truncated, site, low[site.name])
        outputs = self.run(configuration, inputs, low, projected=self.gradient == "svd")
        return (1 - self.weight) * dense + self.weight * self.criterion(outputs, targets)


def default_ratio(supernet: RankSupernet, types: Sequence[str]) -> Ratio:
    """`Ratio` of SVD bases: SVDs where the space has nothing else, as in the paper, else any of ``types`` of equal cost."""
    return Ratio(supernet.space) if list(types) == ["svd"] else Ratio(supernet.space, types=types)


class _Fork(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, share: float, rescale: bool) -> tuple[Tensor, Tensor]:
        ctx.share, ctx.rescale = share, rescale
        return weight.view_as(weight), weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        full, low = gradients
        if ctx.rescale:
            # both arrive with the weights of their losses: l |g| / |g_low| = l / (1 - l) |(1 - l) g| / |l g_low| ...
            norm = torch.linalg.vector_norm(low)
            scale = torch.linalg.vector_norm(full) / norm * (ctx.share / (1 - ctx.share))
            # ... and a low-rank gradient of zero has no direction that could be scaled
            low = low * torch.where(norm == 0, torch.ones_like(scale), scale)
        return full + low, None, None


def fork(weight: Tensor, share: float, *, rescale: bool = True) -> tuple[Tensor, Tensor]:
    """Two copies of a weight for the passes weighted (1 - share) and share. Backward gives (1 - share) g +
    share g_low |g| / |g_low|, whatever order autograd runs the passes in."""
    full, low = _Fork.apply(weight, share, rescale)  # type: ignore[misc]
    return full, low


class TruncatedSVD(torch.autograd.Function):
    """U_r S_r V_r^T of matrices of shape (batch, m, n) with its exact gradient, apart from the clip.

    With g the gradient and G = U^T g V, the pair of a kept i and a dropped j with q = sigma_j / sigma_i gets
    (G_ij + q G_ji) / (1 - q^2) and (G_ji + q G_ij) / (1 - q^2), q^2 clipped; kept pairs get G_ij, dropped pairs nothing.
    That is P g + g Q - P g Q for the projectors P, Q on the kept vectors, plus a correction on the dropped ones."""

    @staticmethod
    def forward(ctx: Any, matrices: Tensor, rank: int, clip: float) -> Tensor:
        with torch.autocast(matrices.device.type, enabled=False):
            wide = matrices.to(torch.promote_types(matrices.dtype, torch.float32))
            u, sigma, vh = svd(wide)
            ctx.save_for_backward(u, sigma, vh)
            ctx.rank, ctx.clip, ctx.dtype = rank, clip, matrices.dtype
            return ((u[..., :rank] * sigma[..., None, :rank]) @ vh[..., :rank, :]).to(matrices.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        u, sigma, vh = ctx.saved_tensors
        r = ctx.rank
        with torch.autocast(gradient.device.type, enabled=False):
            g = gradient.to(u.dtype)
            u1, u2, v1, v2 = u[..., :r], u[..., r:], vh[..., :r, :].mT, vh[..., r:, :].mT
            left, right = u1.mT @ g, g @ v1  # U_1^T g, g V_1
            result = u1 @ left + (right - u1 @ (left @ v1)) @ v1.mT
            kept, dropped = sigma[..., :r, None], sigma[..., None, r:]
            squared = torch.where(kept > 0, (dropped / kept.clamp_min(torch.finfo(u.dtype).tiny)).square(), 0.0).clamp_max(ctx.clip)
            q = squared.sqrt()
            a, b = left @ v2, (u2.mT @ right).mT  # G_ij and G_ji, shape (batch, r, k - r)
            x = (a + q * b) / (1 - squared) - a
            y = (b + q * a) / (1 - squared) - b
            result = result + u1 @ x @ v2.mT + u2 @ y.mT @ v1.mT
            return result.to(ctx.dtype), None, None


def truncated_svd(matrices: Tensor, rank: int, *, clip: float = CLIP) -> Tensor:
    """The best approximation of ``rank`` to each matrix, shape (batch, m, n), differentiable, see `TruncatedSVD`."""
    return TruncatedSVD.apply(matrices, rank, clip)  # type: ignore[return-value]
