"""Rows against open_clip's and timm's own transforms; the cache against kills, changes, damage and a full disk."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from class_folders import class_folders, picture
from PIL import Image
from small_clip import small_clip, small_model

from diffvit.clip import encode as subject
from diffvit.clip.encode import Encoder, encode_all, image_encoder, image_number
from diffvit.clip.labelled import Labelled, open_labelled
from diffvit.data.shifts import Shift
from diffvit.errors import InputError
from diffvit.files import cache_folder


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return image_encoder(small_clip())


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "_PART", 4)
    monkeypatch.setattr(subject, "_BATCH", 2)


@pytest.fixture
def pictures(tmp_path: Path) -> Labelled:
    return open_labelled(class_folders(tmp_path / "set", {"a": 6, "b": 4}))


def forget() -> None:
    shutil.rmtree(cache_folder())


def test_clips_rows_are_open_clips(encoder: Encoder, pictures: Labelled, tmp_path: Path) -> None:
    found = encode_all(encoder, pictures)
    transform: Any = open_clip.image_transform(64, is_train=False)
    images = torch.stack([transform(Image.open(tmp_path / "set" / place)) for place in pictures.places])
    with torch.no_grad():
        expected = small_model().double().encode_image(images.double(), normalize=True)
    assert (found.rows - expected).abs().max() < 1e-5
    assert (found.rows.shape, found.rows.dtype, found.computed, found.faults) == ((10, 32), torch.float32, 10, [])
    assert found.seconds > 0
    assert encoder.name == "CLIP RN-small (own weights)"


def test_an_interrupted_call_goes_on_and_a_repeated_one_reads(encoder: Encoder, pictures: Labelled) -> None:
    whole = encode_all(encoder, pictures)
    forget()
    reports: list[tuple[int, int]] = []

    def killed(done: int, total: int) -> None:
        reports.append((done, total))
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_all(encoder, pictures, progress=killed)
    assert reports == [(0, 10), (2, 10), (4, 10), (6, 10)]
    reports.clear()
    found = encode_all(encoder, pictures, progress=lambda *at: reports.append(at))
    assert reports == [(4, 10), (6, 10), (8, 10), (10, 10)]
    assert found.computed == 6
    assert torch.equal(found.rows, whole.rows)
    others = replace(pictures, classes=("x", "y"), labels=tuple(reversed(pictures.labels)), name="another name")
    again = encode_all(replace(encoder, encode=never), others)  # other labels need no new rows
    assert (again.computed, again.faults) == (0, [])
    assert torch.equal(again.rows, whole.rows)


def never(squares: torch.Tensor) -> torch.Tensor:
    raise AssertionError("encoded again")


def test_a_changed_file_costs_its_part_alone(encoder: Encoder, pictures: Labelled, tmp_path: Path) -> None:
    before = encode_all(encoder, pictures)
    picture(tmp_path / "set" / "a" / "5.png", 1234)
    now = open_labelled(tmp_path / "set")
    found = encode_all(encoder, now)
    assert found.computed == 4
    assert (found.rows != before.rows).any(dim=1).tolist() == [False] * 5 + [True] + [False] * 4
    forget()
    assert torch.equal(found.rows, encode_all(encoder, now).rows)


def test_corrupt_pictures_in_the_middle(encoder: Encoder, pictures: Labelled, tmp_path: Path) -> None:
    whole = encode_all(encoder, pictures)
    forget()
    files = [tmp_path / "set" / place for place in pictures.places]
    files[5].write_bytes(files[5].read_bytes()[:50])
    files[6].unlink()
    files[6].symlink_to("nowhere")
    broken = open_labelled(tmp_path / "set")
    for computed in (8, 0):
        found = encode_all(encoder, broken)
        assert found.computed == computed
        assert [Path(fault.what).name for fault in found.faults] == ["5.png", "0.png"]
        assert "cannot be read (No such file or directory)" in str(found.faults[1])
        assert found.rows.isnan().any(dim=1).nonzero()[:, 0].tolist() == [5, 6]
        assert (found.rows - whole.rows).nan_to_num().abs().max() < 1e-6
    picture(files[5], 5, (52, 40))
    files[6].unlink()
    picture(files[6], 6)
    repaired = encode_all(encoder, open_labelled(tmp_path / "set"))
    assert (repaired.computed, repaired.faults) == (4, [])
    assert torch.equal(repaired.rows, whole.rows)


def test_a_picture_that_can_be_read_again_without_a_change(encoder: Encoder, pictures: Labelled) -> None:
    def read(number: int) -> np.ndarray:
        if number == 1:
            raise InputError("a/1.png", "cannot be read (Permission denied)")
        return pictures.read(number)

    shut = encode_all(encoder, replace(pictures, read=read))
    assert (shut.computed, list(map(str, shut.faults))) == (9, ["a/1.png: cannot be read (Permission denied)."])
    assert [encode_all(encoder, pictures).computed for _ in range(2)] == [4, 0]


def test_no_picture_can_be_read_or_there_is_none(encoder: Encoder, pictures: Labelled, tmp_path: Path) -> None:
    none = encode_all(encoder, pictures.only([]), progress=lambda *at: None)
    assert (none.rows.shape, none.computed) == ((0, 32), 0)
    for place in pictures.places:
        (tmp_path / "set" / place).write_bytes(b"x")
    for _ in range(2):
        found = encode_all(encoder, open_labelled(tmp_path / "set"))
        assert (found.computed, len(found.faults)) == (0, 10)
        assert bool(found.rows.isnan().all())


def test_weights_settings_and_preprocessing_are_in_the_key(pictures: Labelled) -> None:
    clip = small_clip()
    before = image_encoder(clip).key
    assert image_encoder(small_clip()).key == before
    for name, tensor in clip.model.state_dict().items():
        if name in ("visual.conv1.weight", "visual.layer2.0.bn1.running_var", "visual.attnpool.c_proj.bias"):
            old = tensor.clone()
            tensor.view(-1)[0] += 1
            assert image_encoder(clip).key != before
            tensor.copy_(old)
    assert image_encoder(clip).key == before
    clip.model.state_dict()["token_embedding.weight"][0, 0] += 1  # text is another matter
    assert image_encoder(clip).key == before
    other = replace(clip, preprocessing=replace(clip.preprocessing, mean=(0.48145467, *clip.preprocessing.mean[1:])))
    assert image_encoder(other).key != before
    assert other.preprocessing.words == clip.preprocessing.words  # they round
    small = small_model()
    small.visual.attnpool.num_heads = 1
    assert image_encoder(small_clip(small)).key != before
    assert image_encoder(small_clip(small_model().bfloat16())).key != before
    encode_all(image_encoder(clip), pictures)
    assert encode_all(image_encoder(small_clip(small_model(1))), pictures).computed == 10


@dataclass(frozen=True)
class Noisy(Shift):
    seen: list[int]

    def apply(self, pixels: np.ndarray, number: int) -> np.ndarray:
        self.seen.append(number)
        return np.random.default_rng(number).integers(0, 256, (3, 30, 70), dtype=np.uint8)


def test_a_shift_is_applied_by_the_pictures_number(encoder: Encoder, pictures: Labelled) -> None:
    noisy = Noisy("noise", 1, "made here", [])
    plain = encode_all(encoder, pictures)
    found = encode_all(encoder, pictures, shift=noisy)
    assert sorted(noisy.seen) == sorted(map(image_number, pictures.places))
    assert image_number("test/00042") == 5663271151750743562  # the first 63 bits of its SHA-256
    assert image_number(os.fsdecode(b"a/\xff.png")) >= 0
    assert found.computed == 10
    assert (found.rows - plain.rows).abs().min(dim=1).values.max() > 0
    few = encode_all(encoder, pictures.only([1]), shift=noisy)
    assert (few.rows - found.rows[6:]).abs().max() < 1e-6
    assert encode_all(encoder, pictures, shift=noisy).computed == 0
    assert encode_all(encoder, pictures, shift=replace(noisy, severity=2)).computed == 10
    assert encode_all(encoder, pictures).computed == 0


def test_features_that_are_not_finite(pictures: Labelled) -> None:
    model = small_model()
    model.visual.attnpool.c_proj.bias.data[0] = torch.nan
    with pytest.raises(InputError, match=r"CLIP RN-small \(own weights\): gives features that are not finite. Take"):
        encode_all(image_encoder(small_clip(model)), pictures)
