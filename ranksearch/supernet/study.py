"""Supernets of a study. Each is trained in a folder of its own and found again by name; what is measured with it is stored as a
fidelity of its own.

A folder is named by the content hash of all that decides the training. ``supernet.json`` in it says what it is,
``supernet.safetensors`` is the checkpoint (see `ranksearch.supernet.train`)."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ranksearch import checks
from ranksearch.allocators import Additive, Problem
from ranksearch.errors import InfeasibleBudget, InvalidArgument
from ranksearch.evaluation.fidelity import SUPERNET, Fidelity
from ranksearch.evaluation.request import Outcome, Request, outcome_of
from ranksearch.home import replacing
from ranksearch.proxies import free_proxies
from ranksearch.search.events import Announced
from ranksearch.sites import device_of
from ranksearch.space import Configuration, SearchSpace
from ranksearch.space.spectra import Spectra
from ranksearch.supernet import PROJECTIONS, RankSupernet, SupernetProxy, TrainingStep, load_trained, train
from ranksearch.supernet.methods import METHODS, Method
from ranksearch.supernet.sampling import SAMPLINGS, restrict
from ranksearch.supernet.train import identity
from ranksearch.tasks import Task

SHARES = (0.75, 0.5, 0.25)  # of the dense MACs: the sizes that are shown after a training
REMEDY = "train one: ranksearch train-supernet STUDY, or study.train_supernet()"
_FILE = "supernet.json"


@dataclass(frozen=True)
class Entry:
    """What the folder of a supernet says it holds."""

    key: str  # content hash of all that decides the training
    method: str
    epochs: float
    seed: int
    sampling: str | None
    recalibration: int  # batches that statistics are re-estimated on before a configuration is measured
    fingerprint: str  # of the study
    space: str  # fingerprint of the part of the space that projects
    finished: bool
    options: Mapping[str, Any] = field(default_factory=dict)  # of the method, as text

    @property
    def name(self) -> str:
        """Method and the beginning of the key."""
        return f"{self.method}-{self.key[:8]}"

    @property
    def fidelity(self) -> Fidelity:
        """The fidelity of what is measured with this supernet, without any training for the configuration."""
        return Fidelity(epochs=0, recalibration=self.recalibration, kind=SUPERNET, source=self.name)


class SupernetEvaluator:
    """Evaluates requests by activating them in a trained supernet. As picklable as `ranksearch.evaluation.evaluator.Evaluator`, the
    weights with it. The request's seed changes nothing."""

    def __init__(self, supernet: RankSupernet, task: Task, *, recalibration: int) -> None:
        self.supernet = supernet
        self.task = task
        self.recalibration = recalibration
        self._measure = SupernetProxy(supernet, task, metric=task.metrics[0].name, batches=recalibration)

    def measure(self, configuration: Configuration) -> dict[str, float]:
        """The task's metrics of an activated configuration, batch norm re-estimated."""
        return self._measure.measure(configuration)

    def network(self, configuration: Configuration) -> nn.Module:
        """The configuration as plain layers, batch norm re-estimated: the network that `measure` measures.

        Raises:
            InvalidArgument: a type that does not project, or a site that is not there."""
        net = self.supernet
        net.refresh()
        active, buffers = net.active, {name: buffer.clone() for name, buffer in net.named_buffers()}
        try:
            net.activate(configuration)
            if self.recalibration:
                net.recalibrate(self.task.normalization(self.recalibration))
            return net.extract().eval()
        finally:
            net.activate(active)
            with torch.no_grad():
                for name, buffer in net.named_buffers():
                    buffer.copy_(buffers[name])

    def __call__(self, request: Request) -> Outcome:
        """Evaluate; a configuration that the supernet does not have is a failed outcome."""
        names = [metric.name for metric in self.task.metrics]
        return outcome_of(request, lambda: self.measure(request.configuration), names, device=device_of(self.supernet))


@dataclass(frozen=True)
class TrainedSupernet:
    """A trained supernet of a study."""

    entry: Entry
    supernet: RankSupernet
    evaluator: SupernetEvaluator
    left_out: Mapping[str, int]  # types of the study's space that do not project: how many options

    @property
    def key(self) -> str:
        """Content hash of all that decided the training."""
        return self.entry.key

    @property
    def fidelity(self) -> Fidelity:
        """What its measurements are stored as."""
        return self.entry.fidelity

    @property
    def space(self) -> SearchSpace:
        """The part of the study's space that it covers."""
        return self.supernet.space

    def evaluate(self, configuration: Configuration) -> dict[str, float]:
        """The task's metrics at a configuration, by activation, batch norm re-estimated."""
        return self.evaluator.measure(configuration)

    def build(self, configuration: Configuration) -> nn.Module:
        """The network of a configuration as plain layers: what `evaluate` measures."""
        return self.evaluator.network(configuration)


