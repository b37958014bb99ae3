"""Recovery: the task's own steps at the rates of factors, the dense network as a teacher, and never an end below the beginning."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import Evaluator, Fidelity, Request
from ranksearch.networks.batch_norm import recalibrate
from ranksearch.networks.recovery import Recovery, recover
from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites
from ranksearch.space import DENSE, Configuration
from ranksearch.space.spectra import Spectra
from ranksearch.tasks import Agreement, Classification, FromLoss

LOW = Configuration({"0": ("svd", (3,)), "4": ("svd", (1,))})


class Scripted(Classification):  # type: ignore[misc]
    """Measures what it is told to, one value after the other."""

    def __init__(self, values: list[float], **options: Any) -> None:
        super().__init__(**options)
        self.values, self.states = values, []

    def measure(self, model: nn.Module, split: Any = "validation") -> dict[str, float]:
        self.states.append(copy.deepcopy(model.state_dict()))
        return {"accuracy": self.values[len(self.states) - 1], "loss": 1.0}


def _data(learning_rate: float = 0.05, labels: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(160, 3, 6, 6, generator=generator)
    y = (x.mean(dim=(1, 2, 3)) > 0).long()
    shown = y[:96].roll(labels)
    return {"train": (x[:96], shown), "validation": (x[96:], y[96:]), "batch_size": 32, "learning_rate": learning_rate}


def _networks(task: Classification) -> tuple[Spectra, nn.Module]:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2)).eval()
    spectra = Spectra(dense, find_sites(dense, task.example()))
    return spectra, build(spectra, LOW).eval()


def _same(one: nn.Module, state: dict[str, Any]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in one.state_dict().items())


def test_without_teacher_and_factors_it_is_the_tasks_own_training() -> None:
    """The dense network has no factors; its last state is the best by the script."""
    task = Scripted([0.0, 0.1, 0.2], **_data())
    spectra, _ = _networks(task)
    mine, plain = copy.deepcopy(spectra.model), copy.deepcopy(spectra.model)
    found = recover(mine, spectra, DENSE, task, epochs=2, seed=3, distillation=0, recalibration=0)
    task.fine_tune(plain, epochs=2, seed=3)
    assert found.epochs == 2 and _same(mine, plain.state_dict())


def test_the_best_state_is_kept() -> None:
    task = Scripted([0.2, 0.7, 0.7, 0.4], **_data())
    spectra, short = _networks(task)
    found = recover(short, spectra, LOW, task, epochs=2.5)
    assert found.epochs == pytest.approx(2.5 / 3) and list(found.measured) == pytest.approx([0, 2.5 / 3, 5 / 3, 2.5])
    assert _same(short, task.states[1]) and not _same(short, task.states[3])


@pytest.mark.parametrize("learning_rate", [0.05, 1e30])
def test_it_never_ends_below_where_it_began(learning_rate: float) -> None:
    task = Scripted([0.5, 0.4, 0.3], **_data(learning_rate))
    spectra, short = _networks(task)
    before = copy.deepcopy(short)
    recalibrate(before, task.normalization(16))
    found = recover(short, spectra, LOW, task, epochs=2)
    assert found.epochs == 0 and _same(short, before.state_dict())
    assert found.diverged == (learning_rate > 1)


def test_ties_are_decided_by_the_next_metric_and_numbers_beat_none() -> None:
    class Lossy(Scripted):
        def measure(self, model: nn.Module, split: Any = "validation") -> dict[str, float]:
            return {"accuracy": 0.5, "loss": super().measure(model)["accuracy"]}

    for losses, best, diverged in (([0.4, 0.3, 0.5], 1, False), ([math.nan, 0.3, math.nan], 1, False), ([0.4, math.nan, 0.3], 0, True)):
        task = Lossy(losses, **_data())
        spectra, short = _networks(task)
        found = recover(short, spectra, LOW, task, epochs=2)
        assert (found.epochs, found.diverged, len(found.measured)) == (best, diverged, 2 if diverged else 3)


def test_a_network_whose_loss_is_no_number_is_not_the_best_whatever_it_guesses_right() -> None:
    """The last step can leave weights that are no numbers, whose answers are all the first class."""

    class Spoiled(Classification):  # type: ignore[misc]
        def measure(self, model: nn.Module, split: Any = "validation") -> dict[str, float]:
            return {"accuracy": next(accuracies), "loss": next(losses)}

    task = Spoiled(**_data())
    spectra, short = _networks(task)
    accuracies, losses = iter([0.5, 1.0]), iter([0.7, math.nan])
    assert (found := recover(short, spectra, LOW, task, epochs=1)).epochs == 0 and found.diverged
    accuracies, losses = iter([0.5, 0.4]), iter([math.nan, 0.7])
    assert (found := recover(short, spectra, LOW, task, epochs=1)).epochs == 1 and not found.diverged


def test_the_teachers_answers_need_no_labels() -> None:
    found = []
    for labels in (0, 17):
        task = Scripted([0.0, 1.0], **_data(labels=labels))
        spectra, short = _networks(task)
        recover(short, spectra, LOW, task, epochs=1, distillation=1)
        found.append(short.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    task = Scripted([0.0, 1.0], **_data())
    spectra, labelled = _networks(task)
    recover(labelled, spectra, LOW, task, epochs=1, distillation=0)
    assert not _same(labelled, found[0])


def test_it_comes_nearer_to_the_teacher() -> None:
    task = Scripted([0.0, 1.0], **_data(learning_rate=1e-3))
    spectra, short = _networks(task)
    x = task._splits["train"][0]

    def apart(network: nn.Module) -> float:
        with torch.no_grad():
            return float(task.divergence(network(x), spectra.model(x)))  # type: ignore[arg-type]

    before = copy.deepcopy(short)
    recalibrate(before, task.normalization(16))
    recover(short, spectra, LOW, task, epochs=1, distillation=1)
    assert apart(short) < apart(before)


def test_the_division_of_scale_among_factors_makes_no_difference() -> None:
    """With plain gradient descent the weight that factors compose goes the same way."""
    weights = []
    for scale in (1.0, 16.0):
        task = Scripted([0.0, 1.0], momentum=0.0, **_data())
        spectra, short = _networks(task)
        first, second = (parameter for name, parameter in short.named_parameters() if name.startswith("0.") and parameter.ndim == 4)
        with torch.no_grad():
            first.mul_(scale)
            second.div_(scale)
        recover(short, spectra, LOW, task, epochs=1)
        weights.append(torch.einsum("ork,rihw->oihw", second[..., 0], first))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-5)


def test_the_dense_network_stays_as_it_is() -> None:
    task = Classification(**_data())
    spectra, short = _networks(task)
    spectra.model.train().requires_grad_(False)
    before = copy.deepcopy(spectra.model.state_dict())
    recover(short, spectra, LOW, task, epochs=0.5)
    assert _same(spectra.model, before) and spectra.model.training and not short.training
    assert all(p.grad is None and not p.requires_grad for p in spectra.model.parameters())
    assert all(p.grad is None for p in short.parameters())


def test_tasks_without_divergence_train_by_their_loss() -> None:
    batches = [(torch.randn(8, 4, generator=torch.Generator().manual_seed(k)), torch.ones(8, 2)) for k in range(4)]
    task = FromLoss(batches, batches, nn.functional.mse_loss, learning_rate=0.05)
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    spectra, configuration = Spectra(dense, find_sites(dense, batches[0][0])), Configuration({"0": ("svd", (2,))})
    short = build(spectra, configuration).eval()
    before = task.measure(short)["loss"]
    found = recover(short, spectra, configuration, task, epochs=3)
    assert task.measure(short)["loss"] < before and found.epochs > 0


def test_no_epochs_change_nothing() -> None:
    task = Classification(**_data())
    spectra, short = _networks(task)
    before = copy.deepcopy(short.state_dict())
    assert recover(short, spectra, LOW, task, epochs=0).measured == {}
    assert _same(short, before)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_loss_is_of_labels_and_of_softened_answers(temperature: float) -> None:
    """(1 - d) cross entropy + d T^2 KL(dense / T || network / T), written out."""
    task = Classification(**_data())
    spectra, short = _networks(task)
    training = Recovery(short, spectra, LOW, task, epochs=1, seed=0, distillation=0.7, temperature=temperature)
    x, y = task._splits["train"]
    with torch.no_grad():
        logits, answers = short(x).double(), spectra.model(x).double()
    p, q = ((of / temperature).log_softmax(1) for of in (answers, logits))
    apart = temperature**2 * (p.exp() * (p - q)).sum(1).mean()
    wanted = 0.7 * apart + 0.3 * nn.functional.cross_entropy(logits, y)
    assert float(training.loss(x, y).detach()) == pytest.approx(float(wanted), rel=1e-4)


def test_answers_that_are_no_logits_are_not_softened() -> None:
    batches = [(torch.randn(8, 4, generator=torch.Generator().manual_seed(k)), torch.ones(8, 2)) for k in range(4)]
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    task = Agreement([x for x, _ in batches], [x for x, _ in batches], dense, learning_rate=0.05)
    spectra, configuration = Spectra(dense, find_sites(dense, batches[0][0])), Configuration({"0": ("svd", (2,))})
    found = [
        Recovery(build(spectra, configuration), spectra, configuration, task, epochs=1, seed=0, temperature=temperature, distillation=1)
        for temperature in (1.0, 5.0)
    ]
    inputs, targets = next(task.labelled(1))
    one, other = (float(training.loss(inputs, targets).detach()) for training in found)
    assert one == other > 0


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": -1}, {"epochs": 1, "distillation": 1.5}, {"epochs": 0, "temperature": 0}, {"epochs": 1, "recalibration": 2.5}],
)
def test_options_out_of_range(wrong: dict[str, Any]) -> None:
    task = Classification(**_data())
    spectra, short = _networks(task)
    with pytest.raises(InvalidArgument, match=next(reversed(wrong))):
        recover(short, spectra, LOW, task, **wrong)


def test_it_is_a_fidelity() -> None:
    task = Classification(**_data())
    spectra, _ = _networks(task)
    fidelity = Fidelity(epochs=1, recalibration=3, training="recovery")
    assert fidelity.key == "full:epochs=1,recalibration=3,training=recovery,temperature=3" and Fidelity.parse(fidelity.key) == fidelity
    assert Fidelity(epochs=0, training="recovery", temperature=5) == Fidelity(epochs=0)
    earlier = Fidelity.parse("full:epochs=1,recalibration=3,training=recovery")  # in stores of versions that knew no temperature
    assert earlier == replace(fidelity, temperature=1) and earlier.key == "full:epochs=1,recalibration=3,training=recovery"
    assert replace(Fidelity(epochs=1, recalibration=3), training="recovery") == fidelity
    for one in (fidelity, earlier):
        network = Evaluator(spectra, task).network(Request(LOW, one, seed=2))
        expected = build(spectra, LOW)
        recover(expected, spectra, LOW, task, epochs=1, seed=2, recalibration=3, temperature=one.temperature)
        assert _same(network, expected.state_dict())
    with pytest.raises(InvalidArgument, match="temperature=0"):
        Fidelity(training="recovery", temperature=0)
    with pytest.raises(InvalidArgument, match="training='hard'"):
        Fidelity(training="hard")
