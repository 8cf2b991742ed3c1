"""Event handlers and controls that several tabs share: error lines, answers in order, the upload zone."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio

from diffvit.app.explorer import Explorer
from diffvit.app.images import MAX_BYTES, ImageRef
from diffvit.app.panels import html
from diffvit.errors import DiffvitError

log = logging.getLogger(__name__)
INTERNAL_ERROR = "Internal error. The terminal that diffvit app runs in shows the details."
NO_MODEL = "none"
# Options of events whose answer takes a blink: no progress bar, and past Gradio's queue, which polls; the explorer's
# limiter holds for them too.
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
# JavaScript for HTML components: a click on an image or a thumbnail, and the order of numbered answers.
VIEW_SCRIPT = Path(__file__).with_name("view.js").read_text(encoding="utf-8")


def handler(
    explorer: Explorer, outputs: int, *, numbered: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., tuple[Any, ...]]]:
    """Decorator of an event handler: it runs under the explorer's limiter and gets a last output, an error line.

    ``outputs`` is how many outputs the handler has, a tuple if more than one; on an error they stay as they are. With
    ``numbered``, the first output, HTML, has the number of the request: :data:`VIEW_SCRIPT` drops overtaken answers.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
        numbers = itertools.count(1)

        @functools.wraps(function)
        def handle(*values: Any) -> tuple[Any, ...]:
            stamp = f'<i hidden data-request="{next(numbers)}"></i>' if numbered else ""
            try:
                result = explorer.limiter.call(lambda: function(*values))
            except DiffvitError as error:
                return (*[gradio.skip()] * outputs, html("alert", text=error.line))
            except Exception:
                log.exception("%s failed", function.__qualname__)
                return (*[gradio.skip()] * outputs, html("alert", text=INTERNAL_ERROR))
            first, *others = result if isinstance(result, tuple) else (result,)
            return (f"{stamp}{first}" if numbered else first, *others, "")

        return handle

    return decorate


def upload_zone() -> gradio.HTML:
    """Where a picture is dropped. The browser sends it to our own route; Gradio never sees the file.

    Its event ``upload``, with the token of an accepted picture, goes to :func:`uploaded`.
    """
    script = Path(__file__).with_name("upload.js").read_text(encoding="utf-8")
    return gradio.HTML(str(html("upload", limit=MAX_BYTES)), js_on_load=script)


def uploaded(event: gradio.EventData) -> ImageRef:
    """The image of an ``upload`` event."""
    return ImageRef("upload", str(event.token))
