"""The recipes' promises against the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from diffvit.errors import DiffvitError
from diffvit.files import write_csv
from diffvit.reporting.rows import read, read_run, write
from tools.pages import update
from tools.recipes import documents

RECIPE = """# diffvit train configs/small.yaml --out runs/small
# Expected: whatever
# More words.
epochs: 3
model: {embed_dim: 32, depth: 3, num_heads: 4}
augment: {flip: true}  # a comment that stays
"""


@pytest.fixture
def project(make_run: Callable[..., Path], tmp_path: Path) -> Path:
    """A recipe, and two studies with runs of it, one and two."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "small.yaml").write_text(RECIPE)
    runs = [read_run(make_run(f"s{seed}", seed=seed, accuracy=0.8 + 0.01 * seed)) for seed in (0, 2)]
    write(tmp_path / "reports" / "two", runs)
    write(tmp_path / "reports" / "one", [read_run(make_run("other", accuracy=0.1))])
    return tmp_path


def refresh(project: Path, check: bool = False) -> list[str]:
    return update(documents(project), "recipes", project, check=check)


def test_the_line_says_what_the_study_with_most_runs_holds(project: Path) -> None:
    stale = ["configs/small.yaml: is not what tools/recipes.py makes from the committed results"]
    assert refresh(project, check=True) == stale
    assert (project / "configs" / "small.yaml").read_text() == RECIPE
    assert refresh(project) == stale
    line = (
        "# Expected: 81.0% of CIFAR-10 (JPEG)'s test set in 1 h 30 min of training "
        "(2 seeds, mean; Some CPU | 9, 2 threads, bf16; reports/two)"
    )
    assert (project / "configs" / "small.yaml").read_text() == RECIPE.replace("# Expected: whatever", line)
    assert refresh(project, check=True) == []


def test_runs_on_official_pixels_speak_before_more_on_jpeg(project: Path, make_run: Callable[..., Path]) -> None:
    record = read_run(make_run("o", data="CIFAR-10", accuracy=0.84))
    write(project / "reports" / "new", [replace(record, row=record.row | {"data_note": "a note"})])
    refresh(project)
    line = "# Expected: 84.0% of CIFAR-10's test set (a note) in 1 h 30 min of training (one seed; "
    assert line in (project / "configs" / "small.yaml").read_text()


@pytest.mark.parametrize("change", ["epochs: 4", "label_smoothing: 0.1", "optimizer: {lr: 0.01}"])
def test_runs_of_other_settings_do_not_count(project: Path, change: str) -> None:
    text = RECIPE.replace("epochs: 3", change if change.startswith("epochs") else f"epochs: 3\n{change}")
    (project / "configs" / "small.yaml").write_text(text)
    refresh(project)
    assert "# Expected: not yet run\n" in (project / "configs" / "small.yaml").read_text()


def test_a_setting_younger_than_the_row_had_its_default(project: Path) -> None:
    rows = [record.row for record in read(project / "reports" / "two")]
    write_csv(project / "reports" / "two" / "rows.csv", [{k: v for k, v in row.items() if k != "ema"} for row in rows])
    refresh(project)
    assert "2 seeds, mean" in (project / "configs" / "small.yaml").read_text()


@pytest.mark.parametrize(
    ("text", "code", "what"),
    [
        (RECIPE.replace("# Expected: whatever\n", ""), 3, "must name its command"),
        (RECIPE.replace("configs/small.yaml", "configs/another"), 3, "must name its command"),
        (RECIPE + "epohs: 3\n", 2, "unknown key; did you mean 'epochs'"),
    ],
)
def test_a_recipe_out_of_order_is_named(project: Path, text: str, code: int, what: str) -> None:
    (project / "configs" / "small.yaml").write_text(text)
    with pytest.raises(DiffvitError, match=what) as caught:
        refresh(project)
    assert caught.value.exit_code == code
    assert "small.yaml" in str(caught.value)
