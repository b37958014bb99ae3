from __future__ import annotations

import gzip
import importlib.util
import io
import os
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ranksearch.errors import InvalidArgument, MissingDependency
from ranksearch.tasks import images
from ranksearch.tasks.images import CropAndFlip, cifar10, digits, fashion_mnist, read_idx
from ranksearch.tasks.networks import cifar_resnet, load_weights

SHARED = Path(os.environ.get("RANKSEARCH_SHARED", "nowhere"))
FASHION = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKSEARCH_HOME", str(tmp_path / "home"))


# -- digits -------------------------------------------------------------------------------------------------------


def test_digits_are_split_in_proportion_without_overlap() -> None:
    task = digits()
    assert task.sizes() == {"train": 1000, "validation": 397, "test": 400}
    splits = task._splits
    whole = torch.bincount(torch.cat([y for _, y in splits.values()])) / 1797
    for _, y in splits.values():
        torch.testing.assert_close(torch.bincount(y) / len(y), whole, atol=0.005, rtol=0)
    from sklearn.datasets import load_digits

    rows = sorted(tuple(row) for row in load_digits().data.astype(int).tolist())
    assert sorted(tuple(row) for row in torch.cat([x for x, _ in splits.values()]).mul(16).int().flatten(1).tolist()) == rows
    inputs = torch.cat([x for x, _ in task.labelled(100)])
    assert len(inputs) == 1000 and abs(inputs.mean()) < 0.02 and abs(inputs.std() - 1) < 0.02
    assert digits().fingerprint() == task.fingerprint()


def test_digits_are_read_from_the_file_or_by_scikit_learn_or_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = digits().fingerprint()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "sklearn" / "__init__.py")))
    assert digits().fingerprint() == fingerprint  # of a version whose file is elsewhere
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else find_spec(name))
    with pytest.raises(MissingDependency, match="pip install scikit-learn"):
        digits()


# -- augmentation -------------------------------------------------------------------------------------------------


def test_crops_are_windows_of_the_padded_image_mirrored_or_not() -> None:
    x = torch.arange(1, 1 + 6 * 2 * 4 * 5, dtype=torch.uint8).reshape(6, 2, 4, 5)
    before = x.clone()
    out = CropAndFlip(padding=2)(x, torch.Generator().manual_seed(0))
    assert out.shape == x.shape and out.dtype == x.dtype and torch.equal(x, before)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    for image, source in zip(out, padded, strict=True):
        windows = [source[:, t : t + 4, l : l + 5] for t in range(5) for l in range(5)]
        assert any(torch.equal(image, w) or torch.equal(image, w.flip(2)) for w in windows)
    assert torch.equal(out, CropAndFlip(padding=2)(x, torch.Generator().manual_seed(0)))
    flips = CropAndFlip(padding=0)(x.repeat(20, 1, 1, 1), torch.Generator().manual_seed(0))
    mirrored = sum(torch.equal(a, b.flip(2)) for a, b in zip(flips, x.repeat(20, 1, 1, 1), strict=True))
    assert 40 <= mirrored <= 80
    assert torch.equal(CropAndFlip(padding=0, flip=False)(x, torch.Generator()), x)


