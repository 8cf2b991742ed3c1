"""Archives and pickles from a stranger: nothing runs, is written or grows without bound; one clear line each time."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import time
import zipfile

import numpy as np
import pytest
from cifar10_files import archive, batch_pickle, binary_members, python2_pickle, python_members, records, synthetic
from hypothesis import given, settings
from hypothesis import strategies as st

from diffvit.data import cifar10
from diffvit.errors import InputError

DATA = synthetic(2, 0)
MEMBER = "cifar-10-batches-py/test_batch"
BINARY = "cifar-10-batches-bin/test_batch.bin"
read_python, read_binary = cifar10.READERS["python"], cifar10.READERS["binary"]


def in_archive(folder, content, member=MEMBER):
    path = folder / "some.tar.gz"
    path.write_bytes(archive({member: content}))
    return path


def refused(path, why, read=read_python, split="test"):
    with pytest.raises(InputError, match=why) as caught:
        read(path, split)
    assert "\n" not in str(caught.value)


def claiming(size, name=MEMBER, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_links_and_devices_in_place_of_a_member(kind, tmp_path):
    info = claiming(0, kind=kind)
    info.linkname = "/etc/passwd"
    refused(in_archive(tmp_path, info), "not a regular file")
    with tarfile.open(tmp_path / "some.tar.gz", "w:gz") as tar:
        tar.addfile(claiming(0))
        tar.addfile(claiming(0))
    refused(tmp_path / "some.tar.gz", "twice")


def test_members_elsewhere_are_neither_read_nor_written(tmp_path):
    evil = {"../../escape": b"x", "/tmp/diffvit-escape": b"x", "cifar-10-batches-py/../escape": b"x", "nul\0name": b"x"}
    inside = tmp_path / "deep" / "inside"
    inside.mkdir(parents=True)
    path = inside / "some.tar.gz"
    path.write_bytes(archive({**evil, MEMBER: batch_pickle(DATA)}))
    assert np.array_equal(read_python(path, "test").pixels, DATA[0])
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]
    for name in ("../" + MEMBER, "/" + MEMBER, "./" + MEMBER.replace("/", "/../cifar-10-batches-py/"), MEMBER + "/x"):
        refused(in_archive(tmp_path, batch_pickle(DATA), name), "lacks")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE])
@pytest.mark.parametrize("size", [-512, 100_000, 2**28 + 1, 2**40, 2**62, 2**80])
@pytest.mark.parametrize("name", [MEMBER, "filler"])
def test_sizes_that_are_not_there_are_neither_believed_nor_waited_for(kind, size, name, tmp_path):
    path = tmp_path / "some.tar.gz"
    path.write_bytes(gzip.compress(claiming(size, name, kind).tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096))
    started = time.process_time()
    refused(path, "not a whole|lacks")
    assert time.process_time() - started < 5


def test_a_small_file_that_unpacks_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "MAX_UNPACKED", 2**20)
    path = tmp_path / "some.tar.gz"
    path.write_bytes(gzip.compress(claiming(2**33).tobuf(tarfile.GNU_FORMAT) + b"\0" * 2**22))
    refused(path, "unpacks to more than")
    (tmp_path / "test_batch.bin").write_bytes(b"\0" * (2**20 + 1))
    refused(tmp_path, "too large", read_binary)


def zipped(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(MEMBER, content)
    return buffer.getvalue()


NOT_ARCHIVES = {
    "empty": b"",
    "one byte": b"x",
    "gzip's magic": b"\x1f\x8b",
    "gzip of text": gzip.compress(b"not a tar" * 100),
    "gzip of nothing": gzip.compress(b""),
    "zip": zipped(b"x"),
    "gzip's magic and noise": b"\x1f\x8b" + b"\xff" * 50,
}


@pytest.mark.parametrize("name", NOT_ARCHIVES)
@pytest.mark.parametrize("read", [read_python, read_binary])
def test_not_an_archive(name, read, tmp_path):
    path = tmp_path / "some.tar.gz"
    refused(path, "cannot be read", read)
    path.write_bytes(NOT_ARCHIVES[name])
    refused(path, "not a whole|lacks", read)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize(("members", "read"), [(python_members, read_python), (binary_members, read_binary)])
def test_a_truncated_archive(members, read, share, tmp_path):
    whole = archive(members({"train": synthetic(5, 3)}))
    path = tmp_path / "some.tar.gz"
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(path, "not a whole|lacks", read, "train")


@pytest.mark.parametrize("size", [0, 1, 3072, 3074])
def test_records_of_the_wrong_length(size, tmp_path):
    refused(in_archive(tmp_path, b"\0" * size, BINARY), "whole number of 3073-byte records", read_binary)


def test_records_with_a_wrong_label(tmp_path, monkeypatch):
    content = bytearray(records(DATA))
    content[3073] = 10
    (tmp_path / "test_batch.bin").write_bytes(content)
    refused(tmp_path, "found 10, allowed 0 to 9", lambda path, split: cifar10.load(cifar10.find(path), split))


def test_pickles_of_every_protocol_of_python_2_and_of_older_numpy_read_the_same(tmp_path):
    old, older = python2_pickle(DATA), batch_pickle(DATA).replace(b"numpy._core", b"numpy.core")
    assert pickle.loads(old, encoding="bytes")[b"labels"] == DATA[1].tolist()
    for content in (old, older, *(batch_pickle(DATA, protocol) for protocol in range(5))):
        rows = read_python(in_archive(tmp_path, content), "test")
        assert np.array_equal(rows.pixels, DATA[0])
        assert np.array_equal(rows.labels, DATA[1])


class Runs:
    """Pickles into a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("where", ["alone", "data", "labels", "extra", "key"])
