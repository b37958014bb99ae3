"""What `ranksearch.compress` finds, budget by budget, beside every rule that it tries: divergence from the dense network on training images
that nothing else has seen, and the accuracy on validation images of the network that it hands out. Prints markdown.

    python analysis/portfolio.py --data SHARED/data/cifar10 --weights SHARED/models/resnet20_cifar10.safetensors --types svd \
        --budgets params=0.5 params=0.3 --polish 100"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from ranksearch import compress
from ranksearch.home import user_path
from ranksearch.search.events import Stage
from ranksearch.space import mixture, svd_only
from ranksearch.tasks.images import cifar10
from ranksearch.tasks.networks import cifar_resnet, load_weights

SPACES = {"svd": svd_only(), "mixture": mixture()}


def budget(text: str) -> tuple[str, float]:
    """``macs=0.5`` as a name and a number."""
    name, _, value = text.partition("=")
    return name, float(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=user_path, required=True, help="folder of CIFAR-10")
    parser.add_argument("--weights", type=user_path, required=True, help="safetensors of the ResNet")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--types", choices=list(SPACES), default="svd")
    parser.add_argument("--budgets", type=budget, nargs="+", default=[("params", 0.5), ("params", 0.3)], metavar="COST=SHARE")
    parser.add_argument("--polish", type=int, default=0, help="measured exchanges")
    parser.add_argument("--images", type=int, default=5000, help="of validation")
    parser.add_argument("--test", action="store_true", help="measure on the test split: for final numbers only")
    a = parser.parse_args()
    model = load_weights(cifar_resnet(a.depth), Path(a.weights)).eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    task, split = cifar10(Path(a.data), validation=a.images), "test" if a.test else "validation"
    print(f"dense: {100 * task.measure(model, split)['accuracy']:.2f} % on {split}\n")
    for name, share in a.budgets:
        start = time.process_time()
        found = compress(model, task, space=SPACES[a.types], polished=a.polish, on_event=shown, **{name: share})
        accuracy = task.measure(found.model, split)["accuracy"]
        spent = f"{time.process_time() - start:.0f} s of processor time"
        print(f"{name} <= {share:g}, {a.types}: {found.chosen.rule} is handed out, {100 * accuracy:.2f} %; {spent}\n")
        print("| rule | as it is | reconstructed |\n| --- | --- | --- |")
        for row in found.report().to_dict("records"):
            print(f"| {row['rule']} | {row['loss']:.3f} | {row['reconstructed']:.3f} |")
        print(flush=True)


def shown(event: Stage) -> None:
    """Tell what is being done."""
    print(event.text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
