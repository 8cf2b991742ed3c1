"""The names of torchvision's operators, where its compiled ones belong to another build of torch."""

from __future__ import annotations

import sys
from importlib import import_module

import torch

_DEFINED: list[torch.library.Library] = []  # a library's definitions end with the object


def import_torchvision() -> None:
    """Import torchvision also where its compiled operators belong to another build of torch.

    timm and transformers import it. PyPI's torchvision is built for CUDA; beside a CPU build of torch its operators do
    not load, and the import fails on the first of them. The Python parts, which are all that is needed, work once the
    operators' names exist.

    Raises:
        ImportError: there is no torchvision.
        RuntimeError: it fails for another reason.
    """
    try:
        import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _DEFINED.append(library)
        import_module("torchvision")
