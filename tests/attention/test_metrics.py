from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from diffvit.attention import metrics
from diffvit.data import shapes
from diffvit.errors import ConfigError
from diffvit.models.vit import VisionTransformer


def random_heat(seed: int, *shape: int, signed: bool = False) -> Tensor:
    heat = torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
    return heat - 0.5 if signed else heat


def random_masks(seed: int, n: int = 4, side: int = 12) -> Tensor:
    return random_heat(seed, n, side, side) > 0.6


def test_coverage_is_the_share_of_each_patchs_pixels() -> None:
    masks = random_masks(0)
    found = metrics.coverage(masks, (3, 4))
    for image in range(4):
        for row in range(3):
            for column in range(4):
                pixels = masks[image, 4 * row : 4 * row + 4, 3 * column : 3 * column + 3].tolist()
                inside = sum(sum(line) for line in pixels)
                assert float(found[image, row, column]) == pytest.approx(inside / 12)


def test_a_map_that_is_the_object_scores_full_marks() -> None:
    cover = torch.zeros(1, 4, 4)
    cover[0, 1:3, 1:3] = 1
    assert metrics.pointing_game(cover, cover).tolist() == [1]
    assert metrics.mass_on_object(cover, cover).tolist() == [1]
    assert metrics.overlap(cover, cover, 1.0).tolist() == [1]
    beside = 1 - cover
    assert metrics.pointing_game(beside, cover).tolist() == [0]
    assert metrics.mass_on_object(beside, cover).tolist() == [0]
    assert metrics.overlap(beside, cover).tolist() == [0]
    heat, halves = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]), torch.tensor([[[0.5, 0.4]], [[0.5, 0.4]]])
    assert metrics.pointing_game(heat, halves).tolist() == [1, 0]  # half a patch is a hit, less is not


def test_a_uniform_map_scores_what_chance_gives() -> None:
    cover = metrics.coverage(random_masks(3), (4, 4))
    heat = torch.full((4, 4, 4), 0.3)
    assert metrics.mass_on_object(heat, cover).tolist() == pytest.approx(cover.mean(dim=(1, 2)).tolist())
    hits = (cover >= 0.5).float().mean(dim=(1, 2))
    assert metrics.pointing_game(heat, cover).tolist() == pytest.approx(hits.tolist())


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100), share=st.floats(0.05, 1.0))
def test_scores_do_not_depend_on_the_scale_and_lie_between_0_and_1(seed: int, scale: float, share: float) -> None:
    heat, cover = random_heat(seed, 4, 4, 4, signed=True), metrics.coverage(random_masks(seed + 1), (4, 4))
    for score in (metrics.pointing_game, metrics.mass_on_object, lambda h, c: metrics.overlap(h, c, share)):
        found = score(heat, cover)
        assert found.min() >= 0
        assert found.max() <= 1 + 1e-6
        assert (score(heat * scale, cover) - found).abs().max() < 1e-5


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.01, 1.0))
def test_the_mass_mask_is_the_smallest_that_holds_the_share(seed: int, share: float) -> None:
    heat = random_heat(seed, 3, 4, 5, signed=True).double()
    kept = metrics.mass_mask(heat, share)
    for image, mask in zip(heat.clamp_min(0).flatten(1), kept.flatten(1), strict=True):
        held, total = float(image[mask].sum()), float(image.sum())
        assert held >= share * total - 1e-12
        assert held - float(image[mask].min()) < share * total  # without its least patch it would not hold it
        assert not mask[image == 0].any()
        rest = image[~mask]
        assert not len(rest) or rest.max() <= image[mask].min()  # no other choice of so many holds more


def test_the_mass_mask_in_closed_form() -> None:
    heat = torch.tensor([[4.0, 3.0], [2.0, 1.0]])
    for share, expected in (
        (0.4, [[1, 0], [0, 0]]),
        (0.6, [[1, 1], [0, 0]]),
        (0.9, [[1, 1], [1, 0]]),
        (1.0, [[1, 1], [1, 1]]),
    ):
        assert metrics.mass_mask(heat, share).int().tolist() == expected
    assert not metrics.mass_mask(-heat, 0.5).any()
    for wrong in (0.0, -1.0, 1.1):
        with pytest.raises(ConfigError, match="mass: must be above 0 and at most 1"):
            metrics.mass_mask(heat, wrong)


def test_overlap_by_counting_pixels() -> None:
    masks, heat = random_masks(5), random_heat(6, 4, 3, 3)
    found = metrics.overlap(heat, metrics.coverage(masks, (3, 3)), 0.6)
    kept = metrics.mass_mask(heat, 0.6).repeat_interleave(4, 1).repeat_interleave(4, 2)
    expected = (kept & masks).sum((1, 2)) / (kept | masks).sum((1, 2))
    assert (found - expected).abs().max() < 1e-6


