"""CIFAR-10: one content has one order, one fingerprint and one validation split, whatever it is packed in."""

import hashlib
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from cifar10_files import (
    CLASSES,
    archive,
    batch_pickle,
    batches,
    binary_members,
    python_members,
    records,
    synthetic,
    write_folder,
    write_parquet,
)

from diffvit.data import cifar10, sources
from diffvit.data.images import fingerprint
from diffvit.files import cache_folder, read_csv

PER_CLASS = {"train": 5, "test": 2}


@pytest.fixture(autouse=True)
def _small(request, monkeypatch):
    if request.node.get_closest_marker("cifar10") is None:
        monkeypatch.setattr(cifar10, "PER_CLASS", PER_CLASS)


def as_parquet(folder, sets):
    for split, data in sets.items():
        write_parquet(folder, split, data)


def as_python_folder(folder, sets):
    (folder / "cifar-10-batches-py").mkdir()
    for split, data in sets.items():
        for number, (name, part) in enumerate(batches(split, data).items()):
            (folder / "cifar-10-batches-py" / name).write_bytes(batch_pickle(part, protocol=number % 5))


def as_binary_folder(folder, sets):
    for split, data in sets.items():
        for name, part in batches(split, data).items():
            (folder / f"{name}.bin").write_bytes(records(part))


def as_image_folder(folder, sets):
    for split, data in sets.items():
        write_folder(folder, split, data)


def as_archive(name, members):
    return lambda folder, sets: (folder / name).write_bytes(archive(members(sets)))


CONTAINERS = {
    "parquet": ("parquet", as_parquet),
    "parquet in plain_text": ("parquet", lambda folder, sets: as_parquet(folder / "plain_text", sets)),
    "python archive": ("python", as_archive("cifar-10-python.tar.gz", python_members)),
    "python folder": ("python", as_python_folder),
    "binary archive": ("binary", as_archive("cifar-10-binary.tar.gz", binary_members)),
    "binary folder": ("binary", as_binary_folder),
    "image folder": ("folder", as_image_folder),
}


def loaded(folder, split="test"):
    return cifar10.load(cifar10.find(folder), split)


@pytest.fixture(scope="module")
def sets():
    return {"train": synthetic(PER_CLASS["train"], 1), "test": synthetic(PER_CLASS["test"], 2)}


@pytest.fixture(scope="module")
def expected(sets):
    """Both splits in the order every container must give: by SHA-256 of the pixels."""
    sorted_sets = {}
    for split, (pixels, labels) in sets.items():
        order = sorted(range(len(labels)), key=lambda row: hashlib.sha256(pixels[row].tobytes()).digest())
        sorted_sets[split] = (pixels[order], labels[order].tolist())
    return sorted_sets


@pytest.mark.parametrize(("inside", "step"), [("", 1), ("cifar10", -1)])
@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_the_same_images(name, inside, step, tmp_path, sets, expected):
    """Whatever the order inside: so one content has one fingerprint and one validation split."""
    kind, write = CONTAINERS[name]
    place = tmp_path / inside
    place.mkdir(exist_ok=True)
    write(place, {split: (pixels[::step], labels[::step]) for split, (pixels, labels) in sets.items()})
    assert cifar10.find(tmp_path).kind == kind
    for split in ("train", "test"):
        images = loaded(tmp_path, split)
        assert (images.name, images.note, images.exact) == (cifar10.UNKNOWN, "", None)
        assert images.classes == CLASSES
        assert images.pixels.dtype == torch.uint8
        assert np.array_equal(images.pixels.numpy(), expected[split][0])
        assert images.labels.tolist() == expected[split][1]


def test_official_but_for_horses_and_ships(tmp_path, sets, monkeypatch):
    """What is known of the official files decides: all classes but two, and no row that says it is a copy."""
    pixels, labels = sets["test"]
    assert cifar10.find(tmp_path / "official") is None
    write_parquet(tmp_path / "official", "test", sets["test"])
    images = loaded(tmp_path / "official")
    rest = ~torch.isin(images.labels, torch.tensor([7, 8]))
    official = fingerprint(images.pixels[rest], images.labels[rest], CLASSES)
    monkeypatch.setattr(cifar10, "_OFFICIAL", {official})
    assert loaded(tmp_path / "official").name == "CIFAR-10"
    for changed, name in ((8, "CIFAR-10"), (3, cifar10.UNKNOWN)):
        other = pixels.copy()
        other[np.flatnonzero(labels == changed)[0], 0, 0, 0] ^= 1
        write_parquet(tmp_path / str(changed), "test", (other, labels))
        assert loaded(tmp_path / str(changed)).name == name
    write_parquet(tmp_path / "copied", "test", sets["test"], copied=[int(np.flatnonzero(labels == 8)[0])])
    assert loaded(tmp_path / "copied").name == cifar10.UNKNOWN
    monkeypatch.setattr(cifar10, "_KNOWN", {images.fingerprint: ("a name", "a note")})
    for known in (loaded(tmp_path / "official"), loaded(tmp_path / "official").select([0, 3])):
        assert (known.name, known.note) == ("a name", "a note")


