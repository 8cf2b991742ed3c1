"""The report is made from the files alone, and a stale one is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffvit.errors import InputError
from diffvit.measuring import write
from tools import speed
from tools.pages import update

ENVIRONMENT = {
    **{"hardware": "A processor", "device": "cpu", "threads": 2, "cores": 2, "torch": "2.13.0", "diffvit": "0.1.0"},
    **{"timm": "1.0.31", "vit-pytorch": None, "transformers": None, "date": "2026-11-24", "load": 0.1},
}
HOW: dict[str, Any] = {"rounds": 2, "steps": 1, "warmup": 1, "peers": ["timm"]}
SIZES = {
    **{"embed_dim": 192, "depth": 9, "num_heads": 6, "mlp_ratio": 2.0, "patch_size": 4, "image_size": 32},
    **{"num_classes": 10, "batch_size": 128, "optimizer": "AdamW"},
}


def models(kind: str = "train", timm_parameters: int = 1000) -> dict[str, Any]:
    def arm(model: str, dtype: str, rate: float, parameters: int) -> dict[str, Any]:
        return {
            **{"model": model, "dtype": dtype, "compiled": False, "images_per_second": rate, "low": rate - 1},
            **{"high": rate + 1, "mfu": 0.5, "parameters": parameters, "flops_per_image": 2_000_000},
            **{"peak_memory": 50 * 2**20, "seconds": [1.0]},
        }

    rates = {("diffvit", "fp32"): 110.0, ("timm", "fp32"): 96.0, ("diffvit", "bf16"): 230.0, ("timm", "bf16"): 83.0}
    row = {"ours": "diffvit", "peer": "timm", "compiled": False, "quantity": "speed", "low": 2.0, "high": 2.8}
    return {
        "benchmark": kind,
        "settings": {**HOW, **SIZES},
        "environment": ENVIRONMENT,
        "products": [{"dtype": "fp32", "rows": 2, "inner": 3, "columns": 4, "best": 5e9, "median": 4e9}],
        "arms": [arm(*key, rate, timm_parameters if key[0] == "timm" else 1000) for key, rate in rates.items()],
        "rows": [{**row, "dtype": "auto", "ratio": 2.396}, {**row, "dtype": "fp32", "ratio": 1.146}],
    }


def layers() -> dict[str, Any]:
    cell = {"width": 128, "dtype": "bf16", "low": 1.0, "high": 3.0}
    arms = [
        {**cell, "route": route, "tokens": tokens, "passes": passes, "milliseconds": 1.25 * tokens, "seconds": [1.0]}
        for route in ("diffvit", "explicit", "diffvit differential")
        for tokens in (16, 65)
        for passes in ("forward", "forward+backward")
    ]
    row = {**cell, "ours": "diffvit", "peer": "explicit", "tokens": 65, "passes": "forward+backward", "ratio": 1.5}
    settings = {**HOW, "tokens": [16, 65], "widths": [64, 128, 192], "tokens_per_step": 8192}
    return {"benchmark": "attention", "settings": settings, "environment": ENVIRONMENT, "arms": arms, "rows": [row]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "reports" / "speed"
    for result in (models(), models("inference"), layers()):
        write(result, made)
    return made


def test_the_report_says_what_was_measured(folder: Path, tmp_path: Path) -> None:
    assert len(update(speed.documents(tmp_path), "speed", tmp_path, check=False)) == 4
    text = (folder / "report.md").read_text()
    for words in (
        "| diffvit over timm: speed | 2.40 (2.00 to 2.80) | 1.15 (2.00 to 2.80) |",
        "| timm | 1,000 | 2 M | 96 (95 to 97) | 83 (82 to 84) | 50% | 50% | 50 | 50 |",
        "A processor, cpu, 2 threads (2 cores), torch 2.13.0, timm 1.0.31, diffvit 0.1.0, 2026-11-24, 2 rounds of 1 ",
        "fp32 5 GFLOP/s (2 x 3 x 4)",
        "| 128 wide, 65 tokens | 81.25 | 81.25 | 81.25 |",
        "| diffvit over explicit, bf16 | 1.50 (1.00 to 3.00) |",
    ):
        assert words in text
    assert "vit-pytorch 1" not in text
    for name in ("train", "inference", "attention"):
        with Image.open(folder / f"{name}.png") as image:
            assert image.width > 800


def test_a_changed_result_makes_the_report_and_its_own_plot_stale(folder: Path, tmp_path: Path) -> None:
    def stale(check: bool = True) -> list[str]:
        return [line.partition(":")[0] for line in update(speed.documents(tmp_path), "speed", tmp_path, check=check)]

    assert len(stale(check=False)) == 4
    assert stale() == []
    changed = models()
    changed["arms"][0] |= {"images_per_second": 999.0, "low": 998.0, "high": 1001.0}
    write(changed, folder)
    assert stale() == ["reports/speed/report.md", "reports/speed/train.png"]
    write(models(), folder)
    write(layers(), tmp_path / "reports" / "speed-cuda")
    assert stale() == ["reports/speed-cuda/report.md", "reports/speed-cuda/attention.png"]


def test_a_report_without_results_and_a_damaged_result_are_bad_input(tmp_path: Path) -> None:
    assert speed.of_folder(tmp_path) == {}
    (tmp_path / "report.md").write_text("# Speed\n")
    with pytest.raises(InputError, match="there are no results beside it"):
        speed.of_folder(tmp_path)
    for text in ("not JSON", "[]", json.dumps({"benchmark": "inference"})):
        (tmp_path / "train.json").write_text(text)
        with pytest.raises(InputError, match="Measure it again: diffvit bench train"):
            speed.of_folder(tmp_path)
