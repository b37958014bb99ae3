"""How fast each factor of a layer may learn, so that all together change the layer's weight no faster than the dense layer learns.

A layer W = A B learns from the gradient G of its weight by W - rate (G Bᵀ B + A Aᵀ G): its steps are as many times larger than the dense
layer's as the squares of its factors are. A rate that suits the dense network therefore breaks a factorized one, most of all products of
many factors, such as `cp`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ranksearch.decompositions import AnyDecomposition, Quantized
from ranksearch.decompositions.rounding import numbered
from ranksearch.errors import InvalidArgument
from ranksearch.sites import Site
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra

ITERATIONS = 12  # of the power method; rates need a norm within some percent


def factor_rates(network: nn.Module, spectra: Spectra, configuration: Configuration) -> dict[str, float]:
    """The rate of every factor, as a share of the rate that suits the dense network.

    The weight that factors compose is linear in each of them, W = J_f f with the others held fixed. A step along the gradient changes W by
    rate_f J_f J_fᵀ G, so with n factors that learn and

        rate_f = 1 / (n σ_max(J_f)²)

    the steps of all together change W by at most what the dense layer's step does, in every direction: where the dense network trains in
    a stable way, so does this one, as far as their losses have the same curvature in W. For W = A B, σ_max(J_A) is the spectral norm of B.
    A factor multiplied by s leaves W as it was where another is divided by s; its rate is then multiplied by s², which makes W move as
    before. So it does not matter how a layer's scale is divided among its factors.

    Args:
        network: from `ranksearch.networks.surgery.build` with the same ``spectra`` and ``configuration``, its factors changed since or not.

    Returns:
        rates of factors by their names in ``network``. Other parameters (biases, dense layers) have the rate 1 and are left out, as are
        factors that take no gradient: weights of few bits, the order of channels.

    Raises:
        InvalidArgument: a layer of ``network`` is not of the type and rank that ``configuration`` says.
    """
    factors = _learning(network, spectra, configuration)
    return {one.name: 1 / (one.learning * one.largest) for one in factors if one.trainable}


def factor_steps(network: nn.Module, spectra: Spectra, configuration: Configuration) -> dict[str, float]:
    """The root mean square of a change of every factor's entries with which all factors of a layer together change the layer's weight W by
    at most |W|, whatever the direction:

        step_f = |W| / (n σ_max(J_f) √N_f)

    for n factors that learn and N_f entries of this one, with J_f as in `factor_rates`. Of a dense weight, which is its own only factor,
    that is the root mean square of its entries. An optimiser whose steps have a length of their own, such as Adam's, moves every factor
    by a share of this.

    Returns:
        steps of factors by their names in ``network``, frozen ones among them; weights of few bits and the order of channels have none.

    Raises:
        InvalidArgument: as `factor_rates`.
    """
    return {one.name: one.norm / (one.learning * one.largest**0.5 * one.entries**0.5) for one in _learning(network, spectra, configuration)}


class _Learning(NamedTuple):
    """A parameter that holds a factor, or a part of one, and what bounds the changes that it makes."""

    name: str
    trainable: bool  # whether it takes a gradient
    learning: int  # factors of its layer that learn
    largest: float  # σ_max(J_f)²
    entries: int  # of the factor
    norm: float  # |W|, Frobenius


def _learning(network: nn.Module, spectra: Spectra, configuration: Configuration) -> Iterator[_Learning]:
    """The parameters of ``network`` that hold factors of floating-point numbers."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    for path, kind, rank in configuration.choices:
        site, decomposition = spectra.sites[path], spectra.decomposition(kind)
        if isinstance(decomposition, Quantized):
            continue
        made = decomposition.empty_factors(site, rank) or spectra.factors(site, kind, rank)  # their shapes alone count
        places = _places(decomposition, site, made, network.get_submodule(path))
        if places is None:
            raise InvalidArgument(f"configuration: {path!r} of the network is no {kind} of rank {tuple(rank)}; give its own")
        factors = _factors(places, made)
        norm = float(decomposition.compose(site, tuple(factors)).norm())
        learning = [k for k in range(len(made)) if any(owner == k for _, owner, _ in places)]
        found = {k: _largest(decomposition, site, factors, k) for k in learning}
        for parameter, owner, _ in places:
            if found[owner] > 0:
                name, entries = names[id(parameter)], factors[owner].numel()
                yield _Learning(name, parameter.requires_grad, len(learning), found[owner], entries, norm)


def _places(
    decomposition: AnyDecomposition, site: Site, like: Sequence[Tensor], layer: nn.Module
) -> list[tuple[nn.Parameter, int, Tensor]] | None:  # fmt: skip
    """For every parameter of a layer that holds a factor, which one, and which entry of that stands at each place of it, int64. None: the
    layer is another one."""
    made, mine = list(numbered(decomposition, site, like, bias=site.bias).parameters()), list(layer.parameters())
    if [one.shape for one in made] != [one.shape for one in mine]:
        return None
    weights = [k for k, factor in enumerate(like) if factor.is_floating_point()]
    ends = list(accumulate(like[k].numel() for k in weights))
    found = []
    for number, parameter in zip(made, mine, strict=True):
        entries = number.detach().round().to(torch.int64) - 1
        if int(entries.min()) >= 0:
            at = bisect_right(ends, int(entries.min()))
            found.append((parameter, weights[at], entries - (ends[at] - like[weights[at]].numel())))
    return found


def _factors(places: Sequence[tuple[nn.Parameter, int, Tensor]], like: Sequence[Tensor]) -> list[Tensor]:
    """Factors as the layer holds them; those of integers as they were made."""
    first = places[0][0]
    factors = [torch.zeros(f.numel(), dtype=first.dtype, device=first.device) if f.is_floating_point() else f for f in like]
    for parameter, owner, entries in places:
        factors[owner][entries.flatten().to(first.device)] = parameter.detach().flatten()
    return [factor.reshape(f.shape) for factor, f in zip(factors, like, strict=True)]


def _largest(decomposition: AnyDecomposition, site: Site, factors: Sequence[Tensor], k: int) -> float:
    """σ_max(J_k)², by the power method: compose is linear in factor k, and autograd gives the transpose."""
    generator = torch.Generator().manual_seed(0)
    direction, value = torch.randn(factors[k].shape, generator=generator, dtype=torch.float64).to(factors[k]), 0.0
    for _ in range(ITERATIONS):
        length = float(direction.norm())
        if not length > 0:
            break
        with torch.enable_grad():
            unit = (direction / length).requires_grad_(True)
            composed = decomposition.compose(site, (*factors[:k], unit, *factors[k + 1 :]))
            (direction,) = torch.autograd.grad(composed, unit, composed.detach())
        value = float(direction.norm())
    return value
