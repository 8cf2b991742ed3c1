"""Where a study's trials are kept: a journal file on one machine, or a database across machines."""

from __future__ import annotations

import fcntl
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffvit.errors import EnvironmentFault

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

_OPENINGS = 6  # of a database, while others make its tables
_HINT = "Name a file, or a database as in postgresql+psycopg://user@host/name."


class FileLock:
    """A lock that goes with the process, however it ends; and a journal cut short by a kill is made whole first.

    Optuna's own locks are files that a killed process leaves behind, and others then wait 30 seconds for nobody.
    """

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._handle: int | None = None

    def acquire(self) -> bool:
        """Wait until the journal is this process's."""
        handle = os.open(f"{self._journal}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(handle, fcntl.LOCK_EX)
        self._handle = handle
        self._drop_torn_line()
        return True

    def release(self) -> None:
        """Let others have it."""
        assert self._handle is not None
        os.close(self._handle)
        self._handle = None

    def _drop_torn_line(self) -> None:
        with self._journal.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - 2**16)
            file.seek(start)
            tail = file.read()
            if tail and not tail.endswith(b"\n"):
                file.truncate(start + tail.rfind(b"\n") + 1)


def optuna_library() -> Any:
    """Optuna, with nothing but its warnings told.

    Raises:
        EnvironmentFault: it is missing.
    """
    try:
        import optuna
    except ImportError as error:
        why = f"cannot be imported ({error})"
        raise EnvironmentFault("optuna", why, "Install it with: pip install 'diffvit[studies]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_storage(place: str) -> BaseStorage:
    """The storage at a URL, or in a journal file that is made where there is none.

    Args:
        place: a path, or a URL of SQLAlchemy's, which holds ``://``.

    Raises:
        EnvironmentFault: Optuna or the database's driver is missing, the database refuses, or the file cannot be
            written.
    """
    optuna = optuna_library()
    if "://" in place:
        return _database(place)
    from optuna.storages.journal import JournalFileBackend

    path = Path(place)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except (OSError, ValueError) as error:
        raise EnvironmentFault("--storage", f"cannot be written ({error})", _HINT) from None
    lock: Any = FileLock(path)
    return optuna.storages.JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def close_storage(storage: Any) -> None:
    """Close a database's connections; a journal has none."""
    storage.remove_session()
    engine = getattr(getattr(storage, "_backend", storage), "engine", None)
    if engine is not None:
        engine.dispose()


def _database(url: str) -> BaseStorage:
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

    class Closing(RDBStorage):
        """Of an opening that is refused, the connections are closed at once, not when memory is next cleared."""

        def __init__(self) -> None:
            try:
                super().__init__(url, engine_kwargs={"pool_pre_ping": True})
            except Exception:
                if hasattr(self, "scoped_session"):
                    close_storage(self)
                raise

    for attempt in range(_OPENINGS):
        try:
            return Closing()
        except (IntegrityError, ProgrammingError, OperationalError) as error:
            # Workers that begin together make the tables together, and all but one are refused.
            if attempt == _OPENINGS - 1:
                raise _refused(error) from None
            time.sleep(random.uniform(0.1, 0.5) * (attempt + 1))
        except (SQLAlchemyError, ImportError, ValueError) as error:
            raise _refused(error) from None
    raise AssertionError("unreachable")


def _refused(error: Exception) -> EnvironmentFault:
    return EnvironmentFault("--storage", f"cannot be opened ({' '.join(str(error).split())[:160]})", _HINT)


@contextmanager
def storage_faults() -> Iterator[None]:
    """One clear line for a storage that is lost on the way."""
    optuna = optuna_library()
    try:
        yield
    except optuna.exceptions.StorageInternalError as error:
        cause = error.__cause__ or error
        why = f"was lost ({' '.join(str(cause).split())[:160]})"
        hint = "What is done is kept. Start the study again when the storage is back."
        raise EnvironmentFault("--storage", why, hint) from error
