"""Least squares instead of training: the last factor of every factorized layer is fitted to the dense network's responses, on the
inputs that the layer really gets from the factorized layers before it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
from ranksearch.sites import Site, UnpackedExperts, canonical_weight, evaluating, find_sites, map_tensors, module_kind, run, tensors_of
from ranksearch.statistics.moments import chunks, gradients, images, lower, to_patch_order

HELD_OUT = 0.25  # share of the examples that a fit is checked on
CHUNK = 64 << 20  # bytes of lowered inputs held at once
SMALLEST = 8  # examples of a single batch that is cut: each part has several, which batch norm needs
RIDGES = (1.0, 10.0, 100.0)  # times the ridge: what is tried where examples are held out


@dataclass(frozen=True)
class Reconstructed:
    """The mean squared error of one layer's responses, relative to their energy, before and after it was fitted. It is measured on
    the examples held out, or where there are none on those fitted to, when everything before the layer is reconstructed already.
    A layer that no fit made better, or a network that all fits together made no better, is as it was: ``after`` is ``before``."""

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

    def step(self, start: Tensor, end: Tensor) -> float:
        """How far to go from one weight to another for the least error, in [0, 1]: the error is a parabola along the way."""
        move = end - start
        slope = (move * (self.cross - start @ self.inputs)).sum()
        bend = ((move @ self.inputs) * move).sum()
        return float((slope / bend).clamp(0, 1)) if float(bend) > 0 else 0.0


def reconstruct(
    network: nn.Module, reference: nn.Module, batches: Iterable[Any], *, ridge: float = 0.01, held_out: float | None = None
) -> tuple[Reconstructed, ...]:
    """Fit the last factor (and its bias) of every factorized layer, in place, in the order in which the network uses them.

    Layer by layer, W minimises mean |W x - y|^2 + ridge mean(x_i^2) |W - W0|^2, where x is what reaches the last factor in
    ``network`` (patches of a convolution), y what the dense layer gives in ``reference`` for the same example, and W0 the factor as
    it is. Later layers so make up for what earlier ones lost: the asymmetric reconstruction of Zhang et al.
    (arXiv 1505.06798, section 3.3), in closed form and for every type that ends in a plain layer. Costs stay as they are.
    Batch norms meanwhile normalize by their batch and keep their running statistics, so call `recalibrate` afterwards.

    Few examples fit a factor to themselves alone. So a part of them is held out: of several ridges each layer takes the one that is
    best on these, goes towards its solution as far as they get better, and stays as it is where they do not. When all layers are done,
    the outputs of the whole network on the same examples decide: no nearer to the dense network's than before, and all is undone. Or else
    all layers are fitted once more, to all examples, with the ridges and steps that were found.

    All batches go through both networks together, layer by layer, so that one forward pass is enough; in return, what lies between
        two layers is in memory for all batches at once. Layers that are used several times take a pass of their own.

    Args:
        network: from `build`, with the paths of ``reference``.
        reference: the dense network.
        batches: of inputs, as for `recalibrate`.
        ridge: pull towards the present factor, relative to the mean energy of an input; with examples held out the least one.
        held_out: share of the batches, at least one of several; of a single batch, so many of its examples. 0 fits to all, unchecked,
            and so does a single batch that cannot be cut (less than 8 examples, or tensors of different lengths). By default a quarter, and
            with ``ridge=0`` none: that asks for the least squares of these examples.

    Returns:
        the layers that a fit was tried on, in order. Left as they are: dense layers, embeddings, types whose last layer is
        not a plain one (those that are stored composed, or that shuffle channels at the end), and experts.

    Raises:
        InvalidArgument: ``ridge`` negative or not finite, ``held_out`` outside [0, 1), or no batches.
    """
    checks.number("ridge", ridge, least=0)
    held_out = (HELD_OUT if ridge else 0.0) if held_out is None else held_out
    if checks.number("held_out", held_out, least=0) >= 1:
        raise InvalidArgument(f"held_out={held_out}: must be below 1, so that something is left to fit to")
    held, fitted_to = _divided(list(batches), held_out)
    if not held:
        raise InvalidArgument("batches is empty: a reconstruction needs at least one batch")
    factorized = list(_factorized(network, reference))
    if not factorized:
        return ()
    sites = {site.name: site for site in find_sites(network, held[0], batch_dim=None, check=False)}
    lasts = {path: sites[last] for path, last in factorized if last in sites}
    unseen, as_it_was = held[fitted_to:], _state(network, lasts.values())
    told: dict[str, Reconstructed] = {}
    ways: dict[str, _Way] = {}

    def decide(path: str, values: Iterable[tuple[int, Tensor, Tensor]]) -> None:
        seen, checked = (_Moments(bias=lasts[path].bias) for _ in range(2))
        for number, x, y in values:
            (seen if number < fitted_to else checked).add(lasts[path], x, y)
        told[path], ways[path] = _decide(network.get_submodule(lasts[path].name), path, lasts[path], seen, checked, ridge)

    def fit(path: str, values: Iterable[tuple[int, Tensor, Tensor]]) -> None:
        moments = _Moments(bias=lasts[path].bias)
        for _, x, y in values:
            moments.add(lasts[path], x, y)
        _go(network.get_submodule(lasts[path].name), lasts[path], moments, ways[path])

    with evaluating(network), evaluating(reference), batch_statistics(network):
        before = _distance(network, reference, unseen)
        _sweep(network, reference, lasts, held, decide)
        if unseen:
            better = _distance(network, reference, unseen) < before
            for parameter, value in as_it_was:
                parameter.copy_(value)
            if not better:
                return tuple(Reconstructed(one.site, one.before, one.before) for one in told.values())
            _sweep(network, reference, lasts, held, fit)
        return tuple(told.values())


def _sweep(
    network: nn.Module,
    reference: nn.Module,
    lasts: Mapping[str, Site],
    batches: Sequence[Any],
    visit: Callable[[str, Iterable[tuple[int, Tensor, Tensor]]], None],
) -> None:
    """Visit the layers in the order of use, each with what reaches its last factor and what the dense layer gives."""
    once = [path for path, site in lasts.items() if len(site.calls) == 1]
    done: set[str] = set()
    with ExitStack() as stack:
        given = stack.enter_context(_observed(network, {path: lasts[path].name for path in once}, batches, output=False))
        wanted = stack.enter_context(_observed(reference, {path: path for path in once}, batches, output=True))
        for path in _in_order(network, lasts, batches[0]):
            # uses after the first depend on it: a layer with several takes passes of its own, to the end
            pairs = zip(given, wanted, strict=True)
            visit(path, _next(pairs, path, done) if path in once else _all_uses(network, reference, path, lasts[path], batches))
            done.add(path)


def _divided(batches: list[Any], held_out: float) -> tuple[list[Any], int]:
    """The batches, those to fit to first, and how many these are."""
    if not held_out or not batches:
        return batches, len(batches)
    if len(batches) > 1:
        return batches, len(batches) - min(max(round(held_out * len(batches)), 1), len(batches) - 1)
    sizes = {tensor.shape[0] for _, tensor in tensors_of(batches[0]) if tensor.ndim}
    size = sizes.pop() if len(sizes) == 1 else 0
    if size < SMALLEST:
        return batches, 1
    kept = size - min(max(round(held_out * size), 1), size - 1)
    return [map_tensors(lambda t: t[:kept] if t.ndim else t, batches[0]), map_tensors(lambda t: t[kept:] if t.ndim else t, batches[0])], 1


def _state(network: nn.Module, sites: Iterable[Site]) -> list[tuple[Tensor, Tensor]]:
    """The parameters of last factors, and copies of them."""
    return [(p, p.detach().clone()) for site in sites for p in network.get_submodule(site.name).parameters()]


@torch.no_grad()
def _distance(network: nn.Module, reference: nn.Module, batches: Iterable[Any]) -> float:
    """Squared difference of the outputs of two networks, relative to their energy in the second, over all batches."""
    apart, energy = 0.0, 0.0
    for batch in batches:
        outputs = (tensors_of(run(net, batch)) for net in (network, reference))
        for (_, mine), (_, wanted) in zip(*outputs, strict=True):
            if wanted.is_floating_point():
                apart += float((mine - wanted).float().square().sum(dtype=torch.float64))
                energy += float(wanted.float().square().sum(dtype=torch.float64))
    return apart / max(energy, 1e-300)


def _factorized(network: nn.Module, reference: nn.Module) -> Iterator[tuple[str, str]]:
    """Paths of the layers that are a chain in ``network``, and of their last factor; those of experts are left out, which are not
    given the same tokens in both."""
    routed = tuple(f"{path}." for path, module in reference.named_modules() if isinstance(module, UnpackedExperts))
    for path, module in reference.named_modules():
        if module_kind(module) in (None, "embedding") or path.startswith(routed):
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


def _next(pairs: Iterable[tuple[Pass, Pass]], path: str, done: Collection[str]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The number of each pass, the inputs of a layer's last factor and the dense layer's outputs, from passes that wait at layers that
    are done. Passes that wait elsewhere are left out: they use the layers in another order, or not at all."""
    for number, pair in enumerate(pairs):
        for one in pair:
            if one.place is None or one.place in done:
                one.advance()
        x, y = (one.value if one.place == path else None for one in pair)
        if x is not None and y is not None:
            yield number, x, y


