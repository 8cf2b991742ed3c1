"""What each tab answers, through its own functions and through the server's routes."""

from __future__ import annotations

import io
import os
import signal
from functools import partial
from pathlib import Path

import gradio
import numpy as np
import open_clip
import pytest
import torch
from app_parts import DIALS, made_explorer
from PIL import Image
from starlette.testclient import TestClient

from diffvit import evaluate, load, predict
from diffvit.app.explorer import Explorer, MapSelection
from diffvit.app.images import ImageRef
from diffvit.app.limits import Limiter
from diffvit.app.models import Models, find_openai_weights, list_models
from diffvit.app.web import attention_tab, tabs
from diffvit.app.web.controls import INTERNAL_ERROR, handler
from diffvit.app.web.tabs import score_table
from diffvit.attention.metrics import coverage, mass_on_object
from diffvit.cli.main import run
from diffvit.config import parse
from diffvit.errors import ConfigError, InputError, Interrupted
from diffvit.experiments.study import flops_per_image
from diffvit.training.loop import train
from tests.training.small import Recorder

VIT, DIFFVIT = "shapes-vit", "shapes-diffvit"


def test_two_models_side_by_side_and_their_figure(explorer: Explorer, client: TestClient) -> None:
    text = attention_tab.draw(explorer, ImageRef("test", 7, VIT), VIT, DIFFVIT, DIALS)
    assert text.count('<section class="dv-model"') == 2
    link = text.split('class="dv-download" href="')[1].split('"')[0]
    answer = client.get(f"/{link}")
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(answer.content)).width > 1000
    assert client.get(f"/{link.replace('.png', '.exe')}").status_code == 404
    alone = attention_tab.draw(explorer, ImageRef("test", 7, VIT), VIT, "none", DIALS)
    assert alone.count('<section class="dv-model"') == 1
    assert attention_tab.draw(explorer, ImageRef("test", 7, VIT), VIT, VIT, DIALS).count("<section") == 1
    with pytest.raises(ConfigError, match="goes with fusion mean"):
        attention_tab.draw(
            explorer, ImageRef("test", 7, VIT), DIFFVIT, "none", {**DIALS, "fusion": "max", "sign": "signed"}
        )


def test_an_upload_is_looked_at(explorer: Explorer, client: TestClient) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), "teal").save(buffer, "JPEG")
    headers = {"x-picture-name": "a%20cat%2F..%2F%3Cb%3E.jpg"}
    token = client.post("/picture", content=buffer.getvalue(), headers=headers).json()["token"]
    text = attention_tab.draw(explorer, ImageRef("upload", token), VIT, "none", DIALS)
    assert text.count("<img") == 3
    for bad in (b"GIF89a", b"<svg/>", b""):
        answer = client.post("/picture", content=bad, headers={"x-picture-name": "x.png"})
        assert (answer.status_code, list(answer.json())) == (200, ["error"])
        assert answer.json()["error"].startswith("x.png: ")


def test_scores_are_those_of_a_plain_computation(explorer: Explorer) -> None:
    text = tabs.draw_shapes(explorer, VIT, DIFFVIT, "heart", 4, 0.5, 0.1, 2)
    assert text.count("<table>") == 2
    result = explorer.run(ImageRef("shapes", 47), DIFFVIT)
    mask = result.image.mask
    assert mask is not None
    rows = {row[0]: row[1:] for row in score_table(result, MapSelection(2), mask).rows}
    values = result.record.to_patches(2).mean(dim=1)
    mass = float(mass_on_object(values, coverage(mask[None], (8, 8)))[0])
    assert rows["layer 2"][1] == f"{100 * mass:.1f}%"
    assert rows["Uniform baseline"][1] == f"{100 * float(mask.float().mean()):.1f}%"
    assert "rollout, A1 alone" in rows


