"""What is kept on disk: found again by content, never trusted when damaged, bounded, and without any effect on results."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ranksearch.decompositions import DECOMPOSITIONS, AnyDecomposition, Moments, tucker2, weighted_truncation
from ranksearch.decompositions.cp import CP
from ranksearch.decompositions.svd import SVD
from ranksearch.search.events import Announced
from ranksearch.sites import Sites, find_sites
from ranksearch.space import cache as cache_module
from ranksearch.space import spectra as module
from ranksearch.space.cache import ContentCache, content_key, data_key
from ranksearch.space.spectra import Spectra

FEW = [d for d in DECOMPOSITIONS if d.name in ("svd", "cp")]  # where what is kept matters, not of which type
TYPES = [d for d in DECOMPOSITIONS if d.name in ("svd", "svd_in", "spatial", "tucker2", "cp", "adaptive")]


@pytest.fixture(autouse=True)
def _everything_is_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEAR", 0.0)


def network(seed: int = 0) -> tuple[nn.Module, Sites]:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3))
    return net, find_sites(net, torch.randn(1, 4, 8, 8))


def moments(sites: Sites, seed: int = 0) -> dict[str, Moments]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for site in sites:
        d = site.c_in * site.kernel[0] * site.kernel[1]
        x = torch.randn(3 * d, d, generator=generator, dtype=torch.float64)
        y = torch.randn(3 * site.c_out, site.c_out, generator=generator, dtype=torch.float64)
        found[site.name] = Moments((x.mT @ x)[None], (y.mT @ y)[None])
    return found


def everything(spectra: Spectra) -> list[Any]:
    """All errors, and the factors of a few options."""
    rows: list[Any] = []
    for site in spectra.sites:
        for name in spectra.decompositions:
            profile = spectra.profile(site, name)
            if profile is not None and name != "dense":
                rows += [profile.ranks, profile.frobenius, profile.operator, profile.norm]
                rows += [spectra.factors(site, name, tuple(rank.tolist())) for rank in profile.ranks[:3]]
    return rows


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, np.ndarray):
        return np.array_equal(left, right, equal_nan=True)
    if isinstance(left, (tuple, list)):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return left == right


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Which states are prepared from now on."""
    seen: list[tuple[str, str]] = []
    for decomposition in TYPES:
        original = type(decomposition).prepare

        def watched(self: AnyDecomposition, site, weight, moments=None, *, original=original):
            seen.append((site.name, self.name))
            return original(self, site, weight, moments)

        monkeypatch.setattr(type(decomposition), "prepare", watched)
    return seen


@pytest.mark.parametrize("metric", [False, True])
def test_nothing_is_prepared_twice_and_results_are_the_same(metric: bool, tmp_path: Path, made: list) -> None:
    net, sites = network()
    m = moments(sites) if metric else None
    plain = everything(Spectra(net, sites, TYPES, moments=m))
    first = everything(Spectra(net, sites, TYPES, moments=m, cache=tmp_path))
    made.clear()
    again = everything(Spectra(net, sites, TYPES, moments=m, cache=tmp_path))
    assert not made
    assert same(plain, first) and same(plain, again)


def test_what_was_searched_for_is_not_searched_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, sites = network()
    m = moments(sites)
    names = ("svd_in", "spatial", "tucker2")
    first = Spectra(net, sites, TYPES, moments=m, cache=tmp_path)
    for site in sites:
        for name in names:
            first.profile(site, name)
    expected = everything(Spectra(net, sites, TYPES, moments=m))
    for part in (weighted_truncation, tucker2):
        monkeypatch.setattr(part, "_search", lambda *given: pytest.fail("searched again"))
    assert same(expected, everything(Spectra(net, sites, TYPES, moments=m, cache=tmp_path)))


