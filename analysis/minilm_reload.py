"""What `ranksearch build studies/minilm_sentiment.py ID --onnx --out FOLDER` wrote, in a process without ranksearch: the network by the
code in the folder, its ONNX program, and that program in int8, each on the same sentences. Prints sizes, accuracy, agreement with the
network as it was built, and latency of the programs, one and sixteen sentences at a time.

    OMP_NUM_THREADS=1 python analysis/minilm_reload.py DENSE SMALL --encoder FOLDER_OF_MINILM --data SHARED/data/sentiment"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

sys.modules["ranksearch"] = None  # type: ignore[assignment]  # an import of it fails


class SentenceClassifier(nn.Module):
    """A user's own words for the network of the study: an encoder, the mean of its states scaled to length 1, a probe."""

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder, self.probe = encoder, nn.Linear(encoder.config.hidden_size, classes)  # type: ignore[union-attr]

    def forward(self, tokens: Tensor) -> Tensor:
        real = tokens != 0
        states = self.encoder(input_ids=tokens, attention_mask=real.long()).last_hidden_state
        weights = real[..., None].to(states.dtype)
        return self.probe(nn.functional.normalize((states * weights).sum(1) / weights.sum(1).clamp_min(1), dim=1))


def in_turn(works: list[Callable[[], object]], rounds: int = 31) -> np.ndarray:
    """Seconds of every work in every round, shape (rounds, works): in turn, the order alternating, so that whatever else the machine does
    falls on all alike. On one thread it is the time that this thread runs, so that other processes do not count."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    times = np.zeros((rounds, len(works)))
    for work in works:
        work()
    for number in range(rounds):
        for at in range(len(works))[:: 1 if number % 2 else -1]:
            begin = clock()
            works[at]()
            times[number, at] = clock() - begin
    return times


def session(path: Path) -> Callable[[Tensor], np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    made = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (given,) = made.get_inputs()
    return lambda tokens: made.run(None, {given.name: tokens.numpy()})[0]


def network_of(folder: Path, encoder: Path) -> nn.Module:
    """The network that a folder holds, by the code in it."""
    spec = importlib.util.spec_from_file_location(f"modeling_{folder.name}", folder / "modeling.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(SentenceClassifier(AutoModel.from_pretrained(encoder, local_files_only=True, add_pooling_layer=False).float(), 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="the first one's ONNX program is what times are shares of")
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    frame = pd.read_parquet(options.data / "tweets.parquet").query("split != 'train'")
    tokenizer: Any = AutoTokenizer.from_pretrained(options.encoder, local_files_only=True)
    tokens = tokenizer(list(frame["text"]), padding="max_length", truncation=True, max_length=48, return_tensors="pt")["input_ids"]
    labels = torch.tensor(frame["label"].astype(int).to_numpy())

    runs: dict[str, Callable[[Tensor], Any]] = {}
    print(f"{len(tokens)} sentences\n{'':28}{'MB':>8}{'accuracy':>10}{'largest difference':>20}")
    for folder in options.folders:
        network, onnx, int8 = network_of(folder, options.encoder), folder / "model.onnx", folder / "model.int8.onnx"
        quantize_dynamic(onnx, int8, weight_type=QuantType.QInt8)
        expected = None
        for name, files, run in (
            ("modeling.py", [folder / "model.safetensors"], network),
            ("ONNX", [onnx, Path(f"{onnx}.data")], session(onnx)),
            ("ONNX int8", [int8], session(int8)),
        ):
            with torch.no_grad():
                output = torch.cat([torch.as_tensor(run(part)) for part in tokens.split(16)])
            expected = output if expected is None else expected
            size = sum(path.stat().st_size for path in files) / 1e6
            right = float((output.argmax(dim=1) == labels).double().mean())
            print(f"{folder.name + ', ' + name:28}{size:8.1f}{right:10.4f}{float((output - expected).abs().max()):20.1e}")
            if name != "modeling.py":
                runs[f"{folder.name}, {name}"] = run
    for count in (1, 16):
        few = tokens[:count]
        times = in_turn([lambda run=run, few=few: run(few) for run in runs.values()])
        ratios = times / times[:, :1]
        print(f"\n{count} at a time: {1e3 * np.median(times[:, 0]):.1f} ms for {next(iter(runs))}")
        for name, ratio in zip(runs, ratios.T, strict=True):
            low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
            print(f"{name:28}{middle:8.2f} of that (half of the rounds between {low:.2f} and {high:.2f})")


if __name__ == "__main__":
    main()
