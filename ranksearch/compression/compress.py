"""The best network within budgets that is known without training: every rule's answer is built, reconstructed and measured."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ranksearch import checks
from ranksearch.compression.norms import Norms, Taken, check_norms, reference
from ranksearch.compression.portfolio import POLISH, REFIT, Data, Portfolio, Tried
from ranksearch.compression.rules import RULES, Rule
from ranksearch.costs import COSTS, Bytes, CostModel, check_costs, network_cost
from ranksearch.decompositions import with_bits
from ranksearch.errors import InfeasibleBudget, InvalidArgument, RanksearchWarning
from ranksearch.networks import export
from ranksearch.networks.batch_norm import recalibrate
from ranksearch.networks.recovery import Recovered, recover
from ranksearch.search.events import Announced
from ranksearch.sites import Cost, copied, evaluating, outside_autocast, run, unwrapped
from ranksearch.space import Configuration, SearchSpace, SpaceSpec, declared
from ranksearch.space.specs import bits_of
from ranksearch.space.spectra import checked_device
from ranksearch.tasks import Agreement, Task

if TYPE_CHECKING:
    import pandas as pd

LOSSES = "loss", "light", "reconstructed", "finished", "distilled"  # of an answer, see `Tried`
REFITS = 3  # rounds of it beside the whole portfolio


@dataclass(frozen=True)
class Compressed:
    """A smaller network and how it was found.

    Attributes:
        model: plain torch, in evaluation mode.
        chosen: the rule whose answer it is.
        tried: every rule's answer.
        baseline: costs of the dense network.
        dense_loss: what the dense network measures on the held-out batches: 0 where the divergence from it is measured.
        norms: which statistics the batch norms of the dense network had that others were made to answer like.
        recovered: how training went, where there was any.
    """

    model: nn.Module
    chosen: Tried
    tried: tuple[Tried, ...]
    baseline: Cost
    dense_loss: float
    norms: Taken = "own"
    recovered: Recovered | None = None

    def __repr__(self) -> str:
        """In a line; `report` has the rest, and ``model`` the layers."""
        shares = ", ".join(f"{name} {self.cost.share(name, self.baseline):.3f}" for name, dense in self.baseline.items() if dense)
        factorized, loss = len(self.configuration.choices), f"loss {self.chosen.least:.4g} (dense {self.dense_loss:.4g})"
        return f"Compressed({self.chosen.rule}: {factorized} layers factorized, {shares} of the dense network's, {loss})"

    @property
    def configuration(self) -> Configuration:
        """Types and ranks of the network."""
        assert self.chosen.configuration is not None
        return self.chosen.configuration

    @property
    def cost(self) -> Cost:
        """Every cost of the network."""
        assert self.chosen.cost is not None
        return self.chosen.cost

    @property
    def reconstructed(self) -> bool:
        """Whether factors were fitted to the dense network's answers, layer by layer: where that measures better."""
        return replace(self.chosen, distilled=math.nan).least < self.chosen.loss

    @property
    def distilled(self) -> int:
        """Batches of the dense network's answers that all parameters together were taught; 0 where that does not measure better."""
        return self.chosen.distill if self.chosen.distilled == self.chosen.least else 0

    def save(
        self, directory: str | Path, *, example: Any, manifest: Mapping[str, Any] | None = None, onnx: bool = False,
        torch_export: bool = False, force: bool = False,
    ) -> Path:  # fmt: skip
        """Write the network, see `ranksearch.networks.export.save`; the manifest also says what it costs and how it was found.

        Args:
            example: the input of one forward pass.
            manifest: what else it is to say, JSON data.
        """
        configuration = {site: [decomposition, list(rank)] for site, decomposition, rank in self.configuration.choices}
        chosen = self.chosen
        losses = {name: getattr(chosen, name) for name in LOSSES if name != "light"} | {"dense": self.dense_loss}
        facts = {
            **(manifest or {}), "configuration": configuration, "id": self.configuration.id, **self.cost, "baseline": dict(self.baseline),
            "rule": chosen.rule, "reconstruction": self.reconstructed, "distillation": self.distilled, "dense_norms": self.norms,
            "held_out": {name: value for name, value in losses.items() if math.isfinite(value)},
        }  # fmt: skip
        if self.recovered is not None:
            facts["epochs"] = self.recovered.epochs
        return export.save(self.model, directory, manifest=facts, example=example, onnx=onnx, torch_export=torch_export, force=force)

    def report(self) -> pd.DataFrame:
        """One row per rule, the best first, contenders before others: ``rule``, ``loss``, ``light``, ``reconstructed`` (of contenders),
        ``finished`` and ``distilled`` (of the chosen one), every cost relative to the dense network (``macs_rel``, ...), ``passes``
        (forward passes of one batch that its networks were measured with), ``chosen`` and ``note``."""
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for one in sorted(self.tried, key=lambda one: (one.screened, one.promise if one.screened else one.least)):
            row: dict[str, Any] = {"rule": one.rule, **{name: getattr(one, name) for name in LOSSES}}
            row |= {f"{name}_rel": one.cost.share(name, self.baseline) if one.cost else math.nan for name in self.baseline}
            rows.append(row | {"passes": one.passes, "chosen": one is self.chosen, "note": one.note})
        return pd.DataFrame(rows)


