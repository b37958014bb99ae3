"""CIFAR-10 and a trained ResNet-20.

Candidates are measured on 5,000 images held out of the training set. Weights that were trained on the whole training
set have seen these: their accuracy there is too high, and only differences between candidates mean something; compare
with the test set (``task.measure(model, "test")``) before quoting a number."""

from pathlib import Path
from typing import Annotated, Literal

import torch

from ranksearch.costs import Narrower
from ranksearch.evaluation import Fidelity
from ranksearch.study import Study
from ranksearch.tasks.images import CropAndFlip, cifar10
from ranksearch.tasks.networks import cifar_resnet, load_weights
from search_spaces.cifar_resnet import space


def study(
    *,
    data: Annotated[Path, "folder with train-*.parquet and test-*.parquet (Hugging Face layout: img, label)"],
    weights: Annotated[Path, "trained weights of the ResNet-20, a safetensors file"],
    epochs: Annotated[float, "epochs of fine-tuning for each candidate"] = 0.0,
    training: Annotated[Literal["plain", "recovery"], "of candidates: as the task does, or with a rate per factor and a teacher"] = "plain",
    reconstruction: Annotated[int, "batches that factors are fitted to before, layer by layer; 0: none"] = 4,
    teach: Annotated[int, "steps in which a candidate as a whole learns the dense network's answers after that; 0: none"] = 0,
    learning_rate: Annotated[float, "peak learning rate of fine-tuning; layers of cp bear little"] = 0.002,
    augment: Annotated[bool, "random crops and mirroring in fine-tuning; pays only over many epochs"] = False,
    metric: Annotated[Literal["weight", "activation", "fisher"], "what factors are made for and errors are taken in"] = "fisher",
    seed: Annotated[int, "of the search and every evaluation"] = 0,
) -> Study:
    """Compress a ResNet-20 trained on CIFAR-10."""
    model = load_weights(cifar_resnet(20), weights).eval()
    model.to(memory_format=torch.channels_last)  # thin layers run faster so
    task = cifar10(data, learning_rate=learning_rate, augment=CropAndFlip() if augment else None)
    fidelity = Fidelity(epochs=epochs, recalibration=8, reconstruction=reconstruction, distill=teach, training=training)
    spec = space(stem=True, head=True).replace(metric=metric)  # every layer, as in docs/results/rules.md
    narrower = Narrower(lambda width: cifar_resnet(20, width=width))  # none of these is trained
    return Study("cifar10_resnet20", model=model, task=task, space=spec, fidelity=fidelity, narrower=narrower, seed=seed)
