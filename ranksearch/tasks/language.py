"""Causal language models: text as one stream of tokens, cut into sequences. Measured are perplexity, and how near a network stays to a
reference."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch import checks
from ranksearch.errors import InvalidArgument, InvalidModel
from ranksearch.sites import device_of, mode, run
from ranksearch.tasks._fine_tune import InSteps
from ranksearch.tasks._optimizers import AdamW
from ranksearch.tasks.classification import rate
from ranksearch.tasks.task import Metric, Split, Training, check_split, logits_of, mean_divergence
from ranksearch.tensors import absorb

Text = str | Path | Sequence[Path] | Tensor | np.ndarray
CALIBRATION_SEED = 0


@final
class LanguageModel(InSteps):
    """Networks that predict the next token.

    Args:
        train, validation, test: text (a ``str``), text files (a ``Path`` or several), or token ids: an integer array of shape (tokens,),
            cut into sequences of ``length``, or of shape (sequences, length) as it is. What is left of a text behind the last whole
            sequence is not used.
        tokenizer: of transformers, or any callable that gives ``tokenizer(text)["input_ids"]``; needed for text.
        length: tokens of a sequence.
        reference: the dense network, which ``divergence`` and ``agreement`` are taken to; None: these are not reported. It travels to every
            worker, and every measurement runs it as well.
        keywords: the network takes ``input_ids=`` and ``use_cache=False``, as models of transformers do: a cache of keys and values would
            grow with every call, and keep hooked or exported networks from being what they are. False: it takes the tokens alone.
        batch_size: sequences of a batch.
        learning_rate: the peak of AdamW's, which falls to 0 as a cosine.
        weight_decay: of AdamW, on all parameters.

    Reports ``perplexity`` and ``loss``, the exponential of the mean negative log-likelihood of a token given those before it in its
    sequence, and that itself, in nats; with a reference ``divergence``, the mean KL divergence of the next token's distribution from the
    reference's, in nats, and ``agreement``, the share of tokens at which both find the same token the likeliest.

    The loss is a mean over tokens, so the true Fisher in nats per token is ``length - 1`` times what gradients of the loss give: the same
    for all layers.

    Raises:
        InvalidArgument: a text without tokenizer, a split without a whole sequence, ids that are no integers, or an option out of range.
    """

    predictive = "other"

    def __init__(
        self,
        *,
        train: Text,
        validation: Text,
        test: Text | None = None,
        tokenizer: Any = None,
        length: int = 256,
        reference: nn.Module | None = None,
        keywords: bool = True,
        batch_size: int = 4,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.0,
    ) -> None:
        checks.whole("length", length, least=2)
        checks.whole("batch_size", batch_size, least=1)
        checks.number("learning_rate", learning_rate, above=0)
        checks.number("weight_decay", weight_decay, least=0)
        given = {"train": train, "validation": validation} | ({} if test is None else {"test": test})
        self._splits = {name: _sequences(name, text, tokenizer, length) for name, text in given.items()}
        self.keywords, self.batch_size = keywords, batch_size
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self._reference = reference
        self.metrics = (Metric("perplexity", "min"), Metric("loss", "min"))
        if reference is not None:
            self.metrics += (Metric("divergence", "min"), Metric("agreement", "max"))

    def sizes(self) -> dict[str, int]:
        """How many sequences each split has."""
        return {name: len(tokens) for name, tokens in self._splits.items()}

    @cached_property
    def _fingerprint(self) -> str:
        protocol = ["language", self.keywords, self.batch_size, self.learning_rate, self.weight_decay, [m.name for m in self.metrics]]
        digest = hashlib.sha256(json.dumps(protocol).encode())
        absorb(digest, ((name, self._splits[name]) for name in ("train", "validation")))
        if self._reference is not None:
            absorb(digest, sorted(self._reference.state_dict().items()))
        return digest.hexdigest()[:16]

    def fingerprint(self) -> str:
        """See `Task.fingerprint`. The test split is no part of it."""
        return self._fingerprint

    def example(self) -> Any:
        """The first training sequence, as the network takes it."""
        return self._inputs(self._splits["train"][:1])

    def labelled(self, batches: int) -> Iterator[tuple[Any, Tensor]]:
        """See `Task.labelled`; the targets of a sequence are its own tokens, which `loss` compares one place further on."""
        checks.whole("batches", batches, least=1)
        return self._draw(batches)

    def _draw(self, batches: int) -> Iterator[tuple[Any, Tensor]]:
        tokens = self._splits["train"]
        order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(CALIBRATION_SEED))
        for chosen in order.split(self.batch_size)[:batches]:
            yield self._inputs(tokens[chosen]), tokens[chosen]

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Mean negative log-likelihood of each token after the first, in nats.

        Args:
            outputs: logits, shape (sequences, length, vocabulary), or what has them as ``logits`` or first.
            targets: tokens, shape (sequences, length).
        """
        logits = _logits(outputs, targets.shape)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets[:, 1:].flatten().to(logits.device))

    def divergence(self, outputs: Any, reference: Any) -> Tensor:
        """See `Task.divergence`: of the next token's distribution."""
        return mean_divergence(_logits(outputs, None)[:, :-1], _logits(reference, None)[:, :-1], -1)

    def sample_targets(self, outputs: Any, generator: torch.Generator) -> Tensor:
        """See `Task.sample_targets`: a token for each place from the distribution that the network gives it after the tokens of the
        text, int64, shape (sequences, length). The first has none and is 0."""
        logits = _logits(outputs, None)[:, :-1].detach().float()
        drawn = torch.multinomial(logits.flatten(0, 1).softmax(dim=-1), 1, generator=generator).reshape(logits.shape[:2])
        return torch.cat([torch.zeros_like(drawn[:, :1]), drawn], dim=1)

    def training(self, model: nn.Module, *, epochs: float, seed: int) -> Training:
        """See `Task.training`."""
        return _Steps(self, model, epochs=epochs, seed=seed)

    def measure(self, model: nn.Module, split: Split = "validation") -> dict[str, float]:
        """See `Task.measure`."""
        check_split(split, self._splits)
        tokens = self._splits[split]
        count = tokens.shape[0] * (tokens.shape[1] - 1)
        loss = divergence = same = 0.0
        with mode(model, training=False), torch.no_grad():
            for part in tokens.split(self.batch_size):
                logits = _logits(run(model, self._inputs(part)), part.shape)
                loss += float(self.loss(logits, part)) * part[:, 1:].numel()
                if self._reference is not None:
                    further, agreed = self._compared(logits[:, :-1], part)
                    divergence, same = divergence + further, same + agreed
        found = {"perplexity": math.exp(min(loss / count, 700.0)), "loss": loss / count}
        return found if self._reference is None else found | {"divergence": divergence / count, "agreement": same / count}

    def _compared(self, logits: Tensor, tokens: Tensor) -> tuple[float, int]:
        """Sum of the divergences from the reference, and at how many tokens both agree."""
        assert self._reference is not None
        with mode(self._reference, training=False):
            wanted = _logits(run(self._reference, self._inputs(tokens)), tokens.shape)[:, :-1].to(logits.device)
        divergence = float(mean_divergence(logits, wanted, -1)) * logits[..., 0].numel()
        return max(divergence, 0.0), int((logits.argmax(-1) == wanted.argmax(-1)).sum())

    def _inputs(self, tokens: Tensor) -> Any:
        return {"input_ids": tokens.clone(), "use_cache": False} if self.keywords else tokens.clone()

    # Tokens travel as numpy arrays: pickle keeps those out of band, so that processes of one machine share them.
    def __getstate__(self) -> dict[str, Any]:
        splits = {name: tokens.numpy() for name, tokens in self._splits.items()}
        return {**self.__dict__, "_splits": splits, "_fingerprint": self._fingerprint}

    def __setstate__(self, state: dict[str, Any]) -> None:
        with warnings.catch_warnings():
            # such arrays may be read-only; nothing here writes to them, and what is handed out is a copy
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            splits = {name: torch.from_numpy(tokens) for name, tokens in state["_splits"].items()}
        vars(self).update(state | {"_splits": splits})


