"""Compiling for training: what mode, and no silent end of it after many models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from diffvit.config import parse
from diffvit.training.compiled import compile_limits, compiled


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Any:
    yield
    torch._dynamo.reset()


class Layer(nn.Module):
    """Compiled anew for every width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def test_many_kinds_of_models_in_one_process_are_all_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[int] = []

    def backend(module: Any, inputs: Any) -> Any:
        graphs.append(1)
        return module.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **how: real(model, dynamic=how["dynamic"], backend=backend))
    config = parse({})
    with compile_limits():
        for width in range(1, 13):
            assert compiled(Layer(width), config, torch.device("cpu"))(torch.ones(width)).sum() == width
    assert len(graphs) == 12  # torch's usual limit is 8


@pytest.mark.parametrize(
    ("device", "accumulate", "mode"),
    [("cpu", 1, None), ("cuda", 1, "reduce-overhead"), ("cuda", 2, None)],
)
def test_graphs_are_for_one_pass_a_step_on_a_gpu(
    device: str, accumulate: int, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(torch, "compile", lambda model, **how: asked.update(how) or model)
    compiled(Layer(1), parse({"accumulate": accumulate}), torch.device(device))
    assert asked == {"dynamic": False, "mode": mode}
