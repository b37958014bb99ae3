"""Prepared states: their cache, and what travels to workers."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ranksearch.decompositions import DECOMPOSITIONS, KNOWN, Moments
from ranksearch.errors import InvalidArgument
from ranksearch.sites import find_sites
from ranksearch.space import build_space
from ranksearch.space import spectra as module
from ranksearch.space.spectra import Spectra

TYPES = [d for d in DECOMPOSITIONS if d.name in ("svd", "spatial", "cp")]


@pytest.fixture
def spectra() -> Spectra:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3))
    return Spectra(net, find_sites(net, torch.randn(1, 4, 8, 8)), TYPES)


def _prepared(spectra: Spectra, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Which states are prepared from now on."""
    seen: list[tuple[str, str]] = []
    for decomposition in TYPES:
        cls, prepare = type(decomposition), type(decomposition).prepare

        def watched(self, site, weight, moments=None, *, prepare=prepare):
            seen.append((site.name, self.name))
            return prepare(self, site, weight, moments)

        monkeypatch.setattr(cls, "prepare", watched)
    return seen


def test_workers_get_what_is_prepared(spectra: Spectra, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {}
    for site in spectra.sites:
        for decomposition in TYPES:
            spectra.profile(site, decomposition.name)
            expected[site.name, decomposition.name] = spectra.factors(site, decomposition.name, (2,))
    sent = pickle.loads(pickle.dumps(spectra))
    seen = _prepared(sent, monkeypatch)
    for site in sent.sites:
        for decomposition in TYPES:
            found = sent.factors(site, decomposition.name, (2,))
            assert all(torch.equal(a, b) for a, b in zip(found, expected[site.name, decomposition.name], strict=True))
    assert not seen


def test_what_travels_is_bounded_and_the_newest(spectra: Spectra, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = spectra.sites
    spectra.state(first, "svd")
    spectra.state(second, "svd")
    monkeypatch.setattr(module, "SHIPPED", spectra._held[second.name, "svd", module.STATE][1])
    sent = pickle.loads(pickle.dumps(spectra))
    seen = _prepared(sent, monkeypatch)
    sent.state(second, "svd")
    assert not seen
    sent.state(first, "svd")
    assert seen == [(first.name, "svd")]


def test_what_travels_is_given_up_in_the_order_of_its_last_use(spectra: Spectra, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = spectra.sites
    for site in (first, second, first):
        spectra.state(site, "svd")
    sent = pickle.loads(pickle.dumps(spectra))
    seen = _prepared(sent, monkeypatch)
    more = module._bytes(spectra.state(first, "spatial"))
    seen.clear()
    sent._cache_bytes = sum(size for _, size in sent._held.values()) + more - 1
    sent.state(first, "spatial")  # for which one of the others has to go
    sent.state(first, "svd")
    assert seen == [(first.name, "spatial")]
    assert (second.name, "svd", module.STATE) not in sent._held


def test_the_cache_is_bounded(spectra: Spectra, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Spectra(spectra.model, spectra.sites, TYPES, cache_bytes=1)
    seen = _prepared(small, monkeypatch)
    first, second = small.sites
    for site in (first, first, second, first):
        small.state(site, "svd")
    assert seen == [(first.name, "svd"), (second.name, "svd"), (first.name, "svd")]


def test_as_many_states_stay_as_fit_to_the_byte(spectra: Spectra, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [module._bytes(spectra.state(site, "svd")) for site in spectra.sites]
    assert all(sizes)
    for bound, again in ((sum(sizes), 0), (sum(sizes) - 1, 1)):
        bounded = Spectra(spectra.model, spectra.sites, TYPES, cache_bytes=bound)
        for site in spectra.sites:
            bounded.state(site, "svd")
        seen = _prepared(bounded, monkeypatch)
        bounded.state(next(iter(spectra.sites)), "svd")
        assert len(seen) == again


@pytest.mark.parametrize("name", ["svd", "cp"])
def test_factors_are_where_the_weight_is_now(spectra: Spectra, name: str) -> None:
    site = spectra.sites.sites[0]
    assert {factor.device.type for factor in spectra.factors(site, name, (2,))} == {"cpu"}
    spectra.model.to("meta")
    assert {factor.device.type for factor in spectra.factors(site, name, (2,))} == {"meta"}


def test_factors_of_components_are_held_within_the_bound_of_states(spectra: Spectra, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once they are made, a state is not asked for; where there is room for one thing alone, it is prepared at every call."""
    for bound, prepared in ((1 << 30, 1), (1, 3)):
        held = Spectra(spectra.model, spectra.sites, TYPES, cache_bytes=bound)
        seen = _prepared(held, monkeypatch)
        first, second = held.sites
        for rank in ((2,), (1,), (3,)):
            held.factors(first, "svd", rank)
            held.state(second, "svd")
        assert seen.count((first.name, "svd")) == prepared, bound


@pytest.mark.parametrize("output", [False, True])
def test_components_of_all_ranks_are_made_and_kept_once(
    spectra: Spectra, output: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    moments = {}
    for site in spectra.sites:
        x, y = (torch.randn(400, n, generator=generator).double() for n in (site.c_in * 9, site.c_out))
        moments[site.name] = Moments((x.mT @ x)[None] / 400, (y.mT @ y)[None] / 400 if output else None)
    svd, site = next(d for d in TYPES if d.name == "svd"), spectra.sites.sites[1]
    monkeypatch.setattr(module, "DEAR", 0.0)
    asked: list[tuple[int, ...]] = []
    factors = type(svd).factors
    monkeypatch.setattr(type(svd), "factors", lambda self, state, rank: asked.append(rank) or factors(self, state, rank))
    for cache in (tmp_path, tmp_path, None):  # made, read, and without a disk
        other = Spectra(spectra.model, spectra.sites, TYPES, moments=moments, cache=cache)
        for rank in (8, 3, 1, 8):
            left, right = other.factors(site, "svd", (rank,))
            assert left.shape == (1, 8, rank) and right.shape == (1, rank, 54) and left.is_contiguous() and right.is_contiguous()
            expected = factors(svd, other.state(site, "svd"), (rank,))
            torch.testing.assert_close(left @ right, expected[0] @ expected[1], rtol=1e-9, atol=1e-9)
            for factor in (left, right):
                factor.zero_()  # they are the caller's
    assert asked == [(8,)] * 2, "once for the disk, and once without one"
    assert len([*tmp_path.glob("*factors*")]) == 1


@pytest.mark.parametrize("device", [None, "meta"])
def test_states_are_held_within_a_share_of_the_memory_of_where_they_lie(
    spectra: Spectra, device: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = dict.fromkeys(("cpu", "meta"), 0.0)
    monkeypatch.setattr(module, "device_memory", lambda place: memory[place.type])
    place = device or "cpu"
    for bytes_, held in ((math.inf, module.HELD), (0.0, module.HELD), (100.0 * module.HELD / module.SHARE, 100.0 * module.HELD)):
        memory[place] = bytes_
        made = Spectra(spectra.model, spectra.sites, TYPES, device=device)
        assert made._cache_bytes == pytest.approx(held)


def test_bytes_of_a_state_are_those_of_all_its_tensors() -> None:
    tensor = torch.zeros(3, 5, dtype=torch.float64)
    assert module._bytes(tensor) == 120 and module._bytes(np.zeros(3, dtype=np.float32)) == 12
    assert module._bytes({"a": (tensor, [tensor, 7]), "b": None}) == 240


def test_whatever_has_tensors_is_moved_with_them() -> None:
    tensor, meta = torch.zeros(2), torch.device("meta")
    moved = module._moved({"a": (tensor, 3, "x")}, meta)
    assert moved["a"][0].device == meta and moved["a"][1:] == (3, "x")


def test_types_are_alike_with_the_same_class_and_options() -> None:
    one, other = (next(d for d in DECOMPOSITIONS if d.name == name) for name in ("svd", "svd_in"))
    assert vars(one) == vars(other) and not module._alike(one, other) and not module._alike(None, one)
    again, changed = copy.copy(one), copy.copy(one)
    vars(changed)["more"] = 1
    assert module._alike(one, again) and not module._alike(one, changed)


def test_profiles_have_what_saves_params_or_macs_and_the_dense_layer(spectra: Spectra) -> None:
    whole = Spectra(spectra.model, spectra.sites, [*TYPES, next(d for d in KNOWN if d.name == "dense")])
    for site in whole.sites:
        for name in ("svd", "spatial", "dense"):
            profile = whole.profile(site, name)
            assert profile is not None and len(profile.params)
            saves = (profile.params < site.cost.params) | (profile.macs < site.cost.macs)
            assert saves.all() if name != "dense" else profile.params.tolist() == [site.cost.params]


def test_small_layers_are_factorized_on_one_thread(spectra: Spectra, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    svd = next(d for d in TYPES if d.name == "svd")
    prepare = type(svd).prepare

    def watched(self, site, weight, moments=None):
        seen.append(torch.get_num_threads())
        return prepare(self, site, weight, moments)

    monkeypatch.setattr(type(svd), "prepare", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        spectra.profile(spectra.sites.sites[0], "svd")
        monkeypatch.setattr("ranksearch.threads.SMALL", 1)
        spectra.profile(spectra.sites.sites[1], "svd")
        assert seen == [1, 2] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_progress_names_every_site_once_and_ends_at_all(spectra: Spectra, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[module.Profiled] = []
    spectra.profile_all(events.append)
    first, second = spectra.sites
    assert [(e.site, e.done, e.total) for e in events] == [(first.name, 1, 2), (second.name, 2, 2)]
    assert [e.share for e in events] == [first.cost.params / (first.cost.params + second.cost.params), 1.0]
    seen = _prepared(spectra, monkeypatch)
    for site in spectra.sites:
        for decomposition in TYPES:
            spectra.profile(site, decomposition.name)
    assert not seen


def test_a_callback_may_stop_the_profiling(spectra: Spectra) -> None:
    def stop(event: module.Profiled) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spectra.profile_all(stop)
    assert {key[0] for key in spectra._profiles} == {spectra.sites.sites[0].name}


def test_moments_are_asked_for_one_site_after_the_other(spectra: Spectra) -> None:
    names: list[str] = []

    class Asked(dict):
        def __getitem__(self, name):
            names.append(name)
            return super().__getitem__(name)

    moments = Asked({site.name: Moments(torch.eye(site.c_in * site.kernel[0] * site.kernel[1]).double()[None]) for site in spectra.sites})
    other = Spectra(spectra.model, spectra.sites, TYPES, moments=moments)
    assert not names
    assert build_space(other).metric == "activation"
    order = list(dict.fromkeys(names))
    assert names == sorted(names, key=order.index) and order == [site.name for site in spectra.sites]


def test_a_worker_without_the_device_factorizes_where_its_weights_are(spectra: Spectra, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Spectra(spectra.model, spectra.sites, TYPES, device="cpu")
    site = other.sites.sites[0]
    made = {name: other.factors(site, name, (2,)) for name in ("svd", "spatial", "cp")}
    sent = pickle.dumps(other)
    assert pickle.loads(sent).device == torch.device("cpu")

    def absent(device):
        raise InvalidArgument("absent")

    monkeypatch.setattr(module, "checked_device", absent)
    worker = pickle.loads(sent)
    assert worker.device is None
    for name, factors in made.items():
        assert all(torch.equal(a, b) for a, b in zip(worker.factors(site, name, (2,)), factors, strict=True))


def test_a_device_that_is_not_there_is_refused(spectra: Spectra) -> None:
    for device in ("cuda:77", "toaster"):
        with pytest.raises(InvalidArgument, match=rf"device='{device}'.*give 'cpu'"):
            Spectra(spectra.model, spectra.sites, TYPES, device=device)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))])
def test_factorizations_elsewhere_are_the_same_and_factors_come_back(spectra: Spectra, device: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    moments = {}
    for site in spectra.sites:
        x = torch.randn(400, site.c_in * site.kernel[0] * site.kernel[1], generator=generator).double()
        moments[site.name] = Moments((x.mT @ x)[None] / 400)
    here = Spectra(spectra.model, spectra.sites, TYPES, moments=moments)
    for _ in range(2):  # computed there, then read from the disk
        there = pickle.loads(pickle.dumps(Spectra(spectra.model, spectra.sites, TYPES, moments=moments, device=device, cache=tmp_path)))
        for site in here.sites:
            for name in ("svd", "spatial"):
                one, two = here.profile(site, name), there.profile(site, name)
                assert one is not None and two is not None
                np.testing.assert_allclose(two.frobenius, one.frobenius, rtol=1e-6, atol=1e-9)
                decomposition, rank = here.decomposition(name), tuple(one.ranks[len(one.ranks) // 2].tolist())
                made = there.factors(site, name, rank)
                assert {factor.device.type for factor in made} == {"cpu"}
                assert all(t.device.type == device for t in _tensors(there.state(site, name)))
                torch.testing.assert_close(decomposition.compose(site, made), decomposition.compose(site, here.factors(site, name, rank)))


def _tensors(state) -> list[torch.Tensor]:
    """The tensors of a state that is a dataclass of dataclasses."""
    if isinstance(state, torch.Tensor):
        return [state]
    return [t for field in fields(state) for t in _tensors(getattr(state, field.name))] if is_dataclass(state) else []
