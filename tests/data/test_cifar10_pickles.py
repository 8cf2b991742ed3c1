"""Pickled batches from a stranger: nothing runs, nothing grows without bound; one clear line each time."""

from __future__ import annotations

import io
import os
import pickle
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from cifar10_files import (
    batch_pickle,
    in_archive,
    python2_pickle,
    refused,
    synthetic,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from diffvit.data.cifar10_archives import read_python
from diffvit.errors import InputError

DATA = synthetic(2, 0)


@pytest.mark.parametrize("protocol", range(5))
def test_pickles_of_every_protocol_read_the_same(protocol: int, tmp_path: Path) -> None:
    rows = read_python(in_archive(tmp_path, batch_pickle(DATA, protocol)), "test")
    assert np.array_equal(rows.pixels, DATA[0])
    assert np.array_equal(rows.labels, DATA[1])


def test_pickles_of_python_2_and_of_older_numpy_read_the_same(tmp_path: Path) -> None:
    old = python2_pickle(DATA)
    assert pickle.loads(old, encoding="bytes")[b"labels"] == DATA[1].tolist()
    for content in (old, batch_pickle(DATA).replace(b"numpy._core", b"numpy.core")):
        assert np.array_equal(read_python(in_archive(tmp_path, content), "test").pixels, DATA[0])


class Runs:
    """Pickles into a call."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("where", ["alone", "data", "labels", "extra", "key"])
def test_a_pickle_that_runs_a_command_is_not_obeyed(where: str, protocol: int, tmp_path: Path) -> None:
    bomb = Runs(os.system, f"touch {tmp_path}/ran")
    content = {
        "alone": lambda: pickle.dumps(bomb, protocol),
        "data": lambda: batch_pickle(DATA, protocol, data=bomb),
        "labels": lambda: batch_pickle(DATA, protocol, labels=[bomb]),
        "extra": lambda: batch_pickle(DATA, protocol, extra=bomb),
        "key": lambda: pickle.dumps({bomb: 1}, protocol),
    }[where]()
    refused(in_archive(tmp_path, content), r"is not a CIFAR-10 batch \(it asks for (posix|nt)\.system")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "function", [eval, getattr, np.load, np.frombuffer, __import__, open, io.BytesIO], ids=lambda f: f.__name__
)
def test_other_callables_are_not_known(function: object, tmp_path: Path) -> None:
    refused(in_archive(tmp_path, pickle.dumps(Runs(function, "1"))), "it asks for")


HOSTILE_PICKLES = {
    "a memo slot of 64 GB": (b"\x80\x02]r\xff\xff\xff\x7f.", "memo slot"),
    "a textual memo slot": (b"]p99999999999999999999\n.", "memo slot"),
    "a long string claimed": (b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.", "not a CIFAR-10 batch"),
    "a long old string claimed": (b"T\xff\xff\xff\x7fx.", "not a CIFAR-10 batch"),
    "a byte array claimed": (b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b"x.", "not a CIFAR-10 batch"),
    "an extension code": (b"\x80\x02\x82\x01.", "operation EXT1"),
    "a persistent id": (b"Pid\n.", "operation PERSID"),
    "an instance": (b"(ios\nsystem\n.", "operation INST"),
    "a new object": (b"\x80\x02cnumpy\nndarray\n)\x81.", "operation NEWOBJ"),
    "nothing": (b"", "not a CIFAR-10 batch"),
    "no end": (b"\x80\x02]", "not a CIFAR-10 batch"),
    "an empty stack": (b"\x80\x020.", "not a CIFAR-10 batch"),
    "a list": (b"].", "found a list vs a dict"),
    "an empty dict": (b"}.", "no list of whole numbers"),
    "a stack of appends": (b"(" * 1000 + b".", "not a CIFAR-10 batch"),
    "a string encoded often": (
        b"\x80\x02X" + struct.pack("<I", 2**20) + b"x" * 2**20 + b"q\0c_codecs\nencode\nq\x01X\x06\0\0\0latin1q\x02"
        + b"h\x01h\0h\x02\x86R" * 100 + b".",
        "grows beyond",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_PICKLES)
def test_hostile_pickles(name: str, tmp_path: Path) -> None:
    content, why = HOSTILE_PICKLES[name]
    started = time.process_time()
    refused(in_archive(tmp_path, content), why)
    assert time.process_time() - started < 5


def shaped(*shape: int, kind: str = "u1") -> np.ndarray:
    return np.zeros(shape, dtype=kind)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"data": shaped(20, 3072, kind="f4")}, "other pixels"),
        ({"data": shaped(20, 3072, kind="i1")}, "other pixels"),
        ({"data": shaped(20, 3072, kind="i2")}, "other pixels"),
        ({"data": shaped(20, 1024)}, "other pixels"),
        ({"data": shaped(20, 3, 32, 32)}, "no array"),
        ({"data": np.asfortranarray(shaped(20, 3072))}, "other pixels"),
        ({"data": np.empty((20, 3072), dtype=object)}, "other pixels"),
        ({"data": [[0] * 3072] * 20}, "no array"),
        ({"data": None}, "no array"),
        ({"data": shaped(19, 3072)}, "19 images but 20 labels"),
        ({"labels": [0] * 19}, "20 images but 19 labels"),
        ({"labels": [10] * 20}, "names no class"),
        ({"labels": [-1] * 20}, "names no class"),
        ({"labels": [2**200] * 20}, "names no class"),
        ({"labels": [1.0] * 20}, "no list of whole numbers|operation BINFLOAT"),
        ({"labels": [True] * 20}, "no list of whole numbers"),
        ({"labels": "0123456789" * 2}, "no list of whole numbers"),
        ({"labels": None}, "no list of whole numbers"),
    ],
)
def test_batches_with_wrong_content(changes: dict[str, object], why: str, tmp_path: Path) -> None:
    refused(in_archive(tmp_path, batch_pickle(DATA, **changes)), why)


@pytest.mark.parametrize("rows", [10**9, 21, 0, -20])
def test_a_shape_that_its_bytes_do_not_fill(rows: int, tmp_path: Path) -> None:
    refused(in_archive(tmp_path, python2_pickle(DATA, rows)), "do not fill its shape")


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_flipped_bytes_in_a_pickle(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(batch_pickle((DATA[0][:2], DATA[1][:2]), data.draw(st.sampled_from([0, 2, 4]))))
    ends = [*range(60), *range(len(content) - 260, len(content))]
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.sampled_from(ends))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("flipped") / "test_batch"
    path.write_bytes(content)
    try:
        rows = read_python(path.parent, "test")
    except InputError:
        return
    assert rows.pixels.shape == (2, 3, 32, 32)
