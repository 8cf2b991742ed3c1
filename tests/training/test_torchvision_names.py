from __future__ import annotations

import sys

from diffvit.training.torchvision_names import import_torchvision


def test_torchvision_can_be_imported_again() -> None:
    import_torchvision()
    assert "torchvision" in sys.modules
