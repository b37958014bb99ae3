"""The networks that latency is measured on: with trained weights where there are some, else those that torch draws."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.evaluation import Fidelity
from ranksearch.space import SpaceSpec, mixture, named
from ranksearch.tasks import Classification
from ranksearch.tasks.images import cifar10
from ranksearch.tasks.networks import cifar_resnet, load_weights
from search_spaces import bert

TOKENS = 128  # of a sentence
HIDDEN, MLP, HEADS, BLOCKS = 2048, 5632, 16, 2  # of the decoder: the shapes of a language model of 1 B parameters


@dataclass(frozen=True)
class Subject:
    """A network that is to be faster.

    Attributes:
        model: in evaluation mode, float32.
        example: one example.
        space: which layers, and which types.
        task: what accuracy is measured by; None where the weights are random, and accuracy means nothing.
        fidelity: of accuracies.
    """

    model: nn.Module
    example: Any
    space: SpaceSpec
    task: Classification | None = None
    fidelity: Fidelity = field(default_factory=Fidelity)

    def on(self, device: str) -> Subject:
        """With the model on a device, convolutions in channels last."""
        return replace(self, model=_ordered(self.model.to(device)))

    def ready(self, model: nn.Module, dtype: torch.dtype) -> nn.Module:
        """A network built from this one as it is timed."""
        return _ordered(model.eval().to(dtype))


def _ordered(model: nn.Module) -> nn.Module:
    if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return model
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def resnet20(given: argparse.Namespace) -> Subject:
    """Of CIFAR-10, trained."""
    task = cifar10(given.data)
    model = load_weights(cifar_resnet(20), given.weights).eval()
    return Subject(model, task.example(), mixture(), task, Fidelity(epochs=0, recalibration=8, reconstruction=4))


def minilm(given: argparse.Namespace) -> Subject:
    """Of sentences, with a probe for their sentiment. The tables and the probe stay."""
    from ranksearch.home import home
    from ranksearch.tasks.text import SentenceClassifier, fit_probe, pretrained_encoder, sentences

    network, tokenizer = pretrained_encoder(given.encoder)
    task = sentences(given.data / "tweets.parquet", tokenizer, length=48)
    model = SentenceClassifier(network, task.classes).eval()
    fit_probe(model, task, cache=home() / "cache")
    vocabulary: int = network.config.vocab_size  # type: ignore[union-attr,assignment]
    example = torch.randint(1, vocabulary, (1, TOKENS))
    return Subject(model, example, bert.space(vocabulary=False, round_to=1), task, Fidelity(epochs=0, recalibration=0, reconstruction=8))


def resnet50(_given: argparse.Namespace) -> Subject:
    """Of images of 224 x 224 pixels."""
    types = named("svd", "svd_in", "spatial", "spatial_t", "tucker2", "grouped_svd")
    return Subject(_ResNet50().eval(), torch.randn(1, 3, 224, 224), SpaceSpec(types, round_to=8))


def decoder(_given: argparse.Namespace) -> Subject:
    """Blocks of a large language model, on 512 tokens."""
    return Subject(_Decoder().eval(), torch.randn(1, 512, HIDDEN), SpaceSpec(named("svd"), round_to=8))


SUBJECTS: Mapping[str, Callable[[argparse.Namespace], Subject]] = {
    subject.__name__: subject for subject in (resnet20, resnet50, minilm, decoder)
}  # fmt: skip


class _Bottleneck(nn.Module):
    def __init__(self, c_in: int, width: int, stride: int) -> None:
        super().__init__()
        c_out = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(c_in, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, c_out, 1, bias=False), nn.BatchNorm2d(c_out)
        short = [] if c_in == c_out and stride == 1 else [nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)]
        self.shortcut = nn.Sequential(*short)

    def forward(self, x: Tensor) -> Tensor:  # shape: (n, c, h, w)
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class _ResNet50(nn.Module):
    """He et al. 2016, table 1, the strides in the 3 x 3 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        blocks, c_in = [], 64
        for count, width, stride in ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2)):
            for k in range(count):
                blocks.append(_Bottleneck(c_in, width, stride if k == 0 else 1))
                c_in = 4 * width
        self.blocks, self.linear = nn.Sequential(*blocks), nn.Linear(c_in, 1000)

    def forward(self, x: Tensor) -> Tensor:  # shape: (n, 3, h, w)
        out = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.linear(self.blocks(out).mean((2, 3)))


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(4))
        self.gate_proj, self.up_proj = nn.Linear(HIDDEN, MLP, bias=False), nn.Linear(HIDDEN, MLP, bias=False)
        self.down_proj = nn.Linear(MLP, HIDDEN, bias=False)
        self.before, self.after = nn.RMSNorm(HIDDEN), nn.RMSNorm(HIDDEN)

    def forward(self, x: Tensor) -> Tensor:  # shape: (n, tokens, HIDDEN)
        y = self.before(x)
        heads = [project(y).unflatten(-1, (HEADS, -1)).transpose(1, 2) for project in (self.q_proj, self.k_proj, self.v_proj)]
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.o_proj(mixed)
        y = self.after(x)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))


class _Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(_Block() for _ in range(BLOCKS)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)
