"""Attribution and its scores against pytorch-grad-cam and Quantus."""

from __future__ import annotations

import numpy as np
import pytest
import quantus
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from quantus.functions.perturb_func import noisy_linear_imputation
from tiny import images_of, model_of
from torch import Tensor

from diffvit.attention.attribute import attribute, randomisation, randomised
from diffvit.attention.metrics import imputed


@pytest.mark.parametrize("settings", [{}, {"attention": "differential", "pool": "mean"}, {"registers": 2}])
def test_grad_cam_is_pytorch_grad_cams_on_the_last_blocks_norm(settings: dict[str, object]) -> None:
    model, images = model_of(**settings).float(), images_of(3).float()

    def reshape_transform(tokens: Tensor) -> Tensor:
        return tokens[:, model.prefix :].unflatten(1, model.patch_embed.grid).permute(0, 3, 1, 2)

    layer, targets = model.blocks[-1].norm1, [ClassifierOutputTarget(3)] * 3
    with GradCAM(model, [layer], reshape_transform=reshape_transform) as cam:
        cam(images, targets)
        seen = cam.activations_and_grads
        theirs = cam.get_cam_image(images, layer, targets, seen.activations[0].numpy(), seen.gradients[0].numpy())
    found = attribute(model, images, "grad-cam", 3)
    assert found.std() > 0
    torch.testing.assert_close(found, torch.from_numpy(theirs).clamp_min(0), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # of pytorch-grad-cam
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_imputation_is_that_of_quantus_and_of_pytorch_grad_cam(share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(3, 16, 12, generator=generator, dtype=torch.float64)
    removed = torch.rand(16, 12, generator=generator) < share
    found = imputed(image, removed)
    indices = np.flatnonzero(removed.numpy())
    np.testing.assert_allclose(
        found.numpy(), noisy_linear_imputation(image.numpy(), indices, noise=0.0), rtol=0, atol=1e-9
    )
    theirs = NoisyLinearImputer(noise=0.0)(image.float(), (~removed).float())
    torch.testing.assert_close(found.float(), theirs, rtol=0, atol=1e-5)


def test_randomisation_is_quantus_similarity_of_the_same_maps() -> None:
    model, images = model_of(), images_of(4)
    rows = randomisation(model, images, ["attnlrp", "rollout"])
    classes = model(images).argmax(dim=1)
    similarity = quantus.similarity_func.correlation_spearman
    for method in ("attnlrp", "rollout"):
        trained = attribute(model, images, method, classes)
        mine = [row for row in rows if row["method"] == method and row["stage"] != "trained"]
        for row, (stage, copy) in zip(mine, randomised(model), strict=True):
            other = attribute(copy, images, method, classes)
            expected = [similarity(a.numpy().ravel(), b.numpy().ravel()) for a, b in zip(trained, other, strict=True)]
            assert row["stage"] == stage
            assert row["correlation"] == pytest.approx(np.mean(expected), abs=1e-6)
