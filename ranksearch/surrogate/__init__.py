"""Surrogate models: the loss that a configuration is expected to have, before it is measured and with how much of it is open."""

from __future__ import annotations

from ranksearch.surrogate.additive import AdditiveProcess, additive_process, least_of_draws
from ranksearch.surrogate.curves import Curves, curves
from ranksearch.surrogate.model import LossModel, Observations, fit

__all__ = ["AdditiveProcess", "Curves", "LossModel", "Observations", "additive_process", "curves", "fit", "least_of_draws"]
