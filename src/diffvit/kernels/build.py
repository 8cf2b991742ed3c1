"""The C files beside this one, compiled by the system's own compiler when they are first wanted, and kept."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path

from diffvit.files import cache_folder, replacing

HERE = Path(__file__).parent
FLAGS = (
    *("-O3", "-std=gnu11", "-shared", "-fPIC", "-fno-math-errno"),
    *("-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16"),
)
_SECONDS = 120


class Unavailable(Exception):
    """Why there are no kernels here, in words."""


def compiler() -> list[str]:
    """What ``CC`` names, else ``cc``, ``gcc`` or ``clang``.

    Raises:
        Unavailable: none of them is there.
    """
    named = shlex.split(os.environ.get("CC", ""))
    for command in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(command[0]):
            return command
    raise Unavailable(f"no C compiler ({named[0] if named else 'cc, gcc or clang'})")


def built() -> Path:
    """The shared library: the one kept from before, or a new one.

    It is kept beside its sources as Python keeps what it compiles, or, where that folder cannot be written, in the
    user's cache folder; its name changes with the sources and the flags.

    Raises:
        Unavailable: there is no compiler, it fails, or neither folder can be written.
    """
    sources = sorted([*HERE.glob("*.c"), *HERE.glob("*.h")])
    content = b"".join(path.name.encode() + path.read_bytes() for path in sources) + " ".join(FLAGS).encode()
    name = f"kernels-{hashlib.sha256(content).hexdigest()[:16]}.so"
    places = [HERE / "__pycache__" / name, cache_folder() / "native" / name]
    for place in places:
        if place.is_file():
            return place
    command = compiler()
    for place in places:
        try:
            with replacing(place) as temporary:
                _compile(command, temporary)
        except OSError:
            continue
        return place
    raise Unavailable(f"neither {places[0].parent} nor {places[1].parent} can be written")


def _compile(command: list[str], to: Path) -> None:
    arguments = [*command, *FLAGS, *map(str, sorted(HERE.glob("*.c"))), "-o", str(to)]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]} does not work ({error})") from None
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), f"exit code {done.returncode}")
        raise Unavailable(f"{command[0]} fails ({first.strip()})")
