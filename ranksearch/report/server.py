"""A page that follows a study while it is searched, served over HTTP. One thread looks for changes and makes the answers; requests are
answered with what it made last, so that no number of them touches the store."""

from __future__ import annotations

import gzip
import hmac
import ipaddress
import socket
import threading
from collections.abc import Callable, Hashable, Mapping
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from ranksearch.errors import InvalidArgument, RanksearchError
from ranksearch.report.page import SERVED, encoded, live_page, packed_plotly

COOKIE = "ranksearch-token"
LEAST_TOKEN = 8  # letters


class Feed:
    """The newest data of a study as compressed JSON with a number that grows when they change. It is made by one thread until `close`.

    Args:
        version: cheap to ask, another value when there is something new.
        data: what to show then, JSON data.
        every: seconds between two looks.
    """

    def __init__(self, version: Callable[[], Hashable], data: Callable[[], Mapping[str, Any]], *, every: float) -> None:
        self._version, self._data, self._every = version, data, every
        self._seen = version()
        self._latest = (1, self._body(1, data(), None))
        self._problem: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="ranksearch-dashboard", daemon=True)
        self._thread.start()

    @property
    def latest(self) -> tuple[int, bytes]:
        """Number and gzip-compressed JSON of the newest data."""
        return self._latest

    def close(self) -> None:
        """Stop looking. Doing it twice is fine."""
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._stop.wait(self._every):
            try:
                now = self._version()
                if now == self._seen and self._problem is None:
                    continue
                data, problem, self._seen = self._data(), None, now
            except (RanksearchError, OSError) as error:  # the store may be moved, or its server be away for a while
                problem = " ".join(str(error).split())
                if problem == self._problem:
                    continue
                data = None  # what is shown stays
            self._problem = problem
            number = self._latest[0] + 1
            self._latest = (number, self._body(number, data, problem))

    def _body(self, number: int, data: Mapping[str, Any] | None, problem: str | None) -> bytes:
        news = {"number": number, "problem": problem, "study": data, "every": round(1000 * self._every)}
        return gzip.compress(encoded(news).encode(), 5)


class Dashboard:
    """A running server; a context manager. It listens when it is made.

    Args:
        study: its name.
        feed: of its data; closed with the server.
        host: an address or name of this machine. Any but those that only this machine can reach need a token.
        port: 0: any that is free.
        token: who asks must give it, once in the address, from then on as a cookie; or as ``Authorization: Bearer``.

    Raises:
        InvalidArgument: another address without a token, or one that is short.
        OSError: the address is not this machine's, or the port is taken.
        MissingDependency: plotly is not installed.
    """

    def __init__(self, study: str, feed: Feed, *, host: str = "127.0.0.1", port: int = 0, token: str | None = None) -> None:
        check_address(host, token)
        plotly = packed_plotly()
        page = live_page(study).encode()
        self._feed, self._token = feed, token
        handler = type("Handler", (_Handler,), {"feed": feed, "token": token, "local": is_local(host), "page": page, "plotly": plotly})
        server = type("Server", (_Server,), {"address_family": _family(host)})
        self._server = server((host, port), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="ranksearch-http", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where the page is, with the token."""
        host, port = self._server.server_address[:2]
        if host in ("0.0.0.0", "::"):  # every address: the name is one that others can open
            host = socket.gethostname()
        shown = f"[{host}]" if ":" in str(host) else host
        return f"http://{shown}:{port}/" + (f"?token={self._token}" if self._token else "")

    @property
    def latest(self) -> tuple[int, bytes]:
        """What it answers, see `Feed.latest`."""
        return self._feed.latest

    def close(self) -> None:
        """Stop serving and looking. Doing it twice is fine."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._feed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_address(host: str, token: str | None) -> None:
    """Refuse an address that others can reach without a token.

    Raises:
        InvalidArgument: so it is, or the token is shorter than 8 letters, or has others than letters, digits, '-' and '_'.
    """
    if token is None and not is_local(host):
        text = f"can be reached by others, who could then read the study; give a token of at least {LEAST_TOKEN} letters, too"
        raise InvalidArgument(f"host={host!r} {text}")
    if token is not None and (len(token) < LEAST_TOKEN or not token.isascii() or not token.replace("-", "").replace("_", "").isalnum()):
        raise InvalidArgument(f"token: give at least {LEAST_TOKEN} letters, digits, '-' and '_'; got {len(token)} characters")


def is_local(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _family(host: str) -> int:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True


class _Handler(BaseHTTPRequestHandler):
    feed: Feed
    token: str | None
    local: bool
    page: bytes
    plotly: bytes
    server_version, sys_version = "ranksearch", ""
    timeout = 30  # seconds that a connection may say nothing

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        asked = parse_qs(address.query)
        if self.local and not self._asks_this_machine():  # a page of another site whose name was made to point here
            self._text(HTTPStatus.MISDIRECTED_REQUEST, "this dashboard answers to its own address alone\n")
        elif self.token is not None and "token" in asked and self._is(asked["token"][0]):
            self.send_response(HTTPStatus.SEE_OTHER)  # so that the token stays in no address bar
            self.send_header("Location", address.path)
            self.send_header("Set-Cookie", f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif not self._may():
            self._text(HTTPStatus.FORBIDDEN, "open the address that ranksearch dashboard printed, with its token\n")
        elif address.path == "/":
            self._send(self.page, "text/html; charset=utf-8")
        elif address.path == "/plotly.js":
            self._send(self.plotly, "text/javascript; charset=utf-8", packed=True, keep=True)
        elif address.path == "/data.json":
            number, body = self.feed.latest
            if asked.get("after") == [str(number)]:
                self.send_response(HTTPStatus.NO_CONTENT)
                self.end_headers()
            else:
                self._send(body, "application/json", packed=True)
        else:
            self._text(HTTPStatus.NOT_FOUND, "there is nothing here; the page is at /\n")

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not worth a line each."""

    def _asks_this_machine(self) -> bool:
        try:
            return is_local(urlsplit(f"//{self.headers.get('Host', '')}").hostname or "")
        except ValueError:
            return False

    def _may(self) -> bool:
        if self.token is None:
            return True
        scheme, _, given = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is(given.strip()):
            return True
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and self._is(cookie.value)

    def _is(self, given: str) -> bool:
        return self.token is not None and hmac.compare_digest(given.encode(), self.token.encode())

    def _text(self, status: HTTPStatus, text: str) -> None:
        self._send(text.encode(), "text/plain; charset=utf-8", status=status)

    def _send(self, body: bytes, kind: str, *, status: HTTPStatus = HTTPStatus.OK, packed: bool = False, keep: bool = False) -> None:
        if packed and "gzip" not in self.headers.get("Accept-Encoding", ""):
            body, packed = gzip.decompress(body), False
        self.send_response(status)
        for name, value in {
            "Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "private, max-age=86400" if keep else "no-store",
            "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin",
            "Content-Security-Policy": f"{SERVED}; frame-ancestors 'none'", **({"Content-Encoding": "gzip"} if packed else {}),
        }.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
