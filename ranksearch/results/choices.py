"""What configurations choose at every site, as one array of integers, read from their canonical JSON without a value per choice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ranksearch.results.frames import texts_of
from ranksearch.store import Damaged

Option = tuple[str, str, tuple[int, ...]]  # site, decomposition, rank
Blocks = Iterable[tuple[Sequence[str] | pa.Array, Sequence[str] | pa.Array]]  # ids, and the JSON of their configurations
_BETWEEN = ']],"'  # two choices, in the canonical JSON of a configuration; where a name has it too, the parts make no sense
_CHOICE = '":["'  # within each choice once, and nowhere else: a quote within a name is escaped
_SPACES = (b" ", b"\n", b"\t", b"\r")  # canonical JSON has them in names alone


@dataclass(frozen=True, eq=False)
class Choices:
    """The options of configurations, one row per configuration."""

    ids: pa.Array
    sites: tuple[str, ...]
    options: tuple[Option, ...]  # the first are the dense ones, one per site, in the order of the sites
    codes: np.ndarray  # position in ``options``, int32, shape: (n_configurations, n_sites)

    def rows(self, ids: Any) -> np.ndarray:
        """Rows of configurations, int64.

        Args:
            ids: a list, or a column of a frame.

        Raises:
            KeyError: an id that is none of them."""
        return places(ids, self.ids)


def places(ids: Any, known: pa.Array) -> np.ndarray:
    """Where ids are among those that are known, int64.

    Args:
        ids: as for `Choices.rows`.

    Raises:
        KeyError: an id that is none of them."""
    wanted = texts_of(ids)
    found = pc.index_in(wanted, value_set=known)  # pyright: ignore[reportAttributeAccessIssue]
    if found.null_count:
        raise KeyError(wanted.filter(found.is_null())[0].as_py())
    return found.to_numpy().astype(np.int64)


def factorized(blocks: Blocks) -> tuple[pa.Array, np.ndarray]:
    """The ids of configurations, and how many sites each factorizes, int64, shape: (n_configurations,).

    Args:
        blocks: as `ranksearch.store.Store.configurations` gives them.

    Raises:
        Damaged: a text that is no configuration.
    """
    ids, counts = [pa.array([], pa.string())], [np.zeros(0, dtype=np.int64)]
    for block_ids, block in blocks:
        texts = texts_of(block)
        ids.append(texts_of(block_ids))
        counts.append(pc.count_substring(texts, _CHOICE).to_numpy().astype(np.int64))  # pyright: ignore[reportAttributeAccessIssue]
        memory = b"" if texts.buffers()[2] is None else texts.buffers()[2].to_pybytes()
        if any(space in memory for space in _SPACES):  # far quicker than to look at every text
            spaced = pc.match_substring_regex(texts, r"[ \n\t\r]").to_numpy(zero_copy_only=False)  # pyright: ignore[reportAttributeAccessIssue]
            for row in np.flatnonzero(spaced):
                counts[-1][row] = len(_parsed(texts[int(row)].as_py()))
    return pa.concat_arrays(ids), np.concatenate(counts)


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
    ids = [pa.array([], pa.string())]
    found = []
    for block_ids, texts in blocks:
        ids.append(texts_of(block_ids))
        found.append(reader.block(texts_of(texts)))
    sites = tuple(reader.sites)
    codes = np.tile(np.arange(len(sites), dtype=np.int32), (sum(map(len, ids)), 1))
    start, site_of = 0, reader.site_of
    for rows, options, count in found:
        codes[start + rows, site_of[options]] = options + len(sites)
        start += count
    dense = [(site, "dense", ()) for site in sites]
    return Choices(pa.concat_arrays(ids), sites, (*dense, *reader.options), codes)


class _Reader:
    """Options numbered in the order in which they are met."""

    def __init__(self, paths: Mapping[str, str]) -> None:
        self._paths = dict(paths)
        self.sites: dict[str, int] = {site: number for number, site in enumerate(dict.fromkeys(paths.values()))}
        self.options: dict[Option, int] = {}
        self._site_of: list[int] = []  # of every option
        self._known: dict[str, int] = {"": -1}  # part of a text -> option; of the dense network there is one empty part

    def block(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray, int]:
        """Row and option of every choice of some texts, and how many texts there are."""
        canonical = pc.and_(pc.starts_with(texts, '{"'), pc.ends_with(texts, "]]}"))  # pyright: ignore[reportAttributeAccessIssue]
        canonical = pc.or_(canonical, pc.equal(texts, "{}")).to_numpy(zero_copy_only=False)  # pyright: ignore[reportAttributeAccessIssue]
        inner = pc.binary_slice(texts.cast(pa.binary()), 2, -3).cast(pa.string())  # pyright: ignore[reportAttributeAccessIssue]
        parts = pc.split_pattern(inner, _BETWEEN)  # pyright: ignore[reportAttributeAccessIssue]
        encoded = parts.flatten().dictionary_encode()
        known = self._known  # looked up here: a call for every part of every block would take as long as splitting them
        distinct = encoded.dictionary.to_pylist()
        meaning = np.array([known[part] if part in known else self._number(part) for part in distinct], dtype=np.int64)
        rows = np.repeat(np.arange(len(texts)), np.diff(parts.offsets.to_numpy()))
        numbers = meaning[encoded.indices.to_numpy()] if len(rows) else np.zeros(0, dtype=np.int64)
        odd = np.unique(np.concatenate([rows[numbers == -2], np.flatnonzero(~canonical)]))
        if len(odd):  # texts that are not canonical, or damaged, and names that look like the end of a choice
            kept = ~np.isin(rows, odd)
            again = [(row, [self._option(*choice) for choice in _parsed(texts[int(row)].as_py())]) for row in odd]
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
