"""Fetching public data sets into the cache: https only, every file checked against its known size and SHA-256.

CIFAR-10 comes from the Parquet files of ``uoft-cs/cifar10`` at a fixed revision, or else from the official python
archive; both hold the official, lossless pixels.

``torch.hub.download_url_to_file`` is not used: it has no time-out and follows redirects away from https.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NamedTuple

from diffvit.errors import EnvironmentFault, check_choice
from diffvit.files import cache_folder, replacing, sha256_of

Progress = Callable[[int, int], None]


class RemoteFile(NamedTuple):
    """A public file whose content is known beforehand."""

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """Its file name."""
        return self.url.rpartition("/")[2]


_PARQUET = "https://huggingface.co/datasets/uoft-cs/cifar10/resolve/0b2714987fa478483af9968de7c934580d0bb9a2/plain_text"
_TEST = "841389e6f2d64f28bf17310e430aebac20ec3ba611a3c5e231dc93c645ce84de"
_TRAIN = "8428b53a88a11ac374111006708df51469e315a22ac6d66470afd9c78d2ae883"
_ARCHIVE = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
# Name -> the sets of files that each hold all of it, in the order in which they are tried.
SOURCES: dict[str, tuple[tuple[RemoteFile, ...], ...]] = {
    "cifar10": (
        (
            RemoteFile(f"{_PARQUET}/test-00000-of-00001.parquet", 23_940_850, _TEST),
            RemoteFile(f"{_PARQUET}/train-00000-of-00001.parquet", 119_705_255, _TRAIN),
        ),
        (RemoteFile("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", 170_498_071, _ARCHIVE),),
    )
}


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.startswith("https://"):
            raise urllib.error.URLError("redirected away from https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_https(url: str, timeout: float) -> BufferedIOBase:
    """Open a URL for reading; ``timeout`` (seconds) holds for connecting and for each read."""
    if not url.startswith("https://"):
        raise urllib.error.URLError("not an https address")
    request = urllib.request.Request(url, headers={"User-Agent": "diffvit"})
    return urllib.request.build_opener(_HttpsOnly).open(request, timeout=timeout)


def fetch(
    name: str,
    cache_dir: Path | None = None,
    *,
    timeout: float = 10.0,
    deadline: float | None = None,
    progress: Progress | None = None,
) -> Path:
    """Fetch a public data set into the cache; returns its folder.

    Files already there are checked, not fetched again. A set of files appears whole or not at all. The folder ``name``
    is made in ``cache_dir``, by default the user's cache; a host is given up after ``timeout`` seconds without an
    answer, the whole attempt after ``deadline`` seconds; ``progress`` is called with (bytes so far, bytes in all).
    EnvironmentFault where no source could be reached or gave the right bytes, the disk is full, or ``DIFFVIT_OFFLINE``
    is set.
    """
    check_choice("data set", name, SOURCES)
    folder = (cache_dir or cache_folder()) / name
    for files in SOURCES[name]:
        if all((path := folder / file.name).is_file() and sha256_of(path) == file.sha256 for file in files):
            return folder
    if os.environ.get("DIFFVIT_OFFLINE", "0") not in ("", "0"):
        raise EnvironmentFault(name, "not in the cache, and DIFFVIT_OFFLINE forbids fetching it")
    give_up = float("inf") if deadline is None else time.monotonic() + deadline
    failures = []
    for files in SOURCES[name]:
        try:
            _fetch_all(files, folder, timeout, give_up, progress)
            return folder
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{files[-1].url.split('/')[2]}: {_reason(error)}")
        if time.monotonic() > give_up:
            break
    hint = "Nothing was kept. Check the network, or put the files where --data-dir or DIFFVIT_DATA points."
    raise EnvironmentFault(name, f"cannot be fetched ({'; '.join(failures)})", hint)


def _fetch_all(
    files: Sequence[RemoteFile], folder: Path, timeout: float, give_up: float, progress: Progress | None
) -> None:
    done, total = 0, sum(file.size for file in files)
    with ExitStack() as stack:  # all files take their places together, after the last one has passed
        for file in files:
            temporary = stack.enter_context(replacing(folder / file.name))
            digest, count = hashlib.sha256(), 0
            with open_https(file.url, timeout) as source, temporary.open("wb") as target:
                while count <= file.size and (chunk := source.read1(2**18)):
                    digest.update(chunk)
                    target.write(chunk)
                    count, done = count + len(chunk), done + len(chunk)
                    if progress:
                        progress(min(done, total), total)
                    if time.monotonic() > give_up:
                        raise OSError(f"too slow, {done / 1e6:.0f} of {total / 1e6:.0f} MB in the time allowed")
            if count != file.size:
                found = f"{'over ' if count > file.size else ''}{count}"
                raise OSError(f"{file.name} has the wrong size, {found} vs {file.size} bytes")
            if digest.hexdigest() != file.sha256:
                found = f"{digest.hexdigest()[:12]}... vs {file.sha256[:12]}..."
                raise OSError(f"{file.name} has the wrong SHA-256, {found}")


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", None) or error
    why = getattr(cause, "strerror", None) or str(cause) or type(error).__name__
    code = f"HTTP {error.code} " if isinstance(error, urllib.error.HTTPError) else ""
    return code + " ".join(why.split())