def _all_uses(
    network: nn.Module, reference: nn.Module, path: str, site: Site, batches: Sequence[Any]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The same from fresh passes, use by use."""
    for number, batch in enumerate(batches):
        with (
            _observed(network, {path: site.name}, [batch], output=False) as (given,),
            _observed(reference, {path: path}, [batch], output=True) as (wanted,),
        ):
            while pair := list(_next([(given, wanted)], path, {path})):
                for _, x, y in pair:
                    yield number, x, y


@dataclass(frozen=True)
class _Way:
    """How a layer is fitted."""

    ridge: float
    share: float  # of the way from the present factor to the solution


def _decide(last: nn.Module, path: str, site: Site, seen: _Moments, unseen: _Moments, ridge: float) -> tuple[Reconstructed, _Way]:
    """Fit the last factor of one layer: where some examples are held out, with that of `RIDGES` and that share of the way from the
    present factor to the solution that are best on them."""
    now = _rows(last, site)
    if not isinstance(unseen.inputs, Tensor):
        before, way = seen.error(now), _Way(ridge, 1.0)
        return Reconstructed(path, before, before if (found := _go(last, site, seen, way)) is None else seen.error(found)), way
    before = unseen.error(now)
    best, way = before, _Way(ridge, 0.0)
    for tried in (factor * ridge for factor in RIDGES):
        solution = _solution(seen, now, tried)
        if solution is not None:
            share = unseen.step(now, solution)
            error = unseen.error(now + share * (solution - now))
            best, way = (error, _Way(tried, share)) if error < best else (best, way)
    _go(last, site, seen, way)
    return Reconstructed(path, before, best), way


def _go(last: nn.Module, site: Site, moments: _Moments, way: _Way) -> Tensor | None:
    """Set the last factor of one layer, and return it as rows; None where it stays."""
    now = _rows(last, site)
    solution = _solution(moments, now, way.ridge) if way.share else None
    if solution is None:
        return None
    found = now + way.share * (solution - now)
    weight, bias = found, last._parameters.get("bias")
    if bias is not None:
        bias.copy_(found[:, :, -1].reshape(bias.shape))
        weight = found[:, :, :-1]
    fitted = to_patch_order(site, weight, (2,)).reshape(site.shape)
    parameter = last.get_parameter("weight")
    parameter.copy_(fitted.reshape(parameter.shape))
    return found


def _rows(last: nn.Module, site: Site) -> Tensor:
    """A last factor with its bias behind, float64, shape (groups, c_out / groups, inputs), inputs in (tap, channel) order."""
    bias, weight = last._parameters.get("bias"), canonical_weight(last, site).double()
    rows = weight.reshape(site.groups, -1, *weight.shape[1:]).permute(0, 1, 3, 4, 2).flatten(2)
    return rows if bias is None else torch.cat([rows, bias.detach().double().reshape(site.groups, -1, 1)], dim=2)


def _solution(moments: _Moments, now: Tensor, ridge: float) -> Tensor | None:
    """The last factor of least squares, shape as ``now``. Directions that the inputs hardly have are held by the floor of every
    moment: there the factor stays as it is. None where what was seen is not finite, which teaches nothing."""
    inputs = torch.as_tensor(moments.inputs, device=now.device).expand(now.shape[0], now.shape[2], now.shape[2])
    pull = ridge * inputs.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None] + 1e-12 * inputs.abs().amax(dim=(1, 2), keepdim=True)
    given = inputs + pull * torch.eye(now.shape[2], dtype=now.dtype, device=now.device)
    if not bool(torch.isfinite(given).all()):
        return None
    raised = floored(given)
    wanted = torch.as_tensor(moments.cross) + pull * now + now @ (raised - given)
    found = torch.cholesky_solve(wanted.mT, half(raised)).mT
    return found if bool(torch.isfinite(found).all()) else None
