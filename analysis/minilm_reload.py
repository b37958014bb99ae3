"""What `ranksearch build studies/minilm_sentiment.py ID --onnx --out FOLDER` wrote, in a process without ranksearch: the network by the
code in the folder, its ONNX program, and that program in int8, each on the same sentences. Prints sizes, agreement and milliseconds.

    OMP_NUM_THREADS=1 python analysis/minilm_reload.py FOLDER --encoder FOLDER_OF_MINILM --data SHARED/data/sentiment"""

from __future__ import annotations

import argparse
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


def milliseconds(work: Callable[[], object], rounds: int = 11) -> float:
    work()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return 1e3 * float(np.median(times))


def session(path: Path) -> Callable[[Tensor], np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    made = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (given,) = made.get_inputs()
    return lambda tokens: made.run(None, {given.name: tokens.numpy()})[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sentences", type=int, default=128)
    options = parser.parse_args()
    frame = pd.read_parquet(options.data / "tweets.parquet").query("split != 'train'").head(options.sentences)
    tokenizer: Any = AutoTokenizer.from_pretrained(options.encoder, local_files_only=True)
    tokens = tokenizer(list(frame["text"]), padding="max_length", truncation=True, max_length=48, return_tensors="pt")["input_ids"]
    labels = torch.tensor(frame["label"].astype(int).to_numpy())

    sys.path.insert(0, str(options.folder))
    from modeling import load  # type: ignore[import-not-found]

    encoder = AutoModel.from_pretrained(options.encoder, local_files_only=True, add_pooling_layer=False).float()
    network = load(SentenceClassifier(encoder, 2))
    onnx, int8 = options.folder / "model.onnx", options.folder / "model.int8.onnx"
    quantize_dynamic(onnx, int8, weight_type=QuantType.QInt8)
    with torch.no_grad():
        expected = network(tokens)
    print(f"{'':24}{'MB':>8}{'accuracy':>10}{'largest difference':>20}{'ms for 8 sentences':>20}")
    weights = options.folder / "model.safetensors"
    for name, files, run in (
        ("modeling.py", [weights], lambda x: network(x)),
        ("model.onnx", [onnx, Path(f"{onnx}.data")], session(onnx)),
        ("int8", [int8], session(int8)),
    ):
        with torch.no_grad():
            output = torch.as_tensor(run(tokens))
            took = milliseconds(lambda run=run: run(tokens[:8]))
        size = sum(path.stat().st_size for path in files) / 1e6
        right = float((output.argmax(dim=1) == labels).double().mean())
        print(f"{name:24}{size:8.1f}{right:10.3f}{float((output - expected).abs().max()):20.1e}{took:20.2f}")


if __name__ == "__main__":
    main()
