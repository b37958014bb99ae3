"""Least squares instead of training: the last factor of every factorized layer is fitted to the dense network's responses, on the
inputs that the layer really gets from the factorized layers before it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch import checks
from ranksearch.decompositions.metric import floored, half
from ranksearch.errors import InvalidArgument
from ranksearch.networks.batch_norm import batch_statistics
from ranksearch.networks.lockstep import Pass, passes
from ranksearch.sites import Site, canonical_weight, evaluating, find_sites, module_kind, run
from ranksearch.statistics.moments import chunks, gradients, images, lower, to_patch_order

CHUNK = 64 << 20  # bytes of lowered inputs held at once


@dataclass(frozen=True)
class Reconstructed:
    """The mean squared error of one layer's responses, relative to their energy, before and after it was fitted. It is measured on
    the calibration batches, when everything before the layer is reconstructed already."""

    site: str
    before: float
    after: float


@dataclass
class _Moments:
    """Second moments of a last factor's inputs x (im2col rows, a one behind them for the bias) and the wanted responses y,
    float64, groups first."""

    bias: bool
    inputs: Tensor | float = 0.0  # sum of x x^T, shape (groups, d, d)
    cross: Tensor | float = 0.0  # sum of y x^T, shape (groups, c_out / groups, d)
    energy: Tensor | float = 0.0  # sum of y y over all outputs

    def add(self, site: Site, given: Tensor, wanted: Tensor) -> None:
        """One use: lowered inputs against the responses at the same positions, part by part."""
        targets = gradients(site, wanted)  # (batch, c_out, positions)
        start = 0
        for part in chunks(site, images(site, given), CHUNK):
            # (groups, d, batch * positions); in float32 sums the rounding alone would tell of directions that the inputs do not have
            x = lower(site, part).flatten(2).double()
            if self.bias:
                x = torch.cat([x, x.new_ones((x.shape[0], 1, x.shape[2]))], dim=1)
            y = targets[start : start + len(part)].double().transpose(0, 1).flatten(1).reshape(site.groups, -1, x.shape[2])
            self.inputs = self.inputs + x @ x.mT
            self.cross = self.cross + y @ x.mT
            self.energy = self.energy + y.square().sum()
            start += len(part)

    def error(self, weight: Tensor) -> float:
        """Mean squared error of ``weight``, shape (groups, c_out / groups, d), relative to the energy of y."""
        square = ((weight @ self.inputs) * weight).sum() - 2 * (weight * self.cross).sum() + self.energy
        return float(square.clamp_min(0) / torch.as_tensor(self.energy).clamp_min(1e-300))


def reconstruct(network: nn.Module, reference: nn.Module, batches: Iterable[Any], *, ridge: float = 0.01) -> tuple[Reconstructed, ...]:
    """Fit the last factor (and its bias) of every factorized layer, in place, in the order in which the network uses them.

    Layer by layer, W minimises mean |W x - y|^2 + ridge mean(x_i^2) |W - W0|^2, where x is what reaches the last factor in
    ``network`` (patches of a convolution), y what the dense layer gives in ``reference`` for the same example, and W0 the factor as
    it is. Later layers so make up for what earlier ones lost: the asymmetric reconstruction of Zhang et al.
    (arXiv 1505.06798, section 3.3), in closed form and for every type that ends in a plain layer. Costs stay as they are.
    Batch norms meanwhile normalize by their batch and keep their running statistics, so call `recalibrate` afterwards.

    All batches go through both networks together, layer by layer, so that one forward pass is enough; in return, what lies between
        two layers is in memory for all batches at once. Layers that are used several times take a pass of their own.

    Args:
        network: from `build`, with the paths of ``reference``.
        reference: the dense network.
        batches: of inputs, as for `recalibrate`.
        ridge: pull towards the present factor, relative to the mean energy of an input.

    Returns:
        the layers that were fitted, in order. Left as they are: dense layers, embeddings, and types whose last layer is
        not a plain one (those that are stored composed, or that shuffle channels at the end).

    Raises:
        InvalidArgument: ``ridge`` negative or not finite, or no batches.
    """
    checks.number("ridge", ridge, least=0)
    held = list(batches)
    if not held:
        raise InvalidArgument("batches is empty: a reconstruction needs at least one batch")
    factorized = list(_factorized(network, reference))
    if not factorized:
        return ()
    sites = {site.name: site for site in find_sites(network, held[0], batch_dim=None, check=False)}
    lasts = {path: sites[last] for path, last in factorized if last in sites}
    once = [path for path, site in lasts.items() if len(site.calls) == 1]
    with evaluating(network), evaluating(reference), batch_statistics(network), ExitStack() as stack:
        given = stack.enter_context(_observed(network, {path: lasts[path].name for path in once}, held, output=False))
        wanted = stack.enter_context(_observed(reference, {path: path for path in once}, held, output=True))
        found: dict[str, Reconstructed] = {}
        for path in _in_order(network, lasts, held[0]):
            moments = _Moments(bias=lasts[path].bias)
            # uses after the first depend on it: a layer with several takes passes of its own, to the end
            pairs = zip(given, wanted, strict=True)
            values = _next(pairs, path, found) if path in once else _all_uses(network, reference, path, lasts[path], held)
            for x, y in values:
                moments.add(lasts[path], x, y)
            found[path] = _fit(network.get_submodule(lasts[path].name), path, lasts[path], moments, ridge)
        return tuple(found.values())


def _factorized(network: nn.Module, reference: nn.Module) -> Iterator[tuple[str, str]]:
    """Paths of the layers that are a chain in ``network``, and of their last factor."""
    for path, module in reference.named_modules():
        if module_kind(module) in (None, "embedding"):
            continue
        try:
            layer = network.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(layer, nn.Sequential):
            yield path, f"{path}.{len(layer) - 1}" if path else str(len(layer) - 1)


def _in_order(network: nn.Module, lasts: Mapping[str, Site], example: Any) -> list[str]:
    """Paths in the order of their first use."""
    order: dict[str, None] = {}
    with ExitStack() as stack:
        for path, site in lasts.items():

            def used(_module: nn.Module, _args: Any, path: str = path) -> None:
                order.setdefault(path)

            stack.callback(network.get_submodule(site.name).register_forward_pre_hook(used).remove)
        run(network, example)
    return list(order)


def _observed(network: nn.Module, stops: Mapping[str, str], batches: Sequence[Any], *, output: bool) -> AbstractContextManager[list[Pass]]:
    return passes(network, batches, {path: network.get_submodule(name) for path, name in stops.items()}, output=output)


def _next(pairs: Iterable[tuple[Pass, Pass]], path: str, done: Collection[str]) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs of a layer's last factor and the dense layer's outputs, from passes that wait at layers that are done. Passes that
    wait elsewhere are left out: they use the layers in another order, or not at all."""
    for pair in pairs:
        for one in pair:
            if one.place is None or one.place in done:
                one.advance()
        x, y = (one.value if one.place == path else None for one in pair)
        if x is not None and y is not None:
            yield x, y


