import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

import diffvit
from diffvit.cli.main import run as command
from diffvit.data import sources
from diffvit.data.sources import resized
from diffvit.errors import ConfigError, InputError
from diffvit.reporting.rows import read_run
from diffvit.training.evaluate import evaluate
from tests.training.small import pictures, small

SETTINGS = small(
    **{"batch_size": 50, "validation_size": 50, "shapes": {"train": 200, "test": 100}},
    model={"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4},
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one small epoch on the built-in shapes."""
    out = tmp_path_factory.mktemp("evaluate") / "run"
    diffvit.train(SETTINGS, out=out)
    return out


def test_it_repeats_what_the_run_found(run):
    result = json.loads((run / "result.json").read_text())
    found = evaluate(run, device="cpu")
    assert found["accuracy"] == result["test_accuracy"]
    assert found["loss"] == result["test_loss"]
    assert (found["split"], found["precision"], found["images"]) == ("test", "fp32", 100)
    assert found["parameters"] == result["parameters"]
    assert found["flops_per_image"] == result["flops_per_image"]
    written = json.loads((run / "evaluation.json").read_text())
    assert written["confusion"] == found["confusion"]
    assert written["classes"] == found["classes"]


def test_the_splits_are_those_of_the_run(run):
    validation, train = (evaluate(run, split=split, device="cpu") for split in ("validation", "train"))
    assert (validation["images"], train["images"]) == (50, 150)
    assert validation["accuracy"] == json.loads((run / "result.json").read_text())["val_accuracy"]
    assert json.loads((run / "evaluation-validation.json").read_text())["split"] == "validation"
    assert json.loads((run / "evaluation.json").read_text()).get("split", "test") == "test"


def test_a_weights_file_needs_to_be_told_its_data(run, tmp_path):
    file = tmp_path / "m.safetensors"
    file.write_bytes((run / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match=r"does not say where its data \(shapes .*\) comes from\. Name it with data"):
        evaluate(file, device="cpu")
    with pytest.raises(InputError, match="has no validation split"):
        evaluate(file, data="folder", split="validation", device="cpu")
    pictures(tmp_path / "data", json.loads((run / "environment.json").read_text())["classes"])
    found = evaluate(file, data="folder", data_dir=tmp_path / "data", device="cpu")
    assert sorted(found["labels"]) == list(range(10))
    assert [found["classes"][label] for label in found["labels"]] == sorted(found["classes"])
    assert not (tmp_path / "evaluation.json").exists()


def test_other_data_leaves_the_runs_own_figures_alone(run, tmp_path):
    before = (run / "evaluation.json").read_bytes()
    pictures(tmp_path / "few", ["cat", "dog"])
    with pytest.raises(InputError, match=r"has other classes than the model \(2: cat, dog vs 10: "):
        evaluate(run, data="folder", data_dir=tmp_path / "few", device="cpu")
    pictures(tmp_path / "ten", json.loads((run / "environment.json").read_text())["classes"])
    assert evaluate(run, data="folder", data_dir=tmp_path / "ten", device="cpu")["images"] == 10
    assert (run / "evaluation.json").read_bytes() == before


def test_another_folder_of_the_same_name_leaves_the_runs_own_figures_alone(tmp_path):
    mine, other = (
        pictures(tmp_path / name / "pets", ["cat", "dog"], train=count) for name, count in (("a", 4), ("b", 3))
    )
    run = diffvit.train(small(data="folder", data_dir=str(mine)), out=tmp_path / "run").path
    figures = evaluate(run, split="train", device="cpu")
    assert figures["images"] == 8
    before = (run / "evaluation-train.json").read_bytes()
    with pytest.warns(UserWarning, match=r"pets has other training images .* evaluation-train\.json stays as it was"):
        assert evaluate(run, split="train", data_dir=other, device="cpu")["images"] == 6
    assert (run / "evaluation-train.json").read_bytes() == before


def test_a_run_of_auto_on_shapes_of_another_look_finds_them_again(tmp_path):
    run = diffvit.train(small(data="auto", shapes={"diameter": 0.5}), out=tmp_path / "run")
    assert evaluate(run, device="cpu")["accuracy"] == run.result["test_accuracy"]
    assert run.result["data"] == "shapes (clutter 0.3, noise 0.1, diameter 0.5)"


@pytest.mark.parametrize("size", [48, (32, 16)])
def test_another_size_interpolates_the_positions(run, tmp_path, size, capsys):
    """As by hand: the images resized, the position table of a plain model replaced by torch's bicubic one."""
    sides = size if isinstance(size, tuple) else (size, size)
    before, model = (run / "evaluation.json").read_bytes(), diffvit.load(run)
    given = sources.load("shapes", "test", data_dir=None, image_size=16, shapes={"test": 8, "size": 16})
    pixels = resized(given, size).pixels
    fresh = diffvit.VisionTransformer(**{**model.settings, "image_size": size}).eval()
    state = model.state_dict()
    square = state["pos_embed"][:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    scaled = torch.nn.functional.interpolate(square, [side // 4 for side in sides], mode="bicubic", antialias=True)
    fresh.load_state_dict(state | {"pos_embed": torch.cat([state["pos_embed"][:, :1], scaled.flatten(2).mT], 1)})
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (model.preprocess.mean, model.preprocess.std))
    with torch.inference_mode():
        expected = fresh((pixels / 255 - mean) / std).softmax(1)
    for each in (run, model):
        found = diffvit.predict(each, given.pixels, size=size, device="cpu", precision="fp32")
        torch.testing.assert_close(found.probabilities, expected, atol=1e-5, rtol=1e-4)
    found = evaluate(model, given.pixels, given.labels, size=size)
    assert (found["image_size"], found["predictions"]) == (size, expected.argmax(1).tolist())
    assert model.settings["image_size"] == model.preprocess.image_size == 16  # the model itself is as it was
    assert evaluate(run, size=16, device="cpu")["loss"] == json.loads(before)["loss"]
    text = ",".join(map(str, sides))
    assert command(["evaluate", str(run), "--size", text, "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["image_size"] in (size, list(sides))
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    assert command(["predict", str(run), str(tmp_path / "a.png"), "--size", text, "--device", "cpu"]) == 0
    assert command(["predict", str(run), str(tmp_path / "a.png"), "--size", "50", "--device", "cpu"]) == 2
    assert command(["evaluate", str(run), "--size", "4x", "--device", "cpu"]) == 2
    assert json.loads((run / "evaluation.json").read_bytes())["loss"] == json.loads(before)["loss"]
    assert "image_size" not in json.loads((run / "evaluation.json").read_bytes())


def test_images_of_a_copy_have_their_accuracy_apart(tmp_path, monkeypatch, capsys):
    """In result.json, evaluation.json, the row and what evaluate prints; a run's bits are those of its predictions."""
    load, exact = sources.load, torch.arange(100) % 3 > 0

    def of_a_copy(source, split, **more):
        images = load(source, split, **more)
        return replace(images, exact=exact, note="a note", name="the copy") if split == "test" else images

    monkeypatch.setattr(sources, "load", of_a_copy)
    out = tmp_path / "run"
    diffvit.train(SETTINGS, out=out)
    result, written = (json.loads((out / name).read_text()) for name in ("result.json", "evaluation.json"))
    right = torch.tensor(written["predictions"]) == torch.tensor(written["labels"])
    expected = {"accuracy_exact": int(right[exact].sum()) / 66, "images_exact": 66, "data_note": "a note"}
    assert (result["test_accuracy_exact"], result["data_note"]) == (expected["accuracy_exact"], "a note")
    assert result["data"] == "shapes (clutter 0.3, noise 0.1), tested on the copy"
    assert written.items() >= expected.items()
    (out / "evaluation.json").unlink()
    assert evaluate(out, device="cpu").items() >= expected.items()
    assert json.loads((out / "evaluation.json").read_text()).items() >= expected.items()
    record = read_run(out)
    assert (record.row["test_accuracy_exact"], record.row["data_note"]) == (expected["accuracy_exact"], "a note")
    assert record.correct.images.tolist() == right.tolist()
    assert command(["evaluate", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"exact images       {expected['accuracy_exact']:.2%} (66 images)" in said
    assert "note               a note" in said


def test_a_folder_that_changed_is_said_and_does_not_replace_the_runs_figures(tmp_path):
    place = pictures(tmp_path / "pets", ("cat", "dog"), train=6, test=2)
    out = tmp_path / "run"
    own = {"data": "folder", "data_dir": str(place), "validation_size": 2, "epochs": 2}
    diffvit.train(small(own, model={"num_classes": 2}), out=out)
    evaluate(out, device="cpu")
    before = (out / "evaluation.json").read_bytes()
    Image.new("RGB", (16, 16), "red").save(place / "test" / "cat" / "new.png")
    with pytest.warns(UserWarning, match="has other test images than when the run was made"):
        assert evaluate(out, device="cpu")["images"] == 5
    assert (out / "evaluation.json").read_bytes() == before
    (out / "result.json").unlink()
    with pytest.raises(ConfigError, match="test data fingerprint"):
        diffvit.train(small(own, model={"num_classes": 2}), out=out, resume=True)
    for path in place.rglob("[1-9].png"):
        path.unlink()
    with pytest.raises(InputError, match="has no validation images"):
        evaluate(out, split="validation", device="cpu")
