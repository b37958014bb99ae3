"""Networks of transformers with factorized layers go through ``save_pretrained`` and ``from_pretrained`` as they are, or not at all."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ranksearch.decompositions import KNOWN
from ranksearch.errors import InvalidArgument, InvalidModel
from ranksearch.networks import export, merge, pretrained
from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites, tensors_of
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra

transformers = pytest.importorskip("transformers", reason="pip install 'ranksearch[transformers]'")
pytestmark = pytest.mark.filterwarnings("ignore")

IDS = (torch.arange(16).reshape(2, 8) * 7) % 30 + 3
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = {**SIZES, "vocab_size": 40, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def llama(tied: bool = True) -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT, tie_word_embeddings=tied))


def gemma() -> nn.Module:
    return transformers.GemmaForCausalLM(transformers.GemmaConfig(**TEXT, num_key_value_heads=1, head_dim=8))


def t5() -> nn.Module:
    config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0)
    return transformers.T5ForConditionalGeneration(config)


def vit() -> nn.Module:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES, image_size=16, patch_size=4, num_labels=5))


def bert() -> nn.Module:
    return transformers.BertForMaskedLM(transformers.BertConfig(**TEXT))


IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
# what makes a network, its input, the class that loads it
NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor], str]] = {
    "llama": (llama, {"input_ids": IDS}, "AutoModelForCausalLM"),
    "gemma": (gemma, {"input_ids": IDS}, "AutoModelForCausalLM"),
    "t5": (t5, {"input_ids": IDS, "decoder_input_ids": IDS[:, :4]}, "AutoModelForSeq2SeqLM"),
    "vit": (vit, {"pixel_values": IMAGES}, "AutoModelForImageClassification"),
    "bert": (bert, {"input_ids": IDS}, "AutoModelForMaskedLM"),
    "bert_int4": (bert, {"input_ids": IDS}, "AutoModelForMaskedLM"),
}
TYPES = {"bert_int4": "svd@int4"}  # those that are no svd


def factorized(name: str, decomposition: str | None = None) -> nn.Module:
    """Every layer that can be at half of its full rank, factors moved as by fine-tuning."""
    torch.manual_seed(0)
    model, example, _ = NETWORKS[name]
    dense = model().eval()
    decomposition = decomposition or TYPES.get(name, "svd")
    kind = next(d for d in KNOWN if d.name == decomposition)
    spectra = Spectra(dense, find_sites(dense, example), [kind])
    ranks = {s.name: kind.ranks(s) for s in spectra.sites if kind.undefined(s) is None}
    built = build(spectra, Configuration({s: (decomposition, tuple(map(int, r[len(r) // 2]))) for s, r in ranks.items()}))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(1.1)
    return built.eval()


def answer(model: nn.Module, name: str) -> Tensor:
    with torch.no_grad():
        return next(tensor for _, tensor in tensors_of(model(**NETWORKS[name][1])))


FRESH = """
import sys
sys.modules["ranksearch"] = None  # an import of it fails
import json, torch, transformers
from safetensors.torch import load_file, save_file
folder, jobs = sys.argv[1], json.loads(sys.argv[2])
for name, auto in jobs.items():
    given = load_file(f"{folder}/{name}.inputs")
    for source in (name, f"{name}-again"):
        model = getattr(transformers, auto).from_pretrained(f"{folder}/{source}", trust_remote_code=True).eval()
        with torch.no_grad():
            save_file({"output": model(**given).logits.contiguous()}, f"{folder}/{source}.outputs")
        print(source, sum(p.numel() for p in model.parameters()))
        if source == name:
            model.save_pretrained(f"{folder}/{name}-again")