def test_a_pickle_that_runs_a_command_is_not_obeyed(where, protocol, tmp_path):
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


HOSTILE_PICKLES = {
    "a memo slot of 64 GB": b"\x80\x02]r\xff\xff\xff\x7f.",
    "a textual memo slot": b"]p99999999999999999999\n.",
    "a long string claimed": b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.",
    "a long old string claimed": b"T\xff\xff\xff\x7fx.",
    "a byte array of 1 TB claimed": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
    "a list of 1 TB as rows": batch_pickle(DATA).replace(b"K\x14M\0\x0c\x86", b"]K\1a\x8a\6\0\0\0\0\0\1\x86"),
    "an extension code": b"\x80\x02\x82\x01.",
    "a persistent id": b"Pid\n.",
    "an instance": b"(ios\nsystem\n.",
    "a new object": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "a stand-in's class": b"\x80\x02cnumpy\nndarray\nN}X\x08\0\0\0__call__K\x01s\x86b.",
    "nothing": b"",
    "no end": b"\x80\x02]",
    "an empty stack": b"\x80\x020.",
    "a list": b"].",
    "an empty dict": b"}.",
    "a stack of appends": b"(" * 1000 + b".",
    "a string encoded often": b"\x80\x02X" + struct.pack("<I", 2**20) + b"x" * 2**20
    + b"q\0c_codecs\nencode\nq\x01X\x06\0\0\0latin1q\x02" + b"h\x01h\0h\x02\x86R" * 100 + b".",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_PICKLES)
def test_hostile_pickles(name, tmp_path):
    resource = pytest.importorskip("resource")
    path = in_archive(tmp_path, HOSTILE_PICKLES[name])
    started, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path, "is not a CIFAR-10 batch")
    assert time.process_time() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 200_000  # kilobytes
    assert np.array_equal(read_python(in_archive(tmp_path, batch_pickle(DATA)), "test").labels, DATA[1])


def shaped(*shape, kind="u1"):
    return np.zeros(shape, dtype=kind)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"data": shaped(20, 3072, kind="f4")}, "other pixels"),
        ({"data": shaped(20, 3072, kind="i1")}, "other pixels"),
        ({"data": shaped(20, 1024)}, "other pixels"),
        ({"data": shaped(20, 3, 32, 32)}, "not a CIFAR-10 batch"),
        ({"data": np.asfortranarray(shaped(20, 3072))}, "other pixels"),
        ({"data": np.empty((20, 3072), dtype=object)}, "not a CIFAR-10 batch|other pixels"),
        ({"data": [[0] * 3072] * 20}, "not a CIFAR-10 batch"),
        ({"data": None}, "not a CIFAR-10 batch"),
        ({"data": shaped(19, 3072)}, "19 images but 20 labels"),
        ({"labels": [0] * 19}, "20 images but 19 labels"),
        *[
            ({"labels": [label] * 20}, "list of whole numbers from 0 to 9")
            for label in (10, -1, 2**200, 1.0, True, "1")
        ],
        *[({"labels": labels}, "list of whole numbers") for labels in ("0123456789" * 2, None)],
    ],
)
def test_batches_with_wrong_content(changes, why, tmp_path):
    refused(in_archive(tmp_path, batch_pickle(DATA, **changes)), why)


@pytest.mark.parametrize("rows", [10**9, 21, 0, -20])
def test_a_shape_that_its_bytes_do_not_fill(rows, tmp_path):
    refused(in_archive(tmp_path, python2_pickle(DATA, rows)), "other pixels")


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_flipped_bytes_in_a_pickle(tmp_path_factory, data):
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
