"""The declared spaces of families: on small untrained networks of each, the layers that stay are those that are meant, every
pattern means some layer, and what is searched can be built."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites, run
from ranksearch.space import SpaceSpec
from ranksearch.space.rules import Where
from ranksearch.space.spectra import Spectra
from ranksearch.studyfile import DeclaredSpace, load_space
from ranksearch.tasks.networks import cifar_resnet

transformers = pytest.importorskip("transformers")
FOLDER = Path(__file__).parents[2] / "search_spaces"
Network = tuple[nn.Module, Any]
IDS = (torch.arange(24).reshape(2, 12) * 7) % 60 + 3
IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
TEXT = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


class Torchvision(nn.Module):
    """What torchvision's VGG and MobileNet have in common."""

    def __init__(self, features: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.features, self.classifier = features, classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # shape: (n, 3, 32, 32) -> (n, 5)
        return self.classifier(self.features(x).flatten(1))


def _vgg(head: nn.Module) -> nn.Module:
    layers: list[nn.Module] = []
    for c_in, c_out in ((3, 8), (8, 16), (16, 16)):
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return Torchvision(nn.Sequential(*layers), head)


def _separable() -> nn.Module:
    """One depthwise separable convolution."""
    parts = (nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 1))
    return Torchvision(nn.Sequential(*parts), nn.Sequential(nn.Dropout(), nn.Linear(16 * 16 * 16, 5)))


def _large_head() -> nn.Module:
    sizes = ((256, 32), (32, 32), (32, 5))
    parts = [part for pair in sizes for part in (nn.Linear(*pair), nn.ReLU(), nn.Dropout())]
    return nn.Sequential(*parts[:7])


class Timm(nn.Module):
    """A vision transformer in the layout of timm, one block."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Sequential()
        self.patch_embed.proj = nn.Conv2d(3, 32, 8, stride=8)
        block = nn.Module()
        block.attn, block.mlp = nn.Module(), nn.Module()
        block.attn.qkv, block.attn.proj = nn.Linear(32, 96), nn.Linear(32, 32)
        block.mlp.fc1, block.mlp.fc2 = nn.Linear(32, 64), nn.Linear(64, 32)
        self.blocks, self.head = nn.ModuleList([block]), nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # shape: (n, 3, 32, 32) -> (n, 5)
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        block: Any = self.blocks[0]
        query, key, value = block.attn.qkv(x).chunk(3, dim=-1)
        x = x + block.attn.proj(nn.functional.scaled_dot_product_attention(query, key, value))
        return self.head((x + block.mlp.fc2(block.mlp.fc1(x).relu())).mean(1))


class TorchvisionNames(nn.Module):
    """What the ends of torchvision's residual networks are called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.layer1, self.fc = nn.Conv2d(3, 16, 7, stride=2), nn.Sequential(nn.Conv2d(16, 16, 3)), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # shape: (n, 3, 32, 32) -> (n, 5)
        return self.fc(self.layer1(self.conv1(x).relu()).mean((2, 3)))