def test_neither_order_nor_what_was_asked_before_changes_results(tmp_path: Path) -> None:
    net, sites = network()
    m = moments(sites)
    expected = everything(Spectra(net, sites, TYPES, moments=m))
    backwards = Spectra(net, sites, TYPES[::-1], moments=m, cache=tmp_path, cache_bytes=1)
    for site, kind in itertools.product(tuple(sites)[::-1], TYPES[::-1]):
        profile = backwards.profile(site, kind.name)
        if profile is not None:
            backwards.factors(site, kind.name, tuple(profile.ranks[-1].tolist()))  # an option, before any other is asked for
    assert same(expected, everything(Spectra(net, sites, TYPES, moments=m, cache=tmp_path)))
    for number, path in enumerate(sorted(tmp_path.iterdir())):
        if number % 2:
            path.unlink()  # some states without their errors, some errors without their states
    assert same(expected, everything(Spectra(net, sites, TYPES, moments=m, cache=tmp_path)))


def test_another_weight_metric_option_or_thread_count_is_another_key() -> None:
    net, sites = network()
    other, _ = network(1)
    site, weight = sites.sites[1], net[2].weight  # type: ignore[index]
    metric, second = moments(sites)[site.name], moments(sites, 1)[site.name]
    cp = CP()
    keys = [
        content_key(cp, site, data_key(weight, None), threads=1),
        content_key(cp, site, data_key(other[2].weight, None), threads=1),  # type: ignore[index]
        content_key(cp, site, data_key(weight.double(), None), threads=1),
        content_key(cp, site, data_key(weight, metric), threads=1),
        content_key(cp, site, data_key(weight, second), threads=1),
        content_key(cp, site, data_key(weight, Moments(metric.input)), threads=1),
        content_key(cp, site, data_key(weight, Moments(None, metric.output)), threads=1),
        content_key(CP(max_rank=7), site, data_key(weight, None), threads=1),
        content_key(SVD(), site, data_key(weight, None), threads=1),
        content_key(cp, site, data_key(weight, None), threads=2),
        content_key(cp, sites.sites[0], data_key(weight, None), threads=1),
    ]
    assert None not in keys and len(set(keys)) == len(keys)


def test_what_a_site_is_of_is_hashed_once_for_all_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, sites = network()
    hashed: list[torch.Tensor] = []
    monkeypatch.setattr("ranksearch.space.spectra.data_key", lambda weight, moments: hashed.append(weight) or data_key(weight, moments))
    everything(Spectra(net, sites, TYPES, moments=moments(sites), cache=tmp_path))
    assert len(hashed) == len(sites)


def test_the_name_of_a_site_is_no_content() -> None:
    net, sites = network()
    named = find_sites(nn.Sequential(nn.Identity(), net), torch.randn(1, 4, 8, 8))
    pair = [content_key(CP(), s.sites[1], data_key(net[2].weight, None), threads=1) for s in (sites, named)]  # type: ignore[index]
    assert sites.sites[1].name != named.sites[1].name and pair[0] == pair[1]


def test_types_of_others_are_not_kept(tmp_path: Path) -> None:
    class Mine(SVD):
        pass

    net, sites = network()
    assert content_key(Mine(), sites.sites[0], data_key(net[0].weight, None), threads=1) is None  # type: ignore[index]
    Spectra(net, sites, [Mine()], cache=tmp_path).profile(sites.sites[0], "svd")
    assert not any("svd" in path.name for path in tmp_path.iterdir()) and len(list(tmp_path.iterdir())) == 0


def test_damaged_and_foreign_files_are_made_again(tmp_path: Path, made: list) -> None:
    net, sites = network()
    expected = everything(Spectra(net, sites, FEW, cache=tmp_path))
    files = sorted(tmp_path.iterdir())
    sound = {path: path.read_bytes() for path in files}

    def flipped(data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1])

    damages = (lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"\xff" * 64, flipped, lambda data: b"{}" + data)
    for damage in damages:
        for path in files:
            path.write_bytes(damage(sound[path]))
        made.clear()
        assert same(expected, everything(Spectra(net, sites, FEW, cache=tmp_path)))
        assert made
        made.clear()
        assert same(expected, everything(Spectra(net, sites, FEW, cache=tmp_path)))
        assert not made
    swapped = dict(zip(files, [*files[1:], files[0]], strict=True))  # sound files under another one's name
    for path, other in swapped.items():
        path.write_bytes(sound[other])
    assert same(expected, everything(Spectra(net, sites, FEW, cache=tmp_path)))


