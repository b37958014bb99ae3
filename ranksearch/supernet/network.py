"""A network whose layers run at any (type, rank) of one dense weight. Another configuration is chosen by other projections of the
weights; no module is rebuilt."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch import checks
from ranksearch.decompositions import Rank
from ranksearch.errors import InvalidArgument
from ranksearch.networks import batch_norm, surgery
from ranksearch.sites import Site, copied, outside_autocast, to_canonical, to_stored, unwrapped
from ranksearch.space import DENSE, Configuration, SearchSpace
from ranksearch.space.spectra import Spectra
from ranksearch.supernet._bases import Bases, Side, moved
from ranksearch.supernet.cp_projection import CPProjection
from ranksearch.supernet.projections import PROJECTIONS, GramProjection, Halves, Wanted, solve
from ranksearch.tensors import content

Key = tuple[str, str, Rank]  # site, decomposition, the part of the rank that its basis depends on
REFIT = 25  # refreshes between two fits of a fitted type's bases, which take tens of milliseconds each


@dataclass(frozen=True)
class Choice:
    """One factorized site of a configuration, looked up once."""

    site: Site
    decomposition: str
    rank: Rank

    @property
    def key(self) -> Key:
        """The key of the basis that this choice needs."""
        return self.site.name, self.decomposition, PROJECTIONS[self.decomposition].key(self.rank)


class RankSupernet(nn.Module):
    """``model`` with every layer of ``space`` at any rank of any projecting type (`PROJECTIONS`), all of them views of one
    dense weight per site: W_r = U_r U_r^T W on cached bases that no gradient passes through.

    Args:
        model: copied; it is never changed.
        space: what `activate` is given configurations of; types that do not project are refused there.
        spectra: sites, decompositions and the metric: the bases are those of the weight whitened by its moments.
        refresh: optimiser steps (`tick`) between two eigendecompositions; the paper's first version has 2. CP, which is
            fitted iteratively, from where it was, waits ``REFIT`` times as long.

    With the dense configuration active it computes what ``model`` computes, bit for bit. Any other pass has batch-norm
    statistics of its own (``low_buffers``); scale, shift and biases are shared (Decomposable-Net, arXiv 1910.13141).

    Bases are a function of the weights alone, in float32 (float64 for float64 weights) and outside autocast, so that all
    processes of a distributed run have the same ones. They stay those of an earlier weight until `tick`, `refresh`,
    ``load_state_dict`` or a move to another device or dtype.

    Raises:
        InvalidArgument: ``refresh`` below 1, or spectra of another network.
    """

    def __init__(self, model: nn.Module, space: SearchSpace, *, spectra: Spectra, refresh: int = 2) -> None:
        super().__init__()
        checks.whole("refresh", refresh, least=1, hint="bases are made anew every so many steps")
        self.model = copied(unwrapped(model))
        self.space, self.sites = space, spectra.sites
        self.refresh_every = refresh
        self.active: Configuration = DENSE
        self._decompositions = spectra.decompositions
        self._moments = spectra.moments
        self._holders: dict[str, list[nn.Module]] = {}  # the modules that a site's weight is in, its own first
        for site in self.sites:
            try:
                self._holders[site.name] = list({id(m): m for m in map(self.model.get_submodule, site.paths)}.values())
                fits = canonical(self.weight(site.name), site).shape == site.shape
            except (AttributeError, RuntimeError) as error:
                raise InvalidArgument(f"spectra: site {site.name!r} is not in the model: {error}; make them of this network") from error
            if not fits:
                raise InvalidArgument(f"spectra: site {site.name!r} has another shape in the model; make them of this network")
        self._norms = batch_norm.running_norms(self.model)
        self.low_buffers = nn.Module()  # the running statistics of every low-rank pass, starting at those of the dense one
        self._low_names: dict[str, str] = {}  # path of a buffer in the model -> its name in low_buffers
        for path, norm in self._norms.items():
            for name, buffer in norm.named_buffers(recurse=False):
                full = _join(path, name)
                self._low_names[full] = full.replace(".", "__")
                self.low_buffers.register_buffer(self._low_names[full], buffer.detach().clone())
        self._bases: dict[Key, Bases] = {}
        self._halves: dict[Key, Halves] = {}
        self._spectra = spectra  # where the first fit of a fitted type starts
        self._kernels: dict[Key, tuple[Tensor, ...]] = {}  # where the next one does
        self._fitted_to: dict[Key, int] = {}  # checksum of the weight that a fitted basis was made for
        self._stamp = 0  # counts refreshes: part of the cache key of projected weights
        self._ticks = 0
        self._projected: dict[str, tuple[Any, Tensor]] = {}
        self._checked: dict[tuple[str, str, Rank], Choice] = {}
        self._choices: tuple[Choice, ...] = ()
        self.register_load_state_dict_post_hook(_loaded)

    # ---- configurations -------------------------------------------------------------------------------------------

    def activate(self, configuration: Configuration) -> None:
        """Choose what `forward` computes. Nothing is built; a missing basis is made at the next pass.

        Raises:
            InvalidArgument: a site that is not here, a type that does not project, or a rank that does not exist."""
        self._choices = self._look_up(configuration)
        self.active = configuration

    def choices(self, configuration: Configuration) -> tuple[Choice, ...]:
        """The factorized sites of a configuration, by site, checked; raises as `activate`."""
        return self._look_up(configuration)

    def _look_up(self, configuration: Configuration) -> tuple[Choice, ...]:
        checked = self._checked
        found = []
        for choice in configuration.choices:
            known = checked.get(choice)
            if known is None:
                known = checked[choice] = self._check(configuration, *choice)
            found.append(known)
        return tuple(found)

    def _check(self, configuration: Configuration, name: str, decomposition: str, rank: Rank) -> Choice:
        where = f"configuration {configuration.id}"
        try:
            site = self.sites[name]
        except InvalidArgument as error:
            raise InvalidArgument(f"{where}: {error}") from error
        if decomposition not in PROJECTIONS:
            raise InvalidArgument(
                f"{where}: {decomposition!r} at {name!r} is no projection of the dense weight; a supernet has {', '.join(PROJECTIONS)}"
            )
        if decomposition not in self._decompositions:
            raise InvalidArgument(f"{where}: {decomposition!r} is not in use; in use: {', '.join(self._decompositions)}")
        reason = self._decompositions[decomposition].undefined(site)
        if reason is not None:
            raise InvalidArgument(f"{where}: {decomposition} is not defined for {name!r}: {reason}")
        PROJECTIONS[decomposition].split_rank(site, rank)
        return Choice(site, decomposition, rank)

    # ---- passes ---------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network at the active configuration. Without gradients, projected weights are kept until the weight, its
        basis or the option changes, so that evaluation runs at the dense network's speed."""
        return self._run(self._choices, None, args, kwargs)

    def forward_with(
        self, configuration: Configuration, *args: Any, through: Mapping[str, Tensor] | None = None, projected: bool = False, **kwargs: Any
    ) -> Any:
        """The network at a given configuration; the active one stays as it is.

        Args:
            through: tensors to use in place of the dense weights, by site name, each in the shape its layer stores; they
                are projected like the weights. Gradients reach these tensors, so that a caller can treat them apart.
            projected: ``through`` has the low-rank weight of every factorized site already: nothing is projected.
        """
        return self._run(self._look_up(configuration), through, args, kwargs, projected=projected)

    def _run(
        self,
        choices: tuple[Choice, ...],
        through: Mapping[str, Tensor] | None,
        args: tuple,
        kwargs: dict[str, Any],
        *,
        projected: bool = False,
    ) -> Any:
        if not choices and not through:
            return self.model(*args, **kwargs)
        replaced = {self.sites[name].name: tensor for name, tensor in (through or {}).items()}
        left = tuple(choice for choice in choices if choice.site.name not in replaced) if projected else choices
        weights = self._low_weights(left, replaced)
        replaced |= {choice.site.name: weight for choice, weight in zip(left, weights, strict=True)}
        with self._weights_in_place(replaced), self._low_buffers_in_place() if choices else nullcontext():
            return self.model(*args, **kwargs)

    @contextmanager
    def _weights_in_place(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """The layers of these sites hold other weights while the block lasts, under every name that they have.
        (`torch.func.functional_call` leaves its tensors behind in modules that have two names, and walks all parameters at every call.)"""
        taken: list[tuple[dict[str, Any], Any]] = []
        try:
            for name, weight in weights.items():
                for holder in self._holders[name]:
                    slots: dict[str, Any] = holder._parameters
                    taken.append((slots, slots["weight"]))
                    slots["weight"] = weight
            yield
        finally:
            for slots, own in reversed(taken):
                slots["weight"] = own

    def low_weight(self, choice: Choice, *, of: Tensor | None = None) -> Tensor:
        """The dense weight that stands for a choice, in the shape its layer stores; differentiable in the weight, or in
        ``of``, which is used in its place."""
        return self._low_weights((choice,), {} if of is None else {choice.site.name: of})[0]

    def _low_weights(self, choices: tuple[Choice, ...], through: Mapping[str, Tensor]) -> list[Tensor]:
        self._make_bases(choices)
        keep = not torch.is_grad_enabled() and not through
        result = []
        with outside_autocast(self.model):
            for choice in choices:
                name = choice.site.name
                weight = self.weight(name)
                stamp: Any = None
                if keep:
                    stamp = (choice.decomposition, choice.rank, weight._version, weight.data_ptr(), weight.dtype, self._stamp)
                    kept = self._projected.get(name)
                    if kept is not None and kept[0] == stamp:
                        result.append(kept[1])
                        continue
                source = through.get(name, weight)
                projection, dense = PROJECTIONS[choice.decomposition], canonical(source, choice.site)
                factors = projection.factors(choice.site, dense, self._bases[choice.key], choice.rank)
                low = layered(self._decompositions[choice.decomposition].compose(choice.site, factors), choice.site, source)
                if keep:
                    self._projected[name] = (stamp, low)
                result.append(low)
        return result

    # ---- bases ----------------------------------------------------------------------------------------------------

    def bases(self, choice: Choice) -> Bases:
        """The basis in use for a choice; it is made if there is none."""
        self._make_bases((choice,))
        return self._bases[choice.key]

    def _make_bases(self, choices: Iterable[Choice]) -> None:
        missing = {choice.key: choice for choice in choices if choice.key not in self._bases}
        if not missing:
            return
        with torch.inference_mode(False), torch.no_grad(), outside_autocast(self.model):
            wanted: dict[Key, Wanted] = {}
            for key, choice in missing.items():
                projection, weight = PROJECTIONS[choice.decomposition], canonical(self.weight(key[0]), choice.site)
                if isinstance(projection, GramProjection):
                    if key not in self._halves:
                        self._halves[key] = projection.metric(choice.site, weight, key[2], self._moments.get(key[0]))
                    wanted[key] = (projection, choice.site, weight, key[2], self._halves[key])
                elif isinstance(projection, CPProjection):
                    start = self._kernels.get(key) or self._spectra.factors(choice.site, choice.decomposition, choice.rank)[1:]
                    self._bases[key] = found = projection.fit(choice.site, weight, start, self._moments.get(key[0]))
                    self._kernels[key] = projection.kernels(found)
                    self._fitted_to[key] = _checksum(weight)
            self._bases.update(zip(wanted, solve(list(wanted.values())), strict=True))

    def refresh(self) -> None:
        """Drop all bases; the next pass makes those that it needs from the weights as they are then. Fitted bases of weights that
        have not changed stay, so that what is measured does not depend on how often this was called."""
        sums: dict[str, int] = {}
        for name in {key[0] for key in self._bases if key in self._fitted_to}:
            sums[name] = _checksum(canonical(self.weight(name), self.sites[name]))
        self._bases = {key: bases for key, bases in self._bases.items() if sums.get(key[0], -1) == self._fitted_to.get(key)}
        self._projected.clear()
        self._stamp += 1

    def tick(self) -> None:
        """Count an optimiser step; call it once after every one. Every ``refresh_every`` steps this drops the bases, and those that
        are fitted (CP) every ``REFIT`` times as many."""
        self._ticks += 1
        if self._ticks % (REFIT * self.refresh_every) == 0:
            self.refresh()
        elif self._ticks % self.refresh_every == 0:
            self._bases = {key: bases for key, bases in self._bases.items() if PROJECTIONS[key[1]].fitted}
            self._projected.clear()
            self._stamp += 1

    def bases_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The bases in use and the count of ticks, for a checkpoint that goes on exactly: tensors by name, and JSON."""
        tensors: dict[str, Tensor] = {}
        entries = []
        for i, (key, bases) in enumerate(self._bases.items()):
            entries.append([key[0], key[1], list(key[2]), bases.left, len(bases.sides)])
            for j, side in enumerate(bases.sides):
                tensors |= {f"{i}.{j}.out": side.out, f"{i}.{j}.into": side.into, f"{i}.{j}.energies": side.energies}
        kernels = []
        for i, (key, modes) in enumerate(self._kernels.items()):
            kernels.append([key[0], key[1], list(key[2]), len(modes), self._fitted_to[key]])
            tensors |= {f"kernels.{i}.{j}": mode for j, mode in enumerate(modes)}
        return tensors, {"ticks": self._ticks, "entries": entries, "kernels": kernels}

    def load_bases_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Inverse of `bases_state`, once the weights are loaded."""
        self._bases.clear()
        self.refresh()
        self._ticks = int(state["ticks"])
        for i, (name, decomposition, labels, left, sides) in enumerate(state["entries"]):
            device = self.weight(name).device
            parts = (tuple(tensors[f"{i}.{j}.{part}"].to(device) for part in ("out", "into", "energies")) for j in range(sides))
            self._bases[name, decomposition, tuple(labels)] = Bases(bool(left), tuple(Side(*part) for part in parts))
        self._kernels.clear()
        self._fitted_to.clear()
        for i, (name, decomposition, rank, modes, checksum) in enumerate(state["kernels"]):
            key = (name, decomposition, tuple(rank))
            self._kernels[key], self._fitted_to[key] = tuple(tensors[f"kernels.{i}.{j}"] for j in range(modes)), checksum

    # ---- weights, buffers -----------------------------------------------------------------------------------------

    def weight(self, site: str) -> nn.Parameter:
        """The dense weight of a site, in the shape its layer stores."""
        holders = self._holders.get(site) or self._holders[self.sites[site].name]
        weight = holders[0]._parameters["weight"]
        assert isinstance(weight, nn.Parameter)
        return weight

    def extract(self, configuration: Configuration | None = None) -> nn.Module:
        """A new network of plain layers that computes what this one computes at a configuration (default: the active one),
        on the current bases, with the batch-norm statistics of its pass. Nothing is shared with the supernet; call
        `refresh` first for bases of the weights as they are.

        Raises:
            InvalidArgument: as `activate`."""
        choices = self._choices if configuration is None else self._look_up(configuration)
        if not choices:
            return copy.deepcopy(self.model)
        self._make_bases(choices)
        layers: dict[str, nn.Module] = {}
        with torch.no_grad(), outside_autocast(self.model):
            for choice in choices:
                holder, weight = self._holders[choice.site.name][0], self.weight(choice.site.name)
                dense = canonical(weight, choice.site)
                projection = PROJECTIONS[choice.decomposition]
                factors = projection.factors(choice.site, dense, self._bases[choice.key], choice.rank, balanced=True)
                bias = holder._parameters.get("bias")
                layer = self._decompositions[choice.decomposition].module(choice.site, factors, None if bias is None else bias.detach())
                layers[choice.site.name] = surgery.conformed(layer, holder)
        network = surgery.replace_sites(self.model, [choice.site for choice in choices], layers)
        for full, name in self._low_names.items():
            network.get_buffer(full).copy_(self.low_buffers.get_buffer(name))
        return network

    def recalibrate(self, batches: Iterable[Any]) -> int:
        """Re-estimate the batch-norm statistics of the active configuration's pass from batches of inputs: the low-rank set, or
        the model's own when the dense network is active. Returns how many norms were re-estimated; see
        `batch_norm.recalibrate`."""
        if not self._choices:
            return batch_norm.recalibrate(self.model, batches)
        with self._low_buffers_in_place():
            return batch_norm.recalibrate(self, batches)

    @contextmanager
    def _low_buffers_in_place(self) -> Iterator[None]:
        """The model's norms hold the low-rank statistics while the block lasts."""
        taken: list[tuple[dict[str, Any], str, Any]] = []
        try:
            for path, norm in self._norms.items():
                for name, own in norm._buffers.items():
                    if (low := self._low_names.get(_join(path, name))) is not None:
                        taken.append((norm._buffers, name, own))
                        norm._buffers[name] = self.low_buffers._buffers[low]
            yield
        finally:
            for slots, name, own in reversed(taken):
                slots[name] = own

    def _apply(self, fn: Any, recurse: bool = True) -> RankSupernet:
        super()._apply(fn, recurse)
        fitted = {key: bases for key, bases in self._bases.items() if PROJECTIONS[key[1]].fitted}
        self.refresh()
        self._bases.update({key: moved(bases, self.weight(key[0])) for key, bases in fitted.items()})
        self._halves.clear()
        return self


def _checksum(weight: Tensor) -> int:
    return zlib.crc32(content(weight))


def _loaded(module: nn.Module, _incompatible: Any) -> None:
    assert isinstance(module, RankSupernet)
    module.refresh()


def canonical(weight: Tensor, site: Site) -> Tensor:
    """A weight as its layer stores it, in the site's canonical shape (c_out, c_in / groups, kh, kw); differentiable."""
    return to_canonical(weight, site)


def layered(weight: Tensor, site: Site, like: Tensor) -> Tensor:
    """Inverse of `canonical`, in the shape of ``like``; differentiable."""
    return to_stored(weight, site, like.shape)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
