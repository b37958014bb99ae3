"""A run that is stopped, by whatever and at any step, ends in the weights of the run that was not."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from safetensors import safe_open
from small_run import made, model, same, supernet, task, weights
from torch import nn

from ranksearch.errors import InvalidArgument
from ranksearch.space import DENSE
from ranksearch.supernet import RankSupernet, TrainingStep, load_trained, train
from ranksearch.supernet.methods import METHODS
from ranksearch.tasks import Diverged


class Stop(Exception):
    """What a killed machine looks like from inside."""


def stop_at(step: int, error: type[BaseException] = Stop):
    def on_event(event: TrainingStep) -> None:
        if event.step == step:
            raise error

    return on_event


NAMES = sorted(METHODS)


def test_plain_is_fine_tuning_bit_for_bit() -> None:
    net, method = made("plain")
    fine_tuned = model()
    task().fine_tune(fine_tuned, epochs=2.4, seed=7)
    progress = train(net, task(), method, epochs=2.4, seed=7)
    assert (progress.steps, progress.resumed, progress.checkpoint) == (12, 0, None)
    assert same(net.extract(DENSE).state_dict(), weights(fine_tuned))


@pytest.mark.parametrize("name", NAMES)
def test_stopped_and_resumed_is_uninterrupted(name: str, tmp_path: Path) -> None:
    """At odd steps, between two refreshes and between two checkpoints; in three parts."""
    net, method = made(name, refresh=3)
    train(net, task(), method, epochs=2, seed=7)
    wanted = weights(net)
    assert not same(wanted, weights(supernet()))
    for step, error, every in ((4, Stop, 3), (8, KeyboardInterrupt, 100)):
        net, method = made(name, refresh=3)
        with pytest.raises(error):
            train(net, task(), method, epochs=2, seed=7, folder=tmp_path, every=every, on_event=stop_at(step, error))
    net, method = made(name, refresh=3)
    seen: list[int] = []
    progress = train(net, task(), method, epochs=2, seed=7, folder=tmp_path, on_event=lambda e: seen.append(e.step))
    assert (progress.resumed, seen) == (8, [9, 10])
    assert same(weights(net), wanted)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["supernet.safetensors"]
    other = supernet()
    assert load_trained(other, tmp_path) == 10
    assert same(weights(other), wanted)


def test_the_same_object_goes_on_after_an_interrupt(tmp_path: Path) -> None:
    net, method = made("plain")
    train(net, task(), method, epochs=2, seed=7)
    wanted = weights(net)
    net, method = made("plain")
    with pytest.raises(KeyboardInterrupt):
        train(net, task(), method, epochs=2, seed=7, folder=tmp_path, on_event=stop_at(5, KeyboardInterrupt))
    assert train(net, task(), method, epochs=2, seed=7, folder=tmp_path).resumed == 5
    assert same(weights(net), wanted)
    done = train(net, task(), method, epochs=2, seed=7, folder=tmp_path)
    assert (done.resumed, done.loss) == (10, None)
    assert same(weights(net), wanted)


def test_checkpoints_change_nothing(tmp_path: Path) -> None:
    results = []
    for every, folder in ((1, tmp_path / "a"), (4, tmp_path / "b"), (1, None)):
        net, method = made(NAMES[0])
        train(net, task(), method, epochs=1.5, seed=3, folder=folder, every=every)
        results.append(weights(net))
    assert same(results[0], results[1]) and same(results[0], results[2])


SCRIPT = """
import os, signal, sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {here!r})
import small_run as t
from ranksearch.supernet import train
net, method = t.made({name!r})
def on_event(event):
    if event.step == {step}:
        os.kill(os.getpid(), signal.{signal})
