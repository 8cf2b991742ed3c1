"""The kernels as Python finds them."""

from __future__ import annotations

import pytest
import torch

from diffvit.kernels import build, library


@pytest.fixture
def looks_again(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """What was found is looked for again; what is found now is forgotten afterwards."""
    monkeypatch.setattr(library, "_found", library._found.__wrapped__)
    return monkeypatch


@pytest.mark.native
def test_they_are_there_on_a_processor_that_has_the_instructions_and_a_compiler() -> None:
    assert library.why_not() == ""
    assert library.kernels() is library.kernels() is not None


@pytest.mark.parametrize("word", ["off", "0", "OFF"])
def test_a_variable_switches_them_off(looks_again: pytest.MonkeyPatch, word: str) -> None:
    looks_again.setenv("DIFFVIT_NATIVE", word)
    assert library.kernels() is None
    assert library.why_not() == "switched off by DIFFVIT_NATIVE"


def test_another_processor_does_without(looks_again: pytest.MonkeyPatch) -> None:
    looks_again.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert library.kernels() is None
    assert library.why_not() == "a processor without AVX512-BF16"


def test_without_a_compiler_the_reason_is_kept(looks_again: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise build.Unavailable("no C compiler (cc, gcc or clang)")

    looks_again.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    looks_again.setattr(library, "built", refuse)
    assert library.kernels() is None
    assert library.why_not() == "no C compiler (cc, gcc or clang)"


def test_a_library_that_cannot_be_loaded_is_no_error(looks_again: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "broken.so").write_bytes(b"not a library")
    looks_again.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    looks_again.setattr(library, "built", lambda: tmp_path / "broken.so")
    assert library.kernels() is None
    assert "broken.so" in library.why_not()
