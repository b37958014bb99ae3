"""Full evaluations: the protocol, its reproducibility, and how a configuration's own fault is recorded."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace

import cloudpickle
import pytest
import torch
from torch import nn
from torch.nn import functional

from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import Evaluator, Fidelity, Request
from ranksearch.networks.batch_norm import recalibrate
from ranksearch.networks.distillation import distill
from ranksearch.networks.reconstruction import reconstruct
from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites
from ranksearch.space import DENSE, Configuration
from ranksearch.space.spectra import Spectra
from ranksearch.tasks import Classification


@dataclass(frozen=True)
class Brighter:
    """An augmentation that shifts every batch by a random amount around 3."""

    def __call__(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return x + 3 + torch.rand(len(x), 1, 1, 1, generator=generator)


def _evaluator(learning_rate: float = 0.05, augment: Brighter | None = None) -> Evaluator:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([4.0, 1.0, 0.25]).view(3, 1, 1)  # of channels: factors made for the weight alone are not the best for these inputs
    x = sizes * torch.randn(200, 3, 6, 6, generator=generator)
    y = (x.mean(dim=(1, 2, 3)) > 0).long()
    task = Classification(
        train=(x[:120], y[:120]), validation=(x[120:], y[120:]), batch_size=32, learning_rate=learning_rate, augment=augment
    )
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))
    return Evaluator(Spectra(net, find_sites(net, task.example())), task)


LOW = Configuration({"0": ("svd", (2,)), "4": ("svd", (1,))})


def test_the_same_request_gives_the_same_metrics_and_the_dense_model_is_untouched() -> None:
    evaluator = _evaluator()
    before = {k: v.clone() for k, v in evaluator.spectra.model.state_dict().items()}
    request = Request(LOW, Fidelity(epochs=2, recalibration=2), seed=3)
    first, again = evaluator(request), evaluator(request)
    assert first.status == "done" and first.metrics == again.metrics and set(first.metrics) == {"accuracy", "loss"}
    assert evaluator(Request(LOW, Fidelity(epochs=2, recalibration=2), seed=4)).metrics != first.metrics
    assert all(torch.equal(before[k], v) for k, v in evaluator.spectra.model.state_dict().items())


def test_batch_norm_is_estimated_on_what_training_shows() -> None:
    """Weights trained on augmented images meet other statistics on plain ones; second moments and measured losses are of
    plain ones all the same."""
    task = _evaluator(augment=Brighter()).task
    assert isinstance(task, Classification)
    mean = torch.cat(list(task.normalization(4))).mean() - torch.cat(list(task.calibration(4))).mean()
    assert 3.3 < float(mean) < 3.7
    evaluator = _evaluator(augment=Brighter())
    network = evaluator.network(Request(LOW, Fidelity(epochs=0, recalibration=4), 0))
    reference = evaluator.network(Request(LOW, Fidelity(epochs=0, recalibration=0), 0))
    recalibrate(reference, task.normalization(4))
    assert torch.equal(network[1].running_mean, reference[1].running_mean)  # type: ignore[index]
    recalibrate(reference, task.calibration(4))
    assert not torch.allclose(network[1].running_mean, reference[1].running_mean, atol=0.1)  # type: ignore[index]


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_reconstructed_network_that_is_not_trained_has_statistics_of_plain_images(epochs: float) -> None:
    """Reconstruction fits its norms to these; training shows others."""
    evaluator = _evaluator(augment=Brighter())
    network, reference = (
        evaluator.network(Request(LOW, Fidelity(epochs=epochs, recalibration=batches, reconstruction=2), 0)) for batches in (4, 0)
    )
    recalibrate(reference, (evaluator.task.normalization if epochs else evaluator.task.calibration)(4))
    assert torch.equal(network[1].running_mean, reference[1].running_mean)  # type: ignore[index]


@pytest.mark.parametrize("reconstruction", [0, 1])
def test_a_network_is_taught_after_reconstruction_by_batches_that_this_did_not_see(reconstruction: int) -> None:
    evaluator = _evaluator(augment=Brighter())
    taught = Request(LOW, Fidelity(epochs=0, recalibration=2, reconstruction=reconstruction, distill=5), 0)
    reference, task = evaluator.untrained(replace(taught, fidelity=replace(taught.fidelity, distill=0))), evaluator.task
    seen = [*task.calibration(4)]

    def lessons() -> Iterator[torch.Tensor]:
        return iter([*seen[reconstruction:], *seen[:reconstruction]])

    assert distill(reference, evaluator.spectra, LOW, lessons, steps=5, divergence=task.divergence)
    recalibrate(reference, task.calibration(2))
    network = evaluator.network(taught)
    for (name, ours), theirs in zip(network.state_dict().items(), reference.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    with torch.no_grad():
        dense, before = evaluator.spectra.model.eval(), evaluator.network(replace(taught, fidelity=replace(taught.fidelity, distill=0)))
        nearer, farther = (sum(float(task.divergence(one(x), dense(x))) for x in seen) for one in (network, before))  # type: ignore[arg-type]
    assert nearer < farther


def test_training_begins_with_the_network_that_was_taught() -> None:
    evaluator, tuned = _evaluator(), Fidelity(epochs=1, recalibration=2, distill=3)
    network = evaluator.network(Request(LOW, tuned, 0))
    reference = evaluator.untrained(Request(LOW, tuned, 0))
    assert not torch.equal(next(reference.parameters()), next(build(evaluator.spectra, LOW).parameters()))
    evaluator.task.fine_tune(reference, epochs=1, seed=0)
    recalibrate(reference, evaluator.task.normalization(2))
    assert all(torch.equal(value, reference.state_dict()[name]) for name, value in network.state_dict().items())


def test_the_dense_network_has_nothing_to_learn_of_itself() -> None:
    evaluator = _evaluator()
    plain, taught = (evaluator.network(Request(DENSE, Fidelity(epochs=0, recalibration=0, distill=steps), 0)) for steps in (0, 3))
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in taught.state_dict().items())


def test_a_network_that_memory_has_no_room_to_teach_is_a_failed_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ranksearch.networks.distillation.device_memory", lambda device: 1000)
    outcome = _evaluator()(Request(LOW, Fidelity(epochs=0, distill=3), 0))
    assert outcome.status == "failed" and "training it takes" in outcome.error and "use distill=0" in outcome.error


def test_recovery_that_gains_nothing_leaves_the_statistics_that_it_began_with() -> None:
    evaluator = _evaluator(learning_rate=1e30, augment=Brighter())
    recovered = evaluator.network(Request(LOW, Fidelity(epochs=1, recalibration=4, reconstruction=2, training="recovery"), 0))
    untrained = evaluator.network(Request(LOW, Fidelity(epochs=0, recalibration=4, reconstruction=2), 0))
    assert all(torch.equal(value, untrained.state_dict()[name]) for name, value in recovered.state_dict().items())


def test_fine_tuning_and_recalibration_happen() -> None:
    evaluator = _evaluator()
    networks = [
        evaluator.network(Request(LOW, Fidelity(epochs=epochs, recalibration=batches), 0)) for epochs, batches in ((0, 0), (0, 2), (5, 2))
    ]
    with torch.no_grad():  # on what they are trained on: nothing says how well so few examples generalize
        seen = [(x, y) for x, y in evaluator.task.labelled(3)]
        plain, recalibrated, tuned = (sum(float(functional.cross_entropy(one(x), y)) for x, y in seen) for one in networks)
    assert plain != recalibrated
    assert tuned < recalibrated
    dense = evaluator.network(Request(DENSE, Fidelity(epochs=0, recalibration=0), 0))
    assert all(torch.equal(v, evaluator.spectra.model.state_dict()[k]) for k, v in dense.state_dict().items())


def test_batch_norm_is_estimated_for_the_weights_that_fine_tuning_left() -> None:
    evaluator = _evaluator()
    network = evaluator.network(Request(LOW, Fidelity(epochs=3, recalibration=2), 0))
    reference = evaluator.network(Request(LOW, Fidelity(epochs=3, recalibration=0), 0))
    moved = reference[1].running_mean.clone()  # type: ignore[index]
    recalibrate(reference, evaluator.task.normalization(2))
    assert not torch.allclose(moved, reference[1].running_mean)  # type: ignore[index]
    for (name, ours), theirs in zip(network.state_dict().items(), reference.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_factors_are_fitted_before_anything_else() -> None:
    evaluator, tuned = _evaluator(), Fidelity(epochs=2, recalibration=2, reconstruction=2)
    network = evaluator.network(Request(LOW, tuned, 0))
    torch.manual_seed(0)
    reference = build(evaluator.spectra, LOW)
    reconstruct(reference, evaluator.spectra, LOW, evaluator.task.calibration(2))
    evaluator.task.fine_tune(reference, epochs=2, seed=0)
    recalibrate(reference, evaluator.task.normalization(2))
    for (name, ours), theirs in zip(network.state_dict().items(), reference.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert evaluator(Request(LOW, tuned, 0)).metrics == evaluator(Request(LOW, tuned, 0)).metrics
    assert evaluator(Request(LOW, tuned, 0)).metrics != evaluator(Request(LOW, Fidelity(epochs=2, recalibration=2), 0)).metrics


def _taught() -> list[Fidelity]:
    return [Fidelity(epochs=e, reconstruction=r, distill=80, training=t) for e in (0, 1) for r in (0, 4) for t in ("plain", "recovery")]


def test_keys_of_fidelities_come_back() -> None:
    for fidelity in (Fidelity(), Fidelity(0.5, 0, "quick"), Fidelity(epochs=0, reconstruction=4), *_taught()):
        assert Fidelity.parse(fidelity.key) == fidelity
    key = "full:epochs=0,recalibration=8,reconstruction=4"  # of stores whose networks have last factors fitted alone
    earlier = Fidelity.parse(key)
    assert earlier.key == key and earlier != Fidelity(epochs=0, reconstruction=4)
    with pytest.raises(InvalidArgument, match="earlier versions alone"):
        _evaluator().network(Request(LOW, earlier, 0))
    with pytest.raises(InvalidArgument, match="fit='other'"):
        Fidelity(fit="other")
    assert Fidelity(1, 8).key == "full:epochs=1,recalibration=8"  # what earlier studies hold
    assert _taught()[-1].key == "full:epochs=1,recalibration=8,refitted=4,distilled=80,training=recovery,temperature=3"
    with pytest.raises(InvalidArgument, match="reconstruction"):
        Fidelity.parse("full:epochs=1,recalibration=8,reconstruction=x")


def test_faults_of_a_configuration_are_outcomes() -> None:
    evaluator = _evaluator()
    outcome = evaluator(Request(Configuration({"9": ("svd", (1,))}), Fidelity(), 0))
    assert outcome.status == "failed" and "'9'" in str(outcome.error) and not outcome.metrics
    diverged = _evaluator(learning_rate=1e30)(Request(LOW, Fidelity(epochs=2), 0))
    assert diverged.status == "failed" and diverged.error


def test_evaluators_travel_without_their_caches() -> None:
    evaluator = _evaluator()
    request = Request(LOW, Fidelity(epochs=1, recalibration=1), 0)
    expected = evaluator(request)
    size = len(cloudpickle.dumps(evaluator))
    assert cloudpickle.loads(cloudpickle.dumps(evaluator))(request).metrics == expected.metrics
    assert size < 200_000  # 87 kB of data and weights, no spectra


def test_fidelities_of_supernets_name_what_they_were_measured_with() -> None:
    key = "supernet-joint-ab12cd34:epochs=0,recalibration=16"  # as stores have it
    found = Fidelity.parse(key)
    assert found == Fidelity(epochs=0, recalibration=16, kind="supernet", source="joint-ab12cd34") and found.key == key
    assert (found.kind, found.source, found.name) == ("supernet", "joint-ab12cd34", "supernet-joint-ab12cd34")
    own = Fidelity.parse("my-own:epochs=0.5,recalibration=0,refitted=2")
    assert own == Fidelity(0.5, 0, "my-own", 2) and own.source == ""
    for kind, source in (("supernet", ""), ("full", "joint-ab12cd34")):
        with pytest.raises(InvalidArgument, match="needs a source, other kinds have none"):
            Fidelity(kind=kind, source=source)


@pytest.mark.parametrize("bad", [{"epochs": -1}, {"epochs": float("nan")}, {"recalibration": -1}, {"reconstruction": -1}, {"distill": -1}])
def test_bad_fidelities_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument):
        Fidelity(**bad)  # type: ignore[arg-type]


def test_an_outcome_says_where_it_was_made() -> None:
    for configuration in (LOW, Configuration({"9": ("svd", (1,))})):
        found = _evaluator()(Request(configuration, Fidelity(epochs=0, recalibration=0), 0)).provenance
        assert found is not None and json.loads(json.dumps(found)) == found
        expected = {"host": socket.gethostname(), "device": "cpu", "torch": torch.__version__, "threads": torch.get_num_threads()}
        assert {name: found[name] for name in expected} == expected and found["processor"]
