"""docs/results.md, the README's part about the studies, and their reports: from made rows with known answers."""

from __future__ import annotations

import csv
import hashlib
import math
from pathlib import Path

import pytest

from diffvit.config import parse, read_yaml, to_yaml
from diffvit.experiments.definitions import STUDIES
from diffvit.experiments.report import gathered, write_report
from diffvit.experiments.results import Results, results_of
from diffvit.experiments.search import DIALS
from diffvit.experiments.search_report import best_of, rows_of, update
from diffvit.experiments.search_report import write_report as write_search
from diffvit.experiments.trials import Trial, trials_of
from diffvit.reporting.rows import write
from tests.experiments.study_rows import made_records
from tests.experiments.study_rows import rows_of as every_row
from tools import pages, results
from tools.results import best_arms, documents, readme_block, where_it_helps, with_rows

HEADS = STUDIES["heads"]
HERE = Path()


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study with rows, and a recipe with three seeds of which all pass 80%."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("Before.\n<!-- studies:start -->\n<!-- studies:end -->\nAfter.\n")
    trials = trials_of(HEADS, "short")
    records = made_records(trials, lambda trial: 0.6 + trial.config.model.num_heads / 100)
    write_report(results_of(HEADS, "short", trials, records), Path("reports"))
    recipe = [each for each in trials_of(STUDIES["patch-size"], "short") if each.arm == "patch 4"][::2]
    good = made_records(recipe, lambda trial: 0.81 + trial.config.seed / 100)
    write(Path("reports/recipe"), every_row(good))
    return Path("reports")


def page() -> str:
    return results.page(HERE, with_rows(Path("reports")))


def refresh(check: bool = False) -> list[str]:
    """The files that were out of date."""
    return [line.partition(":")[0] for line in pages.update(documents(HERE), "results", HERE, check=check)]


def test_the_page_has_what_is_known_and_names_what_is_not(reports: Path) -> None:
    text = page()
    assert "| 82.00% ± 1.00 | 8 | 1 min 00 s |" in text  # three seeds, one row
    assert "| 8 heads, Diff-ViT | 68.00% ± 0.00 |" in text
    assert "*heads, tier short, exploratory.*" in text
    assert "![Test accuracy of every arm and seed](../reports/heads/accuracy.png)" in text
    assert text.count("Not run yet: ") == len(STUDIES) - 1
    assert [line for line in text.splitlines() if line.startswith("## ")][1:] == [
        *("## The studies in short", "## Where differential attention helps"),
        *(f"## {study.question}" for study in STUDIES.values()),
    ]
    assert f"| {HEADS.question} | 8 heads, 68.0% | 8 heads, 68.0% | short, 2 |" in text


def test_the_best_configuration_is_named_by_its_recipe(reports: Path) -> None:
    assert "The best configuration" not in page()  # no recipe has these settings
    assert "| [recipe](../reports/recipe/report.md) | – | 82.00% ± 1.00 |" in page()
    trial = next(each for each in trials_of(STUDIES["patch-size"], "short") if each.arm == "patch 4")
    Path("configs").mkdir()
    Path("configs/another.yaml").write_text(to_yaml(trial.config.model_copy(update={"epochs": 9})))
    Path("configs/the_best.yaml").write_text(
        to_yaml(trial.config.model_copy(update={"seed": 7}))
    )  # the seed is no part of it
    text = page()
    assert "| [the_best.yaml](../configs/the_best.yaml) | 82.00% ± 1.00 | 8 |" in text
    assert (
        "The best configuration so far is [the_best.yaml](../configs/the_best.yaml): 82.00% of the test images after 8 "
        "epochs (the mean of 3 seeds). To repeat it: `diffvit train configs/the_best.yaml --out runs/the-best`."
    ) in text
    assert "another.yaml" not in text


def test_what_is_out_of_date_is_found(reports: Path) -> None:
    assert refresh(check=True) == ["docs/results.md", "README.md"]
    refresh()
    text = Path("README.md").read_text()
    assert text.startswith("Before.\n")
    assert text.endswith("\nAfter.\n")
    assert f"| {HEADS.question} | 8 heads, 68.0% | 8 heads, 68.0% | short, 2 |" in text
    assert refresh(check=True) == []
    rows = reports / "heads" / "rows.csv"
    rows.write_text(rows.read_text().replace("0.62,", "0.52,"))
    of_study = [f"reports/heads/{name}" for name in ("report.md", "accuracy.png", "curves.png", "cost.png")]
    assert set(of_study) <= set(refresh())
    assert refresh(check=True) == []


