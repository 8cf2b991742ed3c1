"""Images given in Python: every form of the same images is the same data, and other things are refused."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset

from diffvit.data.images import fingerprint
from diffvit.data.memory import from_data, splits
from diffvit.errors import InputError

CLASSES = ["church", "flower"]


def photographs():
    """The two that scikit-learn brings along, without importing it, which takes seconds."""
    folder = Path(find_spec("sklearn").origin).parent / "datasets" / "images"
    return [np.asarray(Image.open(folder / name).convert("RGB")) for name in ("china.jpg", "flower.jpg")]


PHOTOS = [photo[row : row + 100, :150] for photo in photographs() for row in (0, 100, 200)]
LABELS = [0, 0, 0, 1, 1, 1]


class Samples(Dataset):
    """A map-style data set; ``bad`` raises."""

    def __init__(self, images, labels, bad=None):
        self.samples, self.bad = list(zip(images, labels, strict=True)), bad

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, place):
        if place == self.bad:
            raise OSError("the disk is gone")
        return self.samples[place]


class Columns(list):
    """Dicts by index with the attributes of a Hugging Face data set."""

    features = {"img": object(), "label": type("ClassLabel", (), {"names": CLASSES})()}  # noqa: RUF012
    column_names = ("img", "label")


def forms(tmp_path):
    """The same photographs in every form that is taken."""
    import torchvision

    array = np.stack(PHOTOS)
    tensor = torch.from_numpy(array.copy()).permute(0, 3, 1, 2)
    pictures = [Image.fromarray(photo) for photo in PHOTOS]
    named = Samples(pictures, LABELS)
    named.classes = CLASSES
    for place, (picture, label) in enumerate(zip(pictures, LABELS, strict=True)):
        (tmp_path / CLASSES[label]).mkdir(exist_ok=True)
        picture.save(tmp_path / CLASSES[label] / f"{place}.png")
    paths = sorted(tmp_path.rglob("*.png"))
    array.setflags(write=False)
    yield (array, LABELS), CLASSES
    yield (tensor, torch.tensor(LABELS)), CLASSES
    yield (tensor / 255, np.array(LABELS)), CLASSES
    yield (tensor.half() / 255, [CLASSES[label] for label in LABELS]), None
    yield (pictures, LABELS), CLASSES
    yield (paths, [path.parent.name for path in paths]), None
    yield Samples(list(tensor), torch.tensor(LABELS)), CLASSES
    yield Samples(list(array), LABELS), CLASSES
    yield named, None
    yield Subset(named, range(6)), None
    yield Columns({"img": image, "label": label} for image, label in zip(pictures, LABELS, strict=True)), None
    encoded = [{"bytes": path.read_bytes(), "path": None} for path in paths]
    yield [{"image": image, "label": label} for image, label in zip(encoded, LABELS, strict=True)], CLASSES
    yield torchvision.datasets.ImageFolder(str(tmp_path)), None


def test_every_form_of_the_same_images_is_the_same_data(tmp_path):
    expected = [Image.fromarray(photo).resize((32, 32), 2, box=(25, 0, 125, 100)) for photo in PHOTOS]
    pixels = torch.from_numpy(np.stack([np.array(each) for each in expected])).permute(0, 3, 1, 2)
    for data, classes in forms(tmp_path):
        found = from_data(data, image_size=32, classes=classes)
        assert torch.equal(found.pixels, pixels)
        assert (found.labels.tolist(), found.classes, found.name) == (LABELS, CLASSES, "images given in Python")
        assert found.fingerprint == fingerprint(pixels, torch.tensor(LABELS), CLASSES)


def test_grey_stays_grey_unless_some_are_not():
    from sklearn.datasets import load_digits

    digits = load_digits()
    levels = np.round(digits.images / 16 * 255).astype(np.uint8)
    found = from_data((digits.images / 16, digits.target), image_size=8)
    assert torch.equal(found.pixels[:, 0], torch.from_numpy(levels))
    assert found.classes == [str(digit) for digit in range(10)]
    grey, rgb = Image.fromarray(levels[0]), Image.fromarray(PHOTOS[0])
    assert from_data([(grey, 0), (grey, 1)], image_size=16).pixels.shape == (2, 1, 16, 16)
    assert from_data([(grey, 0), (rgb, 1)], image_size=16).pixels.shape == (2, 3, 16, 16)
    luma = from_data([(rgb, 0)], image_size=100, channels=1).pixels[0, 0]
    assert torch.equal(luma, torch.from_numpy(np.array(rgb.crop((25, 0, 125, 100)).convert("L"))))


def test_labels_of_a_data_set_are_matched_by_name():
    data = Samples(PHOTOS, LABELS)
    data.classes = CLASSES
    assert from_data(data, image_size=8, classes=CLASSES[::-1], matched=True).labels.tolist() == [1, 1, 1, 0, 0, 0]
    assert from_data(data, image_size=8, classes=["a", "b"]).classes == ["a", "b"]
    with pytest.raises(InputError, match="church vs dog"):
        from_data(data, image_size=8, classes=["dog", "flower"], matched=True)


WRONG = [
    (Samples(PHOTOS, LABELS, bad=4), r"sample 4 of the data: .*OSError: the disk is gone"),
    (Samples([*PHOTOS[:3], PHOTOS[3] / 16, *PHOTOS[4:]], LABELS), r"sample 3 of the data: .*0 to 1 .found 0 to 6"),
    (Samples([*PHOTOS[:5], None], LABELS), "sample 5 of the data: .*no image"),
    ((np.stack(PHOTOS), LABELS[:5]), r"5 vs 6"),
    ((np.stack(PHOTOS), [0, 1, 0, 1, -1, 0]), "label 4: is outside the classes"),
    ((np.stack(PHOTOS), [0, 1, 0, 10**9, 1, 0]), r"label 3: is too large .*1000000000 vs under 1,000,000"),
    ((np.stack(PHOTOS), [0, 1, 0, 1.5, 1, 0]), "label 3: is no class"),
    ((np.stack(PHOTOS).astype(np.int16), LABELS), "found int16 vs uint8"),
    (([], []), "holds no images"),
    ({"train": [], "test": []}, "is a dict of train, test"),
    (iter([]), "nor a data set with a length"),
    (Columns([{"pixels": PHOTOS[0], "label": 0}]), "sample 0 of the data: .*columns pixels, label vs image and label"),
]


@pytest.mark.parametrize(("data", "why"), WRONG)
def test_what_is_no_data_is_refused_and_a_sample_is_named(data, why):
    with pytest.raises(InputError, match=why):
        from_data(data, image_size=8)


@pytest.mark.parametrize("classes", [None, list("abcdefghij")])
def test_classes_without_images_are_warned_about_unless_they_are_named(classes, recwarn):
    images, labels = np.stack(PHOTOS), [0, 1, 2, 9, 0, 1]
    found = from_data((images, labels), image_size=8, classes=classes)
    assert (len(found.classes), found.labels.tolist()) == (10, labels)
    said = [str(warning.message) for warning in recwarn]
    why = "labels: 6 of 10 classes have no images (indices 3, 4, 5, 6, 7, ...)"
    assert [line.partition(". ")[0] for line in said] == ([] if classes else [why])
    with pytest.raises(InputError, match=r"label 3: is outside the classes .9 vs 0 to 2"):
        from_data((images, labels), image_size=8, classes=["a", "b", "c"])


def test_a_share_of_each_class_is_set_apart_whatever_the_order():
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = digits.images / 16, digits.target
    images[1] = images[0]  # equal images of one class
    labels[1] = labels[0]
    whole = splits((images, labels), image_size=8)
    again = splits((images[::-1], labels[::-1]), image_size=8)
    for split in ("train", "test"):
        rows = {each.numpy().tobytes() for each in whole[split].pixels}
        assert rows == {each.numpy().tobytes() for each in again[split].pixels}
    shares = whole["test"].labels.bincount().numpy() / np.bincount(labels)
    assert shares.tolist() == pytest.approx([0.2] * 10, abs=0.01)
    assert len(whole["train"]) + len(whole["test"]) == len(labels)
    twin = (images[0] * 255).round().astype(np.uint8).tobytes()
    assert sum(twin in {each.numpy().tobytes() for each in part.pixels} for part in whole.values()) == 1
    with pytest.raises(InputError, match="too few"):
        splits((images[:2], [0, 1]), image_size=8)
