"""The networks that several studies are about, each with its task, and the spaces that are searched in them."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from texts import causal, stream
from torch import nn
from trained import RECIPES

from ranksearch.errors import InvalidArgument
from ranksearch.home import home, replacing, user_path
from ranksearch.space import SpaceSpec, mixture, svd_only
from ranksearch.space.specs import named
from ranksearch.tasks import Classification, LanguageModel
from ranksearch.tasks.images import cifar10, fashion_mnist
from ranksearch.tasks.networks import cifar_resnet, load_weights
from ranksearch.tasks.text import SentenceClassifier, fit_probe, pretrained_encoder, sentences

NETWORKS = ("resnet20", "resnet56", "fashion", *RECIPES, "tweets", "movies")
TEXTS = ("tweets", "movies")
LANGUAGE = "language"  # a causal language model, for scripts that take one
LENGTH, SEQUENCES, MEASURED = (
    256,
    16,
    4,
)  # tokens of a sequence, sequences that it is calibrated with, and of each text that it is measured on
WIDE = 1000, 256  # images on an accelerator, and texts, per forward pass over a test set
SPACES = {"svd": svd_only, "groups": partial(SpaceSpec, named("svd", "grouped_svd")), "all": mixture, "no-cp": partial(mixture, cp=False)}


def add_arguments(parser: argparse.ArgumentParser, *, images: int, required: bool = False, more: Sequence[str] = ()) -> None:
    """Which network, where it and its data are, and by how many images (by default) its training set is short.

    Args:
        images: training images of CIFAR-10 and Fashion-MNIST that nothing trains on or is calibrated with.
        required: whether the script does nothing without a network.
        more: networks that the script takes besides, which have no data there.
    """
    parser.add_argument("--network", choices=(*NETWORKS, *more), required=required)
    parser.add_argument(
        "--shared", type=user_path, required=required and not more, help="folder with data/cifar10, data/sentiment and models"
    )
    parser.add_argument("--encoder", type=user_path, help="folder of MiniLM, for tweets and movies")
    parser.add_argument("--fashion", type=user_path, default=Path("/usr/share/datasets/fashion-mnist"), help="folder of Fashion-MNIST")
    parser.add_argument("--weights", type=user_path, help=f"what analysis/trained.py wrote, for {', '.join(RECIPES)}")
    parser.add_argument("--images", type=int, default=images, help="training images that are validation images")


def add_budget(parser: argparse.ArgumentParser, *, cost: str, budget: float) -> None:
    """Which space, and the share of which cost that networks may have."""
    parser.add_argument("--space", choices=list(SPACES), default="all")
    parser.add_argument("--cost", default=cost)
    parser.add_argument("--budget", type=float, default=budget)


def add_language(parser: argparse.ArgumentParser) -> None:
    """Which language model, and its texts."""
    parser.add_argument("--model", type=user_path, help="folder of a causal model in the layout of transformers, for language")
    parser.add_argument("--calibration", type=user_path, help="text that it is calibrated with")
    parser.add_argument("--text", type=user_path, nargs="+", help="texts that its perplexity is of")
    parser.add_argument("--layers", default="*.layers.*", help="glob of the layers of a language model that may be factorized")


def language(given: argparse.Namespace, seed: int) -> tuple[nn.Module, LanguageModel]:
    """A causal language model, and a task that has another part of the calibration text for each seed."""
    model, tokenizer = causal(given.model)

    def tokens(text: Path, first: int, count: int) -> torch.Tensor:
        return stream(tokenizer, text, LENGTH * (first + count))[LENGTH * first : LENGTH * (first + count)].reshape(-1, LENGTH)

    measured = torch.cat([tokens(text, 0, MEASURED) for text in given.text])
    task = LanguageModel(train=tokens(given.calibration, SEQUENCES * seed, SEQUENCES), validation=measured, test=measured, batch_size=2)
    return model, task


def subject(given: argparse.Namespace) -> tuple[nn.Module, Classification]:
    """The dense network and its task."""
    name, data, models = given.network, given.shared / "data", given.shared / "models"
    if name in TEXTS:
        encoder, tokenizer = pretrained_encoder(given.encoder)
        task = sentences(data / "sentiment" / f"{name}.parquet", tokenizer)
        classifier = SentenceClassifier(encoder, task.classes).eval()
        fit_probe(classifier, task, cache=home() / "cache")
        return classifier, task
    if name in RECIPES:
        if given.weights is None:
            raise InvalidArgument(f"--weights: --network {name} needs the file that analysis/trained.py --network {name} writes")
        recipe = RECIPES[name]
        model = load_weights(recipe.make(), given.weights)
        task = recipe.data(given.fashion if recipe.data is fashion_mnist else data / "cifar10", validation=given.images)
    elif name == "fashion":
        model = load_weights(cifar_resnet(20, in_channels=1), models / "resnet20_fashion_mnist.safetensors")
        task = fashion_mnist(given.fashion, validation=given.images)
    else:
        model = load_weights(cifar_resnet(int(name.removeprefix("resnet"))), models / f"{name}_cifar10.safetensors")
        task = cifar10(data / "cifar10", validation=given.images)
    return model.eval().to(memory_format=torch.channels_last), task  # pyright: ignore[reportCallIssue]


def wide(task: Classification, network: str, device: str = "cpu") -> Classification:
    """The task with larger batches, for measuring alone. Of images a processor takes the task's own: its caches hold those."""
    made = copy.copy(task)
    if network in TEXTS:
        made.batch_size = WIDE[1]
    elif device != "cpu":
        made.batch_size = WIDE[0]
    return made


def seeded(task: Classification, seed: int) -> Classification:
    """The task with other calibration batches: they are drawn from all training examples, and of fewer, others are drawn."""
    return task.cut(train=task.sizes()["train"] - seed)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; a last one that was cut off is left out."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def resumed(path: Path) -> list[dict[str, Any]]:
    """`rows_of` a file that is to be gone on with, from which a row that was cut off is taken out."""
    rows = rows_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text()[-1:] not in ("", "\n"):
        rewritten(path, rows)
    return rows


def rewritten(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Make a file one of these rows, as a whole or not at all."""
    with replacing(path) as unfinished:
        unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows))
