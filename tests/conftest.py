"""What every test stands on: shape checks, one thread, timm beside a CPU build of torch, and the real data."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Annotated shapes are enforced while testing and never at run time (the checks clash with torch.compile).
for _name in ("models", "kernels", "data", "hub", "attention", "clip"):
    install_import_hook(f"diffvit.{_name}", "beartype.beartype")

_NUMBERS = count()


def pytest_collection() -> None:
    """One worker per core; the tests import timm directly. Where workers are started, xdist keeps this from running."""
    import torch

    from diffvit.hub.libraries import import_torchvision

    torch.set_num_threads(1)
    import_torchvision()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect, not skip, what this machine lacks the means for: real CIFAR-10, or a processor and a compiler."""
    import torch

    compiled = torch.cpu._is_avx512_bf16_supported() and any(map(shutil.which, ("cc", "gcc", "clang")))
    lacking = {"cifar10": not os.environ.get("DIFFVIT_DATA"), "native": not compiled}
    left = [item for item in items if any(lacks and item.get_closest_marker(name) for name, lacks in lacking.items())]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


@pytest.fixture(scope="session", autouse=True)
def _outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The DIFFVIT_ variables that the suite was started with, hidden from every fixture and test; and a cache to spare.

    For the whole session, because a fixture of module scope is made before any fixture of function scope.
    """
    given = {name: value for name, value in os.environ.items() if name.startswith("DIFFVIT_")}
    with pytest.MonkeyPatch.context() as patch:
        for name in given:
            patch.delenv(name)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield given


@pytest.fixture(scope="session")
def cifar10_dir(_outside: dict[str, str]) -> Path:
    """The folder that DIFFVIT_DATA names; only tests marked cifar10 may ask for it."""
    return Path(_outside["DIFFVIT_DATA"])


@pytest.fixture(scope="session")
def cifar10_named(cifar10_dir: Path) -> Callable[[str], Path]:
    """From the name of a content, "CIFAR-10" or "CIFAR-10 (JPEG)", to the folder it lies in: that one, or beside it."""

    from diffvit.data import cifar10

    @cache
    def place_of(name: str) -> Path:
        for place in (cifar10_dir, cifar10_dir / "official", cifar10_dir.parent):
            found = cifar10.find(place)
            if found and cifar10.load(found, "test").name == name:
                return place
        pytest.fail(f"{name} is neither in {cifar10_dir} nor beside it")

    return place_of


@pytest.fixture(autouse=True)
def _private_environment(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, _outside: dict[str, str]
) -> None:
    """A cache of its own for each test; those marked cifar10 see where the real data is, and share what they decode."""
    if request.node.get_closest_marker("native") is not None:
        from diffvit.kernels import library

        assert library.kernels() is not None, library.why_not()  # the means are there, so a fault is a fault
    if request.node.get_closest_marker("cifar10") is not None:
        monkeypatch.setenv("DIFFVIT_DATA", _outside["DIFFVIT_DATA"])
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", f"{os.environ['XDG_CACHE_HOME']}/{next(_NUMBERS)}")
