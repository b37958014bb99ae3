"""Spaces in other metrics than the weights': the same factors everywhere, and stores that are never mixed."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ranksearch.agreement import report as proxy_report
from ranksearch.errors import InvalidArgument, StoreError
from ranksearch.evaluation import Evaluator, Fidelity, Request
from ranksearch.networks.surgery import build
from ranksearch.runners import LocalRunner, RayTuneRunner
from ranksearch.sites import find_sites
from ranksearch.space import DENSE, Configuration, mixture
from ranksearch.space.spectra import Spectra
from ranksearch.statistics import metric as space_metric
from ranksearch.study import Announced, Finished, Study
from ranksearch.tasks import Classification, Metric, Task

METRICS = ("activation", "fisher")


class Odd(nn.Module):
    """Two convolutions with batch norm between them, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Linear(128, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.norm(self.one(x)).relu()).relu().flatten(1))


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKSEARCH_HOME", str(tmp_path / "home"))


def make(metric: str = "fisher", model: nn.Module | None = None, **changes) -> Study:
    generator = torch.Generator().manual_seed(0)
    # inputs in a plane: the first layer can lose a third of its weights for nothing, which only data tell
    x = torch.randn(160, 3, 6, 6, generator=generator)
    x[:, 2] = x[:, 0] - x[:, 1]
    y = (x[:, 0].mean(dim=(1, 2)) > 0).long()
    task = Classification(train=(x[:96], y[:96]), validation=(x[96:], y[96:]), batch_size=32, learning_rate=0.05)
    torch.manual_seed(0)
    spec = mixture().replace(metric=metric, calibration=3, **changes)
    return Study("odd", model=(model or Odd()).eval(), task=task, space=spec, fidelity=Fidelity(epochs=0, recalibration=1))


def test_a_weight_study_has_the_fingerprint_of_task_and_network_alone() -> None:
    study = make("weight")
    digest = hashlib.sha256(study.task.fingerprint().encode())
    for key, tensor in sorted(study.model.state_dict().items()):
        digest.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    assert study.former_fingerprint == digest.hexdigest()[:16] and study.fingerprint == make("weight", max_options=3).fingerprint
    assert space_metric.settings("weight", 3, study.task) == ""
    assert "unit=T^2 nats" in space_metric.settings("fisher", 3, study.task)
    assert "unit" not in space_metric.settings("activation", 3, study.task)


def test_metrics_and_their_calibration_have_fingerprints_of_their_own() -> None:
    studies = [make(metric) for metric in ("weight", *METRICS)]
    more = make("fisher")
    more = more.replace(space=more.spec.replace(calibration=2))
    assert len({study.fingerprint for study in (*studies, more)}) == 4


def test_a_store_of_another_metric_is_refused(tmp_path: Path) -> None:
    first, second = (make(metric).replace(store=tmp_path / "s.db") for metric in ("weight", "fisher"))
    first.run(runner="local", trials=2)
    with pytest.raises(StoreError, match="metric of the space"):
        second.run(runner="local", trials=3)
    assert len(first.evaluations()) == 2


class Wrapped(Task):
    """Another task, passed on call by call; ``sampling=False`` forgets how targets are sampled."""

    def __init__(self, task: Task, *, sampling: bool = True) -> None:
        self.task, self.metrics = task, task.metrics
        self.predictive = task.predictive if sampling else None

    def fingerprint(self) -> str:
        return self.task.fingerprint()

    def example(self):
        return self.task.example()

    def labelled(self, batches: int):
        return self.task.labelled(batches)

    def loss(self, outputs, targets):
        return self.task.loss(outputs, targets)

    def sample_targets(self, outputs, generator):
        return self.task.sample_targets(outputs, generator)

    def fine_tune(self, model, *, epochs, seed):
        self.task.fine_tune(model, epochs=epochs, seed=seed)

    def measure(self, model, split="validation"):
        return self.task.measure(model, split)


