from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from diffvit import Report, compare
from diffvit.config import config_hash, parse, read_yaml
from diffvit.errors import ConfigError, EnvironmentFault, InputError
from diffvit.reporting.arms import arms
from diffvit.reporting.render import run_report
from diffvit.reporting.rows import content_hash, read, read_run, write
from diffvit.reporting.style import STAMP
from diffvit.reporting.tables import command

MakeRun = Callable[..., Path]


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.headings: list[str] = []
        self.words: list[str] = []
        self._tag = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        values = dict(attrs)
        self.links += [values[name] or "" for name in ("src", "srcset", "href") if name in values]
        if tag == "img":
            self.images.append(values)

    def handle_data(self, data: str) -> None:
        if self._tag in ("h1", "h2") and data.strip():
            self.headings.append(data.strip())
        if self._tag != "style":
            self.words.append(data)


def _page(path: Path) -> _Page:
    return _Page(path.read_text(encoding="utf-8"))


def test_comparing_two_runs_writes_the_whole_report(pair_report: Report) -> None:
    report = pair_report
    assert report.path == report.folder / "report.html"
    assert [row["test_accuracy"] for row in report.rows] == [0.8, 0.82]
    names = {path.name for path in report.folder.iterdir()}
    expected = {"rows.csv", "epochs.csv", "predictions.csv", "report.md", "report.html", "curves.png", "classes.png"}
    assert names == expected | {"lambda-2.png", "confusion-1.png", "confusion-2.png"}
    for picture in report.folder.glob("*.png"):
        with Image.open(picture) as image:
            assert image.info[STAMP] == content_hash(report.folder)
            assert min(image.size) > 300


def test_the_page_is_self_contained_and_says_the_datas_name_first(pair_report: Report) -> None:
    page = _page(pair_report.path)
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "http" not in re.sub(r"base64,[^\"]*", "", pair_report.path.read_text())
    assert all((image["alt"] or "").strip() for image in page.images)
    for link in page.links:
        with Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))) as image:
            assert image.format == "PNG"
    words = " ".join(page.words)
    assert words.index("Data: CIFAR-10 (JPEG)") < words.index("JPEG re-encoding") < words.index("Side by side")
    wanted = ["ViT and Diff-ViT", "Side by side", "Loss and accuracy", "Lambda", "Classes", "What differs", "Repeat"]
    assert page.headings == wanted
    figures = ("80.00% (73.9 to 85.0)", "98.00%", "3.40%", "811,018", "115 M", "1 h 30 min")
    for figure in (*figures, "Some CPU | 9", "torch 2.13.0"):
        assert figure in words


def test_the_markdown_says_the_same(pair_report: Report) -> None:
    text = (pair_report.folder / "report.md").read_text()
    assert text.startswith("# ViT and Diff-ViT\n\n**Data: CIFAR-10 (JPEG).** The images are a JPEG re-encoding")
    assert "| Test accuracy | 80.00% (73.9 to 85.0) | 82.00% (76.1 to 86.7) |" in text
    assert r"Some CPU \| 9" in text
    for picture in re.findall(r"\]\((.*\.png)\)", text):
        assert (pair_report.folder / picture).is_file()


def test_jpeg_rows_have_a_heading_of_their_own_below_others(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("j", accuracy=0.7), make_run("o", data="CIFAR-10", accuracy=0.84)]
    above, below = (compare(runs, out=tmp_path / "r").folder / "report.md").read_text().split("## CIFAR-10 (JPEG)\n")
    assert "| 84.00% (" in above
    assert "| 70.00% (" not in above
    assert "| 70.00% (" in below
    assert "| 84.00% (" not in below


