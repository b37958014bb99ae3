"""The model of the loss against losses of which the truth is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from surrogate_cases import Truth, energies, space, truth

from ranksearch.allocators import Additive, Problem
from ranksearch.errors import InvalidArgument
from ranksearch.space import SearchSpace
from ranksearch.space.table import Table
from ranksearch.surrogate import LossModel, Observations, curves, fit
from ranksearch.surrogate.model import LINK, _jacobian


def measured(of: SearchSpace, made: Truth, count: int, *, noise: float, seed: int) -> Observations:
    """Losses of random configurations with multiplicative noise."""
    indices = of.sample(count, seed)
    errors = np.exp(noise * np.random.default_rng(seed + 1).standard_normal(count))
    return Observations(indices, made.rises(indices) * errors)


def relative(model: LossModel, made: Truth, indices: np.ndarray) -> float:
    """Root mean square of the logarithm of expected over true rises."""
    return float(np.sqrt(np.square(np.log(model.rises(indices) / made.rises(indices))).mean()))


def test_derivatives_are_those_of_differences() -> None:
    of = space(5, 6)
    made = truth(of, seed=0, channels=2)
    indices, channels = of.sample(12, 1), np.arange(12) % 2
    found = _jacobian(made.curves.at(indices), made.model.mean, channels, made.model.floors)
    step = 1e-6
    for number in range(len(made.model.mean)):
        ahead, behind = (made.model.mean + sign * step * (np.arange(len(made.model.mean)) == number) for sign in (1, -1))
        values = [_jacobian(made.curves.at(indices), p, channels, made.model.floors).value for p in (ahead, behind)]
        np.testing.assert_allclose(found.jacobian[:, number], (values[0] - values[1]) / (2 * step), rtol=1e-5, atol=1e-7)


def test_an_untouched_model_is_the_table_it_was_made_of() -> None:
    of = space(6, 7)
    known = curves(of, energies(of))
    parameters = np.zeros(len(known.spread) + 2 * known.n_sites + LINK)
    parameters[-1] = 50.0  # no ceiling
    model = LossModel(known, parameters, np.eye(len(parameters)), np.ones(1), np.ones(1))
    indices = of.sample(20, 0)
    np.testing.assert_allclose(model.table().score(indices), energies(of).score(indices), rtol=1e-9)
    np.testing.assert_allclose(model.rises(indices), energies(of).score(indices), rtol=1e-9)
    assert model.rises(of.dense[None])[0] == pytest.approx(0, abs=1e-200)
    assert [float(v[-1]) for v in model.table().values] == [0.0] * 6


def test_curves_of_many_configurations_are_those_of_every_site_by_itself() -> None:
    """Also of sites with different numbers of options."""
    of = space(3, 4)
    of = SearchSpace((*of.ladders, *space(2, 7).ladders), of.baseline, metric="fisher")
    known, random = curves(of, energies(of)), np.random.default_rng(0)
    shared, sites = len(known.spread), known.n_sites
    parameters = random.standard_normal(shared + 2 * sites + LINK)
    b, scale, steepness = np.split(parameters[: shared + 2 * sites], [shared, shared + sites])
    expected = [known.base[s] + known.common[s] @ b + scale[s] + steepness[s] * known.slope[s] for s in range(sites)]
    for found, logs in zip(known.added(parameters), expected, strict=True):
        np.testing.assert_allclose(found, np.exp(logs), rtol=1e-12)
    indices = of.sample(9, 0)
    chosen = known.at(indices)
    np.testing.assert_allclose(
        chosen.logs(parameters), [[expected[s][option] for s, option in enumerate(row)] for row in indices], rtol=1e-12
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_sites_cost_is_recovered(seed: int) -> None:
    """With many exact measurements the model is the truth; the table that it started from is not."""
    of = space(6, 8, seed=seed)
    made = truth(of, seed=seed)
    check = of.sample(200, 99)
    few, many = (fit(made.curves, measured(of, made, count, noise=1e-4, seed=3)) for count in (10, 300))
    assert relative(many, made, check) < 0.05 < 0.5 * relative(few, made, check) + 0.05
    assert relative(many, made, check) < 0.5 * relative(few, made, check)
    # single sites, of which none was measured alone; those that are lost among the others tell nothing of themselves
    alone = np.tile(of.dense, (6, 1))
    np.fill_diagonal(alone, 3)
    values, true = many.table().score(alone), made.model.table().score(alone)
    away = np.log(values / true)[true > 0.01 * true.max()]
    assert np.abs(away - away.mean()).max() < 0.35


def test_no_rise_is_above_the_ceiling_and_none_falls_where_a_sum_rises() -> None:
    of = space(5, 6)
    made = truth(of, seed=4, ceiling=2.0)
    model = fit(made.curves, measured(of, made, 200, noise=0.01, seed=0))
    sums = np.geomspace(1e-6, 1e12, 60)
    rises = model.linked(sums)
    assert (np.diff(rises) >= 0).all() and rises[-1] < 3 * 2.0
    low = rises < 0.1
    assert low.any() and (np.diff(rises[low]) > 0).all()


def test_uncertainty_is_calibrated() -> None:
    """Over many truths drawn from the prior, the true rise lies within the interval as often as that says."""
    inside, spreads = [], []
    for seed in range(24):
        of = space(5, 6, seed=seed)
        made = truth(of, seed=seed)
        model = fit(made.curves, measured(of, made, 12, noise=0.1, seed=seed))
        check = of.sample(40, 1000 + seed)
        away = model.transformed(model.rises(check)) - model.transformed(made.rises(check))
        inside.append(np.abs(away / model.deviation(check)) < 1.645)
        spreads.append(float((away / model.deviation(check)).std()))
    assert 0.78 < np.mean(inside) < 0.98
    assert 0.6 < np.median(spreads) < 1.4


def test_draws_have_the_covariance_of_the_posterior() -> None:
    of = space(4, 5)
    made = truth(of, seed=1)
    model = fit(made.curves, measured(of, made, 15, noise=0.1, seed=0))
    random = np.random.default_rng(0)
    drawn = np.array([model.draw(random) for _ in range(4000)])
    covariance = np.linalg.inv(model.root @ model.root.T)
    deviations = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(drawn.mean(axis=0), model.mean, atol=0.1 * deviations.max())
    correlation = np.cov(drawn.T) / np.outer(deviations, deviations)
    np.testing.assert_allclose(correlation, covariance / np.outer(deviations, deviations), atol=0.1)


def test_deviations_are_those_of_the_posterior_and_shrink_with_measurements() -> None:
    of = space(5, 6)
    made = truth(of, seed=2)
    check = of.sample(10, 7)
    few, many = (fit(made.curves, measured(of, made, count, noise=0.05, seed=0)) for count in (6, 120))
    assert (many.deviation(check) < few.deviation(check)).all()
    covariance = np.linalg.inv(many.root @ many.root.T)  # the same from differences of the expected rises
    steps = 1e-5 * np.eye(len(many.mean))
    ahead, behind = ([many.transformed(many.rises(check, parameters=many.mean + sign * step)) for step in steps] for sign in (1, -1))
    gradient = (np.array(ahead) - np.array(behind)) / 2e-5
    np.testing.assert_allclose(many.deviation(check), np.sqrt(np.einsum("pn,pq,qn->n", gradient, covariance, gradient)), rtol=1e-3)


def test_the_exact_optimum_of_the_model_is_that_of_brute_force() -> None:
    of = space(4, 5)
    made = truth(of, seed=5)
    model = fit(made.curves, measured(of, made, 30, noise=0.05, seed=0))
    everything = np.stack(np.meshgrid(*(np.arange(n) for n in of.shape), indexing="ij"), axis=-1).reshape(-1, 4)
    costs = of.cost_tables["params"].score(everything)
    for share in (0.5, 0.7, 0.9):
        for parameters in (None, model.draw(np.random.default_rng(0))):
            found = Additive().allocate(Problem(of, model.table(parameters), {"params": share})).indices
            within = everything[costs <= of.limit("params", share)]
            best = model.rises(within, parameters=parameters).min()
            assert model.rises(found[None], parameters=parameters)[0] == pytest.approx(best, rel=1e-9)


def test_cheap_evaluations_teach_a_costly_channel() -> None:
    """Forty of one channel and four of another: over several truths, the second is told far better than by these four alone."""
    of, away = space(6, 6), []
    indices, channels, check = of.sample(44, 0), np.array([0] * 40 + [1] * 4), of.sample(100, 5)
    for seed in range(8):
        made = truth(of, seed=seed, channels=2)
        rises = np.where(channels == 0, made.rises(indices, 0), made.rises(indices, 1))
        both = fit(made.curves, Observations(indices, rises, channels=channels))
        alone = fit(made.curves, Observations(indices[40:], rises[40:]))
        away.append([np.log(m.rises(check, channel=c) / made.rises(check, 1)).std() for m, c in ((both, 1), (alone, 0))])
    taught, untaught = np.sum(away, axis=0)
    assert taught < 0.5 * untaught


def test_without_a_measurement_the_model_is_the_prior() -> None:
    of = space(4, 5)
    known = curves(of, energies(of))
    for nothing in (Observations(np.zeros((0, 4), dtype=np.int64), np.zeros(0)), Observations(of.dense[None], np.zeros(1))):
        model = fit(known, nothing)
        np.testing.assert_allclose(model.table().score(of.sample(9, 0)), energies(of).score(of.sample(9, 0)))
        assert not np.array_equal(model.draw(np.random.default_rng(0)), model.mean)


def test_rises_that_are_negative_or_none_are_taken() -> None:
    of = space(4, 5)
    made = truth(of, seed=0)
    indices = of.sample(30, 0)
    rises = made.rises(indices) - np.median(made.rises(indices))
    assert (rises < 0).any()
    model = fit(made.curves, Observations(indices, rises, floors=[float(np.median(np.abs(rises)))]))
    assert np.isfinite(model.rises(indices)).all()
    assert np.corrcoef(model.rises(indices), rises)[0, 1] > 0.3
    flat = fit(made.curves, Observations(indices, np.zeros(30)))
    assert np.isfinite(flat.rises(indices)).all() and np.isfinite(flat.draw(np.random.default_rng(0))).all()


def test_a_start_changes_nothing_but_the_time() -> None:
    of = space(5, 6)
    made = truth(of, seed=6)
    seen = measured(of, made, 40, noise=0.05, seed=0)
    cold = fit(made.curves, seen)
    warm = fit(made.curves, seen, start=fit(made.curves, measured(of, made, 20, noise=0.05, seed=0)))
    check = of.sample(50, 4)
    np.testing.assert_allclose(np.log(warm.rises(check)), np.log(cold.rises(check)), atol=0.05)


def test_bad_input_is_refused() -> None:
    of = space(4, 5)
    known = curves(of, energies(of))
    with pytest.raises(InvalidArgument, match="do not fit curves of 4 sites"):
        fit(known, Observations(np.zeros((2, 3), dtype=np.int64), np.zeros(2)))
    with pytest.raises(InvalidArgument, match="one row per rise"):
        Observations(of.sample(3, 0), np.zeros(2))
    with pytest.raises(InvalidArgument, match="NaN or infinite"):
        Observations(of.sample(2, 0), np.array([1.0, np.nan]))
    with pytest.raises(InvalidArgument, match="summed table"):
        curves(of, dataclasses.replace(energies(of), reduction="max"))
    with pytest.raises(InvalidArgument, match="some are positive"):
        curves(of, Table(tuple(np.zeros(n) for n in of.shape), "sum"))
