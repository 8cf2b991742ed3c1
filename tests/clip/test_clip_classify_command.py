"""``diffvit clip classify`` from end to end on a small model, and its refusals: exit code, one line, what was kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from small_clip import NAME, Evil, open_clips_probabilities, register, small_file

from diffvit.cli.main import run

Captured = pytest.CaptureFixture[str]
BASE = ["clip", "classify", "--model", NAME, "--weights", "w.pt"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    register(tmp_path, monkeypatch)
    Path("w.pt").write_bytes(small_file())
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (70, 90 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"p{number}.png")
    Path("bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")


def test_the_answers_are_open_clips(capsys: Captured) -> None:
    command = [*BASE, "p0.png", "p1.png", "p2.png", "--labels", "cat,dog, red $5 & $6 car", "--json", "--out", "seen"]
    assert run([*command, "--templates", "openai-7"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "labels         3 (3 computed now, the others cached)" in out
    found = json.loads(out.splitlines()[-1])
    assert (found["model"], found["pretrained"], found["weights"]) == (NAME, "openai", "w.pt")
    assert found["templates"] == {"name": "openai-7", "count": 7}
    assert found["preprocessing"].startswith("shorter side to 64 (bicubic, antialiased), centre crop 64, mean 0.4815")
    labels = ["cat", "dog", "red $5 & $6 car"]
    chances = open_clips_probabilities(
        [Path(f"p{n}.png") for n in range(3)], labels, list(open_clip.SIMPLE_IMAGENET_TEMPLATES)
    )
    for image, row in zip(found["images"], chances, strict=True):
        top = dict(image["top"])
        assert list(top.values()) == sorted(top.values(), reverse=True)
        assert all(abs(top[label] - float(row[place])) < 1e-5 for place, label in enumerate(labels))
    assert found["files"] == ["seen/classify.png", "seen/classify.json"]
    with Image.open("seen/classify.png") as figure:
        assert figure.size[0] > 1000
    assert json.loads(Path("seen/classify.json").read_text())["images"] == found["images"]
    assert run([*command[:-2], "--templates", "openai-7"]) == 0
    assert "labels         3 (0 computed now" in capsys.readouterr().out


def test_a_corrupt_image_among_many_good_ones(capsys: Captured) -> None:
    command = [*BASE, "p0.png", "bad.png", *["p1.png"] * 8, "none.png", "--labels", "a,b", "--templates", "single"]
    assert run([*command, "--json", "--out", "seen", "--top", "1"]) == 3
    out, err = capsys.readouterr()
    assert err.startswith("error: bad.png: cannot be decoded as an image (")
    assert err.endswith("1 more could not be read either. The other images are above.\n")
    assert err.count("\n") == 1
    found = json.loads(out.splitlines()[-1])
    assert [image["image"] for image in found["images"]] == ["p0.png", *["p1.png"] * 8]
    assert [image["image"] for image in found["failed"]] == ["bad.png", "none.png"]
    seen = sorted(file.name for file in Path("seen").iterdir())
    assert seen == ["classify-01.png", "classify-02.png", "classify.json"]


def test_words_that_a_small_clip_never_read_are_named(capsys: Captured) -> None:
    command = ["clip", "classify", "--model", "cifar10-clip", "p0.png", "--templates", "single", "--json"]
    assert run([*command, "--labels", "cat,a Toaster,green zeppelin,an airplane"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("warning: ")
    assert err.count("\n") == 1
    assert "Toaster, zeppelin" in err
    assert json.loads(out.splitlines()[-1])["unknown_words"] == ["Toaster", "zeppelin"]
    for labels in ("toaster,a zeppelin", "\N{TOP HAT},toaster"):
        assert run([*command, "--labels", labels]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert labels.replace(",", ", ") in err


FEW = ["p0.png", "--labels", "a"]
WRONG: list[tuple[list[str], int, str]] = [
    (["--labels", "a,b"], 2, "IMAGE: needs a value."),
    (["p0.png"], 2, "--labels: give --labels a,b,c or --labels-file FILE, one of them."),
    (["p0.png", "--labels", "a cat,Cat", "--templates", "single"], 2, "labels: 'a cat' and 'Cat' are the same to RN-s"),
    ([*FEW, "--templates", "bare.txt"], 3, "bare.txt: has a template without {}"),
    ([*FEW, "--templates", "openai"], 2, "--templates: no such templates"),
    ([*FEW, "--top", "0"], 2, "--top: must be at least 1 (found 0)."),
    (["bad.png", "--labels", "a", "--templates", "single"], 3, "bad.png: cannot be decoded"),
    ([*FEW, "--model", "RN-smal"], 2, "--model: no model 'RN-smal' in open_clip"),
    ([*FEW, "--pretrained", "x"], 2, "--pretrained: no weights 'x' for RN-small (have"),
    ([*FEW, "--model", "RN50"], 3, "w.pt: does not hold the weights of RN50"),
    ([*FEW, "--weights", "evil.pt"], 3, "evil.pt: holds Python objects other"),
    ([*FEW, "--weights", "no.pt"], 3, "no.pt: cannot be read (No such file"),
]


@pytest.mark.parametrize(("more", "code", "why"), WRONG)
def test_what_is_wrong_is_one_line_and_its_code(more: list[str], code: int, why: str, capsys: Captured) -> None:
    Path("bare.txt").write_text("a {}\na photo\n")
    torch.save({"w": Evil()}, "evil.pt")
    command = [*BASE, *more]
    for flag in ("--model", "--weights"):
        if flag in more:  # the case's own replaces the usual one
            place = BASE.index(flag)
            command = [*command[:place], *command[place + 2 :]]
    assert run(command) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {why}")
    assert err.count("\n") == 1
    assert not Path("evil-was-here").exists()