def test_seeds_are_averaged_committed_rows_merged_and_names_escaped(make_run: MakeRun, tmp_path: Path) -> None:
    write(tmp_path / "out", [read_run(make_run("s0", accuracy=0.8)), read_run(make_run("s1", seed=1, accuracy=0.81))])
    report = compare([make_run("<script>", seed=2, accuracy=0.82)], out=tmp_path / "out", committed=tmp_path / "out")
    assert [row["run"] for row in report.rows] == ["s0", "s1", "<script>"]
    assert [record.row["run"] for record in read(tmp_path / "out")] == ["s0", "s1", "<script>"]
    words = " ".join(_page(report.path).words)
    assert "81.00% ± 1.00" in words
    assert "0, 1, 2" in words
    assert "<script" not in report.path.read_text()
    assert "&lt;script&gt;" in report.path.read_text()


def test_one_epoch_without_validation_or_evaluation_still_reports(make_run: MakeRun, tmp_path: Path) -> None:
    options = {"epochs": 1, "validated": False, "evaluated": False}
    pair = [make_run("a", **options), make_run("b", attention="differential", **options)]
    page = _page(compare(pair, out=tmp_path / "report").path)
    assert "diffvit evaluate RUN" in " ".join(page.words)
    assert "Validation accuracy" not in " ".join(page.words)


def test_the_report_lies_beside_the_first_run_and_is_the_same_every_time(make_run: MakeRun) -> None:
    pair = [make_run("a", evaluated=False), make_run("b", seed=1, evaluated=False)]
    folder = compare([*pair, pair[0]]).folder
    assert folder == pair[0].parent / "compare-a-b"
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {path.name: path.read_bytes() for path in compare(pair).folder.iterdir()} == first


def test_a_single_run_gets_its_page_and_curves(make_run: MakeRun) -> None:
    run = make_run("a", attention="differential")
    path = run_report(run)
    assert path == run / "report.html"
    assert (run / "curves.png").is_file()
    page = _page(path)
    assert page.headings[0] == "Diff-ViT: a"
    assert "What differs" not in page.headings
    assert not [name for name in run.iterdir() if name.suffix == ".tmp"]


def test_the_commands_repeat_the_runs(make_run: MakeRun) -> None:
    settings = {"augment": {"crop": 2}, "model": {"embed_dim": 32, "depth": 3, "num_heads": 4, "qkv_bias": False}}
    run = make_run("a", seed=4, settings=settings)
    words = command(arms([read_run(run)])[0]).split()
    assert words[:4] == ["diffvit", "train", "--data", "cifar10"]
    assert words[-2:] == ["--out", "runs/a-again"]
    values: dict = {}
    flags = iter(words[4:-2])
    for flag in flags:
        *sections, name = flag.removeprefix("--").replace("-", "_").split(".")
        inner = values
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name.removeprefix("no_")] = False if name.startswith("no_") else next(flags)
    values.pop("precision")
    assert config_hash(parse({"data": "cifar10", **values})) == config_hash(parse(read_yaml(run / "config.yaml")))


def test_a_run_on_a_folder_is_repeated_from_its_own_config(make_run: MakeRun) -> None:
    run = make_run("a", settings={"data": "folder", "data_dir": "pets"})
    assert command(arms([read_run(run)])[0]) == "diffvit train runs/a/config.yaml --out runs/a-again"


def test_a_clip_is_repeated_from_its_own_config() -> None:
    found = arms(read(Path(__file__).parents[2] / "reports" / "clip-cifar10"))
    clips = [arm for arm in found if arm.records[0].row.get("zero_shot_accuracy") is not None]
    assert 0 < len(clips) < len(found)
    for arm in found:
        for record, said in zip(arm.records, command(arm).splitlines(), strict=True):
            run = record.row["run"]
            own = f"diffvit clip train runs/{run}/config.yaml --out runs/{run}-again"
            assert said == own if arm in clips else said.startswith("diffvit train --data ")


def test_faults_are_one_clear_line(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothere: has no rows.csv. Nothing was written"):
        compare([make_run("c")], out=tmp_path / "out", committed=tmp_path / "nothere")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="no runs given"):
        compare([])
    with pytest.raises(InputError, match="no such run"):
        compare([tmp_path / "nowhere"])
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        compare([make_run("a")], out=tmp_path / "file" / "report")
