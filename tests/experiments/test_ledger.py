"""The ledger of a study: every cell is done once, whoever is slow, gone or wrong."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from optuna.storages._rdb.models import BaseModel
from sqlalchemy import Engine, event
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import Pool

from diffvit.errors import EnvironmentFault
from diffvit.experiments.ledger import ATTEMPTS, Ledger
from diffvit.experiments.storage import FileLock, close_storage, open_storage

CELLS = ["a", "b", "c"]


class Clock:
    """A clock that is told."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "deep" / "study.journal")


def ledger(place: str, clock: Clock | None = None, cells: list[str] | None = None, **more: Any) -> Ledger:
    return Ledger(place, "test", CELLS if cells is None else cells, 10.0, now=clock or Clock(), **more)


def test_cells_are_done_in_order_and_each_once(place: str) -> None:
    mine, other = ledger(place), ledger(place)
    first, second = mine.claim(), other.claim()
    assert first is not None
    assert second is not None
    assert (first.cell, second.cell) == ("a", "b")
    assert mine.complete(first, 0.5)
    assert not mine.complete(first, 0.9)  # once
    third = mine.claim()
    assert third is not None
    assert third.cell == "c"
    assert mine.claim() is None
    standing = mine.standing()
    assert standing.done == {"a": 0.5}
    assert standing.running.keys() == {"b", "c"}
    assert not standing.over
    assert other.complete(second, 0.25)
    assert mine.complete(third, 0.75)
    assert mine.claim() is None
    assert mine.standing().done == {"a": 0.5, "b": 0.25, "c": 0.75}
    assert mine.standing().over


