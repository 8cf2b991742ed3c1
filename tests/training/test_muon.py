"""Batched Muon against torch's, and against the singular value decomposition."""

import pytest
import torch
from torch.optim import Muon

from diffvit.training.muon import BatchedMuon, orthogonalise

SHAPES = [(48, 16), (16, 16), (32, 16), (16, 32), (48, 16), (16, 16)]


def matrices(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def train(make, steps=5, start=None):
    parameters = [torch.nn.Parameter(matrix.clone()) for matrix in start or matrices(0)]
    optimizer = make(parameters)
    for step in range(1, steps + 1):
        for parameter, gradient in zip(parameters, matrices(step), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return parameters, optimizer


def test_it_computes_what_torchs_muon_does():
    expected, theirs = train(lambda p: Muon(p, lr=0.01, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"))
    found, ours = train(lambda p: BatchedMuon(p, lr=0.01, weight_decay=0.1, momentum=0.9))
    for one, other, start in zip(found, expected, matrices(0), strict=True):
        # Products of a batch may be rounded in another order, and they are bfloat16's.
        assert (one - other).norm() < 0.01 * (other - start).norm()
        torch.testing.assert_close(ours.state[one]["momentum_buffer"], theirs.state[other]["momentum_buffer"])


def test_a_batch_of_matrices_is_each_matrix_by_itself():
    many = torch.stack([torch.randn(16, 24, generator=torch.Generator().manual_seed(seed)) for seed in range(5)])
    apart = torch.cat([orthogonalise(matrix[None]) for matrix in many])
    assert apart.dtype == torch.bfloat16
    assert (orthogonalise(many) - apart).norm() < 0.01 * apart.norm()


@pytest.mark.parametrize("shape", [(16, 16), (16, 48), (48, 16)])
def test_the_step_is_the_nearest_orthogonal_matrix_up_to_the_iterations_slack(shape):
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    parameter = torch.nn.Parameter(torch.zeros(shape))
    parameter.grad = gradient
    BatchedMuon([parameter], lr=1.0).step()
    step = -parameter.detach() / (0.2 * max(shape) ** 0.5)
    left, values, right = torch.linalg.svd(step, full_matrices=False)
    assert 0.5 < values.min() <= values.max() < 1.3
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    assert ((left @ right) * (u @ v)).sum() / min(shape) > 0.98  # the cosine between the two rotations


def test_parts_of_a_matrix_are_made_orthogonal_by_themselves():
    whole, gradient = torch.nn.Parameter(torch.zeros(48, 16)), matrices(3)[0]
    parts = [torch.nn.Parameter(torch.zeros(16, 16)) for _ in range(3)]
    whole.grad = gradient
    for part, piece in zip(parts, gradient.split(16), strict=True):
        part.grad = piece.clone()
    BatchedMuon([{"params": [whole], "split": 3}], lr=0.1).step()
    BatchedMuon(parts, lr=0.1).step()
    apart = torch.cat([part.detach() for part in parts])
    assert (whole - apart).norm() < 0.01 * apart.norm()
    left = torch.linalg.svdvals(whole.detach()[:16])
    assert left.max() / left.min() < 2


def test_without_a_gradient_nothing_moves():
    parameter, other = torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(4, 4))
    other.grad = torch.ones(4, 4)
    optimizer = BatchedMuon([parameter, other], lr=0.1, weight_decay=0.1)
    assert optimizer.step(lambda: torch.tensor(3.0)) == 3.0
    assert torch.equal(parameter, torch.ones(4, 4))
    assert not torch.equal(other, torch.ones(4, 4))
    assert parameter not in optimizer.state


@pytest.mark.parametrize(("shape", "split"), [((4,), 1), ((2, 2, 2), 1), ((4, 4), 3)])
def test_what_is_no_matrix_is_refused(shape, split):
    with pytest.raises(ValueError, match=f"{split} x n rows \\(found {'x'.join(map(str, shape))}\\)"):
        BatchedMuon([{"params": [torch.nn.Parameter(torch.ones(shape))], "split": split}], lr=0.1)
