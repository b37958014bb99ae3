"""Evaluations without training, several times as fast as building networks. A factorized layer computes what a dense layer of its composed
weight does, so one dense network takes the weights of every configuration in turn; batch norms are re-estimated without hooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ranksearch.errors import InvalidArgument
from ranksearch.networks.merge import weight_of
from ranksearch.networks.surgery import factorized
from ranksearch.sites import copied, to_stored
from ranksearch.space import SearchSpace
from ranksearch.space.spectra import Spectra
from ranksearch.tasks import Classification

CHUNK = 64  # examples of a forward pass: the activations of a few stay in a processor's cache


class Protocol:
    """Batch norm re-estimated on some batches of a task and then its metrics: what `ranksearch.networks.batch_norm.recalibrate` and
    `Task.measure` do one after the other, within rounding.

    Args:
        task: what is measured.
        recalibration: batches that batch norm is re-estimated on.
        chunk: examples of a forward pass.
    """

    def __init__(self, task: Classification, recalibration: int, *, chunk: int = CHUNK) -> None:
        labelled = list(task.labelled(recalibration))
        self.task = task
        self.sizes = [len(targets) for _, targets in labelled]
        self.given = torch.cat([inputs for inputs, _ in labelled])
        self.targets = torch.cat([targets for _, targets in labelled])
        seen = _Seen(task.classes)
        task.measure(seen)
        self.inputs = torch.cat(seen.batches).split(chunk)

    def prepared(self, network: nn.Module) -> Prepared:
        """A network, which is changed in place, ready to be measured again and again.

        Raises:
            InvalidArgument: a batch norm without running statistics or weights.
        """
        norms = []
        for parent in list(network.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, _BatchNorm):
                    if not child.track_running_stats or not child.affine:
                        raise InvalidArgument(f"network: the batch norm {name!r} has no running statistics or no weights of its own")
                    norms.append(_Estimate(child, self.sizes))
                    setattr(parent, name, norms[-1])
        return Prepared(self, network.eval(), norms)


class Prepared:
    """A network in a `Protocol`. Its weights may change between calls."""

    def __init__(self, protocol: Protocol, network: nn.Module, norms: Sequence[_Estimate]) -> None:
        self._protocol, self._network, self._norms = protocol, network, norms
        self.state = _State()

    def estimate(self) -> Tensor:
        """Re-estimate the norms; the answers to the batches that this is done on, each normalized by its own statistics."""
        for norm in self._norms:
            norm.estimating = True
        self.state.part = -1
        with torch.no_grad():
            return self._network(self._protocol.given)

    def measure(self) -> dict[str, float]:
        """The metrics, by what the norms were estimated to be last."""
        for norm in self._norms:
            norm.estimating = False
        answers = []
        with torch.no_grad():
            for part, inputs in enumerate(self._protocol.inputs):
                self.state.part = part
                answers.append(self._network(inputs))
        return self._protocol.task.measure(_Answers(torch.cat(answers)))


class ComposedEvaluator:
    """Measures configurations of a space as `ranksearch.evaluation.Evaluator` does without training, within rounding.

    Args:
        spectra: the prepared decompositions; composed weights are made when an option is first asked for, and kept.
        space: whose option indices are evaluated; its sites are in the order in which the network calls them.
        protocol: how networks are measured.
        stages: paths of modules that the network calls one after the other. What they gave last is kept, and given again as long as no
            option up to them changes: configurations in lexicographic order cost a part of others.

    Raises:
        InvalidArgument: a site with a tied head; a network without a linear layer; norms that `Protocol` does not take.
    """

    def __init__(self, spectra: Spectra, space: SearchSpace, protocol: Protocol, *, stages: Sequence[str] = ()) -> None:
        if any(ladder.site.head is not None for ladder in space.ladders):
            raise InvalidArgument("space: a site has a tied head; such networks are evaluated by building them")
        self.spectra, self.space = spectra, space
        self.weights: dict[tuple[int, int], Tensor] = {}  # composed so far, by site and option
        self._protocol, self._model = protocol, copied(spectra.model)
        self._at = space.dense.tolist()  # options whose weights the model has
        self._layers = [self._model.get_submodule(ladder.site.name) for ladder in space.ladders]
        names = [ladder.site.name for ladder in space.ladders]
        self._prepared = protocol.prepared(self._model)
        self._prepared.state.options = tuple(self._at)
        for path in stages:
            inside = [place for place, name in enumerate(names) if f"{name}.".startswith(f"{path}.")]
            self._stage(path, max(inside, default=0) + 1)
        heads = [module for module in self._model.modules() if isinstance(module, nn.Linear)]
        if not heads:
            raise InvalidArgument("spectra: the network has no linear layer, whose input is the last feature")
        self._feature = torch.zeros(0)
        heads[-1].register_forward_pre_hook(self._keep)
        self._prepared.estimate()
        self._dense = self._feature.double()

    def __call__(self, indices: np.ndarray | Sequence[int]) -> dict[str, float]:
        """What the task measures of a configuration, and two proxies on the batches that batch norm is re-estimated on, by whose own
        statistics they are normalized: ``calibration_loss`` (`ranksearch.proxies.CalibrationLoss`), and ``last_feature``, the relative
        squared error of the input of the last linear layer (`ranksearch.proxies.LastFeature`).

        Args:
            indices: options, shape: (n_sites,).
        """
        for place, option in enumerate(np.asarray(indices).tolist()):
            if self._at[place] != option:
                with torch.no_grad():
                    self._layers[place].get_parameter("weight").copy_(self.weight(place, option))
                self._at[place] = option
        self._prepared.state.options = tuple(self._at)
        logits = self._prepared.estimate()
        loss = float(self._protocol.task.loss(logits, self._protocol.targets))
        error = float((self._feature.double() - self._dense).square().sum() / self._dense.square().sum())
        return self._prepared.measure() | {"calibration_loss": loss, "last_feature": error}

    def weight(self, place: int, option: int) -> Tensor:
        """The composed weight of an option, as the layer stores it."""
        key = (place, option)
        if key not in self.weights:
            site = self.space.ladders[place].site
            name, rank = self.space.ladders[place].choice(option)
            plain = self.spectra.model.get_submodule(site.name)
            weight = plain.get_parameter("weight").detach()
            if name != "dense":
                layer = factorized(self.spectra, site, name, rank)
                weight = to_stored(weight_of(layer, plain, site), site, weight.shape).to(weight.dtype)
            self.weights[key] = weight
        return self.weights[key]

    def _stage(self, path: str, sites: int) -> None:
        parent, _, name = path.rpartition(".")
        owner = self._model.get_submodule(parent)
        setattr(owner, name, _Stage(owner.get_submodule(name), sites, self._prepared.state))

    def _keep(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        self._feature = args[0].detach()


@dataclass
class _State:
    """What a pass is of."""

    options: tuple[int, ...] = ()  # of all sites
    part: int = -1  # of the inputs; -1: those that norms are estimated on


class _Stage(nn.Module):
    """A module that remembers its outputs while no option changes that they depend on."""

    def __init__(self, module: nn.Module, sites: int, state: _State) -> None:
        super().__init__()
        self.module, self.sites, self.state = module, sites, state
        self.kept: dict[int, tuple[tuple[int, ...], Tensor]] = {}  # by part of the inputs

    def forward(self, x: Tensor) -> Tensor:
        options, (known, output) = self.state.options[: self.sites], self.kept.get(self.state.part, ((), x))
        if known != options:
            output = self.module(x)
            self.kept[self.state.part] = (options, output)
        return output


class _Estimate(nn.Module):
    """A batch norm that normalizes every batch by its own statistics and pools them, and then normalizes by what was pooled."""

    def __init__(self, norm: _BatchNorm, sizes: Sequence[int]) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.sizes = list(sizes)
        self.estimating = True
        self.mean, self.variance = torch.zeros(norm.num_features), torch.ones(norm.num_features)

    def forward(self, x: Tensor) -> Tensor:
        if not self.estimating:
            return F.batch_norm(x, self.mean, self.variance, self.weight, self.bias, eps=self.eps)
        done = [torch.native_batch_norm(part, self.weight, self.bias, None, None, True, 0.0, self.eps) for part in x.split(self.sizes)]
        means = torch.stack([mean for _, mean, _ in done]).double()
        variances = torch.stack([scale for _, _, scale in done]).double().pow(-2) - self.eps
        counts = torch.tensor(self.sizes, dtype=torch.float64)[:, None] * x[0, 0].numel()
        whole = counts.sum()
        mean = (counts * means).sum(dim=0) / whole
        square = (counts * (variances + (means - mean).square())).sum(dim=0)
        self.mean, self.variance = mean.to(x.dtype), (square / (whole - 1)).to(x.dtype)
        return torch.cat([out for out, _, _ in done])


class _Seen(nn.Module):
    """Keeps the inputs that a task measures on."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.batches: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(x)
        return torch.zeros(len(x), self.classes)


class _Answers(nn.Module):
    """Answers that are known, in the order in which a task asks."""

    def __init__(self, answers: Tensor) -> None:
        super().__init__()
        self.answers, self.told = answers, 0

    def forward(self, x: Tensor) -> Tensor:
        self.told += len(x)
        return self.answers[self.told - len(x) : self.told]