class Bright(nn.Module):
    """Class 1 by the sum of the first channel: its probability in closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        total = self.weight * images[:, 0].sum(dim=(1, 2))
        return torch.stack([torch.zeros_like(total), total], dim=1)


def test_removal_in_closed_form() -> None:
    images = torch.zeros(1, 3, 4, 4)
    images[0, 0, :2, :2], images[0, 0, 2:, 2:] = 1.0, 0.5  # patch 0 adds 4, patch 3 adds 2
    heat = torch.tensor([[[0.4, 0.2], [0.1, 0.3]]])
    found = metrics.removal(Bright(), images, heat, steps=4)
    sigmoid = torch.sigmoid
    assert found.shares.tolist() == [0, 0.25, 0.5, 0.75, 1]
    left, put = torch.tensor([6.0, 2, 0, 0, 0]), torch.tensor([0.0, 4, 6, 6, 6])
    assert (found.deletion[0] - sigmoid(left)).abs().max() < 1e-6
    assert (found.insertion[0] - sigmoid(put)).abs().max() < 1e-6
    area = sum((a + b) / 2 / 4 for a, b in zip(sigmoid(left), sigmoid(left[1:]), strict=False))
    assert float(found.deletion_area) == pytest.approx(float(area), abs=1e-6)
    worst = metrics.removal(Bright(), images, -heat, steps=4)
    assert float(worst.deletion_area) > float(found.deletion_area)
    assert float(worst.insertion_area) < float(found.insertion_area)


def test_removal_starts_whole_ends_empty_and_does_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(embed_dim=32, depth=2, num_heads=4).eval()
    with torch.no_grad():
        model.head.weight.normal_()
    images, heat = torch.randn(6, 3, 32, 32), random_heat(0, 6, 8, 8)
    found = metrics.removal(model, images, heat, steps=7)
    with torch.no_grad():
        whole, empty = (model(x).softmax(dim=1) for x in (images, torch.zeros_like(images)))
    top = whole.argmax(dim=1, keepdim=True)
    for curve, start, end in ((found.deletion, whole, empty), (found.insertion, empty, whole)):
        assert (curve[:, 0] - start.gather(1, top)[:, 0]).abs().max() < 1e-6
        assert (curve[:, -1] - end.gather(1, top)[:, 0]).abs().max() < 1e-6
    parts = metrics.removal(model, images, heat, steps=7, batch_size=4)
    assert (parts.deletion - found.deletion).abs().max() < 1e-6
    assert found.deletion.shape == (6, 8)


def test_the_truth_of_shapes_fits_the_scores() -> None:
    images = shapes.generate("test", 40, size=32)
    assert images.masks is not None
    cover = metrics.coverage(images.masks, (8, 8))
    assert metrics.pointing_game(cover, cover).min() == 1
    assert metrics.mass_on_object(cover, cover).min() > 0.6
    assert metrics.overlap(cover, cover, 0.9).mean() > 0.6


@given(seed=st.integers(0, 1000), levels=st.integers(1, 40), side=st.sampled_from([2, 4]))
@settings(deadline=None, max_examples=30)
def test_auc_is_scikit_learns_over_the_pixels(seed: int, levels: int, side: int) -> None:
    masks = random_masks(seed, 3, 4 * side)
    masks[:, 0, 0], masks[:, 0, 1] = True, False
    heat = (levels * random_heat(seed + 1, 3, side, side, signed=True)).round()
    found = metrics.roc_auc(heat, metrics.coverage(masks, (side, side)))
    for image in range(3):
        pixels = heat[image].repeat_interleave(4, 0).repeat_interleave(4, 1)
        expected = roc_auc_score(masks[image].flatten(), pixels.flatten())
        assert found[image].item() == pytest.approx(expected, abs=1e-6)


@given(seed=st.integers(0, 1000), levels=st.integers(1, 40))
@settings(deadline=None, max_examples=30)
def test_rank_correlation_is_scipys(seed: int, levels: int) -> None:
    one, other = ((levels * random_heat(seed + each, 3, 4, 5, signed=True)).round() for each in range(2))
    found = metrics.rank_correlation(one, other)
    for image in range(3):
        if one[image].unique().numel() > 1 < other[image].unique().numel():
            expected = spearmanr(one[image].flatten(), other[image].flatten()).statistic
            assert found[image].item() == pytest.approx(expected, abs=1e-6)
        else:
            assert found[image].item() == 0


def test_saco_is_the_papers_loop() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(image_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2).double()
    for parameter in model.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    heat = random_heat(3, 3, 4, 4, signed=True)
    found = metrics.saco(model, images, heat, groups=5)
    for image in range(3):
        ranked = heat[image].flatten().argsort(descending=True).tolist()
        groups = [[patch for place, patch in enumerate(ranked) if place * 5 // 16 == group] for group in range(5)]
        with torch.no_grad():
            whole = model(images[image : image + 1]).softmax(1)[0]
            falls = []
            for group in groups:
                shown = images[image].clone()
                for patch in group:
                    row, column = 4 * (patch // 4), 4 * (patch % 4)
                    for channel in range(3):
                        shown[channel, row : row + 4, column : column + 4] = images[image, channel].mean()
                falls.append(float(whole.max() - model(shown[None]).softmax(1)[0, whole.argmax()]))
        sums = [sum(float(heat[image].flatten()[patch]) for patch in group) for group in groups]
        score = total = 0.0
        for i in range(5):
            for j in range(i + 1, 5):
                gap = sums[i] - sums[j]
                score += gap if falls[i] >= falls[j] else -gap
                total += abs(gap)
        assert found[image].item() == pytest.approx(score / total, abs=1e-6)
    assert metrics.saco(model, images, torch.ones(3, 4, 4), groups=4).tolist() == [0, 0, 0]


def test_saco_of_the_true_effects_is_one() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(image_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2).double()
    images = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    effects = torch.empty(1, 4, 4)
    with torch.no_grad():
        whole = model(images).softmax(1)
        for row in range(4):
            for column in range(4):
                shown = images.clone()
                shown[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = images.mean(dim=(2, 3), keepdim=True)
                effects[0, row, column] = (whole - model(shown).softmax(1))[0, whole.argmax()]
    assert metrics.saco(model, images, effects, groups=16).item() == pytest.approx(1.0)
    assert metrics.saco(model, images, -effects, groups=16).item() == pytest.approx(-1.0)


class Linear(nn.Module):
    """A classifier of two classes by a weighted sum of pixels."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, images: Tensor) -> Tensor:
        found = (images * self.weights).sum(dim=(1, 2, 3))
        return torch.stack([found, -found], dim=1)


