"""Attribution against Captum, closed forms and finite differences, in float64; who finds a planted cause."""

from __future__ import annotations

import sys
import time
from typing import Any

import captum.attr
import pytest
import torch
from tiny import images_of, model_of
from torch import Tensor, nn

import diffvit
from diffvit.attention import METHODS, attribute, capture, rollout
from diffvit.errors import ConfigError, InputError
from diffvit.models.attention import Attention, AttentionMaps
from diffvit.models.vit import VisionTransformer

ATTENTIONS = ("softmax", "differential", "differential-split")
TARGET = torch.tensor([3, 1])


def by_patch(pixels: Tensor) -> Tensor:
    return nn.functional.avg_pool2d(pixels.sum(dim=1, keepdim=True), 4)[:, 0] * 16


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_methods_of_the_input_are_captums(attention: str, pool: str) -> None:
    model, images = model_of(attention=attention, pool=pool, pos_embed="sincos-2d+rope-2d"), images_of()
    images.requires_grad_()
    covered = captum.attr.Occlusion(model).attribute(images, (3, 4, 4), strides=(3, 4, 4), target=TARGET)
    expected = {
        "input-x-gradient": by_patch(captum.attr.InputXGradient(model).attribute(images, target=TARGET)),
        "integrated-gradients": by_patch(
            captum.attr.IntegratedGradients(model).attribute(images, target=TARGET, n_steps=16)
        ),
        "occlusion": covered[:, 0, ::4, ::4],
    }
    options = {"integrated-gradients": {"steps": 16}}
    for method, theirs in expected.items():
        mine = attribute(model, images, method, TARGET, **options.get(method, {}))
        bound = 1e-10 if method == "input-x-gradient" else 1e-6  # Captum's points and differences are float32
        torch.testing.assert_close(mine, theirs.detach().double(), rtol=10 * bound, atol=bound)
    plain = attribute(model, images, "smoothgrad", TARGET, samples=1, noise=0.0)
    torch.testing.assert_close(plain, by_patch(captum.attr.Saliency(model).attribute(images, target=TARGET)))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_integrated_gradients_are_complete(attention: str) -> None:
    model, images = model_of(attention=attention), images_of()
    found = attribute(model, images, "integrated-gradients", 2, steps=256).sum(dim=(1, 2))
    rise = (model(images) - model(torch.zeros_like(images)))[:, 2].detach()
    torch.testing.assert_close(found, rise, rtol=0.01, atol=0)


