"""Evaluations in parts: what they come to is what they come to at once, wherever they were cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cloudpickle
import pytest
import torch
from torch import nn

from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import Evaluator, Fidelity, Outcome, Point, Progress, Request, Stepwise
from ranksearch.evaluation.stepwise import check_stepwise
from ranksearch.sites import find_sites
from ranksearch.space import DENSE, Configuration
from ranksearch.space.spectra import Spectra
from ranksearch.tasks import Classification, Diverged, FineTuning, Task

LOW = Configuration({"0": ("svd", (2,)), "5": ("svd", (1,))})
FIDELITY = Fidelity(epochs=4, recalibration=2, reconstruction=1, distill=2)
BOTH = pytest.mark.parametrize("fidelity", [FIDELITY, replace(FIDELITY, training="recovery")], ids=["plain", "recovery"])


def noisy(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return x + torch.rand(len(x), 1, 1, 1, generator=generator)


class Drawing(nn.Module):
    """Draws random numbers whenever it is run, in evaluation too, which other evaluations must not feel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.05 * torch.randn_like(x)


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(72, 3, 4, 4, generator=generator)
    y = (x.mean(dim=(1, 2, 3)) > 0).long()
    task = Classification(train=(x[:40], y[:40]), validation=(x[40:], y[40:]), batch_size=8, learning_rate=0.05, augment=noisy)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.3), Drawing(), nn.Flatten(), nn.Linear(128, 2)
    )  # fmt: skip
    return Evaluator(Spectra(net, find_sites(net, task.example())), task)


class Folder:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, request: Request) -> Path:
        return self.folder / f"{request.configuration.id}-{request.seed}.checkpoint"


def parts(found: Iterator[Progress | Outcome]) -> tuple[list[Progress], Outcome]:
    *on_the_way, last = list(found)
    assert isinstance(last, Outcome) and all(isinstance(part, Progress) for part in on_the_way)
    return on_the_way, last  # type: ignore[return-value]


@BOTH
def test_rungs_change_nothing_of_what_it_comes_to(evaluator: Evaluator, fidelity: Fidelity) -> None:
    request = Request(LOW, fidelity, 3, "mine")
    whole = evaluator(request)
    assert whole.status == "done" and whole.curve == ()
    on_the_way, last = parts(Stepwise(evaluator, (0.5, 1.0, 3.0, 4.0))(request))
    assert last.metrics == whole.metrics and last.status == "done" and last.request == request
    assert [[point.epochs for point in each.curve] for each in on_the_way] == [[0.5], [0.5, 1], [0.5, 1, 3]], "the end is no rung"
    assert last.curve == on_the_way[-1].curve
    if fidelity.training == "plain":  # recovery hands out what was best so far, which may be the same
        assert len({p.metrics["loss"] for p in last.curve} | {last.metrics["loss"]}) == 4
    assert 0 < on_the_way[0].seconds < on_the_way[1].seconds < last.seconds and last.provenance is not None
    assert parts(Stepwise(evaluator, (1.0,))(request))[0][0].curve[0] == on_the_way[1].curve[1], "other rungs change nothing either"
    if fidelity.training == "plain":
        shorter = evaluator(Request(LOW, replace(fidelity, epochs=1), 3))
        assert dict(on_the_way[1].curve[1].metrics) != shorter.metrics, "on its way it is no evaluation of so many epochs"


