"""Pictures of results, from the tidy frames alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ranksearch.errors import InvalidArgument, MissingDependency
from ranksearch.home import user_path

if TYPE_CHECKING:
    import pandas as pd

FORMATS = (".png", ".svg", ".pdf")


def check_path(path: str | Path) -> Path:
    """The path of a picture.

    Raises:
        InvalidArgument: another file ending than .png, .svg or .pdf.
    """
    path = user_path(path)
    if path.suffix.lower() not in FORMATS:
        raise InvalidArgument(f"path={path.name!r}: a picture ends in one of {', '.join(FORMATS)}")
    return path


def plot_front(frame: pd.DataFrame, *, metric: str, title: str, path: str | Path) -> Path:
    """Draw ``metric`` over relative MACs (params where the dense network has no MACs): every evaluation, the front, and the dense
    network.

    Args:
        frame: of `ranksearch.study.Study.front` with ``all=True``.
        metric: a metric column; up is as the metric goes.
        title: of the picture.
        path: where to write; .png, .svg or .pdf.

    Raises:
        InvalidArgument: another file ending, a column that the frame does not have, or a frame without a row.
        MissingDependency: matplotlib is not installed.
    """
    path = check_path(path)
    if metric not in frame.columns:
        raise InvalidArgument(f"metric={metric!r} is no column; there are: {', '.join(frame.columns)}")
    if not len(frame):
        raise InvalidArgument("frame: it has no row; there is nothing to draw: search first")
    figure = canvas(7.2, 4.4)
    axes = figure.add_subplot()
    rows: Any = frame  # the stubs of pandas lose the type of a selection
    size, label = _size(rows)
    dense, front = rows[rows["is_dense"]], rows[rows["on_front"] & ~rows["is_dense"]]
    beaten = rows[~rows["on_front"] & ~rows["is_dense"]]
    low, high = _scale(rows, metric)
    inside = beaten[metric].between(low, high)
    axes.scatter(100 * beaten[size][inside], beaten[metric][inside], s=16, color="0.75", label="evaluated", zorder=1)
    if not inside.all():
        edge = beaten[metric][~inside].clip(low, high)
        axes.scatter(100 * beaten[size][~inside], edge, s=26, marker="x", color="0.75", label="off the scale", zorder=1, clip_on=False)
    axes.set_ylim(low, high)
    if len(front):
        points = axes.scatter(
            100 * front[size], front[metric], c=100 * front["params_rel"], s=38, cmap="viridis",
            norm=_norm(100 * front["params_rel"]), edgecolor="white", linewidth=0.6, label="front", zorder=3,
        )  # fmt: skip
        figure.colorbar(points, ax=axes, label="params of the front (% of dense)")
    axes.scatter(100 * dense[size], dense[metric], marker="*", s=170, color="crimson", label="dense network", zorder=4)
    for value in dense[metric]:
        axes.axhline(value, color="crimson", linewidth=0.8, linestyle=":", zorder=0)
    axes.set(xlabel=f"{label} (% of dense)", ylabel=metric, title=title)
    axes.grid(color="0.93")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)  # beside the axes: it covers no point
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    return path


def _scale(rows: Any, metric: str) -> tuple[float, float]:
    """The range of an axis: the front sets it, with room for what it beats; what is far off is marked at the edge."""
    shown, every = rows.loc[rows["on_front"] | rows["is_dense"], metric], rows[metric]
    span = shown.max() - shown.min()
    if not span:
        return shown.min() - 0.1, shown.max() + 0.05
    room, pad = 0.7 * span, 0.06 * span
    return max(shown.min() - room, every.min() - pad), min(shown.max() + room, every.max() + pad)


def plot_proxies(agreements: pd.DataFrame, scores: pd.DataFrame, *, title: str, path: str | Path) -> Path:
    """Draw what was measured over what each proxy scored: a column of panels per proxy, a row per fidelity.

    Args:
        agreements: of `ranksearch.study.Study.proxies`.
        scores: of `ranksearch.study.Study.proxy_scores`, of the same metric and fidelities.
        title: of the picture.
        path: where to write; .png, .svg or .pdf.

    Raises:
        InvalidArgument: another file ending, or frames without a row.
        MissingDependency: matplotlib is not installed.
    """
    path = check_path(path)
    if not len(agreements) or not len(scores):
        raise InvalidArgument("agreements, scores: a frame has no row; there is nothing to draw")
    proxies, fidelities = list(dict.fromkeys(agreements["proxy"])), list(dict.fromkeys(agreements["fidelity"]))
    taus = {(row["proxy"], row["fidelity"]): row["kendall"] for row in agreements.to_dict("records")}
    metric = str(agreements["metric"].iloc[0])
    figure = canvas(2.3 * len(proxies) + 1.3, 2.5 * len(fidelities) + 0.7)
    grid = figure.subplots(len(fidelities), len(proxies), squeeze=False, sharey="row")
    rows: Any = scores
    size, label = _size(rows)
    points, norm = None, _norm(100 * rows[size])
    for line, fidelity in zip(grid, fidelities, strict=True):
        for axes, proxy in zip(line, proxies, strict=True):
            shown = rows[(rows["proxy"] == proxy) & (rows["fidelity"] == fidelity)]
            points = axes.scatter(
                shown["score"], shown["measured"], c=100 * shown[size], s=20, cmap="viridis", norm=norm,
                edgecolor="white", linewidth=0.4,
            )  # fmt: skip
            if (shown["score"] > 0).all() and shown["score"].max() > 10 * shown["score"].min():
                axes.set_xscale("log")
                axes.xaxis.set_minor_formatter("")  # minor labels would run into each other
            tau = taus[proxy, fidelity]
            axes.set_title(f"{proxy}\nKendall tau {tau:.2f}" if tau == tau else f"{proxy}\nno order to compare", fontsize=9)
            axes.tick_params(labelsize=7)
            axes.grid(color="0.93")
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        line[0].set_ylabel(f"{metric}\n{_wrapped(fidelity)}", fontsize=8)
    assert points is not None
    figure.colorbar(points, ax=grid, label=f"{label} (% of dense)", shrink=0.9)
    figure.supxlabel("score of the proxy (lower is better)", fontsize=9)
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    return path


def _norm(values: Any) -> Any:
    """Colours from the least to the largest of the values, so that they can be told apart; one value has a range around it."""
    from matplotlib.colors import Normalize

    low, high = float(values.min()), float(values.max())
    return Normalize(low, high) if high > low else Normalize(low - 1, high + 1)


def _size(rows: Any) -> tuple[str, str]:
    """The column that sizes are read from, and what to call it."""
    return ("macs_rel", "MACs") if rows["macs_rel"].notna().any() else ("params_rel", "params")


def canvas(width: float, height: float) -> Any:
    """A figure that knows nothing of pyplot, of a size in inches.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency("pictures need matplotlib: pip install 'ranksearch[plot]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _wrapped(fidelity: str) -> str:
    return fidelity.replace(":", "\n").replace(",", "\n")
