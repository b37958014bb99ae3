"""``ranksearch dashboard``: a study's page while it is searched."""

from __future__ import annotations

import errno
import sys
import threading
from time import sleep
from typing import TYPE_CHECKING

from ranksearch.errors import InvalidArgument
from ranksearch.printable import without_password

EVERY = 1.0  # seconds between two looks for a store

if TYPE_CHECKING:
    from ranksearch.study import Study


def check(host: str, token: str | None) -> None:
    """Refuse what cannot be served, before any work."""
    from ranksearch.report.page import plotly_script
    from ranksearch.report.server import check_address

    check_address(host, token)
    plotly_script()


def serve(
    study: Study, *, host: str, port: int, token: str | None, trials: int | None, proxies: bool, fidelity: str | None,
    build: tuple[str, str, str],
) -> None:  # fmt: skip
    """Serve until Ctrl-C; the address is the one line on standard output. A study that nobody has searched yet is waited for."""
    from ranksearch.store import Store

    if not Store.exists(study.store_url):
        text = f"there is no store {without_password(study.store_url)!r} yet: waiting for a search to begin; Ctrl-C ends this"
        print(text, file=sys.stderr, flush=True)
        while not Store.exists(study.store_url):
            sleep(EVERY)
    try:
        dashboard = study.report.serve(host=host, port=port, token=token, trials=trials, proxies=proxies, fidelity=fidelity, build=build)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
            raise
        raise InvalidArgument(f"--host {host} --port {port}: {error.strerror}; give another, such as --port 0 for any free one") from error
    with dashboard:
        print(dashboard.url, flush=True)
        print("open it in a browser; Ctrl-C ends the dashboard, not the search", file=sys.stderr, flush=True)
        threading.Event().wait()
