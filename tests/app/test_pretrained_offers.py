"""Models that others trained, in the explorer: beside our own, without test images, at one size."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffvit.app.desk import Chosen, Desk
from diffvit.app.models import Models, offers_of, pretrained_of
from diffvit.app.test_sets import ONLY_FIRST
from diffvit.app.web.look_tab import draw
from diffvit.app.web.picker import thumbnails
from diffvit.errors import InputError
from diffvit.models.vit import VisionTransformer

OURS = "shapes-vit"
TEST = Chosen("test", 7, OURS)
DIALS = (2, 1, True, "the model", 1, 1, 1.0, "inferno", 1.0, "mean", "clamp", 0.0, 0.5)


def saved(path: Path, num_classes: int = 0, *, patch: int = 16) -> Path:
    """A small random ViT in timm's layout."""
    torch.manual_seed(0)
    sizes = {"image_size": 224, "patch_size": patch, "embed_dim": 128, "depth": 2, "num_heads": 2, "mlp_ratio": 4.0}
    model = VisionTransformer(**sizes, num_classes=num_classes)
    torch.save(model.state_dict(), path)
    return path


def desk_with(*files: Path) -> Desk:
    return Desk(Models(offers_of([], Path("none")), "cpu", pretrained_of([str(file) for file in files])), None)


def test_a_pretrained_model_sees_test_images_of_ours(tmp_path: Path) -> None:
    desk = desk_with(saved(tmp_path / "dino.pth"))
    assert desk.start == (TEST, OURS, "dino")
    look = desk.look(TEST, "dino")
    assert (look.record.grid, look.heads, len(look.record.layers), look.chances) == ((14, 14), 2, 2, [])
    assert look.picture.label == desk.look(TEST, OURS).picture.label
    assert look.picture.mask is None  # of another size than the picture
    text = draw(desk, TEST, OURS, "dino", *DIALS)
    assert text.count("<section") == 2
    assert "This model does not classify." in text
    alone = draw(desk, TEST, "dino", "none", *DIALS)  # first: the picture stays the same
    assert 'aria-label="dino"' in alone
    assert "What [CLS] reads in layer 2 of 2" in alone


def test_a_wide_picture_becomes_a_square_so_that_maps_stay_small(tmp_path: Path) -> None:
    desk = desk_with(saved(tmp_path / "dino.pth", patch=8))
    token = desk.uploads.add(_wide(), "wide.png")
    look = desk.look(Chosen("upload", token), "dino")
    assert (tuple(look.picture.pixels.shape), look.record.grid) == ((3, 224, 224), (28, 28))


def _wide() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2000, 40), "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_a_pretrained_classifier_answers(tmp_path: Path) -> None:
    desk = desk_with(saved(tmp_path / "classifier.pth", num_classes=3))
    subject = desk.models.subject("classifier")
    look = desk.look(TEST, "classifier")
    assert isinstance(subject.model, VisionTransformer)
    with torch.no_grad():
        wanted = subject.model(subject.normalised(look.picture.pixels[None])).softmax(dim=1)[0]
    assert {name: pytest.approx(chance, abs=1e-5) for name, chance in look.chances} == {
        f"class {place}": float(chance) for place, chance in enumerate(wanted)
    }


def test_it_has_no_test_images_and_says_so(tmp_path: Path) -> None:
    desk = desk_with(saved(tmp_path / "dino.pth"))
    assert "dino: is pretrained and has no test images here" in thumbnails(desk, "dino", [], 0)
    with pytest.raises(InputError, match="dino: is pretrained and has no test images here"):
        desk.sets.choose(OURS, "dino", None, ONLY_FIRST)
    assert "dino" not in [offer.name for offer in desk.models.classifiers]


def test_names_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    files = saved(tmp_path / "w.pth"), saved(tmp_path / "a" / "w.pth"), saved(tmp_path / "shapes-vit.pth")
    names = [offer.name for offer in desk_with(*files).models.lookers if offer.pretrained]
    assert names == ["w", "w (2)", "shapes-vit (pretrained)"]
