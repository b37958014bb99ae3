"""The figures of a report for papers: each as SVG and PNG, by matplotlib."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ranksearch.errors import InvalidArgument, MissingDependency
from ranksearch.home import user_path
from ranksearch.printable import shortened
from ranksearch.report.data import Facts, Proxies, page_data
from ranksearch.results.plots import canvas, plot_front, plot_proxies

NAME = 32  # characters of a name that a figure has room for
SUFFIXES = (".svg", ".png")
COLOURS = ("#3f78bf", "#cf7f35", "#4b9a6a", "#a8629c", "#98912e", "#b5544d", "#4a9fae", "#8c6d4f", "#6f6ab8", "#c77b9b")
DENSE = "#b4bac2"


def check_folder(folder: str | Path) -> Path:
    """Where figures go.

    Raises:
        InvalidArgument: it is a file.
        MissingDependency: matplotlib is not installed.
    """
    folder = user_path(folder)
    if folder.exists() and not folder.is_dir():
        raise InvalidArgument(f"figures={str(folder)!r} is a file; give a folder")
    canvas(1.0, 1.0)
    return folder


def write_figures(facts: Facts, folder: str | Path) -> list[Path]:
    """Draw what can be drawn of a study: ``front``, ``layers`` (rank shares of every site along the front), ``types``,
    ``history`` (hypervolume over evaluations, by who added to it) and ``proxies``.

    Returns:
        what was written. A figure of which nothing is known is left out.

    Raises:
        InvalidArgument: the folder is a file.
        MissingDependency: matplotlib is not installed.
    """
    folder = check_folder(folder)
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependency("pictures need matplotlib: pip install 'ranksearch[plot]'") from error
    networks: Any = facts.networks
    on_front = networks[networks["on_front"] & ~networks["is_dense"]]
    drawings: dict[str, Callable[[Path], object]] = {}
    if len(networks):
        metric = next((name for name in facts.objectives if name in facts.directions), next(iter(facts.directions)))
        title = f"{facts.study}: {metric} of measured networks"
        drawings["front"] = lambda path: plot_front(networks, metric=metric, title=title, path=path)
    if len(on_front):
        data = page_data(facts)
        rows = on_front.index.tolist()
        labels = [f"{100 * share:.0f}" for share in on_front["macs_rel" if on_front["macs_rel"].notna().any() else "params_rel"]]
        drawings["layers"] = lambda path: _layers(data, rows, labels, path)
        drawings["types"] = lambda path: _types(data, rows, labels, path)
    if facts.history["gain"].notna().to_numpy().any():
        drawings["history"] = lambda path: _history(facts.history, path)
    if isinstance(facts.proxies, Proxies):
        judged = facts.proxies
        drawings["proxies"] = lambda path: plot_proxies(
            judged.agreements, judged.scores, title=f"{facts.study}: measured networks against what proxies said of them", path=path
        )
    with matplotlib.rc_context({"text.parse_math": False}):  # names are text
        for name, draw in drawings.items():
            for suffix in SUFFIXES:
                draw(folder / f"{name}{suffix}")
    return [folder / f"{name}{suffix}" for name in drawings for suffix in SUFFIXES]


def _layers(data: dict[str, Any], rows: Sequence[int], labels: Sequence[str], path: Path) -> None:
    """Rank shares as a map: a row per site, a column per network of the front; layers that stay dense are grey."""
    sites = data["sites"]
    chosen = [[choices[row] for row in rows] for choices in data["choices"]]
    shares = np.array([
        [np.nan if number == 0 else _or_nan(data["options"][at]["rank_share"][number - 1]) for number in numbers]
        for at, numbers in enumerate(chosen)
    ])  # fmt: skip
    dense = np.array(chosen) == 0
    figure = canvas(1.9 + min(0.32 * len(rows), 9.0), 1.4 + min(0.2 * len(sites), 12.0))
    axes = figure.add_subplot()
    axes.imshow(np.where(dense, 1.0, np.nan), cmap=_one(DENSE), vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    step = -(-len(sites) // 60)
    axes.set_yticks(range(0, len(sites), step), [shortened(name, NAME) for name in sites[::step]], fontsize=7)
    _columns(axes, labels)
    figure.colorbar(drawn, ax=axes, label="rank, share of full rank (grey: dense)", shrink=0.8)
    _save(figure, path)


def _types(data: dict[str, Any], rows: Sequence[int], labels: Sequence[str], path: Path) -> None:
    """How many layers of every network of the front have each type."""
    names = [["dense" if c[row] == 0 else data["options"][at]["type"][c[row] - 1] for at, c in enumerate(data["choices"])] for row in rows]
    counts = [Counter(found) for found in names]
    total = Counter(name for found in names for name in found)
    kinds = [*(name for name, _ in total.most_common() if name != "dense"), "dense"]
    figure = canvas(1.9 + min(0.32 * len(rows), 9.0), 3.4)
    axes = figure.add_subplot()
    base = np.zeros(len(rows))
    for at, kind in enumerate(kinds):
        heights = np.array([found[kind] for found in counts], dtype=np.float64)
        axes.bar(range(len(rows)), heights, 0.88, bottom=base, color=DENSE if kind == "dense" else COLOURS[at % len(COLOURS)], label=kind)
        base += heights
    _columns(axes, labels)
    axes.set_ylabel("layers")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=min(len(kinds), 6), frameon=False, fontsize=8)
    _save(figure, path)


def _history(frame: Any, path: Path) -> None:
    """The hypervolume over evaluations of the seed that has most of them, and who proposed what added to it."""
    rows = frame[frame["seed"] == frame["seed"].mode()[0]]
    better = rows[rows["gain"] > 0]
    figure = canvas(6.4, 3.4)
    axes = figure.add_subplot()
    axes.step(rows["number"], rows["hypervolume"], where="post", color="0.45", linewidth=1.2, zorder=1)
    order = better.groupby("finder", observed=True)["gain"].sum().sort_values(ascending=False).index
    for at, name in enumerate(order):
        mine = better[better["finder"] == name]
        axes.scatter(mine["number"], mine["hypervolume"], s=20, color=COLOURS[at % len(COLOURS)], label=shortened(name, NAME), zorder=2)
    axes.set(xlabel="evaluations", ylabel="hypervolume")
    axes.spines[["top", "right"]].set_visible(False)
    if len(order):
        figure.legend(loc="outside upper center", ncols=min(len(order), 3), frameon=False, fontsize=8)
    _save(figure, path)


def _columns(axes: Any, labels: Sequence[str]) -> None:
    step = -(-len(labels) // 14)
    axes.set_xticks(range(0, len(labels), step), labels[::step], fontsize=7)
    axes.set_xlabel("networks of the front, cost in % of dense")


def _one(colour: str) -> Any:
    from matplotlib.colors import ListedColormap

    return ListedColormap([colour])


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
