"""Tasks from loaders and a loss, and agreement without labels: means by hand, streams, orders, and searches from end to end."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ranksearch.errors import InvalidArgument, InvalidModel
from ranksearch.evaluation import Fidelity
from ranksearch.samplers import Random
from ranksearch.sites import find_sites
from ranksearch.space import SpaceSpec
from ranksearch.space.specs import named
from ranksearch.statistics import metric
from ranksearch.study import Study
from ranksearch.tasks import Agreement, FromLoss


def data(count: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :3].relu()


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))


def worst(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().amax(dim=1).mean()


def make(**changes) -> FromLoss:
    train, validation = (DataLoader(TensorDataset(*data(seed=seed)), batch_size=7, shuffle=seed == 0) for seed in (0, 1))
    given = {"train_loader": train, "validation_loader": validation, "loss": F.mse_loss, "metrics": {"worst": (worst, "min")}} | changes
    return FromLoss(**given)


def test_measurements_are_means_over_examples() -> None:
    model, (x, y) = small(), data(seed=1)
    found = make().measure(model)
    with torch.no_grad():
        assert found == {
            "loss": pytest.approx(float(F.mse_loss(model(x), y)), rel=1e-5),
            "worst": pytest.approx(float(worst(model(x), y)), rel=1e-5),  # the last of 6 batches has 5 examples
        }
    assert [(m.name, m.direction) for m in make().metrics] == [("loss", "min"), ("worst", "min")]


def test_a_shuffled_loader_has_one_order_and_global_random_numbers_stay() -> None:
    task, state = make(), torch.get_rng_state()
    first, again = (torch.cat([x for x, _ in task.labelled(4)]) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, data()[0][: len(first)])
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(123)
    assert make().fingerprint() == task.fingerprint()


def test_the_fingerprint_knows_data_and_functions() -> None:
    kept = make().fingerprint()
    other = DataLoader(TensorDataset(*data(seed=5)), batch_size=7)
    others = [make(train_loader=other), make(validation_loader=other), make(loss=F.l1_loss), make(metrics={}), make(learning_rate=0.1)]
    assert len({kept, *(task.fingerprint() for task in others)}) == 6


class Stream(IterableDataset):
    """Ends never; says how much was read, and whether gradients were on."""

    def __init__(self) -> None:
        self.read, self.gradients = 0, set()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            self.read += 1
            self.gradients.add(torch.is_grad_enabled())
            x, y = data(5, seed=self.read)
            yield x, y


def test_streams_are_read_as_far_as_they_are_used() -> None:
    stream = Stream()
    task = make(train_loader=lambda: stream, learning_rate=0.1)
    assert len(list(task.calibration(3))) == 3 and stream.read == 3
    assert task.example().shape == (1, 6)
    with pytest.raises(InvalidArgument, match="train_loader has no length"):
        task.fine_tune(small(), epochs=1, seed=0)
    unlabelled = Agreement(lambda: (inputs for inputs, _targets in Stream()), [data()[0]], small())
    for _pair in unlabelled.labelled(2):
        assert torch.is_grad_enabled()
    assert stream.gradients == {True}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train_loader": iter([data()])}, "can be gone through once"),
        ({"validation_loader": 3}, "validation_loader=int"),
        ({"loss": None}, "give functions"),
        ({"metrics": {"worst": "mse"}}, "give functions"),
        ({"metrics": {"loss": worst}}, "other names than loss"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"metrics": {"worst case": worst}}, "worst case"),
    ],
)
def test_what_is_no_task_is_refused(changes: dict, told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        make(**changes)


def test_batches_that_are_no_pairs_and_tasks_that_cannot_train() -> None:
    with pytest.raises(InvalidArgument, match=r"must be a pair \(inputs, targets\)"):
        make(train_loader=[data()[0]]).example()
    with pytest.raises(InvalidArgument, match="without learning_rate="):
        make().fine_tune(small(), epochs=1, seed=0)
    with pytest.raises(InvalidArgument, match="gives no batch"):
        make(validation_loader=[]).measure(small())
    with pytest.raises(InvalidArgument, match="split='test'"):
        make().measure(small(), "test")


def test_an_interrupted_training_goes_on_as_it_would_have() -> None:
    task, model = make(learning_rate=0.05), small()
    whole = task.training(model, epochs=2, seed=3)
    expected = [whole.batch()[0] for _ in range(whole.steps)]
    first = task.training(model, epochs=2, seed=3)
    for _ in range(8):
        first.batch()
    second = task.training(model, epochs=2, seed=3)
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(second.batch()[0], wanted) for wanted in expected[8:])
    assert len(expected) == 12 and not torch.equal(expected[0], expected[6])


class Keywords(nn.Module):
    """Takes a mapping, as a trainer's collator makes it, and answers with one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small()

    def forward(self, values: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"logits": self.body(values) * mask[:, None]}


def masked(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs["logits"], targets["labels"])


def test_mappings_in_and_out_from_profile_to_front(tmp_path) -> None:
    x, y = data()
    pairs = [({"values": a, "mask": torch.ones(len(a))}, {"labels": (b > 0).float()}) for a, b in zip(x.split(8), y.split(8), strict=True)]
    task = FromLoss(pairs[:3], pairs[3:], masked)
    space = SpaceSpec(named("svd"), metric="fisher", calibration=2, max_options=5)
    study = Study(
        "labels", model=Keywords(), task=task, space=space, objectives=("loss", "params"), fidelity=Fidelity(epochs=0, recalibration=0),
        store=tmp_path / "s.db",
    )  # fmt: skip
    study.run(6, sampler=Random(), runner="local")
    assert len(study.evaluations()) == 6 and len(study.front()) >= 1 and study.space.metric == "fisher"


