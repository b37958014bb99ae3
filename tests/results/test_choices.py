"""Choices of configurations as arrays, against what the configurations themselves say."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from ranksearch.errors import StoreError
from ranksearch.results.choices import factorized, read
from ranksearch.space import DENSE, Configuration

HOSTILE = ('a]],"b', "a]],", '":["', 'x":["svd",[3]],"y', "back\\", "süß", "", " ", "line\nbreak", "<b>&", "]]}", '"')


def decoded(found: Any, id: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    chosen = [found.options[code] for code in found.codes[found.rows([id])[0]].tolist()]
    return {site: (name, rank) for site, name, rank in chosen if name != "dense"}


def test_every_configuration_is_read_as_it_was_written() -> None:
    rng = np.random.default_rng(0)
    sites = [f"layer{i}.conv" for i in range(9)] + list(HOSTILE)
    kinds = [("svd", 1), ("tucker2", 2), ("tensor_train", 4)]
    configurations = [DENSE]
    for _ in range(200):
        picked = rng.permutation(len(sites))[: rng.integers(0, len(sites) + 1)]
        drawn = [(sites[i], *kinds[rng.integers(3)]) for i in picked]
        configurations.append(Configuration([(site, name, rng.integers(1, 5, size).tolist()) for site, name, size in drawn]))
    parts = (configurations[:1], configurations[1:70], configurations[70:])
    blocks = [([c.id for c in part], [c.to_json() for c in part]) for part in parts]
    found = read(blocks, {site: site for site in sites})
    assert found.sites == tuple(sites) and found.codes.shape == (201, len(sites))
    ids, counts = factorized(blocks)
    assert dict(zip(ids.to_pylist(), counts.tolist(), strict=True)) == {c.id: len(c.choices) for c in configurations}
    for configuration in configurations:
        assert decoded(found, configuration.id) == {site: (name, rank) for site, name, rank in configuration.choices}


def test_paths_of_one_site_are_one_and_unknown_ones_come_behind() -> None:
    a = Configuration({"tied": ("svd", (3,)), "gone": ("cp", (2,))})
    found = read([(["a", "b"], [a.to_json(), Configuration({"body": ("svd", (3,))}).to_json()])], {"body": "body", "tied": "body"})
    assert found.sites == ("body", "gone")
    assert found.options == (("body", "dense", ()), ("gone", "dense", ()), ("gone", "cp", (2,)), ("body", "svd", (3,)))
    assert found.codes.tolist() == [[3, 2], [3, 1]]


def test_json_that_is_not_canonical_is_read_too() -> None:
    text = json.dumps({"a": ["svd", [1]], "b": ["tucker2", [2, 3]]})
    assert factorized([(["x", "y"], [text, "{ }"])])[1].tolist() == [2, 0]
    assert decoded(read([(["x"], [text])], {}), "x") == {"a": ("svd", (1,)), "b": ("tucker2", (2, 3))}
    whole = '{"a":["svd",[12]],"b":["svd",[3]]}'
    for damaged in ('{"a":3}', "", "{", *(whole[:end] for end in range(len(whole))), whole[1:]):
        with pytest.raises(StoreError, match="not the JSON of a configuration"):
            read([(["x", "y"], [whole, damaged])], {})


def test_an_id_that_is_none_of_them_is_named() -> None:
    found = read([([DENSE.id], [DENSE.to_json()])], {})
    with pytest.raises(KeyError, match="another"):
        found.rows([DENSE.id, "another"])


def test_nothing_to_read() -> None:
    assert read([], {"a": "a"}).codes.shape == (0, 1)


def test_rows_are_of_known_ids_alone() -> None:
    found = read([(["a", "b"], ["{}", Configuration({"x": ("svd", (1,))}).to_json()])], {"x": "x"})
    assert found.rows(["b", "a", "b"]).tolist() == [1, 0, 1]
    with pytest.raises(KeyError, match="nobody"):
        found.rows(["a", "nobody"])
