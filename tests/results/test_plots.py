"""Pictures of fronts: drawn from a frame, refused where they cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ranksearch.errors import InvalidArgument
from ranksearch.results import plots
from ranksearch.results.plots import plot_front, plot_proxies


def _frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "macs_rel": [0.2, 0.5, 0.6, 1.0], "params_rel": [0.3, 0.4, 0.5, 1.0], "accuracy": [0.8, 0.9, 0.85, 0.92],
            "is_dense": [False, False, False, True], "on_front": [True, True, False, True],
        }
    )  # fmt: skip


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_pictures_are_written(tmp_path: Path, suffix: str, magic: bytes) -> None:
    path = plot_front(_frame(), metric="accuracy", title="t", path=tmp_path / "deep" / f"front{suffix}")
    assert path.read_bytes().startswith(magic) and path.stat().st_size > 3000


def test_other_endings_and_metrics_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"\.png"):
        plot_front(_frame(), metric="accuracy", title="t", path=tmp_path / "front.gif")
    with pytest.raises(InvalidArgument, match="f1"):
        plot_front(_frame(), metric="f1", title="t", path=tmp_path / "front.png")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that were drawn."""
    figures: list[Any] = []
    make = plots.canvas
    monkeypatch.setattr(plots, "canvas", lambda *size: figures.append(make(*size)) or figures[-1])
    return figures


def test_the_front_sets_the_scale_and_what_is_off_it_is_marked(tmp_path: Path, drawn: list[Any]) -> None:
    frame = _frame()
    frame.loc[2, "accuracy"] = 0.1  # beaten by far
    plot_front(frame, metric="accuracy", title="t", path=tmp_path / "front.png")
    axes = drawn[0].axes[0]
    span = 0.92 - 0.8
    assert axes.get_ylim() == pytest.approx((0.8 - 0.7 * span, 0.92 + 0.06 * span))
    labels = {c.get_label(): c.get_offsets() for c in axes.collections}
    assert len(labels["evaluated"]) == 0 and labels["off the scale"].tolist() == [pytest.approx([60.0, 0.8 - 0.7 * span])]
    assert labels["front"].tolist() == [[20.0, 0.8], [50.0, 0.9]]


def test_the_scale_ends_with_the_data(tmp_path: Path, drawn: list[Any]) -> None:
    frame = _frame()
    plot_front(frame, metric="accuracy", title="t", path=tmp_path / "front.png")
    low, high = drawn[0].axes[0].get_ylim()
    pad = 0.06 * (0.92 - 0.8)
    assert (low, high) == pytest.approx((frame["accuracy"].min() - pad, 0.92 + pad))
    plot_front(frame.assign(accuracy=-frame["accuracy"]), metric="accuracy", title="less is better", path=tmp_path / "loss.png")
    assert drawn[1].axes[0].get_ylim() == pytest.approx((-high, -low))


def test_a_front_of_one_level_has_room_around_it(tmp_path: Path, drawn: list[Any]) -> None:
    frame = _frame().assign(accuracy=0.9)
    plot_front(frame, metric="accuracy", title="t", path=tmp_path / "front.png")
    assert drawn[0].axes[0].get_ylim() == pytest.approx((0.8, 0.95))


@pytest.mark.parametrize("points", [3, 60])
def test_the_legend_covers_no_point_and_colours_span_the_front(tmp_path: Path, drawn: list[Any], points: int) -> None:
    macs = np.linspace(0.05, 0.95, points)
    frame = pd.DataFrame(
        {
            "macs_rel": [*macs, *macs, 1.0], "params_rel": [*np.linspace(0.07, 0.3, points), *macs, 1.0],
            "accuracy": [*(0.7 + 0.2 * macs), *(0.65 + 0.1 * macs), 0.95], "is_dense": [False] * 2 * points + [True],
            "on_front": [True] * points + [False] * points + [True],
        }
    )  # fmt: skip
    plot_front(frame, metric="accuracy", title="t", path=tmp_path / "front.png")
    (figure,) = drawn
    axes, colours = figure.axes
    (legend,) = figure.legends
    assert not legend.get_window_extent().overlaps(axes.get_window_extent()) and axes.get_legend() is None
    assert "params" in colours.get_ylabel()
    low, high = colours.get_ylim()
    assert (low, high) == pytest.approx((7.0, 30.0)), "the dense network is drawn as a star and takes no part"


def test_a_front_of_the_dense_network_alone_is_drawn_without_colours(tmp_path: Path, drawn: list[Any]) -> None:
    frame = _frame()
    plot_front(frame[frame["is_dense"]], metric="accuracy", title="t", path=tmp_path / "front.png")
    assert len(drawn[0].axes) == 1
    assert drawn[0].axes[0].get_ylim() == pytest.approx((0.92 - 0.1, 0.92 + 0.05)), "one value has a range around it"
    plot_front(frame.iloc[[0, 3]], metric="accuracy", title="t", path=tmp_path / "one.png")
    low, high = drawn[1].axes[1].get_ylim()
    assert low < 30 < high, "one network has a range around it"


def _proxies() -> tuple[pd.DataFrame, pd.DataFrame]:
    pairs = [(proxy, fidelity) for proxy in ("one", "two") for fidelity in ("full:epochs=0", "full:epochs=1")]
    agreements = pd.DataFrame([{"proxy": p, "fidelity": f, "metric": "accuracy", "kendall": float("nan")} for p, f in pairs])
    scores = [
        {"proxy": p, "fidelity": f, "id": str(i), "score": i * 10.0**i, "measured": 0.9 - 0.1 * i, "params_rel": 0.5, "macs_rel": 0.1 * i}
        for p, f in pairs
        for i in range(4)
    ]
    return agreements, pd.DataFrame(scores)


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_proxies_are_drawn_in_one_picture(tmp_path: Path, suffix: str, magic: bytes) -> None:
    path = plot_proxies(*_proxies(), title="t", path=tmp_path / "deep" / f"proxies{suffix}")
    assert path.read_bytes().startswith(magic) and path.stat().st_size > 10_000


def test_every_panel_says_what_it_shows(tmp_path: Path, drawn: list[Any]) -> None:
    plot_proxies(*_proxies(), title="the title", path=tmp_path / "p.png")
    (figure,) = drawn
    *panels, colours = figure.axes
    assert colours.get_ylabel() == "MACs (% of dense)" and figure.get_suptitle() == "the title"
    assert [axes.get_title().split("\n")[0] for axes in panels] == ["one", "two", "one", "two"]
    assert [axes.get_ylabel() for axes in panels] == ["accuracy\nfull\nepochs=0", "", "accuracy\nfull\nepochs=1", ""]
    assert figure.get_size_inches().tolist() == pytest.approx([2.3 * 2 + 1.3, 2.5 * 2 + 0.7]), "a panel of one size, however many"


def test_nothing_to_draw_and_other_endings_are_refused(tmp_path: Path) -> None:
    agreements, scores = _proxies()
    with pytest.raises(InvalidArgument, match="no row"):
        plot_proxies(agreements, scores.iloc[:0], title="t", path=tmp_path / "p.png")
    with pytest.raises(InvalidArgument, match=r"\.png"):
        plot_proxies(agreements, scores, title="t", path=tmp_path / "p.bmp")
