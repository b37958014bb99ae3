"""A tiny encoder with random weights stands in for MiniLM; the real one is tried where its folder is given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from ranksearch.errors import InvalidArgument, InvalidModel
from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra
from ranksearch.tasks.text import SentenceClassifier, fit_probe, pretrained_encoder, sentences

transformers = pytest.importorskip("transformers")
WORDS = ["[PAD]", "[UNK]", "good", "bad", "film", "day", "the", "a"]
ENCODER = Path(os.environ.get("RANKSEARCH_ENCODER", "nowhere"))
SHARED = Path(os.environ.get("RANKSEARCH_SHARED", "nowhere"))


@pytest.fixture
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]")


@pytest.fixture
def encoder() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, max_position_embeddings=16
    )
    return transformers.BertModel(config, add_pooling_layer=False).eval()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    texts = [f"{a} {word} {noun}" for a in ("the", "a") for noun in ("film", "day") for word in ("good", "bad")]
    frame = pd.DataFrame({"text": texts * 3, "label": [1, 0] * 12, "split": ["train"] * 8 + ["validation"] * 8 + ["test"] * 8})
    frame.to_parquet(tmp_path / "words.parquet")
    return tmp_path / "words.parquet"


def test_tokens_reach_the_network_as_integers(table: Path, tokenizer: Any) -> None:
    task = sentences(table, tokenizer, length=5)
    assert task.sizes() == {"train": 8, "validation": 8, "test": 8}
    example = task.example()
    assert example.dtype == torch.int64 and example.shape == (1, 5)
    assert example[0, 3:].tolist() == [0, 0] and (example[0, :3] > 0).all()
    assert sentences([table, table], tokenizer, length=2).sizes()["train"] == 16


def test_padding_changes_no_embedding(encoder: Any) -> None:
    model = SentenceClassifier(encoder, 2).eval().double()
    short = torch.tensor([[6, 2, 4]])
    padded = torch.tensor([[6, 2, 4, 0, 0]])
    with torch.no_grad():
        torch.testing.assert_close(model.embed(short), model.embed(padded), atol=1e-12, rtol=0)
        assert abs(float(model.embed(short).norm()) - 1) < 1e-12
        alone = encoder(input_ids=short).last_hidden_state.mean(1)
    torch.testing.assert_close(model.embed(short), torch.nn.functional.normalize(alone, dim=1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_probe_is_the_logistic_regression(classes: int, table: Path, tokenizer: Any, encoder: Any, tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    if classes == 3:
        frame = pd.read_parquet(table)
        frame["label"] = [2 if "film" in t and "good" in t else label for t, label in zip(frame.text, frame.label, strict=True)]
        frame.to_parquet(table)
    task = sentences(table, tokenizer, length=5)
    model = SentenceClassifier(encoder, classes).eval()
    fit_probe(model, task, cache=tmp_path / "cache")
    (tokens, labels), *_ = list(task.labelled(1))
    x = model.embed(tokens).detach().double().numpy()
    expected = LogisticRegression(C=10.0, max_iter=1000).fit(x, labels.numpy()).predict_proba(x)
    torch.testing.assert_close(model(tokens).softmax(1).double().detach(), torch.from_numpy(expected), atol=1e-4, rtol=1e-3)
    again = SentenceClassifier(encoder, classes).eval()
    fit_probe(again, task, cache=tmp_path / "cache")
    assert torch.equal(again.probe.weight, model.probe.weight) and len(list((tmp_path / "cache").iterdir())) == 1


def test_a_damaged_cached_probe_is_made_again(
    table: Path, tokenizer: Any, encoder: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task, model = sentences(table, tokenizer, length=5), SentenceClassifier(encoder, 2).eval()
    fit_probe(model, task, cache=tmp_path / "cache")
    weight = model.probe.weight.detach().clone()
    next((tmp_path / "cache").iterdir()).write_bytes(b"torn")
    fit_probe(model, task, cache=tmp_path / "cache")
    assert "fitted again" in caplog.text
    assert torch.equal(model.probe.weight, weight)


def test_an_encoder_is_factorized_like_any_network(table: Path, tokenizer: Any, encoder: Any) -> None:
    task, model = sentences(table, tokenizer, length=5), SentenceClassifier(encoder, 2).eval()
    sites = find_sites(model, task.example())
    name = "encoder.encoder.layer.0.intermediate.dense"
    assert name in {site.name for site in sites}
    smaller = build(Spectra(model, sites), Configuration({name: ("svd", (4,))}))
    assert task.measure(smaller)["loss"] != task.measure(model)["loss"]
    assert sum(p.numel() for p in smaller.parameters()) == sum(p.numel() for p in model.parameters()) - 16 * 24 + 4 * (16 + 24)


def test_a_saved_encoder_is_loaded_without_its_pooler(encoder: Any, tokenizer: Any, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    loaded, read = pretrained_encoder(tmp_path / "encoder")
    tokens = torch.tensor([[6, 2, 4]])
    assert torch.equal(loaded(input_ids=tokens).last_hidden_state, encoder(input_ids=tokens).last_hidden_state)
    assert not loaded.training and read("a good day")["input_ids"] == [7, 2, 5]


def test_what_cannot_be_read_is_named(table: Path, tokenizer: Any, encoder: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"encoder=.*config\.json"):
        pretrained_encoder(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    with pytest.raises(InvalidArgument, match="cannot be loaded"):
        pretrained_encoder(tmp_path / "broken")
    with pytest.raises(InvalidArgument, match="no such file"):
        sentences(tmp_path / "none.parquet", tokenizer)
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(InvalidArgument, match="not a readable parquet"):
        sentences(tmp_path / "text.parquet", tokenizer)
    frame = pd.read_parquet(table)
    for changed, message in (
        (frame.drop(columns="label"), "no column label"),
        (frame.assign(label=frame.label.astype(float)), "float64"),
        (frame[frame.split != "test"], "'test'"),
    ):
        changed.to_parquet(tmp_path / "changed.parquet")
        with pytest.raises(InvalidArgument, match=message):
            sentences(tmp_path / "changed.parquet", tokenizer)
    with pytest.raises(InvalidArgument, match="empty"):
        sentences([], tokenizer)
    tokenizer.pad_token = "good"
    with pytest.raises(InvalidArgument, match="pads with 2"):
        sentences(table, tokenizer)
    tokenizer.pad_token = "[PAD]"
    with pytest.raises(InvalidModel, match="3 outputs"):
        fit_probe(SentenceClassifier(encoder, 3), sentences(table, tokenizer, length=5))


@pytest.mark.skipif(not ENCODER.is_dir() or not SHARED.is_dir(), reason="RANKSEARCH_ENCODER and RANKSEARCH_SHARED are not set")
def test_the_real_encoder_reads_sentiment(tmp_path: Path) -> None:
    encoder, tokenizer = pretrained_encoder(ENCODER)
    task = sentences(SHARED / "data" / "sentiment" / "tweets.parquet", tokenizer)
    model = SentenceClassifier(encoder, 2).eval()
    fit_probe(model, task)
    assert task.measure(model)["accuracy"] > 0.9


def test_gradients_flow_through_the_pooling(encoder: Any) -> None:
    model = SentenceClassifier(encoder, 2)
    loss: Tensor = model(torch.tensor([[6, 2, 4, 0]])).square().sum()
    loss.backward()
    assert all(p.grad is not None for p in model.probe.parameters())
    assert float(encoder.embeddings.word_embeddings.weight.grad[2].abs().sum()) > 0
