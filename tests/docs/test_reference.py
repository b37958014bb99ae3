"""The reference has every public name."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

import ranksearch

ROOT = Path(ranksearch.__file__).parent
PAGES = Path(__file__).parents[2] / "docs" / "reference"
PACKAGES = ["ranksearch", *(f"ranksearch.{path.parent.name}" for path in sorted(ROOT.glob("*/__init__.py")))]


@pytest.fixture(scope="module")
def entries() -> set[str]:
    return {entry for page in PAGES.glob("*.md") for entry in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE)}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_an_entry(package: str, entries: set[str]) -> None:
    """By itself, or with the module that it is defined in; tables and types of annotations have none."""
    module = importlib.import_module(package)
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            places = {f"{package}.{name}", value.__module__, f"{value.__module__}.{value.__qualname__}"}
            assert places & entries, f"{package}.{name} is in no page of docs/reference"
