"""``make demo``: trains a ViT and a Diff-ViT of equal size where the newcomer can watch, then compares them."""

from __future__ import annotations

import sys
from pathlib import Path

from diffvit.cli.train import free_folder
from diffvit.config import resolve
from diffvit.data.sources import resolve_auto
from diffvit.errors import DiffvitError
from diffvit.reporting.render import compare
from diffvit.training.loop import train
from diffvit.training.memory import keep_freed_memory
from diffvit.training.progress import make_progress


def demo(recipes: Path, out: Path) -> Path:
    """Train both models by the recipe for the data that is here; returns the report's path.

    Args:
        recipes: folder with ``demo_cifar10.yaml`` and ``demo_shapes.yaml``.
        out: folder that gets both run folders and the report.
    """
    keep_freed_memory()
    source = resolve_auto(None)
    if source == "shapes":
        print("CIFAR-10 was not found and could not be fetched: training on the built-in shapes instead.", flush=True)
    runs = []
    for name, attention in (("vit", "softmax"), ("diffvit", "differential")):
        config = resolve(recipes / f"demo_{source}.yaml", {"model": {"attention": attention}})
        runs.append(train(config, out=out / name, progress=make_progress(quiet=False)))
    report = compare(runs, out=out / "report")
    for row in report.rows:
        print(f"{row['attention']}: test accuracy {row['test_accuracy']:.1%} in {row['train_seconds']:.0f} s")
    print(f"Report: {report.path.resolve()}")
    return report.path


if __name__ == "__main__":
    try:
        demo(Path(sys.argv[1]), free_folder(Path("runs/demo")))
    except DiffvitError as error:
        print(f"error: {error.line}", file=sys.stderr)
        sys.exit(error.exit_code)