def test_removed_pixels_are_the_weighted_means_of_their_neighbours() -> None:
    image, removed = random_heat(0, 3, 9, 7).double(), random_heat(1, 9, 7) > 0.3
    found = metrics.imputed(image, removed)
    assert torch.equal(found[:, ~removed], image[:, ~removed])
    for row, column in removed.nonzero().tolist():
        total, mean = 0.0, torch.zeros(3, dtype=torch.float64)
        for down in range(max(row - 1, 0), min(row + 2, 9)):
            for across in range(max(column - 1, 0), min(column + 2, 7)):
                apart = abs(down - row) + abs(across - column)
                weight = {0: 0.0, 1: 1 / 6, 2: 1 / 12}[apart]
                total, mean = total + weight, mean + weight * found[:, down, across]
        torch.testing.assert_close(found[:, row, column], mean / total, rtol=0, atol=1e-9)


def test_a_removed_slope_is_restored_exactly() -> None:
    slope = (torch.arange(8.0)[:, None] + 2 * torch.arange(8.0)[None])[None].double()
    removed = torch.zeros(8, 8, dtype=torch.bool)
    removed[2:5, 3:6] = True
    torch.testing.assert_close(metrics.imputed(slope.masked_fill(removed, -9.0), removed), slope)


def test_road_ranks_the_true_weights_first_and_does_not_depend_on_the_batch() -> None:
    weights = random_heat(2, 1, 3, 12, 12)
    model, images = Linear(0.05 * weights).double(), random_heat(3, 5, 3, 12, 12).double()
    effect = metrics.coverage((images * weights).sum(dim=1), (4, 4))
    good, bad = (metrics.road(model, images, each, batch_size=size) for each, size in ((effect, 5), (-effect, 2)))
    assert good.shares.tolist() == pytest.approx([2 / 16, 5 / 16, 8 / 16, 11 / 16, 14 / 16])
    assert (good.score > bad.score).all()
    torch.testing.assert_close(bad.most, good.least)  # without ties the reverse order
    torch.testing.assert_close(bad.score, -good.score)
    torch.testing.assert_close(metrics.road(model, images, effect, batch_size=2).most, good.most)
    assert not torch.equal(metrics.road(model, images, effect, seed=1).most, good.most)


def test_road_in_closed_form() -> None:
    """One patch left of a flat image: every removed pixel has its colour, whatever the order."""
    model = Linear(torch.full((1, 2, 4, 4), 0.01)).double()
    images = torch.full((1, 2, 4, 4), 3.0).double()
    found = metrics.road(model, images, random_heat(0, 1, 2, 2), shares=[0.75], noise=0.0)
    assert found.most.item() == pytest.approx(1 / (1 + math.exp(-2 * 0.96)))
    assert found.score.item() == pytest.approx(0.0, abs=1e-7)
    for shares in ([0.0], [0.5, 1.0], []):
        with pytest.raises(ConfigError, match="must remove 1 to 3 patches"):
            metrics.road(model, images, random_heat(0, 1, 2, 2), shares=shares)
