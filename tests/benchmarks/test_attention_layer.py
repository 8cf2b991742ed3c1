from __future__ import annotations

import torch

from benchmarks.attention import routes
from benchmarks.settings import FAMILIES


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
