"""Prompt templates and label lists: OpenAI's, ImageNet's, or the user's own, from a flag or a text file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffvit.errors import ConfigError, InputError, suggestion
from diffvit.hub.libraries import library

SINGLE = "a photo of a {}."
NAMED = ("openai-80", "openai-7", "single")
IMAGENET = "imagenet-1k"  # stands for the 1000 names wherever labels are given
MAX_LABELS = 100_000
MAX_BYTES = 64 * 2**20  # of a file
MAX_LENGTH = 2_000  # characters of a text; the tokenizer takes time with the square of a word's length
_MAX_TEMPLATES = 1_000
_ARTICLE = re.compile(r"^(?:a|an|the)\s+(?=\S)", re.IGNORECASE)


@dataclass(frozen=True)
class Templates:
    """Prompt templates, each with ``{}`` where the label goes; their name is one of :data:`NAMED`, or a file's."""

    name: str
    texts: tuple[str, ...]

    def prompts(self, label: str) -> list[str]:
        """The prompts of one label, without its leading article ("a toaster"): templates have their own.

        Braces in a label mean nothing.
        """
        bare = _ARTICLE.sub("", label)
        return [text.replace("{}", bare) for text in self.texts]


def load_templates(name: str = "openai-80") -> Templates:
    """Templates by name, or from a text file with one per line.

    ``openai-80`` are those of the paper's ImageNet results, ``openai-7`` the subset its notebook found, ``single`` is
    :data:`SINGLE`.

    Raises:
        ConfigError: neither a name nor a file.
        InputError: a file that cannot be read, or a line without ``{}``.
        EnvironmentFault: OpenAI's are asked for and open_clip is missing.
    """
    if name == "single":
        return Templates(name, (SINGLE,))
    if name in NAMED:
        open_clip = library("open_clip")
        given = open_clip.OPENAI_IMAGENET_TEMPLATES if name == "openai-80" else open_clip.SIMPLE_IMAGENET_TEMPLATES
        return Templates(name, tuple(each("{}") for each in given))
    path = Path(name)
    if not path.exists():
        hint = suggestion(name, NAMED)
        raise ConfigError("--templates", f"no such templates or file: {name!r} (have {', '.join(NAMED)})", hint)
    lines = read_lines(path, "template", _MAX_TEMPLATES)
    bare = next((line for line in lines if "{}" not in line), None)
    if bare is not None:
        raise InputError(name, f"has a template without {{}} ({bare[:60]!r})", "Write {} where the label goes.")
    return Templates(name, tuple(lines))


def imagenet_names() -> tuple[str, ...]:
    """ImageNet's 1000 class names as OpenAI put them, in the order of the classes; two pairs are equal."""
    return tuple(library("open_clip").IMAGENET_CLASSNAMES)


def twins(labels: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Groups of places that hold the same label."""
    places: dict[str, list[int]] = {}
    for place, label in enumerate(labels):
        places.setdefault(label, []).append(place)
    return tuple(tuple(group) for group in places.values() if len(group) > 1)


def load_labels(text: str | None = None, file: Path | None = None) -> tuple[str, ...]:
    """Labels that the user gave: a comma list or :data:`IMAGENET`, or a UTF-8 file with one per line.

    Raises:
        ConfigError: none or both are given, or the list is empty, too long or names a label twice.
        InputError: the same of a file, or one that cannot be read.
    """
    if (text is None) == (file is None):
        raise ConfigError("--labels", "give --labels a,b,c or --labels-file FILE, one of them")
    if text == IMAGENET:
        return imagenet_names()
    what, fault = ("--labels", ConfigError) if file is None else (str(file), InputError)
    if file is not None:
        labels = read_lines(file, "label", MAX_LABELS)
    else:
        labels = [label.strip() for label in (text or "").split(",")]
        if not any(labels):
            raise ConfigError(what, "has no label in it", "As in: --labels cat,dog")
        if len(labels) > MAX_LABELS:
            raise ConfigError(what, f"has too many labels ({len(labels):,} vs at most {MAX_LABELS:,})")
        if not all(labels):
            raise ConfigError(what, f"has an empty label (place {labels.index('') + 1} of {len(labels)})")
        for place, label in enumerate(labels, 1):
            check_text(label, what, f"place {place}", fault)
    if same := twins(labels):
        first, second = same[0][:2]
        more = f" and {len(same) - 1} more twice" if len(same) > 1 else ""
        raise fault(what, f"names {labels[first][:60]!r} twice (places {first + 1} and {second + 1}){more}")
    return tuple(labels)


def read_lines(path: Path, what: str, limit: int) -> list[str]:
    """The lines of a UTF-8 file (a byte order mark is fine), without blank ones and without spaces around them.

    ``what`` is what a line is called in errors ("label").

    Raises:
        InputError: it cannot be read, is not text, is too large, or has no line or more than ``limit``.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        why = f"cannot be read ({error.strerror})"
        raise InputError(str(path), why, f"Give a UTF-8 file with one {what} per line.") from None
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
    """Refuse what no label or template is: NUL bytes, text that cannot be encoded, over :data:`MAX_LENGTH` characters.

    Raises:
        ConfigError, InputError: as ``fault`` says.
    """
    if "\0" in text:
        raise fault(what, f"holds a NUL byte ({where})")
    if len(text) > MAX_LENGTH:
        raise fault(what, f"is too long ({where}: {len(text):,} vs at most {MAX_LENGTH:,} characters)")
    try:
        text.encode()
    except UnicodeEncodeError:  # the shell's bytes, which were no UTF-8
        raise fault(what, f"holds bytes that are not text ({where})") from None
