"""Measurements while ranks are chosen: of networks as their factors come and lightly reconstructed, each once, beside those by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ranksearch import Classification
from ranksearch.compression import judge
from ranksearch.compression.measured import as_it_is, fitted, light, prior
from ranksearch.decompositions import SVD
from ranksearch.networks.reconstruction import reconstruct
from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites
from ranksearch.space import Configuration, SearchSpace, build_space
from ranksearch.space.spectra import Spectra


@pytest.fixture(scope="module")
def task() -> Classification:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(96, 1, 6, 6, generator=generator)
    y = torch.randint(3, (len(x),), generator=generator)
    return Classification(train=(x, y), validation=(x[:8], y[:8]), batch_size=16, learning_rate=0.1)


@pytest.fixture(scope="module")
def spectra(task: Classification) -> Spectra:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).eval()
    return Spectra(model, find_sites(model, task.example()), [SVD()])


@pytest.fixture(scope="module")
def space(spectra: Spectra) -> SearchSpace:
    return build_space(spectra)


SMALL = Configuration({"0": ("svd", (2,)), "2": ("svd", (2,))})


@pytest.mark.parametrize(("seen", "judged"), [(6, slice(1, 4)), (2, slice(1, 2)), (1, slice(0, 1))])
def test_light_reconstruction_sees_the_first_batch_and_is_measured_on_the_next(
    spectra: Spectra, task: Classification, seen: int, judged: slice
) -> None:
    """Where metrics see fewer batches it is measured on those; where they see one, on that."""
    batches = list(task.labelled(6))
    measure = fitted(spectra, light(spectra.model, spectra.sites, task, 1, 3, seen=seen), {}, moments=None)
    network = build(spectra, SMALL).eval()
    reconstruct(network, spectra, SMALL, [batches[0][0]], held_out=0.0)
    expected = judge(spectra.model, task, batches[judged])(network)
    assert measure(SMALL) == pytest.approx(expected, rel=1e-4)
    assert measure.passes == judged.stop - judged.start
    assert as_it_is(spectra, judge(spectra.model, task, batches[:3]), {})(SMALL) != pytest.approx(expected, rel=1e-3)
    assert measure(Configuration()) == pytest.approx(0, abs=1e-6)


def test_each_network_is_measured_and_counted_once(spectra: Spectra, space: SearchSpace, task: Classification) -> None:
    loss = judge(spectra.model, task, list(task.labelled(2)))
    measure = as_it_is(spectra, loss, known := {})
    expected = loss(build(spectra, SMALL).eval())
    assert [measure(SMALL), measure.on(space)(space.indices(SMALL))] == pytest.approx([expected] * 2, rel=1e-4)
    assert measure.passes == 2
    measure(Configuration())
    assert measure.passes == 4 and known.keys() == {SMALL.id, Configuration().id}
    again = as_it_is(spectra, loss, {SMALL.id: 0.125})
    assert again(SMALL) == 0.125 and again.passes == 0  # it was noted before


def test_the_prior_has_lems_beside_the_fisher_errors_where_it_says_anything(space: SearchSpace) -> None:
    known = prior(space, lambda configuration: float(len(configuration.choices)))
    without = prior(space, lambda configuration: 0.0)
    assert known.common[0].shape[1] == without.common[0].shape[1] + 1
    for one, other in zip(known.base, without.base, strict=True):
        np.testing.assert_array_equal(one, other)