"""


def test_a_folder_loads_in_a_process_without_ranksearch_and_is_saved_there_again(tmp_path: Path) -> None:
    built = {name: factorized(name) for name in NETWORKS}
    for name, model in built.items():
        model.save_pretrained(tmp_path / name)
        save_file(NETWORKS[name][1] | {k: v.contiguous() for k, v in NETWORKS[name][1].items()}, tmp_path / f"{name}.inputs")
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    jobs = json.dumps({name: auto for name, (_, _, auto) in NETWORKS.items()})
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path), jobs], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    counts = dict(line.split() for line in done.stdout.splitlines())
    for name, model in built.items():
        for source in (name, f"{name}-again"):
            torch.testing.assert_close(load_file(tmp_path / f"{source}.outputs")["output"], answer(model, name), rtol=1e-5, atol=1e-5)
            assert int(counts[source]) == sum(p.numel() for p in model.parameters())
            assert "ranksearch" not in {line.split()[1] for line in _imports(tmp_path / source / "modeling_factorized.py")}


def _imports(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    model = factorized("llama")
    folder = tmp_path_factory.mktemp("saved") / "net"
    model.save_pretrained(folder)
    return model, folder


def test_the_dense_class_does_not_take_the_weights_for_its_own(saved: tuple[nn.Module, Path]) -> None:
    _, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "generation_config.json", "model.factorized.safetensors", "modeling_factorized.py",
    ]  # fmt: skip
    for native in (transformers.LlamaForCausalLM, transformers.LlamaModel):
        with pytest.raises(OSError, match=r"model\.safetensors"):
            native.from_pretrained(folder)


def test_weights_are_stored_once(saved: tuple[nn.Module, Path]) -> None:
    model, folder = saved
    tensors = load_file(folder / "model.factorized.safetensors")
    assert sum(t.numel() for t in tensors.values()) == sum(p.numel() for p in model.parameters())
    assert "model.embed_tokens.0.weight" in tensors and not any(name.startswith("lm_head") for name in tensors)


def test_weights_in_several_files_take_the_place_of_those_in_one(tmp_path: Path) -> None:
    model: Any = factorized("llama")
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        model.model.norm.weight.mul_(3.0)
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("model*.safetensors"))) > 1
    torch.testing.assert_close(answer(pretrained.load(tmp_path).eval(), "llama"), answer(model, "llama"), rtol=1e-6, atol=1e-6)


def drop(tensors: dict[str, Tensor]) -> None:
    del tensors["model.layers.0.mlp.up_proj.1.weight"]


def add(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(24, 16)


def widen(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.mlp.up_proj.1.weight"] = torch.zeros(24, 3)


@pytest.mark.parametrize("change", [drop, add, widen])
def test_keys_and_shapes_that_do_not_fit_are_an_error(
    change: Callable[[dict[str, Tensor]], None], saved: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    for path in saved[1].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert type(pretrained.load(tmp_path)).__name__ == "FactorizedLlamaForCausalLM"
    weights = tmp_path / "model.factorized.safetensors"
    tensors = load_file(weights)
    change(tensors)
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(RuntimeError, match=r"not those of Factorized|size mismatch|mismatched"):
        pretrained.load(tmp_path)


def test_what_has_no_plain_form_is_refused_by_name_before_anything_is_written(tmp_path: Path) -> None:
    built = factorized("llama", "tensor_ring")
    with pytest.raises(InvalidModel, match=r"'model\.layers\.0\.mlp\.down_proj' holds a ParametrizedLinear.*stored composed"):
        built.save_pretrained(tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_trains_are_written_with_their_source(tmp_path: Path) -> None:
    built = factorized("t5", "tensor_train")
    built.save_pretrained(tmp_path)
    loaded = pretrained.load(tmp_path).eval()
    torch.testing.assert_close(answer(loaded, "t5"), answer(built, "t5"), rtol=1e-6, atol=1e-6)


def test_folders_and_options_that_would_lead_astray_are_refused(saved: tuple[nn.Module, Path], tmp_path: Path) -> None:
    model, _ = saved
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InvalidArgument, match=r"holds model\.safetensors, which would be loaded instead"):
        model.save_pretrained(tmp_path)
    with pytest.raises(InvalidArgument, match="is a file"):
        model.save_pretrained(tmp_path / "model.safetensors")
    for option in ("variant", "push_to_hub"):
        with pytest.raises(InvalidArgument, match=option):
            model.save_pretrained(tmp_path / "new", **{option: "x"})
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    with pytest.raises(InvalidArgument, match=r"holds no modeling_factorized\.py"):
        pretrained.load(tmp_path)


def test_classes_of_ones_own_are_refused(tmp_path: Path) -> None:
    class Mine(transformers.LlamaForCausalLM):
        pass

    torch.manual_seed(0)
    dense = Mine(transformers.LlamaConfig(**TEXT)).eval()
    sites = find_sites(dense, {"input_ids": IDS}, include="*up_proj")
    built = build(Spectra(dense, sites), Configuration({sites.sites[0].name: ("svd", (3,))}))
    with pytest.raises(InvalidModel, match="Mine is defined in"):
        built.save_pretrained(tmp_path / "net")


def test_copies_save_themselves_and_states_that_are_given(tmp_path: Path) -> None:
    built = factorized("bert")
    copied: Any = copy.deepcopy(built)
    with torch.no_grad():
        copied.bert.encoder.layer[0].output.dense[1].weight.mul_(2.0)
    copied.save_pretrained(tmp_path / "copy")
    state = {name: value.clone() for name, value in copied.state_dict().items()}
    built.save_pretrained(tmp_path / "given", state_dict=state)  # as a trainer does
    for folder in ("copy", "given"):
        loaded = pretrained.load(tmp_path / folder).eval()
        torch.testing.assert_close(answer(loaded, "bert"), answer(copied, "bert"), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(answer(built, "bert"), answer(copied, "bert"), atol=1e-4)


def test_a_network_within_another_and_one_factorized_twice_are_written(tmp_path: Path) -> None:
    built: Any = factorized("llama")
    built.model.save_pretrained(tmp_path / "body")
    body = pretrained.load(tmp_path / "body").eval()
    with torch.no_grad():
        torch.testing.assert_close(body(IDS).last_hidden_state, built.model(IDS).last_hidden_state, rtol=1e-6, atol=1e-6)
    sites = find_sites(built, {"input_ids": IDS}, include="*up_proj.1")
    again: Any = build(Spectra(built, sites), Configuration({sites.sites[0].name: ("svd", (2,))}))
    again.save_pretrained(tmp_path / "twice")
    loaded = pretrained.load(tmp_path / "twice").eval()
    torch.testing.assert_close(answer(loaded, "llama"), answer(again, "llama"), rtol=1e-6, atol=1e-6)


def test_an_export_is_a_folder_of_transformers_and_loads_onto_the_dense_network_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense, example = llama().eval(), NETWORKS["llama"][1]
    configuration = Configuration({"model.embed_tokens": ("svd", (5,)), "model.layers.0.mlp.up_proj": ("svd", (3,))})
    built = build(Spectra(dense, find_sites(dense, example)), configuration)
    manifest = {"configuration": {site: [name, list(rank)] for site, name, rank in configuration.choices}}
    folder = export.save(built, tmp_path / "net", manifest=manifest, example=example)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "generation_config.json", "manifest.json", "model.factorized.safetensors", "modeling_factorized.py",
    ]  # fmt: skip
    assert export.read_manifest(folder)["loads"] == {"without_ranksearch": "AutoModelForCausalLM.from_pretrained"}
    for loaded in (pretrained.load(folder).eval(), export.load(folder, llama())):
        assert torch.equal(answer(loaded, "llama"), answer(built.eval(), "llama"))
    export.save(built, folder, manifest=manifest, example=example, force=True)  # an export still, and replaced as one


def test_a_class_of_ones_own_is_exported_with_code_for_the_dense_network(tmp_path: Path) -> None:
    class Mine(transformers.LlamaForCausalLM):
        pass

    torch.manual_seed(0)
    dense, example = Mine(transformers.LlamaConfig(**TEXT)).eval(), NETWORKS["llama"][1]
    built = build(Spectra(dense, find_sites(dense, example)), Configuration({"model.layers.0.mlp.up_proj": ("svd", (3,))}))
    manifest = {"configuration": {"model.layers.0.mlp.up_proj": ["svd", [3]]}}
    folder = export.save(built, tmp_path / "net", manifest=manifest, example=example)
    assert {"model.safetensors", "modeling.py"} <= {path.name for path in folder.iterdir()}
    assert export.read_manifest(folder)["loads"] == {"without_ranksearch": "modeling.py: load(network)"}


def test_a_merged_network_is_a_native_one(tmp_path: Path) -> None:
    built = factorized("llama")
    torch.manual_seed(0)
    dense, example = llama().eval(), NETWORKS["llama"][1]
    sites = find_sites(dense, example)
    merged = merge.merged(built, dense, sites, [site.name for site in sites], example)
    folder = export.save(merged, tmp_path / "net", manifest={"configuration": {}}, example=example)
    native = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    assert native.lm_head.weight is native.model.embed_tokens.weight
    torch.testing.assert_close(answer(native, "llama"), answer(built, "llama"), rtol=1e-4, atol=1e-5)


def test_other_networks_and_dense_ones_are_left_alone() -> None:
    dense = llama().eval()
    sites = find_sites(dense, {"input_ids": IDS})
    assert "save_pretrained" not in vars(build(Spectra(dense, sites), Configuration({})))
    plain = nn.Sequential(nn.Linear(8, 8)).eval()
    built = build(Spectra(plain, find_sites(plain, torch.ones(1, 8))), Configuration({"0": ("svd", (2,))}))
    assert "save_pretrained" not in vars(built)
