"""The lines of the page on exports that rebuild a Llama from its manifest and weights, run where ranksearch cannot be imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ranksearch as rs
from ranksearch.space import named

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
BEFORE = "import sys\nsys.modules['ranksearch'] = None  # an import of it fails\n"
AFTER = """
import torch
from safetensors.torch import save_file
with torch.no_grad():
    save_file({"logits": llama.eval()(**load_file("inputs.safetensors")).logits}, "answer.safetensors")
"""


def lines() -> str:
    """The block of the page that needs no code of the folder."""
    (block,) = [b for b in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE) if "manifest.json" in b]
    return block


def test_the_lines_of_the_page_rebuild_a_compressed_llama(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the page rebuilds a model of transformers")
    assert len(lines().splitlines()) <= 10
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = transformers.LlamaConfig(vocab_size=31, max_position_embeddings=16, attention_bias=True, tie_word_embeddings=True, **sizes)
    dense = transformers.LlamaForCausalLM(config).eval()
    for name, parameter in dense.named_parameters():
        if name.endswith("bias"):  # which transformers makes zero
            torch.nn.init.normal_(parameter)
    batches = [{"input_ids": torch.randint(0, 31, (2, 8)), "use_cache": False} for _ in range(2)]
    space = rs.SpaceSpec(named("svd"), include="*layers*")
    found = rs.compress(dense, batches, space=space, rules=["uniform"], reconstruction=0, params=0.8)
    assert {site.rsplit(".", 1)[1] for site, *_ in found.configuration.choices} >= {"q_proj", "up_proj"}  # with biases and without
    found.save(tmp_path / "small_llama", example=batches[0])
    inputs = {"input_ids": torch.arange(12).reshape(2, 6)}
    save_file(inputs, tmp_path / "inputs.safetensors")
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", BEFORE + lines() + AFTER], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with torch.no_grad():
        torch.testing.assert_close(load_file(tmp_path / "answer.safetensors")["logits"], found.model(**inputs).logits, rtol=1e-5, atol=1e-6)