@BOTH
def test_it_goes_on_from_its_checkpoint_in_another_process(evaluator: Evaluator, tmp_path: Path, fidelity: Fidelity) -> None:
    request, place = Request(LOW, fidelity, 5), Folder(tmp_path)
    whole = parts(Stepwise(evaluator, (1.0, 2.0))(request))
    advance = FineTuning.advance
    for rungs in (1, 2):
        place(request).unlink(missing_ok=True)
        cut = Stepwise(evaluator, (1.0, 2.0), place)(request)
        for _ in range(rungs):
            next(cut)
        cut.close()  # type: ignore[attr-defined]
        torch.randn(7)  # whatever happens meanwhile
        elsewhere = cloudpickle.loads(cloudpickle.dumps(Stepwise(evaluator, (1.0, 2.0), place)))
        trained: list[int] = []

        def counting(tuning: FineTuning, epochs: float, trained: list[int] = trained) -> None:
            before = tuning.done
            advance(tuning, epochs)
            trained.append(tuning.done - before)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FineTuning, "advance", counting)
            patch.setattr(elsewhere.evaluator, "untrained", None)  # what was fitted and taught before is not fitted and taught again
            on_the_way, last = parts(elsewhere(request))
        assert on_the_way[0].curve == whole[0][rungs - 1].curve, "it tells how far it was first"
        assert last.metrics == whole[1].metrics and last.curve == whole[1].curve
        assert sum(trained) == (4 - rungs) * 5, "what was trained is not trained again"


def test_a_checkpoint_that_cannot_be_read_or_written_costs_nothing_but_time(evaluator: Evaluator, tmp_path: Path, caplog) -> None:
    request, place = Request(LOW, FIDELITY, 5), Folder(tmp_path)
    whole = parts(Stepwise(evaluator, (2.0,))(request))[1]
    place(request).write_bytes(b"torn")
    assert parts(Stepwise(evaluator, (2.0,), place)(request))[1].metrics == whole.metrics and "begins anew" in caplog.text
    place(request).unlink()
    place(request).mkdir()
    assert parts(Stepwise(evaluator, (2.0,), place)(request))[1].metrics == whole.metrics and "no checkpoint" in caplog.text
    assert parts(Stepwise(evaluator, (2.0,), Folder(tmp_path / "none"))(request))[1].metrics == whole.metrics
    assert not (tmp_path / "none").exists()


def test_the_dense_network_and_what_is_shorter_than_a_rung_are_evaluated_at_once(evaluator: Evaluator) -> None:
    for request in (Request(DENSE, FIDELITY, 0), Request(LOW, Fidelity(epochs=1, recalibration=2), 0)):
        on_the_way, last = parts(Stepwise(evaluator, (1.0, 2.0))(request))
        assert on_the_way == [] and last.metrics == evaluator(request).metrics


def test_a_failure_on_the_way_is_the_outcome(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = FineTuning.advance

    def diverging(self: FineTuning, epochs: float) -> None:
        if epochs > 1:
            raise Diverged("loss=nan")
        advance(self, epochs)

    monkeypatch.setattr(FineTuning, "advance", diverging)
    on_the_way, last = parts(Stepwise(evaluator, (1.0, 2.0))(Request(LOW, FIDELITY, 0)))
    assert len(on_the_way) == 1 and (last.status, last.error_kind) == ("failed", "configuration") and "nan" in str(last.error)
    assert last.curve == on_the_way[0].curve
    unknown = Request(Configuration({"nothing": ("svd", (1,))}), FIDELITY, 0)
    assert parts(Stepwise(evaluator, (1.0,))(unknown))[1].status == "failed"


def test_a_stopped_evaluation_has_a_curve_and_no_metrics(evaluator: Evaluator) -> None:
    request = Request(LOW, FIDELITY, 0)
    stopped = Progress(request, (Point(1.0, {"accuracy": 0.5}),), 2.0, {"host": "h"}).stopped()
    assert (stopped.status, stopped.metrics, stopped.error_kind, stopped.seconds) == ("stopped", {}, None, 2.0)
    assert stopped.error == "stopped early, after 1 of 4 epochs" and stopped.curve[0].metrics == {"accuracy": 0.5}


def test_tasks_without_steps_are_refused(evaluator: Evaluator) -> None:
    check_stepwise(evaluator.task)

    class Whole(Classification):  # type: ignore[misc]
        training = Task.training

    x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    with pytest.raises(InvalidArgument, match=r"task=Whole.*scheduler='none'"):
        check_stepwise(Whole(train=(x, y), validation=(x, y), learning_rate=0.1))
