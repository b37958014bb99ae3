"""Peak memory of what goes before a search, on a language model with random weights: sites, statistics, spectra and space, and one network
built. Prints one line of JSON: gigabytes (2^30 bytes) of the process after the model and at the peak of every stage, of which those that
are pages of files can be given back at any time."""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites
from ranksearch.space import build_space, named
from ranksearch.space.spectra import Spectra
from ranksearch.statistics import SampledLabels, accumulator_bytes, collect
from ranksearch.statistics import metric as space_metric
from ranksearch.statistics.memory import passes

GIB = 2**30
T = TypeVar("T")


class Watch:
    """Peaks of this process's memory, sampled every 5 ms: all of it, and what is no page of a file."""

    def __init__(self) -> None:
        self.peak = self.anonymous = 0.0
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            total, own = resident()
            self.peak, self.anonymous = max(self.peak, total), max(self.anonymous, own)
            time.sleep(0.005)

    def stage(self, work: Callable[[], T]) -> tuple[T, dict[str, float]]:
        """What some work comes to, with its time and peaks."""
        self.peak, self.anonymous = resident()
        begin = time.perf_counter()
        made = work()
        return made, {
            "s": round(time.perf_counter() - begin, 1), "peak_gib": round(self.peak, 2), "without_files_gib": round(self.anonymous, 2)
        }  # fmt: skip


def resident() -> tuple[float, float]:
    """Memory of this process now, and the part of it that is no page of a file, GiB."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return tuple(float(fields[name].split()[0]) / 2**20 for name in ("VmRSS", "RssAnon"))  # type: ignore[return-value]


def llama(given: argparse.Namespace) -> torch.nn.Module:
    """A model with the shape of a Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=given.vocabulary, hidden_size=given.hidden, intermediate_size=given.intermediate, num_hidden_layers=given.layers,
        num_attention_heads=given.hidden // 64, num_key_value_heads=max(given.hidden // 256, 1), tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    torch.set_default_dtype(getattr(torch, given.dtype))
    try:
        return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--intermediate", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--metric", choices=["activation", "fisher"], default="activation")
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--moments", type=float, help="GiB of moments at a time; default: an eighth of the machine's memory")
    parser.add_argument("--in-memory", action="store_true", help="no files: all moments are held at once")
    parser.add_argument("--profiled", type=int, default=1, help="blocks that are factorized: their peak is that of all")
    parser.add_argument("--device", help="where they are factorized; default: the processor")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    watch = Watch()
    model = llama(given)
    batches = [torch.randint(given.vocabulary, (1, given.length)) for _ in range(given.sequences)]
    gradients = given.metric == "fisher"
    row: dict[str, Any] = {"benchmark": "memory", **vars(given)}
    row["parameters_millions"] = round(sum(p.numel() for p in model.parameters()) / 1e6)
    row["model_gib"] = round(resident()[0], 2)
    sites, row["sites"] = watch.stage(lambda: find_sites(model, batches[0], include="*layers*"))
    limit = None if given.moments is None else int(given.moments * GIB)
    groups = passes(sites, limit, gradients=gradients)
    row |= {"moments_gib": round(accumulator_bytes(sites, gradients=gradients) / GIB, 2), "passes": 1 if given.in_memory else len(groups)}
    labels = SampledLabels(sample=_next, loss=_loss) if gradients else None
    with tempfile.TemporaryDirectory() as folder:
        cache = None if given.in_memory else Path(folder)
        found, row["statistics"] = watch.stage(lambda: collect(model, sites, batches, labels=labels, moment_bytes=limit, cache=cache))
        few = find_sites(model, batches[0], include=[f"*layers.{k}.*" for k in range(given.profiled)])
        moments = space_metric.moments(found, given.metric)
        kept = None if cache is None else cache / "spectra"
        spectra = Spectra(model, few, named("svd"), moments=moments, cache=kept, device=given.device)
        space, row["spectra_and_space"] = watch.stage(lambda: build_space(spectra, max_options=40))
        middle = space.configuration([len(ladder) // 2 for ladder in space.ladders])
        small, row["build"] = watch.stage(lambda: build(spectra, middle))
    with torch.no_grad():
        assert bool(small(batches[0]).logits.isfinite().all())
    print(json.dumps(row))


def _next(outputs: Any, generator: torch.Generator) -> Tensor:
    """Tokens drawn from what the model expects at every place."""
    flat = outputs.logits.detach().float().flatten(0, -2).softmax(dim=-1)
    return torch.multinomial(flat, 1, generator=generator).flatten()


def _loss(outputs: Any, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(outputs.logits.float().flatten(0, -2), targets)


if __name__ == "__main__":
    main()
