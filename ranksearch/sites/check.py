"""Sites are tried before anything is paid for: the model is run once more with an equal layer in the place of every site. That layer must
be called and must give the same outputs, and the model may read of it only what a factorized layer has too."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.errors import InvalidModel
from ranksearch.sites.copies import copied, take_over
from ranksearch.sites.forward import tensors_of
from ranksearch.sites.layers import WINDOWED, module_kind, skip
from ranksearch.sites.observe import METADATA, Observed, forward
from ranksearch.sites.site import Site, Skipped
from ranksearch.sites.subclasses import Scale

# what a factorized layer can answer of a weight that it does not hold: of memory and gradients it knows nothing
ANSWERED = METADATA - {Tensor.requires_grad.__get__, Tensor.is_leaf.__get__, Tensor.stride, Tensor.is_contiguous}  # pyright: ignore[reportAttributeAccessIssue]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def tried(model: nn.Module, example: Any, sites: Sequence[Site], observed: Observed) -> tuple[list[Site], list[Skipped]]:
    """The sites that can be replaced, with what the model reads of them, and those that cannot, with the reason.

    Args:
        model: not changed, and not run: copies are.
        observed: of the model on ``example``.

    Raises:
        InvalidModel: single layers can be replaced and all of them cannot.
    """
    modules, output = dict(model.named_modules()), observed.output
    kept, skipped = list(sites), []
    while kept:
        trial = _try(model, example, kept)
        reasons = trial.objections(kept, observed.calls)
        if not reasons and not trial.equals(output):
            reasons = _culprits(model, example, kept, output)
            if reasons is None:
                break
            if not reasons:
                told = trial.error or "its outputs are others"
                raise InvalidModel(f"model: with equal layers in the place of its sites it does not work as before: {told}; exclude some")
        if not reasons:
            kept = [replace(site, reads=trial.read_of(site)) for site in kept]
            break
        for site in kept:
            if site.name in reasons:
                skipped += [skip(path, modules[path], reasons[site.name]) for path in site.paths if path in modules]
        kept = [site for site in kept if site.name not in reasons]
    return kept, skipped


def _culprits(model: nn.Module, example: Any, sites: Sequence[Site], output: Any) -> dict[str, str] | None:
    """The layers that the model does not work without, one by one; None where its outputs cannot be compared, since it does not
    give the same ones twice."""
    if not _try(model, example, ()).equals(output):
        return None
    reasons = {}
    for site in sites:
        trial = _try(model, example, [site])
        if not trial.equals(output):
            reasons[site.name] = f"with an equal layer in its place the model {trial.error or 'gives other outputs'}"
    return reasons


@dataclass
class _Seen:
    """What became of one stand-in."""

    called: int = 0
    read: set[str] = field(default_factory=set)  # "weight", "bias": what it is, or the bias itself
    used: set[str] = field(default_factory=set)  # what a factorized layer does not have


@dataclass(frozen=True)
class _Trial:
    """The model with equal layers: its output or its error, and what became of each layer."""

    seen: Mapping[str, _Seen]  # by path
    output: Any
    error: str | None

    def equals(self, output: Any) -> bool:
        """Whether the output is the same up to rounding."""
        if self.error is not None:
            return False
        new, old = (list(tensors_of(value)) for value in (self.output, output))
        return len(new) == len(old) and all(_close(a, b) for (_, a), (_, b) in zip(new, old, strict=True))

    def objections(self, sites: Sequence[Site], called: Collection[str]) -> dict[str, str]:
        """What speaks against replacing a layer, by the name of its site; ``called`` are the paths of layers that the model calls."""
        reasons = {}
        for site in sites:
            for path in site.paths:
                seen = self.seen.get(path)
                if seen is None:
                    continue
                if seen.used:
                    used = ", ".join(sorted(seen.used))
                    reasons[site.name] = f"the model uses its {used} past the layer, which a factorized one does not have"
                elif self.error is None and path in called and not seen.called:
                    reasons[site.name] = "it is not called any more once another layer is in its place"
        return reasons

    def read_of(self, site: Site) -> tuple[str, ...]:
        return tuple(sorted({name for path in site.paths if path in self.seen for name in self.seen[path].read}))


def _try(model: nn.Module, example: Any, sites: Sequence[Site]) -> _Trial:
    memo: dict[int, Any] = {}
    pairs, seen = [], {}
    for site in sites:
        for path in dict.fromkeys(site.paths):
            original = model.get_submodule(path)
            if id(original) not in memo:
                seen[path] = _Seen()
                embedding = site.kind == "embedding" and path in (site.name, *site.aliases)
                memo[id(original)] = _StandIn(original, seen[path], embedding=embedding, scale=site.scale if embedding else 1.0)
                pairs.append((memo[id(original)], original))
    for layer, original in pairs:
        take_over(layer, original, memo)
    try:
        return _Trial(seen, forward(model, copied(model, memo, share=True), example), None)
    except InvalidModel as error:
        cause = error.__cause__ or error
        return _Trial(seen, None, f"fails: {type(cause).__name__}: {cause}")


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point() or not a.numel() or a.layout is not torch.strided:
        return True  # rounding may move an index by any amount
    a, b = a.detach(), b.detach()
    largest = float(torch.where(b.isfinite(), b, torch.zeros_like(b)).abs().max())
    tolerance = TOLERANCE.get(a.dtype, 1e-2)
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * largest, equal_nan=True)


class _StandIn(nn.Sequential):
    """An equal layer that is, like a factorized one, a sequence of layers without a weight of its own. It notes how it is used."""

    def __init__(self, original: nn.Module, seen: _Seen, *, embedding: bool, scale: float) -> None:
        super().__init__(_bare(original, embedding), *([Scale(scale)] if scale != 1.0 else []))
        self._seen, self._original = seen, (original,)  # in a tuple: no submodule
        self.train(original.training)

    def forward(self, input: Tensor) -> Tensor:
        self._seen.called += 1
        return super().forward(input)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            original = vars(self).get("_original")
            if original is None or name.startswith("__") or not hasattr(original[0], name):
                raise
            if name not in ("weight", "bias"):
                self._seen.used.add(name)
                raise
            self._seen.read.add(name)
            value = getattr(self[0], name)
            return value if name == "bias" or value is None else _watched(value, self._seen)


def _bare(original: nn.Module, embedding: bool) -> nn.Module:
    """torch's own layer with the weights of ``original``, without anything else that may be on it."""
    weight, bias = original.get_parameter("weight"), original._parameters.get("bias")
    if isinstance(original, tuple(WINDOWED.values())):
        kind: Any = WINDOWED[module_kind(original)]  # pyright: ignore[reportArgumentType]
        further = {"output_padding": original.output_padding} if original.transposed else {}
        layer = kind(
            original.in_channels, original.out_channels, original.kernel_size, stride=original.stride, padding=original.padding,
            dilation=original.dilation, groups=original.groups, bias=bias is not None, padding_mode=original.padding_mode, device="meta",
            **further,
        )  # fmt: skip
    elif isinstance(original, (nn.Conv1d, nn.Conv2d)):
        kind = nn.Conv2d if isinstance(original, nn.Conv2d) else nn.Conv1d
        layer = kind(
            original.in_channels, original.out_channels, original.kernel_size, original.stride, original.padding, original.dilation,
            original.groups, bias is not None, original.padding_mode, device="meta",
        )  # fmt: skip
    elif embedding:
        layer = nn.Embedding(*weight.shape, padding_idx=getattr(original, "padding_idx", None), device="meta")
    else:
        weight = weight if isinstance(original, nn.Linear) else weight.T
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=bias.requires_grad)
    return layer


class _Watched(Tensor):
    """A weight that notes when something is computed with it."""

    _seen: _Seen

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        only_type = func is Tensor.to and not isinstance(args[0], _Watched)
        if func not in ANSWERED and not only_type:
            for _, tensor in tensors_of((args, kwargs)):
                if isinstance(tensor, _Watched):
                    tensor._seen.used.add("weight")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)


def _watched(weight: Tensor, seen: _Seen) -> Tensor:
    watched = weight.detach().as_subclass(_Watched)
    watched._seen = seen
    return watched
