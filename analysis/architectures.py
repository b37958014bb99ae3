"""Networks of transformers, small and with random weights: which layers are sites, and whether everything works on the network in which
all of them are factorized. Prints the table of docs/models.md; nothing is downloaded.

    OMP_NUM_THREADS=1 python analysis/architectures.py [--only bert llama] [--ask ONNX]

Every site is factorized by ``svd`` at half of its full rank, and held against the dense network with the composed weights in
the place of its own."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.networks import export, pretrained
from ranksearch.networks.programs import ONNX, PROGRAM, write
from ranksearch.networks.surgery import build
from ranksearch.sites import evaluating, find_sites, run, tensors_of, unpack_experts
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra

IDS = (torch.arange(24).reshape(2, 12) * 7) % 60 + 3
IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)

# the sizes of most configurations
SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
TEXT = {**SIZES, "max_position_embeddings": 32}
CAUSAL = {**TEXT, **TOKENS}
GROUPED = {**CAUSAL, "num_key_value_heads": 2}
VISION = {**{k: v for k, v in SIZES.items() if k != "vocab_size"}, "image_size": 32, "patch_size": 8}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A small network of transformers: its class, its configuration, the input of a forward pass."""
    model: str  # class of the network
    options: Mapping[str, Any]
    inputs: Mapping[str, Tensor] = dataclasses.field(default_factory=lambda: {"input_ids": IDS})
    generates: bool = False
    unpacked: bool = False  # its fused experts as layers of their own

    def make(self) -> nn.Module:
        """The network, random weights from one seed, in evaluation mode. AttributeError: this version of transformers lacks it."""
        model = getattr(transformers, self.model)
        torch.manual_seed(0)
        made = model(model.config_class(**self.options)).eval()
        return unpack_experts(made) if self.unpacked else made


def _causal(model: str, **options: Any) -> Architecture:
    return Architecture(model, options, generates=True)


def _experts(model: str, **options: Any) -> Architecture:
    # one example: the tokens of an expert do not divide by a batch
    return Architecture(model, {**GROUPED, "num_experts_per_tok": 2, **options}, {"input_ids": IDS[:1]}, generates=True, unpacked=True)


def _text(model: str, **options: Any) -> Architecture:
    return Architecture(model, {**TEXT, **options})


def _image(model: str, **options: Any) -> Architecture:
    return Architecture(model, options, {"pixel_values": IMAGES})


def _translates(model: str, **options: Any) -> Architecture:
    return Architecture(model, options, {"input_ids": IDS, "decoder_input_ids": IDS[:, :5]}, generates=True)


_BART = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 32, "decoder_start_token_id": 1, **TOKENS,
}  # fmt: skip
_T5 = {
    "vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 4,
    "decoder_start_token_id": 0,
}  # fmt: skip
_GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, **TOKENS}
_AUDIO = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 32, "conv_dim": (16, 16),
    "conv_stride": (4, 2), "conv_kernel": (8, 3), "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
_WHISPER = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 32,
    "decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None, **TOKENS,
}  # fmt: skip
_TOWERS = {"text_config": {**TEXT, **TOKENS}, "vision_config": dict(VISION), "projection_dim": 16}
_PAIR = {"input_ids": IDS, "pixel_values": IMAGES}
_WAVES = {"input_values": torch.linspace(-1, 1, 2 * 400).reshape(2, 400).sin()}
_SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}

