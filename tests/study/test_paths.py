"""``~`` in front of a path is the home folder, wherever the library takes one."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ranksearch.errors import InvalidArgument, InvalidModel
from ranksearch.networks import export
from ranksearch.sites import find_sites
from ranksearch.space import SearchSpace
from ranksearch.space.space import build_space
from ranksearch.space.spectra import Spectra
from ranksearch.statistics import collect
from ranksearch.store import Store
from ranksearch.supernet import RankSupernet, load_trained, train
from ranksearch.supernet.methods import METHODS
from ranksearch.tasks import Classification
from ranksearch.tasks.images import cifar10, fashion_mnist, read_idx
from ranksearch.tasks.networks import load_weights
from ranksearch.tasks.text import pretrained_encoder, sentences
from ranksearch.tasks.training import trained
from ranksearch.tensors import save


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder; the working directory is another one, and stays empty."""
    folder, here = tmp_path / "user", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(here)
    return folder


def test_what_is_written_and_read_again_is_in_the_home_folder(user: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=generator)
    task = Classification(train=(x, (x[:, 0] > 0).long()), validation=(x, (x[:, 0] > 0).long()), learning_rate=0.05, batch_size=32)
    net = trained(lambda: nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 2)), task, epochs=1, seed=0, cache="~/trained")
    sites = find_sites(net, task.example())
    collect(net, sites, task.calibration(1), labels=None, cache="~/statistics")
    spectra = Spectra(net, sites, cache="~/spectra")
    space: SearchSpace = build_space(spectra)
    supernet = RankSupernet(net, space, spectra=spectra)
    train(supernet, task, METHODS["plain"](supernet, task.loss, seed=0), epochs=1, seed=0, folder="~/supernet")
    assert load_trained(supernet, "~/supernet") > 0
    export.save(net, "~/net", manifest={"configuration": {}}, example=task.example())
    assert export.read_manifest("~/net")["files"] and isinstance(export.load("~/net", net), nn.Module)
    save(dict(net.state_dict()), user / "weights.safetensors")
    load_weights(net, "~/weights.safetensors")
    Store.open("~/stores/s.db", study="s", fingerprint="f").close()
    with gzip.open(user / "labels.gz", "wb") as file:
        file.write(bytes((0, 0, 8, 1, 0, 0, 0, 2, 7, 9)))
    assert np.array_equal(read_idx("~/labels.gz", dimensions=1), [7, 9])
    assert {"trained", "statistics", "supernet", "net", "stores"} <= {entry.name for entry in user.iterdir()}
    assert not list((user.parent / "here").iterdir())


@pytest.mark.parametrize("path", ["~/no", "~no.such.user/no"])
def test_folders_of_data_that_are_not_there(user: Path, path: str) -> None:
    shown = str(user / "no") if path == "~/no" else path
    for read in (cifar10, fashion_mnist, pretrained_encoder):
        with pytest.raises(InvalidArgument, match=shown):
            read(path)

    class Tokenizer:
        pad_token_id = 0

    with pytest.raises(InvalidArgument, match=shown):
        sentences(path, Tokenizer())
    with pytest.raises(InvalidArgument, match=shown):
        read_idx(path, dimensions=1)
    with pytest.raises(InvalidModel, match=shown):
        load_weights(nn.Linear(2, 2), path)
