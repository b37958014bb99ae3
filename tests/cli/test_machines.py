"""``--runner`` and what goes with it."""

from __future__ import annotations

import click
import pytest

from ranksearch.cli import machines
from ranksearch.cli import main as cli


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (machines.Size(), "800M", 800 * 10**6), (machines.Size(), "1.5GiB", 3 * 2**29), (machines.Size(), "4 gb", 4 * 10**9),
        (machines.Size(), "123", 123), (machines.Duration(), "90", 90.0), (machines.Duration(), "30m", 1800.0),
        (machines.Duration(), "1.5 h", 5400.0), (machines.Duration(), "0.5s", 0.5),
    ],
)  # fmt: skip
def test_amounts_have_units(kind: click.ParamType, text: str, value: float) -> None:
    assert kind.convert(text, None, None) == value


@pytest.mark.parametrize("kind", [machines.Size(), machines.Duration()])
@pytest.mark.parametrize("text", ["", "0", "-1", "4x", "nan", "1e9", "1.2.3", "m"])
def test_what_is_no_amount_is_refused(kind: click.ParamType, text: str) -> None:
    with pytest.raises(click.BadParameter, match="write it like"):
        kind.convert(text, None, None)


def test_the_runner_gets_what_was_asked_for(study, tmp_path, capsys, monkeypatch) -> None:
    class Reached(Exception):
        pass

    given: dict[str, object] = {}

    def ray(**options):
        given.update(options)
        raise Reached

    monkeypatch.setattr("ranksearch.runners.RayTuneRunner", ray)
    with pytest.raises(Reached):
        cli.main(
            ["search", study, "--data", str(tmp_path), "--workers", "3", "--retries", "5", "--time-limit", "2h", "--memory-limit", "1GiB",
             "--cpus-per-worker", "2", "--gpus-per-worker", "0.5"]
        )  # fmt: skip
    assert given.pop("by_value") is not None
    assert given == {
        "workers": 3, "address": None, "retries": 5, "time_limit": 7200.0, "memory_limit": 2**30, "cpus_per_worker": 2.0,
        "gpus_per_worker": 0.5,
    }  # fmt: skip
    for limit in (("--time-limit", "1"), ("--memory-limit", "1M")):
        assert cli.main(["search", study, "--data", str(tmp_path), "--runner", "local", *limit]) == 2
        assert f"error: {limit[0]}: --runner local evaluates in this process" in capsys.readouterr().err