def test_own_labels_beside_a_supervised_model(explorer: Explorer) -> None:
    asked = ("cifar10-clip", "frog, a green car\ntruck", "single", "cifar10-vit")
    text = tabs.classify_image(explorer, ImageRef("shapes", 3), *asked)
    assert "3 labels, templates single" in text
    assert "a green car" in text
    assert text.count('<section class="dv-model"') == 2
    assert explorer.models.clip_names == ["cifar10-clip"]
    one = explorer.models.classifier("cifar10-clip", ("frog", "cat"), "single")[1]
    assert explorer.models.classifier("cifar10-clip", ("frog", "cat"), "single")[1] is one
    torch.testing.assert_close(one.weights.norm(dim=1), torch.ones(2))


def test_words_that_the_clip_never_read_are_said_or_refused(explorer: Explorer) -> None:
    asked = ("cifar10-clip", "cat, a toaster", "single", "none")
    assert "toaster" in tabs.classify_image(explorer, ImageRef("shapes", 3), *asked).split("dv-warning")[1]
    known = tabs.classify_image(explorer, ImageRef("shapes", 3), "cifar10-clip", "cat, dog", "single", "none")
    assert "dv-warning" not in known
    for labels in ("toaster, zeppelin", "cat, Cat"):
        with pytest.raises(ConfigError):
            tabs.classify_image(explorer, ImageRef("shapes", 3), "cifar10-clip", labels, "single", "none")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "give 2 to 40, with commas between them (found 0)"),
        ("cat", "(found 1)"),
        (",".join(f"label {n}" for n in range(41)), "(found 41)"),
        ("cat, cat", "names 'cat' twice"),
        ("cat, " + "x" * 81, "one is too long (81 vs at most 80 letters)"),
        ("cat, a\0b", "holds a NUL byte"),
    ],
)
def test_labels_that_cannot_be_are_one_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tabs.parse_labels(text)
    assert said in str(caught.value)


