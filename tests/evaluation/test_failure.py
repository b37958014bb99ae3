"""Whose fault a failure was: the machine's, the code's, or the configuration's own."""

from __future__ import annotations

import errno
import subprocess

import pytest
import torch

from ranksearch.errors import InvalidModel, MissingDependency
from ranksearch.evaluation import Fidelity, Request, failed, may_be_retried, outcome_of
from ranksearch.evaluation.failure import kind_of
from ranksearch.space import DENSE
from ranksearch.tasks import Diverged, InvalidMetrics


class TimeLimitExceeded(Exception):
    """As libraries have them."""


class Unspeakable(Exception):
    """Has no message that can be had."""

    def __str__(self) -> str:
        raise KeyError("no")


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


MACHINE = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
    RuntimeError("MPS backend out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    OSError(errno.ENOSPC, "No space left on device"),
    TimeoutError(),
    subprocess.TimeoutExpired("train", 10),
    TimeLimitExceeded("3600 s"),
    ImportError("no module named so"),
    MissingDependency("install it"),
    caused(InvalidModel("the model cannot be copied"), MemoryError()),
]
CONFIGURATION = [Diverged("loss is nan"), InvalidModel("outputs"), ZeroDivisionError(), torch.linalg.LinAlgError("singular")]
CODE = [
    InvalidMetrics("accuracy is missing"), SystemExit(0), Unspeakable(),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("x"), KeyError("logits"), AttributeError("memory"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "kind"), [*((e, "machine") for e in MACHINE), *((e, "configuration") for e in CONFIGURATION), *((e, "code") for e in CODE)]
)
def test_exceptions_are_told_apart(error: BaseException, kind: str) -> None:
    assert kind_of(error) == kind

    def measure():
        raise error

    outcome = outcome_of(Request(DENSE, Fidelity(), 0), measure)
    assert (outcome.status, outcome.error_kind) == ("failed", kind)
    assert (outcome.error or "").startswith(type(error).__name__)
    assert may_be_retried(outcome.error_kind) is (kind != "configuration")


def test_causes_that_are_a_circle_come_to_an_end() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert kind_of(one) == "code"


def test_metrics_that_are_not_finite_are_the_configurations_own() -> None:
    outcome = outcome_of(Request(DENSE, Fidelity(), 0), lambda: {"loss": float("nan")})
    assert (outcome.status, outcome.error_kind) == ("failed", "configuration")
    assert outcome_of(Request(DENSE, Fidelity(), 0), lambda: {"loss": 1.0}).error_kind is None
    assert may_be_retried(None), "stored before there were kinds"


@pytest.mark.parametrize(
    ("measured", "said"),
    [({}, "loss not measured; what was: nothing"), ({"acc": 1.0}, "what was: acc"), (None, "NoneType"), ({"loss": "x"}, "x")],
)
def test_metrics_that_are_declared_must_be_there(measured, said: str) -> None:
    outcome = outcome_of(Request(DENSE, Fidelity(), 0), lambda: measured, ["loss"])
    assert (outcome.status, outcome.error_kind, outcome.metrics) == ("failed", "code", {}) and said in str(outcome.error)


def test_errors_are_told_in_bounded_text_without_escapes() -> None:
    error = failed(Request(DENSE, Fidelity(), 0), ValueError("\x1b[31m" + "x" * 10**5 + "\udcff END")).error or ""
    assert error.startswith("ValueError: \\x1b[31mx") and error.endswith("\\udcff END") and len(error) <= 2000
