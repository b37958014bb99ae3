"""Statistics in files: one of safetensors, or an index and a file per site where they are too large to be held at once, which are then
read, memory-mapped, when a site is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ranksearch.errors import InvalidArgument
from ranksearch.home import replacing
from ranksearch.statistics.collector import SiteStatistics
from ranksearch.tensors import save

HELD = 256 << 20  # bytes of tensors up to which all of them are read at once, and travel to workers
_ARRAYS = ("input", "mean", "input_shrinkage", "gradient", "output_shrinkage", "channel", "tap", "counts", "fisher_diagonal")


class Writer:
    """Writes statistics to a file; it is there once it is closed.

    Args:
        in_pieces: what is added is written at once, each site to a file of its own beside ``path``, and not held.
    """

    def __init__(self, path: Path, *, in_pieces: bool) -> None:
        self._path, self._in_pieces = path, in_pieces
        self._numbers: dict[str, list[int]] = {}
        self._uncovered: dict[str, str] = {}
        self._tensors: dict[str, Tensor] = {}  # of the index itself
        self._places: dict[str, tuple[str, str]] = {}  # array of a site -> file, key in it
        self._bytes = 0

    def add(self, found: Mapping[str, SiteStatistics], uncovered: Mapping[str, str]) -> None:
        """Add some sites; arrays that several of them share are written once."""
        self._uncovered |= uncovered
        shared: dict[int, tuple[str, str]] = {}
        for name, s in found.items():
            self._numbers[name] = [s.examples, s.rows, s.sampled]
            file = f"{self._path.stem}-{len(self._numbers)}.safetensors" if self._in_pieces else ""
            tensors: dict[str, Tensor] = {}
            for array in _ARRAYS:
                if (value := getattr(s, array)) is None:
                    continue
                key = f"{name}:{array}"
                if id(value) not in shared:
                    shared[id(value)] = file, key
                    tensors[key] = value.cpu().contiguous()
                self._places[key] = shared[id(value)]
            self._bytes += sum(value.numel() * value.element_size() for value in tensors.values())
            if self._in_pieces:
                with replacing(self._path.with_name(file)) as unfinished:
                    save(tensors, unfinished)
            else:
                self._tensors |= tensors

    def close(self) -> None:
        """Write what the file says of all sites."""
        metadata = {"numbers": self._numbers, "uncovered": self._uncovered, "places": self._places, "bytes": self._bytes}
        with replacing(self._path) as unfinished:
            save(self._tensors, unfinished, {name: json.dumps(value) for name, value in metadata.items()})


def load(path: Path) -> tuple[Mapping[str, SiteStatistics], dict[str, str]] | None:
    """What a file has of every site, and what is missing; None where it, or one that it refers to, is not there or was cut off."""
    try:
        with safe_open(path, "pt") as file:
            metadata = {name: json.loads(value) for name, value in file.metadata().items()}
            places = metadata.get("places") or {key: ("", key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        places = {key: (file, name) for key, (file, name) in places.items()}
        kept = Kept(path.absolute(), metadata["numbers"], places, metadata.get("bytes", 0))
        for name in {file for file, _ in places.values()}:
            with safe_open(kept.file(name), "pt"):  # which compares its length with what it says of itself
                pass
    except (FileNotFoundError, SafetensorError):
        return None
    return kept.small(), metadata["uncovered"]


class Kept(Mapping[str, SiteStatistics]):
    """Statistics in files. Those of a site are read when they are asked for, and not held."""

    def __init__(self, path: Path, numbers: Mapping[str, list[int]], places: Mapping[str, tuple[str, str]], size: int) -> None:
        self._path, self._numbers, self._places, self._bytes = path, numbers, places, size

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __contains__(self, name: object) -> bool:
        return name in self._numbers

    def __getitem__(self, name: str) -> SiteStatistics:
        examples, rows, sampled = self._numbers[name]
        arrays = {array: self._places.get(f"{name}:{array}") for array in _ARRAYS}
        read: dict[str, Tensor | None] = dict.fromkeys(_ARRAYS)
        for file in {place[0] for place in arrays.values() if place is not None}:
            try:
                with safe_open(self.file(file), "pt") as opened:
                    read |= {a: opened.get_tensor(place[1]) for a, place in arrays.items() if place is not None and place[0] == file}
            except FileNotFoundError as error:
                raise InvalidArgument(
                    f"statistics of {name!r}: {self.file(file)} is not here (removed, or on another machine that shares no folder with "
                    "this one); begin again, which collects them anew, with RANKSEARCH_HOME in a folder that all machines see"
                ) from error
        return SiteStatistics(examples, rows, sampled, **read)  # type: ignore[arg-type]

    def file(self, name: str) -> Path:
        """A file by its name in places."""
        return self._path.with_name(name) if name else self._path

    def small(self) -> Mapping[str, SiteStatistics]:
        """All of it in memory, where that is little; or else itself."""
        return dict(self) if self._bytes <= HELD else self