class TorchvisionHead(nn.Module):
    """The one thing in which torchvision's vision transformer differs here: what its classifier is called."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.heads = nn.Linear(32, 32), nn.Sequential()
        self.heads.add_module("head", nn.Linear(32, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # shape: (n, 3, 32, 32) -> (n, 5)
        return self.heads(self.body(x.mean(dim=(1, 2))))


def _whisper() -> Network:
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
    sizes = {f"{half}_{what}": n for half in ("encoder", "decoder") for what, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 64))}
    config = transformers.WhisperConfig(
        vocab_size=64, d_model=32, num_mel_bins=8, max_source_positions=20, max_target_positions=16, pad_token_id=0, suppress_tokens=None,
        begin_suppress_tokens=None, **sizes, **special,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config)
    return model, {"input_features": torch.linspace(-1, 1, 2 * 8 * 40).reshape(2, 8, 40), "decoder_input_ids": IDS}


def _gpt2(kind: str) -> Network:
    config = transformers.GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=1, pad_token_id=0
    )
    return getattr(transformers, kind)(config), {"input_ids": IDS}


def _mobilenet(kind: str) -> Network:
    config = getattr(transformers, f"{kind}Config")(image_size=32, depth_multiplier=0.25, num_labels=5, min_depth=8)
    return getattr(transformers, f"{kind}ForImageClassification")(config), {"pixel_values": IMAGES}


def _bert(kind: str) -> Network:
    config = transformers.BertConfig(**TEXT, max_position_embeddings=16)
    return getattr(transformers, kind)(config), {"input_ids": IDS}


def _llama(tied: bool) -> Network:
    config = transformers.LlamaConfig(**TEXT, num_key_value_heads=2, tie_word_embeddings=tied)
    return transformers.LlamaForCausalLM(config), {"input_ids": IDS}


def _roberta(kind: str) -> Network:
    config = transformers.RobertaConfig(**TEXT, max_position_embeddings=32, num_labels=3)
    return getattr(transformers, kind)(config), {"input_ids": IDS}


def _distilbert(kind: str) -> Network:
    config = transformers.DistilBertConfig(vocab_size=64, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=16)
    return getattr(transformers, kind)(config), {"input_ids": IDS}


def _vit() -> Network:
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8, num_labels=5
    )
    return transformers.ViTForImageClassification(config), {"pixel_values": IMAGES}


def _resnet() -> Network:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[32, 32], depths=[1, 1], num_labels=5)
    return transformers.ResNetForImageClassification(config), {"pixel_values": IMAGES}


# family -> name of a network -> what makes it, and the layers that the default space leaves alone
NETWORKS: Mapping[str, Mapping[str, tuple[Callable[[], Network], set[str]]]] = {
    "cifar_resnet": {
        "ResNet-8": (lambda: (cifar_resnet(8), IMAGES), {"conv1", "linear"}),
        "torchvision": (lambda: (TorchvisionNames(), IMAGES), {"conv1", "fc"}),
    },
    "resnet": {
        "transformers": (_resnet, {"resnet.embedder.embedder.convolution", "classifier.1"}),
        "torchvision": (lambda: (TorchvisionNames(), IMAGES), {"conv1", "fc"}),
    },
    "vgg": {
        "ImageNet": (lambda: (_vgg(_large_head()), IMAGES), {"features.0", "classifier.6"}),
        "CIFAR": (lambda: (_vgg(nn.Linear(256, 5)), IMAGES), {"features.0", "classifier"}),
    },
    "mobilenet": {
        "V1": (lambda: _mobilenet("MobileNetV1"), {"mobilenet_v1.conv_stem.convolution", "classifier"}),
        "V2": (lambda: _mobilenet("MobileNetV2"), {"mobilenet_v2.conv_stem.first_conv.convolution", "classifier"}),
        "torchvision": (lambda: (_separable(), IMAGES), {"features.0", "classifier.1"}),
    },
    "vit": {
        "transformers": (_vit, {"vit.embeddings.patch_embeddings.projection", "classifier"}),
        "timm": (lambda: (Timm(), IMAGES), {"patch_embed.proj", "head"}),
        "torchvision": (lambda: (TorchvisionHead(), IMAGES), {"heads.head"}),
    },
    "bert": {
        "BERT classifier": (
            lambda: _bert("BertForSequenceClassification"),
            {"bert.embeddings.position_embeddings", "bert.embeddings.token_type_embeddings", "bert.pooler.dense", "classifier"},
        ),
        "BERT masked": (
            lambda: _bert("BertForMaskedLM"),
            {"bert.embeddings.position_embeddings", "bert.embeddings.token_type_embeddings", "cls.predictions.transform.dense"},
        ),
        "RoBERTa classifier": (
            lambda: _roberta("RobertaForSequenceClassification"),
            {
                "roberta.embeddings.position_embeddings", "roberta.embeddings.token_type_embeddings", "classifier.dense",
                "classifier.out_proj",
            },
        ),
        "RoBERTa masked": (
            lambda: _roberta("RobertaForMaskedLM"),
            {"roberta.embeddings.position_embeddings", "roberta.embeddings.token_type_embeddings", "lm_head.dense"},
        ),
        "DistilBERT classifier": (
            lambda: _distilbert("DistilBertForSequenceClassification"),
            {"distilbert.embeddings.position_embeddings", "pre_classifier", "classifier"},
        ),
        "DistilBERT masked": (
            lambda: _distilbert("DistilBertForMaskedLM"), {"distilbert.embeddings.position_embeddings", "vocab_transform"},
        ),
    },
    "llama": {
        "tied": (lambda: _llama(True), {"model.embed_tokens", "lm_head"}),
        "not tied": (lambda: _llama(False), {"model.embed_tokens", "lm_head"}),
    },
    "gpt2": {
        "words": (lambda: _gpt2("GPT2LMHeadModel"), {"transformer.wte", "transformer.wpe", "lm_head"}),
        "classifier": (lambda: _gpt2("GPT2ForSequenceClassification"), {"transformer.wte", "transformer.wpe", "score"}),
    },
    "whisper": {"whisper": (_whisper, {"model.encoder.conv1", "model.encoder.embed_positions", "model.decoder.embed_tokens", "proj_out"})},
}  # fmt: skip
CASES = [(family, name) for family, networks in NETWORKS.items() for name in networks]


@cache
def network(family: str, name: str) -> Network:
    torch.manual_seed(0)
    model, example = NETWORKS[family][name][0]()
    return model.eval(), example


def declared(family: str) -> DeclaredSpace:
    return load_space(str(FOLDER / f"{family}.py"))


def spec(family: str, **options: Any) -> SpaceSpec:
    made, _ = declared(family).create(options)
    return made


def bools(family: str) -> dict[str, bool]:
    return {option.name: option.default for option in declared(family).options if option.type is bool}


def covered(space: SpaceSpec, model: nn.Module, example: Any) -> set[str]:
    """Every module path that is built with a site of the space; a rule without effect is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return {path for site in space.sites(model, example) for path in site.paths}


