"""Rules of declared spaces, and the warning about those that have no effect."""

from __future__ import annotations

import pickle
import warnings

import pytest
import torch
from torch import nn

from ranksearch.errors import InvalidArgument, RanksearchWarning
from ranksearch.space import SpaceSpec, depthwise, named, reads_image, where

NET = nn.Sequential()
NET.stem, NET.deep = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8)
NET.block = nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1))
NET.pool, NET.flat, NET.head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
LAYERS = {"stem": NET.stem, "deep": NET.deep, "block.1": NET.block[1], "head": NET.head}
NONE = "matches no layer that could be factorized"
EXAMPLE = torch.zeros(1, 3, 8, 8)


def sites(**rules) -> tuple[list[str], list[str]]:
    """The sites of the network, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [site.name for site in SpaceSpec(named("svd"), **rules).sites(NET, EXAMPLE)]
    assert all(issubclass(warning.category, RanksearchWarning) for warning in caught)
    return found, [str(warning.message) for warning in caught]


def test_rules_by_what_a_layer_is() -> None:
    assert [name for name, layer in LAYERS.items() if depthwise(name, layer)] == ["deep"]
    assert [name for name, layer in LAYERS.items() if reads_image(name, layer)] == ["stem"]
    assert not depthwise("x", nn.Conv2d(1, 1, 3)) and depthwise("x", nn.Conv1d(4, 8, 3, groups=4))
    assert not depthwise("x", nn.Conv2d(8, 8, 3, groups=4)) and not reads_image("x", nn.Conv2d(5, 8, 3))
    assert not reads_image("x", nn.Linear(3, 8))


def test_where_is_any_of_its_globs_and_says_nothing_of_those_that_match_nothing() -> None:
    rule = where("he?d", "*.1", "nowhere")
    assert [name for name, layer in LAYERS.items() if rule(name, layer)] == ["block.1", "head"]
    assert sites(exclude=rule) == (["stem", "deep"], [])
    assert rule == pickle.loads(pickle.dumps(rule)) and hash(rule) == hash(where("he?d", "*.1", "nowhere"))


@pytest.mark.parametrize(
    ("rules", "warned"),
    [
        ({}, []),
        ({"exclude": ("head", nn.Conv2d)}, []),
        ({"exclude": "block"}, [f"exclude='block' {NONE}; did you mean 'block.1'?"]),
        ({"exclude": ["*.0", "stem"]}, [f"exclude='*.0' {NONE}; layers are called stem, deep, block.1, ..."]),
        ({"exclude": nn.Conv1d}, [f"exclude=Conv1d {NONE}; layers are called stem, deep, block.1, ..."]),
        ({"include": ("head", "block")}, [f"include='block' {NONE}; did you mean 'block.1'?"]),
    ],
)  # fmt: skip
def test_globs_and_types_without_effect(rules, warned) -> None:
    assert sites(**rules)[1] == warned


def test_a_glob_that_fits_no_module_at_all_is_an_error() -> None:
    with pytest.raises(InvalidArgument, match=r"exclude=.haed. fits the path of no module"):
        sites(exclude="haed")
