"""Every proxy, one file each. The table below is the only list of them."""

from __future__ import annotations

from ranksearch.proxies._base import TableProxy
from ranksearch.proxies.frobenius import Frobenius
from ranksearch.proxies.operator_norm import OperatorNorm

PROXIES: tuple[TableProxy, ...] = (Frobenius(), OperatorNorm())

__all__ = ["PROXIES", "Frobenius", "OperatorNorm", "TableProxy"]
