"""Sentences with one class each, for transformer encoders. Tokens are integers; 0 fills a sentence up behind its end."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ranksearch.errors import InvalidArgument, InvalidModel, MissingDependency
from ranksearch.home import user_path
from ranksearch.tasks._cache import write_cache
from ranksearch.tasks.classification import Classification, Schedule
from ranksearch.tasks.networks import load_weights
from ranksearch.tensors import absorb, save

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
COLUMNS = ("text", "label", "split")


class SentenceClassifier(nn.Module):
    """An encoder, the mean of its last hidden states over the tokens, scaled to length 1, and a linear probe on top
    (Reimers and Gurevych 2019, section 3). Token 0 is padding, as in BERT's vocabulary, and is not attended to.

    Args:
        encoder: a BERT-like model of transformers: ``encoder(input_ids, attention_mask)`` has ``last_hidden_state``.
        classes: outputs of the probe.
    """

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.probe = nn.Linear(encoder.config.hidden_size, classes)  # type: ignore[union-attr]

    def embed(
        self,
        tokens: Tensor,  # int64, shape: (n, length)
    ) -> Tensor:  # shape: (n, hidden_size), rows of norm 1
        real = tokens != 0
        states = self.encoder(input_ids=tokens, attention_mask=real.long()).last_hidden_state
        weights = real[..., None].to(states.dtype)
        mean = (states * weights).sum(1) / weights.sum(1).clamp_min(1)
        return nn.functional.normalize(mean, dim=1)

    def forward(self, tokens: Tensor) -> Tensor:  # shape: (n, classes)
        return self.probe(self.embed(tokens))


def pretrained_encoder(folder: str | Path) -> tuple[nn.Module, Any]:
    """An encoder and its tokenizer from a folder in the layout of transformers (config.json, model.safetensors,
    tokenizer.json); nothing is downloaded. The pooler, which sentence embeddings do not use, is left out.

    Raises:
        InvalidArgument: no such folder, or one that transformers cannot load.
        MissingDependency: transformers is not installed.
    """
    folder = user_path(folder)
    if not (folder / "config.json").is_file():
        raise InvalidArgument(f"encoder={str(folder)!r}: has no config.json; give the folder of a model of transformers")
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise MissingDependency("text encoders need transformers: pip install 'ranksearch[transformers]'") from error
    try:
        encoder = AutoModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False).float()
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise InvalidArgument(f"encoder={str(folder)!r}: cannot be loaded ({error})") from error
    return encoder.eval(), tokenizer


def sentences(
    files: str | Path | Sequence[str | Path],
    tokenizer: Any,
    *,
    length: int = 48,
    learning_rate: float = 0.001,
    batch_size: int = 32,
    weight_decay: float = 0.0,
    schedule: Schedule = "cosine",
) -> Classification:
    """Parquet files with columns ``text``, ``label`` (integers from 0) and ``split`` (train, validation or test).

    Args:
        files: one or several; they are joined.
        tokenizer: of transformers, with padding token 0.
        length: sentences are cut after so many tokens.

    Raises:
        InvalidArgument: no such file, other columns, a split without rows, or a tokenizer that pads otherwise.
    """
    if getattr(tokenizer, "pad_token_id", None) != 0:
        raise InvalidArgument(f"tokenizer pads with {getattr(tokenizer, 'pad_token_id', None)!r}; SentenceClassifier takes 0 for padding")
    paths = [user_path(f) for f in ([files] if isinstance(files, (str, Path)) else files)]
    if not paths:
        raise InvalidArgument("files is empty: name at least one parquet file")
    frames = [_read(path) for path in paths]
    splits = {}
    for split in SPLITS:
        texts = [text for frame in frames for text in frame.text[frame.split == split]]
        labels = [label for frame in frames for label in frame.label[frame.split == split]]
        if not texts:
            raise InvalidArgument(f"files={[str(p) for p in paths]}: no row has split {split!r}; each of {', '.join(SPLITS)} needs some")
        tokens = tokenizer(texts, truncation=True, max_length=length, padding="max_length")["input_ids"]
        splits[split] = (np.array(tokens, dtype=np.int64), np.array(labels, dtype=np.int64))
    return Classification(
        **splits, learning_rate=learning_rate, batch_size=batch_size, weight_decay=weight_decay, schedule=schedule,
    )  # fmt: skip


def _read(path: Path) -> pd.DataFrame:
    import pandas as pd

    if not path.is_file():
        raise InvalidArgument(f"{path}: no such file; give a parquet file with columns {', '.join(COLUMNS)}")
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"{path}: not a readable parquet file ({error})") from error
    missing = [name for name in COLUMNS if name not in frame]
    if missing:
        raise InvalidArgument(f"{path}: has no column {', '.join(missing)}; it has {', '.join(frame.columns)}")
    if not pd.api.types.is_integer_dtype(frame.label) or frame.text.isna().any():
        raise InvalidArgument(f"{path}: labels must be integers (they are {frame.label.dtype}), and no text may be missing")
    return frame


def fit_probe(model: SentenceClassifier, task: Classification, *, strength: float = 10.0, cache: str | Path | None = None) -> None:
    """Fit the probe in place by logistic regression on the frozen embeddings of the training split.

    Args:
        strength: inverse regularization, ``C`` of scikit-learn's LogisticRegression.
        cache: folder that the probe is kept in, by a hash of encoder, task and strength; None: it is fitted anew.

    Raises:
        InvalidModel: the task has another number of classes than the probe.
        MissingDependency: scikit-learn is not installed.
    """
    if task.classes != model.probe.out_features:
        raise InvalidModel(f"model has {model.probe.out_features} outputs, the task {task.classes} classes")
    path = None if cache is None else user_path(cache) / f"probe-{_probe_key(model, task, strength)}.safetensors"
    if path is not None and path.exists():
        try:
            load_weights(model.probe, path)
            return
        except InvalidModel as error:
            log.warning("the cached probe cannot be used and is fitted again: %s", error)
    weight, bias = _logistic_regression(model, task, strength)
    if task.classes == 2:  # one logit for class 1: as two outputs of opposite sign
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    with torch.no_grad():
        model.probe.weight.copy_(weight)
        model.probe.bias.copy_(bias)
    if path is not None:
        state = {name: tensor.detach().cpu().clone() for name, tensor in model.probe.state_dict().items()}
        write_cache(path, lambda temporary: save(state, temporary))


def _logistic_regression(model: SentenceClassifier, task: Classification, strength: float) -> tuple[Tensor, Tensor]:
    """Coefficients, shape (classes, hidden) or (1, hidden) for two classes, and intercepts, float64."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise MissingDependency("the probe is fitted with scikit-learn: pip install scikit-learn") from error
    count = -(-task.sizes()["train"] // task.batch_size)
    with torch.no_grad():
        pairs = [(model.embed(tokens).double().numpy(), labels.numpy()) for tokens, labels in task.labelled(count)]
    x, y = (np.concatenate(part) for part in zip(*pairs, strict=True))
    fitted = LogisticRegression(C=strength, max_iter=1000).fit(x, y)
    return torch.from_numpy(fitted.coef_), torch.from_numpy(fitted.intercept_)


def _probe_key(model: SentenceClassifier, task: Classification, strength: float) -> str:
    digest = hashlib.sha256(f"{task.fingerprint()} {strength!r}".encode())
    absorb(digest, sorted(model.encoder.state_dict().items()))
    return digest.hexdigest()[:16]
