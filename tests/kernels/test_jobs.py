"""What Python hands to the kernels."""

from __future__ import annotations

import ctypes

import pytest
import torch

from diffvit.kernels import build, jobs


def test_a_view_gives_bytes() -> None:
    x = torch.zeros(2, 3, 96, dtype=torch.bfloat16)[:, :, 32:64]
    view = jobs.View.of(x)
    assert (view.data, view.image, view.token) == (x.data_ptr(), 3 * 96 * 2, 96 * 2)


@pytest.mark.native
@pytest.mark.parametrize("name", list(jobs.JOBS))
def test_both_languages_agree_on_the_size_of_a_job(name: str) -> None:
    size = ctypes.CDLL(str(build.built()))[f"{name}_bytes"]
    size.restype = ctypes.c_int64
    assert size() == ctypes.sizeof(jobs.JOBS[name])
