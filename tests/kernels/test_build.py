"""Compiling the kernels: kept, made anew when something changes, and done without where it does not work."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from diffvit.files import cache_folder
from diffvit.kernels import build

# Stands in for a compiler: puts header and sources one after another, and refuses a word. What a real one makes of the
# real sources, every other test of the kernels sees.
STAND_IN = """#!/bin/sh
for word; do last=$word; case $word in *.c) sources="$sources $word" folder=${word%/*} ;; esac; done
if grep -q WRONG "$folder"/*.h; then echo "number.h:1:1: error: unknown WRONG" >&2; exit 1; fi
cat "$folder"/*.h $sources > "$last"
"""


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with sources of its own, so that nothing is taken from what is kept."""
    folder = tmp_path / "native"
    folder.mkdir()
    (folder / "attention.c").write_text("first ")
    (folder / "tokens.c").write_text("second")
    (folder / "number.h").write_text("42 ")
    monkeypatch.setattr(build, "HERE", folder)
    monkeypatch.setattr(build, "FLAGS", ("-shared", "-fPIC"))
    compiler(tmp_path / "bin" / "stand-in", STAND_IN)
    monkeypatch.setenv("CC", str(tmp_path / "bin" / "stand-in"))
    return folder


def compiler(path: Path, script: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(script)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_it_is_made_once_and_anew_when_a_source_or_a_flag_changes(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build.built()
    assert first.parent == sources / "__pycache__"
    assert first.read_text() == "42 first second"
    with monkeypatch.context() as without:
        without.setenv("CC", "no-such-compiler")
        assert build.built() == first  # which needs no compiler
    (sources / "number.h").write_text("43 ")
    second = build.built()
    assert (second.read_text(), first.read_text()) == ("43 first second", "42 first second")
    monkeypatch.setattr(build, "FLAGS", ("-shared", "-fPIC", "-O1"))
    assert build.built() not in (first, second)
    assert not list((sources / "__pycache__").glob("*.part"))


def test_where_the_package_cannot_be_written_it_goes_to_the_users_cache(sources: Path) -> None:
    (sources / "__pycache__").write_text("a file where a folder should be")  # root may write into any folder
    found = build.built()
    assert found.parent == cache_folder() / "native"
    assert found.read_text() == "42 first second"
    assert build.built() == found


def test_where_nothing_can_be_written_it_says_so(sources: Path) -> None:
    (sources / "__pycache__").write_text("")
    cache_folder().parent.mkdir(parents=True, exist_ok=True)
    cache_folder().write_text("")
    with pytest.raises(build.Unavailable, match=r"^neither .*__pycache__ nor .*native can be written$"):
        build.built()


def test_sources_that_do_not_compile_leave_nothing_behind(sources: Path) -> None:
    (sources / "number.h").write_text("WRONG")
    with pytest.raises(build.Unavailable, match=r"stand-in fails \(number.h:1:1: error: unknown WRONG\)$"):
        build.built()
    assert list((sources / "__pycache__").iterdir()) == []


@pytest.mark.parametrize(
    ("script", "said"),
    [("exit 3", r"fails \(exit code 3\)"), ("echo 'x.c:1: error: unknown flag' >&2; exit 1", "unknown flag")],
)
def test_a_compiler_that_fails_is_quoted(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    compiler(tmp_path / "broken", f"#!/bin/sh\n{script}\n")
    monkeypatch.setenv("CC", str(tmp_path / "broken"))
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
