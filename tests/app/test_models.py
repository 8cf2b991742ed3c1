"""Which models are offered, that the browser can name no other, and models that others trained beside our own."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
import torch
from app_parts import DIALS
from PIL import Image

from diffvit import weights
from diffvit.app.explorer import Explorer
from diffvit.app.images import ONLY_FIRST, ImageRef
from diffvit.app.models import Models, list_models, load_pretrained
from diffvit.app.web.attention_tab import draw, thumbnails
from diffvit.errors import InputError
from diffvit.models.vit import VisionTransformer

OURS = "shapes-vit"
TEST = ImageRef("test", 7, OURS)


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
    names = [info.name for info in list_models([], tmp_path)]
    assert set(names[:2]) == {"a", "vit"}
    assert names[2:] == weights.names()


def test_named_runs_come_alone_and_in_their_order(tmp_path: Path) -> None:
    one, two = copied(tmp_path / "x" / "vit-0.3"), copied(tmp_path / "y" / "vit-0.3")
    found = Models(list_models([str(two), str(one), "shapes-vit"], tmp_path / "none")).vits
    assert [info.name for info in found[:3]] == ["y/vit-0.3", "x/vit-0.3", "shapes-vit"]
    assert len({info.name for info in found}) == len(found)
    assert found[0].description == "ViT, patch 4, 4 blocks, 4 heads, trained on shapes (clutter 0.3, noise 0.1)"
    assert (found[0].folder, found[2].folder, found[0].depth) == (two, None, 4)
    with pytest.raises(InputError, match="no such"):
        list_models([str(tmp_path / "nothing")])


def test_only_offered_names_are_known(tmp_path: Path) -> None:
    run = copied(tmp_path / "mine")
    models = Models(list_models([str(run)]), "cpu")
    assert models.load("mine") is models.load("mine")
    assert models.load("mine").name == "mine"
    assert not any(parameter.requires_grad for parameter in models.load("mine").model.parameters())
    for name in (str(run), "../mine", "/etc/passwd", "none", ""):
        with pytest.raises(InputError, match="is not among those that are offered"):
            models.load(name)
    with pytest.raises(InputError, match="is a CLIP"):
        models.load("cifar10-clip")
    assert [info.name for info in models.clips] == ["cifar10-clip"]
    assert [info.name for info in models.runs] == ["mine"]


def saved(path: Path, num_classes: int = 0) -> Path:
    """A small random ViT in timm's layout."""
    torch.manual_seed(0)
    sizes = {"image_size": 224, "patch_size": 16, "embed_dim": 128, "depth": 2, "num_heads": 2, "mlp_ratio": 4.0}
    model = VisionTransformer(**sizes, num_classes=num_classes)
    torch.save(model.state_dict(), path)
    return path


def explorer_with(*files: Path) -> Explorer:
    return Explorer(Models([*list_models([], Path("none")), *load_pretrained([str(file) for file in files])]))


def test_a_pretrained_model_sees_test_images_of_ours(tmp_path: Path) -> None:
    explorer = explorer_with(saved(tmp_path / "dino.pth"))
    assert explorer.start == (TEST, OURS, "dino")
    result = explorer.run(TEST, "dino")
    assert (result.record.grid, result.heads, len(result.record.layers), result.probabilities) == ((14, 14), 2, 2, [])
    assert result.image.label == explorer.run(TEST, OURS).image.label
    assert result.image.mask is None  # of another size than the picture
    text = draw(explorer, TEST, OURS, "dino", DIALS)
    assert text.count("<section") == 2
    assert "This model does not classify." in text
    assert "dino: is pretrained and has no test images here" in thumbnails(explorer, "dino", [], 0)
    with pytest.raises(InputError, match="dino: is pretrained and has no test images here"):
        explorer.test_images.select(OURS, "dino", None, ONLY_FIRST)
    assert "dino" not in [info.name for info in explorer.models.own_vits]
    buffer = io.BytesIO()
    Image.new("RGB", (2000, 40), "red").save(buffer, "PNG")
    wide = explorer.run(ImageRef("upload", explorer.uploads.add(buffer.getvalue(), "wide.png")), "dino")
    assert tuple(wide.image.pixels.shape) == (3, 224, 224)  # a square, so that maps stay small
    alone = draw(explorer, TEST, "dino", "none", DIALS)  # first: the picture stays the same
    assert 'aria-label="dino"' in alone
    assert "Attention of [CLS]: layer 1 (of 0 to 1)" in alone


def test_a_pretrained_classifier_answers(tmp_path: Path) -> None:
    explorer = explorer_with(saved(tmp_path / "classifier.pth", num_classes=3))
    subject = explorer.models.load("classifier")
    result = explorer.run(TEST, "classifier")
    assert isinstance(subject.model, VisionTransformer)
    with torch.no_grad():
        wanted = subject.model(subject.normalised(result.image.pixels[None])).softmax(dim=1)[0]
    assert {name: pytest.approx(chance, abs=1e-5) for name, chance in result.probabilities} == {
        f"class {place}": float(chance) for place, chance in enumerate(wanted)
    }


def test_names_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    files = saved(tmp_path / "w.pth"), saved(tmp_path / "a" / "w.pth"), saved(tmp_path / "shapes-vit.pth")
    names = [info.name for info in explorer_with(*files).models.vits if info.pretrained]
    assert names == ["w", "w (2)", "shapes-vit (pretrained)"]
