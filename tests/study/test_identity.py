"""A study goes on with the network that it began with, and with no other; whatever computes the same is the same network."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ranksearch.errors import InvalidModel, RanksearchWarning, StoreError
from ranksearch.evaluation import Fidelity
from ranksearch.space import svd_only
from ranksearch.statistics.metric import home
from ranksearch.store import Store
from ranksearch.study import Study, identity
from ranksearch.tasks import Classification


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKSEARCH_HOME", str(tmp_path / "home"))


@dataclass
class Config:
    act: str = "relu"
    rate: float = 0.1


class Net(nn.Module):
    """A network of which everything but the weights can be given."""

    def __init__(self, act: Callable = torch.relu, *, stride: int = 1, rate: float = 0.1, eps: float = 1e-5, **attributes: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm = nn.Conv2d(3, 8, 3, stride=stride, padding=1), nn.BatchNorm2d(8, eps=eps)
        self.b, self.drop, self.act = nn.Linear(8, 3), nn.Dropout(rate), act
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.drop(self.act(self.norm(self.a(x))).mean(dim=(2, 3))))


def data(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 6, 6, generator=generator), torch.randint(0, 3, (count,), generator=generator)


def make(model: nn.Module, **changes: Any) -> Study:
    task = Classification(train=data(32, 0), validation=data(30, 1), batch_size=16, learning_rate=0.05)
    given = {"space": svd_only(), "fidelity": Fidelity(epochs=0, recalibration=0)} | changes
    return Study("one", model=model.eval(), task=task, **given)


def run(study: Study, trials: int) -> None:
    study.run(trials, runner="local")


def edited(factor: float) -> nn.Module:
    """The same class by name, and the same attributes, with another forward pass."""

    class Edited(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * factor

    return Edited()


OTHERS = {
    "activation": (Net, lambda: Net(torch.sin)),
    "activation in a lambda": (lambda: Net(lambda x: x.relu()), lambda: Net(lambda x: x.sin())),
    "stride": (Net, lambda: Net(stride=2)),
    "what is trained with": (Net, lambda: Net(rate=0.5)),
    "a small number": (Net, lambda: Net(eps=1e-3)),
    "forward": (lambda: edited(1.0), lambda: edited(1.5)),
    "configuration": (lambda: Net(config=Config()), lambda: Net(config=Config("gelu"))),
    "number in a configuration": (lambda: Net(config={"layers": [1, {"rate": 0.1}]}), lambda: Net(config={"layers": [1, {"rate": 0.2}]})),
    "frozen": (Net, lambda: Net().requires_grad_(False)),
    "class": (Net, lambda: edited(1.0)),
}


@pytest.mark.parametrize("case", OTHERS)
def test_the_same_weights_in_another_network_are_refused(case: str) -> None:
    one, two = (build() for build in OTHERS[case])
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    run(make(one), 2)
    before = make(one).evaluations()
    for trials in (2, 4):  # also where there would be nothing to do
        with pytest.raises(StoreError, match="use another --store"):
            run(make(two), trials)
    assert make(one).evaluations().equals(before)
    run(make(two, store=home() / "two.db"), 2)
    run(make(OTHERS[case][0]()), 3)
    assert len(make(one).evaluations()) == 3


def test_the_message_names_what_is_other() -> None:
    run(make(Net()), 1)
    assert make(Net(torch.sin)).fingerprint != make(Net()).fingerprint
    with pytest.raises(StoreError, match="class or settings of 'drop' differs"):
        run(make(Net(rate=0.5)), 2)
    with pytest.raises(StoreError, match="class or settings of 'a'"):
        make(Net(stride=2)).evaluations()
    other = Net()
    with torch.no_grad():
        other.b.weight.mul_(2)
    with pytest.raises(StoreError, match="now has fingerprint"):
        run(make(other), 2)


class Counting(Net):
    """Remembers what happened to it."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.calls, self.ready, self.last = 0, False, None
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls, self.ready, self.last = self.calls + 1, True, {"mean": float(x.mean())}
        self.seen += 1
        return super().forward(x)


def used(model: nn.Module) -> nn.Module:
    model.eval()(data(4, 7)[0])
    return model


SAME = {
    "memory format": (Net, lambda: Net().to(memory_format=torch.channels_last)),
    "training mode": (Net, lambda: Net().train()),
    "used": (Counting, lambda: used(used(Counting()))),
    "elsewhere": (lambda: Net(name_or_path="/a", device="cpu"), lambda: Net(name_or_path="/b/c", device=torch.device("cpu"))),
    "last bit": (lambda: Net(scale=48**-0.5), lambda: Net(scale=48**-0.5 * (1 + 3e-16))),
    "last bit of a fraction of two": (lambda: Net(scale=2.0**-10), lambda: Net(scale=2.0**-10 * (1 + 3e-16))),
    "rounding": (lambda: edited(1.0), lambda: edited(1.0 + 1e-4)),
    "compiled": (Net, lambda: torch.compile(Net())),
}


