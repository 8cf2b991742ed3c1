"""The recipes' promises against the rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from diffvit.errors import DiffvitError
from diffvit.reporting.rows import read_run, write
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