class _Steps(Training):
    """AdamW over shuffled sequences; a new order every epoch."""

    def __init__(self, task: LanguageModel, model: nn.Module, *, epochs: float, seed: int) -> None:
        checks.number("epochs", epochs, above=0)
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            raise InvalidModel("model has no parameter that requires a gradient: call model.requires_grad_(True), or use epochs=0")
        self._task, self._device = task, device_of(model)
        self._tokens = task._splits["train"]
        self._per_epoch = -(-len(self._tokens) // task.batch_size)
        self.steps = max(1, round(epochs * self._per_epoch))
        self.optimizer = AdamW(parameters, lr=task.learning_rate, weight_decay=task.weight_decay)
        self._done = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.int64)

    def batch(self) -> tuple[Any, Tensor]:
        if self._done >= self.steps:
            raise InvalidArgument(f"step {self._done + 1}: this training has {self.steps} steps; ask for more epochs")
        place, size = self._done % self._per_epoch, self._task.batch_size
        if place == 0:
            self._order = torch.randperm(len(self._tokens), generator=self._generator)
        tokens = self._tokens[self._order[place * size : (place + 1) * size]].to(self._device)
        for group in self.optimizer.param_groups:
            group["lr"] = self._task.learning_rate * rate(self._done, self.steps, "cosine")
        self._done += 1
        return self._task._inputs(tokens), tokens

    def state_dict(self) -> dict[str, Any]:
        return {"done": self._done, "order": self._order, "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._done = int(state["done"])
        self._order = state["order"].cpu().to(torch.int64)
        self._generator.set_state(state["generator"].cpu())


def _logits(outputs: Any, shape: torch.Size | None) -> Tensor:
    """The logits among what a model answers, shape (sequences, length, vocabulary).

    Raises:
        InvalidModel: there are none, or of other sequences than ``shape``."""
    found = logits_of(outputs)
    if found is None or found.ndim != 3 or (shape is not None and found.shape[:2] != shape):
        got = type(outputs).__name__ if found is None else f"shape {tuple(found.shape)}"
        wanted = "(sequences, length, vocabulary)" if shape is None else f"({shape[0]}, {shape[1]}, vocabulary)"
        raise InvalidModel(f"model answered with {got}: a language model gives logits of shape {wanted}")
    return found


def _sequences(split: str, text: Text, tokenizer: Any, length: int) -> Tensor:
    """The tokens of a split, int64, shape (sequences, length)."""
    ids = text if isinstance(text, (Tensor, np.ndarray)) else _tokenized(split, _read(split, text), tokenizer)
    tokens = torch.as_tensor(np.array(ids) if isinstance(ids, np.ndarray) else ids).detach().cpu()
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool or tokens.ndim not in (1, 2):
        got = f"{tokens.dtype} of shape {tuple(tokens.shape)}"
        raise InvalidArgument(f"{split}: {got}; token ids are integers, of shape (tokens,) or (sequences, length)")
    if tokens.ndim == 1:
        tokens = tokens[: len(tokens) // length * length].reshape(-1, length)
    if not tokens.numel() or tokens.shape[1] < 2:
        raise InvalidArgument(f"{split}: holds no whole sequence of length={length}; give more text, or a smaller length")
    if int(tokens.min()) < 0:
        raise InvalidArgument(f"{split}: holds the id {int(tokens.min())}; ids count from 0")
    return tokens.long().contiguous()


def _read(split: str, text: str | Path | Sequence[Path]) -> str:
    if isinstance(text, str):
        return text
    paths = [text] if isinstance(text, Path) else list(text)
    if not paths or not all(isinstance(path, Path) for path in paths):
        raise InvalidArgument(f"{split}: give text, an array of token ids, a Path or several, not {type(text).__name__}")
    return "\n".join(_file(split, path.expanduser()) for path in paths)


def _file(split: str, path: Path) -> str:
    if not path.is_file():
        raise InvalidArgument(f"{split}: {path}: no such file; a text itself is given as a str, a file as a Path")
    content = path.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")  # which every byte is a letter of


def _tokenized(split: str, text: str, tokenizer: Any) -> Sequence[int]:
    if tokenizer is None:
        raise InvalidArgument(f"{split}: is text, which needs a tokenizer=; or give an array of token ids")
    return tokenizer(text)["input_ids"]
