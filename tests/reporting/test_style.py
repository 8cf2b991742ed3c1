"""Letters beyond matplotlib's own font: taken from an installed one, or one line says which package has them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from diffvit.cli.main import own_warnings
from diffvit.reporting import style
from diffvit.reporting.style import LIGHT, dress, figure, to_png, to_svg

CAT, DOG = "猫", "犬"


@pytest.fixture(autouse=True)
def _no_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine that has matplotlib's own fonts only."""
    style.fonts_for.cache_clear()
    own = Path(font_manager.findfont("DejaVu Sans")).parent
    here = [entry for entry in font_manager.fontManager.ttflist if Path(entry.fname).parent == own]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", here)
    yield
    style.fonts_for.cache_clear()


def tiny_font(path: Path, letters: str) -> None:
    """A font that has a square for each of the letters."""
    pen = TTGlyphPen(None)
    for place in ((0, 0), (0, 700), (700, 700), (700, 0)):
        (pen.lineTo if place != (0, 0) else pen.moveTo)(place)
    pen.closePath()
    names = [".notdef", *(f"u{ord(letter):04X}" for letter in letters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): f"u{ord(letter):04X}" for letter in letters})
    builder.setupGlyf(dict.fromkeys(names, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (800, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Tiny Sans", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


def plot(label: str) -> Figure:
    made = figure(LIGHT, 4, 3)
    axes = made.add_subplot()
    dress(axes, LIGHT, title=f"{label} and others", x="x", y="y")
    axes.barh([0, 1], [1, 2])
    axes.set_yticks([0, 1], [label, "plain"])
    return made


def test_a_letter_that_no_font_has_is_said_once_and_drawn_as_a_box(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for label in (CAT, f"{CAT} {CAT}", CAT):
            assert to_png(plot(label)).startswith(b"\x89PNG")
            to_svg(plot(label))
    (only,) = said
    assert CAT in str(only.message)
    assert "fonts-noto-cjk" in str(only.message)
    style.fonts_for.cache_clear()
    with own_warnings():
        to_png(plot(CAT))
    err = capsys.readouterr().err
    assert err.startswith("warning: ")
    assert err.count("\n") == 1


def test_an_installed_font_is_taken_for_the_letters_that_it_has(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=CAT):
        boxes = to_png(plot(CAT))
    style.fonts_for.cache_clear()
    tiny_font(tmp_path / "tiny.ttf", CAT)
    font_manager.fontManager.ttflist.append(font_manager.ttfFontProperty(font_manager.get_font(tmp_path / "tiny.ttf")))
    made = plot(CAT)
    assert to_png(made) != boxes
    families = {text.get_text(): text.get_fontfamily() for text in made.findobj(Text) if text.get_text()}
    assert families[CAT] == families[f"{CAT} and others"] == ["DejaVu Sans", "Tiny Sans"]
    assert families["plain"] == ["sans-serif"]
    with pytest.warns(UserWarning, match=DOG):  # which the tiny font has not
        to_png(plot(DOG))


def test_dollars_in_names_are_drawn_and_begin_no_formula() -> None:
    assert to_png(plot("$_$")) != to_png(plot("$x$")) != to_png(plot("x"))


def test_plain_letters_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(wanted: object) -> tuple[str, ...]:
        raise AssertionError(f"searched for {wanted}")

    with monkeypatch.context() as patched:
        patched.setattr(style, "fonts_for", refuse)
        to_png(plot("größer, naïve, кошка, γάτα"))