@pytest.mark.parametrize("case", SAME)
def test_what_computes_the_same_goes_on(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (build() for build in SAME[case])
    first = make(one)
    run(first, 2)
    if case != "compiled":
        used(one)
    run(first, 3)
    second = make(two)
    assert second.fingerprint == first.fingerprint
    run(second, 4)
    assert len(make(one).evaluations()) == 4


def test_another_thread_count_goes_on() -> None:
    threads = torch.get_num_threads()
    try:
        for trials, count in enumerate((1, 2, 3), start=1):
            torch.set_num_threads(count)
            run(make(Net()), trials)
    finally:
        torch.set_num_threads(threads)
    assert len(make(Net()).evaluations()) == 3


class Own(Net):
    """Draws from a generator of its own, so that no two passes agree."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + torch.rand(3, generator=self.generator)


def test_outputs_that_vary_by_themselves_are_not_compared() -> None:
    model = Own()
    study = make(model)
    run(study, 2)
    assert study.network.varies and study.outputs is None
    used(model)
    run(study, 3)
    run(make(used(Own())), 4)


def scaled(model: nn.Module) -> None:
    with torch.no_grad():
        model.get_parameter("b.weight").mul_(-1)


def statistics_moved(model: nn.Module) -> None:
    model.train()(data(4, 7)[0])
    model.eval()


def bound(model: Any) -> None:
    model.forward = types.MethodType(lambda self, x: Net.forward(self, x) * 2, model)


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "weights": (scaled, "weights or buffers"),
    "statistics of batch norm": (statistics_moved, "weights or buffers"),
    "an attribute": (lambda model: setattr(model.drop, "p", 0.9), "class or settings of 'drop'"),
    "activation": (lambda model: setattr(model, "act", torch.tanh), "class or settings of the network itself"),
    "lambda": (lambda model: setattr(model, "act", lambda x: -x), "its outputs|settings of the network itself"),
    "forward": (bound, "its outputs|settings of the network itself"),
    "another layer": (lambda model: setattr(model, "act", nn.ReLU()), "'act'"),
    "frozen": (lambda model: model.b.requires_grad_(False), "weights or buffers"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("before", ["run", "profiled"])
def test_a_network_that_is_changed_in_place_is_refused(change: str, before: str) -> None:
    """What was evaluated, and what was computed of its layers, is of the network as it was."""
    study = make(Net(lambda x: x.relu()) if change == "lambda" else Net())
    if before == "run":
        run(study, 2)
    else:
        assert study.space.size > 1 and study.outputs
    stored = len(study.evaluations()) if before == "run" else 0
    alter, told = CHANGES[change]
    alter(study.model)
    with pytest.raises(InvalidModel, match=rf"({told}).* changed in place"):
        run(study, 4)
    if before == "run":
        with pytest.raises(InvalidModel, match="changed in place"):
            study.build("44136fa355b3")
    with pytest.raises(InvalidModel, match="changed in place"):
        study.train_supernet("plain", epochs=1)
    own = make(study.model, store=home() / "own.db")
    run(own, 2)
    assert stored == 0 or len(study.evaluations()) == stored


def test_what_is_put_back_goes_on() -> None:
    study = make(Net())
    run(study, 2)
    scaled(study.model)
    with pytest.raises(InvalidModel):
        run(study, 3)
    scaled(study.model)
    run(study, 3)
    assert len(study.evaluations()) == 3


def as_before(study: Study, store: str) -> None:
    """A store as earlier versions wrote it: nothing of the network, the fingerprint without it."""
    import sqlite3

    with sqlite3.connect(store) as connection:
        for table in ("ranksearch_study", "ranksearch_evaluations"):
            connection.execute(f"UPDATE {table} SET fingerprint = ?", (study.former_fingerprint,))
        connection.execute("UPDATE ranksearch_study SET details = ?", ('{"options": {}}',))
    connection.close()


def test_a_store_of_an_earlier_version_goes_on_and_is_this_networks_from_then_on(tmp_path: Path) -> None:
    store = str(tmp_path / "s.db")
    run(make(Net(), store=store), 3)
    as_before(make(Net()), store)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = make(Net(), store=store).evaluations()
    assert len(before) == 3
    with pytest.warns(RanksearchWarning, match="earlier version"):
        run(make(Net(), store=store), 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RanksearchWarning)
        run(make(Net(), store=store), 5)
    after = make(Net(), store=store).evaluations()
    assert after[:3].to_csv() == before.to_csv() and len(after) == 5  # the categories are those of all rows
    with pytest.raises(StoreError, match="another network"):
        run(make(Net(torch.sin), store=store), 6)
    with Store.open(store, create=False) as opened:
        assert opened.fingerprint == make(Net()).former_fingerprint and opened.details["network"]["outputs"]


def test_what_a_store_says_of_the_network_is_what_the_first_run_said(tmp_path: Path) -> None:
    """Otherwise small differences could add up over many runs."""
    store, said = str(tmp_path / "s.db"), []
    for factor in (1.0, 1.0 + 1e-3):
        run(make(edited(factor), store=store), 1)
        with Store.open(store, create=False) as opened:
            said.append(opened.details["network"])
    assert said[0] == said[1]


def test_statistics_of_another_network_of_the_same_weights_are_not_taken() -> None:
    space = svd_only().replace(metric="activation", calibration=1)
    moments = [make(Net(act), space=space).spectra.moments["b"].input for act in (torch.relu, torch.sin)]
    alone = make(Net(torch.sin), space=space.replace(calibration=2))
    assert moments[0] is not None and moments[1] is not None and not torch.allclose(moments[0], moments[1], rtol=0.05)
    assert alone.spectra.moments


class Scaled(nn.Module):
    """Keeps state that is no tensor."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self._scale = scale

    def get_extra_state(self) -> dict[str, Any]:
        return {"scale": self._scale}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._scale = state["scale"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self._scale


def test_state_that_is_no_tensor_is_part_of_the_network() -> None:
    run(make(Net(Scaled(2.0))), 3)
    run(make(Net(Scaled(2.0))), 4)
    with pytest.raises(StoreError, match="now has fingerprint"):
        run(make(Net(Scaled(2.0 + 1e-9))), 5)
    assert (make(Net(Scaled(2.0))).evaluations()["status"] == "done").all()
    study = make(Net(Scaled(3.0)), store=home() / "activation.db", space=svd_only().replace(metric="activation", calibration=1))
    run(study, 3)
    study.train_supernet("plain", epochs=1)


@pytest.mark.filterwarnings("ignore")
def test_layers_that_torch_quantized_are_left_as_they_are() -> None:
    def half(scale: float = 1.0) -> nn.Module:
        net = Net().eval()
        with torch.no_grad():
            net.b.weight.mul_(scale)
        return torch.ao.quantization.quantize_dynamic(net, {"b"}, dtype=torch.qint8)

    if "qnnpack" not in torch.backends.quantized.supported_engines and "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this torch was built without quantized kernels")
    run(make(half()), 3)
    study = make(half())
    run(study, 4)
    frame = study.evaluations()
    assert (frame["status"] == "done").all() and len(frame) == 4 and [site.name for site in study.sites] == ["a"]
    with pytest.raises(StoreError, match="now has fingerprint"):
        run(make(half(1.5)), 5)


# -- summaries of outputs --------------------------------------------------------------------------------------------


def summaries(*outputs: Any) -> list[list[dict[str, Any]]]:
    return [identity.summary(output) for output in outputs]


def test_outputs_are_compared_within_rounding() -> None:
    y = torch.randn(32, 100, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(32, 100, generator=torch.Generator().manual_seed(1))
    alike = lambda other, base=y: identity.alike(*summaries(base, other))  # noqa: E731
    assert alike(y + 1e-4 * noise) and not alike(y + 0.1 * noise)
    assert alike(1e6 * y + 1e2 * noise, 1e6 * y) and alike(1e-6 * y + 1e-10 * noise, 1e-6 * y)
    assert not alike(y[:16]) and not alike(y.double()) and not alike((y, y)) and not alike(y * 1.05)
    other = y.clone()
    other[5] = -other[5]  # an example that went to another expert
    assert alike(other)
    other[:8] = -other[:8]
    assert not alike(other)
    few = torch.tensor([[1.0, 2.0, 3.0]])
    assert not alike(torch.tensor([[1.0, 2.0, 3.1]]), few) and alike(few + 1e-6, few)


def test_outputs_of_every_form_have_a_summary() -> None:
    y = torch.tensor([[1.0, float("-inf"), float("nan")]])
    assert identity.alike(*summaries({"logits": y}, {"logits": y.clone()}))
    assert not identity.alike(*summaries(y, torch.tensor([[1.0, 2.0, 3.0]])))
    index = torch.tensor([1, 2])
    assert identity.alike(*summaries(index, index.flip(0))), "rounding may move an index by any amount"
    assert not identity.alike(*summaries(index, torch.tensor([1, 2, 3])))
    wave = torch.tensor([1 + 2j, 3 - 1j])
    assert identity.alike(*summaries(wave, wave.clone())) and not identity.alike(*summaries(wave, wave.conj()))
    assert identity.alike([], []) and identity.summary("no tensor") == []
    assert identity.alike(*summaries(torch.zeros(3), torch.zeros(3))) and not identity.alike(*summaries(torch.zeros(3), torch.ones(3)))
    large = torch.arange(10_000.0).reshape(100, 100)
    assert len(identity.summary(large)[0]["values"]) == identity.VALUES == len(set(identity.summary(large)[0]["values"]))
