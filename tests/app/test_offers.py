"""Which models are offered, and that the browser can name no other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from diffvit import weights
from diffvit.app.models import Models, offers_of
from diffvit.errors import InputError


def copied(folder: Path, name: str = "shapes-vit", *, finished: bool = True) -> Path:
    """A run folder with a packaged model's weights."""
    folder.mkdir(parents=True)
    shutil.copy(weights.FOLDER / f"{name}.safetensors", folder / "model.safetensors")
    if finished:
        (folder / "result.json").write_text("{}")
    return folder


def test_finished_runs_are_found_and_packaged_models_follow(tmp_path: Path) -> None:
    copied(tmp_path / "a")
    copied(tmp_path / "demo" / "vit", "shapes-diffvit")
    copied(tmp_path / "half", finished=False)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "result.json").write_text("{}")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"no weights")
    names = [offer.name for offer in offers_of([], tmp_path)]
    assert set(names[:2]) == {"a", "vit"}
    assert names[2:] == weights.names()


def test_named_runs_come_alone_and_in_their_order(tmp_path: Path) -> None:
    one, two = copied(tmp_path / "x" / "vit-0.3"), copied(tmp_path / "y" / "vit-0.3")
    found = offers_of([str(two), str(one), "shapes-vit"], tmp_path / "none")
    assert [offer.name for offer in found[:3]] == ["y/vit-0.3", "x/vit-0.3", "shapes-vit"]
    assert len({offer.name for offer in found}) == len(found)
    assert found[0].words == "ViT, patch 4, 4 blocks, 4 heads, trained on shapes (clutter 0.3, noise 0.1)"
    assert (found[0].folder, found[2].folder, found[0].depth) == (two, None, 4)
    with pytest.raises(InputError, match="no such"):
        offers_of([str(tmp_path / "nothing")])


def test_only_offered_names_are_known(tmp_path: Path) -> None:
    run = copied(tmp_path / "mine")
    models = Models(offers_of([str(run)]), "cpu")
    assert models.subject("mine") is models.subject("mine")
    assert models.subject("mine").name == "mine"
    for name in (str(run), "../mine", "/etc/passwd", "none", ""):
        with pytest.raises(InputError, match="is not among those that are offered"):
            models.subject(name)
    with pytest.raises(InputError, match="is a CLIP"):
        models.subject("cifar10-clip")
    assert [offer.name for offer in models.clips] == ["cifar10-clip"]
    assert [offer.name for offer in models.runs] == ["mine"]