def compress(
    model: nn.Module,
    task: Task | Iterable[Any] | Callable[[], Iterable[Any]],
    *,
    space: SpaceSpec | SearchSpace | str | None = None,
    rules: Sequence[str | Rule] | None = None,
    reconstruction: int = 4,
    finish: int = 16,
    distill: int = 80,
    recalibration: int = 16,
    norms: Norms = "auto",
    refits: int | None = None,
    contenders: int = 4,
    polished: int = 0,
    epochs: float = 0.0,
    costs: Sequence[CostModel] = COSTS,
    bits: str | Sequence[int] = (),
    device: str | torch.device | None = None,
    on_event: Callable[[Announced], None] | None = None,
    **budgets: float,
) -> Compressed:
    """Make a trained network smaller, without labels unless ``epochs`` of training are given.

    Every rule of the portfolio (`ranksearch.compression.RULES`) chooses types and ranks within the budgets; each network is
    built, and its factors are fitted to the dense network's answers, layer by layer: lightly, and those of the ``contenders`` that lose
    least after that as a whole. Their loss is measured before and after on batches of training data that none of this has seen. A model of
    the loss is fitted to the rules' answers and to a few dozen networks measured near the budgets, and solved again
    (`ranksearch.search.refit`). The factors of the best of all are fitted once more, to ``finish`` batches, and then all its parameters
    together learn the dense network's answers to ``distill`` batches, without labels. It is returned, in the way that loses least, with
    batch norm re-estimated, so the answer is behind none of the contenders by more than what the held-out batches cannot tell.

        small = compress(model, task, macs=0.5).model
        small = compress(model, task, params=0.3, macs=0.5, polished=100).model
        small = compress(model, [inputs, more_inputs], macs=0.5).model
        small = compress(model, task, macs=0.2, epochs=4).model
        small = compress(model, task, bytes=0.1, bits=(8, 4)).model

    Price: the metrics take one pass forward and back over ``space.calibration`` batches. Each rule takes a light reconstruction on one
    batch and forward passes over ``reconstruction`` batches; each contender a reconstruction on ``reconstruction`` batches and, before and
    after it, forward passes over ``recalibration`` batches, for batch norms, and four held-out ones. LEMS measures the dense network, each
    of S sites alone and ten networks on ``reconstruction`` batches. The model of the loss measures at most 35 networks, each fitted to one
    batch and measured by one forward pass over ``reconstruction`` batches; three of them are judged like contenders. With the defaults that
    are at most 15 x 4 + 15 x 20 + (S + 11) x 4 + 35 x 4 passes of one batch; `Compressed.report` says how many there were. Every
    batch that is taught passes through the dense network, and through the other one forward and back, and up to 16 of them do so anew for a
    rate that is given up. ``refits=0``
    leaves the model out; ``rules=["fisher_relative"], finish=0, distill=0`` is the cheap way: one network.

    Args:
        model: the trained network; never changed. Of a compiled or parallel one, the network inside.
        task: its data and loss, or batches of inputs alone: a list, a ``DataLoader``, or a function that gives one. Networks are
            then judged by how near their answers stay to the dense network's (`ranksearch.tasks.Agreement`).
        space: which types, layers and ranks to choose from: a `SpaceSpec`, the space of a study, or the name of one of the package's;
            default `mixture`. Every rule takes its own metric.
        rules: names in ``RULES`` or rules of your own; default: all.
        reconstruction: batches that factors are fitted to; 0: they stay as they are.
        finish: batches that factors of the best answer are fitted to in the end: of the ``space.calibration`` ones, as many as an eighth of
            the memory holds what lies between two layers of. At most ``reconstruction``: that is left out.
        distill: batches of training data whose answers all parameters of the best answer's network learn together in the end
            (`ranksearch.networks.distillation.distill`), forward and backward: those that nothing has seen first, but for the held-out
            ones; 0: none. Networks whose training has no room in memory are left as they are.
        recalibration: batches that batch norm is re-estimated on.
        norms: which statistics the dense network's batch norms have while others are made to answer as it does: its "own",
            "re-estimated" ones, as all others have them, or "auto": re-estimated where the loss on labelled training batches is then
            surely lower (`ranksearch.compression.norms.reference`), which takes ``recalibration`` + 64 forward passes of a batch.
        refits: rounds in which the model of the loss is fitted and solved, eight networks measured in each; 0: none. Default: three beside
            the whole portfolio, none where ``rules`` are named.
        contenders: how many of the rules' networks are reconstructed as a whole, which takes five to ten times as long as a light
            reconstruction: those that lose least after that. Where there are no more rules all are, and nothing is measured lightly.
        polished: how many measured exchanges are tried from the best answer on (`ranksearch.search.local_search.polish`). Each is one
            forward pass over ``reconstruction`` batches (four where that is 0), after a fit to one batch where the best answer is
            reconstructed. What they find counts only where it is better on the held-out batches.
        epochs: of training afterwards (`ranksearch.networks.recovery.recover`): the dense network teaches, and the best state on the
            task's validation split is kept; 0: none. The task must train step by step (`Task.training`). Weights of few bits stay.
        costs: what networks are counted by; a budget on ``bytes``, and ``bits``, add `ranksearch.costs.Bytes` where it is not among them.
        bits: of the integers that weights may be rounded to: 8, 4 or both. All types of the space, and the dense layer, are then also
            offered in these.
        device: where layers are factorized, such as ``"cuda"``; None: where the model is.
        on_event: called with progress.
        budgets: upper bounds by the names of costs, such as ``macs=0.5``: up to 1 a share of the dense network's, above it an amount.

    Raises:
        InvalidArgument: no budget, one that is no cost, an unknown rule, options out of range.
        InfeasibleBudget: no configuration of the space is within the budgets.
        EmptySpace: nothing can be factorized.
        InvalidModel, InvalidMetrics: as `recover`.
    """
    checks.whole("reconstruction", reconstruction, least=0, hint="batches")
    checks.whole("finish", finish, least=0, hint="batches")
    checks.whole("distill", distill, least=0, hint="batches")
    checks.whole("contenders", contenders, least=1, hint="of the rules' answers are reconstructed")
    checks.whole("recalibration", recalibration, least=1, hint="batches")
    checks.whole("polished", polished, least=0, hint="measurements")
    refits = (REFITS if rules is None else 0) if refits is None else checks.whole("refits", refits, least=0, hint="rounds")
    check_norms(norms)
    chosen = _rules(rules)
    found = bits_of(bits)
    if (found or Bytes.name in budgets) and not any(cost.tells_bits for cost in costs):
        costs = (*costs, Bytes())
    costs = check_costs(costs, taken=set())
    _check_budgets(budgets, costs)
    device = None if device is None else checked_device(device)
    model = copied(unwrapped(model), share=True)  # of a model that counts in its buffers how often it ran, these stay
    task = task if isinstance(task, Task) else _without_labels(task, model)
    if checks.number("epochs", epochs, least=0):
        task.training(model, epochs=epochs, seed=0)  # one that does not train says so before any work
    spec = declared(space)
    spec = spec.replace(decompositions=with_bits(spec.decompositions, found)) if found else spec
    data = Data.of(task, spec.calibration)
    spec = spec.replace(calibration=data.seen)
    tell = on_event or (lambda event: None)
    two_sided = any(rule.metric == "fisher" for rule in chosen)
    with outside_autocast(model):
        model, taken = reference(model, task, norms, seen=data.seen, recalibration=recalibration, tell=tell)
        portfolio = Portfolio(
            model, task, spec, costs, budgets, data, min(reconstruction, data.seen), recalibration, tell, two_sided, contenders, device,
        )  # fmt: skip
        portfolio.check_sites()
        tried = portfolio.every(chosen)
        if all(one.configuration is None for one in tried):
            raise InfeasibleBudget(tried[0].note)
        if refits:
            tried.append(portfolio.refitted(tried, refits))
        if polished:
            tried.append(portfolio.polished(_best(tried), polished))
        best = _best(tried)
        finished = portfolio.finished(best, finish)
        network = portfolio.handed_out(finished)
        taught = portfolio.taught(network, finished, distill)
        return _result(portfolio, network, [taught if one is best else one for one in tried], taught, taken, epochs)


