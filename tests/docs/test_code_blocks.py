"""Every Python block of the pages runs, with the names that a page leaves to its reader; every command has the options it is shown with.
The tutorial and the README have tests of their own."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ranksearch as rs
from ranksearch.cli import main as cli
from ranksearch.networks.export import save
from ranksearch.networks.reconstruction.refit import Effort
from ranksearch.networks.surgery import build
from ranksearch.runners import LocalRunner
from ranksearch.sites import find_sites
from ranksearch.space import DENSE, named
from ranksearch.space.specs import PACKAGED
from ranksearch.space.spectra import Spectra
from ranksearch.study import Screening, Study
from ranksearch.study import study as study_module
from ranksearch.study.run import Asked

ROOT = Path(__file__).parents[2]
PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name != "tutorial.md"]
SHOWN = [*PAGES, ROOT / "docs" / "tutorial.md", ROOT / "README.md"]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2)
    )


def reader(folder: Path) -> dict[str, Any]:
    """What the reader of a page has: a network, a task, a study and the like."""
    x = torch.randn(128, 3, 6, 6)
    y = (x.mean(dim=(1, 2, 3)) > 0).long()
    task = rs.Classification(train=(x[:96], y[:96]), validation=(x[96:], y[96:]), batch_size=16, learning_rate=0.05)
    study = Study("page", model=network(), task=task, fidelity=rs.Fidelity(epochs=0, recalibration=1), store=folder / "page.db")
    return {
        "rs": rs, "F": F, "torch": torch, "Study": Study, "Screening": Screening, "net": study.model, "model": study.model, "task": task,
        "study": study, "inputs": x[:16], "more_inputs": x[16:32], "id": DENSE.id, "configuration": rs.Configuration({"3": ("svd", (4,))}),
    }  # fmt: skip


def architecture(names: dict[str, Any], folder: Path) -> None:
    names["study"] = names["study"].replace(store=folder / "plug_ins.db")


def export(names: dict[str, Any], folder: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the page writes ONNX: pip install 'ranksearch[onnx]'")
    transformers = pytest.importorskip("transformers", reason="the page loads a model of transformers")
    names["study"].evaluate(names["configuration"])
    names["study"].export(names["configuration"].id, folder / "small", onnx=True)
    names["MyNetwork"] = network
    write_llama(transformers, folder / "small_llama")


def write_llama(transformers: Any, folder: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    dense = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=31, max_position_embeddings=16, **sizes)).eval()
    example = {"input_ids": torch.arange(8).reshape(1, 8)}
    choice = rs.Configuration({"model.layers.0.mlp.up_proj": ("svd", (4,))})
    model = build(Spectra(dense, find_sites(dense, example), named("svd")), choice)
    save(model, folder, manifest={"configuration": {site: [kind, list(rank)] for site, kind, rank in choice.choices}}, example=example)


def how_to(names: dict[str, Any], folder: Path) -> None:
    names["study"].run(6)


def analysis(names: dict[str, Any], folder: Path) -> None:
    names["study"].run(6)


def report(names: dict[str, Any], folder: Path) -> None:
    names["study"].run(3)


def language_models(names: dict[str, Any], folder: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the page is about models of transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<unk>": 0, **{f"w{i}": i + 1 for i in range(30)}}
    tokenizer = Tokenizer(models.WordLevel(words, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder / "lm")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=31, max_position_embeddings=256, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "lm")
    text = " ".join(f"w{i}" for i in torch.randint(0, 30, (4096,)).tolist())
    for name in ("calibration.txt", "held_out.txt"):
        (folder / name).write_text(text)
    batch = (torch.randn(8, 4), torch.randn(8, 1))
    names |= {"folder": folder / "lm", "train_loader": [batch], "validation_loader": [batch]}
    names |= {"train_inputs": [names["inputs"]], "validation_inputs": [names["more_inputs"]]}


def samplers(names: dict[str, Any], folder: Path) -> None:
    import optuna

    from ranksearch.samplers import Problem

    names |= {"optuna": optuna, "Problem": Problem, "space": names["study"].space}


def supernet(names: dict[str, Any], folder: Path) -> None:
    names |= {"space": names["study"].space, "spectra": names["study"].spectra}


def surrogate(names: dict[str, Any], folder: Path) -> None:
    from ranksearch.allocators import Additive, Problem
    from ranksearch.proxies import Energy

    space, random = names["study"].space, np.random.default_rng(0)
    indices = random.integers(0, space.shape, size=(12, len(space.shape)))
    names |= {"space": space, "Energy": Energy, "Additive": Additive, "Problem": Problem, "indices": indices, "others": indices[:3]}
    names |= {"losses": 1 + random.random(12), "dense_loss": 1.0, "random": random}


def training_methods(names: dict[str, Any], folder: Path) -> None:
    from ranksearch.supernet import RankSupernet

    study = names["study"]
    names["supernet"] = RankSupernet(study.model, study.space, spectra=study.spectra)
    names["batches"] = [(names["inputs"], torch.zeros(16, dtype=torch.long))] * 2
    names["optimizer"] = torch.optim.SGD(names["supernet"].parameters(), lr=0.01)


_ALL = (analysis, architecture, export, how_to, language_models, report, samplers, supernet, surrogate, training_methods)
PRELUDES: dict[str, Callable[[dict[str, Any], Path], None]] = {function.__name__: function for function in _ALL}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def few(study: Study, trials: int, asked: Asked, screening: Screening | None = None, **options: Any) -> None:
        screening = None if screening is None else replace(screening, count=min(screening.count, 10))
        real(study, min(trials, 6), replace(asked, runner=LocalRunner()), screening=screening, **options)

    def staged(study: Study, asked: Asked) -> None:
        real_stages(study, replace(asked, runner=LocalRunner()))

    real, real_stages = study_module.run, study_module.run_stages
    monkeypatch.setattr(study_module, "run", few)  # the same search, shorter and in this process
    monkeypatch.setattr(study_module, "run_stages", staged)
    for name in ("QUICK", "THOROUGH"):  # fits that are not as good, and as sound
        monkeypatch.setattr(f"ranksearch.networks.reconstruction.sequential.{name}", Effort(1, 2))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANKSEARCH_HOME", str(tmp_path / "home"))
    with contextlib.suppress(ImportError):  # transformers copies the code of a folder before it runs it
        monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    names = reader(tmp_path)
    PRELUDES.get(page.stem, lambda names, folder: None)(names, tmp_path)
    for number, text in enumerate(blocks(page), start=1):
        exec(compile(text, f"{page.name}, block {number}", "exec"), names)


def test_no_block_of_python_goes_by_another_name() -> None:
    """What a page shows as Python is run: a block that cannot be is plain text, and the page says why."""
    for page in SHOWN:
        kinds = set(re.findall(r"^ *```(\w+)", page.read_text(), flags=re.MULTILINE))
        assert kinds <= {"python", "text", "console", "bash", "yaml", "toml", "mermaid"}, page


def commands() -> list[tuple[str, str]]:
    found = []
    for page in SHOWN:
        lines = re.findall(r"^(?: {4}| {2})?(ranksearch [a-z-]+ (?:STUDY|\S+\.py).*)$", page.read_text(), flags=re.MULTILINE)
        found += [(page.name, line) for line in dict.fromkeys(lines)]
    return found


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 20


def test_every_command_has_the_options_it_is_shown_with(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    helps: dict[tuple[str, ...], str] = {}
    for page, line in commands():
        _, command, study, *words = shlex.split(line.replace("[", "").replace("]", ""), comments=True)
        study = study if Path(study).exists() else "studies/digits.py"
        space = words[words.index("--space") + 1 : words.index("--space") + 2] if "--space" in words else []
        asked = (command, study, *(["--space", *space] if space and (space[0] in PACKAGED or Path(space[0]).exists()) else []))
        if asked not in helps:
            assert cli.main([*asked, "--help"]) == 0, (page, line)
            helps[asked] = capsys.readouterr().out
        for option in (word for word in words if word.startswith("--")):
            assert re.search(rf"{option}\b", helps[asked]), f"{page}: {line}: {command} has no {option}"
