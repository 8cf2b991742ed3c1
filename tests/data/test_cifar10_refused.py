"""CIFAR-10 in Parquet files and image folders that are damaged, hostile, incomplete or something else."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cifar10_files import synthetic, write_folder, write_parquet

from diffvit.data import cifar10
from diffvit.errors import InputError

SETS = {"train": synthetic(5, 1), "test": synthetic(2, 2)}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(cifar10, "PER_CLASS", {"train": 5, "test": 2})


def load(folder):
    cifar10.load(cifar10.find(folder), "test")


@pytest.mark.parametrize(
    "content", [b"x", b"", None, b"PAR1", b"PK\3\4" + b"\0" * 100, b"PAR1" + b"\xff" * 64 + b"PAR1"]
)
def test_what_is_not_parquet_is_one_clear_line(content, tmp_path):
    path = tmp_path / "test-00000-of-00001.parquet"
    cut_short = write_parquet(tmp_path, "test", SETS["test"]).read_bytes()[:-100]
    path.write_bytes(cut_short if content is None else content)
    with pytest.raises(InputError, match="cannot be read as Parquet") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_damaged_parquet_pages_give_a_refusal_or_the_right_images(tmp_path):
    path = write_parquet(tmp_path, "test", SETS["test"])
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(20):
        damaged = bytearray(whole)
        for place in generator.integers(4, len(whole) - 4, 40):
            damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            load(tmp_path)
        except InputError:
            refused += 1
    assert refused > 0


def write_table(path, **columns):
    pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize(
    "columns",
    [
        {"image": [b"x"], "label": [1]},
        {"img": [b"x"], "label": [1]},
        {"img": [{"bytes": b"x", "path": "y"}]},
        {"img": [{"bytes": b"x", "path": "y"}], "label": [1.5]},
        {"img": [{"bytes": "text", "path": "y"}], "label": [1]},
    ],
)
def test_another_schema_is_refused(columns, tmp_path):
    write_table(tmp_path / "test.parquet", **columns)
    with pytest.raises(InputError, match="another schema"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (b"", "an empty file"),
        (None, "an empty file"),
        (b"x" * 70_000, "known format"),
        (b"\x89PNG\r\n\x1a\n", "decoded"),
    ],
)
def test_a_bad_row_is_named(image, why, tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    write_table(tmp_path / "test.parquet", img=pa.array([{"bytes": image, "path": "y"}], kind), label=[1])
    with pytest.raises(InputError, match=why) as caught:
        load(tmp_path)
    assert "row 0" in str(caught.value)


def test_wrong_sizes_labels_and_counts(tmp_path):
    pixels, labels = SETS["test"]
    write_parquet(tmp_path / "large", "test", (np.zeros((20, 3, 33, 32), np.uint8), labels))
    with pytest.raises(InputError, match="32 x 33 pixels vs 32 x 32"):
        load(tmp_path / "large")
    for wrong in (-1, 10, 2**40):
        write_parquet(tmp_path / "label", "test", (pixels, np.where(labels == 4, wrong, labels)))
        with pytest.raises(InputError, match=f"found {wrong}, allowed 0 to 9"):
            load(tmp_path / "label")
    for data, why in (
        ((pixels[:-1], labels[:-1]), "found 19 images vs 20"),
        ((pixels, np.where(labels == 4, 5, labels)), "found 0 of class deer vs 2"),
        ((pixels[:0], labels[:0]), "found 0 images"),
    ):
        write_parquet(tmp_path / "count", "test", data)
        with pytest.raises(InputError, match=why):
            load(tmp_path / "count")


def test_image_folder_with_other_classes_or_files(tmp_path):
    write_folder(tmp_path, "test", SETS["test"])
    (tmp_path / "test" / "cat" / "x.png").write_text("not an image")
    with pytest.raises(InputError, match=r"x\.png: is not an image"):
        load(tmp_path)
    (tmp_path / "test" / "cat" / "x.png").unlink()
    (tmp_path / "test" / "zebra").mkdir()
    with pytest.raises(InputError, match="class folders"):
        load(tmp_path)
