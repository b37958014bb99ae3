"""Small networks of transformers with every site factorized: a dozen of those of `analysis/architectures.py`, which makes the whole table.
All of them read an attribute of a layer that is replaced, or tie one to another."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="the networks are those of transformers: pip install 'ranksearch[transformers]'")

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "analysis" / "architectures.py"
NAMES = ("vit", "deit", "dinov2", "clip", "t5", "whisper", "mamba", "mamba2", "mobilenet-v2", "llama, tied", "qwen2-moe", "gpt2")


@cache
def script() -> Any:
    sys.path.insert(0, str(SCRIPT.parent))  # as when it runs: its table is a file beside it
    try:
        return importlib.import_module(SCRIPT.stem)
    finally:
        sys.path.remove(str(SCRIPT.parent))


@cache
def check(name: str, decomposition: str = "svd") -> Any:
    return script().Check(script().ARCHITECTURES[name], decomposition)


QUICK = [(name, question) for name in NAMES for question in ("forward", "costs", "gradients", "generate", "reload", "pretrained")]


@pytest.mark.parametrize(("name", "question"), QUICK)
def test_factorized_networks_work_as_dense_ones_of_their_weights(name: str, question: str) -> None:
    if question == "generate" and not script().ARCHITECTURES[name].generates:
        return
    asked = check(name)
    assert len(asked.configuration.choices) > 4
    getattr(asked, question)()


@pytest.mark.parametrize("name", ["vit", "gpt2"])
@pytest.mark.parametrize("question", ["program", "compiled"])
def test_factorized_networks_become_programs(name: str, question: str) -> None:
    getattr(check(name), question)()


@pytest.mark.parametrize("question", ["forward", "costs", "gradients"])
def test_types_that_are_no_chains_answer_too(question: str) -> None:
    """T5 asks its feed-forward layers for the type of their weights."""
    asked = check("t5", "tensor_train")
    assert {path for path, _, _ in asked.configuration.choices if path.endswith(".wo")}
    getattr(asked, question)()


def test_the_questions_bite() -> None:
    """A factor that is off is found by all of them, and a layer more by the costs."""
    fresh = script().Check(script().ARCHITECTURES["llama, tied"])
    with torch.no_grad():
        next(p for name, p in fresh.built.named_parameters() if name.endswith("mlp.up_proj.0.weight")).mul_(3.0)
    for question in ("forward", "gradients"):
        with pytest.raises(AssertionError):
            getattr(fresh, question)()
    fresh.costs()
    fresh.built.get_submodule("model.layers.0.mlp").up_proj = nn.Linear(32, 48)
    with pytest.raises(AssertionError, match="expected Cost"):
        fresh.costs()


def test_there_are_fifty_and_the_table_has_a_row_for_each_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(script().ARCHITECTURES) >= 50
    monkeypatch.setattr(sys, "argv", ["architectures.py", "--only", "resnet"])
    script().main()
    title, _, row, _, total = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (title, row)]
    found = dict(zip(*cells, strict=True))
    assert found["network"] == "resnet" and found["sites"] == "10" and found["generate"] == ""
    asked = ("outputs", "costs", "gradients", "reload", "`from_pretrained`", "`torch.export`", "`torch.compile`")
    assert [found[name] for name in asked] == ["yes"] * 7
    assert total.startswith("1 of 1 work in all columns")
