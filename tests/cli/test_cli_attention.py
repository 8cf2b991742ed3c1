"""``diffvit attention`` as a user meets it: what it writes, what it prints, and what it refuses in one line."""

import json
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from diffvit.attention import METHODS, attribute, capture, inputs, rollout
from diffvit.attention.inputs import labelled_images, load_model
from diffvit.attention.metrics import coverage, mass_on_object, pointing_game
from diffvit.cli.main import run
from diffvit.config import merge, parse
from diffvit.models.vit import PatchEmbed
from diffvit.training.loop import train
from tests.training.small import SMALL

TINY = merge(SMALL, {"model": {"patch_size": 4, "embed_dim": 8, "depth": 2}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a run of each model, a picture, and files that are none."""
    folder = tmp_path_factory.mktemp("looking")
    for name, attention in (("vit", "softmax"), ("diff", "differential")):
        train(parse(merge(TINY, {"model": {"attention": attention}})), out=folder / "runs" / name)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    (folder / "notes.png").write_text("no picture")
    return folder


@pytest.fixture(autouse=True)
def _there(folder, monkeypatch):
    monkeypatch.chdir(folder)


def succeeds(command, capsys):
    code = run(["attention", *command.split()])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert captured.err == ""
    return captured.out


def test_figures_and_a_page_of_a_runs_own_images(folder, monkeypatch, capsys):
    """The model is loaded once, and run once for each image."""
    batches, embed = [], PatchEmbed.forward

    def counted_embed(self, images):
        batches.append(len(images))
        return embed(self, images)

    with monkeypatch.context() as counting, patch.object(inputs, "load_with_meta", wraps=inputs.load_with_meta) as load:
        counting.setattr(PatchEmbed, "forward", counted_embed)
        said = succeeds("runs/diff --index 2-3 --rollout --mass 0.6 --out seen --json", capsys)
    assert (load.call_count, batches) == (1, [1, 1])
    result = json.loads(said.splitlines()[-1])
    assert [picture["name"] for picture in result["pictures"]] == ["2", "3"]
    images = labelled_images(load_model("runs/diff"))
    assert [picture["label"] for picture in result["pictures"]] == [images.classes[at] for at in images.labels[2:4]]
    names = {path.name for path in (folder / "seen").iterdir()}
    assert names == {
        *(f"0{at}-{at + 2}-{kind}.png" for at in range(2) for kind in ("overlay", "maps", "differential", "mass")),
        *("overview.png", "heads.png", "lambda.png", "lambda-training.png", "positions-added.png", "index.html"),
    }
    assert {Path(file).name for file in result["files"]} == names - {"index.html"}
    page = (folder / "seen" / "index.html").read_text()
    assert page.count("<img ") == len(names) - 1
    for word in ("What diff attends to", "3: square", "Rollout follows attention", "A1 minus lambda times A2"):
        assert word in page
    assert 'src="http' not in page
    for word in ("peak on object", "mass on object", "square"):
        assert word in said


def test_image_files_and_folders(folder, capsys):
    (folder / "album").mkdir()
    for name in ("b.png", "a.png"):
        (folder / "album" / name).write_bytes((folder / "picture.png").read_bytes())
    said = succeeds("runs/vit picture.png album --out files --layers -1 --query 1,2", capsys)
    assert (folder / "files" / "00-picture.png-maps.png").is_file()
    assert (folder / "files" / "02-b.png-overlay.png").is_file()
    assert not [*folder.glob("files/*lambda*"), *folder.glob("files/*differential*")]
    assert "prediction" in said
    assert "the patch in row 1, column 2" in (folder / "files" / "index.html").read_text()


def test_bad_files_are_listed_last_and_equal_names_told_apart(folder, capsys):
    for name in ("cat/7.png", "dog/7.png", "dog/8.png", "dog/bad.png"):
        (folder / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "pets" / name).write_bytes((folder / ("notes.png" if "bad" in name else "picture.png")).read_bytes())
    command = "attention runs/vit pets *.gif --out told --format npz --layers -1 --json"
    assert run(command.split()) == 3
    said, errors = capsys.readouterr()
    assert [line.split(": ")[1] for line in errors.splitlines()] == ["pets/dog/bad.png", "*.gif", "attention"]
    assert errors.endswith("2 of 5 images cannot be read. The others are in told.\n")
    result = json.loads(said.splitlines()[-1])
    assert [picture["name"] for picture in result["pictures"]] == ["cat/7.png", "dog/7.png", "8.png"]
    assert [each["image"] for each in result["bad"]] == ["pets/dog/bad.png", "*.gif"]
    written = {path.name for path in (folder / "told").iterdir()}
    assert written == {"index.html", "00-cat-7.png.npz", "01-dog-7.png.npz", "02-8.png.npz"}
    assert "cat/7.png, predicted" in (folder / "told" / "index.html").read_text()


def test_maps_at_another_size_leave_those_at_the_runs_own_alone(folder, capsys):
    for size, name in (("32", "attention-32x32"), ("32,16", "attention-32x16"), ("16", "attention")):
        assert not (folder / "runs" / "vit" / name).exists()
        succeeds(f"runs/vit picture.png --size {size} --layers -1 --format npz", capsys)
        assert (folder / "runs" / "vit" / name / "00-picture.png.npz").is_file()


def test_by_default_the_first_images_into_the_runs_own_folder_and_npz_holds_the_maps_that_capture_gives(folder, capsys):
    said = succeeds("runs/diff --rollout --sign abs --format npz", capsys)
    assert "no image named: taking --index 0-3" in said
    out = folder / "runs" / "diff" / "attention"
    assert {path.name for path in out.iterdir()} == {"index.html", *(f"0{at}-{at}.npz" for at in range(4))}
    model = load_model("runs/diff")
    images = labelled_images(model)
    record = capture(model.model, model.normalised(images.pixels[3:4]))
    with np.load(out / "03-3.npz") as arrays:
        assert arrays["grid"].tolist() == [4, 4]
        assert arrays["blocks"].tolist() == [0, 1]
        assert int(arrays["prefix"]) == 1
        for block, maps in enumerate(record.layers):
            assert np.abs(arrays[f"layer_{block}_positive"] - maps.positive[0].numpy()).max() < 1e-6
            assert np.abs(arrays[f"layer_{block}_negative"] - maps.negative[0].numpy()).max() < 1e-6
            assert float(arrays[f"layer_{block}_lambda"]) == pytest.approx(float(maps.lam or 0))
        assert np.abs(arrays["rollout"] - rollout(record, sign="abs")[0].numpy()).max() < 1e-6


def test_attributions_are_drawn_and_their_peak_and_mass_on_the_object_printed(folder, capsys):
    said = succeeds("runs/diff --index 2-3 --method attnlrp,rollout --target circle --out explained --json", capsys)
    assert (folder / "explained" / "00-2-attribution.png").is_file()
    page = (folder / "explained" / "index.html").read_text()
    assert page.count('alt="Attribution to each patch: ') == 2
    assert "An attribution shows" in page
    model = load_model("runs/diff")
    images = labelled_images(model).select([2, 3])
    x, target = model.normalised(images.pixels), list(model.classes).index("circle")
    probabilities = model.model(x).softmax(dim=1)[:, target].tolist()
    result = json.loads(said.splitlines()[-1])["pictures"]
    assert [picture["target"] for picture in result] == ["circle", "circle"]
    assert [picture["target_probability"] for picture in result] == pytest.approx(probabilities, abs=1e-5)
    cover = coverage(images.masks, (4, 4))
    for method in ("attnlrp", "rollout"):
        found = attribute(model.model, x, method, target)
        for name, score in (("pointing", pointing_game), ("mass", mass_on_object)):
            expected = score(found, cover).tolist()
            assert [each["attribution"][method][name] for each in result] == pytest.approx(expected, abs=1e-5)
    rows = [line.split("│")[1:-1] for line in said.split("Attribution")[1].splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row[:2]] for row in rows] == [
        *(["2", "attnlrp"], ["2", "rollout"], ["3", "attnlrp"], ["3", "rollout"])
    ]
    assert rows[0][2].strip() == {1.0: "yes", 0.0: "no"}[result[0]["attribution"]["attnlrp"]["pointing"]]
    assert rows[0][3].strip() == f"{result[0]['attribution']['attnlrp']['mass']:.2%}"


def test_npz_holds_every_attribution_of_the_predicted_class_or_of_one_by_its_index(folder, capsys):
    model = load_model("runs/diff")
    x = model.normalised(labelled_images(model).pixels[3:4])
    for more, target, methods in (("", None, list(METHODS)), (" --target 2", 2, ["occlusion", "grad-cam"])):
        said = "all" if target is None else ", ".join(methods)
        command = ["attention", "runs/diff", *["--index", "3", "--format", "npz", "--out", "arrays", "--method"], said]
        assert run([*command, *more.split()]) == 0
        assert capsys.readouterr().err == ""
        with np.load(folder / "arrays" / "00-3.npz") as arrays:
            found = {name for name in arrays.files if not name.startswith("layer_")} - {"grid", "prefix", "blocks"}
            assert found == set(methods)
            for method in methods:
                expected = attribute(model.model, x, method, target)[0].numpy()
                assert np.abs(arrays[method] - expected).max() <= 1e-5 * np.abs(expected).max() + 1e-9, method


def test_score_writes_a_table_and_plots(folder, capsys):
    said = succeeds("runs/diff --score --score-images 10 --method grad-cam,attnlrp --out scored --json", capsys)
    assert {path.name for path in (folder / "scored").iterdir()} == {
        *("scores.csv", "removal.csv", "scores.png", "removal.png")
    }
    rows = json.loads(said.splitlines()[-1])["scores"]
    assert {row["clutter"] for row in rows} == {0.0, 0.3, 0.6, 0.9}
    assert {row["map"] for row in rows} >= {"layer 1", "layer 1, A1 alone", "rollout", "uniform", "centre", "random"}
    assert {row["map"] for row in rows if row["deletion"] is not None} >= {"grad-cam", "attnlrp", "rollout"}
    for word in ("pointing game", "mass on the object", "deletion area", "shapes (clutter 0.9"):
        assert word in said
    said = succeeds("runs/diff --score --score-images 10 --split train --out part --json", capsys)
    assert {row["clutter"] for row in json.loads(said.splitlines()[-1])["scores"]} == {None}
    header = (folder / "scored" / "scores.csv").read_text().splitlines()[0]
    assert header.startswith("data,clutter,map,pointing,mass,iou,deletion,insertion")


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("", 2, "no model given"),
        ("runs/none --index 0", 3, "no such run, file or packaged model"),
        ("runs/vit --layers 2", 2, "layers: no such layer (found 2 vs 0 to 1)"),
        ("runs/vit --layers one", 2, "--layers: is not a list of numbers"),
        ("runs/vit --index 0-1,20", 2, "--index: no such image (found 20 vs 0 to 19"),
        ("runs/vit --index 3-1", 2, "--index: is not a list of numbers"),
        ("runs/vit --index 0 --query 4,0", 2, "query: no such patch"),
        ("runs/vit --index 0 --query 4", 2, "--query: is not a patch"),
        ("runs/vit --index 0 --kind negative", 2, "softmax attention has no negative map"),
        ("runs/vit --index 0 --mass 1.5", 2, "must be above 0 and at most 1"),
        ("runs/vit --index 0 --method gradcam", 2, "have attention, rollout, gradient-rollout, transformer, attnlrp,"),
        ("runs/vit --index 0 --method attnlrp,,", 2, "method: no method ''"),
        ("runs/vit --index 0 --method attnlrp --target squares", 2, "--target: no class 'squares' (have circle, "),
        ("runs/vit --index 0 --method attnlrp --target squares", 2, "Did you mean 'square'?"),
        ("runs/vit --index 0 --method rollout --target 10", 2, "--target: no class '10' (have circle, "),
        ("runs/vit --index 0 --target circle", 2, "--target: goes with --method, and without --score"),
        ("runs/vit --score --method attnlrp --target circle", 2, "--target: goes with --method, and without --score"),
        ("--weights tiny.pth picture.png --method rollout,attnlrp", 2, "no classes to explain (found attnlrp)"),
        ("--weights tiny.pth picture.png --method rollout --target 0", 2, "--target: no class '0' (have none)"),
        ("runs/vit --index 0 --rollout --discard 1", 2, "discard: must be from 0 to below 1"),
        ("runs/vit --index 0 --rollout --start 5", 2, "no such layer (found 5 vs 0 to 1)"),
        ("runs/vit --index 0 --rollout --layers 1", 2, "follows every layer"),
        ("runs/diff --index 0 --rollout --sign signed --fusion max", 2, "goes with fusion mean"),
        ("runs/vit --index 0 --format jpg", 2, "--format: not a value it takes"),
        ("runs/vit picture.png --size 30", 2, "patch_size: 4 does not divide image_size 30"),
        ("runs/vit picture.png --size big", 2, "--size: must be the side of a square, or height,width"),
        ("runs/vit gone.png", 3, "gone.png: cannot be read"),
        ("runs/vit notes.png", 3, "notes.png: is not an image of a known format"),
        ("runs/vit --score --score-images 0", 2, "--score-images: must be at least 1"),
        ("--weights notes.png picture.png", 3, "notes.png: is not a weights file"),
        ("--pretrained vit_small_patch16_224.dino --weights tiny.pth picture.png", 3, "does not fit the model"),
        ("--pretrained vit_smal_patch16_224.dino picture.png", 2, "Did you mean"),
        ("--pretrained resnet50 --weights tiny.pth picture.png", 3, "has a part that is not supported"),
        ("--pretrained vit_small_patch16_224.dino --index 0", 2, "--index: selects a run's test images"),
        ("--weights tiny.pth --score picture.png", 2, "--score: needs a run"),
    ],
)
def test_bad_input_is_one_line_and_a_code(command, code, words, folder, capsys):
    tiny_checkpoint(folder / "tiny.pth")
    before = {path for path in folder.rglob("*") if path.name not in ("attention", "index.html")}
    assert run(["attention", *command.split(), "--out", "refused"]) == code
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    assert words in captured.err
    assert {path for path in folder.rglob("*") if path.name not in ("attention", "index.html")} == before


def test_a_file_in_the_folders_place_is_refused_before_anything_is_computed(folder, capsys, monkeypatch):
    (folder / "taken").write_text("mine")
    monkeypatch.setattr("diffvit.attention.inputs.read_samples", lambda *_, **__: pytest.fail("images were read"))
    assert run(["attention", "runs/diff", "--index", "0", "--out", "taken"]) == 4
    assert "is no folder" in capsys.readouterr().err
    assert (folder / "taken").read_text() == "mine"


def tiny_checkpoint(path):
    """A ViT of two blocks, 64 wide, patch 16, in DINO's layout."""
    from diffvit.models.vit import VisionTransformer

    torch.manual_seed(0)
    sizes = {"image_size": 32, "patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 1, "mlp_ratio": 2.0}
    model = VisionTransformer(**sizes, num_classes=0)
    torch.save(model.state_dict(), path)


def test_a_checkpoint_alone_and_a_file_of_any_name(folder, capsys):
    tiny_checkpoint(folder / "tiny.pth")
    name = "50$ of <b> & $x^2.png"
    (folder / name).write_bytes((folder / "picture.png").read_bytes())
    flags = ["--rollout", "--mass", "0.5", "--format", "svg", "--out", "named"]
    assert run(["attention", "--weights", "tiny.pth", name, *flags]) == 0
    capsys.readouterr()
    page = (folder / "named" / "index.html").read_text()
    assert "heads taken as 64 wide" in page
    assert "50$ of &lt;b&gt; &amp; $x^2.png" in page
    assert "<b>" not in page
    assert b"<svg" in (folder / "named" / "00-50--of--b-----x-2.png-maps.svg").read_bytes()


@pytest.mark.cifar10
def test_the_packaged_models_on_real_images(folder, capsys):
    for name in ("cifar10-vit", "cifar10-diffvit-cls"):
        assert "files   " in succeeds(f"{name} --index 1 --layers -1 --format npz --out {name}", capsys)
        assert (folder / name / "00-1.npz").is_file()
