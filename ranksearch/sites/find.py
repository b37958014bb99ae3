"""Find the factorizable layers (*sites*) of any ``nn.Module`` by running copies of it on an example input. Nothing is traced, and the
model stays as it is. Every module that holds a weight and is not a site is reported with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from ranksearch.errors import InvalidArgument, InvalidModel
from ranksearch.sites.check import tried
from ranksearch.sites.copies import stored, unwrapped
from ranksearch.sites.cost import Cost
from ranksearch.sites.forward import BatchDim, batch_size
from ranksearch.sites.layers import Rule, check_finite, holds_weights, matches, objection, site_of, skip
from ranksearch.sites.observe import Observed, observe
from ranksearch.sites.site import Site, Sites, Skipped
from ranksearch.sites.ties import merge


def find_sites(
    model: nn.Module,
    example: Any,
    *,
    include: Rule | Sequence[Rule] = "*",
    exclude: Rule | Sequence[Rule] = (),
    batch_dim: BatchDim = 0,
    check: bool = True,
) -> Sites:
    """Find the sites of ``model`` by running copies of it, in evaluation mode, on ``example``: once to see how layers are called and
    what they cost, and once with an equal layer in the place of every site, which shows whether it can be replaced.

    Args:
        model: any module; it is left exactly as it was (weights, buffers, modes, hooks, gradients, random states), also when
            its forward pass fails. Paths are those within what `torch.compile` or a parallel module wraps.
        example: the input of one forward pass: a tensor, a tuple of positional arguments or a dict of keyword
            arguments, brought to the model's device and floating-point type. Costs are reported per example.
        include, exclude: which modules may be sites: glob on the module path, module type, or
            ``predicate(path, module)``; one or several. ``exclude`` wins.
        batch_dim: the dimension along which examples are stacked, see `ranksearch.sites.forward.batch_size`: 1 for models that
            have the sequence first; a mapping where inputs differ; None: the input is one example.
        check: False leaves out the second pass; for networks that were built from checked sites.

    Raises:
        InvalidModel: the weight of a site is NaN or infinite, parameters are not there yet (lazy modules, the meta device), the
            model cannot be copied, its forward pass fails, or a copy runs layers of the original.
        InvalidArgument: the example holds no tensor or no one batch, the costs do not divide by it, a glob that fits no module.
    """
    model = unwrapped(model)
    _check_weights(model)
    modules = dict(model.named_modules())  # unique modules, first path wins
    _check_globs(list(dict(model.named_modules(remove_duplicate=False))), include=include, exclude=exclude)
    batch = batch_size(example, batch_dim)
    observed = observe(model, example)
    macs, left = divmod(observed.macs, batch)
    if left:
        raise InvalidArgument(
            f"batch_dim={batch_dim!r}: {observed.macs:,} multiply-adds are no multiple of a batch of {batch}: examples are stacked along "
            "another dimension (say which with batch_dim), or part of the work is done once for all (give an example with a batch of 1)"
        )
    sites, idle, skipped = _candidates(model, modules, observed, batch, include, exclude)
    sites, tied = merge(sites, idle, modules)
    refused: list[Skipped] = []
    if check:
        sites, refused = tried(model, example, sites, observed)
    order = {path: index for index, path in enumerate(modules)}
    within = {path for site in sites for path in site.paths}
    left = {s.name: s for s in [*skipped, *tied, *refused] if s.name not in within}
    reported = sorted(left.values(), key=lambda s: order[s.name])
    return Sites(tuple(sites), tuple(reported), Cost(params=stored(model.parameters()), macs=macs), observed.uncounted, batch_dim)


def _check_weights(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise InvalidModel(f"model: {name!r} is of a lazy module that saw no input yet; run the model once, or load its weights")
        if tensor.is_meta:
            raise InvalidModel(f"model: {name!r} is on the meta device and holds no values; load the weights onto a real device")


def _check_globs(paths: Sequence[str], **rules: Rule | Sequence[Rule]) -> None:
    for name, given in rules.items():
        for rule in (given,) if isinstance(given, (str, type)) or callable(given) else given:
            if isinstance(rule, str) and rule != "*" and not any(matches(path, nn.Identity(), rule) for path in paths):
                raise InvalidArgument(f"{name}={rule!r} fits the path of no module; paths look like {', '.join(map(repr, paths[1:4]))}")


def _candidates(
    model: nn.Module,
    modules: dict[str, nn.Module],
    observed: Observed,
    batch: int,
    include: Rule | Sequence[Rule],
    exclude: Rule | Sequence[Rule],
) -> tuple[list[Site], list[Site], list[Skipped]]:
    """A site for every module that nothing speaks against, whoever else has its weight; apart from them those that are not called,
    which are skipped where they have their weight to themselves."""
    aliases: dict[int, list[str]] = {}  # module identity -> all its paths
    for path, module in model.named_modules(remove_duplicate=False):
        aliases.setdefault(id(module), []).append(path)
    sites: list[Site] = []
    idle: list[Site] = []
    skipped: list[Skipped] = []
    for path, module in modules.items():
        if not holds_weights(module):
            continue
        reason = objection(path, module) or _altered(path, observed)
        if reason is None and not matches(path, module, include):
            reason = "not included"
        if reason is None and matches(path, module, exclude):
            reason = "excluded"
        if reason is None:
            try:
                site = site_of(path, module, observed.calls.get(path, ()), batch)
            except ValueError as error:
                reason = str(error)
            else:
                site = replace(site, aliases=tuple(aliases[id(module)][1:]))
                if path in observed.calls:
                    check_finite(path, module)
                    sites.append(site)
                    continue
                idle.append(site)
                past = "its weight is used directly, past the layer, which a factorized one does not have"
                reason = past if f"{path}.weight" in observed.used else "not called in the forward pass on the example"
        skipped.append(skip(path, module, reason))
    return sites, idle, skipped


def _altered(path: str, observed: Observed) -> str | None:
    changed = observed.altered.get(path)
    return f"{changed}, so that a factorized layer would be fitted to something else: write it as a module" if changed else None
