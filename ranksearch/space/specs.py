"""A search space as it is declared, before a model is known: which types, which layers, which ranks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, get_args

from torch import nn

from ranksearch import checks
from ranksearch.costs import COSTS, CostModel
from ranksearch.decompositions import BITS, DECOMPOSITIONS, KNOWN, AnyDecomposition, with_bits
from ranksearch.errors import InvalidArgument, RanksearchWarning
from ranksearch.sites import BatchDim, Rule, Sites, find_sites
from ranksearch.space.ladder import ErrorName
from ranksearch.space.rules import without_effect
from ranksearch.space.space import SearchSpace, build_space
from ranksearch.space.spectra import Spectra
from ranksearch.statistics.metric import MetricName


@dataclass(frozen=True)
class SpaceSpec:
    """What a search may choose from.

    Attributes:
        decompositions: the types; ``dense`` is always one of them. `with_bits` gives types with weights of few bits besides.
        include, exclude: which layers may be factorized, see `find_sites`.
        round_to: ranks are multiples of this; 0: of what is free on the device, see `ranksearch.latency.rounding`, in studies that measure
            latency.
        max_options: at most so many options per ladder; None: all that nothing beats.
        error: which error decides whether an option is beaten.
        metric: what errors are taken in and factors are made for: ``weight`` (the default) needs no data;
            ``activation`` weighs by the inputs that layers see, ``fisher`` by these and by what the loss feels at their
            outputs, so that layers can be compared and summed: best without or with little fine-tuning. See
            `ranksearch.statistics.metric` for how the moments are collected (softmax temperature 3, two sampled labels per
            example).
        calibration: batches of training data for the moments; unused in the weight metric.
    """

    decompositions: tuple[AnyDecomposition, ...]
    include: Rule | Sequence[Rule] = "*"
    exclude: Rule | Sequence[Rule] = ()
    round_to: int = 1
    max_options: int | None = None
    error: ErrorName = "frobenius"
    metric: MetricName = "weight"
    calibration: int = 16

    def __post_init__(self) -> None:
        checks.whole("round_to", self.round_to, least=0)
        if self.max_options is not None:
            checks.whole("max_options", self.max_options, least=1)
        if self.metric not in get_args(MetricName):
            raise InvalidArgument(f"metric={self.metric!r} is none of {', '.join(get_args(MetricName))}")
        checks.whole("calibration", self.calibration, least=1, hint="batches")

    def replace(self, **changes: Any) -> SpaceSpec:
        """The same space with some attributes changed."""
        return replace(self, **changes)

    def sites(self, model: nn.Module, example: Any, *, batch_dim: BatchDim = 0) -> Sites:
        """The sites of a model that this space covers; ``batch_dim``: see `find_sites`. Warns (`RanksearchWarning`) of globs and
        types in ``include`` and ``exclude`` that match no layer, so that they have no effect."""
        found = find_sites(model, example, include=self.include, exclude=self.exclude, batch_dim=batch_dim)
        for name, rules in (("include", self.include), ("exclude", self.exclude)):
            for text in without_effect(model, name, rules):
                warnings.warn(text, RanksearchWarning, stacklevel=2)
        return found

    def build(self, spectra: Spectra, *, costs: Sequence[CostModel] = COSTS, example: Any = None) -> SearchSpace:
        """The ladders of prepared spectra; ``costs`` and ``example`` as for `build_space`."""
        built = build_space(
            spectra, error=self.error, round_to=self.round_to, max_options=self.max_options, costs=costs, example=example
        )
        return replace(built, spec=self)


RoundTo = Annotated[int, "ranks are multiples of this; 8 suits the tensor cores of GPUs; 0: as measured with --cost latency"]
Bits = Annotated[str, "weights may also be integers of so many bits, such as 8 or 8,4; needs a cost that tells them apart (--cost bytes)"]
MaxOptions = Annotated[int | None, "at most so many options per layer; default: all that no other option beats"]


def named(*names: str) -> tuple[AnyDecomposition, ...]:
    """Decompositions by name, in the order of the table, then those with few bits, such as ``svd@int8``.

    Raises:
        InvalidArgument: a name that is not in the table.
    """
    table = {d.name: d for d in KNOWN}
    unknown = [name for name in names if name not in table]
    if unknown:
        known = ", ".join(d.name for d in DECOMPOSITIONS)
        raise InvalidArgument(f"decompositions={unknown}: none of these is known; known are: {known}, and most with bits: svd@int{BITS[0]}")
    return tuple(d for d in KNOWN if d.name in names)


def bits_of(text: str | Sequence[int]) -> tuple[int, ...]:
    """Bits as options of spaces give them: ``"8,4"`` or numbers; of an empty text none.

    Raises:
        InvalidArgument: something else than 8 and 4.
    """
    try:
        found = tuple(int(part) for part in (text.split(",") if isinstance(text, str) else text) if part != "")
    except (TypeError, ValueError):
        found = (0,)
    if not set(found) <= set(BITS):
        raise InvalidArgument(f"bits={text!r}: give some of {', '.join(map(str, BITS))}, such as bits='8,4'")
    return found


def _typed(types: Sequence[AnyDecomposition], bits: str) -> tuple[AnyDecomposition, ...]:
    found = bits_of(bits)
    return with_bits(types, found) if found else tuple(types)


def all_types(*, bits: Bits = "", round_to: RoundTo = 1, max_options: MaxOptions = None) -> SpaceSpec:
    """The space in which every layer takes any type that is defined for it; those that are fitted by alternating least
    squares make the profile slower."""
    return SpaceSpec(_typed(DECOMPOSITIONS, bits), round_to=round_to, max_options=max_options)


def mixture(
    *,
    cp: Annotated[bool, "cp among the types: the smallest error of convolutions, and the dearest to profile"] = True,
    learned_groups: Annotated[bool, "grouped_svd also with channels reordered so that its groups lose least"] = False,
    bits: Bits = "",
    round_to: RoundTo = 1,
    max_options: MaxOptions = None,
) -> SpaceSpec:
    """The default: the types that win, layer by layer, on trained convolutional networks (`docs/types.md`). Every layer is
    dense, ``svd``, ``svd_in``, ``spatial`` in both orders, ``tucker2``, ``grouped_svd`` or ``cp``.

    Args:
        cp: the smallest error for convolutions by far, and the dearest to profile: seconds for a layer of 64 channels, about
            a minute for one of 256; the others take milliseconds in the weight metric. Without it large networks are
            profiled at once.
        learned_groups: ``grouped_svd_learned`` among the types: a better order of the channels at the same params and MACs, for one
            gather per layer.
        bits: integers that weights may be rounded to besides, ``"8,4"``; the bytes of the network are to be a cost then.
        round_to, max_options: see `SpaceSpec`.
    """
    further = [name for name, wanted in (("grouped_svd_learned", learned_groups), ("cp", cp)) if wanted]
    types = named("svd", "svd_in", "spatial", "spatial_t", "tucker2", "grouped_svd", *further)
    return SpaceSpec(_typed(types, bits), round_to=round_to, max_options=max_options)


def svd_only(*, bits: Bits = "", round_to: RoundTo = 1) -> SpaceSpec:
    """The space of most published work, to compare with: every layer is dense or ``svd`` at any rank that is a multiple of
    ``round_to``."""
    return SpaceSpec(_typed(named("svd"), bits), round_to=round_to)


PACKAGED: Mapping[str, Callable[..., SpaceSpec]] = {made.__name__: made for made in (mixture, svd_only, all_types)}


def declared(space: SpaceSpec | SearchSpace | str | None) -> SpaceSpec:
    """The declaration that is meant: a `SpaceSpec`; the one by which the space of a study was made (``study.space``), whatever network
    that is of; the name of one of the package's; None: `mixture`.

    Raises:
        InvalidArgument: none of these.
    """
    if isinstance(space, SpaceSpec):
        return space
    if isinstance(space, SearchSpace) and space.spec is not None:
        return space.spec
    if isinstance(space, SearchSpace):
        remedy = "this SearchSpace was not made by a SpaceSpec, and holds for its own network alone; give a SpaceSpec"
    elif callable(space):
        remedy = f"call it: space={getattr(space, '__name__', space)}()"
    else:
        remedy = f"give a SpaceSpec, the space of a study, or one of {', '.join(PACKAGED)}"
    name = "mixture" if space is None else space
    if isinstance(name, str) and name in PACKAGED:
        return PACKAGED[name]()
    raise InvalidArgument(f"space={space!r:.100}: {remedy}")
