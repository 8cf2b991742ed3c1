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