def test_a_wrapped_task_has_the_fisher_of_the_task_or_a_fingerprint_that_says_which() -> None:
    study = make()
    same, forgetful = (
        Study("odd", model=study.model, task=Wrapped(study.task, sampling=sampling), space=study.spec, fidelity=study.fidelity)
        for sampling in (True, False)
    )
    assert same.fingerprint == study.fingerprint != forgetful.fingerprint
    ours, wrapped, empirical = (s.spectra.moments["one"].output for s in (study, same, forgetful))
    assert torch.equal(ours, wrapped)
    assert not torch.allclose(ours, empirical, rtol=0.1), "given labels and sampled ones cannot have the same gradients"
    said = [space_metric.settings("fisher", 3, s.task) for s in (study, same, forgetful)]
    assert said[0] == said[1] == "metric=fisher,calibration=3,shrinkage=diagonal,temperature=3,samples=2,seed=0,unit=T^2 nats"
    assert said[2] == "metric=fisher,calibration=3,shrinkage=diagonal,targets=given"


class Gaussian(Task):
    """Outputs are the means of normal distributions of variance 1; the given targets are ten of those away."""

    metrics = (Metric("loss", "min"),)
    predictive = "other"

    def fingerprint(self) -> str:
        return "gaussian"

    def example(self):
        return torch.zeros(1, 3)

    def labelled(self, batches: int):
        random = torch.Generator().manual_seed(0)
        for _ in range(batches):
            x = torch.randn(1000, 3, generator=random)
            yield x, x + 10

    def loss(self, outputs, targets):
        return (outputs - targets).square().sum(dim=1).mean() / 2

    def sample_targets(self, outputs, generator):
        return outputs.detach() + torch.randn(outputs.shape, generator=generator)

    def fine_tune(self, model, *, epochs, seed):
        raise AssertionError("not asked for")

    def measure(self, model, split="validation"):
        raise AssertionError("not asked for")


def test_targets_of_other_distributions_are_sampled_as_the_task_says() -> None:
    """The Fisher of means of unit normals is the identity; the gradients of the given targets, ten away, have squares of 100."""
    model = nn.Sequential(nn.Linear(3, 3))
    task, sites = Gaussian(), find_sites(model, torch.zeros(1, 3))
    found = space_metric.statistics(model, sites, task, calibration=4, gradients=True).output_moment("0", shrink=False)
    assert found is not None
    torch.testing.assert_close(found[0], torch.eye(3, dtype=torch.float64), rtol=0, atol=0.15)  # ten deviations of 8,000 draws
    assert space_metric.settings("fisher", 4, task) == "metric=fisher,calibration=4,shrinkage=diagonal,targets=sampled,samples=2,seed=0"


@pytest.mark.parametrize("metric", METRICS)
def test_errors_and_factors_are_in_the_metric(metric: str) -> None:
    study, plain = make(metric), make("weight")
    assert study.space.metric == metric and plain.space.metric == "weight"
    assert set(study.spectra.moments) == {"one", "two", "head"} and not plain.spectra.moments
    site = next(s for s in study.sites if s.name == "one")
    weight = study.model.get_submodule("one").weight.detach().double()
    moments = study.spectra.moments["one"]
    g = torch.eye(8, dtype=torch.float64) if moments.output is None else moments.output[0]
    a = moments.input
    assert a is not None
    profile, svd = study.spectra.profile(site, "svd"), study.spectra.decomposition("svd")
    assert profile is not None
    for i, rank in enumerate(profile.ranks):
        norms = []
        for spectra in (study.spectra, plain.spectra):
            residual = (weight - svd.compose(site, spectra.factors(site, "svd", tuple(rank)))).flatten(1)
            norms.append(float((g @ residual @ a[0] * residual).sum()) ** 0.5)
        assert norms[0] == pytest.approx(profile.frobenius[i] * profile.norm, rel=1e-6)
        assert norms[0] < norms[1] * (1 - 1e-6), "factors of the weight metric cannot be as good in another"


def test_the_weight_metric_touches_no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Classification, "labelled", lambda *_: pytest.fail("data were read"))
    assert make("weight").space.size > 1


