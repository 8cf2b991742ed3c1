"""The load itself, small: visitors of every kind, each question counted, none lost."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from benchmarks.app_load import measure

pytestmark = pytest.mark.system


def test_a_few_visitors_lose_nothing(tmp_path: Path) -> None:
    asyncio.run(measure(12, 8.0, tmp_path))
    found = json.loads((tmp_path / "summary.json").read_text())
    kinds = found["kinds"]
    assert set(kinds) == {"page", "dials", "pick", "upload", "figure"}
    assert kinds["page"]["answered"] == 12
    assert kinds["dials"]["answered"] > 20
    assert sum(kind["lost"] for kind in kinds.values()) == 0
    assert found["probes"]["answered"] == found["probes"]["asked"] > 4
    assert (tmp_path / "report.md").is_file()
    assert (tmp_path / "load.png").is_file()