def test_every_file_of_the_folder_is_tested_and_documented() -> None:
    files = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
    assert files == set(NETWORKS)
    for family in files:
        module = importlib.import_module(f"search_spaces.{family}")
        assert module.__doc__ and module.space.__doc__
        assert all(option.help for option in declared(family).options), family
        assert {"round_to", "max_options"} <= {option.name for option in declared(family).options}


@pytest.mark.parametrize(("family", "name"), CASES)
def test_the_default_leaves_alone_what_it_names(family: str, name: str) -> None:
    model, example = network(family, name)
    every = {path for site in find_sites(model, example) for path in site.paths}
    depthwise = {path for path, module in model.named_modules() if isinstance(module, nn.Conv2d) and module.groups > 1}
    assert bool(depthwise) == (family == "mobilenet")
    assert every - covered(spec(family), model, example) == NETWORKS[family][name][1] | depthwise


@pytest.mark.parametrize("family", NETWORKS)
def test_every_pattern_means_a_layer_and_every_option_changes_the_space(family: str) -> None:
    networks = [network(family, name) for name in NETWORKS[family]]
    layers = [(path, module) for model, _ in networks for path, module in model.named_modules()]
    default = [covered(spec(family), *each) for each in networks]
    settings = [{}, *({name: not value} for name, value in bools(family).items())]
    for setting in settings:
        rules = spec(family, **setting).exclude
        assert isinstance(rules, tuple)
        for rule in rules:
            single = [Where((glob,)) for glob in rule.globs] if isinstance(rule, Where) else [rule]
            for part in single:
                assert callable(part) and any(part(path, module) for path, module in layers), part
    for name, value in bools(family).items():
        if name == "cp":  # types, not layers
            types = [{d.name for d in spec(family, cp=on).decompositions} for on in (True, False)]
            assert types[0] - types[1] == {"cp"}
            continue
        changed = [covered(spec(family, **{name: not value}), *each) for each in networks]
        assert any(new > old if not value else new < old for new, old in zip(changed, default, strict=True)), name
        assert all(new >= old if not value else new <= old for new, old in zip(changed, default, strict=True)), name


@pytest.mark.parametrize(("family", "name"), CASES)
def test_ranks_are_multiples_and_networks_can_be_built(family: str, name: str) -> None:
    model, example = network(family, name)
    space_spec = spec(family, round_to=4, max_options=3, **({"cp": False} if "cp" in bools(family) else {}))
    spectra = Spectra(model, space_spec.sites(model, example), space_spec.decompositions)
    space = space_spec.build(spectra)
    assert all(len(ladder.options) <= 3 + 1 for ladder in space.ladders)  # and dense
    widths = [r for ladder in space.ladders for o in ladder.options for r in o.rank[spectra.decomposition(o.decomposition).labels :]]
    assert all(r % 4 == 0 for r in widths)
    configuration = space.configuration(np.zeros(len(space.ladders), dtype=np.int64))  # the cheapest option everywhere
    built = build(spectra, configuration).eval()
    assert sum(p.numel() for p in built.parameters()) == space.cost(space.indices(configuration)).params < space.baseline.params
    with torch.no_grad():
        output = run(built, example)
    answer = output if isinstance(output, torch.Tensor) else output.logits
    assert torch.isfinite(answer).all()
