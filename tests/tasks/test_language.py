"""Language models: perplexity by hand, distances to a reference, text and arrays, and models of transformers."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ranksearch.errors import InvalidArgument, InvalidModel
from ranksearch.evaluation import Fidelity, Request
from ranksearch.space import SpaceSpec
from ranksearch.space.specs import named
from ranksearch.study import Study
from ranksearch.tasks import LanguageModel

VOCABULARY = 17


def characters(text: str) -> dict[str, list[int]]:
    """A tokenizer: one id per letter."""
    return {"input_ids": [ord(letter) % VOCABULARY for letter in text]}


def tokens(count: int = 24, length: int = 10, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(seed))


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(VOCABULARY, 12), nn.Linear(12, 14), nn.Tanh(), nn.Linear(14, VOCABULARY))


def make(**changes) -> LanguageModel:
    given = {"train": tokens(), "validation": tokens(7, seed=1), "length": 10, "keywords": False, "batch_size": 3} | changes
    return LanguageModel(**given)


def by_hand(model: nn.Module, ids: Tensor) -> float:
    """Mean negative log-likelihood, token by token."""
    total = 0.0
    with torch.no_grad():
        logits = model.double()(ids)
    for row, answer in zip(ids, logits, strict=True):
        for place in range(len(row) - 1):
            total -= float(answer[place].log_softmax(0)[row[place + 1]])
    return total / (ids.shape[0] * (ids.shape[1] - 1))


def test_perplexity_is_that_of_the_tokens_after_the_first() -> None:
    task, model = make(), small()
    found, wanted = task.measure(model), by_hand(copy.deepcopy(model), tokens(7, seed=1))
    assert found["loss"] == pytest.approx(wanted, rel=1e-5) and found["perplexity"] == pytest.approx(math.exp(wanted), rel=1e-5)
    assert list(found) == ["perplexity", "loss"]


def test_distances_are_to_the_reference() -> None:
    model = small()
    task = make(reference=copy.deepcopy(model))
    assert [m.name for m in task.metrics] == ["perplexity", "loss", "divergence", "agreement"]
    found = task.measure(model)
    assert found["divergence"] == pytest.approx(0, abs=1e-6) and found["agreement"] == 1
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[1].weight += 0.5 * torch.randn(14, 12, generator=torch.Generator().manual_seed(2))
        p, q = (net(tokens(7, seed=1))[:, :-1].double().log_softmax(-1) for net in (model, other))
    found = task.measure(other)
    assert found["divergence"] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
    assert found["agreement"] == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert task.fingerprint() != make().fingerprint() != make(reference=other).fingerprint() != task.fingerprint()


def test_sampled_targets_follow_the_network_place_by_place() -> None:
    task, model = make(), small().eval()
    with torch.no_grad():
        outputs = model(tokens(1)).expand(20_000, -1, -1)
    drawn = task.sample_targets(outputs, torch.Generator().manual_seed(0))
    assert drawn.shape == (20_000, 10)
    for place in (0, 4):  # what stands at a place is drawn after what goes before it
        found = torch.bincount(drawn[:, place + 1], minlength=VOCABULARY) / 20_000
        torch.testing.assert_close(found, outputs[0, place].softmax(0), rtol=0, atol=0.02)


def test_text_files_and_arrays_are_the_same_task(tmp_path: Path) -> None:
    text, other = "the cat sat on the mat and looked at the other cat. " * 5, "dogs do not. " * 9
    path = tmp_path / "text.txt"
    path.write_text(other)
    ids = characters(text)["input_ids"], np.array(characters(other)["input_ids"])
    arrays = make(train=torch.tensor(ids[0]), validation=ids[1])
    assert make(train=text, validation=path, tokenizer=characters).fingerprint() == arrays.fingerprint()
    assert arrays.sizes() == {"train": len(text) // 10, "validation": len(other) // 10}
    halves = tmp_path / "a.txt", tmp_path / "b.txt"
    halves[0].write_text(other[:40]), halves[1].write_bytes(b"caf\xe9 " * 9)  # not UTF-8
    assert make(validation=list(halves), tokenizer=characters).sizes()["validation"] == (40 + 1 + 45) // 10


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train": "some text"}, "needs a tokenizer"),
        ({"train": Path("nowhere.txt"), "tokenizer": characters}, "no such file"),
        ({"validation": torch.zeros(4, dtype=torch.int64)}, "no whole sequence of length=10"),
        ({"validation": torch.zeros(3, 4)}, "token ids are integers"),
        ({"validation": torch.full((3, 4), -1)}, "ids count from 0"),
        ({"test": []}, "give text"),
        ({"length": 1}, "length=1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ],
)
def test_what_is_no_text_is_refused(changes: dict, told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        make(**changes)


def test_a_model_without_logits_per_token_is_refused() -> None:
    with pytest.raises(InvalidModel, match=r"shape \(3, 10, vocabulary\)"):
        make().measure(nn.Sequential(nn.Embedding(VOCABULARY, 4), nn.Flatten()))


def test_a_model_of_transformers_is_searched_without_its_cache() -> None:
    """In the Fisher metric, from profile to front: keys and values are never kept, and divergences grow as networks shrink."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config).eval()
    assert model.config.use_cache
    task = make(keywords=True, reference=model)
    seen = []
    handle = model.register_forward_hook(lambda _module, _args, output: seen.append(output.past_key_values))
    space = SpaceSpec(named("svd"), include="*mlp*", metric="fisher", calibration=2, max_options=4)
    study = Study("words", model=model, task=task, space=space, objectives=("divergence", "params"))
    assert {site.name for site in study.sites} == {f"transformer.h.{k}.mlp.{part}" for k in range(2) for part in ("c_fc", "c_proj")}
    assert study.space.metric == "fisher"
    handle.remove()
    assert seen and all(kept is None for kept in seen)
    dense, smallest = (task.measure(study.evaluator.network(_request(study, indices))) for indices in (study.space.dense, [0] * 4))
    assert dense["divergence"] == pytest.approx(0, abs=1e-6) and smallest["divergence"] > 0
    assert smallest["agreement"] <= 1


def test_an_exported_program_has_no_cache(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1
    )
    model = transformers.LlamaForCausalLM(config).eval()
    task = make(keywords=True)
    study = Study(
        "words", model=model, task=task, space=SpaceSpec(named("svd"), max_options=3), objectives=("loss", "params"),
        fidelity=Fidelity(epochs=0, recalibration=0), store=tmp_path / "s.db",
    )  # fmt: skip
    study.run(3, runner="local")
    chosen = study.evaluations().sort_values("params").iloc[0]["id"]
    folder = study.export(chosen, tmp_path / "out", torch_export=True)
    program = torch.export.load(folder / "program.pt2").module()
    ids = tokens(1)
    with torch.no_grad():
        answer = program(input_ids=ids, use_cache=False)
        wanted = study.build(chosen)(input_ids=ids, use_cache=False)
    torch.testing.assert_close(answer.logits, wanted.logits, rtol=1e-4, atol=1e-5)
    assert answer.past_key_values is None


def _request(study: Study, indices: Sequence[int] | np.ndarray) -> Request:
    return Request(study.space.configuration(indices), Fidelity(epochs=0, recalibration=0), 0)