def _best(tried: Sequence[Tried]) -> Tried:
    """The answer that loses least. Where all are infinite it is the first that is an answer."""
    return min((one for one in tried if one.configuration is not None), key=lambda one: one.least)


def _without_labels(batches: Iterable[Any] | Callable[[], Iterable[Any]], model: nn.Module) -> Task:
    """The task of batches of inputs alone.

    Raises:
        InvalidArgument: one array, no batch, or batches that the model does not take."""
    if isinstance(batches, (Tensor, np.ndarray)):
        shape = tuple(batches.shape)
        raise InvalidArgument(f"task is one array of shape {shape}: give a task, or a list of batches such as x.split(64)")
    task = Agreement(batches, batches, model)
    first = next(task.calibration(1), None)
    if first is None:
        raise InvalidArgument("task has no batch: give a task, or a list of batches of inputs")
    if isinstance(first, (tuple, list)) and len(first) == 2 and not _takes(model, first) and _takes(model, first[0]):
        raise InvalidArgument("task gives pairs that the model does not take, but their first parts it does: batches are inputs alone; "
                              "for labels make a task, such as ranksearch.tasks.FromLoss")  # fmt: skip
    return task


def _takes(model: nn.Module, inputs: Any) -> bool:
    """Whether a forward pass with these inputs comes to an end."""
    try:
        with evaluating(model):
            run(model, inputs)
    except Exception:  # whatever a model raises for what it does not take
        return False
    return True


