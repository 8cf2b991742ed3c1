from __future__ import annotations

import itertools
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from diffvit.clip import drift, observe
from diffvit.clip.encoder import Encoder, calibrated, encoder
from diffvit.clip.engine import Engine, engines, float32_products
from diffvit.clip.observe import Observer, kept_bits, observed_name, tensors_of
from diffvit.clip.precision import measure
from diffvit.clip.precision_pictures import Pictures, bicubic, pictures
from diffvit.clip.precision_settings import MODES, STRICT, Mode, Plan, modes_of
from diffvit.clip.timebox import Box, admit, boxed_rounds
from diffvit.errors import ConfigError, InputError

SIZE = 64


def small() -> Encoder:
    torch.manual_seed(0)
    visual = ModifiedResNet([1, 1, 1, 1], output_dim=16, heads=2, image_size=SIZE, width=8)
    return Encoder(calibrated(visual, torch.randn(4, 3, SIZE, SIZE)), "random (seed 0)", False)


def shown(count: int = 4) -> Pictures:
    return Pictures(torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)), "noise")


class Tick:
    """A clock that only moves when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def step(self, seconds: float) -> object:
        def run() -> None:
            self.now += seconds

        return run


# What is observed


def test_peak_activations_of_a_network_worked_out_by_hand() -> None:
    network = nn.Sequential(nn.Linear(10, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU(inplace=True), nn.Linear(50, 2))
    images = torch.randn(4, 10)
    with torch.no_grad(), Observer(tensors_of(network, images)) as seen:
        network(images)
    # The widest moment: the first linear layer's output beside its ReLU's; weights, views and the input do not count.
    assert seen.peak == 4 * (100 + 100) * 4
    assert seen.products == {"float32": 3}
    with torch.no_grad(), Observer(tensors_of(network, images)) as kept:
        first = network[0](images)
        second = network[2](first)
        second.relu_()
        del first
        network[4](second)
    assert kept.peak == 4 * (100 + 50) * 4


@pytest.mark.parametrize("mode", modes_of("cpu"), ids=lambda mode: mode.name)
def test_the_observed_precision_is_that_of_every_product(mode: Mode) -> None:
    engine = engines(small().visual, (mode,), "cpu")[1]
    seen = engine.observe(engine.prepare(shown().pixels))
    assert seen["asked"] == seen["observed"] == mode.asked
    assert not seen["substituted"]
    layers = [each for each in engine.model.modules() if isinstance(each, nn.Conv2d | nn.Linear)]
    assert set(seen["products"]) == {mode.asked}
    assert seen["products"][mode.asked] >= len(layers) - 1
    assert set(seen["kept_bits"][mode.asked].values()) == {observe.MANTISSA[mode.asked]}
    whole = sum(each.numel() * each.element_size() for each in engine.model.state_dict().values())
    assert seen["weight_bytes"] == whole


class Upcast(nn.Module):
    """An engine that quietly computes in another dtype and answers in the one it was asked for."""

    def __init__(self, visual: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.visual, self.dtype = visual, dtype

    def forward(self, images: Tensor) -> Tensor:
        return self.visual(images).to(self.dtype)


def test_a_substituted_dtype_is_caught() -> None:
    fake = Engine(Mode("FP16", "float16"), "contiguous", "cpu", Upcast(small().visual, torch.float16))
    assert fake(shown().pixels).dtype == torch.float16
    seen = fake.observe(shown().pixels)
    assert (seen["asked"], seen["observed"], seen["substituted"]) == ("float16", "float32", True)


def test_an_engine_that_drops_bits_behind_the_dtype_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = F.linear

    def rounded(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(x.bfloat16(), weight.bfloat16(), bias).to(x.dtype)

    with monkeypatch.context() as patch:
        patch.setattr(F, "linear", rounded)
        bits = kept_bits(torch.float32, "cpu")
    assert bits == {"convolution": 23, "matrix product": 7}
    assert observed_name({"float32": 5}, {"float32": bits}) == "float32+float32 of 7 bits"


def test_names_of_what_was_seen() -> None:
    both = {"convolution": 10, "matrix product": 10}
    assert observed_name({"float32": 5}, {"float32": both}) == "tf32"
    assert observed_name({"float16": 5}, {"float16": both}) == "float16"
    assert observed_name({"float16": 5, "float32": 1}, {}) == "float16+float32"
    assert observed_name({}, {}) == "none"


def test_strict_float32_switches_are_put_back() -> None:
    switch = torch.backends.mkldnn.conv  # pyright: ignore[reportAttributeAccessIssue]
    was = switch.fp32_precision
    with float32_products("tf32"):
        assert switch.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert switch.fp32_precision == was


def test_tf32_is_for_cuda_and_shares_the_float32_weights() -> None:
    assert "TF32" not in [mode.name for mode in modes_of("cpu")]
    assert modes_of("cuda") == MODES
    assert {mode.name: mode.weights for mode in MODES} == {
        **{"FP32 strict": "float32", "TF32": "float32", "FP16": "float16", "BF16": "bfloat16"},
        **{"autocast FP16": "float32", "autocast BF16": "float32"},
    }
    made = engines(small().visual, (STRICT, MODES[4]), "cpu")
    assert made[0].model is made[2].model


# Drift


def test_drift_figures_by_hand() -> None:
    weights = torch.eye(2, 4, dtype=torch.float64)
    reference = torch.tensor([[3.0, 1.0, 0, 0], [0.0, 2.0, 0, 0]])
    moved = torch.tensor([[1.0, 3.0, 0, 0], [0.0, 5.0, 0, 0]])
    found = drift.figures(moved, reference, weights)
    assert found["images"] == 2
    assert math.isclose(found["cosine_min"], 0.6)
    assert math.isclose(found["cosine_mean"], 0.8)
    assert math.isclose(found["logit_difference"], 100 * 2 / math.sqrt(10))
    assert found["agreement"] == 0.5
    beside = drift.between(reference, weights)
    assert math.isclose(beside["cosine_between"], 1 / math.sqrt(10))
    assert beside["classes_found"] == 2
    assert torch.allclose(drift.classifier(8).norm(dim=1), torch.ones(10, dtype=torch.float64))


# Time


def test_rounds_stay_in_their_box_and_the_dear_arm_has_its_least() -> None:
    clock = Tick()
    cost = {"quick": 1.0, "dear": 20.0}
    arms = {name: clock.step(seconds) for name, seconds in cost.items()}
    box = Box(0.0, 60.0, clock)
    seconds = boxed_rounds(arms, cost, box, least=2, most=15, wait=lambda: None)  # pyright: ignore[reportArgumentType]
    assert clock.now <= 60
    assert seconds["dear"] == [20.0, 20.0]
    assert 2 <= len(seconds["quick"]) <= 15


def test_an_arm_that_became_slow_does_not_break_the_box() -> None:
    clock, costs = Tick(), itertools.chain([1.0, 1.0], itertools.repeat(9.0))

    def slowing() -> None:
        clock.now += next(costs)

    seconds = boxed_rounds({"a": slowing}, {"a": 1.0}, Box(0.0, 15.0, clock), least=10, most=10)
    assert seconds == {"a": [1.0, 1.0, 9.0]}
    assert boxed_rounds({"a": slowing}, {"a": 99.0}, Box(clock.now, 15.0, clock), least=2, most=10) == {"a": []}


def test_the_reference_is_admitted_first_then_the_quick_ones() -> None:
    expected = {"slow": 9.0, "reference": 5.0, "quick": 1.0}
    assert admit(expected, 12.0, 2) == ["reference", "quick"]
    assert admit(expected, 11.0, 2, "reference") == ["reference"]
    assert admit(expected, 30.0, 2, "reference") == list(expected)
    assert admit(expected, 1.0, 2) == []


def test_everything_is_measured_where_there_is_time() -> None:
    plan = Plan((2, 1), 60.0, 4, most=3)
    result = measure(small(), shown(), plan, Box(time.perf_counter(), 60.0), device="cpu")
    assert len(result["rows"]) == 2 * 2 * len(modes_of("cpu"))
    assert [row["batch_size"] for row in result["rows"]] == [1] * 10 + [2] * 10
    assert not any(row["reason"] or row["substituted"] for row in result["rows"])
    assert {len(row["seconds"]) for row in result["rows"]} == {3}
    by_name = {row["name"]: row for row in result["drift"]}
    assert len(by_name) == 9, "all but the reference"
    assert by_name["FP32 strict, channels_last"]["cosine_min"] > 1 - 1e-10
    assert by_name["FP16, contiguous"]["cosine_min"] > 0.999
    assert by_name["BF16, contiguous"]["cosine_min"] > 0.99
    assert by_name["FP16, contiguous"]["cosine_min"] > by_name["BF16, contiguous"]["cosine_min"]
    floats, halves = (
        next(row for row in result["rows"] if row["mode"] == mode and row["batch_size"] == 2)
        for mode in ("FP32 strict", "FP16")
    )
    assert halves["weight_bytes"] < 0.55 * floats["weight_bytes"]
    # Not a half: the images in float16 are the pass's own, those in float32 were there before.
    assert halves["activation_bytes"] < 0.8 * floats["activation_bytes"]


def test_cells_without_time_are_named_not_guessed() -> None:
    clock = Tick()

    class Slow(nn.Module):
        """Ten seconds an image, by the test's clock."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 8, 3)

        def forward(self, images: Tensor) -> Tensor:
            clock.now += 10.0 * len(images)
            return self.layer(images).mean((2, 3))

    box = Box(0.0, 100.0, clock)
    result = measure(Encoder(Slow(), "slow", False), shown(2), Plan((1, 8), 100.0, 2), box, device="cpu")
    left_out = [row for row in result["rows"] if row["reason"]]
    assert {row["batch_size"] for row in result["rows"]} == {1, 8}
    assert [row for row in left_out if row["batch_size"] == 8] == result["rows"][10:]
    assert all("seconds" not in row for row in left_out)
    assert clock.now <= 120, "no pass starts that is known to end late"