train(net, t.task(), method, epochs=2, seed=7, folder={folder!r}, every=3, on_event=on_event)
"""


@pytest.mark.parametrize(("kind", "resumed"), [("SIGKILL", 6), ("SIGINT", 7)])
def test_a_killed_process_is_resumed(kind: str, resumed: int, tmp_path: Path) -> None:
    """SIGKILL after step 7 leaves the checkpoint of step 6; Ctrl-C makes one of its own."""
    name = "joint"
    script = SCRIPT.format(here=str(Path(__file__).parent), name=name, step=7, signal=kind, folder=str(tmp_path / "run"))
    done = forked.run("-c", script)
    if kind == "SIGKILL":
        assert done.returncode == -signal.SIGKILL, done.stderr
    else:
        assert done.returncode != 0 and "KeyboardInterrupt" in done.stderr
    net, method = made(name)
    assert train(net, task(), method, epochs=2, seed=7, folder=tmp_path / "run").resumed == resumed
    whole, method = made(name)
    train(whole, task(), method, epochs=2, seed=7)
    assert same(weights(net), weights(whole))


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    net, method = made("plain")
    train(net, task(), method, epochs=1, seed=7, folder=tmp_path)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("seed", {"seed": 8}), ("epochs", {"epochs": 2}), ("task", {"task": task(learning_rate=0.01)}),
        ("refresh", {"made": made("plain", refresh=4)}), ("options", {"made": made("plain", seed=6)}),
        ("method", {"made": made("joint")}),
    ]  # fmt: skip
    moved, method = made("plain")
    with torch.no_grad():
        moved.weight("0").add_(1)
    cases.append(("start", {"made": (moved, method)}))
    for message, changes in cases:
        net, method = changes.get("made", made("plain"))
        before = weights(net)
        with pytest.raises(InvalidArgument, match=message):
            train(
                net, changes.get("task", task()), method,
                epochs=changes.get("epochs", 1), seed=changes.get("seed", 7), folder=tmp_path,
            )  # fmt: skip
        assert same(weights(net), before)
    with safe_open(tmp_path / "supernet.safetensors", framework="pt") as file:
        assert file.metadata()["format"].startswith("ranksearch-supernet")
    (tmp_path / "supernet.safetensors").write_bytes(b"nonsense")
    net, method = made("plain")
    with pytest.raises(InvalidArgument, match="cannot be read"):
        train(net, task(), method, epochs=1, seed=7, folder=tmp_path)


def test_bad_arguments(tmp_path: Path) -> None:
    net, method = made("plain")
    for options, message in (({"epochs": 0}, "epochs"), ({"epochs": 1, "every": 0}, "every")):
        with pytest.raises(InvalidArgument, match=message):
            train(net, task(), method, seed=0, **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="another supernet"):
        train(supernet(), task(), method, epochs=1, seed=0)
    with pytest.raises(InvalidArgument, match="holds no"):
        load_trained(net, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgument, match="folder"):
        train(net, task(), method, epochs=1, seed=0, folder=tmp_path / "file")


@pytest.mark.parametrize("name", NAMES)
def test_divergence_is_named(name: str) -> None:
    net, method = made(name)
    with pytest.raises(Diverged, match="learning rate"):
        train(net, task(learning_rate=1e30), method, epochs=2, seed=0)


def test_weights_that_the_last_step_broke_are_not_kept(tmp_path: Path) -> None:
    """Its loss was finite. The checkpoint before stays, and training goes on from there."""

    def broken(net: RankSupernet, method: Any, at: int) -> None:
        after = method.after_step

        def step(number: int) -> None:
            after(number)
            if number == at:
                with torch.no_grad():
                    next(net.parameters()).view(-1)[0] = math.nan

        method.after_step = step

    for folder in (None, tmp_path / "a"):
        net, method = made("plain")
        steps = train(net, task(), method, epochs=1, seed=0).steps
        net, method = made("plain")
        broken(net, method, steps)
        with pytest.raises(Diverged, match=f"weights are not finite at step {steps} of {steps}: lower the task's learning rate"):
            train(net, task(), method, epochs=1, seed=0, folder=folder, every=1)
    net, method = made("plain")
    assert load_trained(net, tmp_path / "a") == steps - 1 and all(torch.isfinite(p).all() for p in net.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_resumed_on_a_gpu(tmp_path: Path) -> None:
    def on_gpu() -> tuple[RankSupernet, Any]:
        net, method = made("plain")
        net.cuda()
        return net, method

    net, method = on_gpu()
    train(net, task(), method, epochs=2, seed=7)
    wanted = weights(net)
    net, method = on_gpu()
    with pytest.raises(Stop):
        train(net, task(), method, epochs=2, seed=7, folder=tmp_path, every=2, on_event=stop_at(5))
    net, method = on_gpu()
    assert train(net, task(), method, epochs=2, seed=7, folder=tmp_path).resumed == 4
    assert all(torch.allclose(value, wanted[key], atol=1e-5) for key, value in weights(net).items())


def test_training_is_the_documented_loop() -> None:
    """Fine-tuning, and so `plain`, against a loop written out here."""
    the_task, twin = task(), model().train()
    the_task.fine_tune(fine_tuned := model(), epochs=1.6, seed=4)
    x, y = the_task._splits["train"]
    random = torch.Generator().manual_seed(4)
    optimizer = torch.optim.SGD(twin.parameters(), lr=1, momentum=0.9, nesterov=True, weight_decay=1e-3)
    torch.manual_seed(4)
    for step in range(8):
        if step % 5 == 0:
            order = torch.randperm(80, generator=random)
        chosen = order[step % 5 * 16 : step % 5 * 16 + 16]
        batch = x[chosen] + 0.1 * torch.randn(16, 2, 6, 6, generator=random)
        optimizer.param_groups[0]["lr"] = 0.05 * 0.5 * (1 + math.cos(math.pi * (step + 0.5) / 8))
        optimizer.zero_grad()
        nn.functional.cross_entropy(twin(batch), y[chosen]).backward()
        optimizer.step()
    assert same(weights(twin), weights(fine_tuned))


def test_a_stream_ends_and_goes_on() -> None:
    one, other = (task().training(model(), epochs=2, seed=1) for _ in range(2))
    for _ in range(3):
        one.batch()
    other.load_state_dict(one.state_dict())
    for _ in range(7):
        a, b = one.batch(), other.batch()
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
        assert one.optimizer.param_groups[0]["lr"] == other.optimizer.param_groups[0]["lr"]
    with pytest.raises(InvalidArgument, match="10 steps"):
        one.batch()
