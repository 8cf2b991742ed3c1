"""A PostgreSQL of Debian's package, started on a free port for a test, and gone after it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_INSTALL = "apt-get install postgresql"


def programs() -> Path | None:
    """The folder with initdb and pg_ctl, the newest; None where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    return found[-1].parent if found else None


def installed() -> Path:
    """The programs; Debian's package is installed where that is allowed."""
    if programs() is None and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        given = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], env=given, check=False, **quiet)
        subprocess.run(["apt-get", "install", "-y", "-qq", "postgresql"], env=given, check=False, **quiet)
    found = programs()
    assert found is not None, f"PostgreSQL is not installed: {_INSTALL}"
    return found


@contextmanager
def database() -> Iterator[str]:
    """The URL of an empty database."""
    folder, port = Path(tempfile.mkdtemp(prefix="diffvit-pg-")), free_port()
    user = "postgres" if os.geteuid() == 0 else ""  # which refuses to run as root
    if user:
        shutil.chown(folder, user)
    run = ["runuser", "-u", user, "--"] if user else []
    binaries, data = installed(), folder / "data"
    try:
        subprocess.run(
            [*run, binaries / "initdb", "-D", data, "-A", "trust", "-U", "diffvit", "--no-sync"],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=folder,
        )
        options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c max_connections=100"
        start = [*run, binaries / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start"]
        subprocess.run(start, check=True, stdout=subprocess.DEVNULL, cwd=folder)
        yield f"postgresql+psycopg://diffvit@127.0.0.1:{port}/postgres"
    finally:
        stop = [*run, binaries / "pg_ctl", "-D", data, "-m", "immediate", "stop"]
        subprocess.run(stop, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
