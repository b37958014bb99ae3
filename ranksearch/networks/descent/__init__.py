"""Least squares over the factors of a layer in the metric of its inputs and outputs: all factors move together."""

from __future__ import annotations

from ranksearch.networks.descent.levenberg_marquardt import descend
from ranksearch.networks.descent.weighing import Spanned, Weighing

__all__ = ["Spanned", "Weighing", "descend"]
