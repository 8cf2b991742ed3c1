"""Compiling and loading the kernels: kept, made anew when something changes, done without where it does not work."""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
from pathlib import Path

import pytest
import torch

from diffvit.files import cache_folder
from diffvit.kernels import library

SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wall", "-Wextra", "-Werror")
# Stands in for a compiler: puts header and sources one after another. What a real one makes of the real sources, every
# other test of the kernels sees.
STAND_IN = """#!/bin/sh
for word; do last=$word; case $word in *.c) sources="$sources $word" folder=${word%/*} ;; esac; done
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
    monkeypatch.setattr(library, "HERE", folder)
    monkeypatch.setattr(library, "FLAGS", ("-shared", "-fPIC"))
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
    first = library.built()
    assert first.parent == sources / "__pycache__"
    assert first.read_text() == "42 first second"
    with monkeypatch.context() as without:
        without.setenv("CC", "no-such-compiler")
        assert library.built() == first  # which needs no compiler
    (sources / "number.h").write_text("43 ")
    second = library.built()
    assert (second.read_text(), first.read_text()) == ("43 first second", "42 first second")
    monkeypatch.setattr(library, "FLAGS", ("-shared", "-fPIC", "-O1"))
    assert library.built() not in (first, second)
    assert not list((sources / "__pycache__").glob("*.part"))


def test_where_the_package_cannot_be_written_it_goes_to_the_users_cache(sources: Path) -> None:
    (sources / "__pycache__").write_text("a file where a folder should be")  # root may write into any folder
    found = library.built()
    assert found.parent == cache_folder() / "native"
    assert found.read_text() == "42 first second"
    assert library.built() == found


def test_where_nothing_can_be_written_it_says_so(sources: Path) -> None:
    (sources / "__pycache__").write_text("")
    cache_folder().parent.mkdir(parents=True, exist_ok=True)
    cache_folder().write_text("")
    with pytest.raises(library.Unavailable, match=r"^neither .*__pycache__ nor .*native can be written$"):
        library.built()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 3", r"broken fails \(exit code 3\)$"),
        ("echo 'x.c:1: error: no flag' >&2; exit 1", r"broken fails \(x.c:1: error: no flag\)$"),
    ],
)
def test_a_compiler_that_fails_is_quoted_and_nothing_is_left_behind(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    compiler(tmp_path / "broken", f"#!/bin/sh\n{script}\n")
    monkeypatch.setenv("CC", str(tmp_path / "broken"))
    with pytest.raises(library.Unavailable, match=said):
        library.built()
    assert list((sources / "__pycache__").iterdir()) == []


def test_a_compiler_that_is_not_there(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    with pytest.raises(library.Unavailable, match=r"^no C compiler \(no-such-compiler\)$"):
        library.built()
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(library.Unavailable, match=r"^no C compiler \(cc, gcc or clang\)$"):
        library.built()


@pytest.fixture
def looks_again(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """What was found is looked for again; what is found now is forgotten afterwards."""
    monkeypatch.setattr(library, "_found", library._found.__wrapped__)
    return monkeypatch


@pytest.mark.native
def test_they_are_there_on_a_processor_that_has_the_instructions_and_a_compiler() -> None:
    assert library.why_not() == ""
    assert library.kernels() is library.kernels() is not None


@pytest.mark.parametrize(
    ("word", "supported", "why"),
    [
        *((word, True, "switched off by DIFFVIT_NATIVE") for word in ("off", "0", "OFF")),
        ("", False, "a processor without AVX512-BF16"),
        ("", True, "no C compiler (cc, gcc or clang)"),
    ],
)
def test_the_reason_to_do_without_is_kept(
    looks_again: pytest.MonkeyPatch, word: str, supported: bool, why: str
) -> None:
    def refuse() -> None:
        raise library.Unavailable("no C compiler (cc, gcc or clang)")

    looks_again.setenv("DIFFVIT_NATIVE", word)
    looks_again.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported)
    looks_again.setattr(library, "built", refuse)
    assert library.kernels() is None
    assert library.why_not() == why


def test_a_library_that_cannot_be_loaded_is_no_error(looks_again: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "broken.so").write_bytes(b"not a library")
    looks_again.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    looks_again.setattr(library, "built", lambda: tmp_path / "broken.so")
    assert library.kernels() is None
    assert "broken.so" in library.why_not()


def test_a_view_gives_bytes() -> None:
    x = torch.zeros(2, 3, 96, dtype=torch.bfloat16)[:, :, 32:64]
    view = library.View.of(x)
    assert (view.data, view.image, view.token) == (x.data_ptr(), 3 * 96 * 2, 96 * 2)


@pytest.mark.native
@pytest.mark.parametrize("job", [library.Attention, library.Norm, library.Gelu])
def test_both_languages_agree_on_the_size_of_a_job(job: type[ctypes.Structure]) -> None:
    size = ctypes.CDLL(str(library.built()))[f"{job.__name__.lower()}_bytes"]
    size.restype = ctypes.c_int64
    assert size() == ctypes.sizeof(job)


@pytest.mark.native
@pytest.mark.parametrize("program", ["attention_shapes", "token_shapes"])
def test_no_shape_reaches_outside_its_memory(program: str, tmp_path: Path) -> None:
    """Under the compiler's sanitizers: no byte outside of a tensor is read or written, nothing is undefined."""
    flags = [flag for flag in library.FLAGS if flag not in ("-O3", "-shared", "-fPIC")]
    flags += [*SANITIZERS, "-Wno-unused-function", f"-I{library.HERE}"]
    made = tmp_path / program
    command = [*library.compiler(), *flags, str(Path(__file__).with_name(f"{program}.c")), "-o", str(made), "-lm"]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stderr
    done = subprocess.run([made], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
