"""Run folders made in a moment, as the reports' tests have them."""

from __future__ import annotations

from tests.reporting.conftest import make_run, pair_report

__all__ = ["make_run", "pair_report"]
