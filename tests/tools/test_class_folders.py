"""Parquet files of images as class folders."""

import hashlib
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffvit.data import folder
from tools import class_folders


def parquet(file, label, count):
    rows = []
    for number in range(count):
        with io.BytesIO() as buffer:
            Image.new("L", (8, 8), number).save(buffer, "PNG")
            rows.append({"img": {"bytes": buffer.getvalue(), "path": ""}, label: number % 3})
    pq.write_table(pa.Table.from_pylist(rows), file)
    return rows


@pytest.mark.parametrize("kept", [None, 2])
def test_they_are_read_back_as_they_were(kept, tmp_path, capsys):
    rows = parquet(tmp_path / "a.parquet", "fine_label", 12)
    parquet(tmp_path / "b.parquet", "fine_label", 3)
    more = [] if kept is None else ["--per-class", str(kept)]
    names = [str(tmp_path / name) for name in ("a.parquet", "b.parquet", "out")]
    class_folders.main([*names, "--label", "fine_label", *more])
    assert f"{12 if kept is None else 6} images to train, 3 to test" in capsys.readouterr().out
    found = folder.load(tmp_path / "out", "train", image_size=8)
    assert found.classes == ["000", "001", "002"]
    hashes = {
        label: sorted(hashlib.sha256(r["img"]["bytes"]).hexdigest() for r in rows if r["fine_label"] == label)
        for label in range(3)
    }
    expected = {(label, digest[:16]) for label in range(3) for digest in hashes[label][:kept]}
    assert {(int(p.parent.name), p.stem) for p in (tmp_path / "out" / "train").rglob("*.png")} == expected
    assert found.labels.bincount().tolist() == [kept or 4] * 3
