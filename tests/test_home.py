"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ranksearch.home import home, move, replacing, user_path


@pytest.fixture
def umask() -> Iterator[int]:
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_home_is_the_variable_or_a_folder_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKSEARCH_HOME", "/somewhere")
    assert home() == Path("/somewhere")
    monkeypatch.setenv("RANKSEARCH_HOME", "")
    assert home() == Path(".ranksearch")
    monkeypatch.setenv("HOME", "/users/me")
    monkeypatch.setenv("RANKSEARCH_HOME", "~/rs")
    assert home() == Path("/users/me/rs")


def test_a_tilde_in_front_is_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/me")
    assert user_path("~/a/~b") == Path("/users/me/a/~b") and user_path(Path("~")) == Path("/users/me")
    for path in ("a/~", "./~/a", "~no.such.user/a", "/~/a"):
        assert user_path(path) == Path(path)


@pytest.mark.parametrize("durable", [False, True])
def test_the_old_content_stays_until_the_end(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "made" / "here" / "table.csv"
    with replacing(path, durable=durable) as new:
        assert new.parent == path.parent and new.suffix == ".csv"
        new.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    with replacing(str(path), durable=durable) as new:
        new.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second" and names(path.parent) == ["table.csv"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("old", [None, "old"])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException], old: str | None) -> None:
    path = tmp_path / "a.txt"
    if old is not None:
        path.write_text(old)
    with pytest.raises(error), replacing(path) as new:
        new.write_text("half")
        raise error
    assert (path.read_text() if path.exists() else None) == old
    assert names(tmp_path) == ([] if old is None else ["a.txt"])


@pytest.mark.parametrize("durable", [False, True])
def test_a_full_disk_is_an_error_and_leaves_what_was_there(tmp_path: Path, full_disk, durable: bool) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with full_disk(), pytest.raises(OSError, match="File too large"), replacing(path, durable=durable) as new:
        new.write_text("x" * 5000)
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_disk_that_fails_late_is_an_error_where_it_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fails(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="No space left"), replacing(path, durable=True) as new:
        new.write_text("new")
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_durable_waits_for_the_content_then_for_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    waited: list[tuple[bool, bool]] = []  # is it the folder, has the file its name
    sync, stat = os.fsync, os.fstat
    monkeypatch.setattr(os, "fsync", lambda h: (sync(h), waited.append((os.path.samestat(stat(h), tmp_path.stat()), path.exists()))))
    with replacing(path, durable=True) as new:
        new.write_text("content")
    assert waited == [(False, False), (True, True)]
    with replacing(path) as new:
        new.write_text("other")
    assert len(waited) == 2


def test_a_new_file_has_the_permissions_that_open_would_give(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "a.txt"
    with replacing(path) as new:
        new.unlink()
        new.touch(mode=0o600)  # some writers make a private file of their own
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_replaced_file_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(0o604)
    with replacing(path) as new:
        new.write_text("new")
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o604


def test_two_writers_at_once_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with replacing(path) as one, replacing(path) as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one"  # the last to end
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_in_the_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError), replacing(tmp_path / "a") as new:
        new.write_text("x")
    assert names(tmp_path) == ["a"]


def test_move_replaces(tmp_path: Path) -> None:
    (tmp_path / "draft").write_text("new")
    (tmp_path / "a").write_text("old")
    move(tmp_path / "draft", tmp_path / "a", durable=True)
    assert (tmp_path / "a").read_text() == "new" and names(tmp_path) == ["a"]


def test_links_are_neither_followed_nor_replaced(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    for link, aim in (("file", target), ("nowhere", tmp_path / "none"), ("folder", tmp_path)):
        (tmp_path / link).symlink_to(aim)
        with pytest.raises(OSError, match="is a link"), replacing(tmp_path / link) as new:
            new.write_text("theirs")
        assert (tmp_path / link).is_symlink() and target.read_text() == "mine"
    with pytest.raises(IsADirectoryError), replacing(tmp_path):
        raise AssertionError
    assert names(tmp_path) == ["file", "folder", "nowhere", "target"]


def test_into_devices_and_pipes_the_content_is_written(tmp_path: Path) -> None:
    before = os.stat("/dev/null")
    with replacing("/dev/null") as new:
        new.write_text("x")
    assert os.path.samestat(os.stat("/dev/null"), before)
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with replacing(tmp_path / "pipe") as new:
        new.write_text("content")
    assert os.read(reader, 100) == b"content" and names(tmp_path) == ["pipe"]
    os.close(reader)
