"""Fashion-MNIST and a trained ResNet-20 with one input channel.

Candidates are measured on 5,000 images held out of the training set. Weights that were trained on the whole training
set have seen these: compare with the test set (``task.measure(model, "test")``) before quoting a number."""

from pathlib import Path
from typing import Annotated, Literal

import torch

from ranksearch.evaluation import Fidelity
from ranksearch.study import Study
from ranksearch.tasks.images import fashion_mnist
from ranksearch.tasks.networks import cifar_resnet, load_weights
from search_spaces.cifar_resnet import space


def study(
    *,
    weights: Annotated[Path, "trained weights of the ResNet-20 with one input channel, a safetensors file"],
    data: Annotated[Path, "folder with the idx.gz files of Fashion-MNIST"] = Path("/usr/share/datasets/fashion-mnist"),
    epochs: Annotated[float, "epochs of fine-tuning for each candidate"] = 0.0,
    training: Annotated[Literal["plain", "recovery"], "of candidates: as the task does, or with a rate per factor and a teacher"] = "plain",
    reconstruction: Annotated[int, "batches that factors are fitted to before, layer by layer; 0: none"] = 4,
    teach: Annotated[int, "steps in which a candidate as a whole learns the dense network's answers after that; 0: none"] = 0,
    learning_rate: Annotated[float, "peak learning rate of fine-tuning; layers of cp bear little"] = 0.002,
    metric: Annotated[Literal["weight", "activation", "fisher"], "what factors are made for and errors are taken in"] = "fisher",
    seed: Annotated[int, "of the search and every evaluation"] = 0,
) -> Study:
    """Compress a ResNet-20 trained on Fashion-MNIST."""
    model = load_weights(cifar_resnet(20, in_channels=1), weights).eval()
    model.to(memory_format=torch.channels_last)  # thin layers run faster so
    task = fashion_mnist(data, learning_rate=learning_rate)
    fidelity = Fidelity(epochs=epochs, recalibration=8, reconstruction=reconstruction, distill=teach, training=training)
    spec = space(stem=True, head=True).replace(metric=metric)  # every layer, as in docs/results/rules.md
    return Study("fashion_mnist_resnet20", model=model, task=task, space=spec, fidelity=fidelity, seed=seed)
