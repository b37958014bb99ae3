"""Every proxy, one file each. ``PROXIES`` lists those that need nothing but a space; the others are made from
statistics, a calibration batch or a measurement."""

from __future__ import annotations

from ranksearch.proxies._base import ScoreProxy, TableProxy, score
from ranksearch.proxies._residual import tables
from ranksearch.proxies.activation import ActivationError
from ranksearch.proxies.calibrated import Calibrated
from ranksearch.proxies.energy import Energy
from ranksearch.proxies.fisher import FisherError
from ranksearch.proxies.frobenius import Frobenius
from ranksearch.proxies.fwsvd import DiagonalFisher
from ranksearch.proxies.last_feature import LastFeature
from ranksearch.proxies.operator_norm import OperatorNorm
from ranksearch.proxies.single_site import SingleSiteLoss

PROXIES: tuple[TableProxy, ...] = (Frobenius(), OperatorNorm())

__all__ = [
    "PROXIES", "ActivationError", "Calibrated", "DiagonalFisher", "Energy", "FisherError", "Frobenius", "LastFeature",
    "OperatorNorm", "ScoreProxy", "SingleSiteLoss", "TableProxy", "score", "tables",
]  # fmt: skip
