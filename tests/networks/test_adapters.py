"""PEFT finds the layers of a built network, and what it makes of them can be merged and saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ranksearch.networks import pretrained
from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra

transformers = pytest.importorskip("transformers", reason="pip install 'ranksearch[transformers]'")
peft = pytest.importorskip("peft", reason="pip install peft")
pytestmark = pytest.mark.filterwarnings("ignore")

IDS = (torch.arange(16).reshape(2, 8) * 7) % 30 + 3
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}


def test_lora_is_put_on_factors_trained_merged_and_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()
    sites = find_sites(dense, {"input_ids": IDS}, include="*mlp*")
    configuration = Configuration({site.name: ("svd", (4,)) for site in sites})
    built = build(Spectra(dense, sites), configuration)
    before = {name: value.clone() for name, value in built.state_dict().items()}

    adapted = peft.get_peft_model(built, peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights="gaussian"))
    found = {name.removeprefix("base_model.model.") for name, module in adapted.named_modules() if hasattr(module, "lora_A")}
    factors = {f"{site.name}.{place}" for site in sites for place in (0, 1)}
    assert factors < found and {name for name in found if "mlp" in name} == factors

    optimizer = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(8):
        loss = adapted(input_ids=IDS, labels=IDS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    frozen = {name.replace(".base_layer", "").removeprefix("base_model.model."): value for name, value in adapted.state_dict().items()}
    assert all(torch.equal(value, frozen[name]) for name, value in before.items())

    adapted.eval()
    with torch.no_grad():
        expected = adapted(input_ids=IDS).logits
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-5)
        assert list(merged.state_dict()) == list(before)
        merged.save_pretrained(tmp_path)
        torch.testing.assert_close(pretrained.load(tmp_path).eval()(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-5)
