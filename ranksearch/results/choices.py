"""What configurations choose at every site, as one array of integers, read from their canonical JSON without a value per choice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ranksearch.results.frames import Damaged

Option = tuple[str, str, tuple[int, ...]]  # site, decomposition, rank
Blocks = Iterable[tuple[Sequence[str], Sequence[str]]]  # ids, and the JSON of their configurations
_BETWEEN = ']],"'  # two choices, in the canonical JSON of a configuration; where a name has it too, the parts make no sense
_CHOICE = '":["'  # within each choice once, and nowhere else: a quote within a name is escaped
_SPACE = (" ", "\n", "\t", "\r")  # canonical JSON has them in names alone


@dataclass(frozen=True, eq=False)
class Choices:
    """The options of configurations, one row per configuration."""

    ids: tuple[str, ...]
    sites: tuple[str, ...]
    options: tuple[Option, ...]  # the first are the dense ones, one per site, in the order of the sites
    codes: np.ndarray  # position in ``options``, int32, shape: (n_configurations, n_sites)

    def rows(self, ids: Iterable[str]) -> np.ndarray:
        """Rows of configurations, int64.

        Raises:
            KeyError: an id that is none of them."""
        position = {id: row for row, id in enumerate(self.ids)}
        return np.array([position[id] for id in ids], dtype=np.int64)


def factorized(text: str) -> int:
    """How many sites a configuration factorizes.

    Args:
        text: its JSON."""
    return len(json.loads(text)) if any(space in text for space in _SPACE) else text.count(_CHOICE)


def read(blocks: Blocks, paths: Mapping[str, str]) -> Choices:
    """The choices of configurations, O(characters).

    Args:
        blocks: as `ranksearch.store.Store.configurations` gives them.
        paths: module path -> name of its site, in the order of the sites. A site that is not among them comes behind them, by the
            path that the configuration has.

    Raises:
        Damaged: a text that is no configuration.
    """
    reader = _Reader(paths)
    ids: list[str] = []
    found = []
    for block_ids, texts in blocks:
        ids.extend(block_ids)
        found.append(reader.block(texts))
    sites = tuple(reader.sites)
    codes = np.tile(np.arange(len(sites), dtype=np.int32), (len(ids), 1))
    start, site_of = 0, reader.site_of
    for rows, options, count in found:
        codes[start + rows, site_of[options]] = options + len(sites)
        start += count
    dense = [(site, "dense", ()) for site in sites]
    return Choices(tuple(ids), sites, (*dense, *reader.options), codes)


class _Reader:
    """Options numbered in the order in which they are met."""

    def __init__(self, paths: Mapping[str, str]) -> None:
        self._paths = dict(paths)
        self.sites: dict[str, int] = {site: number for number, site in enumerate(dict.fromkeys(paths.values()))}
        self.options: dict[Option, int] = {}
        self._site_of: list[int] = []  # of every option
        self._known: dict[str, int] = {"": -1}  # part of a text -> option; of the dense network there is one empty part

    def block(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, int]:
        """Row and option of every choice of some texts, and how many texts there are."""
        parts = pc.split_pattern(pa.array([text[2:-3] for text in texts], type=pa.string()), _BETWEEN)  # pyright: ignore[reportAttributeAccessIssue]
        encoded = parts.flatten().dictionary_encode()
        known = self._known  # looked up here: a call for every part of every block would take as long as splitting them
        distinct = encoded.dictionary.to_pylist()
        meaning = np.array([known[part] if part in known else self._number(part) for part in distinct], dtype=np.int64)
        rows = np.repeat(np.arange(len(texts)), np.diff(parts.offsets.to_numpy()))
        numbers = meaning[encoded.indices.to_numpy()] if len(rows) else np.zeros(0, dtype=np.int64)
        cut = [row for row, text in enumerate(texts) if text != "{}" and not (text.startswith('{"') and text.endswith("]]}"))]
        odd = np.unique(np.concatenate([rows[numbers == -2], np.array(cut, dtype=np.int64)]))
        if len(odd):  # texts that are not canonical, or damaged, and names that look like the end of a choice
            kept = ~np.isin(rows, odd)
            again = [(row, [self._option(*choice) for choice in _parsed(texts[int(row)])]) for row in odd]
            more = np.concatenate([np.full(len(options), row, dtype=np.int64) for row, options in again])
            rows = np.concatenate([rows[kept], more])
            numbers = np.concatenate([numbers[kept], np.array(list(chain.from_iterable(o for _, o in again)), dtype=np.int64)])
        sound = numbers >= 0
        return rows[sound], numbers[sound], len(texts)

    @property
    def site_of(self) -> np.ndarray:
        """The site of every option, int64, shape: (n_options,)."""
        return np.array(self._site_of, dtype=np.int64)

    def _number(self, part: str) -> int:
        """The option of a part of a text that is met for the first time; -2 where it is not a choice."""
        try:
            ((path, (name, rank)),) = json.loads(f'{{"{part}]]}}').items()
            self._known[part] = self._option(path, name, rank)
        except (ValueError, TypeError):
            self._known[part] = -2
        return self._known[part]

    def _option(self, path: str, name: str, rank: Sequence[int]) -> int:
        site = self._paths.get(path, path)
        place = self.sites.setdefault(site, len(self.sites))
        key = (site, str(name), tuple(int(entry) for entry in rank))
        if key not in self.options:
            self.options[key] = len(self.options)
            self._site_of.append(place)
        return self.options[key]


def _parsed(text: str) -> list[tuple[str, str, list[int]]]:
    try:
        return [(path, name, rank) for path, (name, rank) in json.loads(text).items()]
    except (ValueError, TypeError, AttributeError) as error:
        raise Damaged(f"{text[:60]!r} is not the JSON of a configuration: {error}; restore a copy of the store") from error
