from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffvit.errors import InputError
from diffvit.files import read_csv, write_csv
from diffvit.reporting.arms import arms
from diffvit.reporting.rows import RESULT_COLUMNS, content_hash, merge, read, read_run, write
from diffvit.reporting.tables import JPEG_NOTE, NONE, data_notes, side_by_side

MakeRun = Callable[..., Path]


def test_a_run_becomes_a_row_with_results_environment_and_settings(make_run: MakeRun) -> None:
    record = read_run(make_run("a", attention="differential", seed=3))
    row = record.row
    assert list(row)[: len(RESULT_COLUMNS)] == list(RESULT_COLUMNS)
    assert (row["run"], row["seed"], row["data"], row["test_accuracy"]) == ("a", 3, "CIFAR-10 (JPEG)", 0.8)
    assert (row["hardware"], row["python"], row["test_images"]) == ("Some CPU | 9", "3.11", 200)
    assert row["calibration_error"] == 0.034
    assert record.settings["model.embed_dim"] == 32
    assert record.settings["source"] == "cifar10"
    assert "data_dir" not in record.settings
    assert [len(epoch["lambda"]) for epoch in record.epochs] == [3, 3, 3]


def test_what_a_run_says_of_its_files_is_no_setting(make_run: MakeRun) -> None:
    folder = make_run("a")
    before = read_run(folder).row
    for name, more in (("result.json", {"model_sha256": "0" * 64}), ("environment.json", {"task": "mine.Task"})):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(values | more))
    assert read_run(folder).row == before


def test_what_is_written_is_read_back_equal(make_run: MakeRun, tmp_path: Path) -> None:
    records = [read_run(make_run("a")), read_run(make_run("b", attention="differential", validated=False))]
    stamp = write(tmp_path / "out", records)
    again = read(tmp_path / "out")
    assert [record.row for record in again] == [record.row for record in records]
    assert [record.epochs for record in again] == [record.epochs for record in records]
    assert write(tmp_path / "again", again) == stamp == content_hash(tmp_path / "out")


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "commit": st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), min_size=1),
                "config_hash": st.from_regex(r"[0-9a-f]{12}", fullmatch=True),
                "test_loss": st.none() | st.floats(allow_nan=False),
                "seed": st.integers(),
                "augment.flip": st.booleans(),
            }
        ),
        min_size=1,
    )
)
def test_csv_keeps_every_value_and_its_type(tmp_path_factory: pytest.TempPathFactory, rows: list[dict]) -> None:
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    write_csv(path, rows)
    assert read_csv(path) == rows


def test_a_new_run_replaces_the_committed_one_of_the_same_key(make_run: MakeRun, tmp_path: Path) -> None:
    old = [read_run(make_run("a", accuracy=0.7)), read_run(make_run("b", attention="differential"))]
    write(tmp_path / "out", old)
    new = [read_run(make_run("a2", accuracy=0.75)), read_run(make_run("c", seed=1))]
    merged = merge(read(tmp_path / "out"), new)
    assert [record.row["run"] for record in merged] == ["a2", "b", "c"]
    assert merged[0].row["test_accuracy"] == 0.75


def test_runs_that_are_called_and_configured_alike_are_both_kept(make_run: MakeRun, tmp_path: Path) -> None:
    one, two = read_run(make_run("a", accuracy=0.7)), read_run(make_run("b", accuracy=0.75))
    two = replace(two, row=two.row | {"run": "a", "hardware": "another"})
    write(tmp_path / "out", [one, two])
    again = read(tmp_path / "out")
    assert [record.row["run"] for record in again] == ["a", "a (2)"]
    assert [record.correct for record in again] == [one.correct, two.correct]
    assert [record.epochs for record in again] == [one.epochs, two.epochs]
    assert [record.row["run"] for record in merge(again, [])] == ["a", "a (2)"]
    third = read_run(make_run("c", accuracy=0.8))
    assert [record.row["run"] for record in merge(again, [third])] == ["c", "a (2)"]


def test_numbers_of_a_score_are_no_settings(make_run: MakeRun) -> None:
    record = read_run(make_run("a"))
    assert replace(record, row=record.row | {"score.entropy": 1.9}).settings == record.settings


