"""Reports in a browser: what is seen, what can be done with mouse and keys, and that nothing is loaded or run that should not be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from report_cases import HARM, facts, records, until

from ranksearch.report.data import page_data
from ranksearch.report.page import report_page

Open = Callable[..., Any]
PHONE: dict[str, Any] = {"color_scheme": "dark", "viewport": {"width": 390, "height": 800}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="session")
def made() -> Any:
    return facts(records(40))


@pytest.fixture(scope="session")
def report(made: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "made.html"
    path.write_text(report_page(page_data(made)), encoding="utf-8")
    return path.as_uri()


def shown(page: Any) -> list[str]:
    """Ids in the table of the front."""
    return page.eval_on_selector_all("#front-table tbody tr", "rows => rows.map((row) => row.dataset.id)")


def front_of(made: Any, where: str | None = None) -> list[str]:
    """The front of the networks that satisfy a condition, by definition: those that no other one of them dominates."""
    rows = made.networks if where is None else made.networks.query(where.replace("macs", "macs_rel").replace("params", "params_rel"))
    points = [(row["macs"], -row["accuracy"]) for row in rows.to_dict("records")]
    beaten = [any(b[0] <= a[0] and b[1] <= a[1] and b != a for b in points) for a in points]
    return [id for id, lost in zip(rows["id"], beaten, strict=True) if not lost]


def test_a_report_shows_the_front_and_loads_nothing(made: Any, report: str, opened: Open) -> None:
    page, seen = opened(report)
    assert page.title() == "made up: ranksearch report" and page.inner_text("h1") == "made up"
    assert shown(page) == front_of(made)
    assert "41 evaluations" not in page.inner_text("#matching")
    charts = ("front-chart", "heat-chart", "types-chart", "history-chart", "proxy-chart")
    assert [len(page.query_selector_all(f"#{chart} .main-svg")) > 0 for chart in charts] == [True] * 5
    assert page.inner_text("#failure-table tbody tr td:nth-child(3)") == "ValueError: <b>no</b> & none\nTraceback"
    assert "fisher, taylor: no <i>calibration</i>" in page.inner_text("#left-out")
    assert seen.requests == [report] and not seen.errors, "nothing but the file itself"


def test_a_point_is_clicked_and_its_layers_appear(made: Any, report: str, opened: Open) -> None:
    page, _ = opened(report)
    other = next(id for id in shown(page) if id != page.inner_text("aside h3"))
    row = page.evaluate("id => study.rowOf.get(id)", other)
    page.locator("#front-chart").scroll_into_view_if_needed()
    x, y = page.evaluate(
        """row => {
            const place = document.getElementById("front-chart"), box = place.getBoundingClientRect();
            const {xaxis, yaxis} = place._fullLayout, [x, y] = [along(study, view.x, row), value(study, view.y, row)];
            return [box.left + xaxis._offset + xaxis.d2p(x), box.top + yaxis._offset + yaxis.d2p(y)];
        }""",
        row,
    )
    page.mouse.move(x, y)
    page.wait_for_selector("#front-chart .hoverlayer .hovertext")
    assert other in page.text_content("#front-chart .hoverlayer")
    page.mouse.click(x, y)
    assert page.inner_text("aside h3") == other
    text = "rows => rows.map((row) => row.cells[0].innerText + ' ' + row.cells[1].innerText)"
    rows = page.eval_on_selector_all("#layer-table tbody tr", text)
    layers: Any = made.layers
    types = dict(layers.loc[(layers["id"] == other).to_numpy(), ["site", "decomposition"]].itertuples(index=False, name=None))
    assert rows == [f"{site} {types.get(site, 'dense')}" for site in made.sites]
    assert page.inner_text("aside code") == f"ranksearch build made.py {other} --out made-{other}"
    assert page.get_attribute("#front-table tr.selected", "data-id") == other


@pytest.mark.parametrize(
    ("field", "given", "where"),
    [
        ("most-macs", "50", "macs <= 0.5"), ("most-params", "30", "params <= 0.3"), ("bound-accuracy", "0.9", "accuracy >= 0.9"),
        ("bound-loss", "0.2", "loss <= 0.2"),
    ],
)  # fmt: skip
def test_a_filter_gives_the_front_of_what_satisfies_it(made: Any, report: str, opened: Open, field: str, given: str, where: str) -> None:
    page, _ = opened(report)
    before = shown(page)
    page.fill(f"#{field}", given)
    assert shown(page) == front_of(made, where) != before
    assert page.inner_text("aside h3").split()[0] in {*shown(page), page.evaluate("study.networks.id[study.denseRow]")}
    page.click("#reset")
    assert shown(page) == before and page.input_value(f"#{field}") == ""


def test_narrower_dense_networks_stand_beside_the_front_where_they_were_trained(made: Any, opened: Open, tmp_path: Path) -> None:
    columns = {"width": [0.75, 0.5], "low": [0.7, 0.5], "high": [0.74, 0.52], "params": [800, 300], "macs": [7000, 4000]}
    rivals = pd.DataFrame({**columns, "accuracy": [0.9, float("nan")], "loss": [float("nan")] * 2})
    path = tmp_path / "narrower.html"
    path.write_text(report_page(page_data(replace(made, narrower=rivals))), encoding="utf-8")
    page, seen = opened(path.as_uri())
    cells = page.eval_on_selector_all("#narrower-table tbody tr", "rows => rows.map((row) => [...row.cells].map((cell) => cell.innerText))")
    assert [[text.replace("\u202f", "") for text in row] for row in cells] == [
        ["75%", "80.0%", "70.0%", "70.0% – 74.0%", "0.9000", "–"], ["50%", "30.0%", "40.0%", "50.0% – 52.0%", "–", "–"],
    ]  # fmt: skip
    assert "1 of them trained" in page.inner_text("#narrower-lead")
    points = "() => byId('front-chart').data.filter((trace) => trace.marker?.symbol === 'triangle-up').map((trace) => [trace.x, trace.y])"
    assert page.evaluate(points) == [[[70], [0.9]]]
    page.click("#front-legend label:has-text('narrower dense networks')")
    assert page.evaluate(points) == [] and not seen.errors


def test_a_report_without_them_says_nothing_of_them(report: str, opened: Open) -> None:
    page, _ = opened(report)
    assert not page.is_visible("#narrower") and "narrower" not in page.inner_text("#front-legend")


def test_filters_by_origin_and_type(made: Any, report: str, opened: Open) -> None:
    page, _ = opened(report)
    networks: Any = made.networks
    origins = dict(zip(networks["id"], networks["origin"], strict=True))
    page.select_option("#family", label="additive:energy")
    assert shown(page) and all(origins[id].startswith("additive:energy:") for id in shown(page))
    page.click("#reset")
    page.select_option("#type", "tucker2")
    layers: Any = made.layers
    having = set(layers.loc[(layers["decomposition"] == "tucker2").to_numpy(), "id"])
    assert shown(page) and set(shown(page)) <= having


def test_everything_is_reached_by_keyboard(report: str, opened: Open) -> None:
    page, _ = opened(report)
    wanted = page.evaluate(
        """() => {
            const all = [...document.querySelectorAll("a[href], button, input, select, [tabindex]")];
            window.wanted = new Set(all.filter((e) => e.checkVisibility()));
            document.addEventListener("focusin", (event) => window.wanted.delete(event.target));
            return window.wanted.size;
        }"""
    )
    assert wanted > 20
    for _ in range(wanted + 10):
        page.keyboard.press("Tab")
    assert page.evaluate("[...window.wanted].map((e) => e.outerHTML.slice(0, 200))") == []
    ids = shown(page)
    page.focus("#front-chart")
    page.keyboard.press("Home")
    assert page.inner_text("aside h3").split()[0] == ids[0]
    page.keyboard.press("ArrowRight")
    assert page.inner_text("aside h3").split()[0] == ids[1]
    page.focus(f"#front-table tr[data-id='{ids[2]}'] button")
    page.keyboard.press("Enter")
    assert page.inner_text("aside h3").split()[0] == ids[2]


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("hostile") / "hostile.html"
    data = page_data(facts(records(12, HARM), study="".join(HARM), sites=HARM))
    path.write_text(report_page(data), encoding="utf-8")
    return path.as_uri()


def test_names_that_mean_harm_are_text(hostile: str, opened: Open) -> None:
    page, seen = opened(hostile, **PHONE)
    assert page.text_content("h1") == "".join(HARM) and page.title().startswith(HARM[0])
    assert page.eval_on_selector_all("#layer-table tbody tr td:first-child", "cells => cells.map((cell) => cell.textContent)") == list(HARM)
    labels = page.eval_on_selector_all("#heat-chart .ytick text", "texts => texts.map((text) => text.textContent)")
    assert [text.split("…")[0] == name[: len(text.split("…")[0])] for text, name in zip(labels, HARM, strict=True)] == [True] * len(HARM)
    assert labels[HARM.index("<i>&amp;</i>")] == "<i>&amp;</i>", "plotly takes some tags for markup"
    assert page.evaluate("window.harmed") is None and not page.query_selector_all("img, h1 *, td b, main script")
    assert seen.requests == [hostile] and not seen.errors
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390, "a long name makes no page that scrolls sideways"


def test_dark_print_and_phone(hostile: str, opened: Open) -> None:
    page, _ = opened(hostile, **PHONE)
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    tick = "document.querySelector('#front-chart .xtick text').style.fill"
    text = page.evaluate(tick)
    page.emulate_media(media="print")
    until(page, f"{tick} !== '{text}'")
    assert page.evaluate(ground) != dark, "paper is light"
    assert not page.is_visible("#filters") and page.is_visible("#pattern")
    until(page, "document.querySelector('main').ariaBusy === 'false'")
    sizes = "[...document.querySelectorAll('.chart:not([hidden])')].map((e) => [e.querySelector('.main-svg').clientHeight, e.clientHeight])"
    assert all(0 < drawn <= place + 1 for drawn, place in page.evaluate(sizes)), "no figure covers what stands below it"
    page.emulate_media(media="screen")


def test_a_study_without_results_says_so(opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "empty.html"
    path.write_text(report_page(page_data(facts(records(0, failures=1), proxies="nothing is measured"))), encoding="utf-8")
    page, _ = opened(path.as_uri())
    assert "no network on the front but the dense one" in page.inner_text("#layers-note")
    assert "nothing is measured" in page.inner_text("#proxies-lead")
