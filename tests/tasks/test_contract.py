"""What every task type must do, over the table of task types."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from transformers.modeling_outputs import ImageClassifierOutput as Logits

from ranksearch.errors import InvalidArgument, InvalidModel
from ranksearch.sites import tensors_of
from ranksearch.tasks import TASKS, Agreement, Classification, FromLoss, LanguageModel, Metric, Task


def _classification() -> tuple[Task, nn.Module]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(96, 1, 4, 4, generator=generator)
    y = (x.mean((1, 2, 3)) > 0.5).long()
    task = Classification(train=(x[:64], y[:64]), validation=(x[64:80], y[64:80]), test=(x[80:], y[80:]), batch_size=10, learning_rate=0.05)
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, 2))
    return task, model


def _language() -> tuple[Task, nn.Module]:
    """Tokens of which each is one more than the last, but for a fifth of them."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.where(torch.rand(96, 12, generator=generator) < 0.2, torch.randint(0, 9, (96, 12), generator=generator), 1)
    tokens = steps.cumsum(1) % 9
    splits = {"train": tokens[:64], "validation": tokens[64:80], "test": tokens[80:]}
    task = LanguageModel(**splits, length=12, keywords=False, batch_size=10, learning_rate=0.05)
    return task, nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 16), nn.ReLU(inplace=True), nn.Dropout(0.1), nn.Linear(16, 9))


def _loaders() -> tuple[DataLoader, DataLoader, nn.Module]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(80, 6, generator=generator)
    data = TensorDataset(x, (x @ torch.arange(6.0))[:, None] / 10)
    loaders = DataLoader(data, batch_size=10, shuffle=True), DataLoader(data, batch_size=16)
    return *loaders, nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.1), nn.Linear(8, 1))


def _mean_absolute(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs - targets).abs().mean()


def _from_loss() -> tuple[Task, nn.Module]:
    train, validation, model = _loaders()
    return FromLoss(train, validation, F.mse_loss, {"error_size": (_mean_absolute, "min")}, learning_rate=0.02), model


def _agreement() -> tuple[Task, nn.Module]:
    *_, model = _loaders()
    inputs = [torch.rand(10, 6, generator=torch.Generator().manual_seed(k)) for k in range(8)]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        reference = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)).eval()
    return Agreement(inputs[:6], inputs[6:], reference, learning_rate=0.02), model


EXAMPLES: dict[type[Task], Callable[[], tuple[Task, nn.Module]]] = {
    Classification: _classification, LanguageModel: _language, FromLoss: _from_loss, Agreement: _agreement,
}  # fmt: skip


def test_every_task_type_has_an_example() -> None:
    assert set(EXAMPLES) == set(TASKS)


@pytest.fixture(params=TASKS, ids=lambda kind: kind.__name__)
def pair(request: pytest.FixtureRequest) -> tuple[Task, nn.Module]:
    torch.manual_seed(0)
    return EXAMPLES[request.param]()


def _state(model: nn.Module) -> list[torch.Tensor]:
    return [t.clone() for t in model.state_dict().values()]


def _equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_measure_reports_the_declared_metrics_and_leaves_the_model_as_it_was(pair: tuple[Task, nn.Module]) -> None:
    task, model = pair
    model.train()
    model[2].eval()
    before = _state(model)
    metrics = task.measure(model)
    assert list(metrics) == [m.name for m in task.metrics] and all(math.isfinite(v) for v in metrics.values())
    assert metrics == task.measure(model)
    assert model.training and not model[2].training
    assert _equal(before, _state(model))


def test_the_example_is_a_batch_of_one_that_the_model_takes(pair: tuple[Task, nn.Module]) -> None:
    task, model = pair
    assert len(model.eval()(task.example())) == 1


def test_fine_tuning_improves_the_loss_and_is_decided_by_the_seed(pair: tuple[Task, nn.Module]) -> None:
    task, model = pair
    models = [copy.deepcopy(model) for _ in range(3)]
    for number, tuned in enumerate(models):
        torch.manual_seed(number + 10)  # the global state must not matter
        task.fine_tune(tuned, epochs=20, seed=0 if number < 2 else 1)
    assert _equal(_state(models[0]), _state(models[1]))
    assert not _equal(_state(models[0]), _state(models[2]))
    assert task.measure(models[0])["loss"] < 0.8 * task.measure(model)["loss"]
    assert all(p.grad is None for p in models[0].parameters())


def test_fine_tuning_leaves_the_global_random_state_alone(pair: tuple[Task, nn.Module]) -> None:
    task, model = pair
    state = torch.get_rng_state()
    task.fine_tune(model, epochs=1, seed=3)
    assert torch.equal(state, torch.get_rng_state())


def test_no_epochs_change_nothing_and_fractions_are_allowed(pair: tuple[Task, nn.Module]) -> None:
    task, model = pair
    before = _state(model)
    task.fine_tune(model, epochs=0, seed=0)
    assert _equal(before, _state(model))
    task.fine_tune(model, epochs=0.4, seed=0)
    assert not _equal(before, _state(model))


@pytest.mark.parametrize("epochs", [-1.0, math.nan, math.inf])
def test_impossible_epochs_are_refused(pair: tuple[Task, nn.Module], epochs: float) -> None:
    with pytest.raises(InvalidArgument, match="epochs"):
        pair[0].fine_tune(pair[1], epochs=epochs, seed=0)


