"""One call makes a network smaller: the best of all rules' answers on batches that none of them has seen."""

from __future__ import annotations

import copy
import importlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compress_cases import divergence, network, task
from torch import nn

from ranksearch import LanguageModel, compress
from ranksearch.allocators import Additive, Allocation, Allocator, Problem
from ranksearch.compression import RULES, Compressed, Rule
from ranksearch.compression.judge import Judge
from ranksearch.errors import EmptySpace, InfeasibleBudget, InvalidArgument
from ranksearch.networks.batch_norm import recalibrate
from ranksearch.networks.export import read_manifest
from ranksearch.networks.reconstruction import batches_within, reconstruct, room
from ranksearch.networks.recovery import recover
from ranksearch.networks.surgery import build
from ranksearch.proxies import Frobenius
from ranksearch.search.events import Announced
from ranksearch.sites import Cost, find_sites
from ranksearch.space import mixture, svd_only
from ranksearch.space.spectra import Spectra
from ranksearch.statistics import metric


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Compressed:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANKSEARCH_HOME", str(tmp_path_factory.mktemp("home")))
        return compress(network(), task(), macs=0.6, space=mixture(cp=False), recalibration=3)


def test_the_answer_keeps_the_budget_and_is_the_best_of_all_rules(found: Compressed) -> None:
    assert [one.rule for one in found.tried] == [*(rule.name for rule in RULES), "refit"]
    assert found.cost["macs"] <= 0.6 * found.baseline["macs"]
    assert found.chosen.least == min(one.least for one in found.tried)
    assert found.chosen.least < float("inf")
    for one in found.tried:
        assert (one.configuration is None) == bool(one.note)
        assert one.cost is None or one.cost["macs"] <= 0.6 * found.baseline["macs"]


def test_the_loss_is_the_divergence_on_batches_that_nothing_else_sees(found: Compressed) -> None:
    """Every step by hand: 10 batches, of which the metric sees 8, reconstruction the first 4, a light one the first, which is measured on
    the next 4, and the last 2 judge."""
    model, data = network(), task()
    batches = [x for x, _ in data.labelled(10)]
    assert len(batches) == 10
    (tried,) = compress(model, data, macs=0.6, rules=["frobenius"], refits=0, space=mixture(cp=False)).tried
    lightly = next(one.light for one in found.tried if one.rule == "frobenius")
    assert tried.configuration is not None
    spectra = Spectra(model, find_sites(model, data.example()), mixture(cp=False).decompositions)
    seen = metric.moments(metric.statistics(model, spectra.sites, data, calibration=8, gradients=True), "fisher")
    for fitted, held_out, expected in ((0, 0.0, tried.loss), (4, 0.25, tried.reconstructed)):
        small = build(spectra, tried.configuration)
        if fitted:
            reconstruct(small, spectra, tried.configuration, batches[:fitted], held_out=held_out)
        recalibrate(small, data.calibration(16))
        assert divergence(model.eval(), small.eval(), batches[-2:]) == pytest.approx(expected, rel=1e-3, abs=1e-6)
    small = build(spectra, tried.configuration)
    reconstruct(small, spectra, tried.configuration, batches[:1], moments=seen, held_out=0.0)
    assert divergence(model.train(), small.train(), batches[1:5]) == pytest.approx(lightly, rel=1e-3, abs=1e-6)


def test_the_network_is_plain_and_has_its_statistics_re_estimated(found: Compressed) -> None:
    model, data = network(), task()
    small = found.model
    assert not small.training and not any(type(m).__module__.startswith("ranksearch") for m in small.modules())
    assert sum(p.numel() for p in small.parameters()) == found.cost["params"]
    norm = small.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
    before = norm.running_mean.clone()
    assert not torch.equal(before, model.get_buffer("1.running_mean"))
    recalibrate(small, data.calibration(3))
    assert torch.allclose(norm.running_mean, before, atol=1e-6)


