"""Event handlers and controls that several tabs share: error lines, answers in order, the upload zone."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable
from typing import Any

import gradio

from diffvit.app.explorer import Explorer
from diffvit.app.images import MAX_BYTES, ImageRef
from diffvit.app.panels import alert
from diffvit.app.web.guard import UPLOAD
from diffvit.errors import DiffvitError

log = logging.getLogger(__name__)
INTERNAL_ERROR = "Internal error. The terminal that diffvit app runs in shows the details."
NO_MODEL = "none"
# Options of events whose answer takes a blink: no progress bar, and past Gradio's queue, which polls; the explorer's
# limiter holds for them too.
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
# JavaScript for an HTML component whose handler is numbered. Answers may arrive in another order than their
# requests were made: the one to the newest request stays.
KEEP_NEWEST = """
let newest = 0, kept = null;
watch('value', () => {
  const number = Number((/data-request="(\\d+)"/.exec(props.value) || [0, 0])[1]);
  if (number < newest) { props.value = kept; return; }
  newest = number;
  kept = props.value;
});
"""
_LARGEST = f"{MAX_BYTES >> 20} MiB"
_UPLOAD_HTML = f"""
<label class="dv-drop"><input type="file" accept="image/png,image/jpeg,image/gif,image/bmp,image/webp">
<span class="dv-drop-words">Choose a picture of yours, or drop one here</span>
<span class="dv-help">JPEG, PNG, GIF, BMP or WebP up to {_LARGEST}. It stays on this machine, in memory.</span></label>
<p class="dv-upload-said" role="status"></p>
"""
_UPLOAD_SCRIPT = f"""
const zone = element.querySelector('.dv-drop'), input = zone.querySelector('input');
const status = element.querySelector('.dv-upload-said');
const say = (text, wrong) => {{ status.textContent = text; status.classList.toggle('dv-fault', wrong); }};
async function send(file) {{
  if (!file) return;
  if (file.size > {MAX_BYTES}) {{ say(file.name + ': is too large (over {_LARGEST}).', true); return; }}
  say('Reading ' + file.name + ' ...', false);
  try {{
    const headers = {{'x-picture-name': encodeURIComponent(file.name).slice(0, 2000)}};
    const answer = await fetch('.{UPLOAD}', {{method: 'POST', body: file, headers}});
    const found = await answer.json();
    if (found.token) {{ say('Showing ' + file.name, false); trigger('upload', {{token: found.token}}); }}
    else say(found.error || found.detail || 'That did not work.', true);
  }} catch (error) {{ say('The server did not answer. Is diffvit app still running?', true); }}
  input.value = '';
}}
input.addEventListener('change', () => send(input.files[0]));
for (const kind of ['dragover', 'dragleave', 'drop']) zone.addEventListener(kind, event => {{
  event.preventDefault();
  zone.classList.toggle('dv-over', kind === 'dragover');
  if (kind === 'drop') send(event.dataTransfer.files[0]);
}});
"""


def handler(
    explorer: Explorer, outputs: int, *, numbered: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., tuple[Any, ...]]]:
    """Decorator of an event handler: it runs under the explorer's limiter and gets a last output, an error line.

    Args:
        explorer: whose limiter.
        outputs: how many outputs the handler has, a tuple if more than one; on an error they stay as they are.
        numbered: put the number of the request into the first output, HTML, for :data:`KEEP_NEWEST`.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
        numbers = itertools.count(1)

        @functools.wraps(function)
        def handle(*values: Any) -> tuple[Any, ...]:
            stamp = f'<i hidden data-request="{next(numbers)}"></i>' if numbered else ""
            try:
                result = explorer.limiter.call(lambda: function(*values))
            except DiffvitError as error:
                return (*[gradio.skip()] * outputs, alert(str(error)))
            except Exception:
                log.exception("%s failed", function.__qualname__)
                return (*[gradio.skip()] * outputs, alert(INTERNAL_ERROR))
            first, *others = result if isinstance(result, tuple) else (result,)
            return (stamp + first if numbered else first, *others, "")

        return handle

    return decorate


def upload_zone() -> gradio.HTML:
    """Where a picture is dropped. The browser sends it to our own route; Gradio never sees the file.

    Its event ``upload``, with the token of an accepted picture, goes to :func:`uploaded`.
    """
    return gradio.HTML(_UPLOAD_HTML, js_on_load=_UPLOAD_SCRIPT)


def uploaded(event: gradio.EventData) -> ImageRef:
    """The image of an ``upload`` event."""
    return ImageRef("upload", str(event.token))
