from __future__ import annotations

from pathlib import Path

import pytest

import diffvit
from diffvit import weights


@pytest.mark.system
@pytest.mark.cifar10
def test_packaged_models_repeat_the_registered_accuracy(cifar10_dir: Path) -> None:
    for name, entry in weights.registry().items():
        if not entry["data"].startswith("CIFAR-10"):
            continue
        found = diffvit.evaluate(name, data_dir=cifar10_dir, device="cpu")
        assert found["data"] == entry["data"]
        # Another processor sums in another order: an image or two on the edge may fall to the other side.
        assert found["accuracy"] == pytest.approx(entry["test_accuracy"], abs=5e-4)
