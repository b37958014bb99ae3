"""In the end the network that is handed out learns the dense network's answers as a whole, and is kept so where it measures better."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from compress_cases import divergence, network, task
from torch import Tensor, nn

from ranksearch import FromLoss, compress
from ranksearch.errors import InvalidArgument
from ranksearch.networks.batch_norm import recalibrate
from ranksearch.networks.export import read_manifest
from ranksearch.search.events import Announced
from ranksearch.space import svd_only

PORTFOLIO = importlib.import_module("ranksearch.compression.portfolio")
GIVEN: dict[str, Any] = {"macs": 0.5, "rules": ["fisher"], "space": svd_only()}


def test_it_is_kept_where_it_measures_better(tmp_path: Path) -> None:
    data = task(batch_size=128)
    before, found = compress(network(), data, distill=0, **GIVEN), compress(network(), data, distill=40, **GIVEN)
    chosen = found.chosen
    assert math.isnan(before.chosen.distilled) and before.chosen.distill == 0 and before.distilled == 0
    assert chosen.distilled == chosen.least < before.chosen.least and found.distilled == chosen.distill == 40
    assert found.reconstructed == before.reconstructed
    assert chosen.passes - before.chosen.passes == 2 + 10, "held-out batches, and those of the statistics"
    held_out = [x for x, _ in data.labelled(10)][-2:]
    assert divergence(network(), found.model, held_out) == pytest.approx(chosen.distilled, rel=1e-3)
    assert found.report()["distilled"].tolist() == [chosen.distilled]
    found.save(tmp_path / "small", example=data.example())
    manifest = read_manifest(tmp_path / "small")
    assert manifest["distillation"] == 40 and manifest["held_out"]["distilled"] == chosen.distilled


def test_factors_that_are_taught_alone_are_not_reconstructed() -> None:
    found = compress(network(), task(batch_size=128), reconstruction=0, distill=40, **GIVEN)
    assert found.chosen.distilled < found.chosen.loss and found.distilled == 40 and not found.reconstructed


def test_it_is_undone_where_it_measures_worse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    @torch.no_grad()
    def spoil(work: Any, *_: Any) -> bool:
        for parameter in work.network.parameters():
            parameter.mul_(-3)
        return True

    before = compress(network(), task(), distill=0, **GIVEN)
    monkeypatch.setattr("ranksearch.networks.distillation._Work.learn", spoil)
    found = compress(network(), task(), distill=5, **GIVEN)
    assert found.chosen.distilled > found.chosen.least == before.chosen.least and found.distilled == 0
    for name, value in found.model.state_dict().items():
        torch.testing.assert_close(value, before.model.state_dict()[name], rtol=1e-6, atol=1e-7)
    found.save(tmp_path / "small", example=task().example())
    assert read_manifest(tmp_path / "small")["distillation"] == 0


def test_where_nothing_is_learned_nothing_is_told_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PORTFOLIO, "distill", lambda *_, **__: 0.0)
    found = compress(network(), task(), **GIVEN)
    assert math.isnan(found.chosen.distilled) and found.chosen.distill == 0


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(3, [*range(20, 23), *range(16)]), (99, [*range(20, 24), *range(16)])],
)
def test_it_sees_all_training_data_but_what_networks_are_judged_on(
    steps: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """24 batches: 16 are seen, 4 judge, and the last 4 come first, since nothing is fitted to them."""
    seen: list[Tensor] = []

    def look(small: nn.Module, spectra: Any, configuration: Any, batches: Any, **options: Any) -> float:
        assert options["steps"] == steps
        seen.extend(batches())
        return 0.0

    monkeypatch.setattr(PORTFOLIO, "distill", look)
    compress(network(), task(batches=24), distill=steps, **GIVEN)
    every = [x for x, _ in task(batches=24).labelled(24)]
    assert len(seen) == len(expected) and all(torch.equal(seen[k], every[number]) for k, number in enumerate(expected))


def test_a_single_batch_is_all_there_is() -> None:
    found = compress(network(), [torch.randn(32, 1, 6, 6, generator=torch.Generator().manual_seed(0))], distill=10, **GIVEN)
    assert found.chosen.distill in (0, 10) and math.isfinite(found.chosen.least)


def test_a_task_that_knows_no_divergence_is_taught_by_the_distance_of_answers() -> None:
    batches = [(x, net(x).detach()) for net in [network()] for x in torch.randn(12, 16, 1, 6, 6)]
    loss = FromLoss(batches, batches[:2], nn.functional.mse_loss)
    before, found = (compress(network(), loss, distill=steps, **GIVEN) for steps in (0, 40))
    assert found.chosen.least <= before.chosen.least and found.chosen.distill == 40


def test_a_network_whose_training_has_no_room_is_not_taught(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Announced] = []
    monkeypatch.setattr("ranksearch.networks.distillation.device_memory", lambda device: 1.0)
    found = compress(network(), task(), on_event=told.append, **GIVEN)
    assert math.isnan(found.chosen.distilled) and found.chosen.distill == 0
    assert told[-1].text.startswith("not teaching it the dense network's answers: training it takes")


def test_a_network_that_torch_has_no_gradient_of_is_handed_out_all_the_same() -> None:
    class Odd(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:  # there is no backward
            return x.clone()

    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Odd.apply(x)  # type: ignore[no-any-return]

    told: list[Announced] = []
    model = nn.Sequential(*network(), Layer()).eval()
    given = {**GIVEN, "rules": ["frobenius"]}
    before, found = compress(model, task(), distill=0, **given), compress(model, task(), on_event=told.append, **given)
    assert told[-1].text.startswith("it stays as it was: ") and math.isnan(found.chosen.distilled)
    for name, value in found.model.state_dict().items():
        assert torch.equal(value, before.model.state_dict()[name])


def test_training_goes_on_from_there() -> None:
    found = compress(network(), task(), distill=20, epochs=1, **GIVEN)
    assert found.recovered is not None and found.chosen.distill == 20
    held_out = [x for x, _ in task().labelled(10)][-2:]
    recalibrate(found.model, task().calibration(16))
    assert math.isfinite(divergence(network(), found.model.eval(), held_out))


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="distill=-1"):
        compress(network(), task(), distill=-1, **GIVEN)