def test_a_worker_that_is_silent_too_long_loses_its_trial_and_its_result_does_not_count(
    place: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, other = ledger(place, cells=["a"]), ledger(place, clock, ["a"])
    monkeypatch.setattr("diffvit.experiments.holder._machine", lambda: "far away")
    claim = slow.claim()
    assert claim is not None
    monkeypatch.setattr("diffvit.experiments.holder._machine", lambda: "here")
    assert other.claim() is None
    clock.seconds = 9.0
    assert slow.beat(claim)
    assert other.claim() is None  # it was heard of
    clock.seconds = 18.0
    assert other.claim() is None
    clock.seconds = 19.5
    again = other.claim()
    assert again is not None
    assert (again.cell, again.number > claim.number) == ("a", True)
    assert not slow.beat(claim)
    assert not slow.complete(claim, 0.9)
    assert other.complete(again, 0.5)
    assert other.standing().done == {"a": 0.5}


def test_cells_of_others_are_left_alone(place: str) -> None:
    wide, narrow = ledger(place, cells=["a", "b", "c", "d"]), ledger(place, cells=["c"])
    first = wide.claim()  # a; the others wait
    assert first is not None
    claim = narrow.claim()
    assert claim is not None
    assert claim.cell == "c"
    assert narrow.complete(claim, 1.0)
    assert narrow.claim() is None
    assert narrow.standing().over
    assert not wide.standing().over


def _claim_and_die(place: str) -> None:
    assert Ledger(place, "test", ["a"]).claim() is not None


def test_a_process_of_this_machine_that_is_gone_is_known_at_once(place: str) -> None:
    gone = multiprocessing.get_context("spawn").Process(target=_claim_and_die, args=(place,))
    gone.start()
    gone.join()
    assert gone.exitcode == 0
    claim = ledger(place, cells=["a"]).claim()
    assert claim is not None
    assert claim.cell == "a"


def test_what_always_fails_is_given_up_and_the_rest_goes_on(place: str) -> None:
    mine = ledger(place, cells=["bad", "good"])
    tried: Counter[str] = Counter()
    while (claim := mine.claim()) is not None:
        tried[claim.cell] += 1
        if claim.cell == "bad":
            assert mine.fail(claim, f"ValueError: try {tried['bad']}")
        else:
            assert mine.complete(claim, 1.0)
    assert tried == {"bad": ATTEMPTS, "good": 1}
    standing = mine.standing()
    assert standing.failed == {"bad": f"ValueError: try {ATTEMPTS}"}
    assert standing.over


def test_what_was_given_up_is_tried_again_when_forgiven(place: str) -> None:
    mine = ledger(place, cells=["a"])
    for _ in range(2):
        for code in (5, 2, 3):
            claim = mine.claim()
            assert claim is not None
            assert mine.fail(claim, f"code {code}", code)
        assert mine.claim() is None
        standing = ledger(place, cells=["a"]).standing()
        assert (standing.failed, standing.worst, standing.waiting) == ({"a": "code 3"}, 3, [])
        assert ledger(place, cells=["a"]).forgive() == ["a"]
        standing = mine.standing()
        assert (standing.failed, standing.worst, standing.waiting) == ({}, 0, ["a"])
    assert mine.forgive() == []
    claim = mine.claim()
    assert claim is not None
    assert mine.complete(claim, 0.5)
    assert mine.standing().done == {"a": 0.5}


def test_what_is_given_back_counts_as_no_attempt(place: str) -> None:
    mine = ledger(place, cells=["a"])
    for _ in range(ATTEMPTS + 2):
        claim = mine.claim()
        assert claim is not None
        assert mine.give_back(claim)
    claim = mine.claim()
    assert claim is not None
    assert mine.complete(claim, 1.0)


def test_of_cells_that_were_enqueued_twice_one_counts(place: str) -> None:
    mine, other = ledger(place), ledger(place)
    for each in (mine, other):
        each._fill({}, [])  # both saw nothing there
    done: Counter[str] = Counter()
    while (claim := mine.claim() or other.claim()) is not None:
        done[claim.cell] += mine.complete(claim, 1.0)
    assert done == {"a": 1, "b": 1, "c": 1}
    assert mine.standing().over


def test_a_trial_that_is_lost_goes_on_with_what_was_suggested(place: str) -> None:
    mine = ledger(place, cells=["a"])
    claim = mine.claim()
    assert claim is not None
    value = mine.trial(claim).suggest_float("rate", 0.0, 1.0)
    assert mine.give_back(claim)
    again = mine.claim()
    assert again is not None
    assert again.number != claim.number
    assert mine.trial(again).suggest_float("rate", 0.0, 1.0) == value
    mine.trial(again).report(0.3, 1)
    assert mine.prune(again)
    assert mine.standing().done == {"a": 0.3}
    assert mine.claim() is None


def test_a_journal_that_a_kill_cut_short_is_made_whole(place: str) -> None:
    mine = ledger(place)
    claim = mine.claim()
    assert claim is not None
    with Path(place).open("ab") as file:
        file.write(b'{"op_code": 8, "trial_')
    assert mine.complete(claim, 1.0)
    assert ledger(place).standing().done == {"a": 1.0}


def test_a_lock_is_free_when_its_holder_let_go(tmp_path: Path) -> None:
    journal = tmp_path / "j"
    journal.write_bytes(b"one\ntwo\nthr")
    lock = FileLock(journal)
    assert lock.acquire()
    assert journal.read_bytes() == b"one\ntwo\n"
    lock.release()
    assert FileLock(journal).acquire()


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("postgresql+psycopg://nobody@127.0.0.1:1/none", "--storage: cannot be opened ("),
        ("mysql+nothing://x/y", "--storage: cannot be opened ("),
        ("/proc/none/study.journal", "--storage: cannot be written ("),
    ],
)
def test_a_storage_that_cannot_be_had_is_one_line(where: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffvit.experiments.storage._OPENINGS", 1)
    with pytest.raises(EnvironmentFault) as caught:
        open_storage(where)
    assert str(caught.value).startswith(said)
    assert "Name a file, or a database" in str(caught.value)


def test_a_refused_opening_leaves_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that begin together make the tables together; who comes second is refused, and opens again."""
    connected, closed, refused = list[object](), list[object](), list[object]()
    monkeypatch.setattr("time.sleep", refused.append)
    tables = BaseModel.metadata.create_all

    def create_all(engine: Engine) -> None:
        tables(engine)
        if len(refused) < 2:
            raise IntegrityError("CREATE TABLE", None, Exception("is there already"))

    monkeypatch.setattr(BaseModel.metadata, "create_all", create_all)
    listeners = (
        ("connect", lambda found, _: connected.append(found)),
        ("close", lambda found, _: closed.append(found)),
    )
    for name, listener in listeners:
        event.listen(Pool, name, listener)
    try:
        storage = open_storage(f"sqlite:///{tmp_path / 'study.db'}")
        assert len(refused) == 2
        assert len(connected) > 2
        assert closed == connected[:2]
        close_storage(storage)
        assert set(map(id, closed)) == set(map(id, connected))  # a pool closes its own in any order
    finally:
        for name, listener in listeners:
            event.remove(Pool, name, listener)
