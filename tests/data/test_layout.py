"""Which files a data folder holds, by class and split, in the layouts in which people keep images."""

import json
from pathlib import Path

import pytest

from diffvit.data.layout import find_layout
from diffvit.errors import InputError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def rows(place):
    found = find_layout(place)
    return [
        (split, found.classes[n], file) for split, n, file in zip(found.splits, found.labels, found.files, strict=True)
    ]


BOTH = [("train", "a", "a/1.png"), ("train", "b", "b/1.png")]


def within(folder, split):
    return [(split, label, f"{folder}/{file}") for _, label, file in BOTH]


@pytest.mark.parametrize("inner", ["", "archive/", "archive/images/"])
def test_class_folders_alone_or_inside_single_folders(tmp_path, inner):
    touch(tmp_path, f"{inner}a/1.png", f"{inner}b/1.png", "__MACOSX/a/._1.png", ".git/x.png", f"{inner}a/Thumbs.db")
    assert rows(tmp_path) == BOTH


@pytest.mark.parametrize("test", ["test", "Testing", "TEST"])
@pytest.mark.parametrize("validation", [None, "val", "valid", "validation", "dev"])
def test_split_folders(tmp_path, test, validation):
    named = {"train": "train", **({validation: "validation"} if validation else {}), test: "test"}
    for folder in named:
        touch(tmp_path / folder, "a/1.png", "b/1.png")
    touch(tmp_path, "notes/readme.txt")
    assert rows(tmp_path) == [row for folder, split in named.items() for row in within(folder, split)]


def test_val_is_the_test_set_where_there_is_no_other(tmp_path):
    touch(tmp_path, "train/a/1.png", "train/b/1.png", "val/b/1.png")
    assert rows(tmp_path) == [*within("train", "train"), ("test", "b", "val/b/1.png")]


def test_a_class_may_be_called_as_a_split_and_a_test_folder_may_have_no_labels(tmp_path):
    touch(tmp_path / "vehicles", "bus/1.png", "train/1.png")
    assert rows(tmp_path / "vehicles") == [("train", "bus", "bus/1.png"), ("train", "train", "train/1.png")]
    touch(tmp_path / "kaggle", "train/a/1.png", "train/b/1.png", "test/1.png")
    assert rows(tmp_path / "kaggle") == within("train", "train")


def test_images_lie_at_any_depth_and_behind_links_but_not_in_circles(tmp_path):
    touch(tmp_path / "elsewhere", "more/2.png")
    root = touch(tmp_path / "set", "a/x/y/1.png", "b/1.png", "b/.hidden.png", "b/.old/2.png", "b/.DS_Store")
    (root / "b" / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "c").symlink_to(tmp_path / "elsewhere" / "more")
    (root / "b" / "loop").symlink_to(root)
    assert [row[1:] for row in rows(root)] == [
        ("a", "a/x/y/1.png"),
        *(("b", "b/1.png"), ("b", "b/linked/more/2.png"), ("c", "c/2.png")),
    ]


@pytest.mark.parametrize(("separator", "end"), [(",", "\n"), (";", "\r\n"), ("\t", "\r\n")])
@pytest.mark.parametrize("columns", ["path,label", "label,Filename", "id,image,CLASS", "file_name,category"])
def test_a_table_of_paths_and_labels(tmp_path, columns, separator, end):
    touch(tmp_path, "images/1.png", "images/é & b.png")
    cells = [{"1": "images/1.png"}, {"1": "images/é & b.png"}]
    lines = []
    for number, cell in enumerate(cells):
        known = dict.fromkeys(("label", "class", "category"), "ab"[number]) | {"id": str(number)}
        lines.append(separator.join(known.get(name.lower(), cell["1"]) for name in columns.split(",")))
    text = end.join([columns.replace(",", separator), *lines, ""])
    (tmp_path / "labels.csv").write_bytes(text.encode("utf-8-sig"))
    found = [("train", "a", "images/1.png"), ("train", "b", "images/é & b.png")]
    assert rows(tmp_path) == rows(tmp_path / "labels.csv") == found


def test_tables_name_splits_in_a_column_or_by_their_own_names(tmp_path):
    touch(tmp_path, "1.png", "2.png", "3.png")
    lines = [{"path": "1.png", "label": 0}, {"path": "2.png", "label": 1}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "test.csv").write_text("path,label\n3.png,1\n")
    assert rows(tmp_path) == [("train", "0", "1.png"), ("train", "1", "2.png"), ("test", "1", "3.png")]
    lines += [{"path": "3.png", "label": 1, "split": "valid"}, {"path": "1.png", "label": 1, "split": "test"}]
    other = tmp_path / "all.jsonl"
    other.write_text("\n".join(map(json.dumps, lines)))
    assert [row[0] for row in rows(other)] == ["train", "train", "validation", "test"]


REFUSED = {
    "empty": ({}, "no folders of classes"),
    "one class": ({"a/1.png": ""}, r"one class alone \(a\)"),
    "a class without images": ({"a/1.png": "", "b/notes.TXT": ""}, "holds no images"),
    "a class in test alone": ({"train/a/1.png": "", "train/b/1.png": "", "test/c/1.png": ""}, "class 'c' is in test"),
    "a class written otherwise in test": (
        {"train/Cat/1.png": "", "train/b/1.png": "", "test/cat/1.png": ""},
        r"class 'cat' is in test and not in train\. Did you mean 'Cat'\? Add",
    ),
    "a table of other columns beside its images": ({"a.csv": "name,kind\n", "img/1.png": ""}, "no columns of path and"),
    "a missing file": ({"a.csv": "path,label\nnone.png,1\n"}, r"a.csv, row 1.*none\.png"),
    "no label": ({"1.png": "", "a.csv": "path,label\n1.png,\n"}, "no label"),
    "an unknown split": ({"1.png": "", "a.csv": "path,label,split\n1.png,a,half\n"}, "split 'half'"),
    "other columns": ({"a.csv": "name;kind\n1.png;a\n"}, "found name, kind; allowed path"),
    "a name that is too long": ({"a.csv": f"path,label\n{'x' * 300},1\n"}, "row 1: names a missing file"),
    "JSON that is too deep": ({"a.jsonl": "[" * 100_000}, r"cannot be read as a table \(line 1: "),
    "not JSON": (
        {"1.png": "", "a.jsonl": '{"path": "1.png", "label": 1}\nnothing'},
        r"cannot be read as a table \(line 2: ",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_by_name(tmp_path, case):
    files, why = REFUSED[case]
    for name, content in files.items():
        touch(tmp_path, name)
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=why):
        find_layout(tmp_path)


@pytest.mark.parametrize("others", [[], ["a/1.png"], ["a/1.png", "b/1.png"]])
def test_a_class_behind_a_link_that_leads_nowhere_is_not_passed_over(tmp_path, others):
    touch(tmp_path, *others)
    (tmp_path / "c").symlink_to(tmp_path / "moved")
    with pytest.raises(InputError, match=r"/c: cannot be listed \(No such file or directory\)"):
        find_layout(tmp_path)


def test_no_folder_and_other_files(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        find_layout(tmp_path / "none")
    with pytest.raises(InputError, match="is not a folder"):
        find_layout(touch(tmp_path, "set.zip") / "set.zip")
    Path(tmp_path / "bare.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="no columns of path and label"):
        find_layout(tmp_path / "bare.csv")
