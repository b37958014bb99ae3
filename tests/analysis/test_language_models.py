"""The script of the language-model table on a network of two blocks with random weights: its rivals against formulas written out, and that
it goes on where it ended."""

from __future__ import annotations

import importlib
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ranksearch.decompositions import SVD
from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra
from ranksearch.tasks import LanguageModel

transformers = pytest.importorskip("transformers", reason="the networks are those of transformers: pip install 'ranksearch[transformers]'")

ANALYSIS = Path(__file__).parents[2] / "analysis"
WORDS = [f"w{k}" for k in range(40)]


@cache
def script(name: str) -> Any:
    sys.path.insert(0, str(ANALYSIS))  # as when it runs: what it imports is a file beside it
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ANALYSIS))


def llama() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS) + 1, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
    )
    return transformers.LlamaForCausalLM(config).eval().requires_grad_(False)


def test_token_moments_are_of_the_middle_with_norms_within_bounds() -> None:
    lems = script("lems")
    gradient = torch.randn(2, 8, 3) * torch.tensor([1e-4, 1.0, 1.0, 1.0, 50.0, 1.0, 1.0, 1.0])[:, None]
    wanted = np.zeros((3, 3))
    rows = gradient[:, 1:7].reshape(-1, 3).double().numpy()  # an eighth of the positions is left out at either end
    mean = np.linalg.norm(rows, axis=1).mean()
    for row in rows:
        size = np.linalg.norm(row)
        row = row / size * min(max(size, 0.1 * mean), 10 * mean)
        wanted += np.outer(row, row)
    torch.testing.assert_close(lems.token_moment(gradient), torch.from_numpy(wanted), rtol=1e-6, atol=1e-9)


def test_shrinking_keeps_the_trace() -> None:
    lems = script("lems")
    root = torch.randn(1, 4, 6).double()
    moment = root @ root.mT
    found = lems.towards_trace(moment, 0.3)
    torch.testing.assert_close(found[0], 0.7 * moment[0] + 0.3 * moment[0].trace() / 4 * torch.eye(4).double())


def test_anchors_are_the_divergence_of_the_whole_network() -> None:
    """Measured with what blocks in front answered before, they are those of networks that are built and run as a whole."""
    lems, model = script("lems"), llama()
    tokens = torch.arange(24).reshape(2, 12)
    task = LanguageModel(train=tokens, validation=tokens, batch_size=2)
    inputs = [given for given, _ in task.labelled(1)]
    sites = find_sites(model, inputs[0], include="*.layers.*")
    spectra = Spectra(model, sites, [SVD()])
    known: dict[str, float] = {sites.sites[0].name: 0.25}
    assert list(lems.anchors(spectra, inputs, task.divergence, known)) == [site.name for site in sites.sites[1:]]
    assert known[sites.sites[0].name] == 0.25 and len(known) == len(sites)
    with torch.no_grad():
        dense = model(**inputs[0])
        for site in sites.sites[1:]:
            built = build(spectra, Configuration({site.name: ("svd", (lems.anchor_rank(site),))}))
            assert known[site.name] == pytest.approx(float(task.divergence(built(**inputs[0]), dense)), rel=1e-3, abs=1e-8)
    assert max(known.values()) > 1e-6 and all("forward" not in vars(module) for module in model.modules())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: k for k, word in enumerate([*WORDS, "?"])}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", eos_token="?").save_pretrained(tmp_path / "model")
    llama().save_pretrained(tmp_path / "model")
    order = torch.randint(0, len(WORDS), (400,), generator=torch.Generator().manual_seed(0))
    (tmp_path / "text").write_text(" ".join(WORDS[k] for k in order.tolist()))
    return tmp_path


def test_every_rule_is_measured_once_and_within_its_budget(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("language_models")
    text = str(folder / "text")
    line = f"language_models.py --model {folder}/model --calibration {text} --text {text} --folder {folder}/out --sequences 4 --length 16"
    line += " --evaluated 2 16 --shares 0.8 --refit 1 2"
    monkeypatch.setattr(sys, "argv", line.split())
    module.main()
    first = capsys.readouterr().out.splitlines()
    assert len(first) == len(module.RULES)
    kept = [json.loads(row)["kept"] for row in (folder / "out" / "networks.jsonl").read_text().splitlines()]
    assert kept[0] == 1 and all(0.5 < share <= 0.8 for share in kept[1:])
    module.main()
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys, "argv", [*line.split(), "--table"])
    module.main()
    shown = capsys.readouterr().out
    assert all(f"| {rule} | " in shown for rule in ("dense", *module.RULES))
    monkeypatch.setattr(sys, "argv", [*line.replace("--length 16", "--length 8").split()])
    with pytest.raises(SystemExit, match="results of other settings"):
        module.main()


def test_ranks_with_bits_of_a_language_model(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LENGTH": 8, "SEQUENCES": 4, "MEASURED": 2}.items():
        monkeypatch.setattr(script("subjects"), name, value)
    module, text = script("bits"), f"{folder}/text"
    line = f"bits.py --network language --model {folder}/model --calibration {text} --text {text} {text} --types svd --seeds 0 1"
    line += f" --budgets 0.6 0.001 --out {folder}/rows.jsonl"
    monkeypatch.setattr(sys, "argv", line.split())
    module.main()
    table = capsys.readouterr().out
    rows = [json.loads(row) for row in (folder / "rows.jsonl").read_text().splitlines()]
    assert {(row["way"], row["seed"]) for row in rows} == {(way, seed) for way in module.WAYS for seed in (0, 1)}
    assert all(0 < row["bytes"] <= row["budget"] == 0.6 and row["perplexity"] > 1 for row in rows)  # no network is a thousandth
    mean = np.mean([row["perplexity"] for row in rows if row["way"] == "bits"])
    assert f"{mean:.1f}" in table
    module.main()
    assert capsys.readouterr().out == table and len((folder / "rows.jsonl").read_text().splitlines()) == len(rows)


def test_a_language_model_needs_its_texts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bits.py", "--network", "language", "--model", "model", "--out", "rows.jsonl"])
    with pytest.raises(SystemExit, match="2"):
        script("bits").main()
    assert "--network language needs --calibration, --text" in capsys.readouterr().err