def test_statistics_are_collected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = Odd.forward
    first = make()
    one = first.space
    files = sorted((space_metric.home() / "cache" / "statistics").rglob("*"))  # beside them what took long to factorize is kept
    monkeypatch.setattr(Odd, "forward", lambda self, x: calls.append(x.shape[0]) or forward(self, x))
    second = make()
    assert second.space.fingerprint == one.fingerprint
    assert [size for size in calls if size > 1] == [32], "beside the example one batch is run, which tells networks of equal weights apart"
    assert sorted((space_metric.home() / "cache" / "statistics").rglob("*")) == files and any(p.is_file() for p in files)


def test_workers_build_what_the_driver_builds() -> None:
    study = make()
    evaluator = Evaluator(study.spectra, study.task)
    twin: Evaluator = pickle.loads(pickle.dumps(evaluator))
    for row in study.space.sample(3, seed=0):
        configuration = study.space.configuration(row)
        ours, theirs = build(study.spectra, configuration), build(twin.spectra, configuration)
        for (name, a), (_, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
            assert torch.equal(a, b), name
    plain = Spectra(study.model, study.sites, study.spec.decompositions)
    one = Configuration({"one": ("svd", (2,))})
    pairs = zip(build(study.spectra, one).parameters(), build(plain, one).parameters(), strict=True)
    assert any(not torch.allclose(a, b) for a, b in pairs)


@pytest.mark.timeout(120)
def test_both_runners_measure_the_same(tmp_path: Path) -> None:
    study = make()
    requests = [Request(study.space.configuration(row), study.fidelity, 0, "test") for row in study.space.sample(3, seed=1)]
    found = []
    for runner in (LocalRunner(threads=1), RayTuneRunner(workers=1)):
        queue, outcomes = list(requests), []
        runner.run(Evaluator(study.spectra, study.task), lambda queue=queue: queue.pop(0) if queue else None, outcomes.append)
        assert [outcome.status for outcome in outcomes] == ["done"] * 3, [outcome.error for outcome in outcomes]
        found.append({outcome.request.configuration.id: outcome.metrics for outcome in outcomes})
    assert found[0].keys() == found[1].keys()
    for id, metrics in found[0].items():
        assert found[1][id] == pytest.approx(metrics, rel=1e-5)


def test_a_search_tells_that_it_collects_and_starts_from_the_estimated_loss(tmp_path: Path) -> None:
    study = make().replace(store=tmp_path / "s.db")
    events: list = []
    study.run(runner="local", trials=6, proxies=["energy"], on_event=events.append)
    stages = [event.text for event in events if isinstance(event, Announced)]
    assert stages[0].startswith("collecting statistics of 3 batches for the fisher metric: ") and "profiling" in stages[1]
    assert "GiB of moments of" in stages[0]
    origins = [event.outcome.request.origin for event in events if isinstance(event, Finished)]
    assert origins[0] == "dense" and origins[1].startswith("additive:energy:")
    layers = study.results.layers()
    for row in layers[layers["decomposition"] != "dense"].to_dict("records"):
        rank = tuple(int(r) for r in row["rank"].split("x"))
        site = next(s for s in study.sites if s.name == row["site"])
        assert row["description"] == study.spectra.decomposition(row["decomposition"]).describe(site, rank) != ""
    best = study.front()
    assert best["is_dense"].sum() == 1 and DENSE.id in set(best["id"])


def test_a_layer_that_sees_nothing_keeps_the_weight_metric() -> None:
    class Blind(Odd):
        def __init__(self) -> None:
            super().__init__()
            self.side = nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.two(self.norm(self.one(x) + self.side(x * 0)).relu()).relu().flatten(1))

    study = make(model=Blind())
    assert study.spectra.moments.keys() == {"one", "two", "head"} and study.space.metric == "fisher"
    assert proxy_report.without_moments(study.spectra).keys() == {"side"}


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="'hessian' is none of weight, activation, fisher"):
        mixture().replace(metric="hessian")
    with pytest.raises(InvalidArgument, match="calibration=0"):
        mixture().replace(calibration=0)


def test_the_mixture_goes_without_cp() -> None:
    names = {d.name for d in mixture().decompositions}
    assert names - {d.name for d in mixture(cp=False).decompositions} == {"cp"}
