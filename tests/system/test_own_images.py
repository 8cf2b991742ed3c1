"""Fourteen ways in which people keep their own images, each through every command with no setting but the folder.

The pictures are pieces of real photographs and scans that installed packages bring along. Small models and one epoch
come from the environment, so that the command lines are those of a new user.
"""

import csv
import json
import re
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from app_browser.watching import FIRST, changed, inner, opened
from explorer_page import browser, explorer
from PIL import Image
from pillow_heif import from_pillow
from playwright.sync_api import expect
from sklearn.datasets import load_digits, load_sample_images

from diffvit.cli.main import run
from diffvit.training.run_dir import RunDir

pytestmark = pytest.mark.system
SMALL = {"EPOCHS": 1, "BATCH_SIZE": 16, "MODEL__EMBED_DIM": 48, "MODEL__DEPTH": 1, "MODEL__NUM_HEADS": 2, "THREADS": 1}
RUNS = Path("runs")


@cache
def photographs():
    return [Image.fromarray(picture) for picture in load_sample_images().images]


def piece(photograph, number, size=48):
    """One of the non-overlapping squares of a photograph, from left to right and from top to bottom."""
    picture = photographs()[photograph]
    down, across = divmod(number, picture.width // size)
    return picture.crop((across * size, down * size, (across + 1) * size, (down + 1) * size))


def save(picture, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def classes(root, names=("flower", "temple"), each=12, first=0, suffix=".png", change=lambda picture, _: picture):
    """Folders of classes, the first with pieces of one photograph, the others with those of the other."""
    for place, name in enumerate(names):
        for number in range(each):
            at = first + number + each * max(0, place - 1)
            save(change(piece(int(place > 0), at), number), root / name / f"{number}{suffix}")


def splits(root, *names):
    for place, name in enumerate(names):
        classes(root / name, first=12 * place)


def table(root):
    classes(root / "images")
    files = sorted((root / "images").rglob("*.png"))
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *((p.relative_to(root), p.parent.name) for p in files)])


def nested(root):
    classes(root / "export" / "flower" / "2025", ("june", "july"))
    classes(root / "export" / "temple", ("east", "west"), first=24)


def rare(root):
    classes(root)
    save(photographs()[0].resize((64, 40)), root / "whole" / "1.jpg")


def damaged(root):
    classes(root, suffix=".jpg")
    for number in range(3):
        file = root / "flower" / f"{number}.jpg"
        file.write_bytes(file.read_bytes()[:400])
    (root / "temple" / "text.jpg").write_text("not a picture")
    from_pillow(piece(1, 40)).save(root / "temple" / "phone.heic")


def digits(root):
    found = load_digits()
    for number, (image, label) in enumerate(zip(found.images[:120], found.target[:120], strict=True)):
        save(Image.fromarray(np.round(image * 255 / 16).astype(np.uint8)), root / str(label) / f"{number}.png")


def transparent(picture, number):
    picture.putalpha(255 - 5 * number)
    return picture


