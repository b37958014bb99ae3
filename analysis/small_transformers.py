"""The networks that `architectures.py` asks: of transformers, small, with random weights; nothing is downloaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ranksearch.sites import unpack_experts

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