def test_plots_of_costs_that_were_counted_otherwise_are_found(reports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refresh()
    monkeypatch.setattr("diffvit.experiments.results.training_flops", lambda config: 1e12 * config.model.num_heads)
    stale = refresh(check=True)
    assert "reports/heads/cost.png" in stale
    assert "reports/heads/accuracy.png" not in stale
    write_report(gathered(HEADS, Path("nowhere"), reports), reports)
    assert "reports/heads/cost.png" not in refresh(check=True)


def test_without_any_rows_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "No committed run does yet." in page()
    assert readme_block({}) == "No study has rows yet."


def test_the_readme_has_the_fair_comparison_in_a_sentence(tmp_path: Path) -> None:
    study = STUDIES["vit-vs-diffvit"]
    trials = trials_of(study, "short")
    records = made_records(trials, lambda trial: 0.7 + ("softmax" in trial.name) / 50 + trial.config.seed / 1000)
    write_report(results_of(study, "short", trials, records), tmp_path)
    said = readme_block(with_rows(tmp_path))
    assert (
        f"*{study.question}* After 8 epochs, patch 8, 128 wide, 4 blocks, [CLS]: softmax minus differential: +2.00"
        in said
    )
    assert "one of its own might serve Diff-ViT better" in said


_GAIN = {"patch 2": 0.02, "patch 4": 0.0, "patch 8": -0.05}  # of differential attention


def made(name: str, spread: float) -> Results:
    def accuracy(trial: Trial) -> float:
        model = trial.config.model
        level = 0.6 + 0.1 / model.patch_size * (-1) ** trial.config.seed * spread
        if model.attention == "differential":
            level += _GAIN.get(trial.arm, 0.0)
        return level + 0.16 / model.patch_size

    trials = trials_of(STUDIES[name], "short")
    return results_of(STUDIES[name], "short", trials, made_records(trials, accuracy))


def test_the_best_of_each_attention_is_bold_where_it_surely_beats_the_others() -> None:
    sure, unsure, few = (best_arms([made(*each)]).rows for each in (("patch-size", 0), ("patch-size", 2), ("heads", 0)))
    assert sure == [[STUDIES["patch-size"].question, "**patch 2**, 68.0%", "**patch 2**, 70.0%", "short, 3"]]
    assert unsure[0][1].startswith("patch 2, ")
    assert few == [[STUDIES["heads"].question, "2 heads, 62.0%", "2 heads, 62.0%", "short, 2"]]


def test_where_differential_attention_helps() -> None:
    def cell(gap: float, softmax: float) -> str:
        """With no spread over seeds, what the sampling of 10,000 images allows."""
        half = 1.959964 * math.sqrt(sum(p * (1 - p) / 10_000 for p in (softmax, softmax + gap)))
        return f"{100 * gap:+.2f} ({100 * (gap - half):+.2f} to {100 * (gap + half):+.2f})"

    mean = 0.6 + 0.16 * (1 / 2 + 1 / 4 + 1 / 8) / 3
    table = where_it_helps([made("patch-size", 0), made("heads", 0), made("vit-vs-diffvit", 0)])
    assert table.rows == [
        [
            "patch-size",
            cell(-0.01, mean),
            "patch 2, +2.00 points",
            "patch 8, -5.00 points",
            "not decided",
            "short, 3",
        ],
        [
            "heads",
            cell(0.0, 0.62),
            "2 heads, +0.00 points",
            "8 heads, +0.00 points",
            "exploratory",
            "short, 2",
        ],
    ]  # the study of three arms has no arm with both


@pytest.mark.parametrize("name", ["vit-vs-diffvit"])
def test_a_study_whose_arms_are_attentions_has_no_best_arm(name: str) -> None:
    assert best_arms([made(name, 0)]).rows == []


def searched() -> list[dict[str, object]]:
    values = {
        **{"optimizer.muon_lr": 0.005, "optimizer.lr": 0.002, "optimizer.weight_decay": 0.05, "schedule.warmup": 0.1},
        **{"label_smoothing": 0.1, "batch_size": 64, "model.mlp_ratio": 2.0, "augment.crop": 4},
    }
    return [
        {
            **{"tier": "short", "attention": attention, "trial": f"trial-{number:02}"},
            **{"state": "pruned" if number == 2 else "complete", "epochs": 6, "val_accuracy": 0.6 + number / 100},
            **values,
            "batch_size": 64 * 2 ** (number % 3),
        }
        for attention in ("softmax", "differential")
        for number in range(3)
    ]


def test_the_searchs_report_names_the_best_that_ran_to_its_end(tmp_path: Path) -> None:
    path = write_search(searched(), tmp_path)
    text = path.read_text()
    assert "6 trials of up to 6 epochs, 4 of them complete" in text
    assert text.index("| trial-01 | 61.00% |") < text.index("| trial-00 | 60.00% |")
    assert "trial-02" not in text  # pruned, though it was ahead
    assert {row["trial"] for row in best_of(searched()).values()} == {"trial-01"}
    config = parse(read_yaml(tmp_path / "best-differential.yaml"))
    assert (config.batch_size, config.model.attention, config.validation_size) == (128, "differential", 5000)
    before = {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in tmp_path.iterdir()}
    assert before.keys() == {"trials.csv", "report.md", "dials.png", "best-softmax.yaml", "best-differential.yaml"}
    update(tmp_path)
    assert {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in tmp_path.iterdir()} == before
    with (tmp_path / "trials.csv").open() as file:
        assert [dial.setting for dial in DIALS] == next(csv.reader(file))[-len(DIALS) :]


def test_a_search_without_trials_has_no_rows() -> None:
    assert rows_of({}, "short") == []
