"""Archives from a stranger: nothing runs, nothing is written, nothing grows without bound; one clear line each time."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cifar10_files import (
    PYTHON_TEST_BATCH,
    Split,
    archive,
    batch_pickle,
    binary_members,
    in_archive,
    python_members,
    records,
    refused,
    synthetic,
)

from diffvit.data.cifar10_archives import MAX_MEMBER, read_binary, read_python
from diffvit.errors import InputError

DATA = synthetic(2, 0)
MEMBER = PYTHON_TEST_BATCH
BINARY = "cifar-10-batches-bin/test_batch.bin"


def with_member(info: tarfile.TarInfo, content: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_links_and_devices_in_place_of_a_member(kind: bytes, tmp_path: Path) -> None:
    info = tarfile.TarInfo(MEMBER)
    info.type, info.linkname = kind, "/etc/passwd"
    path = tmp_path / "some.tar.gz"
    path.write_bytes(with_member(info))
    refused(path, "not a regular file")


def test_members_elsewhere_are_neither_read_nor_written(tmp_path: Path) -> None:
    evil = {"../../escape": b"x", "/tmp/diffvit-escape": b"x", "cifar-10-batches-py/../escape": b"x", "nul\0name": b"x"}
    inside = tmp_path / "deep" / "inside"
    inside.mkdir(parents=True)
    path = inside / "some.tar.gz"
    path.write_bytes(archive({**evil, MEMBER: batch_pickle(DATA)}))
    assert np.array_equal(read_python(path, "test").pixels, DATA[0])
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]
    for name in ("../" + MEMBER, "/" + MEMBER, "./" + MEMBER.replace("/", "/../cifar-10-batches-py/"), MEMBER + "/x"):
        path.write_bytes(archive({name: batch_pickle(DATA)}))
        refused(path, "lacks")


def test_a_member_twice(tmp_path: Path) -> None:
    info = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
    path = tmp_path / "some.tar.gz"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.addfile(info)
        tar.addfile(info)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="twice"):
        read_python(path, "train")


@pytest.mark.parametrize("size", [MAX_MEMBER + 1, 2**40, 8**11 - 1])
def test_a_member_that_claims_to_be_huge(size: int, tmp_path: Path) -> None:
    info = tarfile.TarInfo(MEMBER)
    info.size = size
    path = tmp_path / "some.tar.gz"
    path.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096))
    refused(path, "too large")


def test_a_member_that_is_cut_short(tmp_path: Path) -> None:
    info = tarfile.TarInfo(MEMBER)
    info.size = 100_000
    path = tmp_path / "some.tar.gz"
    path.write_bytes(gzip.compress(info.tobuf() + b"x" * 1000))
    refused(path, "cut short|not a whole")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE])
def test_a_small_file_that_unpacks_without_end(kind: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffvit.data.cifar10_archives.MAX_UNPACKED", 2**20)
    info = tarfile.TarInfo("filler")
    info.type, info.size = kind, 2**33
    path = tmp_path / "some.tar.gz"
    path.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 2**22))
    refused(path, "unpacks to more than")


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(MEMBER, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"\x1f\x8b",
        gzip.compress(b"not a tar" * 100),
        gzip.compress(b""),
        zipped(b"x"),
        b"\x1f\x8b" + b"\xff" * 50,
    ],
    # Named here: a gzip file holds the time it was made, and every worker has to collect the same names.
    ids=["empty", "one-byte", "gzip-magic", "gzip-of-text", "gzip-of-nothing", "zip", "gzip-magic-and-noise"],
)
@pytest.mark.parametrize("read", [read_python, read_binary])
def test_not_an_archive(content: bytes, read: Callable[[Path, str], object], tmp_path: Path) -> None:
    path = tmp_path / "some.tar.gz"
    path.write_bytes(content)
    refused(path, "not a whole|lacks", read)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize(("members", "read"), [(python_members, read_python), (binary_members, read_binary)])
def test_a_truncated_archive(
    members: Callable[[dict[str, Split]], dict[str, bytes | tarfile.TarInfo]],
    read: Callable[[Path, str], object],
    share: float,
    tmp_path: Path,
) -> None:
    whole = archive(members({"train": synthetic(5, 3)}))
    path = tmp_path / "some.tar.gz"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match=r"not a whole|cut short|lacks"):
        read(path, "train")


def test_a_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "none.tar.gz", "cannot be read")
    (tmp_path / "cifar-10-batches-py").mkdir()
    refused(tmp_path / "cifar-10-batches-py", "lacks")


@pytest.mark.parametrize("size", [0, 1, 3072, 3074])
def test_records_of_the_wrong_length(size: int, tmp_path: Path) -> None:
    refused(in_archive(tmp_path, b"\0" * size, BINARY), "whole number of 3073-byte records", read_binary)


def test_records_with_a_wrong_label(tmp_path: Path) -> None:
    content = bytearray(records(DATA))
    content[3073] = 10
    refused(in_archive(tmp_path, bytes(content), BINARY), "found 10, allowed 0 to 9", read_binary)


def test_an_unpacked_file_over_the_cap(tmp_path: Path) -> None:
    with (tmp_path / "test_batch.bin").open("wb") as file:
        file.truncate(MAX_MEMBER + 1)
    refused(tmp_path, "too large", read_binary)
