"""Eight workers, two hundred trials, thirty kills at any moment: every trial completes exactly once."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgresql import database

from diffvit.experiments.ledger import Ledger

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
WORKERS, TRIALS, KILLS = 8, 200, 30
CELLS = [f"trial-{number}" for number in range(TRIALS)]
# One worker with trials that only wait. A line is written once a trial counts: few bytes, appended in one piece.
WORKER = """
import os, random, sys, time
from diffvit.experiments.ledger import Ledger
from diffvit.experiments.runner import work

place, rows, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
ledger = Ledger(place, "kills", [f"trial-{number}" for number in range(count)], 5.0)

def execute(claim):
    time.sleep(random.uniform(0.3, 0.8))
    return 0.5

work(ledger, execute, pause=0.1)
"""


@pytest.fixture(params=["journal", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "journal":
        yield str(tmp_path / "study.journal")
    else:
        with database() as url:
            yield url


def test_every_trial_completes_exactly_once(storage: str, tmp_path: Path) -> None:
    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", WORKER, storage, str(tmp_path / "rows"), str(TRIALS)])

    draw = random.Random(0)
    workers, kills = [start() for _ in range(WORKERS)], 0
    ledger = Ledger(storage, "kills", CELLS)
    while len(ledger.standing().done) < 5:  # until then they only start
        time.sleep(0.1)
    while kills < KILLS:
        time.sleep(draw.uniform(0.2, 0.6))
        place = draw.randrange(WORKERS)
        assert any(worker.poll() is None for worker in workers), f"all was done after {kills} kills"
        if workers[place].poll() is None:
            workers[place].kill()
            workers[place].wait()
            kills += 1
        workers[place] = start() if workers[place].returncode else workers[place]
    try:
        assert [worker.wait(timeout=200) for worker in workers] == [0] * WORKERS
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    standing = ledger.standing()
    assert standing.over
    assert standing.failed == {}
    assert list(standing.done) == CELLS
    complete = Counter(trial.user_attrs["cell"] for trial in ledger.history() if trial.state.name == "COMPLETE")
    assert complete == dict.fromkeys(CELLS, 1)
    lost = [trial for trial in ledger.history() if trial.user_attrs.get("why", ("",))[0] == "lost"]
    assert len(lost) >= 3  # kills hit trials that ran
    ledger.close()


def test_a_study_runs_on_postgresql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "diffvit.cli.main", "study", "run", "pooling", "--tier", "smoke"]
    with database() as url:
        command += ["--storage", url, "--workers", "2", "--device", "cpu", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["done"] == 4
    assert len(list(Path("runs/studies/smoke").glob("*/result.json"))) == 4