def _rules(given: Sequence[str | Rule] | None) -> tuple[Rule, ...]:
    if given is None:
        return RULES
    table = {rule.name: rule for rule in RULES}
    unknown = [rule for rule in checks.several("rules", given) if not isinstance(rule, Rule) and rule not in table]
    if unknown or not given or isinstance(given, str):
        raise InvalidArgument(f"rules={given!r}: give some of {', '.join(table)} in a list, or rules of your own")
    found = tuple(rule if isinstance(rule, Rule) else table[rule] for rule in given)
    names = [rule.name for rule in found]
    if len(set(names)) < len(names) or {POLISH, REFIT} & set(names):
        raise InvalidArgument(f"rules={names}: names must differ, and {REFIT!r} and {POLISH!r} are those of `refits` and `polished`")
    return found


def _check_budgets(budgets: Mapping[str, float], costs: Sequence[CostModel]) -> None:
    names = [cost.name for cost in costs]
    if not budgets:
        raise InvalidArgument(f"no budget is given: give one of {', '.join(names)}, such as macs=0.5")
    for name, value in budgets.items():
        if name not in names:
            raise InvalidArgument(
                f"{name}={value!r} is neither an option nor a cost; costs are {', '.join(names)}, and what costs=... adds, such as "
                "(*COSTS, Latency())"
            )
        checks.number(name, value, above=0, hint="up to 1 it is a share of the dense network's")


def _result(
    portfolio: Portfolio, model: nn.Module, tried: Sequence[Tried], best: Tried, norms: Taken, epochs: float
) -> Compressed:  # fmt: skip
    """The network of the best of what was tried, trained."""
    assert best.configuration is not None
    dense = portfolio.judge.as_given(portfolio.model)
    if not math.isfinite(best.least):
        warnings.warn(
            f"no network has a finite loss on the held-out batches (the dense one has {dense:g}), so that nothing tells them apart: look "
            "for numbers in the batches, or in what the model answers, that are not finite", RanksearchWarning, stacklevel=3,
        )  # fmt: skip
    recalibrate(model, portfolio.task.calibration(portfolio.recalibration))
    baseline = network_cost(portfolio.counts, portfolio.dense_network)
    recovered = None
    if epochs:
        portfolio.tell(Announced(f"training it for {epochs:g} epochs"))
        spectra = portfolio.spectra(best.metric)
        recovered = recover(model, spectra, best.configuration, portfolio.task, epochs=epochs, recalibration=portfolio.recalibration)
    return Compressed(model.eval(), best, tuple(tried), baseline, dense, norms, recovered)
