import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffvit.config import parse
from diffvit.data.augment import Augment
from diffvit.data.batches import channel_statistics, normalise
from diffvit.data.image_ops import brightness, contrast, saturation
from diffvit.data.random_draws import Stream, hash_uniform
from diffvit.errors import ConfigError

N, CLASSES, SIZE = 60, 7, (12, 10)
_generator = torch.Generator().manual_seed(0)
PIXELS = torch.randint(0, 256, (N, 3, *SIZE), dtype=torch.uint8, generator=_generator)
LABELS = torch.randint(0, CLASSES, (N,), generator=_generator)
MEAN, STD = channel_statistics(PIXELS)
ALL = torch.arange(N)

SINGLE = {
    "flip": {"flip": True},
    "crop": {"crop": 3},
    "color_jitter": {"color_jitter": 0.4},
    "randaugment": {"policy": "randaugment"},
    "trivialaugment": {"policy": "trivialaugment"},
    "erasing": {"erasing": 0.5},
    "mixup": {"mixup": 0.8},
    "cutmix": {"cutmix": 1.0},
    "mixup and cutmix": {"mixup": 0.8, "cutmix": 1.0, "mix_probability": 0.6},
}
OWN = {"flip": True, "crop": 3, "color_jitter": 0.3, "policy": "randaugment", "erasing": 0.3}
EVERYTHING = OWN | {"mixup": 0.8, "cutmix": 1.0, "mix_probability": 0.7}


def make(chosen=None, pixels=PIXELS, labels=LABELS, **other):
    where = {name: other.pop(name) for name in ("mean", "std", "device") if name in other}
    model = {"num_classes": other.pop("num_classes", CLASSES)}
    config = parse({"seed": 5, "augment": chosen or {}, "model": model, **other})
    return Augment(pixels, labels, config=config, **{"mean": MEAN, "std": STD, **where})


def one_hot(labels):
    return torch.eye(CLASSES)[labels]


@pytest.mark.parametrize("chosen", [{}, {"mixup": 0.8, "cutmix": 1.0, "mix_probability": 0.0}])
def test_all_off_is_the_bare_normalised_image(chosen):
    batch = make(chosen)(ALL, 3)
    assert torch.equal(batch.images, normalise(PIXELS, MEAN, STD))
    assert torch.equal(batch.targets, one_hot(LABELS))
    assert torch.equal(batch.labels, LABELS)
    assert batch.images.dtype == batch.targets.dtype == torch.float32
    assert make(EVERYTHING)(ALL[:1], 0).images.shape == (1, 3, *SIZE)
    assert make(EVERYTHING)(ALL[:0], 0).targets.shape == (0, CLASSES)


@settings(deadline=None, max_examples=12)
@given(
    order=st.permutations(range(N)),
    cuts=st.lists(st.integers(1, N - 1), unique=True, max_size=6),
    epoch=st.integers(0, 99),
)
def test_the_batch_split_and_order_change_nothing(order, cuts, epoch):
    augment = make(EVERYTHING, label_smoothing=0.1)
    whole = augment(ALL, epoch)
    shuffled = torch.tensor(order)
    for part in torch.tensor_split(shuffled, sorted(cuts)):
        batch = augment(part, epoch)
        for name in ("images", "targets", "labels"):
            assert torch.equal(getattr(batch, name), getattr(whole, name)[part]), name


@pytest.mark.parametrize("name", list(SINGLE))
def test_a_sample_looks_the_same_again_and_different_in_another_epoch_or_seed(name):
    augment = make(SINGLE[name])
    pixels, labels, indices = PIXELS.clone(), LABELS.clone(), ALL.clone()
    first = augment(ALL, 1)
    for given_, before in ((PIXELS, pixels), (LABELS, labels), (ALL, indices)):
        assert torch.equal(given_, before)
    augment(ALL.flip(0), 2)
    assert torch.equal(make(SINGLE[name])(ALL, 1).images, first.images)
    assert torch.equal(augment(ALL, 1).images, first.images)
    for other in (augment(ALL, 2), make(SINGLE[name], seed=6)(ALL, 1), make()(ALL, 1)):
        same = (other.images == first.images).flatten(1).all(1).double().mean()
        assert float(same) < 0.9
    assert torch.equal(first.labels, LABELS)


