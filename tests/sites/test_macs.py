"""Multiply-adds against counts by hand, for every row of docs/models.md."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.errors import InvalidArgument
from ranksearch.sites import find_sites
from ranksearch.sites.macs import MacCounter, looks_like_a_product

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


class Attention(nn.Module):
    """Queries of ``heads`` heads, keys and values of ``groups``."""

    def __init__(self, d: int, heads: int, groups: int, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.groups, self.causal = heads, groups, causal
        self.q, self.out = nn.Linear(d, d), nn.Linear(d, d)
        self.kv = nn.Linear(d, 2 * d * groups // heads)

    def forward(self, x: Tensor) -> Tensor:
        split = [t.unflatten(-1, (-1, x.shape[-1] // self.heads)).transpose(1, 2) for t in (self.q(x), *self.kv(x).chunk(2, -1))]
        y = F.scaled_dot_product_attention(*split, is_causal=self.causal, enable_gqa=self.groups != self.heads)
        return self.out(y.transpose(1, 2).flatten(2))


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(10, 12)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state[0]


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.form, self.scale = nn.Bilinear(5, 6, 7), nn.Parameter(torch.randn(7, 7))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = self.form(x, y)
        return torch.stack([torch.addmv(row, self.scale, row) for row in z])  # a matrix-vector product for each


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        ring = torch.stack([torch.arange(5), (torch.arange(5) + 1) % 5])
        return torch.sparse.mm(torch.sparse_coo_tensor(ring, torch.ones(5), (5, 5)), self.lift(x))


def transformers_model(kind: str, **config: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    return getattr(transformers, kind)(getattr(transformers, CONFIGS[kind])(**config)).eval()


CONFIGS = {
    "BertModel": "BertConfig", "GPT2LMHeadModel": "GPT2Config", "LlamaForCausalLM": "LlamaConfig", "ViTModel": "ViTConfig",
    "MixtralForCausalLM": "MixtralConfig", "T5ForConditionalGeneration": "T5Config", "WhisperModel": "WhisperConfig",
}  # fmt: skip
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = {**SMALL, "vocab_size": 50, "max_position_embeddings": 32}
NO_TOKENS = {"bos_token_id": None, "eos_token_id": None}
WHISPER = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 50, "num_mel_bins": 8, "max_source_positions": 10,
    "max_target_positions": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(0, 50, (batch, length), generator=torch.Generator().manual_seed(0))


def block(length: int, d: int, hidden: int, *, keys: int | None = None, kv: int | None = None, up: int = 1) -> int:
    """A transformer block: projections of queries, outputs, keys and values (``kv`` columns each), the two products of attention with
    ``keys`` keys, and a feed-forward part of ``up`` matrices up and one down."""
    keys, kv = keys or length, kv or d
    return 2 * length * d * d + 2 * keys * d * kv + 2 * length * keys * d + (up + 1) * length * d * hidden


@dataclass(frozen=True)
class Row:
    """One architecture: how it is made, its input, and its multiply-adds for one example, counted by hand."""

    model: Callable[[], nn.Module]
    example: Callable[[], Any]
    macs: int
    batch_dim: int = 0


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8), nn.Conv2d(8, 16, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


ROWS = {
    "CNN": Row(conv_net, lambda: torch.randn(2, 3, 8, 8), 64 * 8 * 27 + 16 * 8 * 9 + 16 * 16 * 8 + 160),
    "dilated Conv1d": Row(
        lambda: nn.Sequential(nn.Conv1d(4, 6, 3, dilation=2)), lambda: torch.randn(2, 4, 20), (20 - 4) * 6 * 4 * 3
    ),
    "Conv3d": Row(
        lambda: nn.Sequential(nn.Conv3d(2, 6, 3, groups=2)), lambda: torch.randn(2, 2, 5, 6, 7), 3 * 4 * 5 * 6 * 1 * 27
    ),
    "ConvTranspose2d": Row(
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)), lambda: torch.randn(2, 4, 5, 5), 25 * 4 * 3 * 9
    ),
    "ConvTranspose1d": Row(
        lambda: nn.Sequential(nn.ConvTranspose1d(4, 6, 5, stride=3)), lambda: torch.randn(2, 4, 7), 7 * 4 * 6 * 5
    ),
    "LSTM": Row(
        lambda: Recurrent(nn.LSTM(10, 12, 2, bidirectional=True, batch_first=True), 24),
        lambda: torch.randn(3, 7, 10), 2 * 7 * 4 * 12 * (10 + 12) + 2 * 7 * 4 * 12 * (24 + 12) + 24 * 4,
    ),
    "LSTM with projections": Row(
        lambda: Recurrent(nn.LSTM(10, 12, proj_size=5, batch_first=True), 5),
        lambda: torch.randn(3, 7, 10), 7 * 4 * 12 * (10 + 5) + 7 * 12 * 5 + 5 * 4,
    ),
    "GRU": Row(
        lambda: Recurrent(nn.GRU(10, 12, batch_first=True), 12), lambda: torch.randn(3, 7, 10), 7 * 3 * 12 * (10 + 12) + 12 * 4
    ),
    "RNN": Row(
        lambda: Recurrent(nn.RNN(10, 12, batch_first=True), 12), lambda: torch.randn(3, 7, 10), 7 * 12 * (10 + 12) + 12 * 4
    ),
    "LSTMCell": Row(Cells, lambda: torch.randn(3, 7, 10), 7 * 4 * 12 * (10 + 12)),
    "Bilinear, matrix times vector": Row(Pairs, lambda: (torch.randn(3, 5), torch.randn(3, 6)), 5 * 6 * 7 + 7 * 7),
    "sparse graph product": Row(Graph, lambda: torch.randn(5, 6), (5 * 6 * 8 + 5 * 8) // 5),
    "attention": Row(lambda: Attention(16, 2, 2), lambda: torch.randn(2, 20, 16), 4 * 20 * 256 + 2 * 400 * 16),
    "causal attention": Row(lambda: Attention(16, 2, 2, causal=True), lambda: torch.randn(2, 20, 16), 4 * 20 * 256 + 2 * 400 * 16),
    "grouped-query attention": Row(
        lambda: Attention(16, 4, 2), lambda: torch.randn(2, 20, 16), 2 * 20 * 256 + 20 * 16 * 16 + 2 * 400 * 16
    ),
    "TransformerEncoder": Row(
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2, enable_nested_tensor=False),
        lambda: torch.randn(2, 20, 16), 2 * block(20, 16, 32),
    ),
    "TransformerEncoder, sequence first": Row(
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 2, enable_nested_tensor=False),
        lambda: torch.randn(20, 3, 16), 2 * block(20, 16, 32), batch_dim=1,
    ),
    "BERT": Row(
        lambda: transformers_model("BertModel", **TEXT), lambda: {"input_ids": tokens(2, 7)}, 2 * block(7, 16, 32) + 16 * 16
    ),
    "GPT-2": Row(
        lambda: transformers_model("GPT2LMHeadModel", n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=32, **NO_TOKENS),
        lambda: {"input_ids": tokens(2, 7)}, 2 * block(7, 16, 64) + 7 * 16 * 50,
    ),
    "Llama, grouped queries": Row(
        lambda: transformers_model("LlamaForCausalLM", **TEXT, num_key_value_heads=1),
        lambda: {"input_ids": tokens(1, 7)}, 2 * block(7, 16, 32, kv=8, up=2) + 7 * 16 * 50,
    ),
    "ViT": Row(
        lambda: transformers_model("ViTModel", **SMALL, image_size=16, patch_size=4),
        lambda: {"pixel_values": torch.randn(2, 3, 16, 16)}, 16 * 16 * 3 * 16 + 2 * block(17, 16, 32) + 16 * 16,
    ),
    "T5": Row(
        lambda: transformers_model("T5ForConditionalGeneration", d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=50),
        lambda: {"input_ids": tokens(1, 7), "decoder_input_ids": tokens(1, 5)},
        block(7, 16, 32) + block(5, 16, 32) + block(5, 16, 0, keys=7) + 5 * 16 * 50,
    ),
    "Whisper": Row(
        lambda: transformers_model("WhisperModel", **WHISPER),
        lambda: {"input_features": torch.randn(1, 8, 20), "decoder_input_ids": tokens(1, 5)},
        20 * 16 * 8 * 3 + 10 * 16 * 16 * 3 + block(10, 16, 32) + block(5, 16, 32) + block(5, 16, 0, keys=10),
    ),
    "Mixtral, 2 of 4 experts": Row(
        lambda: transformers_model("MixtralForCausalLM", **TEXT, num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2),
        lambda: {"input_ids": tokens(1, 7)},
        2 * (block(7, 16, 0, kv=8) + 7 * 16 * 4 + 2 * 3 * 7 * 16 * 32) + 7 * 16 * 50,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_counts_are_those_by_hand(name: str) -> None:
    row = ROWS[name]
    sites = find_sites(row.model().eval(), row.example(), batch_dim=row.batch_dim)
    assert sites.total.macs == row.macs
    assert not sites.uncounted


def test_the_page_about_models_has_these_rows() -> None:
    listed = re.findall(r"^\| ([^|]+?) \| ([\d,]+) \|", PAGE.read_text(), flags=re.MULTILINE)
    assert {name: int(macs.replace(",", "")) for name, macs in listed} == {name: row.macs for name, row in ROWS.items()}


@pytest.mark.parametrize("kind", ["eager", "batched_mm", "grouped_mm"])
def test_experts_are_counted_by_active_tokens_however_they_are_run(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(**TEXT, num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2)
    try:
        model = transformers.MixtralForCausalLM._from_config(config, experts_implementation=kind)
    except (TypeError, ValueError) as error:
        pytest.skip(f"this version of transformers has no experts_implementation={kind!r}: {error}")
    assert find_sites(model.eval(), {"input_ids": tokens(1, 7)}).total.macs == ROWS["Mixtral, 2 of 4 experts"].macs


def counted(function: Callable[[], Any]) -> MacCounter:
    with torch.no_grad(), MacCounter() as counter:
        function()
    return counter


R = torch.randn
OPERATORS = {
    "mm": (lambda: R(3, 4) @ R(4, 5), 60),
    "mv": (lambda: R(3, 4) @ R(4), 12),
    "dot": (lambda: R(4) @ R(4), 4),
    "batched": (lambda: R(2, 3, 4) @ R(4, 5), 120),
    "einsum": (lambda: torch.einsum("bij,bkj->bik", R(2, 3, 4), R(2, 5, 4)), 120),
    "baddbmm": (lambda: torch.baddbmm(R(2, 3, 5), R(2, 3, 4), R(2, 4, 5)), 120),
    "addbmm": (lambda: torch.addbmm(R(3, 5), R(2, 3, 4), R(2, 4, 5)), 120),
    "in place": (lambda: R(3, 5).addmm_(R(3, 4), R(4, 5)), 60),
    "attention": (lambda: F.scaled_dot_product_attention(R(2, 3, 5, 8), R(2, 3, 7, 8), R(2, 3, 7, 6)), 2 * 3 * 5 * 7 * (8 + 6)),
    "fused attention": (lambda: F.scaled_dot_product_attention(R(2, 3, 5, 8), R(2, 3, 7, 8), R(2, 3, 7, 8)), 2 * 3 * 5 * 7 * 16),
    "packed sequence": (
        lambda: nn.LSTM(10, 12)(nn.utils.rnn.pack_padded_sequence(R(7, 3, 10), torch.tensor([7, 5, 2]))), 14 * 4 * 12 * 22
    ),
    "packed attention": (lambda: nn.MultiheadAttention(8, 2, batch_first=True).eval()(*[R(2, 5, 8)] * 3), 2 * 5 * 64 * 4 + 2 * 2 * 25 * 8),
    "fused encoder": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()(R(2, 5, 8)),
        2 * 5 * 64 * 4 + 2 * 2 * 25 * 8 + 2 * 5 * 8 * 16 * 2,
    ),
    "grouped rows": (lambda: torch._grouped_mm(R(6, 8).bfloat16(), R(2, 8, 16).bfloat16(), offs=torch.tensor([2, 5]).int()), 5 * 8 * 16),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name: str) -> None:
    function, macs = OPERATORS[name]
    counter = counted(function)
    assert counter.total == macs and not counter.uncounted


def test_inference_mode_counts_the_same() -> None:
    with torch.inference_mode():
        assert counted(lambda: F.linear(R(2, 3, 4), R(5, 4), R(5))).total == 120


class Spectral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(self.mix(x)).real


def test_products_without_a_rule_are_named() -> None:
    sites = find_sites(Spectral(), torch.randn(2, 8))
    assert sites.total.macs == 64 and sites.uncounted == ("aten::_fft_r2c",)


def test_which_names_look_like_products() -> None:
    products = ("aten::_scaled_dot_product_new_attention", "aten::conv9d", "torchvision::deform_conv2d", "aten::_fft_c2c", "mine::anything")
    others = ("add", "softmax", "upsample_bilinear2d", "_thnn_fused_lstm_cell", "linalg_vector_norm")
    assert all(map(looks_like_a_product, products)) and not any(looks_like_a_product(f"aten::{name}") for name in others)


def test_what_is_done_once_for_all_examples_asks_for_a_batch_of_one() -> None:
    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries, self.f = nn.Parameter(torch.randn(1, 3, 5)), nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.f(self.queries) + x

    with pytest.raises(InvalidArgument, match="batch of 1"):
        find_sites(Once(), torch.randn(4, 3, 5))
    assert find_sites(Once(), torch.randn(1, 3, 5)).total.macs == 75
