from __future__ import annotations

from pathlib import Path

from diffvit.reporting.generated import markers
from tools.readme import BLOCK, ROWS, update

START, END = markers(BLOCK)

ROOT = Path(__file__).parents[1]


def test_the_readmes_results_are_those_of_the_committed_rows() -> None:
    if (ROOT / ROWS / "rows.csv").exists():
        assert update(ROOT / "README.md", ROOT / ROWS, ROOT / "reports", check=True) == []
    else:  # no rows, no numbers
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        assert text.split(START)[1].split(END)[0].strip() == ""
