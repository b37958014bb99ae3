"""Every proxy, one file each. ``PROXIES`` is the only list of them: a new one is its file, a line here, and its test. The first
ones need nothing but a space; a search starts from their optima in this order."""

from __future__ import annotations

from collections.abc import Sequence

from ranksearch.errors import InvalidArgument
from ranksearch.proxies.activation import ActivationError
from ranksearch.proxies.calibrated import Calibrated
from ranksearch.proxies.calibration_loss import CalibrationLoss
from ranksearch.proxies.context import ProxyContext
from ranksearch.proxies.energy import Energy
from ranksearch.proxies.fisher import FisherError
from ranksearch.proxies.frobenius import Frobenius
from ranksearch.proxies.fwsvd import DiagonalFisher
from ranksearch.proxies.last_feature import LastFeature
from ranksearch.proxies.lems import LEMS
from ranksearch.proxies.operator_norm import OperatorNorm
from ranksearch.proxies.proxy import Need, Proxy, ScoreProxy, TableProxy, score
from ranksearch.proxies.residual import tables
from ranksearch.proxies.single_site import SingleSiteLoss

PROXIES: tuple[type[TableProxy] | type[ScoreProxy], ...] = (
    Energy, Frobenius, OperatorNorm, ActivationError, FisherError, DiagonalFisher, SingleSiteLoss, LEMS, Calibrated, LastFeature,
)  # fmt: skip


def free_proxies() -> tuple[TableProxy, ...]:
    """The table proxies that need nothing but a space, in the order of the table."""
    return tuple(kind() for kind in PROXIES if kind.needs == "space" and issubclass(kind, TableProxy))


def make_proxies(
    context: ProxyContext, kinds: Sequence[type[TableProxy] | type[ScoreProxy]] = PROXIES
) -> tuple[list[TableProxy | ScoreProxy], dict[str, str]]:
    """The proxies of a study, and the names of those that it cannot have with the reason."""
    made: list[TableProxy | ScoreProxy] = []
    left_out: dict[str, str] = {}
    for kind in kinds:
        reason = context.missing(kind.needs)
        if reason is None:
            try:
                made.append(kind.make(context))
                continue
            except InvalidArgument as error:  # such as a network of which nothing is a feature
                reason = str(error)
        left_out[kind.name] = reason
    return made, left_out


__all__ = [
    "LEMS", "PROXIES", "ActivationError", "Calibrated", "CalibrationLoss", "DiagonalFisher", "Energy", "FisherError", "Frobenius",
    "LastFeature", "Need", "OperatorNorm", "Proxy", "ProxyContext", "ScoreProxy", "SingleSiteLoss", "TableProxy", "free_proxies",
    "make_proxies", "score", "tables",
]  # fmt: skip