@dataclass(frozen=True)
class SupernetStore:
    """Where the supernets of one study are, and what they are made of.

    Args:
        folder: holds one folder per supernet.
        fingerprint: of the study.
        space: of the study, types that do not project among them or not.
        formerly: the study's fingerprint in earlier versions; supernets that were trained then are found too.
    """

    folder: Path
    model: nn.Module
    task: Task
    spectra: Spectra
    full: SearchSpace
    fingerprint: str
    formerly: str | None = None

    def space(self) -> SearchSpace:
        """The options that are projections of the dense weight."""
        try:
            return restrict(self.full, tuple(PROJECTIONS))
        except InvalidArgument as error:
            names = ", ".join(PROJECTIONS)
            text = f"space: no option of it is a projection of the dense weight: {error}; add one of {names}"
            raise InvalidArgument(text) from error

    def left_out(self) -> dict[str, int]:
        """The types of the study's space that do not project, and how many options that takes away."""
        every: Counter[str] = Counter()
        for ladder in self.full.ladders:
            every.update({name: int(ladder.mask((name,)).sum()) for name in ladder.present})
        return {name: count for name, count in sorted(every.items()) if name not in PROJECTIONS and name != "dense"}

    def train(
        self,
        method: str | Method = "sandwich",
        *,
        epochs: float = 6.0,
        sampling: str | None = None,
        seed: int = 0,
        recalibration: int = 16,
        on_event: Callable[[Announced | TrainingStep], None] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> TrainedSupernet:
        """See `ranksearch.study.supernets.Supernets.train`."""
        tell = on_event or (lambda event: None)
        kind = checked(method, sampling, options or {})
        settings = Fidelity(epochs=0, recalibration=recalibration)  # refuses what is no number of batches
        checks.number("epochs", epochs, above=0)
        space, left = self.space(), self.left_out()
        if left:
            listed = ", ".join(f"{name} ({count:,} options)" for name, count in left.items())
            tell(Announced(f"leaving out what is no projection of the dense weight: {listed}"))
        tell(Announced(f"preparing the supernet: {kind.name}, {len(space.ladders)} sites"))
        if isinstance(method, Method):
            made, own = method, {name: getattr(method, name) for name in _own_options(kind) if hasattr(method, name)}
            if made.supernet.space.fingerprint != space.fingerprint:
                raise InvalidArgument("method was made with a supernet of another space: make it with study.supernets.untrained()")
        else:
            made, own = self._made(kind, sampling, seed, options or {}), options or {}
        given = {name: _text(value) for name, value in own.items() if name != "sampling"}
        facts = [self.fingerprint, identity(made.supernet, self.task, made, epochs, seed), given]
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        entry = Entry(
            key, kind.name, float(epochs), int(seed), sampling, settings.recalibration, self.fingerprint, space.fingerprint, False, given
        )
        entry = self._train_entry(entry, made, tell)
        return TrainedSupernet(entry, made.supernet, SupernetEvaluator(made.supernet, self.task, recalibration=recalibration), left)

    def _made(self, kind: type[Method], sampling: str | None, seed: int, options: Mapping[str, Any]) -> Method:
        """A method of a kind, with a supernet of its own."""
        net = self.untrained()
        drawn = {}
        if sampling is not None:
            types = set().union(*(ladder.present for ladder in net.space.ladders)) - {"dense"}
            drawn["sampling"] = SAMPLINGS[sampling](net.space, types=tuple(sorted(types)))
        return kind(net, self.task.loss, seed=seed, **options, **drawn)

    def _train_entry(self, entry: Entry, method: Method, tell: Callable[[Announced | TrainingStep], None]) -> Entry:
        """Train in the entry's folder, which says all the while whether the training is finished; returns the finished entry."""
        folder = self.folder / entry.key
        known = _read(folder)
        if known is None or not known.finished:
            _write(folder, entry)
        tell(Announced(f"training {entry.name} in {folder}"))
        train(method.supernet, self.task, method, epochs=entry.epochs, seed=entry.seed, folder=folder, on_event=tell)
        entry = replace(entry, finished=True)
        _write(folder, entry)
        method.supernet.eval()
        return entry

    def untrained(self) -> RankSupernet:
        """The supernet before any training: the dense weights, and the options of the space that project."""
        return RankSupernet(self.model, self.space(), spectra=self.spectra)

    def entries(self) -> list[Entry]:
        """Every supernet in the folder, of this study or another one, by method and key."""
        folders = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        found = [entry for folder in folders if (entry := _read(folder)) is not None]
        return sorted(found, key=lambda entry: (entry.method, entry.key))

    def trained(self) -> list[Entry]:
        """Those of this study's network and space that are trained to their end."""
        space = self.space().fingerprint
        mine = [entry for entry in self.entries() if entry.fingerprint in (self.fingerprint, self.formerly) and entry.space == space]
        return [entry for entry in mine if entry.finished]

    def find(self, which: str | bool = True) -> Entry:
        """A trained supernet of this study by method, key or the beginning of one; True or "": the only one.

        Raises:
            InvalidArgument: there is none, or several; the message lists them.
        """
        text = "" if which is True else str(which)
        asked = f"supernet={text!r}" if text else "supernet"
        every = self.entries()
        space = self.space().fingerprint
        mine = [entry for entry in every if entry.fingerprint in (self.fingerprint, self.formerly) and entry.space == space]
        wanted = text.removeprefix(f"{SUPERNET}-").split(":")[0] if text != SUPERNET else ""
        named = [e for e in mine if e.method == wanted or e.key.startswith(wanted) or e.name.startswith(wanted)]
        done = [entry for entry in named if entry.finished]
        if len(done) == 1:
            return done[0]
        if done:
            listed = "; ".join(f"{e.key[:8]} ({_about(e)})" for e in done)
            raise InvalidArgument(f"{asked}: several are trained: {listed}; name one by method or key")
        if named:
            listed = "; ".join(f"{entry.key[:8]} ({_about(entry)})" for entry in named)
            raise InvalidArgument(f"{asked} is not trained to its end: {listed}; the same train-supernet command goes on with it")
        if mine:
            listed = ", ".join(f"{entry.method} {entry.key[:8]}" for entry in mine)
            hint = _meant(wanted, [*METHODS]) if wanted not in METHODS else ""
            text = f"{asked}: no trained supernet is called that{hint}; this study has {listed}; name one, or {REMEDY}"
            raise InvalidArgument(text)
        others = f" ({len(every)} there, of other studies, weights, data or spaces)" if every else ""
        raise InvalidArgument(f"{asked}: no supernet of this study is trained in {self.folder}{others}; {REMEDY}")

    def load(self, entry: Entry) -> TrainedSupernet:
        """A trained supernet, ready to be measured with."""
        net = self.untrained()
        load_trained(net, self.folder / entry.key)
        net.eval()
        return TrainedSupernet(entry, net, SupernetEvaluator(net, self.task, recalibration=entry.recalibration), self.left_out())

    def of_fidelity(self, fidelity: Fidelity) -> TrainedSupernet:
        """The supernet whose measurements are stored as this."""
        entry = self.find(fidelity.source)
        return self.load(replace(entry, recalibration=fidelity.recalibration))


def checked(method: str | Method, sampling: str | None, options: Mapping[str, Any]) -> type[Method]:
    """The type of a training method that is given by name or as an instance.

    Raises:
        InvalidArgument: an unknown method, sampling or option, a sampling for a method that draws nothing, or sampling and options
            beside an instance, which has its own."""
    if isinstance(method, Method):
        if sampling is not None or options:
            given = ", ".join([*(["sampling"] if sampling is not None else []), *options])
            raise InvalidArgument(f"{given}: method is an instance of {type(method).__name__}: give this to its constructor")
        return type(method)
    if method not in METHODS:
        raise InvalidArgument(f"method={method!r} is none of {', '.join(METHODS)}{_meant(method, [*METHODS])}")
    kind = METHODS[method]
    if sampling is not None:
        if sampling not in SAMPLINGS:
            raise InvalidArgument(f"sampling={sampling!r} is none of {', '.join(SAMPLINGS)}{_meant(sampling, [*SAMPLINGS])}")
        if not kind.draws:
            drawing = " or ".join(name for name, other in METHODS.items() if other.draws)
            raise InvalidArgument(f"sampling={sampling!r}: method {method!r} draws no configurations; leave it out, or take {drawing}")
    own = _own_options(kind)
    for name in options:
        if name not in own:
            raise InvalidArgument(f"{name}: method {method!r} has {', '.join(own) or 'no options'}{_meant(name, own)}")
    return kind


def _own_options(kind: type[Method]) -> list[str]:
    """The hyper-parameters of a method, by name."""
    return [name for name in inspect.signature(kind).parameters if name not in ("supernet", "loss", "sampling", "seed")]


def sizes(trained: TrainedSupernet, shares: Sequence[float] = SHARES) -> list[tuple[float, Configuration]]:
    """The exact optimum of the leading proxy at shares of the dense MACs (params where there are none), those within
    reach: (share asked for, configuration). The leading proxy is the first of those that need nothing but the space and are not
    known to be poor at such budgets."""
    space = trained.space
    cost = space.leading_cost
    table = next(proxy for proxy in free_proxies() if cost not in proxy.poor_budgets(space)).table(space)
    found = []
    for share in shares:
        try:
            allocation = Additive().allocate(Problem(space, table, {cost: share}))
        except InfeasibleBudget:
            continue  # the space ends before that size
        found.append((share, space.configuration(allocation.indices)))
    return found


def named_fidelity(text: str, known: Iterable[Fidelity]) -> Fidelity:
    """The fidelity of a store from what a user calls it: its key, its name (what is before the colon), the beginning of
    one, such as ``supernet`` or ``supernet-joint``, or for a supernet its method or key.

    Raises:
        InvalidArgument: none or several are called that."""
    by_key = {fidelity.key: fidelity for fidelity in known}
    fidelities = [by_key[key] for key in sorted(by_key)]
    for fits in (
        lambda fidelity: fidelity.key == text,
        lambda fidelity: fidelity.name == text,
        lambda fidelity: fidelity.key.startswith(text) or (fidelity.source and _called(fidelity, text)),
    ):
        found = [fidelity for fidelity in fidelities if text and fits(fidelity)]
        if len(found) == 1:
            return found[0]
        if found:
            raise InvalidArgument(f"fidelity={text!r} may be {', '.join(f.key for f in found)}; name one")
    raise InvalidArgument(f"fidelity={text!r}: nothing was measured at it; the store has {', '.join(sorted(by_key))}")


def _called(fidelity: Fidelity, text: str) -> bool:
    """Whether a supernet's fidelity is that of this method, or of this key: whole, or the beginning of one."""
    key = method_and_key(fidelity)[1]
    return fidelity.key.removeprefix(f"{fidelity.kind}-").startswith(text) or key.startswith(text[: len(key)])


def method_and_key(fidelity: Fidelity) -> tuple[str, str]:
    """The method of the supernet that a fidelity was measured with, and the beginning of its key: see `Entry.name`."""
    method, _, key = fidelity.source.rpartition("-")
    return method, key


def proxy_names(fidelities: Iterable[Fidelity]) -> dict[str, str]:
    """What the fidelities of supernets are called as proxies, by key: by method, by method and key where several have one
    method."""
    measured = {fidelity.key: fidelity for fidelity in fidelities if fidelity.kind == SUPERNET}
    methods = Counter(method_and_key(fidelity)[0] for fidelity in measured.values())
    return {
        key: f"{SUPERNET}-{method}" if methods[method := method_and_key(fidelity)[0]] == 1 else fidelity.name
        for key, fidelity in measured.items()
    }


def _meant(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _about(entry: Entry) -> str:
    sampling = f", sampling {entry.sampling}" if entry.sampling else ""
    options = "".join(f", {name}={value}" for name, value in entry.options.items())
    return f"{entry.method}, {entry.epochs:g} {'epoch' if entry.epochs == 1 else 'epochs'}, seed {entry.seed}{sampling}{options}"


def _text(value: Any) -> str:
    """An option of a method in words that tell it from others of its kind."""
    if isinstance(value, Configuration):
        return value.id
    return f"{value.__module__}.{value.__qualname__}" if callable(value) and hasattr(value, "__qualname__") else repr(value)


def _read(folder: Path) -> Entry | None:
    """The entry of a folder; None where there is none that this version wrote."""
    try:
        return Entry(**json.loads((folder / _FILE).read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError) as error:
        raise InvalidArgument(f"{folder / _FILE} cannot be read: {error}; remove the folder and train the supernet again") from error


def _write(folder: Path, entry: Entry) -> None:
    with replacing(folder / _FILE) as part:
        part.write_text(json.dumps(asdict(entry), indent=2) + "\n", encoding="utf-8")
