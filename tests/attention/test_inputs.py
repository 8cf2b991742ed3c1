from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffvit.attention.inputs import LoadedModel, labelled_images, load_model, read_samples, samples_of, shortest_names
from diffvit.data import shapes
from diffvit.errors import ConfigError, InputError
from diffvit.models.vit import VisionTransformer


def model_of(side: int | None, patch: int = 16) -> LoadedModel:
    model = VisionTransformer(image_size=patch * 2, patch_size=patch, embed_dim=16, depth=1, num_heads=2)
    return LoadedModel(model, "a model", [0.5, 0.4, 0.3], [0.2, 0.3, 0.4], [], side)


def picture(path: Path, width: int, height: int) -> Path:
    down, across = np.mgrid[0:height, 0:width]
    pixels = np.stack([down * 255 // max(height - 1, 1), across * 255 // max(width - 1, 1), 0 * down], axis=2)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def test_pixels_are_normalised_as_in_training() -> None:
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    found = model_of(None).normalised(pixels)
    for channel, (mean, std) in enumerate(((0.5, 0.2), (0.4, 0.3), (0.3, 0.4))):
        expected = (pixels[:, channel].double() / 255 - mean) / std
        assert (found[:, channel] - expected).abs().max() < 1e-6


def test_a_picture_of_250_by_330_is_cropped_evenly_to_whole_patches(tmp_path: Path) -> None:
    file = picture(tmp_path / "a.png", 330, 250)
    ((found,), _) = read_samples([file], model_of(None))
    assert found.pixels.shape == (3, 240, 320)
    whole = torch.from_numpy(np.asarray(Image.open(file)).transpose(2, 0, 1).copy())
    assert torch.equal(found.pixels, whole[:, 5:245, 5:325])
    assert found.name == "a.png"


@pytest.mark.parametrize(
    ("width", "height", "size", "expected"),
    [
        (1000, 700, None, (480, 672)),  # 480 x 686 by its shape, cropped to whole patches
        (700, 1000, None, (672, 480)),
        (100, 60, 120, (112, 192)),
        (480, 480, None, (480, 480)),
        (480, 480, 224, (224, 224)),
        (33, 17, None, (16, 32)),
    ],
)
def test_sizes_keep_the_shape_of_the_picture(
    width: int, height: int, size: int | None, expected: tuple[int, int], tmp_path: Path
) -> None:
    ((found,), _) = read_samples([picture(tmp_path / "a.png", width, height)], model_of(None), size=size)
    assert found.pixels.shape[1:] == expected
    middle = found.pixels[:2, expected[0] // 2, expected[1] // 2]  # the ramps' middle stays in the middle
    assert (middle.float() - 127).abs().max() < 12


def test_a_model_of_one_size_gets_the_centred_square(tmp_path: Path) -> None:
    ((found,), _) = read_samples([picture(tmp_path / "a.png", 90, 60)], model_of(32))
    assert found.pixels.shape == (3, 32, 32)
    with pytest.raises(ConfigError, match=r"size: a model takes one size alone \(found 64 vs 32\)"):
        read_samples([tmp_path / "a.png"], model_of(32), size=64)


def test_folders_give_their_files_in_order_and_bad_ones_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("b.png", "a.png"):
        picture(folder / name, 40, 40)
    (folder / ".hidden").write_text("no image")
    (folder / "c.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    small = picture(tmp_path / "small.png", 40, 9)
    places = [folder, tmp_path / "empty", tmp_path / "gone.png", small]
    found, bad = read_samples(places, model_of(None))
    assert [each.name for each in found] == ["a.png", "b.png"]
    for error, name, why in zip(
        bad,
        ("pictures/c.png", "empty", "gone.png", "small.png"),
        (
            "is not an image of a known format",
            "holds no images",
            "cannot be read",
            "is smaller than a patch (40 x 9 vs",
        ),
        strict=True,
    ):
        assert error.what == str(tmp_path / name)
        assert error.why.startswith(why)
    with pytest.raises(ConfigError, match="size: is smaller than a patch"):
        read_samples([small], model_of(None), size=8)


def test_names_are_the_shortest_ends_of_paths_that_differ() -> None:
    paths = ["a/cat/7.png", "a/dog/7.png", "b/dog/7.png", "8.png", "c/9.png", "x.png", "d/x.png", "c/9.png"]
    names = ["cat/7.png", "a/dog/7.png", "b/dog/7.png", "8.png", "9.png", "x.png", "d/x.png", "9.png"]
    assert shortest_names([Path(path) for path in paths]) == names


def test_a_set_gives_labels_and_masks_by_place() -> None:
    images = shapes.generate("test", 12)
    found = samples_of(images, [3, 0])
    assert [each.name for each in found] == ["3", "0"]
    assert [each.label for each in found] == [shapes.CLASSES[3], shapes.CLASSES[0]]
    assert images.masks is not None
    for each, index in zip(found, (3, 0), strict=True):
        assert torch.equal(each.pixels, images.pixels[index])
        assert each.mask is not None
        assert torch.equal(each.mask, images.masks[index])
    for wrong in (12, -1):
        with pytest.raises(ConfigError, match=rf"index: no such image \(found {wrong} vs 0 to 11"):
            samples_of(images, [wrong])


@pytest.mark.cifar10
def test_a_packaged_model_and_its_own_test_images(cifar10_dir: Path) -> None:
    loaded = load_model("cifar10-vit")
    assert loaded.name == "cifar10-vit"
    assert loaded.image_size == 32
    images = labelled_images(loaded, data_dir=cifar10_dir)
    assert len(images) == 10_000
    with torch.no_grad():
        answers = loaded.model(loaded.normalised(images.pixels[:500])).argmax(dim=1)
    assert float((answers == images.labels[:500]).float().mean()) > 0.75
    with pytest.raises(InputError, match="no such run, file or packaged model"):
        load_model("runs/none")
