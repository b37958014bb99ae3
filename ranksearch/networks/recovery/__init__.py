"""Training of a compressed network that ends no worse than it began: rates per factor, the dense network as a teacher, the best state
kept."""

from __future__ import annotations

from ranksearch.networks.recovery.rates import factor_rates, factor_steps
from ranksearch.networks.recovery.recover import TEMPERATURE, Recovered, Recovery, recover

__all__ = ["TEMPERATURE", "Recovered", "Recovery", "factor_rates", "factor_steps", "recover"]