# -- CIFAR-10 -----------------------------------------------------------------------------------------------------


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, encoded: list[bytes | None], labels: list[int | None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": b, "path": f"{i}.png"} for i, b in enumerate(encoded)]
    pq.write_table(pa.table({"img": rows, "label": pa.array(labels, pa.int64())}), path)


@pytest.fixture
def cifar(tmp_path: Path) -> tuple[Path, np.ndarray]:
    pixels = np.random.default_rng(0).integers(0, 256, (26, 32, 32, 3), dtype=np.uint8)
    encoded = [png(p) for p in pixels]
    folder = tmp_path / "data"
    write(folder / "train-00000-of-00002.parquet", encoded[:12], [i % 10 for i in range(12)])
    write(folder / "train-00001-of-00002.parquet", encoded[12:20], [i % 10 for i in range(12, 20)])
    write(folder / "test-00000-of-00001.parquet", encoded[20:], list(range(6)))
    return folder, pixels


def test_cifar_is_read_in_channel_order_and_split(cifar: tuple[Path, np.ndarray]) -> None:
    folder, pixels = cifar
    task = cifar10(folder, validation=5)
    assert task.sizes() == {"train": 15, "validation": 5, "test": 6}
    x, y = task._splits["test"]
    assert x.dtype == torch.uint8 and np.array_equal(x.numpy(), pixels[20:].transpose(0, 3, 1, 2)) and y.tolist() == list(range(6))
    both = torch.cat([task._splits["train"][0], task._splits["validation"][0]]).numpy()
    order = np.random.default_rng(0).permutation(20)
    assert np.array_equal(both, pixels[:20].transpose(0, 3, 1, 2)[order])
    expected = (task._splits["train"][0][0, 1] / 255 - 0.456) / 0.224
    torch.testing.assert_close(task.example()[0, 1], expected)


def test_decoded_images_are_cached_until_the_files_change(
    cifar: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, _ = cifar
    first = cifar10(folder, validation=5).fingerprint()
    decoded: list[str] = []
    real = images._decode
    monkeypatch.setattr(images, "_decode", lambda path, size: (decoded.append(path.name), real(path, size))[1])
    assert cifar10(folder, validation=5).fingerprint() == first and not decoded
    cached = sorted((tmp_path / "home" / "cache").iterdir())
    assert len(cached) == 4 and all(p.suffix == ".npy" and not p.name.startswith(".") for p in cached)
    for path in cached:  # torn by a full disk or a crash
        path.write_bytes(path.read_bytes()[:150])
    assert cifar10(folder, validation=5).fingerprint() == first and len(decoded) == 3
    decoded.clear()
    os.utime(folder / "test-00000-of-00001.parquet", ns=(1, 1))
    cifar10(folder, validation=5)
    assert decoded == ["test-00000-of-00001.parquet"]


def test_a_cache_that_cannot_be_written_only_warns(cifar: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    (tmp_path / "home").write_text("in the way")
    with pytest.warns(UserWarning, match="cannot cache"):
        assert cifar10(cifar[0], validation=5).sizes()["train"] == 15


@pytest.mark.parametrize("validation", [0, -3, 20, 5000])
def test_a_validation_set_that_leaves_nothing_is_refused(cifar: tuple[Path, np.ndarray], validation: int) -> None:
    with pytest.raises(InvalidArgument, match="validation="):
        cifar10(cifar[0], validation=validation)


def test_errors_of_cifar_folders_and_files(cifar: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    folder, pixels = cifar
    test = folder / "test-00000-of-00001.parquet"
    good = png(pixels[0])
    with pytest.raises(InvalidArgument, match="no such folder"):
        cifar10(tmp_path / "none")
    cases: list[tuple[str, pa.Table | bytes]] = [
        ("columns image", pa.table({"image": [{"bytes": good}], "label": [1]})),
        ("columns img: binary", pa.table({"img": [good], "label": [1]})),
        ("columns img.*label: double", pa.table({"img": [{"bytes": good}], "label": [1.5]})),
        ("row 1 cannot be read", pa.table({"img": [{"bytes": good}, {"bytes": good[:200]}], "label": [1, 2]})),
        ("row 0 cannot be read", pa.table({"img": [{"bytes": b"no image"}], "label": [1]})),
        ("row 1 cannot be read", pa.table({"img": [{"bytes": good}, {"bytes": None}], "label": [1, 2]})),
        ("row 1 cannot be read", pa.table({"img": [{"bytes": good}, None], "label": [1, 2]})),
        ("row 0 is 31 x 32", pa.table({"img": [{"bytes": png(pixels[0][:, :31])}], "label": [1]})),
        ("1 labels are missing", pa.table({"img": [{"bytes": good}, {"bytes": good}], "label": pa.array([1, None], pa.int64())})),
        ("labels run from 0 to 10", pa.table({"img": [{"bytes": good}, {"bytes": good}], "label": [0, 10]})),
        ("not a readable parquet", b"PAR1 nothing"),
        ("not a readable parquet", test.read_bytes()[:-100]),
        ("not a readable parquet", b""),
    ]
    for message, content in cases:
        if isinstance(content, bytes):
            test.write_bytes(content)
        else:
            pq.write_table(content, test)
        with pytest.raises(InvalidArgument, match=message):
            cifar10(folder, validation=5)
    test.unlink()
    with pytest.raises(InvalidArgument, match=r"no test-\*\.parquet"):
        cifar10(folder, validation=5)


# -- Fashion-MNIST ------------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def fashion(tmp_path: Path) -> tuple[Path, np.ndarray]:
    pixels = np.random.default_rng(0).integers(0, 256, (26, 28, 28), dtype=np.uint8)
    folder = tmp_path / "fashion"
    folder.mkdir()
    for split, part in (("train", slice(20)), ("t10k", slice(20, 26))):
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels[part])))
        (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(26, dtype=np.uint8)[part] % 10)))
    return folder, pixels