# Pictures and weights


def test_a_folder_of_images_is_decoded_and_squared(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    (tmp_path / "inner").mkdir()
    for name in ("b.png", "inner/a.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    found = pictures(tmp_path, 8, size=32)
    assert found.name == f"folder {tmp_path.name}"
    assert found.pixels.shape == (2, 3, 32, 32)
    square = bicubic(pixels.transpose(2, 0, 1), 32)
    assert torch.allclose(found.pixels[0, 0], (torch.from_numpy(square[0]) / 255 - 0.48145466) / 0.26862954)
    assert found.batch(3).shape[0] == 3


def test_without_data_the_shapes_are_drawn_and_a_wrong_folder_is_refused(tmp_path: Path) -> None:
    assert pictures(None, 3, size=32).name.startswith("shapes (")
    with pytest.raises(InputError, match="no such folder"):
        pictures(tmp_path / "nowhere", 3)
    with pytest.raises(InputError, match="holds neither CIFAR-10 nor images"):
        pictures(tmp_path, 3)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(InputError, match=r"broken\.png: cannot be decoded"):
        pictures(tmp_path, 3)


@pytest.mark.cifar10
def test_cifar10_is_found_and_enlarged(cifar10_dir: Path) -> None:
    found = pictures(cifar10_dir, 4)
    assert found.pixels.shape == (4, 3, 224, 224)
    assert found.name.startswith("CIFAR-10")


def test_a_file_of_weights_goes_through_the_loader(tmp_path: Path) -> None:
    model = nn.Module()
    model.visual = small().visual.double()
    found = encoder(tmp_path / "RN50.pt", lambda path: model, torch.zeros(1, 3, SIZE, SIZE))
    assert found.weights == "RN50.pt"
    assert found.trained
    assert {each.dtype for each in found.visual.parameters()} == {torch.float32}
    with pytest.raises(ConfigError, match="--weights: nothing here can load it"):
        encoder(tmp_path / "RN50.pt", None, torch.zeros(1, 3, SIZE, SIZE))
