"""Prints the lines and files of each part of the project beside the design's sizes: ``python -m tools.sizes``."""

from __future__ import annotations

import sys
from pathlib import Path

from tools.pages import ROOT

# Lines of Python in src: 20,000 of the design, and what users' own images and starting weights (decision 019) and hard
# shapes (022), attribution (023), variants of differential attention (025), its study (026), the tasks of CLIP's
# evaluation (027), int8 (028), robustness sets and outliers took. Tests may have as many as src.
BOUND = 25_700
# Lines that the design wants in each folder of src/diffvit.
WANTED = {
    **{"models": 1000, "kernels": 800, "data": 2000, "training": 2000, "experiments": 1300, "reporting": 1500},
    **{"attention": 1900, "hub": 600, "clip": 2700, "app": 1700, "cli": 1800},
}


def count(folder: Path, pattern: str = "**/*.py") -> tuple[int, int]:
    """Lines, docstrings included, and files."""
    files = [path for path in folder.glob(pattern) if path.is_file()]
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files), len(files)


def table(root: Path = ROOT) -> list[tuple[str, int, int, int | None]]:
    """Name, lines, files and wanted lines of each folder of the package, of all of src, of tests, tools, benchmarks."""
    package = root / "src" / "diffvit"
    folders = [path.name for path in package.iterdir() if path.is_dir()]
    names = [*WANTED, *sorted(set(folders) - set(WANTED))]
    rows: list[tuple[str, int, int, int | None]] = [
        (name, *count(package / name, "*.py" if name == "models" else "**/*.py"), WANTED.get(name))
        for name in names
        if count(package / name)[1]
    ]
    rows.append(("variants", *count(package / "models" / "variants"), None))  # of models
    rows.append(("beside them", *count(package, "*.py"), None))
    rows.append(("src", *count(root / "src"), BOUND))
    rows.append(("tests", *count(root / "tests"), None))
    return [*rows, *((name, *count(root / name), None) for name in ("tools", "benchmarks"))]


def main(root: Path = ROOT) -> int:
    """Print the table; 1 where src has more lines than :data:`BOUND`, or tests more than src, else 0."""
    rows = table(root)
    print(f"{'':14}{'lines':>8}{'files':>7}{'design':>9}")
    for name, lines, files, wanted in rows:
        print(f"{name:14}{lines:8,}{files:7,}{'' if wanted is None else f'{wanted:,}':>9}")
    found = {name: lines for name, lines, *_ in rows}
    most = {"src": BOUND, "tests": found["src"]}
    over = [name for name in most if found[name] > most[name]]
    for name in over:
        why = f"has too many lines ({found[name]:,} vs {most[name]:,})"
        print(f"error: {name}: {why}. Take something out.", file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
