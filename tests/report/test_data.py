"""What a page is made of: the same as the frames say, in JSON."""

from __future__ import annotations

import base64
import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_cases import HARM, SITES, facts, records

from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.errors import InvalidArgument
from ranksearch.report.data import page_data
from ranksearch.report.figures import write_figures
from ranksearch.report.latex import escaped, front_table
from ranksearch.report.page import check_path, encoded, report_page
from ranksearch.report.shares import rank_shares
from ranksearch.sites import Site


@pytest.fixture(scope="module")
def made() -> Any:
    return facts(records(20))


def test_choices_are_the_layers_of_the_frame(made: Any) -> None:
    data = page_data(made)
    ids, sites = data["networks"]["id"], data["sites"]
    assert sites == list(SITES)
    spelled = {
        (id, site, data["options"][s]["type"][number - 1], data["options"][s]["words"][number - 1])
        for s, site in enumerate(sites) for n, id in enumerate(ids) if (number := data["choices"][s][n])
    }  # fmt: skip
    layers = made.layers[(made.layers["id"].isin(ids) & (made.layers["decomposition"] != "dense")).to_numpy()]
    assert spelled == set(layers[["id", "site", "decomposition", "description"]].astype("object").itertuples(index=False, name=None))


def test_values_are_those_of_the_frame_to_the_last_bit(made: Any) -> None:
    data = json.loads(encoded(page_data(made)))
    for name in ("accuracy", "loss", "macs", "params"):
        assert data["networks"]["values"][name] == made.networks[name].tolist()
    assert [data["families"][code] for code in data["networks"]["family"]][:3] == [
        origin.rpartition(":")[0] or origin for origin in made.networks["origin"][:3]
    ]


def test_what_is_unknown_is_null(made: Any) -> None:
    networks = made.networks.copy()
    networks.loc[0, "accuracy"] = float("nan")
    data = json.loads(encoded(page_data(replace(made, networks=networks))))
    assert data["networks"]["values"]["accuracy"][0] is None
    assert next(row for row in data["proxies"]["rows"] if row["proxy"] == "blind")["kendall"] is None


def test_proxies_come_best_first_with_the_networks_that_they_scored(made: Any) -> None:
    proxies = page_data(made)["proxies"]
    assert [row["proxy"] for row in proxies["rows"]] == ["energy", "blind"]
    assert proxies["left_out"] == [{"proxies": ["fisher", "taylor"], "reason": "no <i>calibration</i>"}]
    scores = proxies["scores"]["energy"]
    accuracy = made.networks["accuracy"]
    assert scores["score"] == pytest.approx([1 - accuracy[row] for row in scores["network"]], rel=1e-5)


def test_failures_are_counted_by_kind_and_reason(made: Any) -> None:
    (failure,) = page_data(made)["failures"]
    assert (failure["count"], failure["kind"], failure["finders"], failure["retry"]) == (2, "code", ["nsga2"], 2)
    assert failure["error"] == "ValueError: <b>no</b> & none\nTraceback"


def test_a_page_holds_its_data_as_nothing_that_html_could_take_for_its_own() -> None:
    data = page_data(facts(records(5, HARM), study="".join(HARM), sites=HARM))
    page = report_page(data)
    assert page.count("</script>") == 3 and "harmed" not in re.sub(r"<title>.*?</title>", "", page, flags=re.DOTALL)
    packed = re.search(r'id="data">([^<]*)<', page)
    assert packed is not None and json.loads(gzip.decompress(base64.b64decode(packed[1]))) == json.loads(encoded(data))


def test_shares_of_ranks() -> None:
    site = Site("conv", "conv2d", c_out=8, c_in=6, kernel=(3, 3))
    types = {d.name: d for d in DECOMPOSITIONS}
    tucker, svd = types["tucker2"], types["svd"]
    full = [int(tucker.ranks(site)[:, i].max()) for i in range(2)]
    options = [("conv", "tucker2", "3x4"), ("conv", "svd", "2"), ("conv", "gone", "2"), ("gone", "svd", "2")]
    found = rank_shares(options, {"conv": site}, types)
    assert list(found) == options[:2]
    assert found[options[0]] == pytest.approx((3 / full[0] * 4 / full[1]) ** 0.5)
    assert found[options[1]] == pytest.approx(2 / svd.ranks(site).max())


def test_latex(made: Any) -> None:
    text = front_table(replace(made, study=r"50% of_a & {b} \x"))
    assert r"50\% of\_a \& \{b\} \textbackslash{}x" in text
    front = made.networks[made.networks["on_front"] & ~made.networks["is_dense"]]
    assert re.findall(r"\\texttt\{(\w+)\}", text) == front["id"].tolist()
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.count("&") - line.count(r"\&") for line in rows} == {text.count("r", text.index("{tabular}"), text.index("toprule")) - 1}
    assert escaped("a\nb") == "a b"


def test_figures(made: Any, tmp_path: Path) -> None:
    written = write_figures(replace(made, study="$x_ ${", sites=("a$b$", *SITES[1:])), tmp_path / "deep")
    names = [f"{name}{suffix}" for name in ("front", "layers", "types", "history", "proxies") for suffix in (".svg", ".png")]
    assert [path.name for path in written] == names and all(path.stat().st_size > 4000 for path in written)
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgument, match="is a file"):
        write_figures(made, tmp_path / "file")


def test_other_endings_are_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"\.html"):
        check_path("report.pdf")


def test_history_is_that_of_the_frame(made: Any) -> None:
    data = page_data(made)
    history, frame = data["history"], made.history
    assert [data["families"][code] for code in history["family"]] == frame["finder"].tolist()
    assert history["hypervolume"] == pytest.approx(frame["hypervolume"].tolist(), rel=1e-5)
    networks = [data["networks"]["id"][at] for at in history["network"] if at is not None]
    assert networks == frame.loc[frame["status"] == "done", "id"].tolist()
    assert sum(history["failed"]) == 2 == data["counts"]["failed"] and data["counts"]["evaluations"] == len(frame)
