"""How thoroughly a configuration is evaluated, and how a store names that."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ranksearch import checks
from ranksearch.errors import InvalidArgument
from ranksearch.networks.recovery import TEMPERATURE

FULL, SUPERNET = "full", "supernet"
SEQUENTIAL, LAST_FACTORS = "sequential", "last_factors"
PLAIN, RECOVERY = "plain", "recovery"
TRAININGS = (PLAIN, RECOVERY)
_FITS = {SEQUENTIAL: "refitted", LAST_FACTORS: "reconstruction"}  # their names in keys
_KEY = (
    r"(?P<name>.+):epochs=(?P<epochs>[^,]+),recalibration=(?P<recalibration>\d+)"
    r"(?:,(?P<fit>refitted|reconstruction)=(?P<fitted>\d+))?(?:,distilled=(?P<distilled>\d+))?"
    r"(?:,training=(?P<training>\w+)(?:,temperature=(?P<temperature>[^,]+))?)?"
)
_SOURCED = (SUPERNET,)  # kinds that are measured with something of which there are several


@dataclass(frozen=True)
class Fidelity:
    """How thoroughly a configuration is evaluated. Evaluations of different fidelity are never mixed.

    Raises:
        InvalidArgument: a number that is none, an unknown ``training``, or a ``source`` for a kind that has none.
    """

    epochs: float = 1.0  # of fine-tuning
    recalibration: int = 8  # batches for batch-norm re-estimation; 0: the statistics stay as they are
    kind: str = FULL  # "full": built and trained for itself; "supernet": activated in a supernet; or a word of your own
    reconstruction: int = 0  # batches that factors are fitted to, see `reconstruct`; 0: they stay as they are
    source: str = ""  # what it is measured with: for "supernet" its method and the beginning of its key
    fit: str = SEQUENTIAL  # how: "sequential"; "last_factors", as earlier versions did, is read from stores alone
    training: str = PLAIN  # "plain": `Task.fine_tune`; "recovery": `ranksearch.networks.recovery.recover`; without epochs always "plain"
    temperature: float = TEMPERATURE  # of recovery; 1: as in earlier versions, whose keys have none
    distill: int = 0  # steps in which the network as a whole learns the dense one's answers, before training, without labels; see `distill`

    def __post_init__(self) -> None:
        checks.number("epochs", self.epochs, least=0)
        checks.whole("recalibration", self.recalibration, least=0, hint="batches")
        checks.whole("reconstruction", self.reconstruction, least=0, hint="batches")
        checks.whole("distill", self.distill, least=0, hint="steps of a batch each")
        if self.fit not in _FITS:
            raise InvalidArgument(f"fit={self.fit!r} is none of {', '.join(_FITS)}")
        if self.training not in TRAININGS:
            raise InvalidArgument(f"training={self.training!r} is none of {', '.join(TRAININGS)}")
        if self.epochs == 0:
            object.__setattr__(self, "training", PLAIN)  # so that what is the same has one name
        checks.number("temperature", self.temperature, above=0)
        if self.training == PLAIN:
            object.__setattr__(self, "temperature", TEMPERATURE)
        if bool(self.source) != (self.kind in _SOURCED):
            sourced = " and ".join(_SOURCED)
            raise InvalidArgument(f"kind={self.kind!r}, source={self.source!r}: {sourced} needs a source, other kinds have none")

    @property
    def name(self) -> str:
        """Kind and source, as in the key."""
        return f"{self.kind}-{self.source}" if self.source else self.kind

    @property
    def key(self) -> str:
        """How the store names it."""
        fitted = f",{_FITS[self.fit]}={self.reconstruction}" if self.reconstruction else ""
        taught = f",distilled={self.distill}" if self.distill else ""
        trained = "" if self.training == PLAIN else f",training={self.training}"
        softened = f",temperature={self.temperature:g}" if trained and self.temperature != 1 else ""
        return f"{self.name}:epochs={self.epochs:g},recalibration={self.recalibration}{fitted}{taught}{trained}{softened}"

    @staticmethod
    def parse(key: str) -> Fidelity:
        """Inverse of `key`.

        Raises:
            InvalidArgument: no key of a fidelity."""
        found = re.fullmatch(_KEY, key)
        try:
            if found is None:
                raise ValueError(key)
            kind, dash, source = found["name"].partition("-")
            if not (dash and kind in _SOURCED):
                kind, source = found["name"], ""
            return Fidelity(
                float(found["epochs"]), int(found["recalibration"]), kind, int(found["fitted"] or 0), source,
                LAST_FACTORS if found["fit"] == _FITS[LAST_FACTORS] else SEQUENTIAL, found["training"] or PLAIN,
                float(found["temperature"] or 1), int(found["distilled"] or 0),
            )  # fmt: skip
        except ValueError as error:
            raise InvalidArgument(f"fidelity={key!r} is none; one is written like {Fidelity().key}") from error
