"""Handwritten digits of scikit-learn (8 x 8) and a small residual network, trained here in a few seconds and cached."""

from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

import torch
from torch import nn

from ranksearch.costs import Narrower
from ranksearch.evaluation import Fidelity
from ranksearch.home import home
from ranksearch.study import Study
from ranksearch.study.stages import Stage
from ranksearch.tasks.images import digits
from ranksearch.tasks.networks import digits_net
from ranksearch.tasks.training import trained
from search_spaces.cifar_resnet import space


def study(
    *,
    epochs: Annotated[float, "epochs of fine-tuning for each candidate"] = 2.0,
    training: Annotated[Literal["plain", "recovery"], "of candidates: as the task does, or with a rate per factor and a teacher"] = "plain",
    reconstruction: Annotated[int, "batches that factors are fitted to before, layer by layer; 0: none"] = 0,
    teach: Annotated[int, "steps in which a candidate as a whole learns the dense network's answers after that; 0: none"] = 0,
    training_epochs: Annotated[float, "epochs in which the network to be compressed is trained"] = 12.0,
    metric: Annotated[Literal["weight", "activation", "fisher"], "what factors are made for and errors are taken in"] = "fisher",
    staged: Annotated[bool, "in stages: many candidates untrained, the best fine-tuned shortly, the best of these for long"] = False,
    seed: Annotated[int, "of the training, the search and every evaluation"] = 0,
) -> Study:
    """Compress a residual network of 172,000 parameters that reads handwritten digits."""
    schooling = digits(learning_rate=0.1, schedule="one_cycle")
    model = trained(digits_net, schooling, epochs=training_epochs, seed=seed, cache=home() / "cache")
    model.to(memory_format=torch.channels_last)  # thin layers run faster so
    fidelity = Fidelity(epochs=epochs, recalibration=8, reconstruction=reconstruction, distill=teach, training=training)
    spec = space(stem=True, head=True).replace(metric=metric)  # every layer, as in docs/results/samplers.md
    lengths = [(0.0, 60), (epochs / 4, 20), (epochs, 10)] if staged else []
    stages = [Stage(replace(fidelity, epochs=length), trials) for length, trials in lengths]
    task = digits()

    def narrow(width: float) -> nn.Module:
        return trained(partial(digits_net, width=width), schooling, epochs=training_epochs, seed=seed, cache=home() / "cache")

    narrower = Narrower(narrow, widths=(0.85, 0.7, 0.5), metrics=lambda width: task.measure(narrow(width)))
    return Study("digits", model=model, task=task, space=spec, fidelity=fidelity, stages=stages, narrower=narrower, seed=seed)