def test_correct_images_are_committed_a_bit_each(make_run: MakeRun, tmp_path: Path) -> None:
    """From the run folder and from the committed files alone come the same record and the same bytes."""
    folder, out = make_run("a", accuracy=0.83), tmp_path / "out"
    records = [read_run(folder), read_run(make_run("b", seed=1, evaluated=False))]
    write(out, records)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    right = [found == true for found, true in zip(evaluation["predictions"], evaluation["labels"], strict=True)]
    [line] = read_csv(out / "predictions.csv")
    assert (line["run"], line["test_fingerprint"]) == ("a", evaluation["fingerprint"])
    bits = "".join(f"{byte:08b}" for byte in base64.b64decode(line["correct"]))
    assert bits == "".join(str(int(each)) for each in right)
    again = read(out)
    assert [record.correct for record in again] == [record.correct for record in records]
    assert again[0].correct is not None
    assert again[0].correct.images.tolist() == right
    assert again[1].correct is None
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    write(out, merge(again, [records[0]]))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    write(out, [records[1]])
    assert not (out / "predictions.csv").exists()


def test_correct_images_must_fit_the_row(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("a")
    write(tmp_path, [read_run(folder)])
    file = tmp_path / "predictions.csv"
    [line] = read_csv(file)
    for wrong in ("", "%", line["correct"][4:], "A" + line["correct"][1:], None):
        write_csv(file, [line | {"correct": wrong}])
        with pytest.raises(InputError, match=r"predictions\.csv: does not fit rows\.csv \(run a\)"):
            read(tmp_path)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    was_right = evaluation["predictions"][0] == evaluation["labels"][0]
    evaluation["predictions"][0] = (evaluation["labels"][0] + was_right) % 10
    (folder / "evaluation.json").write_text(json.dumps(evaluation))  # scored again, elsewhere
    assert read_run(folder).correct is None


def test_columns_that_some_rows_lack(make_run: MakeRun, tmp_path: Path) -> None:
    folders = [make_run("old"), make_run("new", data="CIFAR-10", seed=1)]
    result = json.loads((folders[1] / "result.json").read_text())
    result |= {"test_accuracy_exact": 0.7875, "data_note": "3 of 200 images from a JPEG copy"}
    (folders[1] / "result.json").write_text(json.dumps(result))
    environment = json.loads((folders[1] / "environment.json").read_text())
    (folders[1] / "environment.json").write_text(json.dumps({**environment, "kernels": "native"}))
    old, new = map(read_run, folders)
    assert not {"test_accuracy_exact", "data_note", "kernels"} & old.row.keys()
    assert not {"test_accuracy_exact", "data_note", "kernels"} & new.settings.keys()
    write(tmp_path / "out", [old, new])
    again = read(tmp_path / "out")
    assert [record.row.get("test_accuracy_exact") for record in again] == [None, 0.7875]
    assert [record.row.get("kernels") for record in again] == [None, "native"]
    for records in ([old, new], again):
        notes = data_notes(record.row for record in records)
        assert notes == [("CIFAR-10 (JPEG)", JPEG_NOTE), ("CIFAR-10", "3 of 200 images from a JPEG copy.")]
        figures = {line[0]: line[1:] for line in side_by_side(arms(records)).rows}
        assert figures["On the exact images alone"] == [NONE, "78.75%"]


def test_faults_are_one_clear_line(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a")
    for text in ("[1", "[1]", '{"confusion": []}'):
        (run / "evaluation.json").write_text(text)
        with pytest.raises(InputError, match=r"evaluation\.json: is not what evaluate writes\. .*diffvit evaluate"):
            read_run(run)
    (run / "result.json").unlink()
    with pytest.raises(InputError, match="not finished"):
        read_run(run)
    with pytest.raises(InputError, match="no such run"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "rows.csv").write_text("run,seed\na,1,2\n")
    with pytest.raises(InputError, match=r"line 2 has 3 cells \(vs 2 columns\)"):
        read(tmp_path)
    (tmp_path / "rows.csv").write_text("run,seed\na,1\n")
    with pytest.raises(InputError, match="lacks the column config_hash"):
        read(tmp_path)
    (tmp_path / "rows.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as CSV"):
        read(tmp_path)
