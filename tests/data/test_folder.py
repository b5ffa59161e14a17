import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from spkd.data.folder import load_folder
from spkd.data.images import FileImages, MemoryImages
from spkd.errors import InputError


def one_line(text):
    return rf"^[^\n]*{text}[^\n]*$"


class TestLayouts:
    def test_class_folders_alone_are_split(self, make_folder):
        data = load_folder(make_folder({"cat": 20, "dog": 40}))
        assert data.classes == ("cat", "dog")
        assert (len(data.train), len(data.val), len(data.test)) == (42, 9, 9)
        for part in (data.train, data.val, data.test):
            assert torch.bincount(part.targets).tolist() == [len(part) // 3, 2 * len(part) // 3]
        assert len(data.notes) == 3
        assert data.notes[2].startswith("these sets are cut image by image: where several show one object or patient")

    @pytest.mark.parametrize("val", ["val", "valid", "validation"])
    def test_given_splits_are_used(self, make_folder, val):
        folder = make_folder({"train/a": 4, "train/b": 3, f"{val}/a": 2, f"{val}/b": 1, "test/a": 1, "test/b": 2})
        data = load_folder(folder)
        assert (len(data.train), len(data.val), len(data.test)) == (7, 3, 3)
        assert data.val.targets.tolist() == [0, 0, 1]
        assert data.notes == ()

    def test_validation_is_cut_where_it_is_missing(self, make_folder):
        data = load_folder(make_folder({"train/a": 20, "train/b": 20, "test/a": 2, "test/b": 2}))
        assert (len(data.train), len(data.val), len(data.test), data.cut) == (36, 4, 4, True)
        assert len(data.notes) == 2

    def test_a_test_set_is_cut_where_it_is_missing(self, make_folder):
        data = load_folder(make_folder({"train/a": 20, "train/b": 20, "val/a": 2, "val/b": 2}))
        assert (len(data.train), len(data.val), len(data.test), data.cut) == (40, 2, 2, False)

    def test_a_test_set_is_cut_from_the_training_images_where_validation_has_too_few(self, make_folder):
        data = load_folder(make_folder({"train/a": 20, "train/b": 20, "val/a": 2, "val/b": 1}))
        assert (len(data.train), len(data.val), len(data.test), data.cut) == (34, 3, 6, True)

    @pytest.mark.parametrize("name", ["train", "valid", "test"])
    def test_a_class_that_is_called_as_a_split_is_is_told(self, make_folder, name):
        line = rf"^data: [^\n]*/{name} has the name of a set and holds images as the folders beside it do: if"
        with pytest.raises(InputError, match=line):
            load_folder(make_folder({"bus": 8, "car": 8, name: 8}))

    @pytest.mark.parametrize(
        "others", [{"train": 2, "test": 2, "masks": 2}, {"train": 2, "test": 2}, {"train": 2, "empty": 0}, {"train": 2}]
    )
    def test_a_split_without_classes_is_told(self, make_folder, others):
        with pytest.raises(InputError, match=r"expected one folder per class in .*/train, got 2 images"):
            load_folder(make_folder(others))

    def test_litter_is_passed_over_and_depth_is_not(self, make_folder):
        litter = {".hidden": 3, "__MACOSX": 3, "a/.trash": 2, "a/@eaDir/0.png": 2, "#recycle": 1, "$RECYCLE.BIN": 1}
        folder = make_folder({"a": 5, "b": 3, "b/deeper": 2, **litter})
        for name in ("Thumbs.db", "desktop.ini", ".DS_Store"):
            (folder / "a" / name).write_bytes(b"x")
        (folder / "a" / "._0.png").write_bytes(b"x")
        (folder / "README.txt").write_text("x")
        data = load_folder(folder)
        assert data.classes == ("a", "b")
        assert len(data.train) + len(data.val) + len(data.test) == 10
        assert not any("passed over" in note for note in data.notes)

    @pytest.mark.parametrize("size", [8, None], ids=["in memory", "in files"])
    def test_training_images_among_those_held_out_are_told(self, make_folder, size):
        folder = make_folder({"train/a": 4, "train/b": 4, "val/a": 2, "test/b": 3}, size)
        assert not any("warning" in note for note in load_folder(folder).notes)
        learnt, copy = folder / "train" / "b" / "002.png", folder / "test" / "b" / "copy.png"
        copy.write_bytes(learnt.read_bytes())
        (folder / "val" / "a" / "link.png").symlink_to(folder / "train" / "a" / "001.png")
        line = "warning: 2 of the 7 validation and test images are training images too (the first: "
        which = f"{folder / 'val' / 'a' / 'link.png'} is {folder / 'train' / 'a' / '001.png'})"
        assert load_folder(folder).notes[-1] == f"{line}{which}, so that errors are too low: keep one of each"

    def test_of_many_held_out_images_some_are_looked_at(self, make_folder, monkeypatch):
        monkeypatch.setattr("spkd.data.labelled_files.COMPARED", 3)
        folder = make_folder({"train/a": 4, "train/b": 4, "val/a": 4, "test/b": 3})
        for name in ("train/b/copy.png", "val/a/000.png", "val/a/001.png"):  # of which one is looked at
            (folder / name).write_bytes((folder / "train/a/000.png").read_bytes())
        (note,) = [note for note in load_folder(folder).notes if "warning" in note]
        assert note.startswith("warning: 1 of the 3 validation and test images looked at are training images too (the")

    def test_files_of_other_endings_are_counted(self, make_folder):
        folder = make_folder({"train/a": 4, "train/a/deeper": 1, "train/b": 4, "val/a": 1, "test/b": 1})
        others = ["train/a/deeper/1.HEIC", "train/a/1.heic", "test/b/x.heic", "val/a/list.txt", "train/b/LICENSE"]
        for name in (*others, "train/a/.hidden.heic"):
            (folder / name).write_bytes(b"x")
        (folder / "train" / "a" / "deeper" / "again").symlink_to("..")
        line = f"passed over 5 files without an image's ending in {folder}: 3 .heic, 1 with none, 1 .txt"
        assert load_folder(folder).notes[0] == line
        for name in others[1:]:
            (folder / name).unlink()
        assert load_folder(folder).notes[0].startswith("passed over 1 file without an image's ending in ")

    def test_images_beside_class_folders_are_counted(self, make_folder):
        folder = make_folder({"train/a": 4, "train/b": 4, "val/a": 1, "test/b": 1})
        for name in ("1.png", "train/1.JPG", "train/2.png", "val/1.txt", "train/.3.png"):
            (folder / name).touch()
        line = f"images that lie in no class folder are not used: 1 in {folder}, 2 in {folder / 'train'}"
        assert line in load_folder(folder).notes

    def test_an_ending_that_is_not_utf8_can_be_shown(self, make_folder):
        folder = make_folder({"a": 5, "b": 5})
        (folder / "b" / os.fsdecode(b"0.jp\xdf")).touch()
        note = load_folder(folder).notes[0]
        assert note.encode().endswith(rb": 1 '.jp\udcdf'")

    def test_a_folder_that_is_not_utf8_has_a_name_for_tables_and_figures(self, make_folder):
        folder = make_folder({"a": 5, "b": 5})
        assert load_folder(folder.rename(folder.with_name(os.fsdecode(b"F\xfc")))).name == r"F\xfc"

    def test_the_commonest_other_endings_are_named(self, make_folder):
        folder = make_folder({"a": 5, "b": 5})
        for number in range(7):
            for again in range(number):
                (folder / "b" / f"{again}.x{number}").touch()
        note = load_folder(folder).notes[0]
        assert note.startswith("passed over 21 files")
        assert note.endswith(": 6 .x6, 5 .x5, 4 .x4, 3 .x3, 2 .x2, ...")

    def test_a_class_may_be_missing_from_the_test_set(self, make_folder):
        data = load_folder(make_folder({"train/a": 9, "train/b": 9, "test/b": 2}))
        assert data.test.targets.tolist() == [1, 1]
        assert data.notes[0] == "test set has no image of 1 class: 'a'"

    def test_classes_missing_from_a_given_set_are_said(self, make_folder):
        train = {f"train/{name}": 2 for name in "abcdefgh"}
        data = load_folder(make_folder({**train, "val/a": 1, "val/h": 1, **{f"test/{name}": 1 for name in "adefgh"}}))
        assert data.notes == (
            "validation set has no image of 6 classes: 'b', 'c', 'd', 'e', 'f', ...",
            "test set has no image of 2 classes: 'b', 'c'",
        )


def patients(label, numbers, images=2):
    """Return folders of patients in one of a class or split."""
    return {f"{label}/patient{number:02d}": images for number in numbers}


class TestGroups:
    @pytest.mark.parametrize("size", [8, None], ids=["in memory", "in files"])
    def test_none_is_divided(self, make_folder, size):
        """Of forty patients every other one has images of both classes."""
        folder = make_folder(patients("a", range(40)) | patients("b", range(0, 40, 2)), size)
        data = load_folder(folder, groups=r"(patient\d+)/")
        parts = (data.train, data.val, data.test)
        groups = [{Path(path).parent.name for path in part.paths} for part in parts]
        assert sum(map(len, groups)) == len(set.union(*groups)) == 40
        assert sorted(path for part in parts for path in part.paths) == sorted(map(str, folder.rglob("*.png")))
        assert [len(part) for part in parts] == [84, 18, 18]
        for part in parts:
            assert torch.bincount(part.targets).tolist() == [2 * len(part) // 3, len(part) // 3]
        assert [note.split(": ")[0] for note in data.notes] == ["test set", "validation set"]
        assert f"no group divided ({len(groups[2])} of 40 groups)" in data.notes[0]
        alone = load_folder(folder)
        assert len({Path(path).parent.name for path in alone.test.paths} & groups[0]) > 0

    def test_neither_the_disk_s_order_nor_its_place_decides(self, make_folder, tmp_path_factory, monkeypatch):
        folder = make_folder(patients("a", range(20)) | patients("b", range(20)))
        copy = tmp_path_factory.mktemp("copy") / "of"
        shutil.copytree(folder, copy)
        here = load_folder(folder, groups=r"patient\d+")
        walk, iterdir = os.walk, Path.iterdir

        def walk_backwards(*arguments, **named):
            for above, folders, files in walk(*arguments, **named):
                folders.reverse()
                files.reverse()
                yield above, folders, files

        monkeypatch.setattr(os, "walk", walk_backwards)
        monkeypatch.setattr(Path, "iterdir", lambda path: reversed(list(iterdir(path))))
        monkeypatch.chdir(copy)
        for place in (folder, copy, Path()):
            there = load_folder(place, groups=r"patient\d+")
            for one, other in ((here.train, there.train), (here.val, there.val), (here.test, there.test)):
                relative = [os.path.relpath(path, place) for path in other.paths]
                assert relative == [os.path.relpath(path, folder) for path in one.paths]

    def test_a_path_of_no_group_is_refused_and_a_file_that_is_left_out_has_none(self, make_folder):
        folder = make_folder(patients("a", range(8)) | patients("b", range(8)))
        (folder / "b" / "stray.png").write_bytes(b"no image")
        assert load_folder(folder, groups=r"patient\d+", skip_bad_images=True).test.paths
        shutil.copy(folder / "a" / "patient00" / "000.png", folder / "b" / "stray.png")
        line = one_line(r"patient\\d\+ is not found in the paths of 1 of the 33 images, the first: b/stray\.png in ")
        with pytest.raises(InputError, match=line):
            load_folder(folder, groups=r"patient\d+")
        whole = load_folder(folder, groups=r"patient\d+", divided=False)
        assert len(whole.train) == 33, "of sets that are not cut no group is asked for"

    @pytest.mark.parametrize("skip", [False, True])
    def test_a_class_of_too_few_is_named(self, make_folder, skip):
        folder = make_folder(patients("a", range(8)) | patients("rare", range(2), images=9))
        with pytest.raises(InputError, match=one_line(r"images of too few groups to be split .*: 'rare' \(2\);")):
            load_folder(folder, groups=r"patient\d+", skip_bad_images=skip)

    def test_those_in_several_given_sets_are_told_and_left_there(self, make_folder):
        own = {"train": range(6), "val": range(6, 9), "test": range(8, 12)}
        folder = make_folder(
            {
                name: count
                for split, numbers in own.items()
                for label in "ab"
                for name, count in patients(f"{split}/{label}", numbers).items()
            }
        )
        data = load_folder(folder, groups=r"patient\d+")
        assert [len(part) for part in (data.train, data.val, data.test)] == [24, 12, 16]
        assert data.notes == (
            "warning: 1 of 12 groups has images in several of the sets (the first: 'patient08' in val and test), so "
            "that errors are too low: keep the images of each in one set",
        )
        assert load_folder(folder).notes == ()
        shutil.rmtree(folder / "test")
        halved = load_folder(folder, groups=r"patient\d+")
        assert len(halved.train) == 24
        assert len(halved.notes) == 1
        assert "no group divided (1 of 3 groups)" in halved.notes[0]


class TestPixels:
    def test_small_squares_live_in_memory(self, make_folder):
        folder = make_folder({"train/a": 4, "train/b": 4, "val/a": 1, "test/b": 1}, size=12)
        data = load_folder(folder)
        assert isinstance(data.train, MemoryImages)
        assert (data.native_size, data.channels, data.flip) == (12, 3, True)
        expected = np.asarray(Image.open(folder / "train" / "b" / "002.png"))
        np.testing.assert_array_equal(data.train.image(6).permute(1, 2, 0).numpy(), expected)
        seen = np.stack([np.asarray(Image.open(path)) for path in sorted((folder / "train").rglob("*.png"))]) / 255
        assert data.normalisation_mean == pytest.approx(seen.mean((0, 1, 2)), abs=5.1e-5)
        assert data.normalisation_std == pytest.approx(seen.std((0, 1, 2)), abs=5.1e-5)

    def test_other_images_stay_in_files(self, make_folder):
        data = load_folder(make_folder({"train/a": 4, "train/b": 4, "test/a": 1}, size=None, suffix=".jpg"))
        assert isinstance(data.train, FileImages)
        assert data.native_size is None
        assert data.normalisation_mean == (0.485, 0.456, 0.406)
        assert {tuple(data.train.image(i).shape) for i in range(6)} <= {
            (3, side, side) for side in (100, 107, 114, 121)
        }

    def test_one_large_image_among_small_ones_keeps_all_in_files(self, make_folder):
        folder = make_folder({"train/a": 4, "train/b": 4, "test/a": 1})
        Image.new("RGB", (200, 150)).save(folder / "train" / "b" / "zzz.png")
        assert isinstance(load_folder(folder).train, FileImages)

    @pytest.mark.parametrize("limit", [3 * 12 * 12 * 60, 3 * 12 * 12 * 60 - 1])
    def test_small_squares_that_are_too_many_are_told(self, make_folder, monkeypatch, limit):
        monkeypatch.setattr("spkd.data.checked_files.MEMORY_LIMIT", limit)
        data = load_folder(make_folder({"train/a": 25, "train/b": 25, "val/a": 5, "test/b": 5}, size=12))
        line = (
            "60 images of 12 × 12 pixels are too many to hold in memory, and are read from their files in every "
            "epoch; --image_size 12 --view whole shows them unchanged"
        )
        fits = limit == 3 * 12 * 12 * 60
        assert isinstance(data.train, MemoryImages if fits else FileImages)
        assert (line in data.notes) == (not fits)

    def test_nothing_is_told_of_the_size_where_only_the_first_is_small(self, make_folder, monkeypatch):
        monkeypatch.setattr("spkd.data.checked_files.MEMORY_LIMIT", 1000)
        folder = make_folder({"train/b": 4, "test/b": 1}, size=None)
        make_folder({"train/a": 4}, size=12)
        assert not any("too many" in note for note in load_folder(folder).notes)

    def test_mixed_modes_just_work(self, make_folder):
        folder = make_folder({"a": 7, "b": 7})
        for number, mode in enumerate(["L", "RGBA", "P", "1", "LA", "I;16"]):
            Image.new(mode, (8, 8)).save(folder / "a" / f"{number:03d}.png")
        Image.new("CMYK", (8, 8)).save(folder / "b" / "other.jpg")
        data = load_folder(folder)
        assert isinstance(data.train, MemoryImages)
        assert len(data.train) + len(data.val) + len(data.test) == 15

    @pytest.mark.parametrize(("suffix", "codec"), [(".avif", "avif"), (".jp2", "jpg_2000")])
    def test_formats_that_not_every_pillow_reads(self, make_folder, suffix, codec):
        if codec not in {*features.modules, *features.codecs} or not features.check(codec):
            pytest.skip(f"this Pillow has no {codec}")
        data = load_folder(make_folder({"a": 6, "b": 6}, suffix=suffix))
        assert len(data.train) + len(data.val) + len(data.test) == 12

    def test_splits_in_other_spellings_are_splits(self, make_folder):
        data = load_folder(make_folder({"Training/a": 6, "Training/b": 6, "TEST/a": 2, "TEST/b": 1}))
        assert (data.classes, len(data.test)) == (("a", "b"), 3)

    def test_a_class_may_be_called_like_a_split(self, make_folder):
        assert load_folder(make_folder({"Bus": 6, "Train": 6})).classes == ("Bus", "Train")

    def test_folders_beside_the_splits_are_named(self, make_folder):
        data = load_folder(make_folder({"train/a": 6, "train/b": 6, "more": 2, "extra": 1}))
        assert data.notes[0] == "not used, since there is train/: extra/, more/"

    def test_links_in_a_circle_give_each_image_once(self, make_folder):
        folder = make_folder({"a": 6, "a/deeper": 4, "b": 6})
        (folder / "a" / "self").symlink_to(".")
        (folder / "a" / "up").symlink_to("..")
        (folder / "a" / "again").symlink_to("deeper")
        data = load_folder(folder)
        assert len(data.train) + len(data.val) + len(data.test) == 16

    def test_a_link_to_another_folder_is_followed(self, make_folder, tmp_path_factory):
        folder, elsewhere = make_folder({"a": 6, "b": 6}), tmp_path_factory.mktemp("elsewhere")
        for path in (folder / "b").iterdir():
            path.rename(elsewhere / path.name)
        (folder / "b").rmdir()
        (folder / "b").symlink_to(elsewhere)
        assert load_folder(folder).classes == ("a", "b")


class TestErrors:
    def test_empty_folder(self, tmp_path):
        with pytest.raises(InputError, match=one_line("expected one folder per class in .* got an empty folder")):
            load_folder(tmp_path)

    def test_loose_images(self, make_folder):
        folder = make_folder({".": 3})
        with pytest.raises(InputError, match=one_line("got 3 images that lie in no class folder")):
            load_folder(folder)

    def test_folders_without_images(self, make_folder):
        folder = make_folder({"a": 0, "b": 0})
        with pytest.raises(InputError, match=one_line("no image in .*looked for .*webp")):
            load_folder(folder)

    def test_empty_class_is_named(self, make_folder):
        with pytest.raises(InputError, match=one_line("class folder .*bird holds no image")):
            load_folder(make_folder({"bird": 0, "cat": 3, "dog": 3}))

    def test_one_class(self, make_folder):
        with pytest.raises(InputError, match=one_line("at least two class folders .* only 'cat'")):
            load_folder(make_folder({"cat": 3}))

    @pytest.mark.parametrize("split", ["val", "test"])
    def test_class_missing_from_training_is_named(self, make_folder, split):
        folder = make_folder({"train/cat": 3, "train/dog": 3, f"{split}/cat": 1, f"{split}/dogs": 1})
        with pytest.raises(InputError, match=one_line(f"'dogs' of .*{split} is missing .* mean 'dog'")):
            load_folder(folder)

    def test_no_training_set(self, make_folder):
        with pytest.raises(InputError, match=one_line("has val/ and test/ but no train/")):
            load_folder(make_folder({"val/a": 1, "test/a": 1}))

    def test_a_folder_that_may_not_be_read(self, tmp_path, monkeypatch):
        def refuse(self):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "iterdir", refuse)
        with pytest.raises(InputError, match=one_line("cannot look into .*Permission denied")):
            load_folder(tmp_path)

    @pytest.mark.parametrize("locked", ["cat", "cat/deeper"])
    def test_a_folder_inside_that_may_not_be_read(self, make_folder, monkeypatch, locked):
        folder = make_folder({"cat": 3, "cat/deeper": 3, "dog": 3})
        scandir = os.scandir

        def guarded(path):
            if Path(path) == folder / locked:
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", guarded)
        with pytest.raises(InputError, match=one_line(f"cannot look into .*{locked} .Permission denied")):
            load_folder(folder)

    def test_a_class_name_that_is_not_utf8(self, make_folder):
        folder = make_folder({"cat": 3, "dog": 3})
        (folder / "dog").rename(os.fsdecode(os.fsencode(folder) + b"/Fu\xdf"))
        with pytest.raises(InputError, match=one_line("is not UTF-8; rename it")) as caught:
            load_folder(folder)
        str(caught.value).encode()

    @pytest.mark.parametrize("place", ["dog", "train", "train/dog"])
    def test_a_class_or_split_that_is_a_dead_link(self, make_folder, place):
        folder = make_folder({"train/ant/1": 3, "train/cat": 3} if place == "train/dog" else {"ant": 3, "cat": 3})
        (folder / place).symlink_to("gone")
        with pytest.raises(InputError, match=one_line(rf"{place} is a link to what is not there \(gone\)")):
            load_folder(folder)

    def test_a_dead_link_to_a_file_does_no_harm(self, make_folder):
        folder = make_folder({"ant": 5, "cat": 5})
        (folder / "labels.csv").symlink_to("gone.csv")
        assert load_folder(folder).classes == ("ant", "cat")

    def test_two_spellings_of_a_split(self, make_folder):
        folder = make_folder({"train/a": 3, "train/b": 3, "test/a": 1, "Testing/a": 1})
        with pytest.raises(InputError, match=one_line("both Testing/ and test/")):
            load_folder(folder)

    def test_two_validation_sets(self, make_folder):
        folder = make_folder({"train/a": 3, "train/b": 3, "val/a": 1, "valid/a": 1})
        with pytest.raises(InputError, match=one_line("both val/ and valid/")):
            load_folder(folder)

    def test_empty_split(self, make_folder):
        with pytest.raises(InputError, match=one_line("no image in .*test")):
            load_folder(make_folder({"train/a": 3, "train/b": 3, "test/a": 0}))

    @pytest.mark.parametrize("given", [{}, {"val/a": 2, "val/c": 2}, {"test/a": 1}])
    def test_classes_too_small_to_split_are_named_before_any_file_is_decoded(self, make_folder, given, monkeypatch):
        folder = make_folder({"train/a": 5, "train/b": 1, "train/c": 1, **given})
        monkeypatch.setattr("spkd.data.labelled_files.open_files", lambda *arguments: pytest.fail("decoded"))
        for skip in (False, True):
            line = one_line(rf"2 of 3 classes have too few .* {2 if given else 3} sets: 'b' \(1\), 'c' \(1\);")
            with pytest.raises(InputError, match=line):
                load_folder(folder, skip_bad_images=skip)

    def test_classes_of_too_few_groups_are_named_before_any_file_is_decoded(self, make_folder, monkeypatch):
        folder = make_folder(patients("a", range(8)) | patients("rare", range(2), images=9))
        monkeypatch.setattr("spkd.data.labelled_files.open_files", lambda *arguments: pytest.fail("decoded"))
        with pytest.raises(InputError, match=one_line(r"too few groups .*: 'rare' \(2\);")):
            load_folder(folder, groups=r"patient\d+")


@pytest.mark.parametrize("size", [8, None])
class TestUnreadable:
    def spoil(self, folder, *names):
        for name in names:
            whole = (folder / name).read_bytes()
            (folder / name).write_bytes(whole[: len(whole) // 2])

    def test_the_first_is_named(self, make_folder, size):
        folder = make_folder({"a": 10, "b": 10}, size)
        self.spoil(folder, "a/003.png", "b/004.png")
        with pytest.raises(
            InputError, match=one_line(r"a.003\.png cannot be read .* nor can 1 more of 20 files: .*004\.png;")
        ):
            load_folder(folder)

    def test_they_can_be_left_out(self, make_folder, size):
        folder = make_folder({"a": 10, "b": 10}, size)
        self.spoil(folder, "a/000.png", "b/004.png")
        data = load_folder(folder, skip_bad_images=True)
        assert len(data.train) + len(data.val) + len(data.test) == 18
        assert data.notes[0].startswith("left out 2 of 20 files that cannot be read, the first: ")
        assert isinstance(data.train, MemoryImages if size else FileImages)

    def test_a_pipe_is_not_waited_for(self, make_folder, size):
        folder = make_folder({"a": 10, "b": 10}, size)
        os.mkfifo(folder / "a" / "0.png")
        with pytest.raises(InputError, match=one_line(r"a.0\.png cannot be read \(not a file\)")):
            load_folder(folder)

    def test_the_others_keep_their_labels(self, make_folder, size):
        folder = make_folder({"train/a": 3, "train/b": 3, "val/b": 2, "test/a": 1, "test/b": 1}, size)
        self.spoil(folder, "train/a/001.png", "val/b/000.png")
        data = load_folder(folder, skip_bad_images=True)
        assert data.train.targets.tolist() == [0, 0, 1, 1, 1]
        assert data.val.targets.tolist() == [1]
        assert data.test.targets.tolist() == [0, 1]
        expected = np.asarray(Image.open(folder / "train" / "a" / "002.png"))
        np.testing.assert_array_equal(data.train.image(1).permute(1, 2, 0).numpy(), expected)

    def test_a_class_of_which_none_is_left(self, make_folder, size):
        folder = make_folder({"a": 3, "b": 3}, size)
        self.spoil(folder, "b/000.png", "b/001.png", "b/002.png")
        with pytest.raises(InputError, match=one_line("no training image of class .b. in .* can be read")):
            load_folder(folder, skip_bad_images=True)

    def test_none_at_all(self, make_folder, size):
        folder = make_folder({"a": 3, "b": 3}, size)
        self.spoil(folder, *(f"{label}/{number:03d}.png" for label in "ab" for number in range(3)))
        with pytest.raises(InputError, match=one_line(r"none of 6 files can be read, .*a.000\.png")) as caught:
            load_folder(folder, skip_bad_images=True)
        assert "skip_bad" not in str(caught.value)
        with pytest.raises(InputError, match=one_line("cannot be read .*--skip_bad_images")):
            load_folder(folder)

    def test_a_split_of_which_none_is_left(self, make_folder, size):
        folder = make_folder({"train/a": 3, "train/b": 3, "test/a": 1}, size)
        self.spoil(folder, "test/a/000.png")
        with pytest.raises(InputError, match=one_line("none of the 1 images of the test set can be read")):
            load_folder(folder, skip_bad_images=True)


def test_the_split_does_not_depend_on_where_the_folder_is(make_folder, tmp_path_factory):
    folder = make_folder({"a": 10, "b": 10})
    moved = tmp_path_factory.mktemp("moved") / "copy"
    shutil.copytree(folder, moved)
    assert torch.equal(load_folder(folder).test.pixels, load_folder(moved).test.pixels)