def test_statistics_are_those_of_batches_as_they_are() -> None:
    """Training may show others; reconstruction fits norms to plain ones, and the judge takes these, too."""
    data = task(augment=lambda x, generator: x + 5)
    found = compress(network(), data, macs=0.6, rules=["fisher"], space=svd_only())
    assert divergence(network(), found.model, [x for x, _ in data.labelled(10)][-2:]) == pytest.approx(found.chosen.least, rel=1e-3)
    before = copy.deepcopy(found.model.get_submodule("1").state_dict())
    recalibrate(found.model, data.calibration(16))
    for name, value in found.model.get_submodule("1").state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-6, atol=1e-7)


def test_every_network_is_reconstructed_once_and_the_best_is_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fisher` twice under two names is one network; the best one is not made again."""
    made: list[str] = []

    def counted(small: nn.Module, spectra: Spectra, configuration: Any, *args: Any, **options: Any) -> Any:
        made.append(configuration.id)
        return reconstruct(small, spectra, configuration, *args, **options)

    monkeypatch.setattr(importlib.import_module("ranksearch.compression.portfolio"), "reconstruct", counted)
    fisher = next(rule for rule in RULES if rule.name == "fisher")
    rules = [fisher, replace(fisher, name="again"), "fisher_relative"]
    found = compress(network(), task(), macs=0.6, rules=rules, distill=0, space=svd_only())
    first, again, other = found.tried
    assert (again.configuration, again.loss, again.reconstructed) == (first.configuration, first.loss, first.reconstructed)
    each = 2 + 10  # held-out batches, and those of the statistics
    assert (first.passes, again.passes) == (each * (2 + (found.chosen is first)), 0)  # the best answer is judged once more
    assert made == [*dict.fromkeys(one.configuration.id for one in (first, other) if one.configuration), found.configuration.id]
    model, data = network(), task()
    seen = metric.statistics(model, find_sites(model, data.example()), data, calibration=8, gradients=True)
    spectra = Spectra(model, find_sites(model, data.example()), svd_only().decompositions, moments=metric.moments(seen, "fisher"))
    small = build(spectra, found.configuration)
    if found.reconstructed:
        reconstruct(small, spectra, found.configuration, data.calibration(8 if found.chosen.least == found.chosen.finished else 4))
    recalibrate(small, data.calibration(16))
    for name, value in found.model.state_dict().items():
        torch.testing.assert_close(value, small.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_the_model_is_left_as_it_was() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compress(model.train(), task(), params=0.7, rules=["fisher"], space=svd_only())
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_report_tells_rules_in_order(found: Compressed) -> None:
    frame = found.report()
    losses = ["loss", "light", "reconstructed", "finished", "distilled"]
    assert list(frame.columns) == ["rule", *losses, "params_rel", "macs_rel", "passes", "chosen", "note"]
    assert len(frame) == len(RULES) + 1 and frame["chosen"].tolist() == [True] + [False] * len(RULES)
    contenders, others = frame[frame["reconstructed"].notna()], frame[frame["reconstructed"].isna() & frame["light"].notna()]
    assert contenders[["loss", "reconstructed"]].min(axis=1).is_monotonic_increasing and others["light"].is_monotonic_increasing
    assert 0 < len(contenders) <= others.index.min(), "contenders come first"
    assert found.dense_loss == pytest.approx(0, abs=1e-6)


def test_it_is_told_in_a_line(found: Compressed) -> None:
    layers, params = len(found.configuration.choices), found.cost["params"] / found.baseline["params"]
    text = repr(found)
    assert text.startswith(f"Compressed({found.chosen.rule}: {layers} layers factorized, params {params:.3f}, macs ") and "\n" not in text
    assert f"loss {found.chosen.least:.4g} (dense " in text
    free = replace(found, baseline=Cost(params=found.baseline["params"], macs=0))
    assert "macs" not in repr(free) and "nan" not in repr(free), "there is no share of nothing"


def test_the_price_of_measuring_is_told(found: Compressed) -> None:
    """Four seen batches after a light reconstruction. Contenders take three for batch norm and two held-out ones, before and after
    reconstruction. LEMS measures the dense network, four sites alone and at most ten networks, on four batches; the model of the loss on
    as many at most 26 networks and eight answers of rules, of which it has three judged. A network that is several rules' answer is judged
    once, and the chosen one after the last fit and after distillation, too."""
    known: set[Any] = set()
    for one in found.tried:
        key = one.metric, one.configuration and one.configuration.id
        passes = one.passes - 5 * (one is found.chosen) * (1 + (one.distill > 0))
        if one.configuration is None:
            assert one.passes == 0
        elif one.rule == "refit":
            assert 4 * 4 < passes <= 3 * 10 + 4 * (26 + 8)
        elif one.rule == "lems":
            assert 4 * 5 < passes <= 4 + 4 * (5 + 10) + 10
        elif key in known:
            assert passes == 0
        else:
            assert passes == 4 + (0 if math.isnan(one.reconstructed) else 10)
        known.add(key)
    assert found.report()["passes"].sum() == sum(one.passes for one in found.tried)


def test_the_networks_that_lose_least_after_a_light_fit_are_reconstructed() -> None:
    given: dict[str, Any] = {"macs": 0.6, "refits": 0, "finish": 0, "space": svd_only()}
    answers = [one for one in compress(network(), task(), contenders=2, **given).tried if one.configuration]
    assert all(math.isfinite(one.light) and math.isnan(one.loss) == math.isnan(one.reconstructed) for one in answers)
    whole = {one.configuration.id: one.light for one in answers if one.configuration and math.isfinite(one.reconstructed)}
    others = [one.light for one in answers if math.isnan(one.reconstructed)]
    assert 1 <= len(whole) <= 2 and others and max(whole.values()) <= min(others)
    every = compress(network(), task(), contenders=len(RULES), **given).tried
    for one, alone in zip(every, compress(network(), task(), contenders=2, **given).tried, strict=True):
        assert math.isnan(one.light) and math.isfinite(one.reconstructed) == (one.configuration is not None)
        assert math.isnan(alone.reconstructed) or alone.reconstructed == pytest.approx(one.reconstructed, rel=1e-4)
    none = compress(network(), task(), contenders=2, reconstruction=0, **given).tried
    assert all(math.isnan(one.light) and math.isnan(one.reconstructed) for one in none)


def test_the_price_is_half_where_nothing_is_reconstructed() -> None:
    given: dict[str, Any] = {"rules": ["uniform"], "reconstruction": 0, "distill": 0, "recalibration": 3, "space": svd_only()}
    (one,) = compress(network(), task(), params=0.5, **given).tried
    assert one.passes == 2 + 3 and math.isfinite(one.loss) and math.isnan(one.reconstructed)


def test_a_model_of_the_loss_is_an_answer_beside_the_rules() -> None:
    """Its network has factors for the Fisher metric; it is left out where rules are named or it is not asked for."""
    cheap = compress(network(), task(), params=0.5, rules=["uniform", "fisher"], space=svd_only())
    assert [one.rule for one in cheap.tried] == ["uniform", "fisher"]
    whole = compress(network(), task(), params=0.5, rules=["uniform", "fisher"], refits=2, space=svd_only())
    refit = whole.tried[-1]
    assert (refit.rule, refit.metric) == ("refit", "fisher") and math.isfinite(refit.least)
    assert refit.cost is not None and refit.cost["params"] <= 0.5 * whole.baseline["params"]
    compared = [min(one.chosen.loss, one.chosen.reconstructed) for one in (whole, cheap)]  # the best alone is fitted to more batches
    assert compared[0] <= compared[1] * (1 + 1e-5)
    none = compress(network(), task(), params=0.5, refits=0, reconstruction=0, space=svd_only())
    assert "refit" not in [one.rule for one in none.tried]


def test_where_no_layer_matters_a_model_is_fitted_to_nothing() -> None:
    """The answers of this network do not depend on the layers that are factorized: every loss is 0."""
    model = network()
    with torch.no_grad():
        model.get_parameter("8.weight").zero_()
    found = compress(model, task(), params=0.7, rules=["fisher"], refits=1, space=svd_only().replace(exclude="8"))
    assert [one.least for one in found.tried] == pytest.approx([0, 0], abs=1e-6)


class Worst(Allocator):
    """The cheapest option of every layer: within any budget that can be met."""

    name = "worst"

    def allocate(self, problem: Problem) -> Allocation:
        indices = np.array([int(ladder.costs["macs"].argmin()) for ladder in problem.space.ladders])
        return Allocation(indices, 0.0, problem.space.cost(indices), float("nan"))


def test_a_bad_rule_does_no_harm_and_ones_own_take_part() -> None:
    worst = Rule("worst", "weight", Frobenius(), lambda spectra: Worst(), "a test")
    alone = compress(network(), task(), macs=0.6, rules=[worst], space=svd_only())
    assert alone.chosen.rule == "worst"
    both = compress(network(), task(), macs=0.6, rules=[worst, "frobenius"], space=svd_only())
    assert both.chosen.least == min(one.least for one in both.tried) <= alone.chosen.least


class Never(Worst):
    """Has no answer."""

    def allocate(self, problem: Problem) -> Allocation:
        raise InfeasibleBudget("never")


def test_an_answer_is_handed_out_where_every_network_is_infinitely_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Judge, "as_given", lambda self, network: math.inf)
    rules = [Rule("never", "weight", Frobenius(), lambda spectra: Never(), "a test"), "frobenius"]
    found = compress(network(), task(), macs=0.6, rules=rules, space=svd_only())
    assert found.tried[0].configuration is None and found.chosen.rule == "frobenius"
    assert found.configuration == found.chosen.configuration


def test_reconstruction_is_left_out_where_it_measures_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(small: nn.Module, *_: Any, **__: Any) -> None:
        with torch.no_grad():
            for parameter in small.parameters():
                parameter.mul_(-3)

    monkeypatch.setattr(importlib.import_module("ranksearch.compression.portfolio"), "reconstruct", spoil)
    found = compress(network(), task(), macs=0.7, rules=["frobenius"], distill=0, space=svd_only())
    assert found.chosen.reconstructed > found.chosen.loss and not found.reconstructed
    spectra = Spectra(network(), find_sites(network(), task().example()), svd_only().decompositions)
    plain = build(spectra, found.configuration)
    x = torch.randn(4, 1, 6, 6)
    recalibrate(plain, task().calibration(16))
    assert torch.allclose(found.model(x), plain.eval()(x), atol=1e-5)


@pytest.mark.parametrize("better", [True, False])
def test_the_best_answer_is_fitted_to_more_batches_and_kept_so_where_that_measures_better(
    better: bool, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    fitted: list[int] = []
    wrong, module = 30 * torch.arange(3), importlib.import_module("ranksearch.compression.portfolio")

    @torch.no_grad()
    def spoiled(*given: Any) -> nn.Module:
        small = build(*given)
        small.get_parameter("8.bias").add_(wrong)
        return small

    @torch.no_grad()
    def mend(small: nn.Module, spectra: Spectra, configuration: Any, batches: Any, **options: Any) -> None:
        fitted.append(len(batches.batches))
        assert options["thorough"] == (fitted[-1] > 4)
        if (fitted[-1] == 6) == better:
            small.get_parameter("8.bias").sub_(wrong)

    monkeypatch.setattr(module, "build", spoiled)
    monkeypatch.setattr(module, "reconstruct", mend)
    given: dict[str, Any] = {"macs": 0.5, "rules": ["frobenius", "uniform"], "distill": 0, "space": svd_only().replace(exclude="8")}
    found = compress(network(), task(), finish=6, **given)
    one = found.chosen
    assert fitted == [4, 4, 6] and (one.least == one.finished) == better and (one.finished < one.reconstructed) == better
    assert [math.isnan(other.finished) for other in found.tried].count(False) == 1 and found.report()["finished"].notna().sum() == 1
    assert divergence(network(), found.model, [x for x, _ in task().labelled(10)][-2:]) == pytest.approx(one.least, rel=1e-3, abs=1e-7)
    for finish in (0, 4):
        fitted.clear()
        assert math.isnan(compress(network(), task(), finish=finish, **given).chosen.finished) and fitted == [4, 4]
    fitted.clear()
    compress(network(), task(), finish=99, **given)
    assert fitted[-1] == 8, "two of ten batches are held out"


def test_no_more_batches_than_memory_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eighth of the memory has room for four times what the largest layer takes and gives: 8 channels of 6 x 6, then of 4 x 4."""
    batch, layers = 16, ["0", "3", "8"]
    largest = 4 * batch * (8 * 36 + 8 * 16)
    for wanted in (1, 3, 5):
        monkeypatch.setattr(room, "device_memory", lambda device, wanted=wanted: 8 * 4 * largest * (wanted + 0.5))
        assert batches_within(network(), layers, torch.zeros(batch, 1, 6, 6), 5) == wanted
    monkeypatch.setattr(room, "device_memory", lambda device: 1.0)
    assert batches_within(network(), layers, torch.zeros(batch, 1, 6, 6), 5) == 1
    found = compress(network(), task(), macs=0.7, rules=["frobenius"], space=svd_only())
    assert math.isnan(found.chosen.finished)


def test_polishing_keeps_the_budget_and_is_never_chosen_where_it_is_worse() -> None:
    found = compress(network(), task(), params=0.5, rules=["uniform"], polished=30, space=svd_only())
    polished = found.tried[-1]
    assert [one.rule for one in found.tried] == ["uniform", "polish"]
    assert polished.cost is not None and polished.cost["params"] <= 0.5 * found.baseline["params"]
    assert found.chosen.least == min(one.least for one in found.tried)


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_little_data_is_parted_too(batches: int) -> None:
    found = compress(network(), task(batches), macs=0.7, rules=["fisher"], space=svd_only())
    assert found.chosen.least < float("inf")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no budget"),
        ({"mac": 0.5}, "mac=0.5 is neither an option nor a cost; costs are params, macs"),
        ({"macs": -0.5}, "macs=-0.5"),
        ({"macs": float("nan")}, "macs=nan"),
        ({"macs": "0.5"}, "macs='0.5'"),
        ({"macs": 0.5, "rules": ["fishr"]}, "fishr"),
        ({"macs": 0.5, "rules": "fisher"}, "in a list"),
        ({"macs": 0.5, "rules": []}, "in a list"),
        ({"macs": 0.5, "rules": ["fisher", "fisher"]}, "must differ"),
        ({"macs": 0.5, "reconstruction": -1}, "reconstruction=-1"),
        ({"macs": 0.5, "recalibration": 0}, "recalibration=0"),
        ({"macs": 0.5, "polished": 1.5}, "polished=1.5"),
        ({"macs": 0.5, "refits": -1}, "refits=-1"),
        ({"macs": 0.5, "epochs": -1}, "epochs=-1"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = task()
    monkeypatch.setattr(type(data), "labelled", lambda *_: pytest.fail("work has begun"))
    with pytest.raises(InvalidArgument, match=message):
        compress(network(), data, **arguments)


def test_a_task_that_cannot_train_says_so_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("ranksearch.compression.compress"), "Portfolio", lambda *_: pytest.fail("work has begun"))
    with pytest.raises(InvalidArgument, match="learning_rate"):
        compress(network(), [x for x, _ in task().labelled(4)], macs=0.6, epochs=1)


def test_training_goes_on_from_the_best_answer_and_is_in_the_manifest(tmp_path: Path) -> None:
    model, data = network(), task()
    options: dict[str, Any] = {"rules": ["frobenius"], "space": svd_only(), "macs": 0.6}
    alone, trained = compress(model, data, **options), compress(model, data, epochs=1, **options)
    assert alone.recovered is None and trained.configuration == alone.configuration
    expected, spectra = copy.deepcopy(alone.model), Spectra(model, find_sites(model, data.example()))
    assert recover(expected, spectra, alone.configuration, data, epochs=1) == trained.recovered
    assert all(torch.equal(value, trained.model.state_dict()[name]) for name, value in expected.state_dict().items())
    folder = trained.save(tmp_path / "small", example=data.example())
    assert read_manifest(folder)["epochs"] == trained.recovered.epochs  # type: ignore[union-attr]


def test_a_budget_below_the_least_is_said() -> None:
    with pytest.raises(InfeasibleBudget, match="the smallest this space reaches"):
        compress(network(), task(), macs=0.001, rules=["frobenius", "uniform"], space=svd_only())


def test_nothing_to_factorize_is_said() -> None:
    with pytest.raises(EmptySpace):
        compress(network(), task(), macs=0.5, rules=["frobenius"], space=svd_only().replace(exclude="*"))


def test_batches_of_inputs_are_enough() -> None:
    model, batches = network(), [x for x, _ in task().labelled(10)]
    found = compress(model, batches, macs=0.6, rules=["fisher", "frobenius", "uniform"], space=svd_only())
    assert found.cost["macs"] <= 0.6 * found.baseline["macs"] and found.dense_loss == pytest.approx(0, abs=1e-9)
    assert found.chosen.least == min(one.least for one in found.tried) < float("inf")
    assert all(one.loss > 0 for one in found.tried)
    again = compress(model, lambda: iter(batches), macs=0.6, rules=["frobenius"], space=svd_only())
    assert again.chosen.loss == pytest.approx(next(one.loss for one in found.tried if one.rule == "frobenius"), rel=1e-5)


def test_language_models_are_judged_by_the_distribution_of_the_next_token() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 20)).eval()
    tokens = torch.randint(20, (16, 6), generator=torch.Generator().manual_seed(0))
    data = LanguageModel(train=tokens, validation=tokens, keywords=False, batch_size=2)
    found = compress(model, data, params=0.8, rules=["frobenius"], space=svd_only())
    held_out = torch.cat([x for x, _ in data.labelled(8)][-2:])
    spectra = Spectra(model, find_sites(model, data.example()), svd_only().decompositions)
    with torch.no_grad():
        p, q = (net(held_out).double().log_softmax(-1) for net in (model, build(spectra, found.configuration)))
    assert found.dense_loss == pytest.approx(0, abs=1e-6)
    assert found.chosen.loss == pytest.approx(float((p.exp() * (p - q)).sum(-1)[:, :-1].mean()), rel=1e-3)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no batch"),
        (torch.randn(4, 1, 6, 6), "x.split"),
        (np.zeros((4, 1, 6, 6)), "x.split"),
        ([(torch.randn(4, 1, 6, 6), torch.zeros(4))], "inputs alone"),
    ],
)
def test_what_are_no_batches_is_refused(batches: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        compress(network(), batches, macs=0.6)


def test_progress_is_told() -> None:
    told: list[Announced] = []
    compress(network(), task(), macs=0.6, rules=["frobenius"], space=svd_only(), on_event=told.append)
    stages = ["comparing the batch norms' statistics with re-estimated ones", "profiling 4 sites in the weight metric"]
    stages += ["measuring the answer of frobenius", "fitting the answer of frobenius to more batches"]
    stages += ["teaching it the dense network's answers to 80 batches"]
    assert [event.text for event in told] == stages


def test_names_of_rules_are_distinct_and_exact_ones_are_exact() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    exact = [rule.name for rule in RULES if isinstance(rule.allocator(None), Additive)]  # type: ignore[arg-type]
    assert exact == ["fisher", "fisher_relative", "activation", "lems", "frobenius", "energy_weight"]


def test_bits_are_chosen_with_types_and_ranks_within_a_budget_of_bytes() -> None:
    small = compress(network(), task(), bytes=0.2, bits=(8, 4), space=svd_only(), rules=["fisher"], reconstruction=2, recalibration=2)
    held = sum(t.numel() * t.itemsize for t in small.model.state_dict().values())
    assert held == small.cost["bytes"] <= 0.2 * small.baseline["bytes"]
    assert any("@int" in kind for _, kind, _ in small.configuration.choices)
    with pytest.raises(InvalidArgument, match="bits"):
        compress(network(), task(), bytes=0.2, bits=(3,))
