"""One factorized layer: what it is fitted to, at which ridge, and its factors written into the network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ranksearch.decompositions import AnyDecomposition, Moments, Quantized, Rank
from ranksearch.networks.reconstruction.last import last_site, last_type
from ranksearch.networks.reconstruction.moments import LayerMoments
from ranksearch.networks.reconstruction.refit import QUICK, Effort, refit
from ranksearch.networks.reconstruction.regression import goal
from ranksearch.networks.reconstruction.room import layer_device, too_wide
from ranksearch.networks.reconstruction.sweep import Seen
from ranksearch.sites import Site, UnpackedExperts, canonical_weight
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra


@dataclass(frozen=True)
class Fitted:
    """Factors of a layer, in the layout of its type, and its bias; float64."""

    factors: tuple[Tensor, ...]
    bias: Tensor | None


@dataclass(frozen=True)
class Choice:
    """A fit that was chosen, and the errors of the layer before and after it."""

    fitted: Fitted
    ridge: float | None  # None: no fit is better than the layer as it was
    before: float
    after: float


@dataclass(frozen=True)
class Layer:
    """A factorized layer as its type sees it, and the dense one that it stands for."""

    site: Site
    decomposition: AnyDecomposition
    rank: Rank
    weight: Tensor  # of the dense layer, canonical
    bias: Tensor | None
    output: Callable[[], Tensor | None]  # G, see `LayerMoments`; made when asked for: those of all layers are large
    start: Callable[[], Fitted]  # the factors as they were built; made when asked for, too
    device: torch.device  # where the network runs
    routed: bool  # what it is given depends on the network: it is fitted to the dense layer's answers to its own inputs
    before: nn.Module | None = None  # the layers before it, where it is but the last of a chain; ``weight`` is then that which it has

    def moments(self, seen: Seen, fitted_to: int, *, measured: bool = False) -> tuple[LayerMoments, LayerMoments]:
        """Those of the batches up to a number, and of the others, which may be asked for errors; the first where they are ``measured``."""
        output = self.output()
        fitting, checking = (LayerMoments.none(self.site, output, self.device, measured=errors) for errors in (measured, True))
        for number, given, wanted in seen:
            if self.before is not None:
                with torch.no_grad():
                    given = self.before(given)
            (fitting if number < fitted_to else checking).add(given, wanted)
        if self.routed:
            return fitting.answered_by(self.weight, self.bias), checking.answered_by(self.weight, self.bias)
        return fitting, checking

    def error(self, now: Fitted, seen: LayerMoments) -> float:
        """See `LayerMoments.error`."""
        return seen.error(self.decomposition.compose(self.site, now.factors), now.bias)

    def fit(self, now: Fitted, seen: LayerMoments, ridge: float, effort: Effort = QUICK) -> Fitted:
        """The layer that is best at a ridge for what was seen; ``now`` where that teaches nothing."""
        if not seen.usable:
            return now
        wanted = goal(seen, self.weight, ridge)
        factors = refit(self.decomposition, self.site, self.rank, now.factors, wanted, effort)
        if not all(bool(torch.isfinite(factor).all()) for factor in factors):
            return now
        return Fitted(factors, wanted.bias(self.decomposition.compose(self.site, factors)))

    def best(
        self, now: Fitted, seen: LayerMoments, unseen: LayerMoments, ridges: Sequence[float], effort: Effort = QUICK
    ) -> Choice:  # fmt: skip
        """The fit, of several ridges, that is best on what was not seen. Descent goes on from one ridge to the next."""
        before = self.error(now, unseen)
        best, found = Choice(now, None, before, before), now
        for ridge in ridges if unseen.usable else ():
            found = self.fit(found, seen, ridge, effort)
            error = self.error(found, unseen)
            if error < best.after:
                best = Choice(found, ridge, before, error)
        return best

    def write(self, fitted: Fitted, layer: nn.Module) -> None:
        """Make ``layer`` that of the factors, in place; what it shares with others stays shared."""
        made = self.decomposition.module(self.site, fitted.factors, fitted.bias)
        if self.before is not None:
            assert isinstance(layer, nn.Sequential)
            layer = layer[-1]
        with torch.no_grad():
            for now, value in zip(held(layer), held(made), strict=True):
                now.copy_(value)


def held(layer: nn.Module) -> list[Tensor]:
    """What a built layer consists of: its parameters, and the buffers of weights that are integers."""
    return [*layer.parameters(), *layer.buffers()]


def left_out(spectra: Spectra, configuration: Configuration) -> dict[str, str]:
    """The factorized layers of a configuration that reconstruction leaves as they are, and why, by name."""
    found = {}
    experts = _experts(spectra.model)
    biases = Counter(id(bias) for module in spectra.model.modules() if (bias := module._parameters.get("bias")) is not None)
    for name, kind, rank in configuration.choices:
        site = spectra.sites[name]
        wide = too_wide(site, device := layer_device(spectra, site))
        last = last_site(site, spectra.decomposition(kind), rank, device) if wide else None
        if site.head is not None:
            found[name] = "an embedding that is tied to a head has two uses, and no single inputs"
        elif site.kind == "embedding":
            found[name] = "an embedding has the same inputs in both networks: nothing shifts"
        elif isinstance(last, str):
            found[name] = last
        elif last is not None and name.startswith(experts):
            found[name] = f"an expert of {wide}"
        elif biases[id(spectra.model.get_submodule(name)._parameters.get("bias"))] > 1:
            found[name] = "its bias is that of another layer too"
    return found


def _experts(model: nn.Module) -> tuple[str, ...]:
    """What the paths of experts begin with."""
    return tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, UnpackedExperts))


def layers_of(network: nn.Module, spectra: Spectra, configuration: Configuration, metric: Mapping[str, Moments]) -> dict[str, Layer]:
    """The layers that can be fitted, by path; of those with more inputs than there is room for the last of their chain alone.
    ``metric``: whose output moments weigh their errors."""
    reference, left = spectra.model, left_out(spectra, configuration)
    experts = _experts(reference)
    layers = {}
    for name, kind, rank in configuration.choices:
        if name in left:
            continue
        site, original = spectra.sites[name], reference.get_submodule(name)
        weight, bias = canonical_weight(original, site), original._parameters.get("bias")
        bias = None if bias is None else bias.detach().to(weight.device, torch.float64)
        start = partial(_as_built, spectra, site, kind, rank, bias)
        output = partial(_output, metric, name)
        layer = Layer(site, spectra.decomposition(kind), rank, weight, bias, output, start, weight.device, name.startswith(experts))
        layers[name] = _last(layer, network.get_submodule(name)) if too_wide(site, weight.device) else layer
    return layers


def _as_built(spectra: Spectra, site: Site, kind: str, rank: Rank, bias: Tensor | None) -> Fitted:
    return Fitted(spectra.factors(site, kind, rank), bias)


def _output(metric: Mapping[str, Moments], name: str) -> Tensor | None:
    moments = metric.get(name)
    return None if moments is None else moments.floored_output


def _last(layer: Layer, built: nn.Module) -> Layer:
    """The last of a chain as a layer of its own."""
    site, now = last_site(layer.site, layer.decomposition, layer.rank, layer.device), layer.start()
    assert isinstance(site, Site) and isinstance(built, nn.Sequential), "`left_out` tells others apart"
    plain = layer.decomposition.inner if isinstance(layer.decomposition, Quantized) else layer.decomposition
    chain = plain.module(layer.site, now.factors, now.bias)
    assert isinstance(chain, nn.Sequential)
    weight = canonical_weight(chain[-1], site)
    start = partial(Fitted, (weight,), now.bias)
    return replace(
        layer, site=site, decomposition=last_type(layer.decomposition), rank=(), weight=weight, start=start, before=built[:-1]
    )  # fmt: skip