def _all_uses(network: nn.Module, reference: nn.Module, path: str, site: Site, batches: Sequence[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """The same from fresh passes, use by use."""
    for batch in batches:
        with (
            _observed(network, {path: site.name}, [batch], output=False) as (given,),
            _observed(reference, {path: path}, [batch], output=True) as (wanted,),
        ):
            while pair := list(_next([(given, wanted)], path, {path})):
                yield from pair


def _fit(last: nn.Module, path: str, site: Site, moments: _Moments, ridge: float) -> Reconstructed:
    """Solve for the last factor of one layer, and set it. Directions that the inputs hardly have are held by the floor of every moment:
    there the factor stays as it is. What is not finite teaches nothing."""
    bias = last._parameters.get("bias")
    weight = canonical_weight(last, site).double()
    now = weight.reshape(site.groups, -1, *weight.shape[1:]).permute(0, 1, 3, 4, 2).flatten(2)  # (tap, channel), as rows are
    if bias is not None:
        now = torch.cat([now, bias.detach().double().reshape(site.groups, -1, 1)], dim=2)
    inputs = torch.as_tensor(moments.inputs, device=now.device).expand(now.shape[0], now.shape[2], now.shape[2])
    pull = ridge * inputs.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None] + 1e-12 * inputs.abs().amax(dim=(1, 2), keepdim=True)
    before = moments.error(now)
    given = inputs + pull * torch.eye(now.shape[2], dtype=now.dtype, device=now.device)
    if not bool(torch.isfinite(given).all()):
        return Reconstructed(path, before, before)
    raised = floored(given)
    wanted = torch.as_tensor(moments.cross) + pull * now + now @ (raised - given)
    found = torch.cholesky_solve(wanted.mT, half(raised)).mT
    if not bool(torch.isfinite(found).all()):
        return Reconstructed(path, before, before)
    after = moments.error(found)
    if bias is not None:
        bias.copy_(found[:, :, -1].reshape(bias.shape))
        found = found[:, :, :-1]
    fitted = to_patch_order(site, found, (2,)).reshape(site.shape)
    parameter = last.get_parameter("weight")
    parameter.copy_(fitted.reshape(parameter.shape))
    return Reconstructed(path, before, after)
