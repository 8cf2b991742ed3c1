"""Texts from the user: files of one per line, and the limits that hold for every text."""

from __future__ import annotations

from pathlib import Path

from diffvit.errors import ConfigError, InputError

MAX_BYTES = 64 * 2**20
MAX_LENGTH = 2_000  # characters; the tokenizer takes time with the square of a word's length


def read_lines(path: Path, what: str, limit: int) -> list[str]:
    """The lines of a UTF-8 file, without blank ones and without spaces around them.

    Args:
        path: the file; a byte order mark is fine.
        what: what a line is called in errors ("label").
        limit: how many lines there may be.

    Raises:
        InputError: it cannot be read, is not text, is too large, or has no line or too many.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(str(path), f"cannot be read ({why})", f"Give a UTF-8 file with one {what} per line.") from None
    if len(content) > MAX_BYTES:
        raise InputError(str(path), f"is too large (over {MAX_BYTES >> 20} MiB)")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(str(path), f"is not UTF-8 text (line {line})") from None
    lines = {number: line.strip() for number, line in enumerate(text.splitlines(), 1) if line.strip()}
    if not lines:
        raise InputError(str(path), f"has no {what} in it", f"Write one {what} per line.")
    if len(lines) > limit:
        raise InputError(str(path), f"has too many {what}s ({len(lines):,} vs at most {limit:,})")
    for number, line in lines.items():
        check_text(line, str(path), f"line {number}")
    return list(lines.values())


def check_text(text: str, what: str, where: str, fault: type[ConfigError] | type[InputError] = InputError) -> None:
    """Refuse what no label or template is.

    Raises:
        ConfigError, InputError: as ``fault`` says, for NUL bytes, text that cannot be encoded, or over
            :data:`MAX_LENGTH` characters.
    """
    if "\0" in text:
        raise fault(what, f"holds a NUL byte ({where})")
    if len(text) > MAX_LENGTH:
        raise fault(what, f"is too long ({where}: {len(text):,} vs at most {MAX_LENGTH:,} characters)")
    try:
        text.encode()
    except UnicodeEncodeError:  # the shell's bytes, which were no UTF-8
        raise fault(what, f"holds bytes that are not text ({where})") from None
