"""Templates and labels: the published ones, the user's own, and every way in which those can be wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import open_clip
import pytest

from diffvit.clip.templates import Templates, imagenet_names, load_labels, load_templates, twins
from diffvit.errors import ConfigError, DiffvitError, InputError


def test_the_published_templates_and_names() -> None:
    for name, theirs in (
        ("openai-80", open_clip.OPENAI_IMAGENET_TEMPLATES),
        ("openai-7", open_clip.SIMPLE_IMAGENET_TEMPLATES),
    ):
        found = load_templates(name)
        assert (found.name, len(found.texts)) == (name, int(name.rpartition("-")[2]))
        assert found.prompts("sea lion") == [template("sea lion") for template in theirs]
    names = imagenet_names()
    assert len(names) == 1000
    assert twins(names) == ((657, 744), (836, 837))
    assert (names[657], names[836]) == ("missile", "sunglasses")
    assert load_labels("imagenet-1k") == names


def test_single_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert load_templates("single").prompts("cat") == ["a photo of a cat."]
    with pytest.raises(DiffvitError, match=r"pip install 'diffvit\[pretrained\]'") as caught:
        load_templates()
    assert caught.value.exit_code == 4


def test_one_leading_article_is_left_out_and_braces_mean_nothing() -> None:
    put = {"a toaster": "toaster", "An apple": "apple", "THE sun": "sun", "a": "a", "anthill": "anthill"}
    put |= {"a the one": "the one", "{0.__class__} {}": "{0.__class__} {}"}
    for label, bare in put.items():
        assert Templates("t", ("a {} or {}",)).prompts(label) == [f"a {bare} or {bare}"]


def test_files_of_templates_and_labels(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes("\ufeffa {} in the snow\r\n\r\n  {} bei Nacht, größer \n".encode())
    assert load_templates(str(tmp_path / "t.txt")).texts == ("a {} in the snow", "{} bei Nacht, größer")
    (tmp_path / "l.txt").write_text("cat\ndog, small\n", encoding="utf-8")
    assert load_labels(file=tmp_path / "l.txt") == ("cat", "dog, small")
    assert load_labels(" cat ,dog") == ("cat", "dog")


LABELS: list[tuple[str, str]] = [
    ("", "has no label in it"),
    (" , ,", "has no label in it"),
    ("cat,,dog", "has an empty label (place 2 of 3)"),
    ("cat,dog,cat", "names 'cat' twice (places 1 and 3)."),
    (",".join(map(str, range(1_000_001))), "has too many labels (1,000,001 vs at most 100,000)."),
    ("x" * 2001, "is too long (place 1: 2,001 vs at most 2,000 characters)."),
    ("cat,d\0g", "holds a NUL byte (place 2)."),
    ("cat,d\udc80g", "holds bytes that are not text (place 2)."),
]
LABEL_FILES: list[tuple[bytes | None, str]] = [
    (b"\n \n", "has no label in it"),
    ("\n".join(map(str, range(1_000_001))).encode(), "has too many labels (1,000,001 vs"),
    (b"a\nb\nb\na", "names 'a' twice (places 1 and 4) and 1 more twice"),
    (b"a\nb\0c\n", "holds a NUL byte (line 2)"),
    (b"a\nb\n\xff\xfe\n", "is not UTF-8 text (line 3)"),
    (b"a" * (2**26 + 1), "is too large (over 64 MiB)"),
    (None, "cannot be read (No such file or directory)"),
]


@pytest.mark.parametrize("case", range(len(LABELS) + len(LABEL_FILES)))
def test_labels_that_are_wrong(case: int, tmp_path: Path) -> None:
    given, why = [*LABELS, *LABEL_FILES][case]
    file = tmp_path / "l.txt"
    if isinstance(given, bytes):
        file.write_bytes(given)
    with pytest.raises(DiffvitError) as caught:
        load_labels(given) if isinstance(given, str) else load_labels(file=file)
    what, code = ("labels", 2) if isinstance(given, str) else (str(file), 3)
    assert str(caught.value).startswith(f"{what}: {why}")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == code


def test_templates_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give labels a,b,c or labels_file FILE, one of them"):
        load_labels("a,b", Path("l.txt"))
    with pytest.raises(ConfigError, match=r"no such templates or file: 'openai-8' .*Did you mean 'openai-80'\?"):
        load_templates("openai-8")
    (tmp_path / "t.txt").write_text("a {}\na photo of a cat\n")
    with pytest.raises(InputError, match=r"has a template without {} \('a photo of a cat'\). Write {} where the label"):
        load_templates(str(tmp_path / "t.txt"))
    (tmp_path / "t.txt").write_text("a {}\n" * 1001)
    with pytest.raises(InputError, match=r"has too many templates \(1,001 vs at most 1,000\)"):
        load_templates(str(tmp_path / "t.txt"))
