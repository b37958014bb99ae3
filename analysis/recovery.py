"""What training after compression is worth: one network, the exact optimum of the Fisher error at a share of the MACs, is reconstructed
and then trained for a few epochs in several ways, with the same batches in the same order. Writes a JSON line per way and seed to
``--out`` as it goes (what is there is not made again), and prints a markdown table: means over seeds and their spread.

    python analysis/recovery.py --data SHARED/data/cifar10 --weights SHARED/models/resnet20_cifar10.safetensors --out FILE.jsonl --test

``plain`` is `Task.fine_tune` at the learning rate of the dense network, ``slow`` the same at ``--slow``; ``recovery`` is
`ranksearch.networks.recovery.recover`, ``no teacher`` the same without distillation, ``one rate`` with the dense network's rate for all.
Accuracy on the validation images decides which epoch `recover` keeps; plain training keeps its last."""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from spread import spread
from subjects import resumed
from torch import nn

from ranksearch.allocators import Additive, Problem
from ranksearch.home import user_path
from ranksearch.networks.batch_norm import recalibrate
from ranksearch.networks.distillation import distill, unseen_first
from ranksearch.networks.reconstruction import reconstruct
from ranksearch.networks.recovery import Recovery, recover
from ranksearch.networks.surgery import build
from ranksearch.proxies import Energy
from ranksearch.space import Configuration, mixture, svd_only
from ranksearch.study import Study
from ranksearch.tasks import Classification
from ranksearch.tasks.images import CropAndFlip, cifar10
from ranksearch.tasks.networks import cifar_resnet, load_weights

SPACES = {"svd": svd_only, "all": mixture}
Train = Callable[[nn.Module, "Subject", int], None]


class Subject:
    """The dense network, its task, and the compressed network that every way begins with."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.task = self.at(given.learning_rate)
        self.dense = load_weights(cifar_resnet(given.depth), given.weights).eval()
        self.dense = self.dense.to(given.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        study = Study("recovery", model=self.dense, task=self.task, space=SPACES[given.types]().replace(metric="fisher"))
        self.spectra = study.spectra
        if given.start is None or not given.start.exists():
            self._make(study)
            return
        kept = torch.load(given.start, weights_only=False, map_location=given.device)
        if (made_with := kept.get("made with")) != self._made_with:
            raise SystemExit(f"--start {given.start} was made with {made_with}; give another file, or those options")
        self.start, self.configuration = kept["network"], Configuration.from_json(kept["configuration"])

    @property
    def _made_with(self) -> dict[str, Any]:
        """The options that the network before training comes from."""
        return {name: getattr(self.given, name) for name in ("depth", "types", "cost", "budget", "reconstruction", "distill")}

    def _make(self, study: Study) -> None:
        """The network that every way begins with, kept for the next run."""
        given = self.given
        found = Additive().allocate(Problem(study.space, Energy().table(study.space), {given.cost: given.budget}))
        self.configuration = study.space.configuration(found.indices)
        self.start = build(self.spectra, self.configuration)
        reconstruct(self.start, self.spectra, self.configuration, self.task.calibration(given.reconstruction), thorough=True)
        lessons = partial(unseen_first, self.task, given.distill, seen=given.reconstruction)
        distill(self.start, self.spectra, self.configuration, lessons, steps=given.distill, divergence=self.task.divergence)
        if given.start is not None:
            kept = {"network": self.start, "configuration": self.configuration.to_json(), "made with": self._made_with}
            torch.save(kept, given.start)

    def at(self, learning_rate: float) -> Classification:
        """The task at another peak of the learning rate."""
        return cifar10(self.given.data, learning_rate=learning_rate, augment=CropAndFlip() if self.given.augment else None)


def _plain(network: nn.Module, subject: Subject, seed: int) -> None:
    subject.task.fine_tune(network, epochs=subject.given.epochs, seed=seed)


def _slow(network: nn.Module, subject: Subject, seed: int) -> None:
    subject.at(subject.given.slow).fine_tune(network, epochs=subject.given.epochs, seed=seed)


def _recovery(**options: Any) -> Train:
    def train(network: nn.Module, subject: Subject, seed: int) -> None:
        given = network, subject.spectra, subject.configuration, subject.task
        print(recover(*given, epochs=subject.given.epochs, seed=seed, **options), file=sys.stderr, flush=True)

    return train


class _OneRate(Recovery):
    """All factors learn at the rate of the dense network."""

    def scale(self) -> None:
        pass


def _one_rate(network: nn.Module, subject: Subject, seed: int) -> None:
    epochs = subject.given.epochs
    training = _OneRate(network, subject.spectra, subject.configuration, subject.task, epochs=epochs, seed=seed)
    training.advance(epochs)
    training.settle(network)
    print(training.report(), file=sys.stderr, flush=True)


WAYS: dict[str, Train] = {
    "as it is": lambda *given: None, "plain": _plain, "slow": _slow, "one rate": _one_rate, "no teacher": _recovery(distillation=0.0),
    "recovery": _recovery(),
}  # fmt: skip
UNSETTLED = ("as it is", "plain", "slow")  # whose batch norms are re-estimated here: on plain images, as they were fitted; as trained


def run(given: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows, those of the file first."""
    rows = resumed(given.out)
    names = ("depth", "types", "cost", "budget", "epochs", "augment", "reconstruction", "distill", "learning_rate", "slow")
    key = {name: getattr(given, name) for name in names}
    subject: Subject | None = None
    for seed in range(given.seeds):
        for way in given.ways:
            if any({**key, "seed": seed, "way": way}.items() <= row.items() for row in rows):
                continue
            subject = subject or Subject(given)
            network, start = copy.deepcopy(subject.start), time.process_time()
            WAYS[way](network, subject, seed)
            seconds = time.process_time() - start
            if way in UNSETTLED:
                recalibrate(network, (subject.task.calibration if way == "as it is" else subject.task.normalization)(16))
            splits = ("validation", "test") if given.test else ("validation",)
            found = {split: subject.task.measure(network, split) for split in splits}  # type: ignore[arg-type]
            rows.append({**key, "seed": seed, "way": way, "seconds": round(seconds), **found})
            with given.out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(rows[-1], file=sys.stderr, flush=True)
    return [row for row in rows if key.items() <= row.items()]


