"""The page: its tabs, how it looks, and what runs in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio
from gradio import themes

from diffvit.app.desk import AT_ONCE, WAITING, Desk
from diffvit.app.web import compare_tab, look_tab, models_tab, shapes_tab, zero_shot_tab

TITLE = "diffvit"
_HERE = Path(__file__).parent
_HEADING = (
    "# diffvit\nLook inside Vision Transformers, Differential Vision Transformers and CLIP. "
    "Everything runs on this machine: no picture leaves it, none is written to its disk."
)


def build(desk: Desk, openai: Path | None = None) -> gradio.Blocks:
    """All tabs over one desk.

    Args:
        desk: models and pictures.
        openai: OpenAI's weights for CLIP's RN50, where they are on this machine.
    """
    with gradio.Blocks(title=TITLE, analytics_enabled=False, fill_width=False) as page:
        gradio.Markdown(_HEADING, elem_classes="dv-heading")
        chosen = gradio.State(desk.start[0])
        with gradio.Tabs():
            with gradio.Tab("Look"):
                look_tab.build(desk, chosen, page)
            with gradio.Tab("Compare"):
                compare_tab.build(desk)
            with gradio.Tab("Zero-shot"):
                zero_shot_tab.build(desk, chosen, openai)
            with gradio.Tab("Shapes"):
                shapes_tab.build(desk, page)
            with gradio.Tab("Models"):
                models_tab.build(desk)
    return page.queue(max_size=WAITING, default_concurrency_limit=AT_ONCE, api_open=False)


def looks() -> dict[str, Any]:
    """Theme, style sheet and head, as Gradio's mount takes them; fonts are the machine's own."""
    theme = themes.Base(
        primary_hue=themes.colors.blue,
        neutral_hue=themes.colors.slate,
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
        text_size=themes.sizes.text_md,
    ).set(
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
    )
    return {"theme": theme, "css": (_HERE / "page.css").read_text(encoding="utf-8")}
