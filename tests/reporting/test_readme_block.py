from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from diffvit import Report
from diffvit.reporting.generated import markers
from diffvit.reporting.readme import BLOCK, main, readme_block, stamp_of
from diffvit.reporting.rows import content_hash, read, read_run, write

START, END = markers(BLOCK)

MakeRun = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def project(make_run: MakeRun, tmp_path: Path) -> list[str]:
    """A README with markers and committed rows beside it; gives the command's arguments."""
    folder = tmp_path / "reports" / "first-runs"
    write(folder, [read_run(make_run("a")), read_run(make_run("b", attention="differential", accuracy=0.82))])
    (tmp_path / "README.md").write_text(f"# Title\n\n{START}\nold\n{END}\n\nThe rest.\n")
    return ["--readme", str(tmp_path / "README.md"), "--rows", str(folder), "--reports", str(tmp_path / "none")]


def test_the_command_writes_what_check_accepts(
    project: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main([*project, "--check"]) == 1
    assert "README.md: its results are not those" in capsys.readouterr().out
    assert main(project) == 0
    assert main([*project, "--check"]) == 0
    text = (tmp_path / "README.md").read_text()
    assert text.startswith(f"# Title\n\n{START}\n**Data: CIFAR-10 (JPEG).** The images are a JPEG re-encoding")
    assert text.endswith(f"{END}\n\nThe rest.\n")
    assert "| ViT | 80.00% (73.9 to 85.0) | 98.00% | 811,018 | 115 M | 1 h 30 min |" in text
    assert "one seed: no winner is named" in text
    assert "](reports/first-runs/curves.png)" in text


def test_other_recipes_get_a_sentence_from_their_rows(
    project: list[str], tmp_path: Path, make_run: MakeRun, capsys: Capture
) -> None:
    reports = tmp_path / "others"
    quick = [make_run(f"q{seed}", seed=seed, accuracy=0.8 + 0.01 * seed) for seed in range(3)]
    write(reports / "cifar10-80-cpu", [read_run(run) for run in quick])
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quick.yaml").write_text((quick[0] / "config.yaml").read_text())
    (tmp_path / "configs" / "another.yaml").write_text("epochs: 77\n")
    pair = [make_run("g", epochs=4), make_run("h", epochs=4, attention="differential", accuracy=0.82)]
    for run in pair:
        result = json.loads((run / "result.json").read_text()) | {"train_seconds": 31.5, "compile_seconds": 24.25}
        (run / "result.json").write_text(json.dumps(result))
    write(reports / "gpu-50-epochs", [read_run(run) for run in pair])
    told = [*project[:-1], str(reports)]
    assert main(told) == 0
    text = (tmp_path / "README.md").read_text()
    assert (
        "**In a hurry:** [quick.yaml](configs/quick.yaml) reaches 81.00% ± 1.00 in 1 h 30 min of training "
        "(3 seeds, mean and standard deviation; CIFAR-10 (JPEG), 3 epochs, the [CLS] token, Some CPU | 9, 2 threads, "
        "bf16)."
    ) in text
    # Of these settings there is no recipe.
    assert "**On a GPU:** ViT reaches 80.00% (73.9 to 85.0) in 31.5 s of training, after at most 24.2 s of" in text
    assert "**On a GPU:** Diff-ViT reaches 82.00%" in text
    assert "on a GPU:**" not in text  # the other folders have no rows
    assert main([*told, "--check"]) == 0
    assert main([*project, "--check"]) == 1


def test_rows_on_jpeg_pixels_leave_once_there_are_others(project: list[str], tmp_path: Path, make_run: MakeRun) -> None:
    folder = tmp_path / "reports" / "first-runs"
    record = read_run(make_run("o", data="CIFAR-10", accuracy=0.84))
    write(folder, [*read(folder), replace(record, row=record.row | {"data_note": "a note"})])
    assert main(project) == 0
    text = (tmp_path / "README.md").read_text()
    assert f"{START}\n**Data: CIFAR-10.** a note.\n\n" in text
    assert "84.00%" in text
    assert "JPEG" not in text
    assert "80.00%" not in text


def test_several_seeds_are_one_row_and_one_sentence(make_run: MakeRun) -> None:
    runs = [make_run(f"s{seed}", seed=seed, accuracy=0.8 + 0.02 * seed) for seed in range(2)]
    result = json.loads((runs[1] / "result.json").read_text()) | {"train_seconds": 1832.1, "test_top5": 0.99}
    (runs[1] / "result.json").write_text(json.dumps(result))
    block = readme_block([read_run(run) for run in runs])
    assert "| ViT | 81.00% ± 1.41 | 98.50% | 811,018 | 115 M | 1 h 00 min |" in block  # the mean of 5432.1 and 1832.1 s
    assert block.count("3 epochs of 900 images, the [CLS] token, seeds 0 and 1, bf16, Some CPU | 9, 2 threads,") == 1


def test_top_5_of_few_classes_is_left_out(make_run: MakeRun) -> None:
    run = make_run("few")
    environment = json.loads((run / "environment.json").read_text()) | {"classes": ["a", "b", "c"]}
    (run / "environment.json").write_text(json.dumps(environment))  # as runs of diffvit 0.1.0 have it: 98%
    record = read_run(run)
    assert record.row["test_top5"] is None
    assert "Top-5" not in readme_block([record])
    both = readme_block([record, read_run(make_run("many", attention="differential"))])
    assert "| Top-5 |" in both


def test_a_changed_row_an_edited_readme_and_an_old_plot_are_found(project: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "reports" / "first-runs"
    main(project)
    readme = (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text(readme.replace("80.00%", "88.00%"))
    assert main([*project, "--check"]) == 1
    main(project)
    assert (tmp_path / "README.md").read_text() == readme
    rows = (folder / "epochs.csv").read_text()
    (folder / "epochs.csv").write_text(rows.replace("480.5", "481.5"))
    assert main([*project, "--check"]) == 1
    main(project)
    (folder / "curves.png").write_bytes(b"not a picture")
    assert main([*project, "--check"]) == 1
    (folder / "curves.png").unlink()
    assert main([*project, "--check"]) == 1
    main(project)
    assert main([*project, "--check"]) == 0


def test_check_changes_nothing(project: list[str], tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    main([*project, "--check"])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_missing_rows_or_markers_are_bad_input(
    project: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "README.md").write_text("no markers")
    assert main(project) == 3
    assert "must hold <!-- results:start -->" in capsys.readouterr().err
    assert main(["--readme", str(tmp_path / "README.md"), "--rows", str(tmp_path)]) == 3
    assert "has no rows.csv with runs" in capsys.readouterr().err


def test_committed_rows_give_the_block_of_the_runs_themselves(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("a"), make_run("b", seed=1)]
    write(tmp_path / "out", [read_run(run) for run in runs])
    block = readme_block(read(tmp_path / "out"))
    assert block == readme_block([read_run(run) for run in runs])
    assert "80.00% ± 0.00" in block


def test_a_comparisons_plot_is_already_up_to_date(pair_report: Report) -> None:
    assert stamp_of(pair_report.folder / "curves.png") == content_hash(pair_report.folder)
