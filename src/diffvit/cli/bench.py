"""``diffvit bench``: the benchmarks of a clone of the project, which are not in the installed package."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from diffvit.errors import EnvironmentFault

ROOT = Path(__file__).parents[3]
WHERE = "They are in the project's repository: clone it, install it with pip install -e '.[bench]', and run this there."


def find(root: Path = ROOT) -> App:
    """The verbs of ``benchmarks/`` beside the package, or one that says where to get them."""
    if not (root / "benchmarks" / "command.py").is_file():
        return _elsewhere()
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return importlib.import_module("benchmarks.command").app


def _elsewhere() -> App:
    app = App(name="bench", help_format="plaintext", help_epilogue=f"The installed package has no benchmarks. {WHERE}")

    @app.default
    def missing(*words: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]) -> None:
        del words  # whatever was asked for
        raise EnvironmentFault("diffvit bench", "the installed package has no benchmarks", WHERE)

    return app


app = find()