class Grid(nn.Module):
    """Tokens as (batch, channels, rows, columns), which a Grad-CAM for convolutions reads."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mT.unflatten(2, (3, 3))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_grad_cam_is_captums_on_the_last_blocks_norm(attention: str) -> None:
    model, images = model_of(attention=attention, pool="mean"), images_of()
    last: Any = model.blocks[-1]
    entering = model.blocks[:-1](model.tokens(images)).detach()

    class Rest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.grid, self.after = last.norm1, Grid(), last

        def forward(self, x: Tensor) -> Tensor:
            z = self.grid(self.norm(x)).flatten(2).mT
            return model.forward_head(last.after(x, last.attn(z)))

    rest = Rest()
    cam = captum.attr.LayerGradCam(rest, rest.grid).attribute(entering, target=TARGET, relu_attributions=True)
    assert isinstance(cam, Tensor)
    torch.testing.assert_close(attribute(model, images, "grad-cam", TARGET), cam[:, 0].detach())


def test_smoothgrad_is_the_gradient_of_a_linear_model_whatever_the_noise() -> None:
    model, images = linear_model(), images_of()
    smooth = attribute(model, images, "smoothgrad", 2, samples=3, noise=0.5)
    torch.testing.assert_close(smooth, attribute(model, images, "smoothgrad", 2, samples=1, noise=0.0))
    model = model_of()
    one, other = (attribute(model, images, "smoothgrad", 2, samples=2, seed=seed) for seed in (0, 1))
    assert (one - other).abs().max() > 1e-6
    torch.testing.assert_close(one[1:], attribute(model, images[1:], "smoothgrad", 2, samples=2), rtol=1e-12, atol=0)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_gradients_of_the_maps_are_finite_differences(attention: str) -> None:
    model, images = model_of(attention=attention), images_of(1)
    record = capture(model, images, grad=True, target=3, layers=[0])
    assert record.gradients is not None
    block: Any = model.blocks[0]
    step = 1e-6

    def score(change: Tensor) -> float:
        with torch.no_grad():
            x = model.tokens(images)
            normed = block.norm1(x)
            x = block.after(x, block.attn.read(block.attn.maps(normed).effective + change, normed))
            return model.forward_head(model.blocks[1:](x))[0, 3].item()

    nothing = torch.zeros_like(record.gradients[0])
    for place in ((0, 0, 0, 4), (0, 1, 5, 2), (0, 0, 9, 9)):
        change = nothing.clone()
        change[place] = step
        slope = (score(change) - score(-change)) / (2 * step)
        assert record.gradients[0][place].item() == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_gradient_rollout_entry_by_entry(attention: str, pool: str) -> None:
    model, images = model_of(attention=attention, pool=pool), images_of()
    record = capture(model, images, grad=True, target=TARGET)
    assert record.gradients is not None
    found = attribute(model, images, "gradient-rollout", TARGET)
    for image in range(2):
        tokens = record.layers[0].positive.shape[-1]
        product = torch.eye(tokens, dtype=torch.float64)
        for maps, gradient in zip(record.layers, record.gradients, strict=True):
            step = torch.eye(tokens, dtype=torch.float64)
            for head_map, head_gradient in zip(maps.effective[image], gradient[image], strict=True):
                step += (head_map * head_gradient).clamp_min(0) / len(gradient[image])
            product = step @ product
        row = product[0, 1:] if pool == "cls" else product.mean(dim=0)
        torch.testing.assert_close(found[image].flatten(), row)


def test_methods_of_the_maps_alone_are_those_of_capture() -> None:
    model, images = model_of(attention="differential"), images_of()
    record = capture(model, images)
    torch.testing.assert_close(attribute(model, images, "attention"), record.to_patches(-1).mean(dim=1))
    torch.testing.assert_close(attribute(model, images, "attention", layer=0), record.to_patches(0).mean(dim=1))
    torch.testing.assert_close(attribute(model, images, "rollout"), rollout(record))


@pytest.mark.parametrize("method", METHODS)
def test_differential_attention_with_lambda_0_is_softmax_attention(method: str) -> None:
    softmax, split = model_of(), model_of(attention="differential-split")
    state = softmax.state_dict()
    missing, unexpected = split.load_state_dict(state, strict=False)
    assert not unexpected
    assert missing
    for block in split.blocks:
        block.attn.lambda_.data.zero_()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    images = images_of()
    one, other = (attribute(model, images, method, 1) for model in (softmax, split))
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_an_image_has_the_same_map_alone_and_in_a_batch(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = model_of(attention="differential"), images_of(5)
    whole = attribute(model, images, method)
    torch.testing.assert_close(whole[3:4], attribute(model, images[3:4], method), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(whole, attribute(model, images, method, model(images).argmax(dim=1)))
    monkeypatch.setattr(sys.modules["diffvit.attention.attribute"], "_MOST", 2)
    torch.testing.assert_close(whole, attribute(model, images, method), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_the_target_matters_exactly_where_the_method_is_of_a_class(method: str) -> None:
    model, images = model_of(), images_of()
    one, other = (attribute(model, images, method, target) for target in (0, 1))
    assert torch.equal(one, other) != METHODS[method].of_class


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_left_as_it_was(method: str) -> None:
    model, images = model_of(drop_path=0.5).train(), images_of()
    first = attribute(model, images, method, 0)
    assert model.training
    assert all(each.requires_grad and each.grad is None for each in model.parameters())
    assert not first.requires_grad
    torch.testing.assert_close(first, attribute(model, images, method, 0), rtol=0, atol=0)


class WithoutRead(nn.Module):
    """Attention that has only what forward passes and maps need."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.inner, self.num_heads = attention, attention.num_heads

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)

    def maps(self, x: Tensor) -> AttentionMaps:
        return self.inner.maps(x)


def test_what_does_not_fit_is_refused() -> None:
    model, named, images = model_of(), model_of(), images_of()
    named.classes = list("abcde")
    with pytest.raises(ConfigError, match=r"'gradcam'.*Did you mean 'grad-cam'"):
        attribute(model, images, "gradcam")
    with pytest.raises(ConfigError, match="steps: is not an option of attnlrp"):
        attribute(model, images, "attnlrp", steps=3)
    with pytest.raises(ConfigError, match=r"no such class .found 5 vs 0 to 4"):
        attribute(model, images, "attnlrp", 5)
    with pytest.raises(ConfigError, match=r"no target 'cat' .have a, b, c, d, e"):
        attribute(named, images, "attnlrp", "cat")
    assert torch.equal(attribute(named, images, "attnlrp", "d"), attribute(model, images, "attnlrp", 3))
    assert torch.equal(attribute(named, images, "attnlrp", torch.tensor(3)), attribute(model, images, "attnlrp", 3))
    with pytest.raises(ConfigError, match=r"target: is not one class, or one for each image .found 3 vs 2"):
        attribute(model, images, "attnlrp", torch.tensor([0, 1, 2]))
    with pytest.raises(ConfigError, match=r"no such class .found -1 to 2"):
        attribute(model, images, "attnlrp", torch.tensor([2, -1]))
    with pytest.raises(ConfigError, match="no such layer"):
        attribute(model, images, "attention", layer=2)
    with pytest.raises(ConfigError, match="at least 1"):
        attribute(model, images, "integrated-gradients", steps=0)
    with pytest.raises(InputError, match="normalised floats"):
        attribute(model, images[0], "attnlrp")
    with pytest.raises(ConfigError, match="attnlrp explains a class, but the model has no head"):
        attribute(model_of(num_classes=0), images, "attnlrp")
    assert attribute(model_of(num_classes=0), images, "rollout").shape == (2, 3, 3)
    block: Any = model.blocks[0]
    block.attn = WithoutRead(block.attn)
    with pytest.raises(ConfigError, match="read"):
        attribute(model, images, "gradient-rollout")
    assert attribute(model, images, "attnlrp").shape == (2, 3, 3)


