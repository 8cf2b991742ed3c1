"""The README's results against made-up rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from diffvit.reporting.rows import read_run, write
from tools.pages import markers, update
from tools.readme import BLOCK, ROWS, documents

START, END = markers(BLOCK)

MakeRun = Callable[..., Path]


@pytest.fixture
def project(make_run: MakeRun, tmp_path: Path) -> Path:
    """A README with markers and committed rows beside it."""
    write(tmp_path / ROWS, [read_run(make_run("a")), read_run(make_run("b", attention="differential", accuracy=0.82))])
    (tmp_path / "README.md").write_text(f"# Title\n\n{START}\nold\n{END}\n\nThe rest.\n")
    return tmp_path


def refresh(project: Path, check: bool = False) -> list[str]:
    """The files that were out of date."""
    return [line.partition(":")[0] for line in update(documents(project), "readme", project, check=check)]


def test_what_is_written_is_accepted(project: Path) -> None:
    both = ["README.md", f"{ROWS}/curves.png"]
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    assert refresh(project, check=True) == both
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before
    assert refresh(project) == both
    assert refresh(project, check=True) == []
    text = (project / "README.md").read_text()
    assert text.startswith(f"# Title\n\n{START}\n**Data: CIFAR-10 (JPEG).** The images are a JPEG re-encoding")
    assert text.endswith(f"{END}\n\nThe rest.\n")
    assert "| ViT | 80.00% (73.9 to 85.0) | 98.00% | 811,018 | 115 M | 1 h 30 min |" in text
    assert "one seed: no winner is named" in text
    assert f"]({ROWS}/curves.png)" in text


def test_seeds_are_those_of_each_model_where_they_differ(project: Path, make_run: MakeRun) -> None:
    runs = [make_run("d"), make_run("e", seed=1), make_run("f", attention="differential")]
    write(project / ROWS, [read_run(run) for run in runs])
    refresh(project)
    assert "seeds 0 and 1 (ViT), seed 0 (Diff-ViT)" in (project / "README.md").read_text()


def test_other_recipes_get_a_sentence_from_their_rows(project: Path, make_run: MakeRun) -> None:
    pair = [make_run("g", epochs=4), make_run("h", epochs=4, attention="differential", accuracy=0.82)]
    for run in pair:
        result = json.loads((run / "result.json").read_text()) | {"train_seconds": 31.5, "compile_seconds": 24.25}
        (run / "result.json").write_text(json.dumps(result))
    write(project / "reports" / "gpu-50-epochs", [read_run(run) for run in pair])
    refresh(project)
    text = (project / "README.md").read_text()
    # Of these settings there is no recipe.
    assert "**On a GPU:** ViT reaches 80.00% (73.9 to 85.0) in 31.5 s of training, after at most 24.2 s of" in text
    assert "**On a GPU:** Diff-ViT reaches 82.00%" in text
    assert "on a GPU:**" not in text  # the other folders have no rows
    (project / "configs").mkdir()
    shutil.copy(pair[1] / "config.yaml", project / "configs" / "twin.yaml")
    refresh(project)
    text = (project / "README.md").read_text()
    assert "**On a GPU:** [twin.yaml](configs/twin.yaml) reaches 82.00%" in text
    assert text.count("**On a GPU:**") == 1, "an arm without a recipe is not told where another has one"
