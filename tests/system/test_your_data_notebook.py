"""The notebook of docs/your-data.ipynb, cell by cell, on real digits; every kind of data set, without network."""

import ast
import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from diffvit.training.run_dir import RunDir

NOTEBOOK = Path(__file__).parents[2] / "docs" / "your-data.ipynb"


@pytest.mark.system
def test_every_cell_runs_and_the_digits_are_learnt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    space, values = {}, []
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == []
        tree = ast.parse("".join(cell["source"]))
        last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "cell", "exec"), space)
        values.append(last and eval(compile(last, "cell", "eval"), space))
    assert RunDir.open("runs/digits").result["test_accuracy"] > 0.85
    assert len(space["predictions"].to_pandas()) == 6
    assert sum(isinstance(value, Figure) for value in values) == 1
    made = {"digits", "dataset", "torchvision", "huggingface"}
    assert {path.parent.name for path in Path("runs").glob("*/result.json")} == made
