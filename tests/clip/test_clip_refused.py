"""CLIP weights that do not fit and files that are not what they claim: one line each, with the key named."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import torch
from small_clip import NAME, broken, openai_archive, openai_state, publish, register, small_model

from diffvit.clip.load import load_clip
from diffvit.errors import InputError
from diffvit.hub.files import read_weights

State = dict[str, Any]
JIT_LOAD = torch.jit.load
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning"),
]


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.jit, "load", broken(torch.jit.load))


def refused(path: Path, why: str) -> None:
    with pytest.raises(InputError) as caught:
        load_clip(NAME, "openai", path)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3
    assert not Path("evil-was-here").exists()


def _nan(state: State) -> None:
    state["ln_final.weight"][3] = float("nan")


def _missing(state: State) -> None:
    del state["visual.layer1.0.conv1.weight"], state["visual.layer1.0.conv2.weight"]


def _extra(state: State) -> None:
    state["visual.layer5.0.conv1.weight"] = torch.ones(2)


def _misshapen(state: State) -> None:
    state["positional_embedding"] = torch.zeros(76, 32)


def _scale(state: State) -> None:
    state["logit_scale"] = torch.ones(3)


def _text(state: State) -> None:
    state["ln_final.bias"] = "abc"


FAULTS: list[tuple[Callable[[State], None], str]] = [
    (_nan, "ln_final.weight holds NaN or infinite values"),
    (_missing, "does not hold the weights of RN-small: it lacks visual.layer1.0.conv1.weight and 1 more"),
    (_extra, "does not hold the weights of RN-small: it has the unexpected visual.layer5.0.conv1.weight."),
    (_misshapen, "positional_embedding has the wrong size (76x32 vs 77x32)"),
    (_scale, "logit_scale has the wrong size (3 vs scalar)"),
    (_text, "ln_final.bias is not a tensor (found a str)"),
]


@pytest.mark.parametrize(("change", "why"), FAULTS)
def test_weights_that_do_not_fit_name_the_key(change: Callable[[State], None], why: str) -> None:
    state = openai_state(small_model())
    change(state)
    torch.save(state, "w.pt")
    refused(Path("w.pt"), why)


def test_the_weights_of_another_architecture() -> None:
    other = {name.replace("layer", "stage"): tensor for name, tensor in openai_state(small_model()).items()}
    safetensors.torch.save_file(other, "w.safetensors")
    refused(Path("w.safetensors"), "w.safetensors: does not hold the weights of RN-small: it lacks visual.layer1.0.bn1")
    torch.save({"weight": torch.ones(3)}, "w.pt")
    refused(Path("w.pt"), "it lacks ln_final.bias and")


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil-was-here",)


FILES: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: torch.save({"w": Evil()}, path), "holds Python objects other than weights"),
    (lambda path: path.write_bytes(pickle.dumps(Evil(), protocol=2)), "is a pickle, or of torch before 1.6: refused"),
    (lambda path: path.write_bytes(pickle.dumps(Evil(), protocol=4)), "is not a weights file"),
    (lambda path: path.write_bytes(b""), "is not a weights file"),
    (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(90)), "is cut short or damaged"),
    (lambda path: path.mkdir(), "cannot be read (Is a directory)"),
    (lambda path: None, "cannot be read (No such file or directory)"),
]


@pytest.mark.parametrize(("make", "why"), FILES)
def test_files_that_are_not_what_they_claim(make: Callable[[Path], object], why: str) -> None:
    make(Path("w.pt"))
    refused(Path("w.pt"), why)


def test_archives_that_openai_did_not_publish(monkeypatch: pytest.MonkeyPatch) -> None:
    openai_archive(small_model(), Path("w.pt"))
    refused(Path("w.pt"), "is a TorchScript archive, which is a program, and none that OpenAI published (SHA-256 ")
    with pytest.raises(InputError, match=r"w\.pt: is a TorchScript archive, which is a program: refused"):
        read_weights(Path("w.pt"))
    publish(Path("w.pt"), monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(torch.jit, "load", JIT_LOAD)
        assert load_clip(NAME, "openai", Path("w.pt")).name == NAME
    content = Path("w.pt").read_bytes()
    Path("w.pt").write_bytes(content[:-2000])
    refused(Path("w.pt"), "is cut short or damaged")
    Path("w.pt").write_bytes(content[:2000] + bytes([content[2000] ^ 1]) + content[2001:])
    refused(Path("w.pt"), "none that OpenAI published")


def test_openais_published_archives_are_known_by_the_hash_in_their_address() -> None:
    """RN50's, as OpenAI's own package names it."""
    urls = [
        open_clip.get_pretrained_cfg(name, tag)["url"] for name, tag in open_clip.list_pretrained() if tag == "openai"
    ]
    known = {url.split("/")[-2] for url in urls if url.startswith("https://openaipublic.")}
    assert "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762" in known
    assert len(known) == 9
    assert all(len(each) == 64 for each in known)
