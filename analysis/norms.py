"""Whether `ranksearch.compress` re-estimates a dense network's batch norms before other networks are made to answer like it, by which
losses it does so, and what that does to the network's accuracy on validation images. Prints a markdown line per calibration seed.

    python analysis/norms.py --network fashion --shared SHARED"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from subjects import add_arguments, seeded, subject

from ranksearch.compression.norms import losses, reference, surely_lower

SEEN = 16  # batches that statistics are re-estimated on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, images=5000, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of calibration")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model, whole = subject(given)
    print("| network | seed | loss with its own | re-estimated | taken | accuracy | re-estimated |\n" + "|---" * 7 + "|")
    for seed in given.seeds:
        task = seeded(whole, seed)
        other, _ = reference(model, task, "re-estimated", seen=SEEN, recalibration=SEEN, tell=lambda event: None)
        before, after = (losses(network, task, SEEN) for network in (model, other))
        accuracies = [100 * task.measure(network)["accuracy"] for network in (model, other)]
        told = [f"{np.mean(before):.4f}", f"{np.mean(after):.4f}", "yes" if surely_lower(after, before) else "no"]
        print("| " + " | ".join([given.network, str(seed), *told, *(f"{value:.1f}" for value in accuracies)]) + " |", flush=True)


if __name__ == "__main__":
    main()
