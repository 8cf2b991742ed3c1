"""Where a visitor drops a picture; the browser sends it to our own route, and Gradio never sees the file."""

from __future__ import annotations

import gradio

from diffvit.app.desk import Chosen
from diffvit.app.uploads import MAX_BYTES
from diffvit.app.web.guard import UPLOAD

_LARGEST = f"{MAX_BYTES >> 20} MiB"
_HTML = f"""
<label class="dv-drop"><input type="file" accept="image/png,image/jpeg,image/gif,image/bmp,image/webp">
<span class="dv-drop-words">Choose a picture of yours, or drop one here</span>
<span class="dv-help">JPEG, PNG, GIF, BMP or WebP up to {_LARGEST}. It stays on this machine, in memory.</span></label>
<p class="dv-upload-said" role="status"></p>
"""
_SCRIPT = f"""
const zone = element.querySelector('.dv-drop'), input = zone.querySelector('input');
const said = element.querySelector('.dv-upload-said');
const tell = (text, wrong) => {{ said.textContent = text; said.classList.toggle('dv-fault', wrong); }};
async function send(file) {{
  if (!file) return;
  if (file.size > {MAX_BYTES}) {{ tell(file.name + ': is too large (over {_LARGEST}).', true); return; }}
  tell('Reading ' + file.name + ' ...', false);
  try {{
    const headers = {{'x-picture-name': encodeURIComponent(file.name).slice(0, 2000)}};
    const answer = await fetch('.{UPLOAD}', {{method: 'POST', body: file, headers}});
    const found = await answer.json();
    if (found.token) {{ tell('Looking at ' + file.name, false); trigger('upload', {{token: found.token}}); }}
    else tell(found.error || found.detail || 'That did not work.', true);
  }} catch (error) {{ tell('The server did not answer. Is diffvit app still running?', true); }}
  input.value = '';
}}
input.addEventListener('change', () => send(input.files[0]));
for (const kind of ['dragover', 'dragleave', 'drop']) zone.addEventListener(kind, event => {{
  event.preventDefault();
  zone.classList.toggle('dv-over', kind === 'dragover');
  if (kind === 'drop') send(event.dataTransfer.files[0]);
}});
"""


def upload_zone() -> gradio.HTML:
    """The zone; its event ``upload`` carries the ``token`` of a picture that was taken."""
    return gradio.HTML(_HTML, js_on_load=_SCRIPT)


def uploaded(event: gradio.EventData) -> Chosen:
    """What the event chooses."""
    return Chosen("upload", str(event.token))
