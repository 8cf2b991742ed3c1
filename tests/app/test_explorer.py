"""One forward pass, many maps: compared with the models themselves, on packaged weights."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from diffvit.app.explorer import Explorer, ForwardPass, MapSelection
from diffvit.app.models import Models
from diffvit.attention import attribute, capture, rollout
from diffvit.attention.inputs import LoadedModel, Sample, fit, load_model
from diffvit.data.shapes import generate
from diffvit.errors import ConfigError
from diffvit.training.evaluate import predict

EXPLORER = Explorer(Models([]))
NAMES = ("shapes-vit", "shapes-diffvit")


@pytest.fixture(scope="module")
def subjects() -> dict[str, LoadedModel]:
    return {name: load_model(name, device="cpu") for name in NAMES}


def picture(index: int = 3) -> Sample:
    images = generate("test", torch.tensor([index]))
    return Sample(f"{index}", images.pixels[0], images.classes[int(images.labels[0])])


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
def test_one_forward_pass_gives_every_map(name: str) -> None:
    subject = load_model(name, device="cpu")
    counted = Counted(subject.model.patch_embed)
    subject.model.patch_embed = counted
    explorer = Explorer(Models([]))
    for layer in range(4):
        for head in (None, 0, 1):
            for position in (None, (0.1, 0.9)):
                result = explorer.forward(subject, picture())
                result.maps(MapSelection(layer, head, position))
                result.followed(MapSelection(rollout={"fusion": "max"}))
                assert result.probabilities
    assert counted.calls == 1
    explorer = Explorer(Models([]), budget=3 * result.nbytes)
    for index in range(10):
        explorer.forward(subject, picture(index))
    assert counted.calls == 11
    assert len(explorer.passes) == 3


@pytest.mark.parametrize("name", NAMES)
def test_maps_and_logits_are_the_models_own(subjects: dict[str, LoadedModel], name: str) -> None:
    subject, shown = subjects[name], picture()
    result = EXPLORER.forward(subject, shown)
    images = subject.normalised(shown.pixels[None])
    record = capture(subject.model, images)
    with torch.no_grad():
        torch.testing.assert_close(result.logits, subject.model(images)[0], rtol=1e-5, atol=1e-5)
    for layer in range(4):
        for query in (None, (2, 5)):
            position = None if query is None else ((query[0] + 0.5) / 8, (query[1] + 0.5) / 8)
            for head in (None, 1):
                maps = result.maps(MapSelection(layer, head, position))
                heads = record.to_patches(layer, "effective", query)[0]
                wanted = heads.mean(0) if head is None else heads[head]
                torch.testing.assert_close(maps[-1].values, wanted, rtol=1e-5, atol=1e-7)
    rules = {"fusion": "max", "discard": 0.5, "residual": 0.2}
    torch.testing.assert_close(
        result.followed(MapSelection(rollout=rules))[0].values, rollout(record, **rules)[0], rtol=1e-5, atol=1e-7
    )


def test_the_third_map_is_the_first_minus_the_second(subjects: dict[str, LoadedModel]) -> None:
    result = EXPLORER.forward(subjects["shapes-diffvit"], picture())
    first, taken, left = result.maps(MapSelection(2, 1))
    torch.testing.assert_close(left.values, first.values - taken.values, rtol=1e-5, atol=1e-7)
    assert float(taken.values.max()) > 0
    assert first.uniform == pytest.approx(1 / 65)
    assert left.uniform == pytest.approx(1 / 65 - taken.uniform)
    (alone,) = EXPLORER.forward(subjects["shapes-vit"], picture()).maps(MapSelection())
    assert (alone.name, alone.uniform) == ("attention", pytest.approx(1 / 65))


@pytest.mark.parametrize("name", NAMES)
def test_an_attribution_is_that_of_the_class_asked_for(subjects: dict[str, LoadedModel], name: str) -> None:
    subject, shown = subjects[name], picture()
    result = EXPLORER.forward(subject, shown)
    for target in (None, "cross", "4"):
        named = subject.classes[4] if target == "4" else target or result.probabilities[0][0]
        found = result.followed(MapSelection(method="attnlrp", target=target))[-1]
        assert found[:2] == ("attnlrp", f"for {named}")
        images = subject.normalised(shown.pixels[None])
        wanted = attribute(subject.model, images, "attnlrp", list(subject.classes).index(named))[0]
        torch.testing.assert_close(found.values, wanted, rtol=1e-5, atol=1e-7)
    assert result.followed(MapSelection(method="attention"))[-1].meaning == "of no class"
    with pytest.raises(ConfigError, match="no class 'hart'"):
        result.followed(MapSelection(method="attnlrp", target="hart"))


def test_the_true_class_is_always_among_those_shown(subjects: dict[str, LoadedModel]) -> None:
    order = [name for name, _ in EXPLORER.forward(subjects["shapes-vit"], picture()).probabilities]
    for label, names in ((order[8], [*order[:5], order[8]]), (order[1], order[:5]), ("", order[:5])):
        shown = dataclasses.replace(picture(), label=label)
        result = Explorer(Models([])).forward(subjects["shapes-vit"], shown)
        assert [name for name, _ in result.likeliest] == names


@pytest.mark.parametrize("size", [(40, 60), (32, 32), (500, 333)])
def test_a_file_is_seen_as_predict_sees_it(
    tmp_path: Path, subjects: dict[str, LoadedModel], size: tuple[int, int]
) -> None:
    pixels = torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)).numpy()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    subject = subjects["shapes-vit"]
    fitted = torch.from_numpy(fit(pixels.transpose(2, 0, 1), subject, "a.png"))
    result = EXPLORER.forward(subject, Sample("a.png", fitted))
    (found,) = predict("shapes-vit", [tmp_path / "a.png"], device="cpu", precision="fp32").top()
    expected = pytest.approx([value for _, value in found], abs=1e-6)
    assert [value for _, value in result.probabilities[: len(found)]] == expected
    probabilities = dict(
        result.probabilities
    )  # by name too: of two nearly alike (1e-8 apart were seen) either may come first
    assert [probabilities[name] for name, _ in found] == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(-5, 99), st.none() | st.integers(-5, 99), st.none() | st.tuples(st.floats(-2, 2), st.floats(-2, 2)))
def test_any_selection_has_a_map(layer: int, head: int | None, position: tuple[float, float] | None) -> None:
    selection = MapSelection(layer, head, position)
    result = result_of_a_differential_model()
    for shown in result.maps(selection):
        assert shown.values.shape == (8, 8)
        assert bool(shown.values.isfinite().all())
    found_layer, found_head, patch = result.locate(selection)
    assert 0 <= found_layer < 4
    assert found_head in ((None,) if head is None else (0, 1))
    assert patch is None if position is None else patch is not None and set(patch) <= set(range(8))


@lru_cache
def result_of_a_differential_model() -> ForwardPass:
    return EXPLORER.forward(load_model("shapes-diffvit", device="cpu"), picture())
