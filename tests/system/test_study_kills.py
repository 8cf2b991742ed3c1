"""Kills at any moment: every cell of a study is completed exactly once, and a search loses no trial."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import forked
import optuna
import pytest
from optuna.storages._heartbeat import HeartbeatThread
from postgresql import database

from diffvit.experiments.runner import Runner
from diffvit.experiments.search import space_of, studies_in
from diffvit.experiments.study import STUDIES, Study, cells_of, load_study
from diffvit.files import to_json
from diffvit.training.run_dir import RunDir
from tests.experiments.study_rows import close

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]
WORKERS, KILLS, SEARCH_KILLS = 8, 30, 10
# 200 cells: 10 arms, both attentions, 10 seeds. A real training each, of one step.
STUDY = """
question: Does every cell complete exactly once?
base:
  epochs: 1
  batch_size: 16
  validation_size: 0
  shapes: {size: 16, train: 16, test: 10}
  model: {image_size: 16, patch_size: 8, embed_dim: 8, depth: 1, num_heads: 2}
arms:
""" + "".join(f"  arm {arm}: {{label_smoothing: {arm / 100}}}\n" for arm in range(10))
CELLS, SEEDS = 200, 10


def work(*options: str) -> None:
    """A worker of ``diffvit study work``, in a process of its own.

    A run that is finished twice leaves a line: result.json is made by a link, which only one process can make, instead
    of a rename, which hides the former file.
    """
    real = RunDir.write_json

    def write_json(self: RunDir, name: str, values: Any) -> None:
        if name != "result.json":
            return real(self, name, values)
        made = self.path / f".result-{os.getpid()}"
        made.write_bytes(to_json(dict(values)))
        try:
            os.link(made, self.path / name)
        except FileExistsError:
            with Path("twice").open("a") as file:
                file.write(f"{self.path}\n")

    RunDir.write_json = write_json
    forked.diffvit("study", "work", *options, "--device", "cpu", "--threads", "1")


def other_machine(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """Where a worker in namespaces of its own finds the folder; None where namespaces cannot be made."""
    place = tmp_path_factory.mktemp("elsewhere")
    probe = forked.start(os.getpid, folder=folder, log=folder / "probe", mounted_at=place)
    return place if forked.finish(probe) == 0 else None


def killed_at_random(
    workers: Sequence[Callable[[], ForkServerProcess]], kills: int, folder: Path, done: Callable[[], int], total: int
) -> None:
    """Run workers to their end, killing and starting again; every kill hits a study that is neither new nor done."""
    draw, started = random.Random(0), [start() for start in workers]
    try:
        for number in range(kills):
            while done() < number * total // (kills + 5) + 1:  # spread over the whole study
                assert any(worker.is_alive() for worker in started), (folder / "log").read_text()[-2000:]
                time.sleep(0.02)
            time.sleep(draw.uniform(0, 0.2))
            place = draw.randrange(len(workers))
            assert started[place].is_alive(), f"a worker ended after {number} kills"
            started[place].kill()
            started[place].join()
            started[place] = workers[place]()
        assert [forked.finish(worker) for worker in started] == [0] * len(workers), (folder / "log").read_text()[-2000:]
    finally:
        for worker in started:
            worker.kill()
            worker.join()


def test_every_cell_is_completed_exactly_once(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kills.yaml").write_text(STUDY)
    cells = cells_of(load_study(tmp_path / "kills.yaml"), "smoke", seeds=SEEDS)
    assert len({cell.key for cell in cells}) == CELLS
    runs = tmp_path / "runs" / "smoke"

    def done() -> int:
        return len(list(runs.glob("*/result.json")))

    options = ["kills.yaml", "--tier", "smoke", "--seeds", f"{SEEDS}", "--runs", "runs"]
    here = partial(forked.start, work, *options, folder=tmp_path, log=tmp_path / "log")
    elsewhere = other_machine(tmp_path, tmp_path_factory)
    with capsys.disabled():
        sys.stdout.write(f"\n{WORKERS // 2 if elsewhere else 0} of {WORKERS} workers in namespaces of their own\n")
    there = partial(here, mounted_at=elsewhere)
    killed_at_random([here, there] * (WORKERS // 2), KILLS, tmp_path, done, CELLS)
    assert not (tmp_path / "twice").exists()
    folders = {cell.name: next(runs.glob(f"{cell.key[0]}-s{cell.key[1]}-*")) for cell in cells}
    state = Runner(cells, folders).state()
    assert (len(state.done), state.running, state.failed, state.waiting) == (CELLS, {}, {}, [])
    assert sorted(path for path in runs.iterdir() if path.is_dir()) == sorted(folders.values())  # none put aside
    for folder in folders.values():
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1
    interrupted = (tmp_path / "log").read_text().count(": begins") - CELLS
    assert interrupted >= 3, "kills hit trainings"


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield str(tmp_path / "search.db")
    else:
        with database() as url:
            yield url


def search_of(wanted: int, storage: str, folder: Path) -> tuple[Study, list[str]]:
    """The study ``search`` with so many small trials, and a worker's options."""
    search = STUDIES["search"].search
    assert search is not None
    found = {
        "question": "Is every trial finished?",
        "attentions": ["softmax"],
        "base": {"epochs": 4, "shapes": {"train": 400, "test": 16}, "validation_size": 50},
        "search": {
            "trials": {"smoke": wanted},
            "settings": {name: each.model_dump() for name, each in search.settings.items()},
        },
    }
    (folder / "trials.yaml").write_text(json.dumps(found))
    options = ["trials.yaml", "--tier", "smoke", "--runs", "runs", "--storage", storage, "--lease", "3"]
    return load_study(folder / "trials.yaml"), options


