"""``diffvit app``."""

from __future__ import annotations

import importlib.util
import logging
import os
import webbrowser
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from diffvit.cli import show
from diffvit.cli.options import OUTPUT, SWITCH, DataDir, DeviceFlag, Output, settings_of
from diffvit.errors import ConfigError, EnvironmentFault

_PORTS = 65_535


def app(
    *,
    run: Annotated[
        tuple[str, ...],
        Parameter(show_default="finished runs under runs/", help="Runs to offer; repeatable."),
    ] = (),
    pretrained: Annotated[
        tuple[str, ...],
        Parameter(help="Pretrained ViTs to offer: timm's name or a weights file; repeatable."),
    ] = (),
    port: Annotated[int, Parameter(help="Port of the page; 0 picks a free one.")] = 7860,
    open_browser: Annotated[bool, SWITCH, Parameter(name="--open", help="Open it in a browser.")] = False,
    data_dir: DataDir = None,
    clip_weights: Annotated[
        Path | None, Parameter(help="OpenAI's RN50.pt, to offer in addition to the small CLIP.")
    ] = None,
    device: DeviceFlag = None,
    output: Output = OUTPUT,
) -> None:
    """Start the explorer: a local web page that shows attention maps. Ctrl-C stops it."""
    if not 0 <= port <= _PORTS:
        raise ConfigError("--port", f"must be 0 to {_PORTS} (found {port})")
    if importlib.util.find_spec("gradio") is None:
        raise EnvironmentFault("diffvit app", "needs Gradio, which is not installed", "pip install 'diffvit[app]'")
    place = settings_of(device=device).device
    # Read when Gradio is imported: it would otherwise ask outside servers for its version and send figures of use.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Read when torch is: several questions run at once, a thread each, and each would start threads of its own.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.getLogger("diffvit").addHandler(logging.StreamHandler())

    from diffvit.app.explorer import Explorer
    from diffvit.app.models import Models, find_openai_weights, list_models, load_pretrained
    from diffvit.app.web.server import HOST, application, bound, serve
    from diffvit.training.environment import resolve_device
    from diffvit.training.memory import give_memory_back

    give_memory_back()
    on = resolve_device(place)
    openai = find_openai_weights(clip_weights)
    models = Models([*list_models(run), *load_pretrained(pretrained, on)], on, openai)
    names = [info.name for info in (*models.vits, *models.clips)]
    with bound(port) as listening:
        page = application(Explorer(models, data_dir))
        address = f"http://{HOST}:{listening.getsockname()[1]}"
        show.line(f"models  {', '.join(names)}")
        show.line(f"page    {address} (Ctrl-C stops it)")
        output.as_json({"page": address, "models": names})
        if open_browser:
            webbrowser.open(address)  # it waits for the server, which listens already
        serve(page, listening)
