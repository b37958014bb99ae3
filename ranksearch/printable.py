"""Text of others (errors of models and libraries, names of layers) as text that a terminal, a table or a database can have."""

from __future__ import annotations

import re
import unicodedata

ERROR = 2000  # characters of an error that are kept
_PASSWORD = re.compile(r"(?P<before>://[^/@\s:]*:)[^/\s]*(?=@)|(?P<query>[?&](?:ssl)?(?:password|passwd|pwd)=)[^&\s'\"]*", re.IGNORECASE)
_KEPT = "\n\t"
# control and format characters (terminal escapes, changes of direction), lone surrogates, separators of lines
_ODD = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: str, *, limit: int | None = None) -> str:
    """The text with what is no character of a text (terminal escapes, bytes that are no UTF-8, marks that turn its direction) written
    as an escape such as ``\\x1b``. Line ends and tabs stay. Where it is longer than ``limit``, its middle is left out."""
    if not text.isascii() or not text.isprintable():
        text = "".join(c if c in _KEPT or unicodedata.category(c) not in _ODD else c.encode("unicode_escape").decode() for c in text)
    if limit is None or len(text) <= limit:
        return text
    mark = f" ... [{len(text) - limit:,} characters left out] ... "
    room = limit - len(mark)
    return text[: room - room // 3] + mark + text[-(room // 3) :]


def shortened(text: str, longest: int) -> str:
    """The text with its middle left out where it is longer: names of layers differ at their ends."""
    return text if len(text) <= longest else f"{text[: longest // 2]}…{text[-(longest - longest // 2 - 1) :]}"


def error_text(error: BaseException, *, limit: int = ERROR) -> str:
    """Type and message of an exception, `printable` and bounded; also of one whose message cannot be had."""
    try:
        said = str(error)
    except Exception as another:  # an exception of the user's may fail at this too, and what it is about must not be lost for it
        said = f"its message cannot be had ({type(another).__name__})"
    return printable(f"{type(error).__name__}: {said}", limit=limit)


def without_password(text: str) -> str:
    """The text with ``***`` for the passwords of all URLs in it."""
    return _PASSWORD.sub(lambda found: f"{found['before'] or found['query']}***", text)
