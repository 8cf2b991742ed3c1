from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import diffvit
from diffvit import weights
from diffvit.cli.main import run

CLASSIFIERS = {
    name: entry
    for name, entry in weights.registry().items()
    if entry["data"].startswith("CIFAR-10") and name != "cifar10-clip"  # no classifier: below
}


@pytest.mark.system
@pytest.mark.cifar10
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_packaged_model_repeats_the_registered_accuracy(name: str, cifar10_named: Callable[[str], Path]) -> None:
    entry = CLASSIFIERS[name]
    # Without instructions for bfloat16 a processor takes minutes for a model that was scored in it; in float32 seconds.
    rounded = torch.cpu._is_avx512_bf16_supported()
    precision = "auto" if rounded else "fp32"
    found = diffvit.evaluate(name, data_dir=cifar10_named(entry["data"]), device="cpu", precision=precision)
    assert found["data"] == entry["data"]
    # Another processor sums in another order: an image or two on the edge may fall to the other side; some more do in
    # the other precision.
    assert found["accuracy"] == pytest.approx(entry["test_accuracy"], abs=5e-4 if rounded else 1.5e-3)


@pytest.mark.system
@pytest.mark.cifar10
def test_the_packaged_clip_repeats_its_accuracy_zero_shot(
    cifar10_named: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    registered = weights.registry()["cifar10-clip"]
    place = cifar10_named(registered["data"])
    asked = ["clip", "evaluate", "cifar10", "--model", "cifar10-clip", "--data-dir", str(place), "--json"]
    assert run(asked) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    (figures,) = found["models"]
    assert figures["images"] == 10_000
    assert figures["accuracy"] == pytest.approx(registered["test_accuracy"], abs=5e-4)
    assert figures["accuracy"] > 0.7
