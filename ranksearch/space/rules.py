"""Rules for ``include`` and ``exclude`` that declared spaces of whole families need: by what a layer is, or by globs of which
some fit one network of the family and some another."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ranksearch.sites import unwrapped
from ranksearch.sites.layers import Rule, matches, module_kind

IMAGE_CHANNELS = 4  # grey, RGB, RGB with depth or transparency


@dataclass(frozen=True)
class Where:
    """The layers that one of several globs matches; made by `where`."""

    globs: tuple[str, ...]

    def __call__(self, path: str, module: nn.Module) -> bool:
        return any(fnmatch.fnmatchcase(path, glob) for glob in self.globs)


def where(*globs: str) -> Where:
    """A rule for the layers that one of ``globs`` matches, of which some may match nothing: names of a layer that differ
    between the networks of a family. A glob that stands by itself in ``include`` or ``exclude`` and matches nothing gets a
    warning."""
    return Where(globs)


def depthwise(path: str, module: nn.Module) -> bool:
    """Whether a layer is a convolution with one filter per channel: kh kw weights each, nearly nothing to save."""
    return isinstance(module, (nn.Conv1d, nn.Conv2d)) and module.groups == module.in_channels > 1


def reads_image(path: str, module: nn.Module) -> bool:
    """Whether a layer is a convolution of an image (at most ``IMAGE_CHANNELS`` input channels): the first of a network."""
    return isinstance(module, nn.Conv2d) and module.groups == 1 and module.in_channels <= IMAGE_CHANNELS


def without_effect(model: nn.Module, name: str, rules: Rule | Sequence[Rule]) -> list[str]:
    """One sentence for every glob and type among the rules of argument ``name`` that matches no layer of a kind that can be
    factorized. Predicates are not judged: they cannot be named."""
    layers = {path: module for path, module in unwrapped(model).named_modules() if module_kind(module) is not None}
    found = []
    for rule in rules if isinstance(rules, (list, tuple)) else [rules]:
        if not isinstance(rule, (str, type)) or not layers or any(matches(path, module, rule) for path, module in layers.items()):
            continue
        text = repr(rule) if isinstance(rule, str) else rule.__name__
        close = difflib.get_close_matches(rule, layers, n=1) if isinstance(rule, str) else []
        hint = f"did you mean {close[0]!r}?" if close else f"layers are called {', '.join(list(layers)[:3])}{', ...' * (len(layers) > 3)}"
        found.append(f"{name}={text} matches no layer that could be factorized; {hint}")
    return found
