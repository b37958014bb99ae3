"""Weights with several users: which modules are one site, and which cannot be built together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from ranksearch.sites.copies import Extent, extent, overlap
from ranksearch.sites.forward import tensors_of
from ranksearch.sites.layers import skip
from ranksearch.sites.site import Site, Skipped


def parameter_users(model: nn.Module) -> dict[int, list[str]]:
    """The paths of the modules that hold each parameter, by its identity."""
    users: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                users.setdefault(id(parameter), []).append(path)
    return users


def merge(sites: Sequence[Site], idle: Sequence[Site], modules: Mapping[str, nn.Module]) -> tuple[list[Site], list[Skipped]]:
    """Sites that have one weight as one site each; those that use it in another way are skipped. Of ``idle``, layers that are not
    called, those that are alike join the site that has their weight: T5 and BART keep a table ``shared`` that is never looked up in
    itself."""
    found: list[Site] = []
    skipped: list[Skipped] = []
    owner: dict[int, int] = {}  # weight identity -> index in found
    for site in sites:
        weight = modules[site.name].get_parameter("weight")
        first = owner.get(id(weight))
        if first is None:
            owner[id(weight)] = len(found)
            found.append(site)
            continue
        merged = _tie(found[first], site, modules)
        if merged is not None:
            found[first] = merged
        else:
            reason = f"shares its weight with {found[first].name!r} but is used in another way"
            skipped.append(skip(site.name, modules[site.name], reason))
    for site in idle:
        index = owner.get(id(modules[site.name].get_parameter("weight")))
        if index is not None and found[index].kind == site.kind:
            found[index] = _tie(found[index], site, modules) or found[index]
    kept, withdrawn = _shared_elsewhere(found, modules)
    return kept, [*skipped, *withdrawn]


def _tie(first: Site, second: Site, modules: Mapping[str, nn.Module]) -> Site | None:
    """One site for two modules that share a weight: alike in all else, or an embedding and its output head, whichever
    comes first. None where neither holds."""
    if first.kind == "embedding" and second.kind == "linear":
        head = second if first.head is None else _tie(first.head, second, modules)
        return None if head is None else replace(first, head=head)
    if first.kind == "linear" and second.kind == "embedding":
        return replace(second, head=first)
    bare = {"name": "", "calls": (), "aliases": (), "head": None}
    same_bias = getattr(modules[first.name], "bias", None) is getattr(modules[second.name], "bias", None)
    if not same_bias or replace(first, **bare) != replace(second, **bare):
        return None
    return replace(first, calls=first.calls + second.calls, aliases=(*first.aliases, second.name, *second.aliases))


def _shared_elsewhere(found: Sequence[Site], modules: Mapping[str, nn.Module]) -> tuple[list[Site], list[Skipped]]:
    """Sites apart from those whose weight is in a module that would not be built with them, itself or as a view of the same
    memory: factorizing these would untie the two and store the weight twice. A bias may have other users, but no views."""
    users = [(path, tensor, extent(tensor)) for path, module in modules.items() for tensor in _held(module)]
    by_storage: dict[object, list[tuple[str, Tensor, Extent | None]]] = {}
    for user in users:
        if user[2] is not None:
            by_storage.setdefault(user[2][0], []).append(user)
    kept: list[Site] = []
    withdrawn: list[Skipped] = []
    for site in found:
        own = modules[site.name]
        weight, bias = own.get_parameter("weight"), own._parameters.get("bias")
        reason = _other_user(site, weight, by_storage)
        if reason is None and bias is not None and any(_views(bias, by_storage)):
            reason = f"its bias is a view of memory that {next(_views(bias, by_storage))!r} holds too"
        if reason is None:
            kept.append(site)
        else:
            withdrawn += [skip(path, modules[path], reason) for path in site.paths if path in modules]
    return kept, withdrawn


def _other_user(site: Site, weight: Tensor, by_storage: Mapping[object, Sequence[tuple[str, Tensor, Extent | None]]]) -> str | None:
    where = extent(weight)
    for path, tensor, at in by_storage.get(where and where[0], ()):
        if tensor is weight and path not in site.paths:
            return f"its weight is shared with {path!r}, used in another way, not called or excluded"
        if tensor is not weight and overlap(where, at):
            return f"its weight is a view of memory that {path!r} holds too: factorizing one would untie them"
    return None


def _views(tensor: Tensor, by_storage: Mapping[object, Sequence[tuple[str, Tensor, Extent | None]]]) -> Iterator[str]:
    where = extent(tensor)
    return (path for path, other, at in by_storage.get(where and where[0], ()) if other is not tensor and overlap(where, at))


def _held(module: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers and plain tensors of a module itself."""
    for name, value in vars(module).items():
        if name in ("_parameters", "_buffers") or name not in ("_modules", "_non_persistent_buffers_set"):
            for _, tensor in tensors_of(value):
                yield tensor
