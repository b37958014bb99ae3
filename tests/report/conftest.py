"""One headless Chromium for all tests of pages; and ``report_cases`` made importable, whatever the import mode."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, as the machine has it."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'ranksearch[dev]'")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium on the PATH: apt-get install chromium")
    with api.sync_playwright() as play:
        found = play.chromium.launch(executable_path=path, args=list(FLAGS))
        yield found
        found.close()


class Seen:
    """What a page said and asked for."""

    def __init__(self, page: Any) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.errors.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))


@pytest.fixture(scope="session")
def opened(browser: Any) -> Callable[..., tuple[Any, Seen]]:
    """Open a page by its address, once for all tests that ask for it in the same way; options are those of a browser context. Plotly takes
    most of a second to begin. Nothing is chosen on the page, whatever a test did there before."""
    pages: dict[Any, tuple[Any, Seen]] = {}

    def open_(url: str, **options: Any) -> tuple[Any, Seen]:
        key = (url, repr(options))
        if key not in pages:
            page = browser.new_context(**options).new_page()
            seen = Seen(page)
            page.goto(url)
            page.wait_for_selector("main[aria-busy=false]")
            pages[key] = page, seen
        page, _ = pages[key]
        page.evaluate("document.getElementById('reset').click(); document.activeElement.blur(); scrollTo(0, 0)")
        page.wait_for_selector("main[aria-busy=false]")
        return pages[key]

    return open_
