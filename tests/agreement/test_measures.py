"""Agreement of proxies with measurements, on cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import kendalltau
from torch import nn, randn

from ranksearch.agreement.measures import agreement, proxy_agreement
from ranksearch.decompositions import SVD
from ranksearch.errors import InvalidArgument
from ranksearch.proxies import free_proxies
from ranksearch.sites import find_sites
from ranksearch.space import build_space
from ranksearch.space.spectra import Spectra


def test_a_perfect_proxy_and_its_opposite():
    values = np.arange(20.0)
    good, bad = agreement(values**3, values, k=4), agreement(-values, values, k=4)
    assert (good.kendall, good.kendall_matched, good.spearman, good.recall, good.regret) == pytest.approx((1, 1, 1, 1, 0))
    assert (bad.kendall, bad.kendall_matched, bad.spearman, bad.recall, bad.regret) == pytest.approx((-1, -1, -1, 0, 19))
    assert good.regret_chance == pytest.approx(9.5) and good.pairs_matched == 190


def test_counting_parameters_is_found_out_at_matched_cost():
    """Scores that only know the cost rank well overall and not at all within one cost."""
    rng = np.random.default_rng(0)
    costs = np.repeat([1.0, 2.0, 3.0, 4.0], 15)
    measured = -costs + 0.2 * rng.normal(size=60)
    found = agreement(-costs + 1e-6 * rng.normal(size=60), measured, costs)
    assert found.kendall > 0.7 and abs(found.kendall_matched) < 0.25
    assert found.pairs_matched == 4 * 15 * 14 // 2
    knowing = agreement(measured + 0.02 * rng.normal(size=60), measured, costs)
    assert knowing.kendall_matched > 0.8 and knowing.regret < 0.1 * knowing.regret_chance


def test_equals_scipy_and_leaves_out_what_was_not_measured():
    rng = np.random.default_rng(1)
    scores, measured = rng.normal(size=30), rng.normal(size=30)
    holes = measured.copy()
    holes[::3] = np.nan
    found = agreement(scores, holes)
    kept = np.isfinite(holes)
    assert found.count == 20 and found.kendall == pytest.approx(kendalltau(scores[kept], measured[kept]).statistic)


def test_too_little_to_say_is_nan_and_misuse_is_refused():
    assert math.isnan(agreement([1.0], [2.0]).kendall) and math.isnan(agreement([1, 1, 1], [1, 2, 3]).spearman)
    for arguments, options in ((([1, 2], [1]), {}), (([1, 2], [1, 2], [1]), {}), (([1, 2], [1, 2]), {"k": 0})):
        with pytest.raises(InvalidArgument):
            agreement(*arguments, **options)


def test_one_row_per_proxy_fidelity_and_cost():
    model = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 8))
    space = build_space(Spectra(model, find_sites(model, randn(1, 12)), [SVD()]))
    indices = space.sample(40, seed=0)
    truth = space.table("frobenius").score(indices)
    proxies = free_proxies()
    rows = proxy_agreement(space, proxies, indices, {"none": truth, "tuned": np.full(40, np.nan)})
    assert len(rows) == len(proxies) * 2 * 2
    first = next(r for r in rows if r["proxy"] == "frobenius" and r["fidelity"] == "none" and r["cost"] == "params")
    assert first["kendall"] > 0.8 and first["count"] == 40
    assert all(r["count"] == 0 for r in rows if r["fidelity"] == "tuned")
