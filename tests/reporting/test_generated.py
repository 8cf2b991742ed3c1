from __future__ import annotations

import pytest

from diffvit.errors import InputError
from diffvit.reporting.generated import finish


@pytest.mark.parametrize(
    ("stale", "check", "code", "said"),
    [
        ([], True, 0, ""),
        ([], False, 0, ""),
        (["a page: is old"], True, 1, "out of date: a page: is old. Run: make docs\n"),
        (["a page: is old"], False, 0, "updated: a page: is old\n"),
    ],
)
def test_what_was_stale_is_told_and_fails_a_check_alone(
    stale: list[str], check: bool, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finish(lambda: stale, check=check) == code
    assert capsys.readouterr().out == said


def test_a_fault_is_one_line_and_its_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    def damaged() -> list[str]:
        raise InputError("rows.csv", "is damaged")

    assert finish(damaged, check=True) == 3
    assert capsys.readouterr().err == "error: rows.csv: is damaged.\n"
