"""Refactorization of a whole network, layer by layer, on the inputs that the compressed network really gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch import checks
from ranksearch.decompositions import Moments
from ranksearch.errors import InvalidArgument
from ranksearch.networks.batch_norm import batch_statistics
from ranksearch.networks.reconstruction.answers import Answers
from ranksearch.networks.reconstruction.check import distances, divided, gain
from ranksearch.networks.reconstruction.layer import Fitted, Layer, held, layers_of
from ranksearch.networks.reconstruction.norms import affine_norms, fit_norm
from ranksearch.networks.reconstruction.refit import QUICK, THOROUGH, Effort
from ranksearch.networks.reconstruction.sweep import Seen, sweep
from ranksearch.sites import Site, device_of, evaluating, outside_autocast
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra
from ranksearch.statistics.memory import machine_memory

HELD_OUT = 0.25  # share of the examples that fits are checked on
RIDGES = (0.001, 0.01, 0.1, 1.0)  # what is tried where examples are held out
RIDGE = 0.01  # where none are
ANSWERS = 1 / 16  # of the machine's memory that answers of the dense network may take
ROUNDS = 1  # a second one hardly gains: every layer has the same inputs and answers again

Plan = Mapping[str, float | None]  # the ridge of every layer; None: it stays as it is


@dataclass(frozen=True)
class Reconstructed:
    """The mean squared error of one layer's answers, relative to their energy, before and after it was fitted, in the metric that it was
    fitted in. It is measured on the examples held out, or where there are none on those fitted to, when everything before the layer is
    reconstructed already. A layer that no fit made better, or a network that all fits together made no better, is as it was: ``after``
    is ``before``."""

    site: str
    before: float
    after: float


def reconstruct(
    network: nn.Module,
    spectra: Spectra,
    configuration: Configuration,
    batches: Iterable[Any] | Answers,
    *,
    moments: Mapping[str, Moments] | None = None,
    ridge: float | None = None,
    held_out: float = HELD_OUT,
    rounds: int = ROUNDS,
    thorough: bool = False,
    report: bool = True,
) -> tuple[Reconstructed, ...]:
    """Refit the factors and the bias of every factorized layer, in place, in the order in which the network uses them.

    Layer by layer: x is what reaches the layer in ``network``, all before it being fitted already, and y what the dense layer gives in
    the dense network for the same example. V minimises mean |V x + b - y|^2 with a ridge towards the dense weight; the layer's factors,
    of the same type and rank, become those nearest to V in the metric of these inputs and, where there is one, of the dense network's
    output gradients: in closed form for `svd`, by descent over all factors together for other types. Later layers so make up for what
    earlier ones lost (AA-SVD, 2026; Zhang et al., arXiv 1505.06798, section 3.3). Then every batch norm takes, channel by channel, the
    scale and shift that are best against the dense one's answers. Types, ranks and costs stay as they are. No labels, no gradients.
    Batch norms meanwhile normalize by their batch and keep their running statistics, so call `recalibrate` afterwards.

    Few examples fit a layer to themselves alone. So a part of them is held out: every layer takes the ridge that is best on these, and
    stays as it is where none is better. Rounds over the whole network go on while its outputs get nearer to the dense network's on the same
    examples, and all layers are then fitted once more, to all examples, at the ridges that were found. If the outputs of what comes out are
    no nearer, by the mean of paired differences over the examples held out, all is undone. Where there is no closed form, every fit of a
    layer goes on from the one before.

    Of a layer whose patches are too large for a moment (4,608 entries), or whose inputs are too many for the moments that half of its
    device's memory holds (`room.fit_bytes`), the last of its chain alone is fitted, and its bias.

    All batches go through both networks together, layer by layer, so that one forward pass is enough for a round; in return, what lies
        between two layers is in memory for all batches at once. Layers that are used several times take a pass of their own, and so do
        experts (`UnpackedExperts`), which need not get the same tokens in both networks: they are fitted to the dense expert's answers to
        theirs.

    Args:
        network: from `build`, with the same ``spectra`` and ``configuration``.
        spectra: the dense network, its types and its metric.
        configuration: types and ranks.
        batches: of inputs, as for `recalibrate`; or the dense network's to them, `dense_answers`, which several reconstructions may share.
        moments: whose output moments weigh errors, per site; those of ``spectra`` by default. Without any, all answers of a layer weigh
            alike, which is worth far less.
        ridge: pull towards the dense weight, relative to the mean square of every input; default: the best of ``RIDGES`` on the examples
            held out, and ``RIDGE`` where none are.
        held_out: share of the batches, at least one of several; of a single batch, so many of its examples. 0 fits to all, unchecked,
            and so does a single batch that cannot be cut (less than 8 examples, tensors of different lengths, or a `batch_dim` that
            is no number).
        rounds: at most so many over the whole network; so many where nothing is held out.
        thorough: types without a closed form take at most 12 steps of descent in each fit instead of 5, and 10 conjugate gradients
            instead of 6 in each step, four times the time: for the network that is handed out.
        report: False where nobody reads what comes back: nothing does, and where nothing is held out the errors of layers, which fits
            do without, are not measured.

    Returns:
        the layers that a fit was tried on, in order. `left_out` names the factorized layers that stay as they are, and why.

    Raises:
        InvalidArgument: ``ridge`` negative or not finite, ``held_out`` outside [0, 1), ``rounds`` below 1, no batches, or answers of
            another network.
    """
    if ridge is not None:
        checks.number("ridge", ridge, least=0)
    if checks.number("held_out", held_out, least=0) >= 1:
        raise InvalidArgument(f"held_out={held_out}: must be below 1, so that something is left to fit to")
    checks.whole("rounds", rounds, least=1)
    known = batches if isinstance(batches, Answers) else Answers(spectra.model, batches)
    if known.model is not spectra.model:
        raise InvalidArgument("batches are answers of another network than that of spectra: make them of spectra.model")
    given, fitted_to = divided(known.batches, held_out, spectra.sites.batch_dim)
    if not given:
        raise InvalidArgument("batches is empty: a reconstruction needs at least one batch")
    layers = layers_of(network, spectra, configuration, spectra.moments if moments is None else moments)
    work = _Work(network, known.on(given), layers, THOROUGH if thorough else QUICK)
    if not work.layers:
        return ()
    with outside_autocast(network), evaluating(network), evaluating(spectra.model), batch_statistics(network):
        if fitted_to == len(given):
            for _ in range(rounds):
                work.follow(dict.fromkeys(work.layers, RIDGE if ridge is None else ridge), {}, told=report)
            return work.report()
        found = _checked(work, fitted_to, RIDGES if ridge is None else (ridge,), rounds)
        return found if report else ()


def dense_answers(model: nn.Module, sites: Iterable[Site], batches: Iterable[Any]) -> Answers:
    """What the dense network answers to batches, for `reconstruct`: many networks that are fitted to the same batches so take one pass of
    each through it, where there is room for what its sites and norms give: a sixteenth of the machine's memory. Of networks on other
    devices only the outputs are kept."""
    paths = [*(site.name for site in sites), *affine_norms(model)]
    return Answers(model, batches, paths=paths, room=ANSWERS * machine_memory() if device_of(model).type == "cpu" else 0.0)


def _checked(work: _Work, fitted_to: int, ridges: Sequence[float], rounds: int) -> tuple[Reconstructed, ...]:
    """Ridges are chosen on the batches held out, then all layers are fitted to all batches at these. What was there may have been made
    with the batches held out, too; fits that have not seen them are therefore given up only where they are worse by more than a
    standard error. The last word has the network that comes out, which has seen as much."""
    start = work.state()
    first = apart = work.distances(fitted_to)
    plans: list[Plan] = []
    found: dict[str, Fitted] = {}
    report: tuple[Reconstructed, ...] = ()
    for number in range(rounds):
        plan = work.plan(fitted_to, ridges)
        now = work.distances(fitted_to)
        fell, error = gain(apart, now)
        report = report if number else work.report()
        if not fell > (0.0 if number else -error):
            break
        plans.append(plan)
        found = dict(work.now)
        apart, report = now, work.report()
    work.restore(start)
    for number, plan in enumerate(plans):
        work.follow(plan, {} if number else found)
    if plans and gain(first, work.distances(fitted_to))[0] > 0:
        return report
    work.restore(start)
    return tuple(Reconstructed(one.site, one.before, one.before) for one in report)


@dataclass
class _Work:
    """A network while it is fitted."""

    network: nn.Module
    answers: Answers
    layers: dict[str, Layer]
    effort: Effort
    now: dict[str, Fitted] = field(default_factory=dict)  # the layers that were fitted
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)  # before the first round, after the last

    def __post_init__(self) -> None:
        self.norms = affine_norms(self.network)

    def plan(self, fitted_to: int, ridges: Sequence[float]) -> Plan:
        """One round: every layer takes the ridge that is best on batches that it is not fitted to."""
        plan: dict[str, float | None] = {}

        def visit(path: str, seen: Seen) -> None:
            layer, now = self.layers[path], self._fitted(path)
            fitting, checking = layer.moments(seen, fitted_to)
            choice = layer.best(now, fitting, checking, ridges, self.effort)
            plan[path] = choice.ridge
            self._told(path, choice.before, choice.after)
            self._set(path, choice.fitted, now)

        self._sweep(fitted_to, visit)
        return plan

    def follow(self, plan: Plan, begin: Mapping[str, Fitted], *, told: bool = False) -> None:
        """One round at given ridges, fitted to all batches. ``begin``: where descent begins, of layers that were fitted to some of them
        already, by path. ``told``: the report is to have its errors."""
        everything = len(self.answers.batches)

        def visit(path: str, seen: Seen) -> None:
            layer, ridge = self.layers[path], plan.get(path)
            if ridge is None:
                return
            now = self._fitted(path)
            moments, _ = layer.moments(seen, everything, measured=told)
            found = layer.fit(begin.get(path, now), moments, ridge, self.effort)
            if told:
                self._told(path, layer.error(now, moments), layer.error(found, moments))
            self._set(path, found, now)

        self._sweep(everything, visit)

    def _sweep(self, fitted_to: int, visit: Callable[[str, Seen], None]) -> None:
        def visited(path: str, seen: Seen) -> None:
            if path in self.layers:
                visit(path, seen)
            else:
                fit_norm(self.norms[path], (one for one in seen if one[0] < fitted_to))

        alone = [path for path, layer in self.layers.items() if layer.routed]
        sweep(self.network, self.answers, [*self.layers, *self.norms], alone, visited)

    def _told(self, path: str, before: float, after: float) -> None:
        self.errors[path] = self.errors.get(path, (before, after))[0], after

    def _fitted(self, path: str) -> Fitted:
        """A layer as it is."""
        return self.now[path] if path in self.now else self.layers[path].start()

    def _set(self, path: str, found: Fitted, now: Fitted) -> None:
        if found is not now:
            self.now[path] = found
            self.layers[path].write(found, self.network.get_submodule(path))

    def report(self) -> tuple[Reconstructed, ...]:
        """The layers that were visited, in order."""
        return tuple(Reconstructed(path, before, after) for path, (before, after) in self.errors.items())

    def distances(self, fitted_to: int) -> Tensor:
        """On the batches that nothing is fitted to."""
        known = self.answers
        return distances(self.network, ((known.batches[n], known.output(n)) for n in range(fitted_to, len(known.batches))))

    def state(self) -> tuple[dict[str, Fitted], list[tuple[Tensor, Tensor]]]:
        """What a round changes, and a copy of it."""
        layers = [tensor for path in self.layers for tensor in held(self.network.get_submodule(path))]
        norms = [parameter for norm in self.norms.values() for parameter in norm.parameters()]
        return dict(self.now), [(p, p.detach().clone()) for p in (*layers, *norms)]

    def restore(self, state: tuple[dict[str, Fitted], list[tuple[Tensor, Tensor]]]) -> None:
        """Go back to it."""
        self.now = dict(state[0])
        with torch.no_grad():
            for parameter, value in state[1]:
                parameter.copy_(value)
