"""The notebook of docs/attention.ipynb, cell by cell; of the images that it scores last, a sixteenth."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

NOTEBOOK = Path(__file__).parents[2] / "docs" / "attention.ipynb"


@pytest.mark.system
@pytest.mark.cifar10
def test_every_cell_runs_and_ends_with_what_the_notebook_shows(
    cifar10_named: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFVIT_DATA", str(cifar10_named("CIFAR-10 (JPEG)")))
    space: dict[str, Any] = {}
    shown = 0
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]).replace("(64)", "(4)").replace("=64", "=4"))
        last = tree.body.pop()
        assert isinstance(last, ast.Expr)
        exec(compile(tree, "cell", "exec"), space)
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), space)
        (kept,) = cell["outputs"]
        assert isinstance(value, Figure) == ("image/png" in kept["data"])
        shown += isinstance(value, Figure)
        if isinstance(value, list):  # the labels of the images
            assert repr(value) == "".join(kept["data"]["text/plain"])
    assert shown >= 6
    assert len(space["scores"].curves) > 0
    assert space["scores"].rows[0]["images"] == 4
