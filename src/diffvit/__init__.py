"""diffvit: train, compare and look inside Vision Transformers and Differential Vision Transformers.

The names people import. Each is loaded on first use, so that ``import diffvit`` and the command line stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffvit.config import Config as Config
    from diffvit.kernels import accelerate as accelerate
    from diffvit.models.vit import VisionTransformer as VisionTransformer
    from diffvit.models.vit import create_model as create_model
    from diffvit.registry import register_attention as register_attention
    from diffvit.registry import register_augmentation as register_augmentation
    from diffvit.registry import register_position as register_position
    from diffvit.registry import register_source as register_source
    from diffvit.reporting.render import Report as Report
    from diffvit.reporting.render import compare as compare
    from diffvit.training.evaluate import Predictions as Predictions
    from diffvit.training.evaluate import evaluate as evaluate
    from diffvit.training.evaluate import predict as predict
    from diffvit.training.load import load as load
    from diffvit.training.loop import train as train
    from diffvit.training.run_dir import RunDir as RunDir

__version__ = "0.1.0"

_HOME = {
    "Config": "diffvit.config",
    "accelerate": "diffvit.kernels",
    "VisionTransformer": "diffvit.models.vit",
    "create_model": "diffvit.models.vit",
    "register_attention": "diffvit.registry",
    "register_augmentation": "diffvit.registry",
    "register_position": "diffvit.registry",
    "register_source": "diffvit.registry",
    "Report": "diffvit.reporting.render",
    "compare": "diffvit.reporting.render",
    "evaluate": "diffvit.training.evaluate",
    "load": "diffvit.training.load",
    "train": "diffvit.training.loop",
    "Predictions": "diffvit.training.evaluate",
    "predict": "diffvit.training.evaluate",
    "RunDir": "diffvit.training.run_dir",
}
__all__ = ["__version__", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'diffvit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
