"""`ranksearch report`: a page, figures and a table of a finished search, or one line that says why not."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path

from cli_cases import error, run


def test_a_report_is_written_and_its_commands_rebuild(searched: tuple[str, str, str], tmp_path: Path) -> None:
    path, store, _ = searched
    out = run("report", path, "--store", store, "--no-calibration", "--out", "r.html", "--latex", "t.tex", cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    assert "written to r.html" in out.stderr and "t.tex" in out.stderr and not out.stdout
    packed = re.search(r'id="data">([^<]*)<', (tmp_path / "r.html").read_text())
    assert packed is not None
    data = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    assert data["study"] == "bright" and data["counts"]["evaluations"] == 10 and data["store"] == store
    id = next(id for id in data["networks"]["id"] if id != data["networks"]["id"][data["networks"]["dense"][0]])
    command = id.join(data["build"])
    assert command == f"ranksearch build {path} --store {store} {id} --out bright-{id}"
    assert data["proxies"]["rows"] and all(option["rank_share"] > 0 for options in data["options"] for option in options)
    assert (tmp_path / "t.tex").read_text().count(r"\texttt") >= 1


def test_what_cannot_be_written_is_refused_before_any_work(study: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    assert "a report ends in .html" in error(capsys, "report", study, "--out", str(tmp_path / "r.pdf"))
    assert "is a file" in error(capsys, "report", study, "--figures", str(tmp_path / "file"))
    assert "does not exist" in error(capsys, "report", study, "--data", str(tmp_path), "--store", str(tmp_path / "none.db"))
