"""From a handler to an answer that the page can show: one line for whatever goes wrong, never a traceback."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable
from typing import Any

import gradio

from diffvit.app.desk import Desk
from diffvit.app.panels import fault
from diffvit.errors import DiffvitError

# For answers within a blink: past Gradio's queue (the gate holds for them too), without a progress bar.
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
# In the browser, for HTML of `numbered`: a question about a new picture takes a forward pass, and the next one, by a
# dial, may overtake it. What was asked last stays.
KEEP_NEWEST = """
let newest = 0, kept = null;
watch('value', () => {
  const ticket = Number((/data-ticket="(\\d+)"/.exec(props.value) || [0, 0])[1]);
  if (ticket < newest) { props.value = kept; return; }
  newest = ticket;
  kept = props.value;
});
"""
log = logging.getLogger(__name__)
WENT_WRONG = "That did not work, and it is our fault: the window that diffvit app runs in says more."


def answering(desk: Desk, outputs: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Wait for the handler's turn, call it, and add a last output: HTML of what went wrong, or nothing.

    Args:
        desk: whose gate.
        outputs: how many the handler returns, as a tuple where it is not one; they stay as they are where it fails.
    """

    def around(handler: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(handler)
        def answer(*asked: Any) -> tuple[Any, ...]:
            try:
                found = desk.gate.call(lambda: handler(*asked))
            except DiffvitError as error:
                return (*[gradio.skip()] * outputs, fault(str(error)))
            except Exception:
                log.exception("%s failed", handler.__qualname__)
                return (*[gradio.skip()] * outputs, fault(WENT_WRONG))
            return (*(found if isinstance(found, tuple) else (found,)), "")

        return answer

    return around


def numbered(answer: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """An answer whose first output, HTML, says when it was asked, for :data:`KEEP_NEWEST`.

    Args:
        answer: of :func:`answering`.
    """
    tickets = itertools.count(1)

    def stamped(*asked: Any) -> tuple[Any, ...]:
        ticket = next(tickets)
        first, *others = answer(*asked)
        return (f'<i hidden data-ticket="{ticket}"></i>{first}' if isinstance(first, str) else first, *others)

    return stamped
