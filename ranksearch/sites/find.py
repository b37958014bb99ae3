"""Find the factorizable layers (*sites*) of any ``nn.Module``: forward hooks on an example input, no tracing,
no edit of the model. Every module that holds a weight and is not a site is reported with the reason."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ranksearch.errors import InvalidArgument, InvalidModel
from ranksearch.sites.cost import Cost
from ranksearch.sites.modes import evaluating

Kind = Literal["conv2d", "conv1d", "linear", "transformers_conv1d", "embedding"]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Call:
    """One use of a site within the forward pass of one example."""

    batch: int  # how many times the layer is applied per example: 1, or the tokens of a linear layer
    input_size: Pair  # (height, width) before padding; (1, length) for 1-D, (1, 1) for linear layers
    output_size: Pair


@dataclass(frozen=True)
class Site:
    """One factorizable layer. Its *canonical weight* has shape (c_out, c_in / groups, kernel[0], kernel[1]),
    whatever the layer stores: 1-D convolutions have kernel (1, k), linear layers (1, 1), embeddings
    c_in = number of rows and c_out = dimension."""

    name: str  # module path; "" is the model itself
    kind: Kind
    c_out: int
    c_in: int
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair | Literal["same"] = (0, 0)
    padding_mode: str = "zeros"
    dilation: Pair = (1, 1)
    groups: int = 1
    bias: bool = True
    calls: tuple[Call, ...] = (Call(1, (1, 1), (1, 1)),)
    batched: bool = True  # False: a convolution called without a batch dimension
    aliases: tuple[str, ...] = ()  # other module paths that use the same weight; they are built with it
    head: Site | None = None  # an embedding's tied output head: the linear site that multiplies by the same weight

    @property
    def paths(self) -> tuple[str, ...]:
        """Every module path that is built with this site: its own, its aliases, those of its tied head."""
        return (self.name, *self.aliases, *(self.head.paths if self.head else ()))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the canonical weight."""
        return (self.c_out, self.c_in // self.groups, *self.kernel)

    @property
    def positions(self) -> int:
        """Output positions per example, over all calls: the rows of the im2col matrix."""
        return sum(c.batch * c.output_size[0] * c.output_size[1] for c in self.calls)

    @property
    def cost(self) -> Cost:
        """Params and MACs of the dense layer; with a tied head the weight is stored once and both uses are counted."""
        c_out, c_in, kh, kw = self.shape
        weights = c_out * c_in * kh * kw
        macs = 0 if self.kind == "embedding" else weights * self.positions
        cost = Cost(params=weights + (self.c_out if self.bias else 0), macs=macs)
        return cost if self.head is None else cost + self.head.cost - Cost(params=weights, macs=0)


@dataclass(frozen=True)
class Skipped:
    """A module with a weight that is not a site, and why."""

    name: str
    type: str
    params: int
    reason: str


@dataclass(frozen=True)
class Sites:
    """The sites of a model, what was left out, and params and MACs of the whole dense model."""

    sites: tuple[Site, ...]
    skipped: tuple[Skipped, ...]
    total: Cost

    def __iter__(self):
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __getitem__(self, name: str) -> Site:
        for site in self.sites:
            if name in site.paths:
                return site
        raise InvalidArgument(f"site={name!r} is not a site; sites are: {', '.join(s.name for s in self.sites)}")


Rule = str | type[nn.Module] | Callable[[str, nn.Module], bool]


def module_kind(module: nn.Module) -> Kind | None:
    """Which kind of site a module can be, or None."""
    if isinstance(module, nn.Conv2d):
        return "conv2d"
    if isinstance(module, nn.Conv1d):
        return "conv1d"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    # transformers' Conv1D is recognised by name so that transformers stays an optional package
    if type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers."):
        return "transformers_conv1d"
    return None


def canonical_weight(module: nn.Module, site: Site) -> Tensor:
    """The weight of ``module`` as a detached view in the site's canonical shape."""
    weight = module.get_parameter("weight").detach()
    if site.kind in ("embedding", "transformers_conv1d"):
        weight = weight.T
    return weight.reshape(site.shape)


def find_sites(
    model: nn.Module,
    example: Any,
    *,
    include: Rule | Sequence[Rule] = "*",
    exclude: Rule | Sequence[Rule] = (),
) -> Sites:
    """Find the sites of ``model`` by running it once, in evaluation mode, on ``example``.

    Args:
        model: any module; it is left exactly as it was (mode, buffers, hooks).
        example: the input of one forward pass: a tensor, a tuple of positional arguments or a dict of keyword
            arguments. Tensors have the batch first; costs are reported per example.
        include, exclude: which modules may be sites: glob on the module path, module type, or
            ``predicate(path, module)``; one or several. ``exclude`` wins.

    Raises:
        InvalidModel: a weight is NaN or infinite, or the forward pass fails.
        InvalidArgument: the example holds no tensor.
    """
    batch = _batch_size(example)
    calls: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
    modules = dict(model.named_modules())  # unique modules, first path wins
    with _hooks(modules, calls), evaluating(model), FlopCounterMode(display=False) as counter:
        try:
            run(model, example)
        except Exception as error:
            raise InvalidModel(f"example: the model's forward pass fails on it: {type(error).__name__}: {error}") from error
    total = Cost(params=sum(p.numel() for p in model.parameters()), macs=counter.get_total_flops() // (2 * batch))

    paths: dict[int, list[str]] = {}  # module identity -> all its paths
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(path)
    found: list[Site] = []
    skipped: list[Skipped] = []
    owner: dict[int, int] = {}  # weight identity -> index in found
    for path, module in modules.items():
        own = sum(p.numel() for p in module.parameters(recurse=False))
        kind = module_kind(module)
        if own == 0 and not (kind and getattr(module, "parametrizations", None)):
            continue
        reason = _refusal(path, module, kind, include, exclude, calls)
        if reason is None and kind is not None:
            try:
                site = _site(path, module, kind, calls[path], batch)
            except ValueError as error:
                reason = str(error)
            else:
                site = replace(site, aliases=tuple(paths[id(module)][1:]))
                weight = module.get_parameter("weight")
                if not bool(torch.isfinite(weight).all()):
                    raise InvalidModel(f"model: the weight of {path!r} holds NaN or infinite values; load sound weights")
                first = owner.get(id(weight))
                if first is None:
                    owner[id(weight)] = len(found)
                    found.append(site)
                    continue
                merged = _tie(found[first], site, modules)
                if merged is not None:
                    found[first] = merged
                    continue
                reason = f"shares its weight with {found[first].name!r} but is used in another way"
        if reason is not None:
            skipped.append(_skip(path, module, reason))
    kept, withdrawn = _shared_elsewhere(found, owner, modules)
    return Sites(kept, tuple(skipped + withdrawn), total)


def _shared_elsewhere(
    found: Sequence[Site], owner: Mapping[int, int], modules: Mapping[str, nn.Module]
) -> tuple[tuple[Site, ...], list[Skipped]]:
    """Sites apart from those whose weight some module uses that would not be built with them: factorizing these would
    untie the two and store the weight twice."""
    other: dict[int, str] = {}  # index in found -> the module that stands in the way
    for path, module in modules.items():
        for parameter in module._parameters.values():
            index = owner.get(id(parameter))
            if index is not None and path not in found[index].paths:
                other.setdefault(index, path)
    withdrawn = [
        _skip(path, modules[path], f"its weight is shared with {by!r}, used in another way, not called or excluded")
        for index, by in sorted(other.items())
        for path in found[index].paths
        if path in modules
    ]
    return tuple(site for index, site in enumerate(found) if index not in other), withdrawn


def run(model: nn.Module, example: Any) -> Any:
    """Call ``model`` on an example: a tensor, a tuple (positional) or a mapping (keyword arguments)."""
    if isinstance(example, Mapping):
        return model(**example)
    if isinstance(example, (tuple, list)):
        return model(*example)
    return model(example)


def _batch_size(example: Any) -> int:
    values: Iterable[Any] = example.values() if isinstance(example, Mapping) else example
    values = (example,) if isinstance(example, Tensor) else values
    for value in values:
        if isinstance(value, Tensor) and value.ndim:
            return value.shape[0]
    raise InvalidArgument(f"example={type(example).__name__} holds no tensor; give the input of one forward pass")


@contextmanager
def _hooks(modules: Mapping[str, nn.Module], calls: dict[str, list]):
    def record(path: str):
        def hook(_module, args, kwargs, output):
            value = args[0] if args else next(iter(kwargs.values()), None)
            if isinstance(value, Tensor) and isinstance(output, Tensor):
                calls.setdefault(path, []).append((tuple(value.shape), tuple(output.shape)))

        return hook

    handles = [
        module.register_forward_hook(record(path), with_kwargs=True)
        for path, module in modules.items()
        if module_kind(module) is not None
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _refusal(path, module, kind, include, exclude, calls) -> str | None:
    if kind is None:
        hint = ": see ranksearch.sites.attention.unpack_attention" if isinstance(module, nn.MultiheadAttention) else ""
        return f"no decomposition is defined for {type(module).__name__}{hint}"
    if own_forward(module):
        return f"{type(module).__name__} has a forward pass of its own, which a factorized layer would not have"
    if getattr(module, "parametrizations", None) or "weight" not in module._parameters or module._parameters["weight"] is None:
        return "its weight is not a plain parameter (parametrized, normalised or pruned): bake it in first"
    if getattr(module, "max_norm", None) is not None or getattr(module, "sparse", False):
        return "an embedding with max_norm or sparse gradients has no factorized equal"
    if path not in calls:
        return "not called in the forward pass on the example (or its weight is used directly)"
    if not matches(path, module, include):
        return "not included"
    if matches(path, module, exclude):
        return "excluded"
    return None


def own_forward(module: nn.Module) -> bool:
    """Whether a subclass of torch's layer computes something else than that layer."""
    plain = next((base for base in (nn.Conv2d, nn.Conv1d, nn.Linear, nn.Embedding) if isinstance(module, base)), None)
    if plain is None:
        return False
    return any(getattr(type(module), name, None) is not getattr(plain, name, None) for name in ("forward", "_conv_forward"))


def matches(path: str, module: nn.Module, rules: Rule | Sequence[Rule]) -> bool:
    """Whether one of ``rules`` (see `find_sites`) holds for a module."""
    if isinstance(rules, (str, type)) or callable(rules):
        rules = (rules,)
    for rule in rules:
        if isinstance(rule, str):
            if fnmatch.fnmatchcase(path, rule):
                return True
        elif isinstance(rule, type):
            if isinstance(module, rule):
                return True
        elif rule(path, module):
            return True
    return False


def _skip(path: str, module: nn.Module, reason: str) -> Skipped:
    return Skipped(path, type(module).__name__, sum(p.numel() for p in module.parameters(recurse=False)), reason)


def _site(path: str, module: Any, kind: Kind, shapes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], batch: int) -> Site:
    bias = getattr(module, "bias", None) is not None
    if kind in ("conv2d", "conv1d"):
        pad = module.padding
        return Site(
            path, kind, module.out_channels, module.in_channels,
            kernel=_pair(module.kernel_size, 1), stride=_pair(module.stride, 1),
            padding=(0, 0) if pad == "valid" else "same" if pad == "same" else _pair(pad, 0),
            padding_mode=module.padding_mode, dilation=_pair(module.dilation, 1), groups=module.groups, bias=bias,
            batched=all(len(i) == (4 if kind == "conv2d" else 3) for i, _ in shapes),
            calls=tuple(_conv_call(i, o, 2 if kind == "conv2d" else 1, batch) for i, o in shapes),
        )  # fmt: skip
    if kind == "embedding":
        rows, dim = module.weight.shape
        calls = tuple(Call(_per_example(_numel(i), batch), (1, 1), (1, 1)) for i, _ in shapes)
        return Site(path, kind, dim, rows, bias=False, calls=calls)
    c_out, c_in = module.weight.shape if kind == "linear" else module.weight.shape[::-1]
    calls = tuple(Call(_per_example(_numel(i) // c_in, batch), (1, 1), (1, 1)) for i, _ in shapes)
    return Site(path, kind, c_out, c_in, bias=bias, calls=calls)


def _conv_call(input_shape: tuple[int, ...], output_shape: tuple[int, ...], dims: int, batch: int) -> Call:
    images = _numel(input_shape[: -dims - 1])  # 1 for an unbatched input
    size = (1, *input_shape[-1:]) if dims == 1 else input_shape[-2:]
    out = (1, *output_shape[-1:]) if dims == 1 else output_shape[-2:]
    return Call(_per_example(images, batch), (size[0], size[1]), (out[0], out[1]))


def _per_example(count: int, batch: int) -> int:
    if count % batch:
        raise ValueError(f"applied {count} times to a batch of {batch}: give an example with a batch of 1")
    return count // batch


def _numel(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _pair(value: Sequence[int], fill: int) -> Pair:
    return (fill, value[0]) if len(value) == 1 else (value[0], value[1])


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