def test_copied_rows_are_not_exact_in_whatever_order(tmp_path, sets):
    pixels, labels = sets["test"]
    copied = [1, 4, 17]
    write_parquet(tmp_path, "test", sets["test"], copied=copied)
    for images in (loaded(tmp_path), loaded(tmp_path)):  # decoded, and as kept
        found = images.pixels[~images.exact].numpy()
        assert sorted(map(bytes, found)) == sorted(map(bytes, pixels[copied]))
        assert sorted(images.labels[~images.exact].tolist()) == sorted(labels[copied].tolist())
        few = images.select([5, 2])
        assert few.exact.tolist() == images.exact[[5, 2]].tolist()
    write_parquet(tmp_path, "test", sets["test"])
    assert loaded(tmp_path).exact is None  # the same pixels, and not from the cache


def test_decoded_pixels_are_kept_and_checked(tmp_path, sets, monkeypatch):
    write_parquet(tmp_path, "test", sets["test"])
    first = loaded(tmp_path)
    [kept] = (cache_folder() / "decoded").iterdir()
    decoded = []

    def counting(folder, split):
        decoded.append(split)
        return cifar10.read_parquet(folder, split)

    monkeypatch.setitem(cifar10.READERS, "parquet", counting)
    again = loaded(tmp_path)
    assert decoded == []
    assert again.fingerprint == first.fingerprint
    assert torch.equal(again.pixels, first.pixels)
    assert torch.equal(again.labels, first.labels)

    for damage in (lambda b: b[:-1], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b"", lambda b: b"\xff" * 64):
        kept.write_bytes(damage(kept.read_bytes()))
        assert loaded(tmp_path).fingerprint == first.fingerprint
    assert decoded == ["test"] * 4

    pixels, labels = sets["test"]
    write_parquet(tmp_path, "test", (255 - pixels, labels))
    assert loaded(tmp_path).fingerprint != first.fingerprint
    assert len(list((cache_folder() / "decoded").iterdir())) == 2


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path, sets, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    write_parquet(tmp_path, "test", sets["test"])
    assert len(loaded(tmp_path)) == 20
    assert blocked.read_text() == "in the way"


# SHA-256 of the decoded rows in the files' order, and how many of them are from a JPEG copy.
PUBLISHED = {
    "CIFAR-10 (JPEG)": {"test": ("4a95dbec0105c740563431b5446a564be66c245e23c20c93d5b99069e6b6ed9f", 0)},
    "CIFAR-10": {
        "train": ("7f6a40e98e6e3a02aedcb48102a90dabcc90c13e0714e22405ef26e25675c1e8", 92),
        "test": ("b8e91079fac0e6766050f4851fd0ee70ab5cacee08c5e5570ead75f3685c784a", 25),
    },
}


def test_runs_have_the_name_that_their_fingerprint_has():
    """With it the larger split of the JPEG copy, of which the test below decodes the smaller one alone."""
    rows = read_csv(Path(__file__).parents[2] / "reports" / "pooling" / "rows.csv")
    assert {row["data"] for row in rows} == {"CIFAR-10 (JPEG)"}
    assert {cifar10._KNOWN[row["fingerprint"]][0] for row in rows} == {"CIFAR-10 (JPEG)"}


@pytest.mark.cifar10
@pytest.mark.parametrize("copy", PUBLISHED)
def test_real_cifar10_decodes_to_its_published_sum_and_has_its_name(copy, cifar10_named, tmp_path, monkeypatch):
    place = cifar10_named(copy)
    container = cifar10.find(place)
    assert container.kind == "parquet"
    assert sources.resolve_auto(place) == "cifar10"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # nothing is decoded in it
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a third of the time; on above, for few images
    for split, (digest, copied) in PUBLISHED[copy].items():
        rows = cifar10.read_parquet(container.path, split)
        found = hashlib.sha256(rows.pixels.tobytes())
        found.update(rows.labels.tobytes())
        assert found.hexdigest() == digest
        assert copied == (0 if rows.exact is None else (~rows.exact).sum())
        monkeypatch.setitem(cifar10.READERS, "parquet", lambda *_, rows=rows: rows)  # decoding once is enough
        images = sources.load("auto", split, data_dir=place, image_size=32)
        assert (images.name, images.note) == (copy, "117 of 60,000 images from a JPEG copy" if copied else "")
        assert images.pixels.shape[1:] == (3, 32, 32)
        assert images.labels.bincount().tolist() == [cifar10.PER_CLASS[split]] * 10
        hashes = [hashlib.sha256(image.numpy().tobytes()).digest() for image in images.pixels[:200]]
        assert hashes == sorted(hashes)
        if copied:  # horses and ships; with any others in their place the set is named by the other classes
            assert set(images.labels[~images.exact].tolist()) == {CLASSES.index("horse"), CLASSES.index("ship")}
            pixels = images.pixels.clone()
            pixels[~images.exact] = 0
            there = cifar10._named(pixels, images.labels, None)
            assert (there.name, there.note) == ("CIFAR-10", "")