def work_until_begun(*options: str) -> None:
    """A worker that is killed once its trial is noted as begun, before the heartbeat's thread was there."""
    noted = optuna.Trial.set_user_attr

    def note(self: optuna.Trial, key: str, value: Any) -> None:
        noted(self, key, value)
        os.kill(os.getpid(), signal.SIGKILL)

    HeartbeatThread.start = lambda self: None
    optuna.Trial.set_user_attr = note
    work(*options)


def test_a_trial_killed_before_its_first_heartbeat_is_repeated(tmp_path: Path) -> None:
    study, options = search_of(2, str(tmp_path / "search.db"), tmp_path)
    codes = [
        forked.finish(forked.start(worker, *options, folder=tmp_path, log=tmp_path / "log"))
        for worker in (work_until_begun, work)
    ]
    assert codes == [-signal.SIGKILL, 0]
    [found] = studies_in(str(tmp_path / "search.db"), study, "smoke", "softmax")
    states = [trial.state.name for trial in found.get_trials()]
    close(found)
    assert states == ["FAIL", "COMPLETE", "COMPLETE"]


def test_a_search_loses_no_trial(storage: str, tmp_path: Path) -> None:
    wanted = 14
    study, options = search_of(wanted, storage, tmp_path)
    worker = partial(forked.start, work, *options, folder=tmp_path, log=tmp_path / "log")

    def done() -> int:  # or pruned: all runs that began but the last few
        return len(list((tmp_path / "runs" / "smoke").glob("*/config.yaml"))) - 3

    killed_at_random([worker] * 3, SEARCH_KILLS, tmp_path, done, wanted)
    [found] = studies_in(storage, study, "smoke", "softmax")
    trials = found.get_trials()
    close(found)
    finished = [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]
    assert wanted <= len(finished) <= wanted + 2  # workers that begin the last one together
    # Where workers began the last trial together and one was killed, its trial is one too many: it, or its repetition,
    # is left as it is once enough are finished.
    left = [trial for trial in trials if trial.state.name in ("WAITING", "RUNNING")]
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED", "FAIL", "WAITING", "RUNNING"}
    assert len(finished) + len(left) <= wanted + 2
    lost = [trial for trial in trials if trial.state.name == "FAIL"]
    assert lost, f"kills hit trials: {[trial.state.name for trial in trials]}"
    for trial in lost:  # each was repeated with the values that it had
        [again] = [each for each in trials if each.system_attrs.get("retry_history", [None])[-1] == trial.number]
        assert trial.params.items() <= again.params.items()
    originals = [trial.system_attrs.get("failed_trial", trial.number) for trial in finished]
    assert len(set(originals)) == len(originals)
    for trial in finished:
        assert set(trial.params) == set(space_of(study).settings)
    assert not (tmp_path / "twice").exists()
    asked = [*options[:-2], "--reports", "reports"]
    for command in (["run", *asked, "--device", "cpu"], ["report", *asked]):
        process = forked.start(forked.diffvit, "study", *command, folder=tmp_path, log=tmp_path / "log")
        assert forked.finish(process) == 0, (tmp_path / "log").read_text()[-2000:]
    assert "complete, the others pruned" in (tmp_path / "reports" / "trials" / "report.md").read_text()
