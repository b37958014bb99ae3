"""Metrics of classification: against scikit-learn, over the whole split at once, of the user's own, and class weights."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import Fidelity, Request
from ranksearch.space import DENSE
from ranksearch.study import Study
from ranksearch.tasks import Classification, InvalidMetrics
from ranksearch.tasks.metrics import NAMED, OfPredictions, TopK, balanced_accuracy, macro_f1

sklearn_metrics = pytest.importorskip("sklearn.metrics")
CLASSES = 7


def _data(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 10, generator=generator)
    x[:CLASSES, :CLASSES] += 20 * torch.eye(CLASSES)  # one of each at least
    return x, (x[:, :CLASSES] + torch.arange(CLASSES) * 0.3).argmax(1)  # unbalanced


def _task(**options: Any) -> Classification:
    options = {"learning_rate": 0.05, "batch_size": 16, "classes": CLASSES, **options}
    return Classification(train=_data(90, 0), validation=_data(50, 1), test=_data(40, 2), **options)


def _model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, CLASSES)).eval()


def mean_margin(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.gather(1, targets[:, None])[:, 0] - logits.mean(1)).mean()


@dataclass(frozen=True)
class AtLeast:
    """The share of examples whose probability of the right class is at least so large."""

    least: float

    def __call__(self, logits: Tensor, targets: Tensor) -> float:
        return float((logits.softmax(1).gather(1, targets[:, None])[:, 0] >= self.least).double().mean())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("absent", [(), (0,), (2, 6)])
def test_named_metrics_are_those_of_scikit_learn(seed: int, absent: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, targets = torch.randn(60, CLASSES, generator=generator), torch.randint(0, CLASSES, (60,), generator=generator)
    for k in absent:  # neither wanted nor, for the first, predicted
        targets[targets == k] = 1
        logits[:, absent[0]] = -50.0
    true, predicted = targets.numpy(), logits.argmax(1).numpy()
    assert macro_f1(logits, targets) == pytest.approx(sklearn_metrics.f1_score(true, predicted, average="macro"), abs=1e-12)
    present = np.mean([(predicted[true == k] == k).mean() for k in np.unique(true)])
    assert balanced_accuracy(logits, targets) == pytest.approx(present, abs=1e-12)
    for k in (1, 3, 5):
        top = sklearn_metrics.top_k_accuracy_score(true, logits.numpy(), k=k, labels=np.arange(CLASSES))
        assert TopK(k)(logits, targets) == pytest.approx(top, abs=1e-12)
    assert macro_f1(F.one_hot(targets, CLASSES).float(), targets) == balanced_accuracy(F.one_hot(targets, CLASSES).float(), targets) == 1.0


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("batch_size", [1, 7, 16, 200])
def test_a_metric_sees_the_whole_split_at_once_whatever_the_batches(split: Any, batch_size: int) -> None:
    task = _task(metrics={"f1": "f1", "margin": mean_margin, "sure": AtLeast(0.2)}, batch_size=batch_size)
    model, (x, y) = _model(), task._splits[split]
    with torch.no_grad():
        logits = model(x)
    found = task.measure(model, split)
    assert list(found) == ["accuracy", "loss", "f1", "margin", "sure"] == [m.name for m in task.metrics]
    assert found["f1"] == pytest.approx(sklearn_metrics.f1_score(y, logits.argmax(1), average="macro"))
    assert float(found["margin"]) == pytest.approx(float(mean_margin(logits, y)), abs=1e-5)
    assert found["sure"] == pytest.approx(AtLeast(0.2)(logits, y))


def test_functions_of_scikit_learn_and_partial_ones() -> None:
    weighted = OfPredictions(sklearn_metrics.f1_score, {"average": "weighted"})
    matthews = OfPredictions(sklearn_metrics.matthews_corrcoef)
    smoothed = functools.partial(F.cross_entropy, label_smoothing=0.1)  # as torchmetrics' functions: (logits, targets)
    task = _task(metrics={"weighted": weighted, "matthews": matthews, "smoothed": (smoothed, "min")})
    model, (x, y) = _model(), task._splits["validation"]
    found = task.measure(model)
    with torch.no_grad():
        logits = model(x)
    assert found["weighted"] == pytest.approx(sklearn_metrics.f1_score(y, logits.argmax(1), average="weighted"))
    assert found["matthews"] == pytest.approx(sklearn_metrics.matthews_corrcoef(y, logits.argmax(1)))
    assert float(found["smoothed"]) == pytest.approx(float(smoothed(logits, y)), abs=1e-5)
    assert task.metrics[-1].direction == "min" and task.metrics[-2].direction == "max"


def test_a_search_over_metrics_of_ones_own(tmp_path: Path) -> None:
    task = _task(metrics={"f1": "f1", "balanced": "balanced_accuracy", "top3": "top3", "margin": mean_margin}, class_weights="balanced")
    fidelity = Fidelity(epochs=1, recalibration=0)
    study = Study("f1", model=_model(), task=task, objectives=("f1", "macs"), fidelity=fidelity, store=tmp_path / "s.db")
    study.run(trials=6, runner="local", constraints="macs <= 0.9")
    every = study.evaluations()
    assert len(every) == 6 and (every["status"] == "done").all() and every[["f1", "balanced", "top3", "margin"]].notna().all().all()
    assert len(study.front("f1 > 0 and top3 > 0.5 * baseline")) and study.best(objective="margin") is not None


@pytest.mark.parametrize(
    ("metrics", "named"),
    [
        ("f1", "f1"), (5, "5"), (("auc",), "auc"), ({"auc": "roc"}, "roc"), ({"f1": 0.5}, "f1"), ({"f1": dict}, "f1"),
        ({"f1": (macro_f1, "up")}, "up"), ({"macs": macro_f1}, "macs"), ({"error": macro_f1}, "error"), ({"lambda": macro_f1}, "lambda"),
        ({"accuracy": macro_f1}, "accuracy"), (("f1", "f1"), "f1"), ({"top 5": "top5"}, "top 5"),
        ({"mine": lambda logits, targets: logits.no_such_method()}, "mine.*AttributeError"), ({"mine": lambda logits: 1.0}, "mine"),
        ({"mine": lambda logits, targets: "good"}, "mine"), ({"mine": lambda logits, targets: logits}, "mine"), ({"top7": TopK(7)}, "top7"),
    ],
    ids=repr,
)  # fmt: skip
def test_metrics_that_cannot_work_are_refused_when_the_task_is_made(metrics: Any, named: str) -> None:
    with pytest.raises((InvalidArgument, InvalidMetrics), match=named):
        _task(metrics=metrics)


def test_a_function_that_closes_over_variables_has_no_lasting_name() -> None:
    level = 0.3
    with pytest.raises(InvalidArgument, match=r"metrics\['sure'\].*closes over"):
        _task(metrics={"sure": lambda logits, targets: float((logits > level).double().mean())})


def test_the_fingerprint_knows_metrics_and_weights_and_nothing_where_there_are_none() -> None:
    plain, same = _task(), _task(metrics=(), class_weights=None)
    others = [
        _task(metrics=("f1",)), _task(metrics={"f2": "f1"}), _task(metrics={"f1": (macro_f1, "min")}), _task(metrics={"f1": mean_margin}),
        _task(metrics={"sure": AtLeast(0.2)}), _task(metrics={"sure": AtLeast(0.3)}),
        _task(metrics={"b": OfPredictions(sklearn_metrics.f1_score, {"average": "macro"})}),
        _task(metrics={"b": OfPredictions(sklearn_metrics.f1_score, {"average": "micro"})}),
        _task(metrics={"b": functools.partial(F.cross_entropy, label_smoothing=0.1)}),
        _task(metrics={"b": functools.partial(F.cross_entropy, label_smoothing=0.2)}),
        _task(class_weights="balanced"), _task(class_weights=[1.0] * CLASSES), _task(class_weights=[2.0] + [1.0] * (CLASSES - 1)),
    ]  # fmt: skip
    assert plain.fingerprint() == same.fingerprint()
    assert len({task.fingerprint() for task in (plain, *others)}) == len(others) + 1
    assert _task(metrics=("f1",)).fingerprint() == others[0].fingerprint() == cloudpickle.loads(cloudpickle.dumps(others[0])).fingerprint()


def test_a_task_with_metrics_travels_and_can_be_cut() -> None:
    task = _task(metrics={"f1": "f1", "margin": mean_margin}, class_weights="balanced")
    again, model = cloudpickle.loads(cloudpickle.dumps(task)), _model()
    assert again.measure(model) == task.measure(model) and set(task.cut(validation=20).measure(model)) == set(task.measure(model))


WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0, 1.0, 0.1, 4.0], dtype=torch.float64)


@pytest.mark.parametrize("batch_size", [1, 7, 50])
@pytest.mark.parametrize("given", [WEIGHTS, WEIGHTS.tolist(), WEIGHTS.numpy()], ids=["tensor", "list", "array"])
def test_weighted_losses_are_means_over_the_whole_split(given: Any, batch_size: int) -> None:
    task, model = _task(class_weights=given, batch_size=batch_size), _model().double()
    x, y = task._splits["validation"]
    each = F.cross_entropy(model(x.double()), y, reduction="none").detach()
    expected = float((WEIGHTS[y] * each).sum() / WEIGHTS[y].sum())
    assert task.measure(model)["loss"] == pytest.approx(expected, rel=1e-9)
    outputs = model(x.double())
    assert float(task.loss(outputs, y)) == pytest.approx(expected, rel=1e-9)
    assert task.predictive is None and _task().predictive == "categorical"


def test_balanced_weights_and_what_training_makes_of_them() -> None:
    task = _task(class_weights="balanced")
    y = task._splits["train"][1]
    counts = torch.bincount(y, minlength=CLASSES).double()
    assert task.class_weights is not None and torch.allclose(task.class_weights, len(y) / (CLASSES * counts))
    equal, plain, weighted = _model(), _model(), _model()
    _task(class_weights=[3.0] * CLASSES).fine_tune(equal, epochs=1, seed=0)  # weights that are all the same change nothing
    _task().fine_tune(plain, epochs=1, seed=0)
    task.fine_tune(weighted, epochs=1, seed=0)
    differences = [(a - b).abs().max().item() for a, b in zip(equal.parameters(), plain.parameters(), strict=True)]
    assert max(differences) < 1e-5
    assert max((a - b).abs().max().item() for a, b in zip(weighted.parameters(), plain.parameters(), strict=True)) > 1e-4


@pytest.mark.parametrize(
    "given", ["even", [1.0] * 6, [1.0] * 6 + [0.0], [1.0] * 6 + [-1.0], [1.0] * 6 + [float("nan")], [["a"]], 3.0], ids=repr
)  # fmt: skip
def test_weights_that_cannot_be_used(given: Any) -> None:
    with pytest.raises(InvalidArgument, match="class_weights"):
        _task(class_weights=given)
    x, y = _data(90, 0)
    with pytest.raises(InvalidArgument, match=r"no example of class .*7"):
        Classification(train=(x, y), validation=(x, y), learning_rate=0.1, classes=8, class_weights="balanced")


def test_a_metric_that_is_not_finite_or_fails_later_is_the_evaluations_fault(tmp_path: Path) -> None:
    class Fickle:
        """Right on answers that are all right."""

        def __call__(self, logits: Tensor, targets: Tensor) -> float:
            if (logits.argmax(1) == targets).all():
                return 1.0
            raise ValueError("cannot be computed")

        def __repr__(self) -> str:
            return "Fickle()"

    study = Study(
        "fickle", model=_model(), task=_task(metrics={"fickle": Fickle()}), objectives=("accuracy", "macs"),
        fidelity=Fidelity(epochs=0, recalibration=0), store=tmp_path / "s.db",
    )  # fmt: skip
    outcome = study.evaluator(Request(DENSE, study.fidelity, 0))
    assert outcome.status == "failed" and "metric 'fickle': ValueError: cannot be computed" in (outcome.error or "")
    assert set(NAMED) == {"f1", "balanced_accuracy", "top3", "top5"} and copy.deepcopy(study.task).metrics == study.task.metrics
