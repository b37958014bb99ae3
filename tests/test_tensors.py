"""Hashes of tensors, which stores and caches are found by: the values here are those of stores that exist."""

from __future__ import annotations

import hashlib
import io
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ranksearch import Study
from ranksearch.supernet.train import identity
from ranksearch.tasks import Classification
from ranksearch.tensors import CACHED, absorb, content, pieces, save


def network() -> nn.Sequential:
    """A network whose state is written down, not drawn."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    with torch.no_grad():
        for k, tensor in enumerate(model.state_dict().values()):
            if tensor.is_floating_point():
                tensor.copy_(((torch.arange(tensor.numel()).reshape(tensor.shape) + k) % 7 - 3) / 4)
    return model


def task() -> Classification:
    data = torch.zeros(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    return Classification(train=data, validation=data, learning_rate=0.1, batch_size=2)


def unnamed(tensors: Any) -> list[tuple[str, torch.Tensor]]:
    return [("", tensor) for _, tensor in tensors]


def test_hashes_of_existing_caches() -> None:
    model = network()
    digest = hashlib.sha256(b"start")
    absorb(digest, unnamed(sorted(model.state_dict().items())))
    assert digest.hexdigest() == "1b2d4b7d70e39bcaf3e556dce3ad2e456bdb3e9de959db8bae785365dcbd4abf"
    model.register_buffer("odd", torch.tensor(3))
    model.register_buffer("brain", torch.arange(6).reshape(2, 3).t().to(torch.bfloat16))
    model.register_buffer("flag", torch.tensor([True, False]))
    model.register_buffer("empty", torch.zeros(0, 3))
    digest = hashlib.sha256()
    absorb(digest, unnamed(sorted(model.state_dict().items())))
    assert digest.hexdigest() == "e70ca425a7f4e58d320fbf95ba1938490557d3943d68cd81cdd975ae8e583e7f"


def test_fingerprints_of_existing_stores() -> None:
    study = Study(name="s", model=network(), task=task())
    assert study.task.fingerprint() == "845ada5e7e509623"
    assert study.former_fingerprint == "2e1e457be699daa7"


def test_identity_of_existing_supernets() -> None:
    supernet: Any = SimpleNamespace(state_dict=network().state_dict, refresh_every=1, space=SimpleNamespace(fingerprint="f"))
    method: Any = SimpleNamespace(name="m", sampling=None)
    assert identity(supernet, task(), method, 1.0, 0)["start"] == "6c64c617a9dd71a4"


def test_key_of_existing_probes() -> None:
    from ranksearch.tasks.text import _probe_key

    model: Any = SimpleNamespace(encoder=network())
    assert _probe_key(model, task(), 1.0) == "fb281ff706020583"


def test_checksums_of_existing_checkpoints() -> None:
    weight = network()[0].get_parameter("weight")
    assert zlib.crc32(content(weight)) == 781550627
    assert zlib.crc32(content(weight.half().permute(0, 2, 3, 1))) == 603260121


@pytest.mark.parametrize(
    "other", [{"b": torch.arange(6.0)}, {"a": torch.arange(6.0).reshape(2, 3)}, {"a": torch.arange(6)}, {"a": torch.arange(1.0, 7.0)}]
)
def test_name_shape_type_and_content_count(other: dict[str, torch.Tensor]) -> None:
    one, two = hashlib.sha256(), hashlib.sha256()
    absorb(one, {"a": torch.arange(6.0)}.items())
    absorb(two, other.items())
    assert one.hexdigest() != two.hexdigest()


def test_strides_do_not_count() -> None:
    tensor = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert content(tensor.to(memory_format=torch.channels_last)) == content(tensor)
    assert content(tensor[:, 1:2]) == content(tensor[:, 1:2].clone())


def test_saved_tensors_are_read_again(tmp_path: Path) -> None:
    save({"a": torch.arange(3)}, tmp_path / "x.safetensors", {"key": "value"})
    assert torch.equal(load_file(tmp_path / "x.safetensors")["a"], torch.arange(3))


def test_a_disk_that_refuses_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        save({"a": torch.arange(3)}, tmp_path / "nowhere" / "x.safetensors")


def test_tensors_that_the_format_refuses_are_an_error_of_the_format(tmp_path: Path) -> None:
    with pytest.raises((SafetensorError, RuntimeError, ValueError)) as caught:
        save({"a": torch.eye(3).to_sparse()}, tmp_path / "x.safetensors")
    assert not isinstance(caught.value, OSError)


class Packed:
    """State as libraries keep it: an object with attributes."""

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


def quantized(scale: float = 0.1, zero: int = 0, shift: float = 0.0) -> torch.Tensor:
    return torch.quantize_per_tensor(torch.arange(6.0) + shift, scale, zero, torch.qint8)


def per_channel(last: float) -> torch.Tensor:
    return torch.quantize_per_channel(torch.eye(3), torch.tensor([0.1, 0.2, last]), torch.zeros(3, dtype=torch.long), 0, torch.qint8)


def hashed(value: object) -> str:
    digest = hashlib.sha256()
    absorb(digest, [("name", value)])
    return digest.hexdigest()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("value", "others"),
    [
        (lambda: {"scale": 2.0, "on": True}, [lambda: {"scale": 2.5, "on": True}, lambda: {"on": True}]),
        (lambda: [1, "a", None], [lambda: [1, "b", None], lambda: [1, "a"], lambda: (1, "a", None)]),
        (lambda: (quantized(), None), [lambda: (quantized(0.2), None), lambda: (quantized(zero=1), None), lambda: (quantized(), 1)]),
        (lambda: quantized(), [lambda: quantized(shift=1)]),
        (lambda: per_channel(0.3), [lambda: per_channel(0.4)]),
        (lambda: torch.eye(3).to_sparse(), [lambda: (2 * torch.eye(3)).to_sparse(), lambda: torch.eye(4).to_sparse()]),
        (lambda: torch.eye(3).to_sparse_csr(), [lambda: (2 * torch.eye(3)).to_sparse_csr()]),
        (lambda: torch.tensor([1 + 2j]).conj(), [lambda: torch.tensor([1 + 2j])]),
        (lambda: io.BytesIO(b"state"), [lambda: io.BytesIO(b"other")]),
        (lambda: np.arange(3), [lambda: np.arange(3) + 1, lambda: np.arange(3.0)]),
        (lambda: Packed(w=torch.ones(2), bits=4), [lambda: Packed(w=torch.zeros(2), bits=4), lambda: Packed(w=torch.ones(2), bits=8)]),
        (lambda: {"b", "a"}, [lambda: {"a"}]),
        (lambda: torch.float16, [lambda: torch.float32]),
    ],
)  # fmt: skip
def test_states_that_are_no_plain_tensors_are_hashed_by_what_is_in_them(value: Any, others: Any) -> None:
    assert hashed(value()) == hashed(value())
    assert len({hashed(value()), *(hashed(other()) for other in others)}) == 1 + len(others)


def test_a_state_that_holds_itself_comes_to_an_end() -> None:
    state: dict[str, Any] = {"a": 1}
    state["self"] = state
    assert hashed(state) == hashed(state)


def test_pieces_are_everything_in_order_and_small() -> None:
    x = torch.arange(4 * CACHED, dtype=torch.float32).reshape(16, -1)
    y = torch.arange(16)
    found = list(pieces(x, y))
    assert torch.equal(torch.cat([a for a, _ in found]), x) and torch.equal(torch.cat([b for _, b in found]), y)
    assert max(a.numel() for a, _ in found) <= CACHED and len(found) == 4
    assert [len(a) for (a,) in pieces(torch.zeros(3, 2 * CACHED))] == [1, 1, 1]
    assert [a.shape for (a,) in pieces(torch.zeros(0, 5))] == [(0, 5)]
