"""The run folder: the only output of training and the only input of reporting. Reading one needs no torch."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from diffvit.config import WHEREABOUTS, ClipConfig, Config, differences, parse, read_yaml, to_yaml
from diffvit.errors import ConfigError, DiffvitError, InputError, RunBusyError
from diffvit.files import disk_faults, replace, to_json
from diffvit.registry import MEMORY

_LOCK = ".lock"
_ATTEMPTS = 100  # to lock, while other starts come and are refused
# What a run killed before it wrote config.yaml leaves; another may begin there.
_BEGINNING = {_LOCK, "checkpoints", ".config.yaml.tmp"}


@contextlib.contextmanager
def config_faults() -> Iterator[None]:
    """A config of a run that cannot be read is a damaged file, an InputError, and not wrong usage, a ConfigError."""
    try:
        yield
    except ConfigError as error:
        raise InputError(error.what, error.why, error.hint) from None


def _holder(handle: int) -> str:
    """Number of the process that a lock file names."""
    return os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"


class RunDir:
    """One training run on disk.

    ``config.yaml`` (what was asked), ``environment.json`` (what it ran on), ``metrics.jsonl`` (a row per epoch),
    ``checkpoints/``, and once finished ``model.safetensors``, ``evaluation.json`` and, last of all, ``result.json``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    @classmethod
    def create(cls, path: Path | str) -> RunDir:
        """Make the folder, which :meth:`begin` then makes a run; InputError where something is there already."""
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise InputError(str(path), "is a file, not a folder for a run", "Give another --out.")
        if path.is_dir() and any(entry.name not in _BEGINNING for entry in path.iterdir()):
            why = "already holds a run" if (path / "config.yaml").exists() else "is not empty"
            hint = f"Continue it with: {cls(path).resume_command}, or give another --out"
            hint += " (in Python: resume=True, overwrite=True, or another out=)."
            raise InputError(str(path), why, hint if "run" in why else "Give another --out.")
        with disk_faults(path):
            path.mkdir(parents=True, exist_ok=True)
        return cls(path)

    @classmethod
    def open(cls, path: Path | str) -> RunDir:
        """An existing run; InputError where there is no such folder, or one without config.yaml."""
        path = Path(path)
        if not path.is_dir():
            raise InputError(str(path), "no such run folder" if not path.exists() else "is a file, not a run folder")
        if not (path / "config.yaml").is_file():
            why = "is not a run folder (it has no config.yaml)"
            raise InputError(str(path), why, "Start a run with: diffvit train")
        return cls(path)

    @property
    def is_run(self) -> bool:
        """Whether a run began in the folder: config.yaml is written when it does."""
        return (self.path / "config.yaml").is_file()

    def clear(self) -> None:
        """Remove the run in the folder, config.yaml last, so that it is a run until it is gone; the lock stays."""
        self.__dict__.pop("config", None)
        with disk_faults(self.path):
            for entry in sorted(self.path.iterdir(), key=lambda entry: entry.name == "config.yaml"):
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                elif entry.name != _LOCK:
                    entry.unlink()

    @property
    def settings(self) -> dict[str, Any]:
        """The plain values of config.yaml; InputError where it is damaged or empty."""
        file = self.path / "config.yaml"
        with config_faults():
            values = read_yaml(file)
        if not values:
            raise InputError(str(file), "is empty: it is damaged", "Restore it, or train again into another folder.")
        return values

    @cached_property
    def config(self) -> Config:
        """The resolved config; InputError where config.yaml is damaged."""
        with config_faults():
            return parse(self.settings, str(self.path / "config.yaml"))

    @property
    def resume_command(self) -> str:
        """The command that resumes the run."""
        try:
            clip = isinstance(self.config, ClipConfig)
            if self.config.data == MEMORY:
                return f"diffvit.train(config, data=..., out={str(self.path)!r}, resume=True) in Python"
        except DiffvitError:
            clip = False  # there is no config, or a damaged one: no command can take it up
        return f"diffvit {'clip ' if clip else ''}train --resume {shlex.quote(str(self.path))}"

    def refuse_other_settings(self, asked: Config) -> None:
        """ConfigError where the run began with other settings than are asked for; those left to the data aside."""
        given = self.config.data == MEMORY
        left = {"validation_size"} - asked.model_fields_set | ({"data"} if given else set())
        left |= {f"model.{name}" for name in {"num_classes", "in_chans"} - asked.model.model_fields_set}
        # The precision is compared as resolved, with the environment.
        if found := differences(self.config, asked, ignore=WHEREABOUTS | left | {"precision"}):
            why = f"the {'finished ' * self.finished}run began with other settings"
            hint = "Nothing was changed; leave them out, or give another --out (in Python also overwrite=True)."
            more = asked.epochs - self.config.epochs
            if self.finished and more > 0 and not given:
                hint += f" For more epochs: diffvit train --continue {shlex.quote(str(self.path))} --epochs {more}"
            raise ConfigError(str(self.path), f"{why} (began with vs asked for: {', '.join(found)})", hint)

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, hardware, threads, commit, data, classes, channel statistics."""
        return self._read_json("environment.json")

    @property
    def result(self) -> dict[str, Any]:
        """The figures of the finished run; InputError where it is not finished."""
        if not self.finished:
            hint = f"Finish it with: {self.resume_command}"
            raise InputError(str(self.path), "the run is not finished (no result.json)", hint)
        return self._read_json("result.json")

    @property
    def finished(self) -> bool:
        """Whether the run is complete: result.json is written last."""
        return (self.path / "result.json").is_file()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The epochs' rows, oldest first, without a last line cut short by a kill; InputError for other damage."""
        rows, lines = [], self._metric_lines()
        for number, line in enumerate(lines, 1):
            try:
                rows.append(json.loads(line))
            except ValueError:
                if number == len(lines) and not line.endswith(b"\n"):
                    break
                raise InputError(str(self._metrics_file), f"line {number} is damaged") from None
        return rows

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder; the lock is released when the process ends, however it ends.

        Where an exception ends it before config.yaml is written, the folder and the parents that it made are removed.
        RunBusyError where another process holds it, EnvironmentFault where the disk refuses.
        """
        file, places = self.path / _LOCK, [self.path, *self.path.parents]
        made = [path for path in (file, *places) if not path.exists()]
        try:
            with disk_faults(self.path):
                handle = self._locked()
            try:
                yield
            except BaseException:
                if file in made:
                    file.unlink(missing_ok=True)  # while it is held
                raise
            finally:
                os.close(handle)
        finally:
            for place in (place for place in places if place in made):
                with contextlib.suppress(OSError):  # a folder with a run in it, or with another's lock, is not empty
                    place.rmdir()

    @property
    def locked_by(self) -> str | None:
        """Number of the process that holds the folder; None where nobody does."""
        try:
            handle = os.open(self.path / _LOCK, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder(handle)
        finally:
            os.close(handle)
        return None

    def _locked(self) -> int:
        """The handle of the lock file, made where need be, and locked.

        A start that is refused removes the file and the folder that it made. So what was opened may be gone once it is
        locked, and another process may lock a new file: then this one begins again.
        """
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as closing:
                self.path.mkdir(parents=True, exist_ok=True)
                handle = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
                closing.callback(os.close, handle)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    why = f"another process is training here (process {_holder(handle)})"
                    raise RunBusyError(str(self.path), why, "Wait for it to end, or give another --out.") from None
                if os.path.samestat(os.fstat(handle), (self.path / _LOCK).stat()):
                    os.truncate(handle, 0)
                    os.pwrite(handle, str(os.getpid()).encode(), 0)
                    closing.pop_all()
                    return handle
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def begin(self, config: Config, environment: Mapping[str, Any]) -> None:
        """Write config.yaml, which makes the folder a run, and environment.json; a run that is there is removed."""
        if self.is_run:
            self.clear()
        self._write("config.yaml", to_yaml(config).encode(), "Nothing was started; free disk space and start again.")
        self.write_json("environment.json", environment)

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write one of the JSON files atomically."""
        self._write(name, to_json(dict(values)))

    def append_row(self, row: Mapping[str, Any]) -> None:
        """Add an epoch's row and wait until it is on the disk; on a full disk no part of it stays."""
        self._write(self._metrics_file.name, b"".join(self._metric_lines()) + to_json(dict(row), indent=None))

    def truncate_rows(self, count: int) -> None:
        """Keep the first ``count`` rows; InputError where there are fewer."""
        lines = [line for line in self._metric_lines() if line.endswith(b"\n")]
        if len(lines) < count:
            why = f"has lost rows ({len(lines)} epochs vs {count} in the checkpoint)"
            raise InputError(str(self._metrics_file), why, "Restore that file; the checkpoints are intact.")
        if lines[:count] != self._metric_lines():
            self._write(self._metrics_file.name, b"".join(lines[:count]))

    @property
    def kept(self) -> str:
        """What to tell a user whose run stops because of the machine."""
        return f"The last checkpoint is kept; free disk space, then: {self.resume_command}"

    @property
    def _metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    def _metric_lines(self) -> list[bytes]:
        try:
            return self._metrics_file.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return []

    def _write(self, name: str, content: bytes, kept: str | None = None) -> None:
        with disk_faults(self.path / name, kept or self.kept):
            replace(self.path / name, content)

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            values = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise InputError(str(self.path), f"has no {name}") from None
        except (OSError, ValueError) as error:
            raise InputError(str(path), f"cannot be read as JSON ({error.__class__.__name__})") from None
        if not isinstance(values, dict):
            raise InputError(str(path), "does not hold a JSON object")
        return values
