"""One self-contained HTML file: style, script, plotly and the data of a study within it. It may load nothing: its content security
policy forbids every request."""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from ranksearch.errors import InvalidArgument, MissingDependency
from ranksearch.home import user_path

SCRIPTS = ("text", "networks", "charts", "tables", "view", "live", "start")  # in this order: each uses those before it
CLOSED = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
SERVED = "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; connect-src 'self'"


def check_path(path: str | Path) -> Path:
    """The path of a report.

    Raises:
        InvalidArgument: another file ending than .html or .htm.
    """
    path = user_path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise InvalidArgument(f"path={path.name!r}: a report ends in .html")
    return path


def plotly_script() -> str:
    """The source of plotly.js, as the Python package has it.

    Raises:
        MissingDependency: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingDependency("reports need plotly: pip install 'ranksearch[report]'") from error
    return get_plotlyjs()


@cache
def packed_plotly() -> bytes:
    """`plotly_script`, compressed with gzip."""
    return gzip.compress(plotly_script().encode(), 6, mtime=0)


def report_page(data: Mapping[str, Any]) -> str:
    """A report as HTML. Data and plotly are compressed within it, so that nothing in them can be taken for HTML.

    Args:
        data: of `ranksearch.report.data.page_data`.

    Raises:
        MissingDependency: plotly is not installed.
    """
    packed = {"plotly": packed_plotly(), "data": gzip.compress(encoded(data).encode(), 6, mtime=0)}
    texts = {name: base64.b64encode(content).decode() for name, content in packed.items()}
    payload = "\n".join(f'<script type="application/octet-stream" id="{name}">{text}</script>' for name, text in texts.items())
    return _filled(f"{data['study']}: ranksearch report", CLOSED, payload)


def live_page(study: str) -> str:
    """A page that asks the server which it came from for plotly and the data, again and again."""
    return _filled(f"{study}: ranksearch dashboard", SERVED, '<script src="plotly.js"></script>')


def encoded(data: Mapping[str, Any]) -> str:
    """JSON that browsers read: no NaN, and as short as it can be."""
    return json.dumps(data, allow_nan=False, separators=(",", ":"))


def _filled(title: str, policy: str, payload: str) -> str:
    parts = {"title": html.escape(title), "policy": html.escape(policy), "style": _asset("style.css"), "payload": payload}
    parts["script"] = "\n".join(_asset(f"{name}.js") for name in SCRIPTS)
    page = _asset("page.html")
    for name in ("style", "policy", "script"):  # ours; then what may hold anything
        page = page.replace(f"{{{{{name}}}}}", parts[name])
    before, _, rest = page.partition("{{title}}")
    middle, _, after = rest.partition("{{payload}}")
    return before + parts["title"] + middle + parts["payload"] + after


@cache
def _asset(name: str) -> str:
    return (files("ranksearch.report") / "assets" / name).read_text(encoding="utf-8").strip()
