"""Compiling the kernels: kept, made anew when something changes, and done without where it does not work."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
from pathlib import Path

import pytest

from diffvit.cache import cache_folder
from diffvit.native import build

SOURCE = "int answer(void) { return ANSWER; }\n"
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with sources of its own, so that nothing is taken from what is kept."""
    folder = tmp_path / "native"
    folder.mkdir()
    (folder / "attention.c").write_text('#include "number.h"\n' + SOURCE)
    (folder / "number.h").write_text("#define ANSWER 42\n")
    monkeypatch.setattr(build, "HERE", folder)
    monkeypatch.setattr(build, "FLAGS", ("-shared", "-fPIC"))
    monkeypatch.delenv("CC", raising=False)
    return folder


def answer(library: Path) -> int:
    return ctypes.CDLL(str(library)).answer()


@needs_compiler
def test_it_is_made_once_and_anew_when_a_source_or_a_flag_changes(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build.built()
    assert first.parent == sources / "__pycache__"
    assert answer(first) == 42
    monkeypatch.setenv("CC", "no-such-compiler")
    assert build.built() == first  # which needs no compiler
    monkeypatch.delenv("CC")
    (sources / "number.h").write_text("#define ANSWER 43\n")
    second = build.built()
    assert (answer(second), answer(first)) == (43, 42)
    monkeypatch.setattr(build, "FLAGS", ("-shared", "-fPIC", "-O1"))
    assert build.built() not in (first, second)
    assert not list((sources / "__pycache__").glob("*.part"))


@needs_compiler
def test_where_the_package_cannot_be_written_it_goes_to_the_users_cache(sources: Path) -> None:
    (sources / "__pycache__").write_text("a file where a folder should be")  # root may write into any folder
    found = build.built()
    assert found.parent == cache_folder() / "native"
    assert answer(found) == 42
    assert build.built() == found


@needs_compiler
def test_where_nothing_can_be_written_it_says_so(sources: Path) -> None:
    (sources / "__pycache__").write_text("")
    cache_folder().parent.mkdir(parents=True, exist_ok=True)
    cache_folder().write_text("")
    with pytest.raises(build.Unavailable, match=r"^neither .*__pycache__ nor .*native can be written$"):
        build.built()


@needs_compiler
def test_sources_that_do_not_compile_leave_nothing_behind(sources: Path) -> None:
    (sources / "number.h").write_text("#define ANSWER no_such_name\n")
    with pytest.raises(build.Unavailable, match=r"^cc fails \(.*no_such_name.*\)$"):
        build.built()
    assert list((sources / "__pycache__").iterdir()) == []


@pytest.mark.parametrize(
    ("script", "said"),
    [("exit 3", r"fails \(exit code 3\)"), ("echo 'x.c:1: error: unknown flag' >&2; exit 1", "unknown flag")],
)
def test_a_compiler_that_fails_is_quoted(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    broken = tmp_path / "broken-cc"
    broken.write_text(f"#!/bin/sh\n{script}\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(build.Unavailable, match=said):
        build.built()


def test_a_compiler_that_is_not_there(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    with pytest.raises(build.Unavailable, match=r"^no C compiler \(no-such-compiler\)$"):
        build.built()
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(build.Unavailable, match=r"^no C compiler \(cc, gcc or clang\)$"):
        build.built()
