"""The README's example runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_example_runs_in_a_new_process(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    (tmp_path / "example.py").write_text(code)
    env = {**os.environ, "RANKSEARCH_HOME": str(tmp_path / "home"), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "accuracy" in done.stdout and "macs_rel" in done.stdout and "Sequential(" in done.stdout
    assert (tmp_path / "home" / "bright.db").exists()


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
