"""The measured loss of configurations on calibration data: what proxies that run networks, and local search, measure with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ranksearch.errors import InvalidArgument
from ranksearch.networks.batch_norm import batch_statistics
from ranksearch.networks.surgery import factorized, replace_sites
from ranksearch.sites import BatchDim, batch_size, device_of, map_tensors, run
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra


class CalibrationLoss:
    """Mean loss of configurations on labelled calibration batches. Layers are built once per option and networks share them.

    Args:
        spectra: the model and its prepared decompositions.
        batches: pairs (inputs, targets), held in memory.
        loss: mean loss of a batch, ``loss(outputs, targets)``.
        normalization: "running" leaves batch norm as it is; "batch" normalizes each batch by its own statistics, which
            is what re-estimated statistics converge to, at the price of no further pass.
        cache_bytes: of built layers that are kept, those that were used last.
    """

    def __init__(
        self, spectra: Spectra, batches: Sequence[tuple[Any, Any]], loss: Callable[[Any, Any], Tensor],
        *, normalization: Literal["running", "batch"] = "running", cache_bytes: int = 1 << 30,
    ) -> None:  # fmt: skip
        if not batches:
            raise InvalidArgument("batches is empty: a loss needs at least one batch")
        if normalization not in ("running", "batch"):
            raise InvalidArgument(f"normalization={normalization!r} is none of running, batch")
        self.spectra, self.batches, self.loss, self.normalization = spectra, list(batches), loss, normalization
        self._layers: dict[tuple[str, str, tuple[int, ...]], nn.Module] = {}  # the last used at the end
        self._room = cache_bytes

    def build(self, configuration: Configuration) -> nn.Module:
        """The network of a configuration, in evaluation mode; factorized layers are shared between networks."""
        sites = self.spectra.sites  # a configuration may call a site by another of its paths
        replacements = {sites[name].name: self._layer(sites[name].name, d, rank) for name, d, rank in configuration.choices}
        return replace_sites(self.spectra.model, [self.spectra.sites[name] for name in replacements], replacements).eval()

    def _layer(self, name: str, decomposition_name: str, rank: tuple[int, ...]) -> nn.Module:
        key = (name, decomposition_name, rank)
        layer = self._layers.pop(key, None)
        if layer is None:
            layer = factorized(self.spectra, self.spectra.sites[name], decomposition_name, rank).eval()
            self._room -= _bytes(layer)
        self._layers[key] = layer
        while self._room < 0 and len(self._layers) > 1:
            self._room += _bytes(self._layers.pop(next(iter(self._layers))))
        return layer

    def __call__(self, configuration: Configuration) -> float:
        """Mean loss over the batches, weighted by their sizes."""
        model, norms = self.build(configuration), batch_statistics if self.normalization == "batch" else nullcontext
        with torch.no_grad(), norms(model):
            return mean_loss(model, self.batches, self.loss, self.spectra.sites.batch_dim)


def _bytes(layer: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*layer.parameters(), *layer.buffers()))


def mean_loss(model: nn.Module, batches: Iterable[tuple[Any, Any]], loss: Callable[[Any, Any], Tensor], batch_dim: BatchDim) -> float:
    """Mean of ``loss(outputs, targets)``, itself a mean over a batch, over the examples of batches (inputs, targets), which are brought to
    the device of the model."""
    total, count, device = 0.0, 0, device_of(model)
    for inputs, targets in batches:
        size = batch_size(inputs, batch_dim)
        total += float(loss(run(model, inputs), map_tensors(lambda target: target.to(device), targets))) * size
        count += size
    return total / count