def test_agreement_is_with_what_the_reference_answers() -> None:
    model, inputs = small(), [data(seed=seed)[0] for seed in range(4)]
    task = Agreement(inputs[:2], inputs[2:], copy.deepcopy(model), axis=1)
    assert task.measure(model) == {"loss": pytest.approx(0, abs=1e-6), "agreement": 1.0}
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[2].weight += 0.3 * torch.randn(3, 12, generator=torch.Generator().manual_seed(1))
        p, q = (net(torch.cat(inputs[2:])).double().log_softmax(1) for net in (model, other))
    found = task.measure(other)
    assert found["loss"] == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-4)
    assert found["agreement"] == pytest.approx(float((p.argmax(1) == q.argmax(1)).double().mean()))
    plain = Agreement(inputs[:2], inputs[2:], model).measure(other)
    with torch.no_grad():
        y, z = model(inputs[2]), other(inputs[2])
        w, v = model(inputs[3]), other(inputs[3])
    wanted = ((y - z).square().mean() / y.square().mean() + (w - v).square().mean() / w.square().mean()) / 2
    assert plain == {"loss": pytest.approx(float(wanted), rel=1e-4)}
    with pytest.raises(InvalidModel, match="needs shape"):
        task.measure(nn.Linear(6, 4))


@pytest.mark.parametrize(("axis", "shape"), [(None, (4,)), (None, (3, 2)), (1, (4,)), (1, (3, 5)), (-1, (5, 3))])
def test_squared_gradients_of_drawn_targets_are_the_curvature_of_the_loss(axis: int | None, shape: tuple[int, ...]) -> None:
    """E[g g^T] over many draws against the Hessian of the loss at the reference's own answers, of one example. The mean of the draws
    is off by a few times its own deviation, which is estimated from them."""
    generator = torch.Generator().manual_seed(0)
    answer = torch.randn(1, *shape, generator=generator)
    task = Agreement([answer], [answer], nn.Identity(), axis=axis)
    loss = lambda flat: task.loss(flat.reshape(1, *shape), answer)  # noqa: E731
    curvature = torch.autograd.functional.hessian(loss, answer.flatten())
    output = answer.expand(3000, *shape).clone().requires_grad_()  # the loss is a mean over examples
    (gradients,) = torch.autograd.grad(len(output) * task.loss(output, task.sample_targets(output, generator)), output)
    found = gradients.flatten(1)[:, :, None] * gradients.flatten(1)[:, None]
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - curvature).abs() <= 6 * error + 1e-3 * curvature.abs().max()).all()
    assert 6 * error.max() < 0.5 * curvature.abs().max()  # enough draws to tell the curvature from half of it


class Split(nn.Module):
    """Two outputs of different sizes and scales."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return x[:, :1], {"rest": 10 * x[:, 1:], "classes": x.argmax(1)}


def test_of_several_outputs_all_numbers_count_alike() -> None:
    answer, other = data()[0], data(seed=1)[0]
    task = Agreement([answer], [answer], Split())
    parts = [float((a - b).square().mean() / b.square().mean()) for a, b in ((other[:, :1], answer[:, :1]), (other[:, 1:], answer[:, 1:]))]
    assert float(task.divergence(Split()(other), Split()(answer))) == pytest.approx(sum(parts) / 2, rel=1e-5)
    with pytest.raises(InvalidModel, match="needs"):
        task.divergence(other, Split()(answer))


@pytest.mark.parametrize("count", [1, 5])
def test_squared_gradients_of_drawn_targets_of_several_outputs_are_the_curvature_of_the_loss(count: int) -> None:
    """Also where an output has the examples behind something else, as the last state of a recurrent layer has."""

    class States(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x[:, :1], 10 * x[None, :, 1:]

    generator = torch.Generator().manual_seed(0)
    answer = torch.randn(count, 3, generator=generator)
    task = Agreement([answer], [answer], States())
    ((_, wanted),) = task.labelled(1)
    curvature = torch.autograd.functional.hessian(lambda x: task.loss(States()(x.reshape(count, 3)), wanted), answer.flatten())
    squares = []
    for _ in range(3000):
        output = answer.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(task.loss(States()(output), task.sample_targets(States()(output), generator)), output)
        squares.append(count * gradient.flatten().square())  # of the sum over examples: the loss is their mean
    found = torch.stack(squares)
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - curvature.diagonal()).abs() <= 6 * error + 1e-3 * curvature.abs().max()).all()
    assert (6 * error < 0.5 * curvature.diagonal()).all()


def test_drawn_targets_reach_statistics() -> None:
    model = small()
    task = Agreement([data()[0][:20], data()[0][20:]], [data(seed=1)[0]], copy.deepcopy(model))
    found = metric.statistics(model, find_sites(model, task.example()), task, calibration=2, gradients=True)
    moments = metric.moments(found, "fisher")
    assert len(moments) == 2
    for moment in moments.values():
        assert moment.output is not None and bool((moment.output.diagonal(dim1=1, dim2=2) > 0).any())