def test_only_values_of_the_package_are_kept_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ContentCache(tmp_path)
    value = (1, "a", None, torch.arange(3), np.arange(2.0))
    assert cache.save("key", value) and same(cache.load("key"), value)
    assert not cache.save("other", {"a": 1}) and cache.load("other") is None
    step = Announced("a class of another part")
    assert not cache.save("stage", step)
    monkeypatch.setattr(cache_module, "PACKAGES", ("ranksearch.",))
    assert cache.save("stage", step) and cache.load("stage") == step
    monkeypatch.undo()
    assert cache.load("stage") is None


def test_strides_come_back(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path)
    values = (torch.randn(3, 4, 5).permute(2, 0, 1), torch.randn(4, 3).mT, torch.randn(2, 6)[:, ::2], torch.ones(1).expand(4))
    assert cache.save("key", values)
    found = cache.load("key")
    assert same(found, values)
    assert found is not None and [t.stride() for t in found[:2]] == [t.stride() for t in values[:2]]


def test_large_files_are_read_where_they_lie_and_trusted_no_more_than_small_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, sites = network()
    known = moments(sites)
    whole = everything(Spectra(net, sites, FEW, moments=known, cache=tmp_path))
    monkeypatch.setattr(cache_module, "MAPPED", 0)
    monkeypatch.setattr(cache_module, "load", None)  # reads all of a file
    for factorized in (CP, SVD):
        monkeypatch.setattr(factorized, "prepare", None)
    assert same(everything(Spectra(net, sites, FEW, moments=known, cache=tmp_path)), whole)
    cache = ContentCache(tmp_path)
    path = max(tmp_path.glob("*-state.safetensors"))
    assert cache.load(path.stem) is not None
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert cache.load(path.stem) is None


def test_the_bound_grows_with_what_is_free_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, limit in ((100, 1 << 30), (50 << 30, 10 << 30)):
        monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        assert ContentCache(tmp_path / "not" / "there").limit == limit and ContentCache(tmp_path, limit=7).limit == 7


def test_the_folder_is_bounded_and_what_was_used_last_stays(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path, limit=10_000)
    for k in range(40):
        assert cache.save(f"key{k}", (torch.full((100,), float(k), dtype=torch.float64),))
        if k:
            cache.load("key0")
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 10_000
    assert cache.load("key0") is not None and cache.load("key39") is not None and cache.load("key1") is None
    assert not cache.save("large", (torch.zeros(2_000, dtype=torch.float64),))
    assert cache.load("key39") is not None  # nothing is removed for what does not fit anyway


def test_room_is_made_for_what_comes_with_some_to_spare(tmp_path: Path) -> None:
    """Files are removed, the oldest first, until a file more leaves a fifth of the limit free, and no further."""
    values = (torch.zeros(100, dtype=torch.float64),)
    ContentCache(tmp_path).save("one", values)
    size = (tmp_path / "one.safetensors").stat().st_size
    cache = ContentCache(tmp_path, limit=10 * size)
    counts = []
    for k in range(30):
        assert cache.save(f"key{k}", values)
        counts.append(sum(1 for _ in tmp_path.iterdir()))
    assert max(counts) <= 10 and [b for a, b in itertools.pairwise(counts) if b <= a]
    assert all(b == 8 for a, b in itertools.pairwise(counts) if b <= a)


def test_nothing_is_removed_as_long_as_all_fits(tmp_path: Path) -> None:
    for k in range(9):
        (tmp_path / f"key{k}.safetensors").write_bytes(bytes(10))
    cache = ContentCache(tmp_path, limit=100)
    assert cache._counted(10) == 90 and len([*tmp_path.iterdir()]) == 9
    assert cache._counted(11) == 60 and len([*tmp_path.iterdir()]) == 6  # then some to spare


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    net, sites = network()
    spectra = Spectra(net, sites, FEW, cache=tmp_path / "file" / "cache")
    with pytest.warns(UserWarning, match="cannot cache"):
        found = everything(spectra)
    assert same(found, everything(Spectra(net, sites, FEW)))