def coordinates(size):
    """One image whose channels hold each pixel's row, column and 0."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.stack([rows, columns, torch.zeros_like(rows)]).to(torch.uint8)


def test_crops_and_flips_are_drawn_evenly_and_apart():
    n, size, pad = 20_000, 9, 2
    pixels = coordinates(size).expand(n, -1, -1, -1)
    augment = make({"flip": True, "crop": pad}, pixels, torch.zeros(n, dtype=torch.int64), seed=0)
    result = augment.pictures(torch.arange(n), 0).long()
    middle = size // 2
    down, across = result[:, 0, middle, middle] - middle, result[:, 1, middle, middle] - middle
    mirrored = (result[:, 1, middle, middle + 1] < result[:, 1, middle, middle]).long()
    assert int(down.abs().max()) == int(across.abs().max()) == pad
    counts = torch.bincount((down + pad) * 10 + (across + pad) * 2 + mirrored, minlength=50).double()
    assert len(counts) == 50
    assert float(((counts - n / 50) ** 2 / (n / 50)).sum()) < 49 + 5 * 98**0.5


def test_switching_one_augmentation_off_leaves_the_others_draws():
    crop, both = make({"crop": 3}).pictures(ALL, 4), make({"crop": 3, "flip": True}).pictures(ALL, 4)
    flip = make({"flip": True}).pictures(ALL, 4)
    unflipped = (flip == PIXELS).flatten(1).all(1)
    assert 0 < int(unflipped.sum()) < N
    assert torch.equal(both[unflipped], crop[unflipped])
    assert not torch.equal(both[~unflipped], crop[~unflipped])


def test_colour_jitter_is_brightness_then_contrast_then_saturation():
    factors = 1 + 0.4 * (2 * hash_uniform(5, 2, ALL, Stream.JITTER, 3) - 1)
    expected = saturation(contrast(brightness(PIXELS, factors[:, 0]), factors[:, 1]), factors[:, 2])
    assert torch.equal(make({"color_jitter": 0.4}).pictures(ALL, 2), expected)


@pytest.mark.parametrize("chosen", [EVERYTHING, SINGLE["mixup"], SINGLE["cutmix"], SINGLE["mixup and cutmix"]])
def test_a_mixed_image_is_two_augmented_pictures_and_its_target_says_how_much_of_each(chosen):
    """Found by search: some partner's own picture of this epoch, with the share that the target names."""
    augment = make(chosen)
    batch = augment(ALL, 3)
    pictures = normalise(augment.pictures(ALL, 3), MEAN, STD)
    boxes = blends = plain = 0
    for i in range(N):
        if torch.equal(batch.images[i], pictures[i]):
            plain += 1
            continue
        own, found = pictures[i], False
        for j in range(N):
            other = pictures[j]
            pasted = (batch.images[i] == other).all(0)
            kept = (batch.images[i] == own).all(0)
            difference = (own - other).flatten()
            share = float((batch.images[i] - other).flatten() @ difference / difference.dot(difference).clamp(min=1e-9))
            if bool((pasted | kept).all()):
                share, boxes, found = float((~pasted | kept).double().mean()), boxes + 1, True
            elif torch.allclose(batch.images[i], share * own + (1 - share) * other, atol=1e-4):
                blends, found = blends + 1, True
            if found:
                expected = share * one_hot(LABELS[i]) + (1 - share) * one_hot(LABELS[j])
                # Where both pictures agree in a pixel the box's edge cannot be seen.
                torch.testing.assert_close(batch.targets[i], expected, rtol=0, atol=0.05 if len(chosen) > 3 else 1e-4)
                break
        assert found, i
    assert (boxes > 0) == ("cutmix" in chosen)
    assert (blends > 0) == ("mixup" in chosen)
    assert plain >= N * (1 - chosen.get("mix_probability", 1.0)) * 0.4


def test_label_smoothing_spreads_its_share_over_all_classes():
    targets = make(label_smoothing=0.1)(ALL, 0).targets
    torch.testing.assert_close(targets, 0.9 * one_hot(LABELS) + 0.1 / CLASSES)
    mixed, plain = make({"mixup": 0.8}, label_smoothing=0.1), make({"mixup": 0.8})
    torch.testing.assert_close(mixed(ALL, 0).targets, 0.9 * plain(ALL, 0).targets + 0.1 / CLASSES)
    torch.testing.assert_close(mixed(ALL, 0).targets.sum(1), torch.ones(N), rtol=0, atol=1e-6)


def test_a_memory_mapped_set_gives_the_same_batches(tmp_path):
    mapped = np.memmap(tmp_path / "pixels", dtype=np.uint8, mode="w+", shape=tuple(PIXELS.shape))
    mapped[:] = PIXELS.numpy()
    indices = torch.tensor([3, 59, 0, 17])
    ours, theirs = make(EVERYTHING, torch.from_numpy(mapped))(indices, 1), make(EVERYTHING)(indices, 1)
    assert torch.equal(ours.images, theirs.images)
    assert torch.equal(ours.targets, theirs.targets)


def test_what_cannot_be_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"augment.crop: cannot reflect 10 pixels .* 10 pixels wide \(at most 9\)"):
        make({"crop": 10})
    assert make({"crop": 9})(ALL, 0).images.shape == PIXELS.shape
    with pytest.raises(ConfigError, match=r"model.num_classes: the labels reach from 0 to 6, the classes from 0 to 2"):
        make(num_classes=3)


@pytest.mark.cuda
@pytest.mark.parametrize("chosen", [{}, *SINGLE.values(), EVERYTHING])
def test_a_gpu_makes_the_same_pictures(chosen):
    here, there = make(chosen, label_smoothing=0.1), make(chosen, label_smoothing=0.1, device="cuda")
    assert torch.equal(here.pictures(ALL, 2), there.pictures(ALL, 2).cpu())
    ours, theirs = here(ALL, 2), there(ALL, 2)
    torch.testing.assert_close(ours.images, theirs.images.cpu(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.targets, theirs.targets.cpu(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [*SINGLE, "everything"])
def test_grey_images_are_augmented_as_rgb_images_of_equal_channels(name):
    chosen = {**SINGLE, "everything": EVERYTHING}[name]
    one = make(chosen, PIXELS[:, :1], mean=MEAN[:1], std=STD[:1])(ALL, 2)
    three = make(chosen, PIXELS[:, :1].expand(-1, 3, -1, -1), mean=MEAN[:1].expand(3), std=STD[:1].expand(3))(ALL, 2)
    assert torch.equal(one.targets, three.targets)
    if not chosen.get("erasing"):  # each channel of an erased rectangle has noise of its own
        torch.testing.assert_close(one.images.expand(-1, 3, -1, -1), three.images, atol=1e-6, rtol=0)
    assert one.images.shape == (N, 1, *SIZE)
