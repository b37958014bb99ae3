"""The tables that come with ranksearch: what is in them, and that it is true."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import ranksearch.rankbench
from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import Request
from ranksearch.rankbench import NAMES, RankBench, load
from ranksearch.rankbench.bench import DIRECTIONS
from ranksearch.rankbench.tables import COSTS, KINDS, MEASURED, Tables, read, write
from ranksearch.results.pareto import relative_hypervolume
from ranksearch.samplers import Random

ROWS = {"digits": 10000, "resnet20": 2000}
CURVES = 300  # configurations of digits
PROXIES = {"energy", "frobenius", "operator_norm", "activation", "fisher", "fwsvd", "single_site_loss", "calibrated"}


@cache
def bench(name: str) -> RankBench:
    return load(name)


def brute_force(values: np.ndarray) -> np.ndarray:
    """Rows that no other one beats; all minimised."""
    kept = np.ones(len(values), dtype=bool)
    for number, row in enumerate(values):
        kept[number] = not ((values <= row).all(axis=1) & (values < row).any(axis=1)).any()
    return kept


@pytest.mark.parametrize("name", NAMES)
class TestTables:
    def test_columns_are_the_documented_ones(self, name: str) -> None:
        one = bench(name)
        rows = one.configurations
        assert [*rows.columns[: 1 + len(one.sites)]] == ["drawn", *one.sites]
        assert {*COSTS, *MEASURED, *(f"score_{proxy}" for proxy in PROXIES)} == {*rows.columns[1 + len(one.sites) :]}
        assert (rows[one.sites].dtypes == np.uint8).all()
        assert (rows[[*MEASURED]].dtypes == np.float32).all()
        assert one.proxies.keys() == PROXIES
        assert [*one.curves.columns] == ["row", "seed", "epochs", "accuracy", "loss"]

    def test_there_are_as_many_configurations_as_promised_all_different_and_at_every_cost(self, name: str) -> None:
        one = bench(name)
        assert len(one.configurations) >= ROWS[name]
        assert len(np.unique(one.indices, axis=0)) == len(one.indices)
        fifths = np.minimum(one.configurations["macs"].to_numpy() / one.space.baseline.macs * 5, 4).astype(int)
        assert np.bincount(fifths, minlength=5).min() >= ROWS[name] / 20
        assert {"dense", "exact", "near"} <= {*one.configurations["drawn"].unique()}

    def test_what_was_measured_can_be_true(self, name: str) -> None:
        rows = bench(name).configurations
        assert np.isfinite(rows[[*MEASURED]].to_numpy()).all()
        assert rows["accuracy"].between(0, 1).all() and (rows["loss"] > 0).all() and (rows["last_feature"] >= 0).all()
        dense = rows[rows["drawn"] == "dense"].iloc[0]
        assert dense["accuracy"] > 0.85 and dense["last_feature"] == 0 and dense["score_energy"] == 0

    def test_costs_and_scores_are_those_of_the_space_and_the_options(self, name: str) -> None:
        one = bench(name)
        for cost in COSTS:
            assert (one.timed.cost_tables[cost].score(one.indices) == one.configurations[cost]).all()
        assert one.space.fingerprint == one.details["fingerprint"]
        assert one.configurations["latency"].min() > 0
        for proxy, scores in one.scores(one.indices).items():
            np.testing.assert_allclose(scores, one.configurations[f"score_{proxy}"], rtol=1e-6, atol=1e-30)

    @pytest.mark.parametrize("objectives", [("accuracy", "macs", "params"), ("loss", "latency"), ("macs",)])
    def test_fronts_are_those_of_brute_force(self, name: str, objectives: tuple[str, ...]) -> None:
        one = bench(name)
        some = one.configurations.iloc[:: max(1, len(one.configurations) // 1500)]
        part = RankBench(one.name, one.space, one.timed, some, one.options, one.curves, one.details)
        signs = [-1 if DIRECTIONS[name] == "max" else 1 for name in objectives]
        expected = brute_force(some[[*objectives]].to_numpy(dtype=np.float64) * signs)
        assert part.front(objectives).index.tolist() == some.index[expected].tolist()

    def test_the_front_cannot_be_far_from_what_there_is(self, name: str) -> None:
        """The whole table dominates more than what was drawn without measuring, and the front as much as the table."""
        one, names = bench(name), ["loss", "macs", "params"]
        dense = one.configurations[one.configurations["drawn"] == "dense"][names].to_numpy()[0]
        directions, costs = [DIRECTIONS[n] for n in names], [False, True, True]
        whole, front = (relative_hypervolume(rows[names], dense, directions, costs) for rows in (one.configurations, one.front(names)))
        assert front == pytest.approx(whole) and whole > 0.5


def test_files_are_small_and_no_others_are_there() -> None:
    folder = Path(ranksearch.rankbench.__file__).parent / "data"
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert set(files) == {"digits.safetensors", *(f"{name}_{kind}.parquet" for name in NAMES for kind in KINDS)}
    assert sum(files.values()) < 3e6


def test_curves_are_of_the_promised_configurations() -> None:
    one = bench("digits")
    assert one.curves.groupby(["row", "seed"])["epochs"].apply(list).map(tuple).unique().tolist() == [(0, 1, 2, 4)]
    assert one.curves["row"].nunique() >= CURVES and (one.curves.groupby("row")["seed"].nunique() == 3).all()
    start = one.curves[one.curves["epochs"] == 0]
    table = one.configurations.loc[start["row"], "loss"].to_numpy()
    np.testing.assert_allclose(start["loss"], table, rtol=1e-3)  # built networks there, composed ones here


@pytest.mark.parametrize(("name", "argument"), [("mnist", "name='mnist' is none of digits, resnet20"), ("../digits", "is none of")])
def test_other_names_are_refused(name: str, argument: str) -> None:
    with pytest.raises(InvalidArgument, match=argument):
        load(name)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="cannot be read"):
        load("digits", tables=tmp_path)
    for kind in KINDS:
        pd.DataFrame({"a": [1]}).to_parquet(tmp_path / f"digits_{kind}.parquet")
    with pytest.raises(InvalidArgument, match="no file of a tabulated study"):
        load("digits", tables=tmp_path)


def test_tables_come_back_as_they_were_written(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": np.array([1, 2], dtype=np.uint8), "b": pd.Categorical(["x", "y"])})
    write(Tables(frame, frame, frame.iloc[:0], {"licence": "none"}), tmp_path, "digits")
    found = read(tmp_path, "digits")
    pd.testing.assert_frame_equal(found.configurations, frame)
    assert len(found.curves) == 0 and found.details == {"licence": "none"}


def test_the_table_answers_with_costs_and_what_samplers_minimise() -> None:
    one = bench("digits")
    found = one.evaluate(one.configuration(7))
    row = one.configurations.iloc[7]
    assert found == {name: pytest.approx(float(row[name])) for name in (*COSTS, *MEASURED)}
    assert found == one.evaluate(one.indices[7])
    values = one.values(one.indices[7], ("accuracy", "macs", "latency"))
    shares = [row["macs"] / one.timed.baseline["macs"], row["latency"] / one.timed.baseline["latency"]]
    assert values == pytest.approx([-row["accuracy"], *shares])


def test_a_problem_is_what_samplers_take() -> None:
    one = bench("resnet20")
    problem = one.problem(("accuracy", "latency"))
    assert problem.costs(one.indices[:2])[:, 1] == pytest.approx([one.values(i, ["latency"])[0] for i in one.indices[:2]])
    assert "latency" not in one.problem(("accuracy", "macs")).space.costs
    sampler = Random().start(problem.space.shape, 2, seed=0, admissible=lambda indices: True, problem=problem)
    with pytest.raises(InvalidArgument, match=r"not in the table of 'resnet20'.*load\('resnet20', data="):
        one.evaluate(sampler.propose())


@pytest.mark.parametrize("objectives", [("f1",), ()])
def test_objectives_that_are_not_there_are_refused(objectives: tuple[str, ...]) -> None:
    with pytest.raises(InvalidArgument, match="the table has params, macs"):
        bench("digits").front(objectives)


def test_studies_without_their_data_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="give the folder of CIFAR-10"):
        bench("resnet20").study()


def recomputed(one: RankBench, rows: list[int]) -> None:
    """Rows are what building, re-estimating and measuring give, as far as processors agree."""
    study = one.study()
    for row in rows:
        outcome = study.evaluator(Request(one.configuration(row), study.fidelity, 0))
        assert outcome.metrics["loss"] == pytest.approx(float(one.configurations["loss"].iat[row]), rel=1e-3)
        assert outcome.metrics["accuracy"] == pytest.approx(float(one.configurations["accuracy"].iat[row]), abs=0.01)


def quick(one: RankBench, count: int) -> list[int]:
    """Rows whose networks are built soonest, and yet lose something: those with the most sites dense or of types that are solved for."""
    at_once = one.options.groupby("site", sort=False)["type"].apply(lambda types: types.isin(["dense", "svd", "spatial"]).to_numpy())
    slow = np.sum([~at_once[site][one.indices[:, place]] for place, site in enumerate(one.sites)], axis=0)
    lossy = one.configurations["loss"].to_numpy() > 1.5 * one.configurations["loss"].min()
    return np.lexsort((-one.configurations["loss"].to_numpy() * lossy, slow))[:count].tolist()


@pytest.mark.skipif("RANKSEARCH_TESTS_SHIFT_SEEDS" in os.environ, reason="the table was made of the images that its seeds chose")
def test_rows_of_digits_are_what_built_networks_measure() -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    one = bench("digits")
    recomputed(one, quick(one, 2))


def test_what_the_table_lacks_is_measured_as_built_networks_are() -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    one = bench("digits")
    other = one.indices[quick(one, 1)[0]].copy()
    other[-1] = max(0, other[-1] - 1)  # the classifier, at another rank
    found, slow = one.evaluate(other), one.study()
    outcome = slow.evaluator(Request(one.space.configuration(other), slow.fidelity, 0))
    assert other.astype(np.uint8).tobytes() in one.met  # not of the table
    assert found["loss"] == pytest.approx(outcome.metrics["loss"], rel=1e-5)


def test_rows_of_resnet20_are_what_built_networks_measure() -> None:
    shared = os.environ.get("RANKSEARCH_SHARED")
    if not shared:
        pytest.skip("RANKSEARCH_SHARED names no folder with CIFAR-10 and the weights of the ResNet-20")
    one = load("resnet20", data=Path(shared) / "data" / "cifar10", weights=Path(shared) / "models" / "resnet20_cifar10.safetensors")
    recomputed(one, quick(one, 1))
