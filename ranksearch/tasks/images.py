"""Image data sets as classification tasks: scikit-learn's digits, CIFAR-10 in the parquet layout of Hugging Face,
Fashion-MNIST as idx.gz. The validation set is always cut from the training set; the test set is only ever measured."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import logging
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ranksearch.errors import InvalidArgument, MissingDependency
from ranksearch.home import user_path
from ranksearch.tasks._cache import cache_folder, write_cache
from ranksearch.tasks.classification import Augment, Classification, Schedule

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)
SPLIT_SEED = 0
CIFAR_NORMALIZE = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FASHION_NORMALIZE = (0.286, 0.353)
DIGITS_NORMALIZE = (0.305, 0.376)


@dataclass(frozen=True)
class CropAndFlip:
    """Crops images at random after padding them with zeros, and mirrors each with probability 1/2 (He et al. 2016, section 4.2)."""

    padding: int = 4  # pixels on each side
    flip: bool = True

    def __call__(
        self,
        x: Tensor,  # shape: (n, channels, h, w)
        generator: torch.Generator,
    ) -> Tensor:
        n, _, height, width = x.shape
        padded = F.pad(x, (self.padding,) * 4)
        top, left = torch.randint(2 * self.padding + 1, (2, n, 1), generator=generator)
        columns = torch.arange(width).expand(n, width)
        if self.flip:
            mirrored = torch.rand(n, 1, generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        rows, columns = top + torch.arange(height), left + columns
        chosen = padded.permute(0, 2, 3, 1)[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
        return chosen.permute(0, 3, 1, 2).contiguous()


def digits(
    *,
    learning_rate: float = 0.02,
    batch_size: int = 50,
    weight_decay: float = 5e-4,
    schedule: Schedule = "cosine",
    augment: Augment | None = None,
) -> Classification:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 x 1, in 10 classes: 1,000 to train, 397 to validate, 400 to test,
    each with the same share of every class.

    Raises:
        MissingDependency: scikit-learn is not installed.
    """
    images, labels = _digits()
    x = torch.tensor(images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(labels, dtype=torch.int64)
    order = torch.from_numpy(_stratified(labels, SPLIT_SEED))
    train, validation, test = ((x[part], y[part]) for part in order.split([1000, 397, 400]))
    return Classification(
        train=train, validation=validation, test=test, classes=10, normalize=DIGITS_NORMALIZE, augment=augment,
        learning_rate=learning_rate, batch_size=batch_size, weight_decay=weight_decay, schedule=schedule,
    )  # fmt: skip


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """The images, (1797, 8, 8), and their labels, from the file that comes with scikit-learn; importing it takes longer than all else that
    a profile of the digits reads."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise MissingDependency("the digits come with scikit-learn: pip install scikit-learn")
    file = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if not file.is_file():  # another version of it
        from sklearn.datasets import load_digits

        data: Any = load_digits()
        return data.images, data.target
    with gzip.open(file, "rt") as lines:
        table = np.loadtxt(lines, delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)


def _stratified(labels: np.ndarray, seed: int) -> np.ndarray:
    """A random order in which every stretch holds each class in proportion."""
    generator = np.random.default_rng(seed)
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.argsort(place, kind="stable")


def cifar10(
    folder: str | Path,
    *,
    validation: int = 5000,
    learning_rate: float = 0.01,
    batch_size: int = 128,
    weight_decay: float = 5e-4,
    schedule: Schedule = "cosine",
    augment: Augment | None = None,
) -> Classification:
    """CIFAR-10: 32 x 32 x 3 images in 10 classes, kept as uint8.

    Args:
        folder: holds ``train-*.parquet`` and ``test-*.parquet`` with columns ``img`` (bytes of a PNG or JPEG, path) and
            ``label``, itself or in a subfolder. The decoded images are cached, see `cache_folder`.
        validation: so many images at the end of a fixed permutation of the training set.

    Raises:
        InvalidArgument: no such folder or file, other columns, an image that cannot be read or has another size.
        MissingDependency: pyarrow or Pillow is not installed.
    """
    folder = _folder(folder, "train-*.parquet and test-*.parquet")
    train, test = (_decoded(_shards(folder, split), (32, 32)) for split in ("train", "test"))
    return _task(
        train, test, validation, normalize=CIFAR_NORMALIZE, augment=augment,
        learning_rate=learning_rate, batch_size=batch_size, weight_decay=weight_decay, schedule=schedule,
    )  # fmt: skip


def fashion_mnist(
    folder: str | Path,
    *,
    validation: int = 5000,
    learning_rate: float = 0.01,
    batch_size: int = 128,
    weight_decay: float = 5e-4,
    schedule: Schedule = "cosine",
    augment: Augment | None = None,
) -> Classification:
    """Fashion-MNIST: 28 x 28 x 1 images in 10 classes, kept as uint8.

    Args:
        folder: holds ``{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz``, as the Debian package
            ``dataset-fashion-mnist`` puts them under /usr/share/datasets/fashion-mnist.
        validation: so many images at the end of a fixed permutation of the training set.

    Raises:
        InvalidArgument: no such folder or file, or a file that is truncated or in another format.
    """
    folder = _folder(folder, "the files of Fashion-MNIST (Debian package dataset-fashion-mnist)")
    pairs = []
    for split in ("train", "t10k"):
        images = read_idx(folder / f"{split}-images-idx3-ubyte.gz", dimensions=3)
        labels = read_idx(folder / f"{split}-labels-idx1-ubyte.gz", dimensions=1)
        pairs.append((images[:, None], labels.astype(np.int64)))
    train, test = pairs
    return _task(
        train, test, validation, normalize=FASHION_NORMALIZE, augment=augment,
        learning_rate=learning_rate, batch_size=batch_size, weight_decay=weight_decay, schedule=schedule,
    )  # fmt: skip


def _task(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], validation: int, **options: Any) -> Classification:
    x, y = train
    if not 0 < validation < len(y):
        raise InvalidArgument(f"validation={validation}: must be in 1..{len(y) - 1}, for there are {len(y)} training images")
    order = np.random.default_rng(SPLIT_SEED).permutation(len(y))
    kept, held = order[:-validation], order[-validation:]
    return Classification(train=(x[kept], y[kept]), validation=(x[held], y[held]), test=test, classes=10, **options)


def _folder(folder: str | Path, holds: str) -> Path:
    folder = user_path(folder)
    if not folder.is_dir():
        raise InvalidArgument(f"folder={str(folder)!r}: no such folder; give one that holds {holds}")
    return folder


def _shards(folder: Path, split: str) -> list[Path]:
    found = sorted(folder.rglob(f"{split}-*.parquet"))
    if not found:
        raise InvalidArgument(f"folder={str(folder)!r}: has no {split}-*.parquet; download CIFAR-10 in the parquet layout of Hugging Face")
    return found


def _decoded(shards: list[Path], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 3, h, w) uint8 and labels (n,) int64 of parquet files, from the cache where it has them."""
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in shards]
    key = hashlib.sha256(repr((stats, size)).encode()).hexdigest()[:16]
    files = [cache_folder() / f"images-{key}-{part}.npy" for part in ("x", "y")]
    if all(path.exists() for path in files):
        try:
            x, y = (np.load(path, allow_pickle=False) for path in files)
            if x.shape == (len(y), 3, *size) and x.dtype == np.uint8 and y.dtype == np.int64:
                return x, y
            log.warning("the cached images %s have another layout and are decoded again", files[0])
        except (OSError, ValueError, EOFError) as error:
            log.warning("the cached images %s cannot be read (%s) and are decoded again", files[0], error)
    parts = [_decode(path, size) for path in shards]
    x, y = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
    for path, array in zip(files, (x, y), strict=True):
        if not write_cache(path, lambda temporary, array=array: np.save(temporary, array)):
            break
    return x, y


def _decode(path: Path, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependency("reading images needs pillow: pip install pillow") from error
    table = _read_parquet(path)
    labels = table.column("label").to_numpy().astype(np.int64)
    images = np.empty((table.num_rows, *size, 3), dtype=np.uint8)
    for row, encoded in enumerate(table.column("img").combine_chunks().field("bytes")):
        try:
            image = Image.open(io.BytesIO(encoded.as_py())).convert("RGB")
        except (OSError, TypeError, ValueError, SyntaxError) as error:
            raise InvalidArgument(f"{path}: the image in row {row} cannot be read ({error}); download the file again") from error
        if image.size != size[::-1]:
            raise InvalidArgument(f"{path}: the image in row {row} is {image.width} x {image.height}; must be {size[1]} x {size[0]}")
        images[row] = np.asarray(image)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels


def _read_parquet(path: Path) -> pa.Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingDependency("reading parquet files needs pyarrow: pip install pyarrow") from error
    try:
        schema = pq.read_schema(path)
        names = set(schema.names)
        struct = schema.field("img").type if "img" in names else None
        fits = struct is not None and pa.types.is_struct(struct) and struct.get_field_index("bytes") >= 0
        if not fits or "label" not in names or not pa.types.is_integer(schema.field("label").type):
            got = ", ".join(f"{field.name}: {field.type}" for field in schema)
            raise InvalidArgument(f"{path}: has columns {got}; must have img: struct<bytes, path> and label: int64")
        table = pq.read_table(path, columns=["img", "label"], use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise InvalidArgument(f"{path}: not a readable parquet file ({error}); download it again") from error
    if table.column("label").null_count:
        raise InvalidArgument(f"{path}: {table.column('label').null_count} labels are missing; every image needs one")
    return table


def read_idx(
    path: str | Path,
    *,
    dimensions: int,
) -> np.ndarray:  # uint8, shape: as the file says
    """An array of unsigned bytes in the idx.gz format of MNIST: magic 0, 0, 8, dimensions; big-endian sizes; data.

    Raises:
        InvalidArgument: no such file, not gzip, truncated, or another type or number of dimensions.
    """
    path = user_path(path)
    if not path.is_file():
        raise InvalidArgument(f"{path}: no such file; install the Debian package dataset-fashion-mnist or give another folder")
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidArgument(f"{path}: truncated or not a gzip file ({error}); install it again") from error
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes((0, 0, 8, dimensions)):
        raise InvalidArgument(f"{path}: begins with {content[:4].hex()}; idx files of {dimensions}-D bytes with 000008{dimensions:02x}")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", dimensions, 4))
    data = np.frombuffer(content, np.uint8, offset=header)
    if data.size != np.prod(shape):
        raise InvalidArgument(f"{path}: holds {data.size:,} bytes of data; its header says {shape}; install it again")
    return data.reshape(shape)