def test_fashion_is_read_and_split(fashion: tuple[Path, np.ndarray]) -> None:
    task = fashion_mnist(fashion[0], validation=5)
    assert task.sizes() == {"train": 15, "validation": 5, "test": 6}
    x, y = task._splits["test"]
    assert np.array_equal(x.numpy()[:, 0], fashion[1][20:]) and y.tolist() == [0, 1, 2, 3, 4, 5]
    torch.testing.assert_close(task.example(), (task._splits["train"][0][:1] / 255 - 0.286) / 0.353)


def test_errors_of_idx_files(fashion: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    folder, _ = fashion
    with pytest.raises(InvalidArgument, match="no such folder"):
        fashion_mnist(tmp_path / "none")
    path = folder / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    raw = gzip.decompress(whole)
    cases = [
        ("truncated", whole[: len(whole) // 2]),
        ("truncated", b"plain text"),
        ("truncated", whole[:50] + bytes(50) + whole[100:]),
        ("header says", gzip.compress(raw[:-1])),
        ("header says", gzip.compress(raw + b"x")),
        ("begins with", gzip.compress(idx(np.zeros(4, np.uint8)))),
        ("begins with", gzip.compress(raw[:6])),
        ("begins with", b""),
    ]
    for message, content in cases:
        path.write_bytes(content)
        with pytest.raises(InvalidArgument, match=message):
            fashion_mnist(folder, validation=5)
    path.unlink()
    with pytest.raises(InvalidArgument, match="no such file"):
        fashion_mnist(folder, validation=5)


@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian package dataset-fashion-mnist is not installed")
def test_fashion_as_packaged() -> None:
    labels = read_idx(FASHION / "t10k-labels-idx1-ubyte.gz", dimensions=1)
    assert np.bincount(labels).tolist() == [1000] * 10
    assert read_idx(FASHION / "t10k-images-idx3-ubyte.gz", dimensions=3).shape == (10000, 28, 28)


@pytest.mark.skipif(not (FASHION.is_dir() and (SHARED / "models").is_dir()), reason="needs dataset-fashion-mnist and RANKSEARCH_SHARED")
def test_trained_weights_reproduce_their_accuracy_on_fashion() -> None:
    model = load_weights(cifar_resnet(20, in_channels=1), SHARED / "models" / "resnet20_fashion_mnist.safetensors")
    assert fashion_mnist(FASHION).measure(model, "test")["accuracy"] == pytest.approx(0.912, abs=0.001)


@pytest.mark.skipif(not (SHARED / "data" / "cifar10").is_dir(), reason="RANKSEARCH_SHARED does not hold CIFAR-10")
def test_trained_weights_reproduce_their_accuracy_on_cifar() -> None:
    model = load_weights(cifar_resnet(20), SHARED / "models" / "resnet20_cifar10.safetensors")
    assert cifar10(SHARED / "data" / "cifar10").measure(model, "test")["accuracy"] == pytest.approx(0.880, abs=0.001)
