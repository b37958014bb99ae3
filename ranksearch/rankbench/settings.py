"""The studies that are tabulated: network, task, space and fidelity of each."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import load
from torch import nn

from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import Fidelity
from ranksearch.space import SpaceSpec, mixture
from ranksearch.study import Study
from ranksearch.tasks.images import cifar10, digits
from ranksearch.tasks.networks import cifar_resnet, digits_net, load_weights

TEST_IMAGES = 256  # of CIFAR-10 that ResNet-20 is measured on: two batches
STAGES = ("conv1", "bn1", "layer1", "layer2")  # of both networks, see `ComposedEvaluator`
SHORT_EPOCH = 0.25  # of an epoch: the unit of fine-tuning in the curves


def untrained(name: str) -> nn.Module:
    """The network of a study, without its weights: what sites are found in."""
    return NETWORKS[name]()


def example(name: str) -> torch.Tensor:
    """An input of it."""
    return torch.zeros(1, 1, 8, 8) if name == "digits" else torch.zeros(1, 3, 32, 32)


def spec() -> SpaceSpec:
    """Every layer, in the types of `mixture`, in the Fisher metric."""
    return mixture().replace(metric="fisher")


def study(name: str, *, data: str | Path | None = None, weights: str | Path | None = None) -> Study:
    """A study whose evaluations at no epochs are those of the table.

    Args:
        name: ``digits``, whose weights come with ranksearch and whose images with scikit-learn; or ``resnet20``.
        data, weights: of ``resnet20``: the folder of CIFAR-10 (see `ranksearch.tasks.images.cifar10`) and the safetensors file of the
            network.

    Raises:
        InvalidArgument: ``data`` or ``weights`` missing.
        InvalidModel: weights that do not fit.
        MissingDependency: scikit-learn is not installed.
    """
    if name == "digits":
        model = digits_net()
        content = files("ranksearch.rankbench").joinpath("data/digits.safetensors").read_bytes()
        model.load_state_dict(load(content), strict=False)  # 16 bits, widened here
        task, fidelity = digits(learning_rate=0.005), Fidelity(epochs=0.0, recalibration=2)
    else:
        if data is None or weights is None:
            raise InvalidArgument(
                f"rankbench {name!r}: data={data!r}, weights={weights!r}: neither comes with ranksearch; give the folder of CIFAR-10 and "
                "the safetensors file of the network"
            )
        model = load_weights(cifar_resnet(20), weights)
        task, fidelity = cifar10(data).judged_on_test(TEST_IMAGES), Fidelity(epochs=0.0, recalibration=1)
    model.eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return Study(f"rankbench-{name}", model=model, task=task, space=spec(), fidelity=fidelity)


NETWORKS: dict[str, Callable[[], nn.Module]] = {"digits": digits_net, "resnet20": lambda: cifar_resnet(20)}
