"""Networks trained from scratch, once, since their weights are cached."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ranksearch.errors import InvalidModel
from ranksearch.home import user_path
from ranksearch.tasks._cache import write_cache
from ranksearch.tasks.networks import load_weights
from ranksearch.tasks.task import Task
from ranksearch.tensors import save
from ranksearch.threads import few_of, threads

log = logging.getLogger(__name__)


def trained(build: Callable[[], nn.Module], task: Task, *, epochs: float, seed: int, cache: str | Path) -> nn.Module:
    """The network of ``build()`` after ``task.fine_tune`` trained it for ``epochs``, in evaluation mode.

    A small network (`ranksearch.threads.few`) is trained on one thread, so that its weights do not depend on how many there are. The
    weights are kept as ``trained-<key>.safetensors`` in the folder ``cache``; the key stands for the shapes of the network, the task, the
    epochs and the seed. A file that does not fit is reported in the log and made again.

    Raises:
        InvalidArgument, Diverged: as `Task.fine_tune`.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        model = build()
    layout = [(key, tuple(tensor.shape), str(tensor.dtype)) for key, tensor in model.state_dict().items()]
    key = hashlib.sha256(repr((layout, task.fingerprint(), float(epochs), seed)).encode()).hexdigest()[:16]
    path = user_path(cache) / f"trained-{key}.safetensors"
    if path.exists():
        try:
            return load_weights(model, path).eval()
        except InvalidModel as error:
            log.warning("the cached weights cannot be used and are made again: %s", error)
    with threads(few_of(model)):
        task.fine_tune(model, epochs=epochs, seed=seed)
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    write_cache(path, lambda temporary: save(state, temporary))
    return model.eval()
