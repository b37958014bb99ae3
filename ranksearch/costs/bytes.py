"""Stored bytes: what a network's state takes on disk, each tensor in its dtype or all in one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ranksearch.costs.cost_model import CostModel, DenseNetwork, LayerOptions
from ranksearch.errors import InvalidArgument
from ranksearch.sites import Site, stored


@dataclass(frozen=True)
class Bytes(CostModel):
    """Bytes of parameters and persistent buffers; what shares memory counts once.

    Attributes:
        dtype: name of the floating-point type that the network is to be stored in, such as ``bfloat16`` or ``float8_e4m3fn``;
            integers and masks keep theirs. None: everything as it is.

    Raises:
        InvalidArgument: torch has no floating-point type of that name.
    """

    dtype: str | None = None

    name, label, unit = "bytes", "bytes", "bytes"
    tells_bits = True

    def __post_init__(self) -> None:
        found = None if self.dtype is None else getattr(torch, self.dtype, None)
        if self.dtype is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
            raise InvalidArgument(f"dtype={self.dtype!r} is no floating-point type of torch; give one such as float32, bfloat16 or float16")

    def options(self, layer: LayerOptions) -> np.ndarray:
        size, held = self._of_site(layer.network, layer.site), layer.decomposition.held(layer.site, layer.ranks)
        if held is None:
            return layer.params * size
        integers, numbers = held
        return integers + numbers * size

    def rest(self, network: DenseNetwork) -> int:
        groups: dict[int, list[Tensor]] = {}
        for tensor in network.model.state_dict(keep_vars=True).values():
            if isinstance(tensor, Tensor):
                groups.setdefault(self._size(tensor), []).append(tensor)
        every = sum(size * stored(tensors) for size, tensors in groups.items())
        return every - sum(site.cost.params * self._of_site(network, site) for site in network.sites)

    def record(self) -> dict[str, Any] | None:
        settings = {} if self.dtype is None else {"dtype": self.dtype}
        return {"settings": settings, "id": self.dtype or "as it is"}

    def _of_site(self, network: DenseNetwork, site: Site) -> int:
        return self._size(network.model.get_submodule(site.name).get_parameter("weight"))

    def _size(self, tensor: Tensor) -> int:
        """Bytes per entry."""
        return getattr(torch, self.dtype).itemsize if self.dtype is not None and tensor.is_floating_point() else tensor.itemsize