ARCHITECTURES: dict[str, Architecture] = {
    "bert": _text("BertForMaskedLM"),
    "roberta": _text("RobertaForMaskedLM"),
    "distilbert": Architecture(
        "DistilBertForMaskedLM", {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48,
        "max_position_embeddings": 32},
    ),
    "albert": _text("AlbertForMaskedLM", embedding_size=16),
    "electra": _text("ElectraForMaskedLM", embedding_size=16),
    "deberta-v2": _text("DebertaV2ForMaskedLM", relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "mpnet": _text("MPNetForMaskedLM"),
    "camembert": _text("CamembertForMaskedLM"),
    "xlm-roberta": _text("XLMRobertaForMaskedLM"),
    "modernbert": _text("ModernBertForMaskedLM", **TOKENS, cls_token_id=1, sep_token_id=2),
    "roformer": _text("RoFormerForMaskedLM", embedding_size=32),
    "squeezebert": _text(
        "SqueezeBertForMaskedLM", embedding_size=32, q_groups=2, k_groups=2, v_groups=2, post_attention_groups=1, intermediate_groups=2,
        output_groups=2,
    ),
    "convbert": _text("ConvBertForMaskedLM", embedding_size=32),
    "fnet": Architecture("FNetForMaskedLM", {k: v for k, v in TEXT.items() if k != "num_attention_heads"}),
    "longformer": _text("LongformerForMaskedLM", attention_window=4),
    "gpt2": _causal("GPT2LMHeadModel", **_GPT2),
    "gpt-neo": _causal(
        "GPTNeoForCausalLM", vocab_size=64, hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]],
        intermediate_size=48, max_position_embeddings=32, **TOKENS,
    ),
    "gpt-neox": _causal("GPTNeoXForCausalLM", **CAUSAL),
    "gpt-j": _causal("GPTJForCausalLM", **_GPT2, rotary_dim=4),
    "gpt-bigcode": _causal("GPTBigCodeForCausalLM", **_GPT2),
    "codegen": _causal("CodeGenForCausalLM", **{**_GPT2, "n_head": 4}, rotary_dim=4),
    "opt": _causal(
        "OPTForCausalLM", vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48,
        max_position_embeddings=32, word_embed_proj_dim=16, **TOKENS,
    ),
    "bloom": _causal("BloomForCausalLM", vocab_size=64, hidden_size=32, n_layer=2, n_head=4, **TOKENS),
    "falcon": _causal("FalconForCausalLM", **CAUSAL),
    "mpt": _causal("MptForCausalLM", vocab_size=64, d_model=32, n_layers=2, n_heads=4, max_seq_len=32, **TOKENS),
    "llama": _causal("LlamaForCausalLM", **GROUPED),
    "llama, tied": _causal("LlamaForCausalLM", **GROUPED, tie_word_embeddings=True),
    "mistral": _causal("MistralForCausalLM", **GROUPED),
    "qwen2": _causal("Qwen2ForCausalLM", **GROUPED),
    "qwen3": _causal("Qwen3ForCausalLM", **GROUPED, head_dim=8),
    "gemma": _causal("GemmaForCausalLM", **GROUPED, head_dim=8),
    "gemma2": _causal("Gemma2ForCausalLM", **GROUPED, head_dim=8),
    "gemma3": _causal("Gemma3ForCausalLM", **GROUPED, head_dim=8),
    "phi": _causal("PhiForCausalLM", **CAUSAL),
    "phi3": _causal("Phi3ForCausalLM", **GROUPED),
    "stablelm": _causal("StableLmForCausalLM", **GROUPED),
    "olmo2": _causal("Olmo2ForCausalLM", **GROUPED),
    "granite": _causal("GraniteForCausalLM", **GROUPED),
    "cohere": _causal("CohereForCausalLM", **GROUPED),
    "smollm3": _causal("SmolLM3ForCausalLM", **GROUPED),
    "starcoder2": _causal("Starcoder2ForCausalLM", **GROUPED),
    "mixtral": _experts("MixtralForCausalLM", num_local_experts=4),
    "qwen2-moe": _experts("Qwen2MoeForCausalLM", num_experts=4, moe_intermediate_size=24, shared_expert_intermediate_size=24),
    "qwen3-moe": _experts("Qwen3MoeForCausalLM", num_experts=4, moe_intermediate_size=24, head_dim=8),
    "olmoe": _experts("OlmoeForCausalLM", num_experts=4),
    "gpt-oss": _experts("GptOssForCausalLM", num_local_experts=4, head_dim=8),
    "granite-moe": _experts("GraniteMoeForCausalLM", num_local_experts=4),
    "phi-moe": _experts("PhimoeForCausalLM", num_local_experts=4),
    "deepseek-v3": _experts(
        "DeepseekV3ForCausalLM", num_key_value_heads=4, n_routed_experts=4, n_group=2, topk_group=1, moe_intermediate_size=24,
        q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, first_k_dense_replace=1,
    ),
    "jamba": _experts(
        "JambaForCausalLM", num_experts=4, mamba_d_state=4, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
        expert_layer_offset=1, use_mamba_kernels=False,
    ),
    "mamba": _causal("MambaForCausalLM", vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8, **TOKENS),
    "mamba2": _causal(
        "Mamba2ForCausalLM", vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8, head_dim=8, num_heads=8, n_groups=2,
        chunk_size=8, **TOKENS,
    ),
    "rwkv": _causal(
        "RwkvForCausalLM", vocab_size=64, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32, intermediate_size=48, **TOKENS,
    ),
    "recurrent-gemma": _causal("RecurrentGemmaForCausalLM", **GROUPED, lru_width=32, block_types=["recurrent", "attention"], head_dim=8),
    "t5": _translates("T5ForConditionalGeneration", **_T5),
    "mt5": _translates("MT5ForConditionalGeneration", **_T5),
    "bart": _translates("BartForConditionalGeneration", **_BART),
    "mbart": _translates("MBartForConditionalGeneration", **_BART),
    "pegasus": _translates("PegasusForConditionalGeneration", **_BART),
    "marian": _translates("MarianMTModel", **_BART),
    "m2m-100": _translates("M2M100ForConditionalGeneration", **_BART),
    "whisper": Architecture(
        "WhisperForConditionalGeneration", _WHISPER, {"input_features": torch.linspace(-1, 1, 2 * 8 * 40).reshape(2, 8, 40),
        "decoder_input_ids": IDS[:, :5]}, generates=True,
    ),
    "wav2vec2": Architecture("Wav2Vec2ForCTC", _AUDIO, _WAVES),
    "hubert": Architecture("HubertForCTC", _AUDIO, _WAVES),
    "vit": _image("ViTForImageClassification", **VISION),
    "deit": _image("DeiTForImageClassification", **VISION),
    "beit": _image("BeitForImageClassification", **VISION),
    "dinov2": _image("Dinov2ForImageClassification", **{**VISION, "mlp_ratio": 2}),
    "dinov3": _image("DINOv3ViTModel", **VISION),
    "swin": _image("SwinForImageClassification", **_SWIN),
    "swinv2": _image("Swinv2ForImageClassification", **_SWIN),
    "convnext": _image("ConvNextForImageClassification", hidden_sizes=[16, 32], depths=[1, 1], num_stages=2),
    "resnet": _image("ResNetForImageClassification", embedding_size=8, hidden_sizes=[32, 32], depths=[1, 1]),
    "regnet": _image("RegNetForImageClassification", embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], groups_width=8),
    "mobilenet-v1": _image("MobileNetV1ForImageClassification", image_size=32, depth_multiplier=0.25),
    "mobilenet-v2": _image("MobileNetV2ForImageClassification", image_size=32, depth_multiplier=0.25),
    "mobilevit": _image(
        "MobileViTForImageClassification", image_size=32, patch_size=2, hidden_sizes=[16, 16, 16], neck_hidden_sizes=[8, 8, 16, 16, 16,
        16, 32], num_attention_heads=2, mlp_ratio=2.0,
    ),
    "segformer": _image(
        "SegformerForSemanticSegmentation", num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[16, 32],
        patch_sizes=[7, 3], strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16,
    ),
    "clip": Architecture("CLIPModel", _TOWERS, _PAIR),
    "siglip": Architecture("SiglipModel", _TOWERS, _PAIR),
    "efficientnet": _image(
        "EfficientNetForImageClassification", image_size=32, width_coefficient=0.25, depth_coefficient=0.1, hidden_dim=320,
    ),
    "poolformer": _image(
        "PoolFormerForImageClassification", num_encoder_blocks=2, depths=[1, 1], hidden_sizes=[16, 32], patch_sizes=[7, 3], strides=[4,
        2], padding=[2, 1],
    ),
    "levit": _image(
        "LevitForImageClassification", image_size=32, hidden_sizes=[16, 24, 32], num_attention_heads=[2, 2, 2], depths=[1, 1, 1],
        key_dim=[8, 8, 8],
    ),
    "pvt-v2": _image(
        "PvtV2ForImageClassification", image_size=32, num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[16, 32],
        patch_sizes=[7, 3], strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2],
    ),
    "vit-mae": _image("ViTMAEModel", **VISION, mask_ratio=0.0),
}  # fmt: skip


