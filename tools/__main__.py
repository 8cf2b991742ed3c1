"""Writes, or checks, every generated document from committed results: ``python -m tools [--check] [NAME ...]``.

A module of this folder that has ``documents(root)`` makes some of them: a dict from the file, relative to the project's
root, to what it must contain (text, bytes, or a :class:`tools.pages.Picture`). One module after the other is asked and
its files are written, so several may each make a part of one page.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import tools
from diffvit.errors import ConfigError, DiffvitError, did_you_mean
from tools.pages import ROOT, update


def makers(names: Sequence[str] = ()) -> dict[str, ModuleType]:
    """The modules that make documents, by name; those named, or all.

    Raises:
        ConfigError: a name that is none of them.
    """
    every = (each.name for each in pkgutil.iter_modules(tools.__path__) if each.name != "__main__")
    modules = {name: importlib.import_module(f"tools.{name}") for name in every}
    found = {name: module for name, module in modules.items() if hasattr(module, "documents")}
    for name in names:
        if name not in found:
            why = f"makes no documents (have {', '.join(found)});{did_you_mean(name, found)}"
            raise ConfigError(name, why.rstrip(";"))
    return {name: module for name, module in found.items() if not names or name in names}


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """The command; returns its exit code: 0, 1 where a check found a difference, else that of the error."""
    parser = argparse.ArgumentParser(prog="python -m tools", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file differs")
    parser.add_argument("names", nargs="*", metavar="NAME", help="modules of tools/; all of them where none is named")
    given = parser.parse_args(arguments)
    differed = False
    try:
        for name, module in makers(given.names).items():
            for line in update(module.documents(root), name, root, check=given.check):
                differed = True
                print(f"out of date: {line}. Run: make docs" if given.check else f"updated: {line}")
    except DiffvitError as error:
        print(f"error: {error.line}", file=sys.stderr)
        return error.exit_code
    return 1 if differed and given.check else 0


if __name__ == "__main__":
    sys.exit(main())
