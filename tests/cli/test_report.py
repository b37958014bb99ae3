"""`ranksearch report`: a page, figures and a table of a finished search, or one line that says why not."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
import socket
import threading
from pathlib import Path

from cli_cases import error

from ranksearch.cli import dashboard
from ranksearch.cli import main as cli
from ranksearch.errors import InvalidArgument
from ranksearch.study.report import Report


def test_a_report_is_written_and_its_commands_rebuild(searched: tuple[str, str, str], tmp_path: Path, capsys, monkeypatch) -> None:
    path, store, _ = searched
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", path, "--store", store, "--no-calibration", "--out", "r.html", "--latex", "t.tex"]) == 0
    out = capsys.readouterr()
    assert "written to r.html" in out.err and "t.tex" in out.err and not out.out
    packed = re.search(r'id="data">([^<]*)<', (tmp_path / "r.html").read_text())
    assert packed is not None
    data = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    assert data["study"] == "bright" and data["counts"]["evaluations"] == 10 and data["store"] == store
    id = next(id for id in data["networks"]["id"] if id != data["networks"]["id"][data["networks"]["dense"][0]])
    command = id.join(data["build"])
    assert command == f"ranksearch build {path} --store {store} {id} --out bright-{id}"
    assert data["proxies"]["rows"] and all(share > 0 for options in data["options"] for share in options["rank_share"])
    assert (tmp_path / "t.tex").read_text().count(r"\texttt") >= 1


def test_what_cannot_be_written_is_refused_before_any_work(study: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    assert "a report ends in .html" in error(capsys, "report", study, "--out", str(tmp_path / "r.pdf"))
    assert "is a file" in error(capsys, "report", study, "--figures", str(tmp_path / "file"))
    assert "does not exist" in error(capsys, "report", study, "--data", str(tmp_path), "--store", str(tmp_path / "none.db"))


def test_a_dashboard_is_refused_before_any_work_where_others_could_read_it(study: str, capsys) -> None:
    assert "token" in error(capsys, "dashboard", study, "--host", "0.0.0.0")
    assert "at least 8" in error(capsys, "dashboard", study, "--token", "short")


def test_a_dashboard_waits_for_the_first_search(searched: tuple[str, str, str], tmp_path: Path, capsys, monkeypatch) -> None:
    path, store, _ = searched
    late, waited = tmp_path / "late.db", []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            shutil.copy(store, late)

    def serve(report: Report, **options) -> None:
        raise InvalidArgument("served")

    monkeypatch.setattr(dashboard, "sleep", sleep)
    monkeypatch.setattr(Report, "serve", serve)
    assert cli.main(["dashboard", path, "--data", str(tmp_path), "--store", str(late)]) == 2
    said = capsys.readouterr().err
    assert len(waited) == 3 and said.count("waiting for a search") == 1 and "error: served" in said


def test_a_port_that_is_taken_is_told(searched: tuple[str, str, str], capsys) -> None:
    path, store, _ = searched
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert "--port 0" in error(capsys, "dashboard", path, "--store", store, "--port", port)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ranksearch-")]