# -- what is asked of each ---------------------------------------------------------------------------------------------


class Check:
    """One network with every site factorized, and the dense network with the weights that the factors stand for in the place of its own.
    Methods raise AssertionError where the two differ; ``program`` and ``compiled`` hold a network against itself. With ``dense`` they
    ask the same of the composed network alone."""

    def __init__(self, architecture: Architecture, decomposition: str = "svd") -> None:
        self.architecture, self.decomposition = architecture, decomposition
        self.model, self.example = architecture.make(), dict(architecture.inputs)
        self.sites = find_sites(self.model, self.example)
        self.spectra = Spectra(self.model, self.sites, [d for d in DECOMPOSITIONS if d.name == decomposition])
        self.configuration = self._half()
        self.built, self.dense = build(self.spectra, self.configuration), self._composed()

    def _half(self) -> Configuration:
        """Every site at half of its full rank."""
        decomposition = self.spectra.decomposition(self.decomposition)
        ranks = {s.name: decomposition.ranks(s) for s in self.sites if decomposition.undefined(s) is None}
        return Configuration({name: (self.decomposition, tuple(map(int, r[(len(r) - 1) // 2]))) for name, r in ranks.items()})

    def _composed(self) -> nn.Module:
        model = copy.deepcopy(self.model)
        for name, decomposition, rank in self.configuration.choices:
            site = self.sites[name]
            weight = self.spectra.decomposition(decomposition).compose(site, self.spectra.factors(site, decomposition, rank))
            parameter = model.get_submodule(site.name).get_parameter("weight")
            stored = weight.reshape(site.c_out, -1).T if site.kind in ("embedding", "transformers_conv1d") else weight
            with torch.no_grad():
                parameter.copy_(stored.reshape(parameter.shape))
        return model

    def forward(self) -> None:
        """The outputs are those of the composed weights."""
        same(outputs(self.built, self.example), outputs(self.dense, self.example))

    def costs(self) -> None:
        """Parameters and MACs of what was built are those that the options say; of one example, since types that put their weight
        together do so once for a batch."""
        one = {name: value[:1] for name, value in self.example.items()}
        sites = find_sites(self.model, one, check=False)
        expected = sites.total
        for name, decomposition, rank in self.configuration.choices:
            expected = expected - sites[name].cost + self.spectra.decomposition(decomposition).cost(sites[name], rank)
        found = find_sites(self.built, one, check=False).total
        assert found == expected, f"{found}, expected {expected}"

    def gradients(self, *, dense: bool = False) -> None:
        """Parameters that are no factors have the gradients of the composed network. The weight W is linear in every factor F, so that
        <dL/dF, F> = <dL/dW, W> for each of them."""
        wanted = gradients(self.dense, self.example)
        if dense:
            return
        got = gradients(self.built, self.example)
        largest = max(float(grad.abs().max()) for grad in wanted.values() if grad.numel())
        common = [name for name in wanted if name in got]
        same([got[name] for name in common], [wanted[name] for name in common], scale=largest)
        built, dense = dict(self.built.named_parameters()), dict(self.dense.named_parameters())
        for name, _, _ in self.configuration.choices:
            weight = f"{self.sites[name].name}.weight"
            if weight not in wanted:
                continue
            along = float((wanted[weight] * dense[weight].detach()).sum())
            factors = [key for key in built if key.startswith(f"{name}.") and key not in dense and not key.endswith("bias")]
            assert factors, f"{name} has no factors"
            for key in factors:
                assert key in got, f"{key} has no gradient"
                scale = max(abs(along), largest * float(dense[weight].detach().norm()))
                assert abs(float((got[key] * built[key].detach()).sum()) - along) <= 1e-4 * scale, f"{key}: its gradient is another"

    def generate(self) -> None:
        """Greedy words are those of the composed network."""
        given = {name: x[:, :4] if name == "input_ids" else x for name, x in self.example.items() if not name.startswith("decoder")}
        with torch.no_grad():
            wanted, got = (m.generate(**given, max_new_tokens=6, min_new_tokens=6, do_sample=False) for m in (self.dense, self.built))
        assert torch.equal(wanted, got), f"{got.tolist()}, expected {wanted.tolist()}"

    def reload(self) -> None:
        """What was written and is read onto a network of other weights computes the same."""
        with tempfile.TemporaryDirectory() as folder:
            target = self._save(self.built, self.configuration, folder, self.example)
            host = self.architecture.make()
            with torch.no_grad():
                for parameter in host.parameters():
                    parameter.add_(0.01)
            loaded = export.load(target, host, self.example)
        same(outputs(loaded, self.example), outputs(self.built, self.example), tolerance=1e-6)

    def pretrained(self) -> None:
        """What ``save_pretrained`` writes is loaded by the code in the folder, with the keys checked, and computes the same."""
        with tempfile.TemporaryDirectory() as folder:
            self.built.save_pretrained(folder)
            loaded = pretrained.load(folder).eval()
        same(outputs(loaded, self.example), outputs(self.built, self.example), tolerance=1e-6)

    def _save(self, model: nn.Module, configuration: Configuration, folder: str, example: Any, **options: Any) -> Path:
        manifest = {"configuration": {s: [d, list(r)] for s, d, r in configuration.choices}}
        return export.save(model, Path(folder) / "net", manifest=manifest, example=example, **options)

    def program(self, *, dense: bool = False) -> None:
        """``torch.export`` with any batch and the other sizes that the network takes, run at several and compared."""
        self._program(PROGRAM, dense=dense)

    def onnx(self, *, dense: bool = False) -> None:
        """The same as an ONNX program, in ONNX Runtime."""
        self._program(ONNX, dense=dense)

    def _program(self, kind: str, *, dense: bool) -> None:
        example = self.example | ({"use_cache": False} if self.architecture.generates else {})  # a cache is no output of a program
        model = copy.deepcopy(self.dense if dense else self.built).eval()
        with tempfile.TemporaryDirectory() as folder:
            facts = write(model, example, Path(folder), torch_export=kind == PROGRAM, onnx=kind == ONNX)
        assert facts["difference"][kind] is not None, "it was not run"

    def compiled(self, *, dense: bool = False) -> None:
        """``torch.compile`` without kernels: the graph is what may break."""
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = self.dense if dense else self.built
        with torch.no_grad():
            got = torch.compile(model, backend="eager")(**self.example)
        same(got, outputs(model, self.example))


def outputs(model: nn.Module, example: Any) -> Any:
    with evaluating(model):
        torch.manual_seed(0)
        return run(model, example)


def gradients(model: nn.Module, example: Any) -> dict[str, Tensor]:
    """Of a sum of all outputs with weights from -1 to 1, by name of the parameter; parameters that get none are left out."""
    model.zero_grad()
    torch.manual_seed(0)
    total: Any = 0.0
    for _, value in tensors_of(run(model, example)):
        if value.is_floating_point() and value.requires_grad:
            total = total + (value * torch.linspace(-1, 1, value.numel()).reshape(value.shape)).sum()
    total.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(got: Any, wanted: Any, *, tolerance: float = 1e-4, scale: float | None = None) -> None:
    """Raises AssertionError where two outputs differ by more than ``tolerance`` of the largest value of each tensor, or of ``scale``."""
    new, old = (list(tensors_of(value)) for value in (got, wanted))
    assert len(new) == len(old), f"{len(new)} tensors, expected {len(old)}"
    for (name, a), (_, b) in zip(new, old, strict=True):
        most = scale if scale is not None else float(b.detach().abs().max()) if b.is_floating_point() and b.numel() else 0.0
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * most, msg=lambda text, name=name: f"{name}: {text}")


# -- the table -----------------------------------------------------------------------------------------------------------

COLUMNS = {
    "outputs": Check.forward, "costs": Check.costs, "gradients": Check.gradients, "generate": Check.generate, "reload": Check.reload,
    "`from_pretrained`": Check.pretrained, "`torch.export`": Check.program, "ONNX": Check.onnx, "`torch.compile`": Check.compiled,
}  # fmt: skip
_ALSO_DENSE = (Check.gradients, Check.program, Check.onnx, Check.compiled)  # what the dense network may fail too


@dataclasses.dataclass(frozen=True)
class Row:
    """What was found for one architecture."""

    name: str
    model: str
    sites: int
    covered: float  # share of the parameters that are in sites
    skipped: str  # the largest of what is left out
    answers: Mapping[str, str]  # by column: "yes", "as dense" or what went wrong


def examined(name: str, decomposition: str = "svd", columns: Sequence[str] = tuple(COLUMNS)) -> Row:
    """Put one architecture to the questions of some columns."""
    architecture = ARCHITECTURES[name]
    check = Check(architecture, decomposition)
    answers = {}
    for column, question in ((name, COLUMNS[name]) for name in columns):
        answers[column] = "" if column == "generate" and not architecture.generates else _answer(check, question)
    total = check.sites.total.params
    left = sorted((s for s in check.sites.skipped if s.params > 0.01 * total), key=lambda s: -s.params)
    kinds = ", ".join(dict.fromkeys(s.type for s in left))
    return Row(name, architecture.model, len(check.sites), sum(s.cost.params for s in check.sites) / total, kinds, answers)


def _answer(check: Check, question: Callable[..., None]) -> str:
    error = _failure(question, check)
    if error is None:
        return "yes"
    if question in _ALSO_DENSE and _failure(question, check, dense=True) is not None:
        return "as dense"
    return f"**{error}**"


def _failure(question: Callable[..., None], *args: Any, **options: Any) -> str | None:
    try:
        question(*args, **options)
    except Exception as error:  # whatever a network says is an answer
        return " ".join(f"{type(error).__name__}: {error}".split())[:160]
    return None


def markdown(rows: Sequence[Row]) -> Iterator[str]:
    """Lines of the table."""
    titles = ["network", "class", "sites", "weights in them", "largest that are left", *rows[0].answers]
    yield f"| {' | '.join(titles)} |"
    yield f"|{' --- |' * len(titles)}"
    for row in rows:
        cells = [row.name, row.model, str(row.sites), f"{row.covered:.0%}", row.skipped, *row.answers.values()]
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(ARCHITECTURES), metavar="NAME", help="these alone; default: all")
    parser.add_argument("--ask", nargs="+", choices=list(COLUMNS), metavar="COLUMN", help="these columns alone; default: all")
    parser.add_argument("--type", default="svd", choices=[d.name for d in DECOMPOSITIONS if d.name != "dense"], help="default: svd")
    options = parser.parse_args()
    rows = []
    for name in options.only or ARCHITECTURES:
        start = time.perf_counter()
        rows.append(examined(name, options.type, options.ask or list(COLUMNS)))
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    print("\n".join(markdown(rows)))
    good = sum(all(answer in ("", "yes", "as dense") for answer in row.answers.values()) for row in rows)
    print(f"\n{good} of {len(rows)} work in all columns (transformers {transformers.__version__}, torch {torch.__version__}).")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    main()
