"""What every test stands on: shape checks, one thread, timm beside a CPU build of torch, and the real data."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Annotated shapes are enforced while testing and never at run time (the checks clash with torch.compile).
install_import_hook("diffvit.models", "beartype.beartype")
install_import_hook("diffvit.data", "beartype.beartype")

import torch  # noqa: E402  (the hook must stand before the first import of the package)

torch.set_num_threads(1)  # the suite runs one worker per core


def _import_torchvision() -> None:
    """Import torchvision also where its compiled operators belong to another build of torch.

    PyPI's torchvision is built for CUDA; beside a CPU build of torch its operators do not load and the import fails on
    the first of them. timm needs only its Python parts, which work once the operators' names exist.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEEP_ALIVE.append(library)
        import torchvision
    assert torchvision.__version__


_KEEP_ALIVE: list[object] = []  # a torch library's definitions end with the object
_import_torchvision()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect, not skip, the tests on real CIFAR-10 where nobody said where it is."""
    if os.environ.get("DIFFVIT_DATA"):
        return
    real = [item for item in items if item.get_closest_marker("cifar10")]
    if real:
        config.hook.pytest_deselected(items=real)
        items[:] = [item for item in items if item not in real]


@pytest.fixture(scope="session")
def cifar10_dir() -> Path:
    """The folder that DIFFVIT_DATA names; only tests marked cifar10 may ask for it."""
    return Path(os.environ["DIFFVIT_DATA"])


@pytest.fixture(autouse=True)
def _private_environment(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No test sees the user's cache or settings; only tests marked cifar10 see where the real data is."""
    real = request.node.get_closest_marker("cifar10") is not None
    for name in [name for name in os.environ if name.startswith("DIFFVIT_")]:
        if not (real and name == "DIFFVIT_DATA"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