def table(rows: Sequence[dict[str, Any]], ways: Sequence[str]) -> str:
    """One line per way: accuracy in %, loss, and processor seconds; mean and, of several seeds, standard deviation."""
    splits = [split for split in ("validation", "test") if split in rows[0]]
    columns = ["way", "seeds", *(f"{split} {what}" for split in splits for what in ("accuracy", "loss")), "seconds"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for way in ways:
        found = [row for row in rows if row["way"] == way]
        cells = [str(len(found))]
        for split in splits:
            cells += [spread([100 * row[split]["accuracy"] for row in found], 1), spread([row[split]["loss"] for row in found], 3)]
        lines.append(f"| {way} | " + " | ".join(cells) + f" | {spread([row['seconds'] for row in found], 0)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=user_path, required=True)
    parser.add_argument("--weights", type=user_path, required=True)
    parser.add_argument("--out", type=user_path, required=True, help="file of JSON lines")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--types", choices=list(SPACES), default="all")
    parser.add_argument("--cost", default="macs")
    parser.add_argument("--budget", type=float, default=0.27)
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--learning-rate", type=float, default=0.1, help="peak; what suits the dense network")
    parser.add_argument("--slow", type=float, default=0.002, help="peak of the way `slow`")
    parser.add_argument("--reconstruction", type=int, default=16, help="batches that the network is fitted to before")
    parser.add_argument("--distill", type=int, default=0, help="batches that it is then taught on as a whole, without labels")
    parser.add_argument("--start", type=user_path, help="file that keeps the reconstructed network of these options")
    parser.add_argument("--device", default="cpu", help="where networks train and run; layers are factorized there, too")
    parser.add_argument("--no-augment", dest="augment", action="store_false", help="without crops and mirroring")
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--seeds", type=int, default=1, help="of training")
    parser.add_argument("--test", action="store_true", help="measure on the test set, too")
    given = parser.parse_args()
    print(table(run(given), given.ways))


if __name__ == "__main__":
    main()
