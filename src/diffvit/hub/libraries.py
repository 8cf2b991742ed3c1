"""Importing timm, also beside a CPU build of torch, and asking public hubs for weights without long waits offline."""

from __future__ import annotations

import os
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies

import torch

from diffvit.errors import EnvironmentFault

INSTALL = "Install it with pip install 'diffvit[pretrained]'."
_DEFINED: list[torch.library.Library] = []  # a library's definitions end with the object
_ONE_AT_A_TIME = threading.RLock()


def library(name: str, hint: str = INSTALL) -> ModuleType:
    """The module ``timm`` or ``open_clip``; EnvironmentFault where it is missing, or does not work here."""
    try:
        with quietly():
            import_torchvision()
            return import_module(name)
    except (ImportError, RuntimeError) as error:
        raise EnvironmentFault(name, f"cannot be imported ({reason(error)})", hint) from None


def import_torchvision() -> None:
    """Import torchvision also where its compiled operators belong to another build of torch.

    timm and transformers import it. PyPI's torchvision is built for CUDA; beside a CPU build of torch its operators do
    not load, and the import fails on the first of them. The Python parts, which are all that is needed, work once the
    operators' names exist.
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


@contextmanager
def quietly() -> Iterator[None]:
    """Ignore the warnings of other libraries.

    The filters of warnings, and what :func:`cache_where_offline` sets, belong to all threads: one at a time is in here.
    """
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def forbidden() -> bool:
    """Whether ``DIFFVIT_OFFLINE`` forbids fetching anything."""
    return os.environ.get("DIFFVIT_OFFLINE", "0") not in ("", "0")


@contextmanager
def cache_where_offline() -> Iterator[None]:
    """Where the hub's address is unknown, its library reads its cache at once; else it would try for a minute.

    ``DIFFVIT_OFFLINE`` does the same without looking.
    """
    hub: Any = sys.modules.get("huggingface_hub.constants")
    host = urlparse(getattr(hub, "ENDPOINT", "")).hostname
    was = getattr(hub, "HF_HUB_OFFLINE", None)
    if host is None or was is None or (getproxies() and not forbidden()):  # a proxy looks the address up itself
        yield
        return
    if forbidden() or not _known(host):
        hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = was


def _known(host: str) -> bool:
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def reason(error: Exception) -> str:
    """The kind of an error and its first sentence, at most 160 characters."""
    said = " ".join(str(error).split()).split(". ")[0][:160]
    return f"{type(error).__name__}: {said}"