def test_clip_models_are_those_of_the_start(
    explorer: Explorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, templates in (("/etc/passwd", "single"), ("cifar10-clip", "/etc/passwd")):
        with pytest.raises(InputError, match="none of those that are offered"):
            explorer.models.classifier(name, ("a", "b"), templates)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_openai_weights(None) is None
    (tmp_path / ".cache" / "clip").mkdir(parents=True)
    (tmp_path / ".cache" / "clip" / "RN50.pt").touch()
    assert find_openai_weights(None) == tmp_path / ".cache" / "clip" / "RN50.pt"
    with pytest.raises(InputError, match="clip_weights names"):
        find_openai_weights(tmp_path / "no.pt")


def test_openais_clip_is_offered_where_its_weights_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the published name and of a smaller size."""
    config = open_clip.get_model_config("RN50")
    config["vision_cfg"] |= {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64}
    config["text_cfg"] |= {"layers": 1, "width": 64, "heads": 1}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "RN50", config)
    torch.manual_seed(0)
    torch.save(open_clip.CLIP(**config, quick_gelu=True).state_dict(), tmp_path / "RN50.pt")
    explorer = Explorer(Models(list_models([], Path("none")), openai=find_openai_weights(tmp_path / "RN50.pt")))
    assert explorer.models.clip_names == ["cifar10-clip", "OpenAI's RN50"]
    text = tabs.classify_image(explorer, ImageRef("shapes", 3), "OpenAI's RN50", "cat, dog", "single", "none")
    assert text.count("<li") == 2


def test_runs_are_compared_from_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the drawing of the plots, which those of the reports show."""
    monkeypatch.setattr("diffvit.reporting.plots.to_png", lambda made, stamp="": b"")
    folders = []
    for attention in ("softmax", "differential"):
        tiny = {"attention": attention, "embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8}
        shapes = {"train": 40, "test": 20}
        values = {"data": "shapes", "epochs": 2, "validation_size": 0, "model": tiny, "shapes": shapes}
        train(parse(values, "test"), out=tmp_path / attention)
        folders.append(str(tmp_path / attention))
    text = tabs.compare_runs(folders)
    assert text.count('class="dv-light"') == text.count('class="dv-dark"') >= 4
    assert "Lambda of every block" in text
    assert "Confusion matrix: ViT" in text
    assert "drawn by diffvit itself" in text
    for wrong in ([], folders * 4):
        with pytest.raises(ConfigError, match="choose 1 to 6"):
            tabs.compare_runs(wrong)


def test_a_run_on_wide_images_goes_through_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = {"image_size": [16, 32], "embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8}
    values = {"data": "shapes", "epochs": 2, "validation_size": 0, "model": tiny, "shapes": {"train": 40, "test": 20}}
    config = parse({**values, "precision": "fp32", "device": "cpu"})
    whole = train(config, out=Path("whole"))
    with pytest.raises(Interrupted):
        train(config, out=Path("run"), progress=Recorder(epoch=1, action=partial(os.kill, os.getpid(), signal.SIGTERM)))
    again = train(config, out=Path("run"), resume=True)
    assert again.result["model_sha256"] == whole.result["model_sha256"]
    assert whole.result["flops_per_image"] == flops_per_image(config) == evaluate(whole)["flops_per_image"]
    assert evaluate(whole)["loss"] == whole.result["test_loss"]
    model = load("run")
    assert (model.settings["image_size"], model.grid) == ((16, 32), (2, 4))
    Image.new("RGB", (64, 48), "teal").save("a.png")
    assert model.preprocess("a.png").shape == (3, 16, 32)
    found = predict("run", ["a.png"]).probabilities[0]
    assert (found - model(model.preprocess("a.png")[None]).softmax(1)[0]).abs().max() < 1e-5
    commands = "attention run a.png --index 0 --rollout --format npz", "attention run a.png --size 24,16 --format npz"
    for command, grid in zip(commands, ([2, 4], [3, 2]), strict=True):
        assert run([*command.split(), "--out", "maps"]) == 0
        with np.load("maps/00-a.png.npz") as arrays:
            assert arrays["grid"].tolist() == grid
            assert arrays["layer_1_positive"].shape[-1] == 1 + grid[0] * grid[1]
    explorer = Explorer(Models(list_models(["run"]), "cpu"))
    text = attention_tab.draw(explorer, ImageRef("test", 7, "run"), "run", "none", DIALS)
    assert text.count("<img") == 3
    assert explorer.run(ImageRef("shapes", 7), "run").record.grid == (2, 4)
    assert tabs.draw_shapes(explorer, "run", "none", "heart", 4, 0.5, 0.1, 1).count("<table>") == 1


def test_whatever_goes_wrong_is_one_line_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    explorer = made_explorer(Limiter(1, 0, patience=0.05))

    def fails(error: Exception) -> str:
        raise error

    known = handler(explorer, 2)(fails)(InputError("thing", "is <b>broken</b>"))
    assert known[-1] == '<p class="dv-fault" role="alert">thing: is &lt;b&gt;broken&lt;/b&gt;.</p>'
    assert len(known) == 3
    unknown = handler(explorer, 1)(fails)(ZeroDivisionError("secret"))
    assert INTERNAL_ERROR in unknown[-1]
    assert "secret" not in unknown[-1]
    assert "ZeroDivisionError" in caplog.text
    inside = explorer.limiter.call(lambda: handler(explorer, 1)(lambda: "x")())
    assert "is busy" in inside[-1]
    assert handler(explorer, 1)(lambda: "x")() == ("x", "")
    handle = handler(explorer, 1, numbered=True)(lambda text: text if text != "b" else fails(InputError("b", "no")))
    found = [handle(text)[0] for text in "abc"]
    assert found == ['<i hidden data-request="1"></i>a', gradio.skip(), '<i hidden data-request="3"></i>c']


def test_the_page_answers_its_own_questions(client: TestClient) -> None:
    """Through Gradio's route, as the browser does: the dials of the first tab."""
    config = client.get("/config").json()
    drawing = next(each for each in config["dependencies"] if len(each["inputs"]) == 18)
    first, second = VIT, DIFFVIT
    asked = {"data": [None, first, second, *DIALS.values()], "fn_index": drawing["id"], "session_hash": "s"}
    answer = client.post("/gradio_api/run/predict", json=asked)
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"][0].count("<section") == 2
    asked["data"][1] = "/etc/passwd"
    refused = client.post("/gradio_api/run/predict", json=asked)
    assert "root:" not in refused.text
    assert "Traceback" not in refused.text
