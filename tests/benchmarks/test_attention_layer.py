from __future__ import annotations

import pytest
import torch

from benchmarks import attention
from benchmarks.attention import routes
from benchmarks.settings import FAMILIES, Choice, Grid, Rounds


def test_all_ways_of_a_family_compute_the_same() -> None:
    ways = routes(128, "cpu")
    x = torch.randn(2, 17, 128, generator=torch.Generator().manual_seed(1))
    theirs, ours = ways["timm differential"][1], ways["diffvit differential"][1]
    theirs.load_state_dict(ours.state_dict())
    for name, rivals in FAMILIES.items():
        expected = ways[name][0](x)
        here = [rival for rival in rivals if rival in ways]
        assert len(here) == 3
        for rival in here:
            torch.testing.assert_close(ways[rival][0](x), expected, atol=2e-6, rtol=1e-5, msg=rival)


def test_the_two_families_have_the_same_projections() -> None:
    ways = routes(64, "cpu", timm=False)
    assert "timm differential" not in ways
    sizes = {name: sum(parameter.numel() for parameter in module.parameters()) for name, (_, module) in ways.items()}
    assert sizes["diffvit differential"] - sizes["diffvit"] == 4 * 32 + 64


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")  # rms_norm of the paper's way
def test_a_whole_run() -> None:
    done: list[tuple[int, int]] = []
    found = attention.run(
        Grid(tokens=(5, 9), widths=(64,), tokens_per_step=20),
        Rounds(1, 1, 0),
        Choice(dtypes=("fp32", "bf16")),
        device="cpu",
        threads=1,
        progress=lambda now, total: done.append((now, total)),
    )
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert len(found["arms"]) == 8 * 2 * 2 * 2  # ways, numbers of tokens, dtypes, passes
    assert len(found["rows"]) == 6 * 2 * 2 * 2
    times = {(a["route"], a["tokens"], a["dtype"], a["passes"]): a["seconds"][0] for a in found["arms"]}
    for row in found["rows"]:
        key = (row["tokens"], row["dtype"], row["passes"])
        assert row["ratio"] == pytest.approx(times[row["peer"], *key] / times[row["ours"], *key])
        assert row["compiled"] is False
    assert found["settings"]["widths"] == (64,)


def test_a_way_without_a_kernel_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("No available kernel. Aborting execution.")

    layer = torch.nn.Linear(64, 64)
    monkeypatch.setattr(
        attention, "routes", lambda *_, **__: {"diffvit": (layer, layer), "SDPA flash": (refuse, layer)}
    )
    found = attention.run(Grid((4,), (64,), 8), Rounds(1, 1, 0), Choice(dtypes=("fp32",)), device="cpu", threads=1)
    assert {arm["route"] for arm in found["arms"]} == {"diffvit"}
    assert found["rows"] == []
