"""Latency tables as CSV, for devices that are not at hand."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from latency_cases import Machine, dense_network, latency, space

from ranksearch.costs import COSTS, LayerOptions, network_cost
from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.errors import InvalidArgument
from ranksearch.latency import Latency, LatencyTable, read_table, write_table
from ranksearch.space import build_space
from ranksearch.space.spectra import Spectra

TYPES = {d.name: d for d in DECOMPOSITIONS}
PHONE = """# a phone
site,type,rank,milliseconds
,dense,,10.5
0,dense,,1
2,dense,,4
4,dense,,4
7,dense,,1
2,svd,1,1
2,svd,5,3

4,tucker2,2x3,1.5
4,tucker2,8x9,3.5
"""


def written(path: Path, text: str = PHONE) -> Path:
    path.write_text(text)
    return path


def test_a_table_comes_back_from_its_file(tmp_path: Path) -> None:
    dense = dense_network()
    cost = latency(Machine(inside=1.4)).of(dense)
    write_table(cost.table, tmp_path / "table.csv")
    again = Latency(table=tmp_path / "table.csv").of(dense)
    for site in dense.sites:
        for kind in space().decompositions:
            if kind.undefined(site) is None:
                ranks = kind.options(site)
                layer = LayerOptions(dense, site, kind, ranks, *kind.costs(site, ranks))
                assert again.options(layer) == pytest.approx(cost.options(layer), rel=1e-6, abs=1)
                assert again.ratios(layer, "high") == pytest.approx(cost.ratios(layer, "high"))
    assert again.rest(dense) == pytest.approx(cost.rest(dense), abs=20)
    costs = [network_cost((one,), dense)["latency"] for one in (cost, again)]
    assert costs[0] == pytest.approx(costs[1], rel=1e-6)
    assert again.table.device == cost.table.words() and again.table.imported
    with open(tmp_path / "table.csv") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    assert {row["site"] for row in rows} == {"", "0", "2", "4", "7"}  # identical layers each


def test_a_table_of_another_device(tmp_path: Path) -> None:
    dense = dense_network()
    cost = Latency(table=written(tmp_path / "phone.csv")).of(dense)
    assert cost.table.device == "a phone" and cost.rest(dense) == 500_000  # what the network takes beyond its layers
    assert network_cost((cost,), dense)["latency"] == 10_500_000
    site, kind = dense.sites["2"], TYPES["svd"]
    ranks = np.array([[1], [3], [5], [6]])
    layer = LayerOptions(dense, site, kind, ranks, *kind.costs(site, ranks))
    assert cost.offered(layer).tolist() == [True, True, True, False]  # how slow 6 is nobody has measured
    within = LayerOptions(dense, site, kind, ranks[:3], layer.params[:3], layer.macs[:3])
    assert cost.options(within).tolist() == [10**6, 2 * 10**6, 3 * 10**6]
    with pytest.raises(InvalidArgument, match=r"a phone has no svd of rank \(6,\) at '2'"):
        cost.options(layer)


def test_ladders_hold_what_a_table_knows(tmp_path: Path) -> None:
    dense = dense_network()
    spectra = Spectra(dense.model, dense.sites, space().decompositions)
    found = build_space(spectra, costs=(*COSTS, Latency(table=written(tmp_path / "phone.csv"))), example=dense.example)
    assert [ladder.present for ladder in found.ladders] == [{"dense"}, {"svd", "dense"}, {"tucker2", "dense"}, {"dense"}]
    assert {rank for _, rank in (found.ladders[1].choice(i) for i in range(len(found.ladders[1]) - 1))} <= {(r,) for r in range(1, 6)}


def test_without_the_whole_network_latency_is_that_of_the_layers(tmp_path: Path) -> None:
    dense = dense_network()
    cost = Latency(table=written(tmp_path / "phone.csv", PHONE.replace(",dense,,10.5\n", ""))).of(dense)
    assert cost.rest(dense) == 0 and network_cost((cost,), dense)["latency"] == 10_000_000


def test_a_file_without_a_device_is_called_by_its_name(tmp_path: Path) -> None:
    assert read_table(written(tmp_path / "board.csv", PHONE.partition("\n")[2])).device == "board"


def test_ends_of_intervals_may_be_given(tmp_path: Path) -> None:
    text = "site,type,rank,milliseconds,low,high\n0,dense,,2,,\n0,svd,1,1,0.8,1.5\n0,svd,2,1.2,,\n"
    points = read_table(written(tmp_path / "t.csv", text)).layer("0").types["svd"]
    assert (points[1,].low, points[1,].value, points[1,].high) == (0.4, 0.5, 0.75)
    assert points[2,].low == points[2,].value == points[2,].high == 0.6


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("milliseconds", "seconds", "has no column milliseconds"),
        ("2,svd,1,1\n", "2,svd,1,-1\n", "line 8: milliseconds='-1' is no positive number"),
        ("2,svd,1,1\n", "2,svd,1,soon\n", "line 8: milliseconds='soon'"),
        ("2,svd,1,1\n", "2,svd,x,1\n", "line 8: rank='x' is no rank"),
        ("2,svd,1,1\n", "2,svd,,1\n", "line 8: type='svd', rank=''"),
        ("2,svd,1,1\n", ",svd,1,1\n", "line 8: type='svd', rank='1'"),
        ("2,dense,,4\n", "2,dense,3,4\n", "line 5: type='dense', rank='3'"),
        ("2,svd,5,3\n", "2,svd,1,3\n", "line 9: svd 1 of '2' is there twice"),
        ("4,tucker2,2x3,1.5\n", "4,tucker2,0x3,1.5\n", "line 11: rank='0x3'"),
        ("2,dense,,4\n", "", "no row of type dense of site '2'"),
        (PHONE, "site,type,rank,milliseconds\n", "no row of type dense:"),
    ],
)
def test_what_cannot_be_read_is_named_by_its_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in PHONE
    with pytest.raises(InvalidArgument, match=message):
        read_table(written(tmp_path / "phone.csv", PHONE.replace(old, new)))


def test_files_and_sites_that_are_missing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="cannot be read"):
        Latency(table=tmp_path / "none.csv").of(dense_network())
    lacking = PHONE.replace("7,dense,,1\n", "")
    with pytest.raises(InvalidArgument, match="table of a phone has no rows of site '7'"):
        Latency(table=written(tmp_path / "phone.csv", lacking)).of(dense_network())


def test_a_study_counts_by_the_table_that_it_began_with(tmp_path: Path) -> None:
    path, dense = written(tmp_path / "phone.csv"), dense_network()
    record = Latency(table=path).of(dense).record()
    again = Latency(table=path).of(dense, record)
    assert again.table.id == record["id"] and again.table == read_table(path)
    assert Latency(**record["settings"]).of(dense, record).table == again.table  # without the file
    written(path, PHONE.replace("2,svd,5,3", "2,svd,5,3.1"))
    with pytest.raises(InvalidArgument, match=r"table: a phone.* is not what the study counts by"):
        Latency(table=path).of(dense, record)
    path.unlink()
    assert Latency(table=path).of(dense, record).table == again.table
    assert LatencyTable.from_json(again.table.as_json()) == again.table