def test_calibration_gives_the_labelled_inputs_and_always_the_same(pair: tuple[Task, nn.Module]) -> None:
    task, _ = pair
    inputs, labelled = list(task.calibration(3)), list(task.labelled(3))
    assert len(inputs) == len(labelled) == 3
    assert all(torch.equal(a, b) for a, (b, _) in zip(inputs, labelled, strict=True))
    for x, y in labelled:  # what is handed out may be overwritten
        x.zero_(), y.zero_()
    assert all(torch.equal(a, b) for a, b in zip(inputs, task.calibration(3), strict=True))
    with pytest.raises(InvalidArgument, match="batches=0"):
        task.labelled(0)
    shown = list(task.normalization(3))
    assert [x.shape for x in shown] == [x.shape for x in inputs]
    assert all(torch.equal(a, b) for a, b in zip(shown, task.normalization(3), strict=True))
    with pytest.raises(InvalidArgument, match="batches=0"):
        task.normalization(0)


def test_the_loss_of_labelled_batches_has_a_gradient(pair: tuple[Task, nn.Module]) -> None:
    task, model = pair
    inputs, targets = next(iter(task.labelled(1)))
    loss = task.loss(model(inputs), targets)
    loss.backward()
    assert loss.shape == () and any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_sampled_targets_have_a_loss_and_the_frequencies_of_the_predictive_distribution(pair: tuple[Task, nn.Module]) -> None:
    task, model = pair
    if task.predictive is None:
        with pytest.raises(InvalidArgument, match="does not say how to sample targets"):
            task.sample_targets(model(next(iter(task.calibration(1)))), torch.Generator())
        return
    outputs = model.eval()(task.example()).detach()
    outputs = outputs.expand(20_000, *outputs.shape[1:])
    targets = task.sample_targets(outputs, torch.Generator().manual_seed(1))
    again = task.sample_targets(outputs, torch.Generator().manual_seed(1))
    drawn, twice = ([tensor for _, tensor in tensors_of(one)] for one in (targets, again))
    assert drawn and _equal(drawn, twice)
    assert math.isfinite(float(task.loss(outputs, targets)))
    if task.predictive == "categorical":  # five deviations at most
        found = torch.bincount(targets, minlength=outputs.shape[1]) / len(targets)
        torch.testing.assert_close(found, outputs[0].softmax(0), rtol=0, atol=0.02)


class Wrapped(nn.Module):
    """A network that answers as another one does, with something around it."""

    def __init__(self, network: nn.Module, wrap: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.network, self.wrap = network, wrap

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.wrap(self.network(inputs))


@pytest.mark.parametrize("wrap", [lambda x: Logits(logits=x), lambda x: (x, x.new_ones(2))], ids=["an object with logits", "a tuple"])
def test_logits_are_found_in_what_a_network_answers(pair: tuple[Task, nn.Module], wrap: Callable[[torch.Tensor], Any]) -> None:
    task, model = pair
    if isinstance(task, FromLoss) and not isinstance(task, Agreement):
        pytest.skip("the user's own loss gets outputs as they are")
    if isinstance(task, Agreement) and isinstance(wrap(torch.ones(1)), tuple):
        pytest.skip("all outputs count where they are numbers")
    assert task.measure(Wrapped(model, wrap)) == task.measure(model)
    inputs, targets = next(iter(task.labelled(1)))
    outputs = model.eval()(inputs).detach()
    other = outputs.roll(1, 0)
    assert torch.equal(task.loss(wrap(outputs), targets), task.loss(outputs, targets))
    apart = task.divergence(outputs, other)
    assert apart is not None and torch.equal(task.divergence(wrap(outputs), wrap(other)), apart)
    if task.predictive is not None:
        drawn, same = (task.sample_targets(one, torch.Generator().manual_seed(0)) for one in (outputs, wrap(outputs)))
        assert _equal(*([tensor for _, tensor in tensors_of(one)] for one in (drawn, same)))
    twins = [model, Wrapped(copy.deepcopy(model), wrap)]
    for twin in twins:
        task.fine_tune(twin, epochs=1, seed=0)
    assert _equal(*map(_state, twins))


def test_categorical_outputs_without_logits_have_no_divergence_and_are_named() -> None:
    task, model = _classification()
    outputs = model.eval()(task.example())
    for pair in ((outputs, {"scores": outputs}), ({"scores": outputs}, outputs)):
        with pytest.raises(InvalidModel, match=r"dict.*Classification.*logits"):
            task.divergence(*pair)
    with pytest.raises(InvalidModel, match=r"dict.*\(examples, 2\)"):
        task.sample_targets({"scores": outputs}, torch.Generator())


def test_a_pickled_task_is_the_same_task_even_in_read_only_memory(pair: tuple[Task, nn.Module], recwarn: pytest.WarningsRecorder) -> None:
    task, model = pair
    buffers: list[pickle.PickleBuffer] = []
    content = cloudpickle.dumps(task, protocol=5, buffer_callback=buffers.append)
    if not isinstance(task, FromLoss):  # whose data travel as the user's loaders do
        assert buffers, "the data must travel out of band, to be shared by processes"
    frozen = pickle.loads(content, buffers=[memoryview(bytes(b.raw())) for b in buffers])
    assert frozen.fingerprint() == task.fingerprint()
    assert frozen.measure(model) == task.measure(model)
    twin = copy.deepcopy(model)
    task.fine_tune(model, epochs=1, seed=0)
    frozen.fine_tune(twin, epochs=1, seed=0)
    assert _equal(_state(model), _state(twin))
    assert not recwarn.list


def test_the_fingerprint_is_lasting(pair: tuple[Task, nn.Module]) -> None:
    assert pair[0].fingerprint() == EXAMPLES[type(pair[0])]()[0].fingerprint()


@pytest.mark.parametrize(("name", "direction"), [("top 1", "max"), ("", "max"), ("accuracy", "up")])
def test_a_metric_that_makes_no_sense_is_refused(name: str, direction: str) -> None:
    with pytest.raises(InvalidArgument):
        Metric(name, direction)  # pyright: ignore[reportArgumentType]
