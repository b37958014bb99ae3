"""Which statistics of batch norms the dense network has that smaller ones are made to answer like."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from compress_cases import divergence, evened, network, task
from torch import Tensor, nn

from ranksearch import Classification, compress
from ranksearch.compression.norms import COMPARED, check_norms, reference, surely_lower
from ranksearch.errors import InvalidArgument
from ranksearch.networks.batch_norm import recalibrate
from ranksearch.networks.export import read_manifest
from ranksearch.search.events import Announced
from ranksearch.space import svd_only
from ranksearch.tasks import Agreement, Task

SEEN = 4


def images(batches: int) -> Tensor:
    return torch.randn(batches * 16, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def labelled_by(model: nn.Module, batches: int = SEEN + COMPARED) -> Classification:
    """A task whose labels are what a network says, so that it loses least with just these statistics."""
    x = images(batches)
    with torch.no_grad():
        y = copy.deepcopy(model).eval()(x).argmax(1)
    return Classification(train=(x, y), validation=(x[:8], y[:8]), batch_size=16, learning_rate=0.1)


def suited(batches: int = SEEN + COMPARED) -> nn.Module:
    """A network with just the statistics of the batches that they are re-estimated on, and outputs that depend on them."""
    model = network()
    recalibrate(model, labelled_by(model, batches).calibration(SEEN))
    return evened(model, images(batches), 8.0)


def spoiled(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    norm = other.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.add_(torch.tensor([2.0, -2.0] * 4) * norm.running_var.sqrt())
    return other


def taken(model: nn.Module, data: Task, norms: str = "auto", tell: list[str] | None = None) -> tuple[nn.Module, str]:
    told = [] if tell is None else tell
    return reference(model, data, check_norms(norms), seen=SEEN, recalibration=16, tell=lambda event: told.append(event.text))


def test_statistics_that_suit_the_data_stay_and_others_are_re_estimated() -> None:
    model = suited()
    data, bad = labelled_by(model), spoiled(model)
    before = copy.deepcopy(bad.state_dict())
    assert taken(model, data) == (model, "own")
    told: list[str] = []
    found, norms = taken(bad, data, tell=told)
    assert norms == "re-estimated" and found is not bad and "re-estimating" in told[-1]
    assert all(torch.equal(value, before[name]) for name, value in bad.state_dict().items())
    by_hand = copy.deepcopy(bad)
    recalibrate(by_hand, data.calibration(SEEN))
    assert all(torch.allclose(value, by_hand.state_dict()[name]) for name, value in found.state_dict().items())


def test_tensors_with_a_graph_behind_them_are_no_obstacle() -> None:
    """Such as the weights that the older weight norm leaves in a module; torch does not copy them."""
    model = suited()
    data, bad = labelled_by(model), spoiled(model)
    bad.register_buffer("made", bad.get_parameter("8.weight") * 2)
    assert taken(bad, data)[1] == "re-estimated"


def test_labels_decide_and_not_the_statistics() -> None:
    bad = spoiled(suited())
    assert taken(bad, labelled_by(bad)) == (bad, "own")


def test_a_choice_is_kept() -> None:
    model = suited()
    data, bad = labelled_by(model), spoiled(model)
    assert taken(bad, data, "own") == (bad, "own")
    assert taken(model, data, "re-estimated")[1] == "re-estimated"


def test_a_batch_or_none_to_compare_on_tells_nothing() -> None:
    model = suited()
    for more in (0, 1):
        data = labelled_by(model, SEEN + more)
        assert taken(spoiled(model), data)[1] == "own"


def test_without_labels_the_networks_own_answers_are_the_best() -> None:
    model = suited()
    bad = spoiled(model)
    batches = [x for x, _ in labelled_by(model).labelled(SEEN + COMPARED)]
    assert taken(bad, Agreement(batches, batches, bad)) == (bad, "own")


def test_without_batch_norm_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), task()
    monkeypatch.setattr(data, "labelled", lambda batches: pytest.fail("data for norms that are not there"))
    for norms in ("auto", "re-estimated"):
        assert taken(model, data, norms) == (model, "own")


def test_lower_beyond_doubt() -> None:
    assert surely_lower([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])
    assert not surely_lower([2.0, 3.0, 4.0], [1.0, 2.0, 3.0])
    assert not surely_lower([1.0, 2.0], [1.0, 2.0])
    gain = 4.303 * 1.0 / 3**0.5  # the 97.5 % quantile of Student's t with two degrees of freedom, from a table
    for factor, surely in ((0.99, False), (1.01, True)):
        assert surely_lower([0.0, 0.0, 0.0], [factor * gain + d for d in (-1.0, 0.0, 1.0)]) is surely
    assert not surely_lower([1.0, 1.0, 1.0], [2.0, 2.0, math.inf])
    assert not surely_lower([math.nan, 1.0, 1.0], [2.0, 2.0, 2.0])


def test_compress_hands_out_what_imitates_the_better_one(tmp_path) -> None:
    model = suited(40)
    data, bad = labelled_by(model, 40), spoiled(model)
    space = svd_only().replace(calibration=SEEN)
    told: list[Announced] = []

    def small(norms: str) -> tuple[nn.Module, str]:
        found = compress(bad, data, macs=0.9, rules=["frobenius"], space=space, norms=check_norms(norms), on_event=told.append)
        return found.model, read_manifest(found.save(tmp_path / norms, example=data.example()))["dense_norms"]

    def distance(net: nn.Module) -> float:
        x: list[Tensor] = [x for x, _ in data.labelled(40)]
        return divergence(model, net, x[-8:])

    chosen, norms = small("auto")
    assert norms == "re-estimated" and any("re-estimating batch norms" in event.text for event in told)
    kept, norms = small("own")
    assert norms == "own"
    assert distance(chosen) < 0.5 * distance(kept)


@pytest.mark.parametrize("norms", ["batch", None, 3, ["own"]])
def test_other_choices_are_refused(norms: object) -> None:
    with pytest.raises(InvalidArgument, match=r"norms=.* is none of auto, own, re-estimated"):
        compress(network(), task(), macs=0.5, norms=norms)  # type: ignore[arg-type]
