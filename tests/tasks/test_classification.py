from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.errors import InvalidArgument, InvalidModel, RanksearchWarning
from ranksearch.tasks import Classification, Diverged
from ranksearch.tasks.classification import rate

X = torch.rand(40, 3, 2, 2, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 4


def make(**options: Any) -> Classification:
    given: dict[str, Any] = {"train": (X[:24], Y[:24]), "validation": (X[24:], Y[24:]), "learning_rate": 0.1, "batch_size": 7}
    return Classification(**(given | options))


def linear(scale: float = 1.0) -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    model[1].weight.data *= scale
    return model


def test_metrics_are_those_of_the_whole_split_at_once() -> None:
    model = linear(5.0)
    logits = model(X[24:])
    metrics = make().measure(model)
    assert metrics["accuracy"] == (logits.argmax(1) == Y[24:]).double().mean().item()
    assert metrics["loss"] == pytest.approx(F.cross_entropy(logits, Y[24:]).item(), rel=1e-5)


def test_the_test_split_is_measured_only_where_there_is_one() -> None:
    model = linear()
    with pytest.raises(InvalidArgument, match="test"):
        make().measure(model, "test")
    task = make(test=(X[:5], Y[:5]))
    assert task.measure(model, "test")["loss"] == pytest.approx(F.cross_entropy(model(X[:5]), Y[:5]).item(), rel=1e-5)
    with pytest.raises(InvalidArgument, match="train"):
        task.measure(model, "train")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
def test_fine_tuning_is_sgd_with_the_schedule(schedule: Any) -> None:
    model, mirror = linear(), linear()
    task = make(momentum=0.0, weight_decay=0.01, batch_size=24, schedule=schedule)
    task.fine_tune(model, epochs=3, seed=0)
    for step in range(3):
        mirror.zero_grad()
        F.cross_entropy(mirror(X[:24]), Y[:24]).backward()
        with torch.no_grad():
            for p in mirror.parameters():
                assert p.grad is not None
                p -= 0.1 * rate(step, 3, schedule) * (p.grad + 0.01 * p)
    for got, expected in zip(model.parameters(), mirror.parameters(), strict=True):
        torch.testing.assert_close(got, expected)


def test_schedules() -> None:
    cosine = [rate(step, 100, "cosine") for step in range(100)]
    assert cosine == sorted(cosine, reverse=True) and cosine[0] > 0.99 and 0 < cosine[-1] < 1e-3
    cycle = [rate(step, 100, "one_cycle") for step in range(100)]
    assert cycle[:30] == sorted(cycle[:30]) and cycle[30:] == sorted(cycle[30:], reverse=True)
    assert min(cycle) > 0 and max(cycle) <= 1


def test_every_epoch_sees_all_full_batches_of_the_training_set_in_another_order() -> None:
    seen: list[Tensor] = []

    def spy(x: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(x[:, 0, 0, 0])
        return x

    task = make(batch_size=8)
    task.augment = spy  # a function that closes over a list is refused by the constructor
    task.fine_tune(linear(), epochs=2, seed=0)
    assert len(seen) == 6
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    expected = X[:24, 0, 0, 0].sort().values
    assert torch.equal(first.sort().values, expected) and torch.equal(second.sort().values, expected)
    assert not torch.equal(first, second)


def test_bytes_are_scaled_and_normalized_per_channel() -> None:
    raw = (X * 255).to(torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    task = make(train=(raw[:24], Y[:24]), validation=(raw[24:], Y[24:]), normalize=(mean, std), batch_size=24)
    view = (1, 3, 1, 1)
    expected = (raw[:1].float() / 255 - torch.tensor(mean).view(view)) / torch.tensor(std).view(view)
    torch.testing.assert_close(task.example(), expected)
    inputs, targets = next(iter(task.labelled(5)))
    assert inputs.dtype == torch.float32 and len(targets) == 24
    whole = (raw[:24].float() / 255 - torch.tensor(mean).view(view)) / torch.tensor(std).view(view)
    torch.testing.assert_close(inputs.mean(0), whole.mean(0))


def test_double_inputs_stay_double_and_arrays_are_taken() -> None:
    train = (X[:24].double().numpy(), Y[:24].numpy().astype(np.int32))
    task = make(train=train, validation=(X[24:].double(), Y[24:]), normalize=(0.5, 2.0))
    torch.testing.assert_close(task.example(), (X[:1].double() - 0.5) / 2)
    assert task.measure(linear().double())["loss"] > 0


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    model = linear()
    with pytest.raises(Diverged, match="learning_rate"):
        make(learning_rate=3e38).fine_tune(model, epochs=20, seed=0)


def test_a_frozen_model_and_misfitting_outputs_are_named() -> None:
    with pytest.raises(InvalidModel, match="requires_grad"):
        make().fine_tune(linear().requires_grad_(False), epochs=1, seed=0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(InvalidModel, match=r"\(7, 3\).*\(7, 4\)"):
        make().measure(model)
    with pytest.raises(InvalidModel, match=r"\(3, 4\).*\(2, 4\)"):
        make().loss(torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64))
    model.requires_grad_(True).train()
    with pytest.raises(InvalidModel, match="logits"):
        make().fine_tune(model, epochs=1, seed=0)
    assert model.training


@dataclass(frozen=True)
class Shift:
    by: float

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return x + self.by


def noise(x: Tensor, generator: torch.Generator) -> Tensor:
    return x + torch.rand(x.shape, generator=generator)


VARIANTS: list[dict[str, Any]] = [
    {"learning_rate": 0.2}, {"batch_size": 8}, {"momentum": 0.8}, {"weight_decay": 1e-4}, {"schedule": "one_cycle"}, {"classes": 5},
    {"normalize": (0.5, 1.0)}, {"augment": noise}, {"augment": Shift(1.0)}, {"augment": Shift(2.0)}, {"train": (X[:24] + 1e-3, Y[:24])},
    {"train": (X[:24], Y[:24].flip(0))}, {"validation": (X[24:39], Y[24:39])},
    {"train": (X[:24].double(), Y[:24]), "validation": (X[24:].double(), Y[24:])},
]  # fmt: skip


def test_the_fingerprint_tells_data_and_protocol_apart_but_not_test_sets() -> None:
    prints = [make().fingerprint(), *(make(**variant).fingerprint() for variant in VARIANTS)]
    assert len(set(prints)) == len(prints)
    assert make(test=(X[:5], Y[:5])).fingerprint() == prints[0]


WITH_NAN = X[:24].clone()
WITH_NAN[3, 1] = math.nan
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"train": X}, "train"),
    ({"train": ([1, 2], [1, 2])}, "train"),
    ({"train": (X[:0], Y[:0])}, "not empty"),
    ({"validation": (X[:0], Y[:0])}, "validation.*not empty"),
    ({"train": (X[:24, 0, 0, 0], Y[:24])}, "shape"),
    ({"train": (X[:24], Y[:23])}, r"\(23,\)"),
    ({"train": (X[:24], Y[:24, None])}, r"\(24, 1\)"),
    ({"train": (X[:24], Y[:24].float())}, "integers"),
    ({"train": (X[:24].to(torch.int8), Y[:24])}, r"int8.*x\.float\(\), tokens with x\.long\(\)"),
    ({"train": (X[:24].long(), Y[:24])}, "int64"),
    ({"train": (WITH_NAN, Y[:24])}, "NaN"),
    ({"test": (X[:5] / 0, Y[:5])}, "test.*NaN or infinite"),
    ({"train": (X[:24], Y[:24] - 1)}, "from -1"),
    ({"validation": (X[24:], Y[24:] + 4)}, "from 4 to 7"),
    ({"validation": (X[24:, :2], Y[24:])}, "like train"),
    ({"validation": (X[24:].double(), Y[24:])}, "like train"),
    ({"train": (X[:24], Y[:24] * 0), "validation": (X[24:], Y[24:] * 0)}, "classes=1"),
    ({"classes": 3}, "0..2"),
    ({"classes": 2.5}, "classes"),
    ({"learning_rate": 0}, "learning_rate"),
    ({"learning_rate": math.nan}, "learning_rate"),
    ({"learning_rate": "0.1"}, "learning_rate"),
    ({"weight_decay": -1}, "weight_decay"),
    ({"momentum": 1.0}, "momentum"),
    ({"batch_size": 0}, "batch_size"),
    ({"batch_size": 2.0}, "batch_size"),
    ({"schedule": "step"}, "cosine, one_cycle"),
    ({"normalize": (0.5, 0.0)}, "std positive"),
    ({"normalize": (0.5,)}, "mean, std"),
    ({"normalize": ((0.1, 0.2), 1.0)}, "3 channels"),
    ({"augment": 3}, "callable"),
    ({"train": ({"input_ids": torch.ones(4, 3)}, torch.ones(4))}, r"train: x is a dict; must be one tensor.*FromLoss"),
    ({"train": torch.ones(4, 3)}, r"train is a Tensor: must be a pair \(x, y\)"),
    ({"augment": partial(noise, generator=object())}, "lasting"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[f"{n}-{'-'.join(o)}" for n, (o, _) in enumerate(WRONG)])
def test_what_cannot_be_used_is_refused_and_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        make(**options)


def test_an_augmentation_that_closes_over_variables_is_refused() -> None:
    amount = 2.0
    with pytest.raises(InvalidArgument, match="dataclass"):
        make(augment=lambda x, generator: x + amount)


def test_a_task_can_be_cut() -> None:
    x, y = torch.randn(40, 3), torch.arange(40) % 2
    task = Classification(train=(x[:20], y[:20]), validation=(x[20:30], y[20:30]), test=(x[30:], y[30:]), learning_rate=0.1)
    fewer = task.cut(test=4)
    assert fewer.sizes() == {"train": 20, "validation": 10, "test": 4} and task.sizes()["test"] == 10
    assert fewer.fingerprint() == task.fingerprint()  # the test set is no part of it
    assert task.cut(train=10).fingerprint() != task.fingerprint()
    model = nn.Linear(3, 2)
    hits = model(x[30:34]).argmax(1) == y[30:34]
    assert fewer.measure(model, "test")["accuracy"] == hits.double().mean().item()
    for wrong in ({"test": 0}, {"test": 11}, {"dev": 1}):
        with pytest.raises(InvalidArgument, match="this task has"):
            task.cut(**wrong)


def test_examples_can_be_drawn_where_the_first_have_one_class() -> None:
    x, y = torch.arange(60.0)[:, None], torch.arange(60) // 30
    task = Classification(train=(x, y), validation=(x, y), test=(x, y), learning_rate=0.1)
    with pytest.warns(RanksearchWarning, match="the first 20 of train have 1 of its 2 classes: give seed=0"):
        assert set(task.cut(train=20)._splits["train"][1].tolist()) == {0}
    for seed in range(5):
        kept, labels = task.cut(train=50, test=7, seed=seed)._splits["train"]  # of 50 at least 20 are of either class
        assert len(set(kept.flatten().tolist())) == 50 and bool((kept.diff(dim=0) > 0).all()) and torch.equal(labels, kept.flatten() // 30)
    same, again, other = (task.cut(train=50, seed=seed).fingerprint() for seed in (3, 3, 4))
    assert same == again != other
    assert task.cut(train=60, seed=1).fingerprint() == task.fingerprint(), "all of them, in their order"


def test_a_task_can_be_judged_on_its_test_set() -> None:
    x, y = torch.randn(40, 3), torch.arange(40) % 2
    task = Classification(train=(x[:20], y[:20]), validation=(x[20:30], y[20:30]), test=(x[30:], y[30:]), learning_rate=0.1)
    other, model = task.judged_on_test(4), nn.Linear(3, 2)
    assert other.measure(model) == task.cut(test=4).measure(model, "test") != task.measure(model)
    assert other.fingerprint() != task.fingerprint()
    with pytest.raises(InvalidArgument, match="this task has"):
        Classification(train=(x, y), validation=(x, y), learning_rate=0.1).judged_on_test(4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32])
def test_types_that_others_hold_are_read_as_those(dtype: torch.dtype) -> None:
    values = (X * 10).round().to(dtype)
    wide = torch.int64 if dtype == torch.int32 else torch.float32
    task = make(train=(values[:24], Y[:24]), validation=(values[24:], Y[24:]))
    assert task.example().dtype == wide and torch.equal(task.example(), values[:1].to(wide))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_networks_get_inputs_in_their_own_type(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(X[0].numel(), 4)).to(dtype)
    task = make(train=(X[:24], Y[:24]), validation=(X[24:], Y[24:]))
    with torch.no_grad():
        logits = copy.deepcopy(model).double()(X[24:].double())
    assert task.measure(model)["loss"] == pytest.approx(F.cross_entropy(logits, Y[24:]).item(), rel=0.05)
    before = model[1].weight.detach().clone()
    task.fine_tune(model, epochs=1, seed=0)
    assert model[1].weight.dtype == dtype and not torch.equal(before, model[1].weight)
