"""What is known of a study's cells: who has one, and how all of them stand."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """A trial that is this worker's to run."""

    cell: str
    trial_id: int
    number: int


@dataclass(frozen=True)
class Standing:
    """How a study stands, by cell.

    Args:
        done: their cells, with the value that was told.
        running: cells that a worker has.
        failed: cells given up after so many errors, with the last one's words.
        waiting: all others.
        worst: the largest exit code of an error that a cell was given up for; 0 where none was.
    """

    done: dict[str, float]
    running: dict[str, str]
    failed: dict[str, str]
    waiting: list[str]
    worst: int = 0

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return not self.running and not self.waiting
