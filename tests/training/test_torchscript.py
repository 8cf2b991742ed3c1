"""TorchScript archives: the tensors come out as torch would load them, the code stays closed, and lies are refused."""

from __future__ import annotations

import contextlib
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from diffvit.errors import InputError
from diffvit.training.weights_file import read_weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning"),
]


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        self.list = nn.ModuleList([nn.Linear(2, 3), nn.Linear(3, 2).half()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.turned = nn.Parameter(torch.arange(6.0).view(2, 3).t())
        self.register_buffer("resolution", torch.tensor(224))
        self.scale, self.names, self.sizes = 0.5, "abc", [1, 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.scale * self.sizes[0] + torch.ones(2)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("archive") / "a.pt"
    torch.jit.save(torch.jit.script(Outer()), path)
    return path


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes], pack: str = "?") -> None:
    """The archive with its records changed; those whose name ends in ``pack`` are compressed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            name = entry.filename.partition("/")[2]
            kind = zipfile.ZIP_DEFLATED if name.endswith(pack) else zipfile.ZIP_STORED
            new.writestr(entry.filename, change(name, old.read(entry)), kind)


def test_tensors_are_those_that_torch_loads(archive: Path) -> None:
    expected = torch.jit.load(archive).state_dict()
    found = read_weights(archive, counters=True)
    assert found.scripted
    assert found.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found.tensors[name], tensor), name
        assert (found.tensors[name].dtype, found.tensors[name].stride()) == (tensor.dtype, tensor.stride())
    with pytest.raises(InputError, match=r"does not hold dense floats \(found int64\)"):
        read_weights(archive)


def test_traced_archives_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Outer().eval()
    torch.jit.save(torch.jit.trace(model, torch.ones(1, 2, 2, 2)), tmp_path / "t.pt")
    found = read_weights(tmp_path / "t.pt", counters=True).tensors
    assert found.keys() >= model.inner.norm.state_dict(prefix="inner.norm.").keys()
    assert torch.equal(found["turned"], model.turned)


def test_the_code_is_not_even_read(archive: Path, tmp_path: Path) -> None:
    rewritten(archive, tmp_path / "b.pt", lambda name, old: b"raise SystemExit(1)" if name.startswith("code/") else old)
    found = read_weights(tmp_path / "b.pt", counters=True).tensors
    expected = read_weights(archive, counters=True).tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil-was-here",)


def tree(name: str, content: bytes) -> Callable[[str, bytes], bytes]:
    return lambda record, old: content if record == name else old


def longer_rows(name: str, old: bytes) -> bytes:
    """A Linear(2, 3) that says it has 200 rows."""
    shape = b"(K\x03K\x02t"
    assert name != "data.pkl" or shape in old
    return old.replace(shape, b"(K\xc8K\x02t") if name == "data.pkl" else old


def nested(name: str, old: bytes) -> bytes:
    deep = b"c__torch__\nA\n)\x81}X\x01\x00\x00\x00a" * 100 + b"c__torch__\nA\n)\x81" + b"sb" * 100 + b"."
    return b"\x80\x02" + deep if name == "data.pkl" else old


FAULTS: list[tuple[Callable[[str, bytes], bytes], str, str]] = [
    (tree("data.pkl", pickle.dumps(Evil(), protocol=2)), "?", "holds Python objects other than weights (posix.mkdir)"),
    (tree("data.pkl", pickle.dumps({"a": 1}, protocol=2)), "?", "holds no module"),
    (tree("data.pkl", b""), "?", "is damaged"),
    (tree("data.pkl", b"\x80\x02" + b"(" * 1000 + b"."), "?", "is damaged"),
    (tree("data.pkl", bytes(17 * 2**20)), "?", "has a tree of over 16 MiB"),
    (tree("data/0", b"1234"), "?", "data/0 has another size than its tensors say"),
    (longer_rows, "?", "a tensor reaches beyond its data (200x2)"),
    (nested, "?", "has a tree that no model has"),
    (lambda name, old: bytes(10**8) if name == "data/0" else old, "data/0", "has packed tensors"),
    (tree("byteorder", b"big"), "?", "was saved on a machine of another byte order"),
]


@pytest.mark.parametrize(("change", "pack", "why"), FAULTS)
def test_archives_that_lie(
    change: Callable[[str, bytes], bytes],
    pack: str,
    why: str,
    archive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    rewritten(archive, tmp_path / "b.pt", change, pack)
    with pytest.raises(InputError) as caught:
        read_weights(tmp_path / "b.pt", counters=True)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "evil-was-here").exists()


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_cut_or_changed_archive_is_an_input_error_or_weights(
    archive: Path, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(archive.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "changed.pt").write_bytes(content)
    with contextlib.suppress(InputError):
        assert read_weights(tmp_path / "changed.pt", counters=True).tensors
