"""Where drivers of tests have their files. It makes ``ray_drivers`` importable, whatever the import mode."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from ray_drivers import DRIVERS


@pytest.fixture
def temporary() -> Iterator[str]:
    """A folder with a short path: Ray's sockets live below it. Drivers that a failed test left are ended."""
    with tempfile.TemporaryDirectory(prefix="rst", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder
        while DRIVERS:
            DRIVERS.pop().kill()