def linear_model() -> VisionTransformer:
    """Logits that are linear in the pixels: the blocks add nothing, the last norm is the identity."""
    model = model_of(pool="mean", depth=1)
    model.norm = nn.Identity()
    with torch.no_grad():
        for name in ("attn.proj", "mlp.fc2"):
            part = model.blocks[0].get_submodule(name)
            for parameter in part.parameters():
                parameter.zero_()
    return model


def copying_model(place: int) -> VisionTransformer:
    """A head of [CLS] that attends to one patch, by its position, and copies it; the class is read from [CLS] alone."""
    model = model_of(pool="cls", depth=1, num_heads=1)
    block: Any = model.blocks[0]
    with torch.no_grad():
        model.pos_embed.zero_()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
        model.pos_embed[0, place + 1, 0] = 60.0  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]
        model.cls_token.zero_()  # pyright: ignore[reportOptionalMemberAccess]
        model.cls_token[0, 0, 1] = 60.0  # pyright: ignore[reportOptionalSubscript]
        block.norm1.weight.fill_(1.0)
        block.norm1.bias.zero_()
        block.attn.qkv.weight.zero_()
        block.attn.qkv.bias.zero_()
        block.attn.qkv.weight[0, 1] = 20.0  # the query of [CLS]
        block.attn.qkv.weight[16, 0] = 20.0  # the key of the patch
        block.attn.qkv.weight[32:] = torch.randn(16, 16)
        for parameter in block.mlp.fc2.parameters():
            parameter.zero_()
    return model


def finds(found: Tensor, place: int) -> bool:
    """Whether the planted patch has nearly all of the map."""
    share = found.abs().flatten() / found.abs().sum()
    return share[place].item() > 0.99


FIND_PIXELS = {"input-x-gradient", "integrated-gradients", "occlusion", "attnlrp"}
FIND_COPIED = set(METHODS) - {"grad-cam"}


@pytest.mark.parametrize("method", METHODS)
def test_who_finds_planted_pixels_of_a_linear_model(method: str) -> None:
    model, place = linear_model(), 5
    image = torch.zeros(1, 3, 12, 12, dtype=torch.float64)
    image[:, :, 4:8, 8:12] = images_of()[:1, :, :4, :4]  # patch 5 of 3 x 3
    found = attribute(model, image, method, 2)[0]
    assert (bool(found.abs().sum() > 0) and finds(found, place)) == (method in FIND_PIXELS)
    if method in FIND_PIXELS - {"attnlrp"}:  # whose biases keep relevance back
        rise = (model(image) - model(torch.zeros_like(image)))[0, 2].detach()
        torch.testing.assert_close(found.flatten()[place], rise)


@pytest.mark.parametrize("method", METHODS)
def test_who_finds_the_patch_that_a_head_copies(method: str) -> None:
    place = 4
    model, image = copying_model(place), images_of(1)
    record = capture(model, image)
    assert record.layers[0].effective[0, 0, 0, place + 1] > 0.999
    assert finds(attribute(model, image, "occlusion", 2)[0], place)
    assert finds(attribute(model, image, method, 2)[0], place) == (method in FIND_COPIED)


@pytest.mark.cifar10
def test_all_methods_on_eight_images_take_seconds(cifar10_dir: Any) -> None:
    from diffvit.data import sources

    model: Any = diffvit.load("cifar10-diffvit")
    images = sources.load("cifar10", "test", data_dir=cifar10_dir, image_size=32, shapes={})
    batch = torch.stack([model.preprocess(each) for each in images.pixels[:8]])
    start = time.perf_counter()
    for method in METHODS:
        found = attribute(model, batch, method)
        assert found.shape == (8, 8, 8)
        assert found.isfinite().all()
    assert time.perf_counter() - start < 30
