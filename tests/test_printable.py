"""Text of others as text that can be shown."""

from __future__ import annotations

import pytest

from ranksearch.printable import printable, shortened, without_password


@pytest.mark.parametrize("text", ["", "plain", "two\nlines\tand a tab", "Größe 模型 été", "a\\x1b"])
def test_text_stays(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize("odd", ["\x00", "\x07", "\x1b", "\r", "\x7f", "\x9b", "\u200b", "\u202e", "\u2028", "\ud800", "\udcff", "\ufeff"])
def test_what_is_no_character_of_a_text_is_written_as_an_escape(odd: str) -> None:
    shown = printable(f"a{odd}b")
    assert shown.isprintable() and shown.isascii() and shown.encode().decode("unicode_escape") == f"a{odd}b"
    assert printable(shown) == shown


@pytest.mark.parametrize("longest", [10, 11])
def test_names_are_told_apart_by_their_ends(longest: int) -> None:
    for length in range(1, 40):
        name = "".join(chr(ord("a") + i % 26) for i in range(length))
        short = shortened(name, longest)
        assert (short == name) if length <= longest else (len(short) == longest and short[:5] == name[:5] and short[-4:] == name[-4:])


@pytest.mark.parametrize("length", [99, 100, 101, 10**6])
def test_the_middle_is_left_out(length: int) -> None:
    text = "A" * (length - 3) + "END"
    short = printable(text, limit=100)
    assert len(short) <= 100 and short.startswith("A" * 20) and short.endswith("END")
    assert (short == text) is (length <= 100)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql+psycopg://u:secret@h:5432/x", "postgresql+psycopg://u:***@h:5432/x"), ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("postgresql://h/x?user=u&password=secret&sslmode=on", "postgresql://h/x?user=u&password=***&sslmode=on"),
        ("run 'postgresql://u:a%40b@h/x' or mysql://u:b@h", "run 'postgresql://u:***@h/x' or mysql://u:***@h"),
        ("postgresql://u@h:5432/x", "postgresql://u@h:5432/x"), ("a:b@c", "a:b@c"), ("http://h/a:b@c", "http://h/a:b@c"),
    ],
)  # fmt: skip
def test_passwords_of_urls_are_not_shown(text: str, shown: str) -> None:
    assert without_password(text) == shown
