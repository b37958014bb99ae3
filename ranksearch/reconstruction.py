"""Least squares instead of training: the last factor of every factorized layer is fitted to the dense network's
responses, given the inputs that the layer really has behind the factorized layers before it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ranksearch._statistics_math import chunks, gradients, images, lower, to_patch_order
from ranksearch.errors import InvalidArgument
from ranksearch.sites import Site, canonical_weight, find_sites, module_kind, run

CHUNK = 64 << 20  # bytes of lowered inputs held at once


@dataclass(frozen=True)
class Reconstructed:
    """One layer: mean squared error of its responses, relative to their energy, before and after; on the calibration batches,
    with everything before it reconstructed already."""

    site: str
    before: float
    after: float


class _Enough(Exception):
    """Ends a forward pass: everything that is asked of it has been seen."""


@dataclass
class _Moments:
    """Second moments of a layer's inputs x and wanted responses y, float64, groups first."""

    inputs: Tensor | float = 0.0  # sum of x x^T, shape (groups, d, d)
    cross: Tensor | float = 0.0  # sum of y x^T, shape (groups, c_out / groups, d)
    energy: Tensor | float = 0.0  # sum of y y over all outputs
    rows: int = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Shapes (groups, d, n) and (groups, c_out / groups, n)."""
        self.inputs = self.inputs + (x @ x.mT).double()
        self.cross = self.cross + (y @ x.mT).double()
        self.energy = self.energy + y.double().square().sum()
        self.rows += x.shape[2]

    def error(self, weight: Tensor) -> float:
        """Mean squared error of ``weight``, shape (groups, c_out / groups, d), relative to the energy of y."""
        square = ((weight @ self.inputs) * weight).sum() - 2 * (weight * self.cross).sum() + self.energy
        return float(square.clamp_min(0) / torch.as_tensor(self.energy).clamp_min(1e-300))


def reconstruct(network: nn.Module, reference: nn.Module, batches: Iterable[Any], *, ridge: float = 0.01) -> tuple[Reconstructed, ...]:
    """Fit the last factor (and its bias) of every factorized layer, in place, in the order in which the network uses them.

    Layer by layer, min over W of mean |W x - y|^2 + ridge mean(x_i^2) |W - W0|^2: x what reaches the last factor in
    ``network`` (patches of a convolution), y what the dense layer gives in ``reference`` for the same example, W0 the
    factor as it is. Later layers so make up for what earlier ones lost: the asymmetric reconstruction of Zhang et al.
    (arXiv 1505.06798, section 3.3), in closed form and for every type that ends in a plain layer. Costs stay as they are.
    Batch norms normalize by their batch meanwhile and keep their running statistics: `recalibrate` afterwards. Takes one
    forward pass of both networks per layer, up to it.

    Args:
        network: from `build`, with the paths of ``reference``.
        reference: the dense network.
        batches: of inputs, as for `recalibrate`; held in memory.
        ridge: pull towards the present factor, relative to the mean energy of an input.

    Returns:
        the layers that were fitted, in order. Left as they are: dense layers, embeddings, and types whose last layer is
        not a plain one (those that are stored composed, or that shuffle channels at the end).

    Raises:
        InvalidArgument: ``ridge`` negative or not finite, or no batches.
    """
    if not (math.isfinite(ridge) and ridge >= 0):
        raise InvalidArgument(f"ridge={ridge}: must be a finite number, 0 or more")
    held = list(batches)
    if not held:
        raise InvalidArgument("batches is empty: a reconstruction needs at least one batch")
    factorized = list(_factorized(network, reference))
    if not factorized:
        return ()
    sites = {site.name: site for site in find_sites(network, held[0])}
    lasts = {path: sites[last] for path, last in factorized if last in sites}
    with torch.no_grad(), _steady(network), _steady(reference, batch=False):
        return tuple(_fit(network, reference, path, lasts[path], held, ridge) for path in _in_order(network, lasts, held[0]))


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


def _fit(network: nn.Module, reference: nn.Module, path: str, site: Site, batches: Sequence[Any], ridge: float) -> Reconstructed:
    last = network.get_submodule(site.name)
    bias = last._parameters.get("bias")
    moments = _Moments()
    for batch in batches:
        wanted = _observe(reference, reference.get_submodule(path), batch, len(site.calls), output=True)
        given = _observe(network, last, batch, len(site.calls), output=False)
        for x, y in zip(given, wanted, strict=True):
            _add(moments, site, x, y, bias is not None)
    weight = canonical_weight(last, site).double()
    now = weight.reshape(site.groups, -1, *weight.shape[1:]).permute(0, 1, 3, 4, 2).flatten(2)  # (tap, channel), as rows are
    if bias is not None:
        now = torch.cat([now, bias.detach().double().reshape(site.groups, -1, 1)], dim=2)
    inputs = torch.as_tensor(moments.inputs)
    pull = ridge * inputs.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None] + 1e-12 * inputs.abs().amax(dim=(1, 2), keepdim=True)
    eye = torch.eye(inputs.shape[1], dtype=torch.float64, device=inputs.device)
    factor, failed = torch.linalg.cholesky_ex(inputs + pull * eye)
    before = moments.error(now)
    if bool((failed != 0).any()):  # no input at all, or one that is not finite: nothing to learn from
        return Reconstructed(path, before, before)
    found = torch.cholesky_solve((torch.as_tensor(moments.cross) + pull * now).mT, factor).mT
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


def _add(moments: _Moments, site: Site, given: Tensor, wanted: Tensor, bias: bool) -> None:
    """One call: lowered inputs against the responses at the same positions, part by part."""
    value = images(site, given)
    targets = gradients(site, wanted)  # (batch, c_out, positions)
    start = 0
    for part in chunks(site, value, CHUNK):
        rows = lower(site, part).flatten(2)  # (groups, d, batch * positions)
        if bias:
            rows = torch.cat([rows, rows.new_ones((rows.shape[0], 1, rows.shape[2]))], dim=1)
        target = targets[start : start + len(part)].transpose(0, 1).flatten(1)
        moments.add(rows, target.reshape(site.groups, -1, target.shape[1]))
        start += len(part)


def _observe(network: nn.Module, module: nn.Module, batch: Any, calls: int, *, output: bool) -> list[Tensor]:
    """Inputs or outputs of one layer, call by call; the rest of the forward pass is spared."""
    seen: list[Tensor] = []

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Tensor) -> None:
        seen.append(result if output else (args[0] if args else kwargs["input"]))
        if len(seen) == calls:
            raise _Enough

    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        with suppress(_Enough):
            run(network, batch)
    finally:
        handle.remove()
    return seen


@contextmanager
def _steady(network: nn.Module, *, batch: bool = True) -> Iterator[None]:
    """Evaluation mode, batch norms by their batch if ``batch``; modes and running statistics come back as they were."""
    modes = {module: module.training for module in network.modules()}
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats] if batch else []
    kept = [(norm, norm.running_mean, norm.running_var) for norm in norms]
    network.eval()
    for norm in norms:  # without running statistics evaluation takes those of the batch
        norm.running_mean = norm.running_var = None
    try:
        yield
    finally:
        for norm, mean, variance in kept:
            norm.running_mean, norm.running_var = mean, variance
        for module, mode in modes.items():
            module.training = mode
