"""Predictions for files, arrays, tensors and pictures, and what a loaded model knows of its input."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

import diffvit
from diffvit.errors import ConfigError, InputError
from tests.training.small import small

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 20, 30, 3), dtype=np.uint8)
Image.fromarray(PIXELS[0]).save(FILE := io.BytesIO(), "PNG")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return diffvit.train(small(), out=tmp_path_factory.mktemp("predict") / "run")


def by_hand(run):
    """Probabilities of the images from Pillow's resampling of the centred square, and the run's statistics."""
    mean, std = (torch.tensor(run.environment[name]).view(3, 1, 1) for name in ("mean", "std"))
    scaled = [Image.fromarray(each).resize((16, 16), 2, box=(5, 0, 25, 20)) for each in PIXELS]
    inputs = torch.stack([(torch.from_numpy(np.array(each)).permute(2, 0, 1) / 255 - mean) / std for each in scaled])
    with torch.inference_mode():
        return inputs, diffvit.load(run)(inputs).softmax(1)


def test_a_loaded_model_knows_its_classes_and_its_preprocessing(run, tmp_path):
    model = diffvit.load(run).to(torch.device("cpu"))
    assert model.classes == run.environment["classes"]
    fresh = diffvit.VisionTransformer(**model.settings)
    assert list(model.state_dict()) == list(fresh.state_dict())
    expected = by_hand(run)[0][0]
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    chans_first = torch.from_numpy(PIXELS[0]).permute(2, 0, 1)
    pictures = [tmp_path / "a.png", str(tmp_path / "a.png"), Image.open(tmp_path / "a.png"), PIXELS[0], chans_first]
    for image in [*pictures, chans_first.half() / 255, PIXELS[0] / 255]:
        found = model.preprocess(image)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    grey = model.preprocess(Image.fromarray(PIXELS[0]).convert("L"))
    as_rgb = model.preprocess(Image.fromarray(PIXELS[0]).convert("L").convert("RGB"))
    assert torch.equal(grey, as_rgb)


def test_every_form_of_images_gives_the_same_predictions(run, tmp_path):
    expected = by_hand(run)[1]
    (tmp_path / "sub").mkdir()
    for place, each in enumerate(PIXELS):
        Image.fromarray(each).save(tmp_path / "sub" / f"{place}.png")
    tensor = torch.from_numpy(PIXELS)
    forms = [PIXELS, tensor, tensor.permute(0, 3, 1, 2), tensor / 255, [Image.fromarray(each) for each in PIXELS]]
    forms += [list(PIXELS), tmp_path, f"{tmp_path}/**/*.png", sorted((tmp_path / "sub").iterdir())]
    for model in (run, diffvit.load(run)):
        for images in forms:
            found = diffvit.predict(model, images, device="cpu", precision="fp32")
            torch.testing.assert_close(found.probabilities, expected, atol=1e-5, rtol=1e-4)
            assert torch.equal(found.labels, expected.argmax(1))
    many = diffvit.predict(run, np.concatenate([PIXELS] * 40), device="cpu")
    assert len(many) == 280
    torch.testing.assert_close(many.probabilities, expected.repeat(40, 1), atol=1e-5, rtol=1e-4)


class Samples(Dataset):
    """Pictures with labels, or columns of a Hugging Face data set; as many as are asked for, the ``bad`` one raises."""

    def __init__(self, columns, bad=None):
        self.bad = bad
        if columns:
            self.column_names = ("img", "label")

    def __len__(self):
        return len(PIXELS)

    def __getitem__(self, place):
        if place == self.bad:
            raise OSError("the disk is gone")
        image = Image.fromarray(PIXELS[place % len(PIXELS)])
        return {"img": image, "label": 3} if hasattr(self, "column_names") else (image, 3)


def test_data_sets_are_read_without_their_labels(run):
    tensor = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    labelled = [{"image": image, "label": 0} for image in PIXELS]
    sets = [Samples(False), Samples(True), TensorDataset(tensor), TensorDataset(tensor, torch.arange(7)), labelled]
    for images in [*sets, Subset(Samples(False), range(7))]:
        found = diffvit.predict(run, images, device="cpu", precision="fp32")
        torch.testing.assert_close(found.probabilities, by_hand(run)[1], atol=1e-5, rtol=1e-4)
    for columns in (False, True):
        with pytest.raises(InputError, match=r"^image 2: cannot be read \(OSError: the disk is gone\)"):
            diffvit.predict(run, Samples(columns, bad=2), device="cpu")
        found = diffvit.predict(run, Samples(columns, bad=2), skip_bad=True, device="cpu")
        assert (len(found), [each.what for each in found.bad]) == (6, ["image 2"])


def test_predictions_as_a_table(run):
    found = diffvit.predict(run, PIXELS, device="cpu")
    with pytest.raises(ConfigError, match=r"k: must be at least 1 \(found -1\)"):
        found.top(-1)
    best = found.probabilities.sort(1, descending=True)
    assert found.top(99) == [
        [(found.classes[place], chance) for chance, place in zip(*row, strict=True)]
        for row in zip(*(each.tolist() for each in best), strict=True)
    ]
    table = found.to_pandas(2)
    assert list(table.columns) == ["image", "class_1", "probability_1", "class_2", "probability_2"]
    assert table["class_1"].tolist() == [found.classes[label] for label in found.labels]
    assert table["probability_2"].tolist() == best.values[:, 1].tolist()
    assert len(diffvit.predict(run, [], device="cpu")) == 0


WRONG = [
    (PIXELS / 16, r"0 to 1 \(found 0 to 15.9"),
    (np.full((2, 3, 8, 8), np.nan), "0 to 1"),
    (PIXELS.astype(np.int64), "found int64 vs uint8"),
    (PIXELS[0], r"found \(20, 30, 3\)"),  # one image, or twenty grey ones
    (torch.zeros(2, 5, 8, 8), r"found \(2, 5, 8, 8\)"),
    ([PIXELS[0], PIXELS[1] / 16], "image 1: floating point must lie in 0 to 1"),
    ([PIXELS[0], "a.png"], "a.png: cannot be read"),
    ([PIXELS[0], 5], "image 1: is no image"),
    (np.array(PIXELS, dtype=object), "found object"),
    (None, "^images: are none \\(found NoneType vs paths"),
    ({"train": PIXELS}, "found dict"),
    ([Image.open(io.BytesIO(FILE.getvalue()[:900]))], "image 0: cannot be decoded"),
]


@pytest.mark.parametrize(("images", "why"), WRONG)
def test_other_types_shapes_and_ranges_are_refused(run, images, why):
    with pytest.raises(InputError, match=why):
        diffvit.predict(run, images)


def test_bad_files_are_named_and_left_out_or_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr("diffvit.training.evaluate._AT_A_TIME", 2)
    for place in (0, 2):
        Image.fromarray(PIXELS[place]).save(tmp_path / f"{place}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes()[:200])
    read = []
    how = {"skip_bad": True, "device": "cpu", "progress": lambda *counts: read.append(counts)}
    found = diffvit.predict(run, [tmp_path, tmp_path / "none.png"], **how)
    assert read == [(2, 4), (4, 4)]
    assert found.paths == [str(tmp_path / f"{place}.png") for place in (0, 2)]
    assert [each.what for each in found.bad] == [str(tmp_path / name) for name in ("1.png", "none.png")]
    torch.testing.assert_close(found.probabilities, by_hand(run)[1][[0, 2]], atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match=r"1\.png"):
        diffvit.predict(run, tmp_path, device="cpu")


def test_evaluate_takes_a_model_and_images(run):
    labels = by_hand(run)[1].argmax(1)
    labels[0] = (labels[0] + 1) % 10
    names = [run.environment["classes"][label] for label in labels]
    before = (run.path / "evaluation.json").read_bytes()
    for model, given in ((run, labels), (diffvit.load(run), labels.numpy()), (run, names)):
        found = diffvit.evaluate(model, PIXELS, given, device="cpu")
        assert found["accuracy"] == 6 / 7
        assert found["labels"] == labels.tolist()
        assert (found["images"], found["split"], found["data"]) == (7, "given", "images given in Python")
    assert (run.path / "evaluation.json").read_bytes() == before
    with pytest.raises(InputError, match="label 0: is outside the classes"):
        diffvit.evaluate(run, PIXELS, labels + 10)
    with pytest.raises(ConfigError, match="needs images and labels"):
        diffvit.evaluate(diffvit.load(run))
    with pytest.raises(ConfigError, match="does not know its classes"):
        diffvit.predict(diffvit.create_model("vit_pico"), PIXELS)
