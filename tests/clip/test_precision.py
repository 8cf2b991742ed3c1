"""The precision report: what is observed, the time it keeps to, drift by hand, the page, the command."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.benchmark import timer

from diffvit.cli.main import run
from diffvit.clip import precision
from diffvit.clip.encode import float32_products
from diffvit.clip.evaluate import evaluate
from diffvit.clip.precision import (
    FORMATS,
    MANTISSA,
    MODES,
    Engine,
    Mode,
    Observer,
    Plan,
    calibrated,
    engines_of,
    kept_bits,
    measure,
    observed_name,
    random_rn50,
)
from diffvit.clip.precision_report import PLOT, REPORT, best_rows, plot, read, report, write
from diffvit.clip.small.load import load_small
from diffvit.clip.templates import load_templates
from diffvit.data.shapes import generate
from diffvit.errors import InputError
from diffvit.hub.onnx_file import Int8

ROOT = Path(__file__).parents[2]
SIZE = 64
Captured = pytest.CaptureFixture[str]


def small(size: int = SIZE) -> nn.Module:
    torch.manual_seed(0)
    visual = ModifiedResNet([1, 1, 1, 1], output_dim=16, heads=2, image_size=size, width=8)
    return calibrated(visual, torch.randn(4, 3, size, size))


def images() -> Tensor:
    return torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


# What is observed


def test_peak_activations_of_a_network_worked_out_by_hand() -> None:
    network = nn.Sequential(nn.Linear(10, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU(inplace=True), nn.Linear(50, 2))
    given = torch.randn(4, 10)
    with torch.no_grad(), Observer([*network.parameters(), given]) as seen:
        network(given)
    # The widest moment: the first linear layer's output beside its ReLU's; weights, views and the input do not count.
    assert seen.peak == 4 * (100 + 100) * 4
    assert seen.products == {"float32": 3}


@pytest.mark.parametrize("mode", [m for m in MODES if m.asked not in ("tf32", "int8")], ids=lambda mode: mode.name)
def test_the_observed_precision_is_that_of_every_product(mode: Mode) -> None:
    visual = small()
    engine = engines_of(visual, "cpu")[f"{mode.name}, channels_last"]
    switches = torch.backends.mkldnn.conv, torch.backends.cuda.matmul  # pyright: ignore[reportAttributeAccessIssue]
    before = [switch.fp32_precision for switch in switches]
    with float32_products("tf32"):
        assert [switch.fp32_precision for switch in switches] == ["ieee", "tf32"]
        seen = engine.observe(engine.prepare(images()))
    assert [switch.fp32_precision for switch in switches] == before
    assert seen["asked"] == seen["observed"] == mode.asked
    assert not seen["substituted"]
    layers = [each for each in engine.model.modules() if isinstance(each, nn.Conv2d | nn.Linear)]
    assert set(seen["products"]) == {mode.asked}
    assert seen["products"][mode.asked] >= len(layers) - 1
    assert set(seen["kept_bits"][mode.asked].values()) == {MANTISSA[mode.asked]}
    state = engine.model.state_dict()
    assert seen["weight_bytes"] == sum(each.numel() * each.element_size() for each in state.values())
    if mode.weights != torch.float32:  # norms and the pool's positions stay, the rest is halved
        kept = {key for key, each in state.items() if each.dtype == torch.float32}
        norms = [name for name, module in visual.named_modules() if isinstance(module, nn.BatchNorm2d)]
        parts = ("weight", "bias", "running_mean", "running_var")
        assert kept == {f"{name}.{part}" for name in norms for part in parts} | {"attnpool.positional_embedding"}
    assert {each.dtype for each in visual.parameters()} == {torch.float32}, "the original is left as it is"


def rounded_by_hand(x: Tensor, weight: Tensor) -> Tensor:
    """One linear product in dynamic int8, float64: uint8 with a zero point on the left, int8 per row on the right."""
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    step = (high - low) / 255
    zero = round(-low / step)
    left = ((x.double() / step).round() + zero).clamp(0, 255) - zero
    steps = weight.double().abs().amax(1, keepdim=True) / 127
    return step * left @ ((weight.double() / steps).round() * steps).T


def test_int8_by_hand_and_what_it_holds() -> None:
    torch.manual_seed(0)
    linear, given = nn.Linear(12, 7), torch.randn(5, 12)
    found = Int8(linear, given)
    with torch.no_grad():
        expected = rounded_by_hand(given, linear.weight) + linear.bias
        assert float((found(given) - expected).abs().max()) < 2e-3 * float(expected.abs().max())
        assert float((found(given) - linear(given)).abs().max()) > 1e-4, "it is not the float32 product"
        assert found(given[:1]).shape == (1, 7)
    assert found.products == {"int8": 1}
    network = small()
    seen = Int8(network, images())
    convolutions = sum(isinstance(each, nn.Conv2d) for each in network.modules())
    assert seen.products == {"int8": convolutions + 4}, "the pool has four projections"
    size = sum(each.numel() for each in network.parameters())
    assert size < seen.weight_bytes < 2 * size, "a byte each, and scales, biases and positions"
    with torch.no_grad():
        assert float(torch.cosine_similarity(seen(images()), network(images())).min()) > 0.95


def test_without_onnxruntime_its_row_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "random_rn50", lambda _: small(224))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = precision.run(Plan((1,), 2.0, 2, most=2), threads=1)
    (row,) = (row for row in found["rows"] if row["mode"] == "int8 dynamic")
    assert "onnxruntime" in row["reason"]
    assert "pip install 'diffvit[onnx]'" in row["reason"]
    assert row["reason"] in report(found)


def test_a_substituted_dtype_is_caught() -> None:
    visual = small()  # computes in another dtype and answers in the one it was asked for
    visual.register_forward_pre_hook(lambda _, given: (given[0].float(),))
    visual.register_forward_hook(lambda _, given, out: out.half())
    fake = Engine(Mode("FP16", "float16"), "contiguous", "cpu", visual)
    assert fake(images()).dtype == torch.float16
    seen = fake.observe(images())
    assert (seen["asked"], seen["observed"], seen["substituted"]) == ("float16", "float32", True)


def test_an_engine_that_drops_bits_behind_the_dtype_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = F.linear

    def rounded(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(x.bfloat16(), weight.bfloat16(), bias).to(x.dtype)

    with monkeypatch.context() as patch:
        patch.setattr(F, "linear", rounded)
        bits = kept_bits(torch.float32, "cpu")
    assert bits == {"convolution": 23, "matrix product": 7}
    assert observed_name(["float32"], {"float32": bits}) == "float32+float32 of 7 bits"
    both = {"convolution": 10, "matrix product": 10}
    assert observed_name(["float32"], {"float32": both}) == "tf32"
    assert observed_name(["float16"], {"float16": both}) == "float16"
    assert observed_name(["float16", "float32"], {}) == "float16+float32"
    assert observed_name([], {}) == "none"


def test_the_full_rn50_in_half_precision_points_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(FORMATS, "contiguous")
    shown = generate("test", 2, size=224).pixels.float() / 64 - 2
    visual = random_rn50(shown[:1])
    assert sum(each.numel() for each in visual.parameters()) == 38_316_896
    norm = visual.get_submodule("layer3.2.bn3")
    assert bool((norm.weight == 0.25).all())  # pyright: ignore
    assert not bool((norm.running_var == 1).any())  # pyright: ignore
    engines = engines_of(visual, "cpu")
    reference = engines["FP32 strict, channels_last"](shown[1:]).double()
    assert engines["FP32 strict, channels_last"].model is not engines["FP16, channels_last"].model
    assert engines["FP32 strict, channels_last"].model is engines["autocast BF16, channels_last"].model
    for name, least in (("FP16, channels_last", 0.9999), ("BF16, channels_last", 0.999)):
        found = engines[name](engines[name].prepare(shown[1:]))
        assert float(torch.cosine_similarity(found.double(), reference).min()) > least


# Drift and time


def test_drift_figures_by_hand() -> None:
    classes = torch.eye(2, 4, dtype=torch.float64)
    reference = torch.tensor([[3.0, 1.0, 0, 0], [0.0, 2.0, 0, 0]])
    moved = torch.tensor([[1.0, 3.0, 0, 0], [0.0, 5.0, 0, 0]])
    found = precision.drift(moved, reference, precision.Targets(classes, 100.0))
    assert found["images"] == 2
    assert "accuracy" not in found
    assert math.isclose(found["cosine_min"], 0.6)
    assert math.isclose(found["cosine_mean"], 0.8)
    assert math.isclose(found["logit_difference"], 100 * 2 / math.sqrt(10))
    assert found["agreement"] == 0.5
    beside = precision.between(reference, classes)
    assert math.isclose(beside["cosine_between"], 1 / math.sqrt(10))
    assert beside["classes_found"] == 2


def test_accuracy_by_a_loop_over_images() -> None:
    draw = torch.Generator().manual_seed(3)
    classes = F.normalize(torch.randn(5, 6, generator=draw, dtype=torch.float64), dim=1)
    reference, moved = (torch.randn(40, 6, generator=draw) for _ in range(2))
    labels = torch.randint(0, 5, (40,), generator=draw)
    found = precision.drift(moved, reference, precision.Targets(classes, 7.0, labels))

    def right(embedding: Tensor, label: int) -> bool:
        cosines = [sum(a * b for a, b in zip(embedding.tolist(), each.tolist(), strict=True)) for each in classes]
        return max(range(5), key=lambda place: cosines[place]) == label

    now, before = ([right(each[n], int(labels[n])) for n in range(40)] for each in (moved, reference))
    assert found["accuracy"] == sum(now) / 40
    assert found["low"] < found["accuracy"] < found["high"]
    assert found["gained"] == sum(a and not b for a, b in zip(now, before, strict=True)) > 0
    assert found["lost"] == sum(b and not a for a, b in zip(now, before, strict=True)) > 0


def test_everything_is_measured_where_there_is_time() -> None:
    result = measure(engines_of(small(), "cpu"), images(), Plan((2, 1), 60.0, 4, most=3), end=timer() + 60)
    assert [row["batch_size"] for row in result["rows"]] == [1] * 10 + [2] * 10
    assert not any(row["reason"] or row["substituted"] for row in result["rows"])
    assert min(len(row["seconds"]) for row in result["rows"]) == 3
    drift = {row["name"]: row for row in result["drift"]}
    assert len(drift) == 10
    assert drift["FP32 strict, contiguous"]["cosine_min"] == drift["FP32 strict, contiguous"]["agreement"] == 1
    assert drift["FP32 strict, channels_last"]["cosine_min"] > 1 - 1e-10
    assert drift["FP16, contiguous"]["cosine_min"] > max(0.999, drift["BF16, contiguous"]["cosine_min"])
    assert drift["BF16, contiguous"]["cosine_min"] > 0.99
    floats, halves = (
        next(row for row in result["rows"] if row["mode"] == mode and row["batch_size"] == 2)
        for mode in ("FP32 strict", "FP16")
    )
    assert halves["weight_bytes"] < 0.55 * floats["weight_bytes"]
    # Not a half: the images in float16 are the pass's own, those in float32 were there before.
    assert halves["activation_bytes"] < 0.8 * floats["activation_bytes"]


class Slow(nn.Module):
    """A two hundredth of a second an image, on a clock that shows the time of its passes alone."""

    now = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3)

    def forward(self, given: Tensor) -> Tensor:
        Slow.now += 0.005 * len(given)
        return self.layer(given).mean((2, 3))


def test_cells_without_time_are_named_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slow, "now", 0.0)
    monkeypatch.setattr(precision, "timer", lambda: Slow.now)
    result = measure(engines_of(Slow(), "cpu"), images(), Plan((1, 400), 3.0, 2), end=3.0)
    assert Slow.now < 4, "no pass starts that is known to end late"
    assert not any(row["reason"] for row in result["rows"][:10])
    for row in result["rows"][10:]:
        assert row["batch_size"] == 400
        assert re.match("a pass takes about [2-6].* s, the time was too short", row["reason"])
        assert "seconds" not in row
    too_late = measure(engines_of(Slow(), "cpu"), images(), Plan((1,)), end=Slow.now)
    assert {row["reason"] for row in too_late["rows"]} == {"its first pass found no time"}
    assert (too_late["drift"], too_late["between"]) == ([], None)


# Images


def test_images_of_a_folder_are_decoded_and_squared(tmp_path: Path) -> None:
    drawn = precision.sample_images(None, 3)
    assert (drawn.name.split(" ")[0], drawn.classes, drawn.read(2).shape) == ("shapes", (), (3, 224, 224))
    for place, why in ((tmp_path / "nowhere", "no such folder"), (tmp_path, "holds neither CIFAR-10 nor images")):
        with pytest.raises(InputError, match=why):
            precision.sample_images(place, 3)
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    (tmp_path / "inner").mkdir()
    Image.fromarray(pixels).save(tmp_path / "b.png")
    with pytest.raises(InputError, match="holds a single image"):
        precision.sample_images(tmp_path, 3)
    Image.fromarray(pixels).save(tmp_path / "inner" / "a.png")
    (tmp_path / "notes.txt").write_text("no image")
    found = precision.sample_images(tmp_path, 8)
    assert (found.name, found.classes, found.places) == (f"folder {tmp_path.name}", (), ("b.png", "inner/a.png"))
    square = torch.from_numpy(np.array(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC)))
    prepared = precision.CLIP_IMAGES(found.read(0))
    assert torch.allclose(prepared[0], (square[..., 0] / 255 - 0.48145466) / 0.26862954)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(InputError, match=r"broken\.png: cannot be decoded"):
        precision.run(Plan(images=3), data_dir=tmp_path)
    (tmp_path / "broken.png").unlink()
    (tmp_path / "b.png").rename(tmp_path / "inner" / "b.png")
    (tmp_path / "outer").mkdir()
    for name in ("c", "d"):
        Image.fromarray(pixels).save(tmp_path / "outer" / f"{name}.png")
    of_classes = precision.sample_images(tmp_path, 2)
    assert (of_classes.classes, of_classes.labels) == (("inner", "outer"), (0, 1)), "spread over the classes"
    targets = precision.zero_shot_targets(load_small("cifar10-clip"), of_classes.named(["cat", "quokka"]))
    assert targets.classes.shape[0] == 2
    (warning,) = targets.warnings
    assert "quokka" in warning
    found = committed() | {"warnings": [warning]}
    assert warning in report(found)
    assert warning not in report(committed())


@pytest.mark.cifar10
def test_accuracy_in_every_precision_is_zero_shot_of_the_images_given(cifar10_dir: Path) -> None:
    clip = load_small("cifar10-clip")
    given = precision.sample_images(cifar10_dir, 50)
    assert [given.labels.count(place) for place in range(10)] == [5] * 10
    found = precision.run(Plan((1,), 60.0, 50, most=2), data_dir=cifar10_dir, clip=clip, threads=1)
    drift = {row["name"]: row for row in found["drift"]}
    beside = evaluate(clip, given, [load_templates("openai-80")]).result["models"][0]["accuracy"]
    assert drift["FP32 strict, contiguous"]["accuracy"] == beside > 0.7
    assert {row["images"] for row in drift.values()} == {50}
    assert drift["int8 dynamic, contiguous"]["cosine_min"] > 0.99
    assert drift["int8 dynamic, contiguous"]["accuracy"] > 0.7
    assert [row["observed"] for row in found["rows"] if row["mode"] == "int8 dynamic"] == ["int8"]
    assert found["settings"]["zero_shot"]
    text = report(found)
    assert [row["mode"] for row in best_rows(found)] == [m.name for m in MODES if m.asked != "tf32"]
    assert f"{100 * beside:.2f}%" in text.split("## Speed")[0]


# The page and the command


def committed() -> dict[str, Any]:
    return read(ROOT / "reports" / "clip-precision" / "precision.json")


def test_a_substituted_cell_is_called_by_what_it_did_and_trained_weights_are_said() -> None:
    found = committed()
    for row in found["rows"]:
        if row["mode"] == "BF16":
            row |= {"observed": "float32", "substituted": True}
    found["encoder"] |= {"weights": "RN50.pt", "trained": True}
    text = report(found)
    assert "**Substituted.** BF16, contiguous was asked for bfloat16 and computed in float32" in text
    assert "| float32 (asked: BF16, contiguous) | float32 |" in text
    assert "| BF16, contiguous |" not in text
    assert "random" not in text.split("## Drift")[0]


def test_without_drift_or_large_batches_there_is_still_a_report(tmp_path: Path) -> None:
    found = committed() | {"drift": [], "between": None}
    for row in found["rows"][10:]:
        row["reason"] = "its first pass found no time"
    assert write(found, tmp_path) == tmp_path / REPORT
    text = (tmp_path / REPORT).read_text()
    assert "FP32 strict, contiguous at batch 8 (its first pass found no time); " in text
    assert text.endswith("## Drift\n\nNot measured: the time was too short.\n")
    assert read(tmp_path / "precision.json") == found
    (tmp_path / "precision.json").write_text(json.dumps({"benchmark": "train"}))
    with pytest.raises(InputError, match="Measure it again: diffvit clip precision"):
        read(tmp_path / "precision.json")
    assert (tmp_path / PLOT).read_bytes() == plot(found)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--batch-sizes", "1,many"], "--batch-sizes: must be whole numbers with commas (found '1,many')."),
        (["--batch-sizes", "0"], "--batch-sizes: must be from 1 to 4096 (found 0)."),
        (["--budget", "nan"], "--budget: must be at least 1 second (found nan)."),
        (["--images", "1"], "--images: must be from 2 to 10000 (found 1)."),
        (["--model", "ViT-B-23"], "--model: "),
        (["--device", "tpu"], "--device: not a value it takes (tpu vs auto, cpu, cuda)"),
    ],
)
def test_bad_flags_are_usage_errors(arguments: list[str], line: str, tmp_path: Path, capsys: Captured) -> None:
    assert run(["clip", "precision", *arguments, "--out", str(tmp_path / "out"), "--quiet"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {line}")
    assert not (tmp_path / "out").exists()


def test_the_command_keeps_to_its_budget_and_writes_its_files(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "random_rn50", lambda _: small(224))
    short = ["clip", "precision", "--batch-sizes", "1", "--budget", "2", "--images", "2"]
    short += ["--threads", "1", "--quiet", "--json"]
    assert run([*short, "--out", str(tmp_path / "out")]) == 0
    found = read(tmp_path / "out" / "precision.json")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["report"] == str(tmp_path / "out" / REPORT)
    assert {(row["mode"], row["layout"]) for row in found["rows"]} == {
        (mode.name, layout) for mode in MODES if mode.asked not in ("tf32", "int8") for layout in FORMATS
    } | {("int8 dynamic", "contiguous")}
    strict = next(row for row in found["rows"] if row["name"] == "FP32 strict, contiguous")
    assert (strict["reason"], strict["observed"]) == ("", "float32")
    assert found["seconds"] < 6, "a pass in float16 may end late, once"
    assert (tmp_path / "out" / REPORT).read_text() == report(found)
    nothing = {"rows": [{"reason": "its first pass found no time"}], "drift": []}
    monkeypatch.setattr(precision, "run", lambda *given, **more: nothing)
    assert run([*short, "--out", str(tmp_path / "none")]) == 2
    assert "--budget: 2 seconds were too short to time a single pass." in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
