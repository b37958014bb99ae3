"""Seconds from the start of a search to its first evaluations, on a GPT-2-shaped network of random weights. One JSON line: processor
seconds of one pass of the dense network, and of profiling, to the first evaluation and to the last of the starts in units of that.

    python analysis/benchmarks/first_evaluation.py [--layers 4] [--width 256] [--trials 12]"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from ranksearch.evaluation import Fidelity
from ranksearch.search.events import Finished, SearchEvent
from ranksearch.space.specs import svd_only
from ranksearch.study import Study
from ranksearch.tasks import LanguageModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--limit", type=float, default=None, help="constraint on params, a share of the dense network's")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=given.layers, n_embd=given.width, n_head=4, vocab_size=500, n_positions=64)).eval()
    tokens = torch.randint(0, 500, (8, 64))
    task = LanguageModel(train=tokens, validation=tokens, reference=model)
    fidelity = Fidelity(epochs=0, recalibration=0)
    with tempfile.TemporaryDirectory() as folder:
        study = Study("first", model=model, task=task, space=svd_only(), objectives=("divergence", "params"), fidelity=fidelity,
                      store=Path(folder) / "s.db")  # fmt: skip
        start = time.process_time()
        task.measure(model)
        unit = time.process_time() - start
        start = time.process_time()
        space = study.space
        profiled = time.process_time() - start
        times: list[float] = []

        def tell(event: SearchEvent) -> None:
            if isinstance(event, Finished):
                times.append(time.process_time() - start)

        start = time.process_time()
        limits = () if given.limit is None else f"params <= {given.limit}"
        study.run(given.trials, runner="local", constraints=limits, on_event=tell)
        shares = sorted(study.evaluations()["params_rel"].tolist(), reverse=True)
    line = {"options": sum(space.shape), "dense": round(unit, 3), "profiled": profiled / unit, "first": times[0] / unit}
    line |= {"starts": times[given.trials // 2] / unit, "largest": [round(share, 3) for share in shares[1:4]]}
    print(json.dumps({key: round(value, 1) if key in ("profiled", "first", "starts") else value for key, value in line.items()}))


if __name__ == "__main__":
    main()
