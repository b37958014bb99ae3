"""Lines that native code prints are kept from standard output; all else that is written there arrives."""

from __future__ import annotations

import forked
import pytest

SCRIPT = """
import ctypes, os, sys
from ranksearch.allocators._native import without_lines
libc = ctypes.CDLL(None)
print("python before")
libc.printf(b"Highs: before, to be seen\\n")
try:
    with without_lines(b"Highs"):
        libc.printf(b"Highs::solve is printed through C, and held back by its buffer\\n")
        libc.puts(b"another library")
        print("python within")
        os.write(1, b"HighsMip straight to the descriptor\\n")
        if "raise" in sys.argv:
            raise KeyError("within")
except KeyError:
    print("raised")
libc.puts(b"Highs: afterwards, to be seen")
print("python after")
"""


@pytest.mark.parametrize("more", [[], ["raise"]])
def test_only_the_lines_of_the_solver_are_missing(more: list[str]) -> None:
    result = forked.run("-c", SCRIPT, *more)
    assert result.returncode == 0, result.stderr
    expected = [
        "python before", "Highs: before, to be seen", "another library", "python within", *["raised"] * len(more),
        "Highs: afterwards, to be seen", "python after",
    ]  # fmt: skip
    assert sorted(result.stdout.splitlines()) == sorted(expected) and result.stderr == ""


def test_a_closed_standard_output_is_no_error() -> None:
    code = (
        "import os\nos.close(1)\nfrom ranksearch.allocators._native import without_lines\n"
        "with without_lines(b'x'):\n    done = True\nassert done"
    )
    result = forked.run("-c", code)
    assert (result.returncode, result.stderr) == (0, "")
