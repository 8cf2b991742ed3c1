"""Asking a public hub for weights: at once from its cache where there is no network, and failures in one line."""

from __future__ import annotations

import os
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies


def forbidden() -> bool:
    """Whether ``DIFFVIT_OFFLINE`` forbids fetching anything."""
    return os.environ.get("DIFFVIT_OFFLINE", "0") not in ("", "0")


_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def quietly() -> Iterator[None]:
    """Ignore the warnings of other libraries.

    The filters of warnings, and what :func:`cache_where_offline` sets, belong to all threads: one at a time is in here.
    """
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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
    """The kind of an error and the first sentence that it says."""
    said = " ".join(str(error).split()).split(". ")[0][:160]
    return f"{type(error).__name__}: {said}"
