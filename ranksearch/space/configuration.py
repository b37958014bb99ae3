"""A configuration: one option for every site, whatever space they are taken from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from ranksearch.decompositions import Rank
from ranksearch.errors import InvalidArgument


@lru_cache(maxsize=2**16)
def _shared(site: str, decomposition: str, rank: Rank) -> tuple[str, str, Rank]:
    """The same choice is the same object in all configurations: a search may know of a hundred thousand, of the same few options."""
    return site, decomposition, rank


@dataclass(frozen=True, init=False)
class Configuration:
    """One option for every site: immutable, hashable, JSON. Sites that stay dense are left out, so that the same
    network always has the same ``id``."""

    choices: tuple[tuple[str, str, Rank], ...]  # (site, decomposition, rank), sorted by site

    def __init__(self, choices: Mapping[str, tuple[str, Sequence[int]]] | Iterable[tuple[str, str, Sequence[int]]] = ()):
        items = [(s, *c) for s, c in choices.items()] if isinstance(choices, Mapping) else list(choices)
        if len({item[0] for item in items}) != len(items):
            raise InvalidArgument(f"choices name a site twice: {sorted(item[0] for item in items)}")
        kept = sorted(_shared(str(s), str(d), tuple(int(r) for r in rank)) for s, d, rank in items if d != "dense")
        object.__setattr__(self, "choices", tuple(kept))

    @cached_property
    def id(self) -> str:
        """Content hash: the first 12 hexadecimal digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces."""
        data = {site: [decomposition, list(rank)] for site, decomposition, rank in self.choices}
        return json.dumps(data, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Configuration:
        """Inverse of `to_json`.

        Raises:
            InvalidArgument: the text is not a configuration.
        """
        try:
            data = json.loads(text)
            return cls({site: (choice[0], choice[1]) for site, choice in data.items()})
        except (ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
            raise InvalidArgument(f"text={text[:60]!r} is not the JSON of a configuration: {error}") from error

    def __getitem__(self, site: str) -> tuple[str, Rank]:
        """(decomposition, rank) of a site; ("dense", ()) for those left out."""
        for name, decomposition, rank in self.choices:
            if name == site:
                return decomposition, rank
        return "dense", ()

    def __repr__(self) -> str:
        return f"Configuration({self.id}: {len(self.choices)} factorized)"


DENSE = Configuration()
