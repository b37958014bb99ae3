"""Ordinary training of the dense network: the control that every method is compared with."""

from __future__ import annotations

from typing import final

from torch import Tensor

from ranksearch.supernet.methods._base import Batch, Method


@final
class Plain(Method):
    """The loss of the dense network and nothing else; no configuration is drawn."""

    name = "plain"

    def loss(self, batch: Batch) -> Tensor:
        return self.dense(batch)
