"""One forward pass, many questions: answers against the models themselves, on packaged weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from diffvit.app.explorer import Explorer, Look, Question
from diffvit.attention import capture, rollout
from diffvit.attention.subject import Picture, Subject, fit, of_run
from diffvit.data.shapes import generate_at
from diffvit.training.evaluate import predict

NAMES = ("shapes-vit", "shapes-diffvit")


@pytest.fixture(scope="module")
def subjects() -> dict[str, Subject]:
    return {name: of_run(name, device="cpu") for name in NAMES}


def picture(index: int = 3) -> Picture:
    images = generate_at("test", torch.tensor([index]))
    return Picture(f"{index}", images.pixels[0], images.classes[int(images.labels[0])])


class Counted(nn.Module):
    """A patch embedding that counts its calls."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0
        self.proj, self.patch_size = inner.proj, inner.patch_size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.inner(images)


@pytest.mark.parametrize("name", NAMES)
def test_one_pass_answers_every_question(name: str) -> None:
    subject = of_run(name, device="cpu")
    counted = Counted(subject.model.patch_embed)
    subject.model.patch_embed = counted
    explorer = Explorer()
    for layer in range(4):
        for head in (None, 0, 1):
            for spot in (None, (0.1, 0.9)):
                look = explorer.look(subject, picture())
                look.maps(Question(layer, head, spot))
                look.rolled(Question(rollout={"fusion": "max"}))
                assert look.chances
    assert counted.calls == 1
    explorer.look(subject, picture(4))
    assert counted.calls == 2


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_the_models_own(subjects: dict[str, Subject], name: str) -> None:
    subject, shown = subjects[name], picture()
    look = Explorer().look(subject, shown)
    images = subject.normalised(shown.pixels[None])
    record = capture(subject.model, images)
    with torch.no_grad():
        torch.testing.assert_close(look.logits, subject.model(images)[0], rtol=1e-5, atol=1e-5)
    for layer in range(4):
        for query in (None, (2, 5)):
            spot = None if query is None else ((query[0] + 0.5) / 8, (query[1] + 0.5) / 8)
            for head in (None, 1):
                maps = look.maps(Question(layer, head, spot))
                heads = record.to_patches(layer, "effective", query)[0]
                wanted = heads.mean(0) if head is None else heads[head]
                torch.testing.assert_close(list(maps.values())[-1], wanted, rtol=1e-5, atol=1e-7)
    rules = {"fusion": "max", "discard": 0.5, "residual": 0.2}
    torch.testing.assert_close(look.rolled(Question(rollout=rules)), rollout(record, **rules)[0], rtol=1e-5, atol=1e-7)


def test_the_third_map_is_the_first_minus_the_second(subjects: dict[str, Subject]) -> None:
    look = Explorer().look(subjects["shapes-diffvit"], picture())
    first, taken, left = look.maps(Question(2, 1)).values()
    torch.testing.assert_close(left, first - taken, rtol=1e-5, atol=1e-7)
    assert float(taken.max()) > 0
    assert list(Explorer().look(subjects["shapes-vit"], picture()).maps(Question())) == ["attention"]


@pytest.mark.parametrize("size", [(40, 60), (32, 32), (500, 333)])
def test_a_file_is_seen_as_predict_sees_it(tmp_path: Path, subjects: dict[str, Subject], size: tuple[int, int]) -> None:
    pixels = torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)).numpy()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    subject = subjects["shapes-vit"]
    fitted = torch.from_numpy(fit(pixels.transpose(2, 0, 1), subject, "a.png"))
    look = Explorer().look(subject, Picture("a.png", fitted))
    (found,) = (each["top"] for each in predict("shapes-vit", [tmp_path / "a.png"], device="cpu", precision="fp32"))
    expected = pytest.approx([chance for _, chance in found], abs=1e-6)
    assert [chance for _, chance in look.chances[: len(found)]] == expected
    chances = dict(look.chances)  # by name too: of two nearly alike (1e-8 apart were seen) either may come first
    assert [chances[name] for name, _ in found] == expected


@settings(max_examples=60, deadline=None)
@given(
    st.integers(-5, 99),
    st.none() | st.integers(-5, 99),
    st.none() | st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
)
def test_any_question_has_an_answer(layer: int, head: int | None, spot: tuple[float, float] | None) -> None:
    question = Question(layer, head, spot)
    look = looked()
    for heat in look.maps(question).values():
        assert heat.shape == (8, 8)
        assert bool(heat.isfinite().all())
    assert 0 <= look.layer(question) < 4
    patch = look.patch(question)
    assert patch is None or (0 <= patch[0] < 8 and 0 <= patch[1] < 8)


_LOOKED: list[Look] = []


def looked() -> Look:
    if not _LOOKED:
        _LOOKED.append(Explorer().look(of_run("shapes-diffvit", device="cpu"), picture()))
    return _LOOKED[0]


def test_what_is_remembered_is_bounded(subjects: dict[str, Subject]) -> None:
    one = Explorer().look(subjects["shapes-vit"], picture())
    explorer = Explorer(budget=3 * one.nbytes)
    for index in range(10):
        explorer.look(subjects["shapes-vit"], picture(index))
    assert len(explorer._looks) == 3
