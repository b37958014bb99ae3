"""Least squares against training: the exact optima of the Fisher error at several budgets, evaluated as they are, with
last factors reconstructed, briefly fine-tuned, and both. Writes a markdown table, with the seconds that each takes.

    python analysis/reconstruction.py --data SHARED/data/cifar10 --weights SHARED/models/resnet20_cifar10.safetensors"""

from __future__ import annotations

import argparse
import time

import torch

from ranksearch.allocators import Additive, Problem
from ranksearch.costs import COSTS
from ranksearch.evaluation import Evaluator, Fidelity, Request
from ranksearch.home import user_path
from ranksearch.proxies import Energy
from ranksearch.space import mixture
from ranksearch.study import Study
from ranksearch.tasks.images import cifar10
from ranksearch.tasks.networks import cifar_resnet, load_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=user_path, required=True)
    parser.add_argument("--weights", type=user_path, required=True)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--cost", choices=[cost.name for cost in COSTS], default="macs")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.3, 0.2])
    parser.add_argument("--batches", type=int, default=4, help="that last factors are fitted on")
    parser.add_argument("--epochs", type=float, default=0.2, help="of fine-tuning")
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--test", action="store_true", help="measure on the test set: for final numbers only")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=user_path, default=None, help="markdown file")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = load_weights(cifar_resnet(given.depth), given.weights).eval().to(memory_format=torch.channels_last)
    task = cifar10(given.data, learning_rate=given.learning_rate)
    study = Study("reconstruction", model=model, task=task, space=mixture().replace(metric="fisher"), seed=given.seed)
    space, evaluator = study.space, Evaluator(study.spectra, task)
    split = "test" if given.test else "validation"
    ways = {
        "as they are": Fidelity(epochs=0, recalibration=16),
        "reconstructed": Fidelity(epochs=0, recalibration=16, reconstruction=given.batches),
        "fine-tuned": Fidelity(epochs=given.epochs, recalibration=16),
        "both": Fidelity(epochs=given.epochs, recalibration=16, reconstruction=given.batches),
    }
    cells: dict[str, list[str]] = {name: [] for name in ways}
    for budget in given.budgets:
        found = Additive().allocate(Problem(space, Energy().table(space), {given.cost: budget}))
        configuration = space.configuration(found.indices)
        for name, fidelity in ways.items():
            start = time.process_time()
            network = evaluator.network(Request(configuration, fidelity, given.seed))
            seconds = time.process_time() - start
            cells[name].append(f"{100 * task.measure(network, split)['accuracy']:.2f} ({seconds:.0f} s)")
            print(budget, name, cells[name][-1], flush=True)
    dense = 100 * task.measure(model, split)["accuracy"]
    lines = [f"Dense: {dense:.2f} % on {split}.", "", "| | " + " | ".join(f"{given.cost} {b:g}" for b in given.budgets) + " |"]
    lines += ["|---" * (len(given.budgets) + 1) + "|", *(f"| {name} | " + " | ".join(row) + " |" for name, row in cells.items())]
    text = "\n".join(lines)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
