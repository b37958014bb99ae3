"""Where ranksearch keeps what it makes, and how a file gets there: as a whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def home() -> Path:
    """Folder of stores, caches and trained weights: RANKSEARCH_HOME, or ``.ranksearch`` in the working directory."""
    return user_path(os.environ.get("RANKSEARCH_HOME") or ".ranksearch")


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as a user gives it: ``~`` and ``~name`` in front stand for home folders, as in a shell; where there is no such
    user the path stays as it is."""
    return Path(os.path.expanduser(path))


@contextmanager
def replacing(path: str | Path, *, durable: bool = False) -> Iterator[Path]:
    """A new empty file to write to, which takes the place of ``path`` when the block ends: others see the old content or
    the new one, never a part. If the block raises (the disk is full, an interrupt), the new file is removed and what was
    at ``path`` is untouched.

    The new file lies beside ``path``, has the same suffix, and the permissions of the file that it replaces, or those
    that ``open`` would give it. A missing folder is made. A link is not followed and only a file is replaced: into a device or a pipe
    the content is written when the block ends.

    Args:
        durable: the content is on the disk before it gets the name, so that a crash of the machine too leaves the old
            file or the new one. This costs a wait for the disk.

    Raises:
        OSError: the folder cannot be made or written to, the disk is full, or ``path`` is a link, a folder or a socket.
    """
    path = Path(path)
    if _is_stream(path):
        with tempfile.TemporaryDirectory(prefix="ranksearch-") as folder:
            yield (draft := Path(folder, path.name + path.suffix))
            with open(path, "r+b" if stat.S_ISCHR(path.stat().st_mode) else "wb", buffering=0) as stream:
                stream.write(draft.read_bytes())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:12]}{path.suffix}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        permissions = (path if path.exists() else temporary).stat().st_mode & 0o777
        yield temporary
        temporary.chmod(permissions)  # a writer may have put a private file in its place, as safetensors does
        move(temporary, path, durable=durable)
    finally:
        temporary.unlink(missing_ok=True)


def _is_stream(path: Path) -> bool:
    """Whether a path is a device or a pipe.

    Raises:
        OSError: it is neither that nor a file that may be replaced."""
    try:
        kind = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    if stat.S_ISLNK(kind):
        raise OSError(errno.ELOOP, "is a link, which is neither followed nor replaced; name the file itself", str(path))
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, "is a directory", str(path))
    if not (stat.S_ISREG(kind) or stat.S_ISCHR(kind) or stat.S_ISFIFO(kind)):
        raise OSError(errno.EINVAL, "is neither a file nor a stream; name another", str(path))
    return not stat.S_ISREG(kind)


def move(temporary: Path, path: Path, *, durable: bool = False) -> None:
    """Give a finished file its name, in place of what has it; both in one folder. ``durable`` as for `replacing`."""
    if durable:
        sync(temporary)
    os.replace(temporary, path)
    if durable:
        sync(path.parent)  # the name too is on disk


def sync(path: str | Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    Raises:
        OSError: it cannot be opened, or the disk reports that writing failed."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