def from_macos(root):
    classes(root / "pictures")
    for folder in (root / "__MACOSX" / "pictures" / "flower", root / "pictures" / "flower"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "._0.png").write_bytes(b"\0\5\x16\7")
        (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")


def linked(root):
    classes(root.with_name("elsewhere"), ("a", "b"))
    root.mkdir()
    for name, target in (("flower", "a"), ("temple", "b")):
        (root / name).symlink_to(root.with_name("elsewhere").absolute() / target)


LAYOUTS = {
    "flat": (classes, 2),
    "train-test": (lambda root: splits(root, "train", "test"), 2),
    "train-valid-test": (lambda root: splits(root, "train", "valid", "test"), 2),
    "csv": (table, 2),
    "nested": (nested, 2),
    "100 classes": (lambda root: classes(root, [f"{n:03}" for n in range(100)], each=3, change=tiny), 100),
    "a class of one": (rare, 3),
    "damaged": (damaged, 2),
    "grey": (digits, 10),
    "rgba": (lambda root: classes(root, change=transparent), 2),
    "mixed sizes": (lambda root: classes(root, change=lambda p, n: p.resize((20 + 9 * n, 90 - 6 * n))), 2),
    "unicode": (lambda root: classes(root, ("Blüte & Ähre", "寺 10%"), suffix=" (kopie) é.png"), 2),
    "macos": (from_macos, 2),
    "links": (linked, 2),
}


def tiny(picture, number):
    return picture.rotate(90 * number)


@pytest.fixture(scope="module", autouse=True)
def _together(tmp_path_factory):
    """A working folder for all, and small models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("work"))
        for name, value in SMALL.items():
            patch.setenv(f"DIFFVIT_{name}", str(value))
        yield


@pytest.fixture
def place(request):
    make, _ = LAYOUTS[request.param]
    root = Path(request.param) / f"my {request.param}"
    root.parent.mkdir()
    make(root)
    return root


def succeeds(capsys, *command):
    code = run([str(part) for part in command])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


@pytest.mark.parametrize("place", [name for name in LAYOUTS if name != "damaged"], indirect=True)
def test_every_command_takes_the_folder_as_it_is(place, capsys):
    layout = place.parent.name
    out, count = succeeds(capsys, "data", "info", place), LAYOUTS[layout][1]
    assert re.search(r"^bad files +0$", out, re.MULTILINE)
    with Image.open(f"{place.name}-sheet.png") as sheet:
        assert np.asarray(sheet.convert("RGB")).std() > 10
    folder = RUNS / layout
    succeeds(capsys, "train", "--data", "folder", "--data-dir", place, "--out", folder)
    trained = RunDir(folder)
    assert trained.config.model.num_classes == count
    assert trained.config.model.in_chans == (1 if layout == "grey" else 3)
    assert 1 <= trained.environment["data"]["validation"] <= trained.config.validation_size
    names = trained.environment["classes"]
    out = succeeds(capsys, "evaluate", folder)
    assert all(name in out for name in names[:20])
    out = succeeds(capsys, "predict", folder, place, "--json")
    found = json.loads(out.splitlines()[-1])["images"]
    assert len(found) == sum(trained.environment["data"][split] for split in ("train", "validation", "test"))
    assert {image["top"][0][0] for image in found} <= set(names)
    maps = place.parent / "maps"
    succeeds(capsys, "attention", folder, "--index", "0,1", "--out", maps)
    pictures = list(maps.rglob("*.png"))
    assert pictures
    for path in pictures:
        with Image.open(path) as picture:
            assert np.asarray(picture.convert("RGB")).std() > 10


@pytest.mark.parametrize("place", ["damaged"], indirect=True)
def test_damaged_files_are_refused_together_in_one_line_or_skipped(place, capsys):
    folder = RUNS / "damaged"
    command = ["train", "--data", "folder", "--data-dir", str(place), "--out", str(folder)]
    assert run(command) == 3
    err = capsys.readouterr().err
    assert err.count("error: ") == 1
    assert "4 of 26 files cannot be read" in err
    assert not folder.exists()
    bad = {"flower/0.jpg", "flower/1.jpg", "flower/2.jpg", "temple/text.jpg"}
    assert run(["data", "info", str(place)]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"^bad files +4$", out, re.MULTILINE)
    assert all(name in err for name in bad)
    succeeds(capsys, *command, "--bad-files", "skip")
    assert {row["path"] for row in RunDir(folder).environment["data"]["skipped"]} == bad
    succeeds(capsys, "evaluate", folder)
    succeeds(capsys, "predict", folder, place / "temple" / "phone.heic")


def test_the_page_shows_a_picture_of_every_folder():
    """In a browser, with the runs that the tests above have trained."""
    runs = sorted(RUNS.iterdir())
    assert {run.name for run in runs} == set(LAYOUTS)
    with browser() as chrome, explorer(Path.cwd(), [part for run in runs for part in ("--run", run)]) as (address, *_):
        watched = opened(chrome, address)
        page = watched.page
        for run in runs[1:] + runs[:1]:  # the page begins with the first
            before = inner(page, "#dv-thumbs")
            page.get_by_label("Model", exact=True).first.click()
            page.get_by_role("option", name=run.name, exact=True).first.click()
            changed(page, "#dv-thumbs", before)
            expect(page.locator(f"{FIRST} >> h2")).to_have_text(run.name)
            thumb = page.locator("#dv-thumbs button").last
            thumb.click()
            expect(page.locator(f"{FIRST} >> figcaption >> nth=0")).to_contain_text(thumb.inner_text().strip())
            assert page.locator(f"{FIRST} >> img").first.evaluate("image => image.naturalWidth") > 10
        assert (watched.outside, watched.complaints) == ([], [])


def test_heic_without_its_reader_is_named(monkeypatch, capsys):
    from_pillow(piece(0, 3)).save("phone.heic")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert run(["predict", "cifar10-vit", "phone.heic"]) == 3
    assert "HEIC" in (err := capsys.readouterr().err)
    assert "diffvit[heic]" in err


def test_a_picture_of_a_hundred_megapixels(tmp_path, capsys):
    photographs()[0].resize((11_000, 9_000)).save(tmp_path / "large.jpg")
    assert "large.jpg" in succeeds(capsys, "predict", "cifar10-vit", tmp_path / "large.jpg")
    photographs()[0].resize((11_000, 9_100)).save(tmp_path / "larger.jpg")
    assert run(["predict", "cifar10-vit", str(tmp_path / "larger.jpg")]) == 3
    assert "11000 x 9100 vs at most 100 megapixels" in capsys.readouterr().err
