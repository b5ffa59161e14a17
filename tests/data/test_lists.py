"""Lists of images and labels: the same data as the folder of the same images, and what is wrong with others."""

from __future__ import annotations

import csv
import os
import random
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spkd.data.folder import load_folder
from spkd.data.images import FileImages, ImageData, MemoryImages
from spkd.data.list_spec import ListSpec, list_named
from spkd.data.lists import load_list
from spkd.data.load import load_data
from spkd.data.options import DataOptions
from spkd.errors import InputError

MakeFolder = Callable[..., Path]


def write(file: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows([columns, *rows])
    return str(file)


def rows_of(folder: Path, splits: bool = False) -> list[tuple[str, ...]]:
    """Return path, class and, with ``splits``, set of each image of a folder, in no order."""
    paths = [path.relative_to(folder) for path in folder.rglob("*.png")]
    rows = [(path.as_posix(), path.parts[splits], *path.parts[:splits]) for path in paths]
    random.Random(7).shuffle(rows)
    return rows


def listed(data: str, **how: object) -> ImageData:
    return load_data(DataOptions(data, **how))  # type: ignore[arg-type]


def refused(data: str, line: str, **how: object) -> None:
    with pytest.raises(InputError, match=rf"^[^\n]*{line}[^\n]*$"):
        listed(data, **how)


def assert_same(list_data: ImageData, folder_data: ImageData) -> None:
    """Hold the data of a list against those of a folder of the same files, which are found in another way."""
    assert list_data.classes == folder_data.classes
    assert list_data.fingerprint == folder_data.fingerprint
    for name in ("train", "val", "test"):
        one, other = getattr(list_data, name), getattr(folder_data, name)
        assert type(one) is type(other)
        assert list(map(os.path.abspath, one.paths)) == list(map(os.path.abspath, other.paths))
        assert torch.equal(one.targets, other.targets)
        assert all(torch.equal(one.image(place), other.image(place)) for place in range(len(other)))
    for name in ("cut", "native_size", "normalisation_mean", "normalisation_std", "flip", "channels", "view"):
        assert getattr(list_data, name) == getattr(folder_data, name)


DIVIDED = {"train/b": 12, "train/a": 14, "train/10": 9, "train/a/deeper": 3}


class TestAsFolders:
    @pytest.mark.parametrize("size", [8, None], ids=["in memory", "in files"])
    def test_sets_are_cut_alike(self, make_folder: MakeFolder, size: int | None) -> None:
        folder = make_folder({"photos/b": 12, "photos/a": 14, "photos/10": 9, "photos/a/deeper": 3}, size) / "photos"
        rows = rows_of(folder)
        data = listed(write(folder.parent / "list.csv", ("path", "label"), [(f"photos/{a}", b) for a, b in rows]))
        whole = load_folder(folder)
        assert_same(data, whole)
        assert isinstance(data.train, MemoryImages if size else FileImages)
        assert data.name == "list"
        assert data.notes[:-1] == whole.notes[:-1]
        assert data.notes[-1].endswith(
            "patient, say which in a column group or by --groups, or name the sets in a column split"
        )

    @pytest.mark.parametrize(
        "given",
        [
            {"val/a": 4, "val/b": 5, "val/10": 3, "test/a": 2, "test/b": 1},
            {"validation/a": 4, "validation/b": 5, "validation/10": 3},
            {"Testing/b": 6},
            {"valid/a": 1, "valid/b": 1},
        ],
    )
    def test_sets_that_are_given(self, make_folder: MakeFolder, given: dict[str, int]) -> None:
        folder = make_folder(DIVIDED | given)
        data = listed(write(folder / "list.csv", ("image", "class", "split"), rows_of(folder, splits=True)))
        assert_same(data, load_folder(folder))
        assert [note for note in data.notes if " set " in note] == [
            note for note in load_folder(folder).notes if " set " in note
        ]

    def test_groups_by_a_column_and_by_an_expression(self, make_folder: MakeFolder) -> None:
        folder = make_folder({f"{label}/p{number}": 3 for label in ("a", "b") for number in range(12)})
        rows = rows_of(folder)
        by_expression = load_folder(folder, groups=r"p\d+")
        plain = write(folder / "plain.csv", ("path", "label"), rows)
        assert_same(listed(plain, groups=r"p\d+"), by_expression)
        columns = ("path", "label", "group")
        grouped = write(folder / "grouped.csv", columns, [(path, label, path.split("/")[1]) for path, label in rows])
        data = listed(grouped)
        assert_same(data, by_expression)
        assert data.notes == by_expression.notes
        refused(
            grouped, "^groups: the column 'group' of .* tells which .* leave --groups out, or the column", groups="p"
        )
        refused(plain, r"groups: x\\d is not found in the paths of 72 of the 72 images", groups=r"x\d")

    def test_groups_in_several_sets_are_told(self, make_folder: MakeFolder) -> None:
        folder = make_folder({"train/a": 4, "train/b": 4, "val/a": 2, "val/b": 2, "test/a": 1, "test/b": 1})
        rows = [(*row, "same" if row[2] == "test" else row[0]) for row in rows_of(folder, splits=True)]
        rows = [(*row[:3], "same") if row[0] == "train/a/000.png" else row for row in rows]
        data = listed(write(folder / "list.csv", ("path", "label", "split", "group"), rows))
        assert data.notes[0].startswith("warning: 1 of 12 groups has images in several of the sets (the first: 'same' ")

    def test_how_images_are_read_and_seen(self, make_folder: MakeFolder) -> None:
        folder = make_folder({"a": 20, "b": 20})
        (folder / "b" / "004.png").write_bytes(b"no image")
        shutil.copy(folder / "a" / "000.png", folder / "a" / "copy.png")
        how = {"grey": True, "train_images": 10, "skip_bad_images": True, "no_flip": True}
        data = listed(write(folder / "list.csv", ("path", "label"), rows_of(folder)), **how)
        whole = listed(str(folder), **how)
        assert_same(data, whole)
        assert (data.channels, len(data.train), data.flip) == (1, 10, False)
        same = [note for note in whole.notes if "passed over" not in note and "image by image" not in note]
        assert [note for note in data.notes if "image by image" not in note] == same

    def test_without_a_division(self, make_folder: MakeFolder) -> None:
        folder = make_folder({"a": 3})
        data = load_data(DataOptions(write(folder / "list.csv", ("path", "label"), rows_of(folder))), divided=False)
        assert (len(data.train), len(data.val), data.classes) == (3, 0, ("a",))

    def test_neither_its_place_nor_the_form_of_paths_decides(
        self, make_folder: MakeFolder, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = make_folder({"a": 12, "b": 12}, None)
        rows, whole, elsewhere = rows_of(folder), load_folder(folder), tmp_path_factory.mktemp("elsewhere")
        write(folder / "dots.csv", ("path", "label"), [(f".//{path}", label) for path, label in rows])
        write(elsewhere / "absolute.csv", ("path", "label"), [(str(folder / path), label) for path, label in rows])
        mixed = [(str(folder / path) if place % 2 else path, label) for place, (path, label) in enumerate(rows)]
        write(folder / "mixed.csv", ("path", "label"), mixed)
        above = [(os.path.relpath(folder / path, elsewhere), label) for path, label in rows]
        write(elsewhere / "above.csv", ("path", "label"), above)
        (elsewhere / "link.csv").symlink_to(folder / "dots.csv")
        monkeypatch.chdir(folder)
        assert_same(listed("dots.csv"), whole)
        monkeypatch.chdir(elsewhere)
        for name in (
            "absolute.csv",
            f"link.csv?root={folder}",
            f"{folder}/dots.csv",
            f"{folder}/mixed.csv",
            "above.csv",
        ):
            assert_same(listed(name), whole)
        assert_same(listed("dots.csv", data_root=str(folder)), whole)
        refused("link.csv", "24 of the 24 images .* are not there")

    def test_images_without_a_label_of_groups_of_a_column(self, make_folder: MakeFolder) -> None:
        folder = make_folder(
            {f"{label}/p{number}": 3 for label in ("a", "b") for number in range(12)} | {"more": 4}, None
        )
        rows = [(*row, row[0].split("/")[1]) for row in rows_of(folder) if not row[0].startswith("more")]
        file = write(folder / "list.csv", ("path", "label", "group"), rows)
        data = load_data(DataOptions(file), str(folder / "more"))
        assert data.unlabelled is not None
        assert len(data.unlabelled) == 4
        assert not any("without a label" in note for note in data.notes)
        plain = write(folder / "plain.csv", ("path", "label"), [row[:2] for row in rows])
        assert "belong to no group" in load_data(DataOptions(plain, groups=r"p\d+"), str(folder / "more")).notes[-1]
        assert "to no group" not in str(load_data(DataOptions(plain), str(folder / "more")).notes)


class TestColumns:
    @pytest.mark.parametrize("path", ["path", "image", "file", "filename", "file_name", "File Path", "IMAGE_PATH"])
    @pytest.mark.parametrize("label", ["label", "Class"])
    def test_usual_names(self, make_folder: MakeFolder, path: str, label: str) -> None:
        folder = make_folder({"a": 5, "b": 5})
        data = listed(write(folder / "list.csv", (label, path), [row[::-1] for row in rows_of(folder)]))
        assert_same(data, load_folder(folder))
        assert not any("not used" in note for note in data.notes)

    def test_other_names(self, make_folder: MakeFolder) -> None:
        folder = make_folder({"photos/train/a": 5, "photos/train/b": 5, "photos/test/a": 2, "photos/test/b": 2})
        rows = [
            ("x", path.removesuffix(".png"), label, split, path, "1")
            for path, label, split in rows_of(folder / "photos", splits=True)
        ]
        file = write(folder / "list.csv", ("path", "image id", "0", "label", "patient", "class"), rows)
        name = f"{file}?root={folder}/photos&path=image id&label=0&split=label&group=patient&suffix=.png"
        data = listed(name)
        assert_same(data, load_folder(folder / "photos", groups=".*"))
        assert data.notes[0] == f"columns of {file} that are not used: 'path', 'class'"

    def test_what_a_network_said_is_no_label_where_there_is_one(self, make_folder: MakeFolder) -> None:
        """As in the files that evaluation and prediction write."""
        folder = make_folder({"a": 5, "b": 5})
        rows = [(path, label, "a", "0.5") for path, label in rows_of(folder)]
        file = write(folder / "list.csv", ("image", "label", "class", "probability"), rows)
        assert_same(listed(file), load_folder(folder))
        said = write(folder / "said.csv", ("image", "class", "probability"), [(row[0], row[1], row[3]) for row in rows])
        assert_same(listed(said), load_folder(folder))

    def test_names_of_lists(self) -> None:
        text = "a?b/labels.csv?path=p&label=a b&split=s&group=g&root=/x.csv&suffix=.png"
        spec = list_named(text)
        assert spec is not None
        assert (spec.file, spec.label, spec.root, str(spec)) == ("a?b/labels.csv", "a b", "/x.csv", text)
        assert list_named("a.csv?label=Age%26Sex%25") == ListSpec("a.csv", label="Age&Sex%")
        assert list_named("labels.CSV?suffix=01") == list_named("labels.CSV?&suffix=01&")
        for other in ("labels.csv.gz", ".csv", "digits", "photos", "dtd?partition=3", "labels.txt?label=x"):
            assert list_named(other) is None

    @given(st.text(min_size=1).filter(lambda text: text == text.strip()), st.text("%&=26", min_size=1))
    def test_what_a_name_is_written_as_names_the_same(self, label: str, path: str) -> None:
        spec = ListSpec("my/labels.csv", path=path, label=label, root="/R&D/100%")
        assert list_named(str(spec)) == spec


GOOD = [("a/000.png", "a"), ("a/001.png", "a"), ("a/002.png", "a"), ("b/000.png", "b"), ("b/001.png", "b")]


class TestErrors:
    @pytest.fixture
    def folder(self, make_folder: MakeFolder) -> Path:
        return make_folder({"a": 5, "b": 5})

    @pytest.mark.parametrize(
        ("columns", "more", "arguments", "line"),
        [
            (
                ("id", "label"),
                [],
                "",
                r"has no column of images \(path, image, .*\) but 'id', 'label': name it as in "
                r"'/\S*/list\.csv\?path=COLUMN', or put",
            ),
            (
                ("path", "kind"),
                [],
                "",
                r"has no column of classes \(label, class\) but 'path', 'kind': name it as in "
                r"'/\S*/list\.csv\?label=COLUMN'",
            ),
            (
                ("path", "kind"),
                [],
                "?label=kinds",
                "has no column 'kinds', which label= names, but 'path', 'kind'. Did you mean 'kind'",
            ),
            (
                ("path", "label", "image"),
                [("b/002.png", "b", "x")],
                "",
                r"several columns that may be its path, 'path' and "
                r"'image'; name one as in '/\S*/list\.csv\?path=COLUMN'",
            ),
            (
                ("path", "label", "label"),
                [("b/002.png", "b", "x")],
                "?label=label",
                "several columns that may be its label, 'label' and 'label'; give each another name",
            ),
            (("path", "label"), [], "?lable=x", "takes path, label, .* not 'lable'. Did you mean 'label'"),
            (("path", "label"), [], "?label=", "must read name=value"),
            (("path", "label"), [], "?root=nowhere", "no folder .*nowhere, in which the paths .* check root="),
            (
                ("path", "label"),
                [("", "b")],
                "",
                "in 1 of the 6 rows of .* the column 'path' is empty, first in row 7; give",
            ),
            (
                ("path", "label"),
                [("b/002.png", " "), ("x", "")],
                "",
                "in 2 of the 7 rows of .* the column 'label' is empty, first in row 7; .* --unlabelled",
            ),
            (
                ("path", "label"),
                [("a/./001.png", "a")],
                "",
                r"1 row of .* names? an image that .*: row 7 repeats row 3 "
                r"\(.*/a/001\.png\), with the same label; keep one row",
            ),
            (
                ("path", "label"),
                [("a/000.png", "a"), ("b/../a/001.png", "b")],
                "",
                r"2 rows of .*: row 8 repeats row 3 "
                r".*, with the label 'b' instead of 'a'; keep one row",
            ),
            (
                ("path", "label"),
                [("c/000.png", "b"), ("a", "b")],
                "",
                r"2 of the 7 images of .*list\.csv are not there, the "
                r"first in row 7: no file /.*/c/000\.png; where .* say '/\S*/list\.csv\?root=FOLDER', or leave",
            ),
            (
                ("path", "label"),
                [("c/000.png", "b")],
                "?root={}",
                r"1 of the 6 images of .* is not there, .* check the paths "
                "and root=",
            ),
            (
                ("path", "label"),
                [("b/002", "b")],
                "?label=label",
                r"1 of the 6 .*: no file /.*/b/002; it is there with \.png "
                r"behind it, so say '/\S*/list\.csv\?label=label&suffix=\.png'",
            ),
            (("path", "label"), [(r"b\002.png", "b")], "", r"1 of the 6 .*; write paths with / and not \\"),
        ],
    )
    def test_one_line_says_what_is_wrong(
        self, folder: Path, columns: Sequence[str], more: list[tuple[str, ...]], arguments: str, line: str
    ) -> None:
        rows = [(*row, "x")[: len(columns)] for row in GOOD]
        file = write(folder / "list.csv", columns, [*rows, *more])
        refused(f"{file}{arguments.format(folder)}", line)

    @pytest.mark.parametrize(
        ("splits", "line"),
        [
            (
                "train train train train dev",
                "row 6 of .* is of the set 'dev', not train, training, val, valid, .* another name if",
            ),
            ("train train train train vall", "row 6 of .* Did you mean 'val'"),
            ("train train train train -", "in 1 of the 5 rows of .* the column 'split' is empty, first in row 6; give"),
            ("val val val test test", "has images of val and test but none of train; name the set"),
            ("train train train val val", r"class 'b' of the val set \(row 5 of .*\) is missing from the training set"),
            (
                "train train train train train",
                "1 of 2 classes has too few images to be split between 3 sets: 'b' .2.; add",
            ),
        ],
    )
    def test_sets(self, folder: Path, splits: str, line: str) -> None:
        rows = [(*row, split.replace("-", "")) for row, split in zip(GOOD, splits.split(), strict=True)]
        refused(write(folder / "list.csv", ("path", "label", "split"), rows), line)

    def test_an_image_without_a_group(self, folder: Path) -> None:
        rows = [(*row, "g" if row[1] == "a" else "") for row in GOOD]
        refused(
            write(folder / "list.csv", ("path", "label", "group"), rows), "'group' is empty, first in row 5; give an"
        )

    def test_what_is_advised_helps(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = [(path.removesuffix(".png"), label) for path, label in rows_of(folder)]
        whole = load_folder(folder)
        monkeypatch.chdir(folder)
        Path("lists").mkdir()
        write(Path("lists/list.csv"), ("path", "label"), rows)
        data = "lists/list.csv"
        for advised in ("lists/list.csv?root=FOLDER", "lists/list.csv?root=.&suffix=.png"):
            with pytest.raises(InputError) as refusal:
                listed(data)
            [data] = re.findall("say '([^']*)'", str(refusal.value))
            assert data == advised
            data = data.replace("FOLDER", ".")
        assert_same(listed(data), whole)

    def test_one_class(self, folder: Path) -> None:
        line = "expected at least two classes in the column 'label' of .*, got only 'a'; name another"
        refused(write(folder / "list.csv", ("path", "label"), GOOD[:3]), line)

    def test_a_class_of_which_no_image_can_be_read(self, folder: Path) -> None:
        for path in (folder / "b").iterdir():
            path.write_bytes(b"x")
        file = write(folder / "list.csv", ("path", "label"), rows_of(folder))
        line = r"no training image of class 'b' in .*list\.csv can be read"
        refused(file, line, skip_bad_images=True)
        refused(file, "--skip_bad_images")

    def test_images_that_are_not_there_can_be_left_out(self, folder: Path) -> None:
        file = write(folder / "list.csv", ("path", "label"), [*rows_of(folder), ("gone.png", "a")])
        data = listed(file, skip_bad_images=True)
        assert data.notes[0].startswith("left out 1 of 11 files that cannot be read, the first: ")
        assert data.fingerprint == load_folder(folder).fingerprint
        none = write(folder / "none.csv", ("path", "label"), [(f"x/{path}", label) for path, label in rows_of(folder)])
        refused(none, r"10 of the 10 images .* say '/\S*/none\.csv\?root=FOLDER'$", skip_bad_images=True)

    def test_what_is_no_list(self, folder: Path) -> None:
        for name in ("list.json", "list.xlsx", "list.csv.gz"):
            (folder / name).write_bytes(b"x")
            refused(
                str(folder / name), "^data: expected a folder or a list .*got the file .*unpack it .*as CSV, with the"
            )
        (folder / "list.csv").write_text('{"path": "a/000.png",\n"label": "a"}')
        refused(str(folder / "list.csv"), "has no column of images|is no CSV")
        refused(str(folder / "lists.csv"), r"^data: no file .*lists\.csv; check the path\. Did you mean 'list\.csv'")
        refused("nowhere.csv", r"^data: no file .*nowhere\.csv; check the path$")
        os.mkfifo(folder / "pipe.csv")
        refused(str(folder / "pipe.csv"), "^data: expected a folder or a list")

    def test_a_folder_that_is_called_like_a_list(self, folder: Path, tmp_path: Path) -> None:
        shutil.copytree(folder / "a", tmp_path / "x.csv" / "a")
        shutil.copytree(folder / "b", tmp_path / "x.csv" / "b")
        assert listed(str(tmp_path / "x.csv")).classes == ("a", "b")
        refused(f"{tmp_path / 'x.csv'}?label=a", "x.csv is a folder, which takes no arguments; leave out what follows")
        (tmp_path / "y.csv").mkdir()
        refused(str(tmp_path / "y.csv"), "expected one folder per class in .*y.csv, got an empty folder")

    def test_the_function_itself(self, folder: Path) -> None:
        file = Path(write(folder / "list.csv", ("path", "label"), rows_of(folder)))
        spec = list_named(str(file))
        assert spec is not None
        assert_same(load_list(spec, file), load_folder(folder))
