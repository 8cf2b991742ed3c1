"""``diffvit data``: what a source holds, and how it is fetched."""

import json

from PIL import Image

from diffvit.cli.main import run
from tests.training.small import pictures


def test_data_info_counts_and_draws(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFVIT_SHAPES__TRAIN", "40")
    monkeypatch.setenv("DIFFVIT_SHAPES__TEST", "20")
    assert run(["data", "info", "shapes", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out.splitlines()[-1])
    assert found["images"] == {"train": 40, "test": 20}
    assert found["per_class"] == {"train": [4] * 10, "test": [2] * 10}
    assert found["size"] == [3, 32, 32]
    assert len(found["fingerprint"]["train"]) == 64
    with Image.open(found["contact_sheet"]) as sheet:
        assert sheet.format == "PNG"
        assert sheet.height > 10 * 64
        assert len(sheet.getcolors(1_000_000)) > 100
    scores = found["baselines"]
    assert next(iter(scores)) == "brightness"
    assert scores["brightness"]["pointing"] == 1
    assert scores["uniform"]["pointing"] < 0.4
    assert sum(line.startswith(f"│ {name}") for line in out.splitlines() for name in scores) == 11
    assert run(["data", "info", "shapes", "--sheet", "sheet.jpg"]) == 2
    assert "sheet.jpg: a contact sheet is a PNG" in capsys.readouterr().err
    (tmp_path / "taken.png").mkdir()
    assert run(["data", "info", "shapes", "--sheet", "taken.png", "--json"]) == 4
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1]) == found | {"contact_sheet": None}
    assert "train images" in out
    assert err.startswith("error: taken.png: cannot be written (is a directory).")
    assert "--sheet" in err
    assert err.count("\n") == 1


def test_a_folder_in_the_users_home(capsys, monkeypatch, tmp_path):
    pictures(tmp_path / "pets", ["cat", "dog"])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(["data", "info", "folder", "--data-dir=~/pets", "--sheet", str(tmp_path / "sheet.png"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["images"], found["layout"]) == ({"train": 2, "test": 2}, "test/ and train/")


def test_fetching_says_where_the_data_lies_and_why_not(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFVIT_OFFLINE", "1")
    assert run(["data", "fetch", "cifar10", "--data-dir", str(tmp_path)]) == 4
    assert capsys.readouterr().err.count("\n") == 1

    def fetched(name, folder, *, progress):
        for done in (1, 2, 50, 100):
            progress(done * 10**6, 10**8)
        assert folder == tmp_path
        return tmp_path / name

    monkeypatch.setattr("diffvit.data.download.fetch", fetched)
    monkeypatch.setenv("DIFFVIT_DATA", str(tmp_path))
    assert run(["data", "fetch", "cifar10", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1]) == {"name": "cifar10", "folder": str(tmp_path / "cifar10")}
    assert err.splitlines() == ["cifar10: 1 of 100 MB", "cifar10: 50 of 100 MB", "cifar10: 100 of 100 MB"]
