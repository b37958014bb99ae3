"""The networks that several studies are about, each with its task, and the spaces that are searched in them."""

from __future__ import annotations

import argparse
import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vgg import vgg16

from ranksearch.home import home, user_path
from ranksearch.space import SpaceSpec, mixture, svd_only
from ranksearch.space.specs import named
from ranksearch.tasks import Classification
from ranksearch.tasks.images import cifar10, fashion_mnist
from ranksearch.tasks.networks import cifar_resnet, load_weights
from ranksearch.tasks.text import SentenceClassifier, fit_probe, pretrained_encoder, sentences

NETWORKS = ("resnet20", "resnet56", "fashion", "vgg16", "tweets", "movies")
TEXTS = ("tweets", "movies")
WIDE = 1000, 256  # images on an accelerator, and texts, per forward pass over a test set
SPACES = {"svd": svd_only, "groups": partial(SpaceSpec, named("svd", "grouped_svd")), "all": mixture, "no-cp": partial(mixture, cp=False)}


def add_arguments(parser: argparse.ArgumentParser, *, images: int, required: bool = False) -> None:
    """Which network, where it and its data are, and by how many images (by default) its training set is short.

    Args:
        images: training images of CIFAR-10 and Fashion-MNIST that nothing trains on or is calibrated with.
        required: whether the script does nothing without a network.
    """
    parser.add_argument("--network", choices=NETWORKS, required=required)
    parser.add_argument("--shared", type=user_path, required=required, help="folder with data/cifar10, data/sentiment and models")
    parser.add_argument("--encoder", type=user_path, help="folder of MiniLM, for tweets and movies")
    parser.add_argument("--fashion", type=user_path, default=Path("/usr/share/datasets/fashion-mnist"), help="folder of Fashion-MNIST")
    parser.add_argument("--vgg", type=user_path, help="safetensors of analysis/vgg.py, for vgg16")
    parser.add_argument("--images", type=int, default=images, help="training images that are validation images")


def add_budget(parser: argparse.ArgumentParser, *, cost: str, budget: float) -> None:
    """Which space, and the share of which cost that networks may have."""
    parser.add_argument("--space", choices=list(SPACES), default="all")
    parser.add_argument("--cost", default=cost)
    parser.add_argument("--budget", type=float, default=budget)


def subject(given: argparse.Namespace) -> tuple[nn.Module, Classification]:
    """The dense network and its task."""
    name, data, models = given.network, given.shared / "data", given.shared / "models"
    if name in TEXTS:
        encoder, tokenizer = pretrained_encoder(given.encoder)
        task = sentences(data / "sentiment" / f"{name}.parquet", tokenizer)
        classifier = SentenceClassifier(encoder, task.classes).eval()
        fit_probe(classifier, task, cache=home() / "cache")
        return classifier, task
    if name == "fashion":
        model = load_weights(cifar_resnet(20, in_channels=1), models / "resnet20_fashion_mnist.safetensors")
        task = fashion_mnist(given.fashion, validation=given.images)
    else:
        weights = given.vgg if name == "vgg16" else models / f"{name}_cifar10.safetensors"
        model = load_weights(vgg16() if name == "vgg16" else cifar_resnet(int(name.removeprefix("resnet"))), weights)
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
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows
