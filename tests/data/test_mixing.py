import math

import pytest
import torch

from diffvit.data.augment import Erasing, Mixing

N = 4000


def rectangle(mask):
    """Rows and columns of the rectangle that a (height, width) mask is; fails when it is not one."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    if not len(rows):
        return 0, 0
    box = mask[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
    assert bool(box.all())
    return box.shape[0], box.shape[1]


def erase(pixels, probability, epoch=0):
    return Erasing(probability)(pixels, 0, epoch, torch.arange(len(pixels)))


def draw(mixing, epoch=0, size=(32, 32)):
    return mixing.draw(0, epoch, torch.arange(N), 10, size)


# A value that noise has with chance 1 in 256 per byte: three equal ones mark an untouched pixel almost surely.
BLANK = torch.full((N, 3, 32, 32), 77, dtype=torch.uint8)


def test_erased_areas_and_aspects_are_the_papers():
    masks = (erase(BLANK, 1.0) != 77).any(1)
    height, width = torch.tensor([rectangle(mask) for mask in masks]).double().unbind(1)
    area = height * width / 1024
    assert 0.01 < float(area.min()) < 0.03
    assert 0.38 < float(area.max()) < 0.43
    assert float(area.mean()) == pytest.approx(0.21, abs=0.01)
    share_below = [float((area < edge).double().mean()) for edge in (0.115, 0.21, 0.305)]
    assert share_below == pytest.approx([0.25, 0.5, 0.75], abs=0.04)
    aspect = (height / width).log() / math.log(1 / 0.3)
    assert float(aspect.mean().abs()) < 0.03
    assert float(aspect.abs().max()) < 1.3  # whole pixels round small boxes
    assert float((aspect.abs() < 0.5).double().mean()) == pytest.approx(0.5, abs=0.06)


def test_erasing_writes_noise_and_leaves_the_rest():
    result = erase(BLANK, 1.0)
    touched = result[(result != 77).any(1, keepdim=True).expand_as(result)].double()
    assert float(touched.mean()) == pytest.approx(127.5, abs=0.5)
    assert float(touched.std()) == pytest.approx(73.9, abs=0.5)
    assert bool((BLANK == 77).all())
    assert not torch.equal(result, erase(BLANK, 1.0, epoch=1))


def test_erasing_hits_the_asked_share_of_images_and_every_pixel_alike():
    erased = (erase(BLANK, 0.25) != 77).any(1).double()
    touched, share = erased.mean((1, 2)), erased.mean(0)
    assert float((touched > 0).double().mean()) == pytest.approx(0.25, abs=0.03)
    assert float(touched[touched > 0].mean()) == pytest.approx(0.21, abs=0.02)  # the area is drawn apart
    assert float(share[0, 0]) > 0
    assert float((share - share.flip(0)).abs().max()) < 0.03
    assert float((share - share.flip(1)).abs().max()) < 0.03
    assert torch.equal(erase(BLANK, 0.0), BLANK)


def test_mixup_draws_one_lambda_for_image_and_target():
    mix = draw(Mixing(0.8, 0.0, 1.0))
    assert torch.equal(mix.rows, torch.arange(N))
    assert torch.equal(mix.weight.flatten(), mix.share)
    assert float(mix.share.double().mean()) == pytest.approx(0.5, abs=0.03)
    assert float(mix.share.double().var()) == pytest.approx(1 / (4 * 2.6), rel=0.06)


def test_cutmix_takes_the_share_that_is_left():
    size = (12, 20)
    mix = draw(Mixing(0.0, 1.0, 1.0), size=size)
    assert mix.weight.shape == (N, 1, *size)
    assert set(mix.weight.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(mix.share, mix.weight.mean((1, 2, 3)))
    for weight in mix.weight[:300, 0]:
        rectangle(weight == 0)


def test_cutmix_boxes_have_the_images_shape_and_lie_anywhere():
    mix = draw(Mixing(0.0, 1.0, 1.0), size=(32, 64))
    pasted = 1 - mix.weight[:, 0].double()
    # For sides s = sqrt(1 - lambda) and a uniform centre, s - s**2 / 4 of each axis is covered on average;
    # over a uniform lambda the mean of its square is 1/2 - 1/5 + 1/48.
    assert float(pasted.mean()) == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.012)
    whole = 0
    for one in pasted[:500]:
        rows, columns = rectangle(one > 0)
        inside = not (one[0].any() or one[-1].any() or one[:, 0].any() or one[:, -1].any())
        if inside and rows:
            whole += 1
            assert abs(2 * rows - columns) <= 2
    assert whole > 50
    cover = pasted.mean(0)
    assert float((cover - cover.flip(0)).abs().max()) < 0.06
    assert float((cover - cover.flip(1)).abs().max()) < 0.06


def test_mixup_and_cutmix_share_the_images():
    mix = draw(Mixing(0.8, 1.0, 1.0))
    boxed = ((mix.weight == 0) | (mix.weight == 1)).flatten(1).all(1)
    assert float(boxed.double().mean()) == pytest.approx(0.5, abs=0.03)
    torch.testing.assert_close(mix.share, mix.weight.mean((1, 2, 3)))


def test_partners_come_from_the_whole_set_alike_and_change_with_the_epoch():
    mixing = Mixing(0.8, 1.0, 1.0)
    partners = draw(mixing).partners
    counts = torch.bincount(partners, minlength=10).double()
    assert len(counts) == 10
    assert float(((counts - N / 10) ** 2 / (N / 10)).sum()) < 9 + 5 * math.sqrt(18)
    assert float((partners == draw(mixing, epoch=1).partners).double().mean()) == pytest.approx(0.1, abs=0.03)


def test_working_on_every_image_gives_what_working_on_the_chosen_gives():
    pixels = torch.randint(0, 256, (300, 3, 12, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    indices = torch.arange(300) * 7
    some, every = (Erasing(0.4, every=choice)(pixels, 3, 2, indices) for choice in (False, True))
    assert torch.equal(some, every)
    assert 0 < int((some != pixels).flatten(1).any(1).sum()) < 300
    for strengths in ((0.8, 0.0), (0.0, 1.0), (0.8, 1.0)):
        few = Mixing(*strengths, 0.4).draw(3, 2, indices, 1000, (12, 9))
        all_ = Mixing(*strengths, 0.4, every=True).draw(3, 2, indices, 1000, (12, 9))
        assert len(few.rows) / 300 == pytest.approx(0.4, abs=0.1)
        assert torch.equal(all_.rows, torch.arange(300))
        assert torch.equal(all_.partners[few.rows], few.partners)
        assert torch.equal(all_.weight[few.rows], few.weight)
        assert torch.equal(all_.share[few.rows], few.share)
        rest = torch.ones(300, dtype=torch.bool).index_fill(0, few.rows, False)
        assert int(rest.sum()) not in (0, 300)
        assert bool((all_.weight[rest] == 1).all() and (all_.share[rest] == 1).all())
