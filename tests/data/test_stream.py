import itertools
import os
import signal
import time
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from spkd.data.augment import draw_share, draw_turns, pad_reflect, resize
from spkd.data.images import FileImages, MemoryImages
from spkd.data.seeds import Use, mixed_seed
from spkd.data.stream import TrainStream, evaluation_batches
from spkd.data.views import FixedViews, _tell_of_memory, in_batches, readers
from spkd.errors import InputError, ReaderDied

CPU = torch.device("cpu")


def memory_images(n=50, channels=3, size=16):
    """Return images of random pixels; image i is of class i."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator)
    return MemoryImages(pixels, torch.arange(n))


def stream(images, batch_size=8, seed=0, size=16, flip=True, **options):
    return TrainStream(images, image_size=size, flip=flip, batch_size=batch_size, seed=seed, device=CPU, **options)


def content(batches):
    return [(images.numpy().tobytes(), targets.tolist()) for images, targets in batches]


@pytest.fixture(params=["memory", "files"])
def images(request, file_images):
    return memory_images() if request.param == "memory" else file_images


class TestDeterminism:
    def test_same_seed_same_bytes(self, images):
        assert content(stream(images, 4).epoch(3)) == content(stream(images, 4).epoch(3))

    def test_an_epoch_does_not_depend_on_those_before(self, images):
        used = stream(images, 4)
        first = content(used.epoch(0))
        content(used.epoch(1))
        assert content(used.epoch(0)) == first

    def test_other_seeds_and_epochs_differ(self, images):
        seen = {
            str(content(stream(images, 4, seed=seed).epoch(epoch)))
            for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1), (-1, 0)]
        }
        assert len(seen) == 5

    @pytest.mark.parametrize("start", [0, 1, 2])
    def test_starting_late_equals_skipping(self, images, start):
        whole = content(stream(images, 3).epoch(1))
        assert content(stream(images, 3).epoch(1, start=start)) == whole[start:]

    def test_starting_at_the_end_gives_nothing(self, images):
        batches = stream(images, 3)
        assert content(batches.epoch(0, start=batches.batches_per_epoch)) == []

    def test_two_epochs_can_be_read_side_by_side(self, images):
        batches = stream(images, 4)
        pairs = list(zip(batches.epoch(0), batches.epoch(1), strict=True))
        assert content(first for first, _ in pairs) == content(batches.epoch(0))
        assert content(second for _, second in pairs) == content(batches.epoch(1))

    def test_a_file_is_seen_otherwise_in_every_epoch(self, file_images):
        only = file_images.select(torch.tensor([0, 0]))
        stream = TrainStream(only, image_size=12, flip=True, batch_size=2, seed=0, device=torch.device("cpu"))
        views = torch.cat([images for epoch in range(3) for images, _ in stream.epoch(epoch)])
        assert len(views.unique(dim=0)) == 6

    @pytest.mark.parametrize("augment", ["none", "trivial", "rand"])
    def test_workers_do_not_matter(self, images, augment):
        own, others = (stream(images, 3, workers=workers, augment=augment) for workers in (0, 2))
        assert content(own.epoch(2)) == content(others.epoch(2))

    def test_global_random_numbers_neither_matter_nor_are_used(self, images):
        torch.manual_seed(1)
        first = content(stream(images, 4).epoch(0))
        torch.manual_seed(2)
        before = torch.get_rng_state()
        assert content(stream(images, 4).epoch(0)) == first
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_view_does_not_depend_on_the_batch_size(self):
        images = memory_images()
        small = {int(t): v for vs, ts in stream(images, 5).epoch(0) for v, t in zip(vs, ts, strict=True)}
        large = {int(t): v for vs, ts in stream(images, 50).epoch(0) for v, t in zip(vs, ts, strict=True)}
        assert all(torch.equal(small[label], large[label]) for label in large)

    @pytest.mark.parametrize("kind", ["memory", "files"])
    def test_another_seed_shows_other_views_and_not_only_another_order(self, kind, file_images):
        images = memory_images() if kind == "memory" else FileImages(file_images.paths, torch.arange(7))
        first, other = (
            {int(t): v for vs, ts in stream(images, 4, seed=seed).epoch(0) for v, t in zip(vs, ts, strict=True)}
            for seed in (0, 1)
        )
        common = first.keys() & other.keys()
        equal = sum(torch.equal(first[label], other[label]) for label in common)
        assert equal < len(common) / 4 if kind == "memory" else equal == 0  # in memory there are 50 views of each

    @pytest.mark.parametrize("start", [0, 2])
    @pytest.mark.parametrize("part", [(0, 1), (1, 2)])
    def test_batches_made_together_are_those_made_one_by_one(self, start, part, monkeypatch):
        def epoch():
            made = TrainStream(memory_images(), image_size=16, flip=True, batch_size=8, seed=0, device=CPU, part=part)
            return content(made.epoch(1, start=start))

        one_by_one = epoch()
        monkeypatch.setattr("spkd.data.stream._batches_at_once", lambda device: 3)
        assert epoch() == one_by_one

    @pytest.mark.parametrize("part", [(0, 3), (1, 3), (2, 3)])
    def test_a_part_of_a_batch_has_the_size_that_is_said(self, part):
        made = TrainStream(memory_images(), image_size=16, flip=True, batch_size=7, seed=0, device=CPU, part=part)
        sizes = [len(images) for images, _ in made.epoch(0)]
        assert sizes == [made.own_size(batch) for batch in range(made.batches_per_epoch)]

    @pytest.mark.parametrize("workers", [0, 2])
    def test_an_epoch_left_early_changes_nothing(self, file_images, workers):
        batches = stream(file_images, 2, workers=workers)
        whole = content(batches.epoch(0))
        next(batches.epoch(0))
        assert content(batches.epoch(0)) == whole


class TestAugment:
    @pytest.mark.parametrize("augment", ["trivial", "rand"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_the_same_views_are_changed_one_by_one(self, augment, channels):
        """In memory and enlarged: with the batches, crops and mirror images of the same seed without it."""
        images = memory_images(channels=channels)
        changed = 0
        plain, augmented = (stream(images, 20, seed=3, size=24, augment=name).epoch(1) for name in ("none", augment))
        transform = {"trivial": v2.TrivialAugmentWide, "rand": v2.RandAugment}[augment]()
        for (views, targets), (seen, given) in zip(plain, augmented, strict=True):
            assert torch.equal(targets, given)
            for view, one, index in zip(views, seen, targets.tolist(), strict=True):
                torch.manual_seed(mixed_seed(5, 3, 1, index))
                expected = transform((255 * view).round().to(torch.uint8))
                assert torch.equal((255 * one).round().to(torch.uint8), expected)
                changed += not torch.equal(view, one)
        assert changed > 30

    def test_files_are_changed_after_the_crop(self, file_images):
        files = FileImages(file_images.paths, torch.arange(7))  # so that a target tells which image it is
        (views, targets), *_ = stream(files, 7).epoch(0)
        (seen, _), *_ = stream(files, 7, augment="trivial").epoch(0)
        for view, one, index in zip(views, seen, targets.tolist(), strict=True):
            torch.manual_seed(mixed_seed(5, 0, 0, index))
            expected = v2.TrivialAugmentWide()((255 * view).round().to(torch.uint8))
            assert torch.equal((255 * one).round().to(torch.uint8), expected)
        assert not torch.equal(views, seen)

    def test_each_image_is_changed_otherwise_in_every_epoch_and_for_every_seed(self):
        images = memory_images()
        seen = [
            dict(zip(targets.tolist(), views, strict=True))
            for seed, epoch in ((0, 0), (0, 1), (1, 0))
            for views, targets in stream(images, 50, size=8, flip=False, seed=seed, augment="trivial").epoch(epoch)
        ]
        for first, other in itertools.combinations(seen, 2):
            assert sum(torch.equal(first[label], other[label]) for label in first) < 10

    def test_parts_of_a_batch_are_those_of_the_whole(self, images):
        whole = stream(images, 4, augment="rand").epoch(0)
        parts = zip(*(stream(images, 4, augment="rand", part=(part, 2)).epoch(0) for part in range(2)), strict=True)
        for (views, targets), halves in zip(whole, parts, strict=True):
            assert torch.equal(torch.cat([half for half, _ in halves]), views)
            assert torch.equal(torch.cat([half for _, half in halves]), targets)

    @pytest.mark.parametrize("augment", ["trivial", "rand"])
    def test_other_random_numbers_are_left_alone(self, images, augment):
        torch.manual_seed(2)
        before = torch.get_rng_state()
        content(stream(images, 4, augment=augment).epoch(0))
        assert torch.equal(torch.get_rng_state(), before)


class TestTurns:
    """What is seen is what is seen without it, turned."""

    @pytest.fixture
    def pictures(self, images):
        images = images.select(torch.arange(7))
        return images.relabelled(torch.arange(7))  # so that a target tells which image it is

    @pytest.mark.parametrize("options", [{}, {"augment": "rand"}, {"draw": "balanced"}])
    def test_the_same_views_are_turned_at_both_sizes_by_what_seed_epoch_and_image_say(self, pictures, options):
        options |= {"size": 12, "teacher_size": 20}
        seen = set()
        for seed, epoch in itertools.product((0, 3), range(3)):
            quarters = draw_turns(7, mixed_seed(7, seed, epoch)).tolist()
            plain = stream(pictures, 3, seed, **options).batches(epoch)
            turned = stream(pictures, 3, seed, turns=True, **options).batches(epoch)
            for one, other in zip(plain, turned, strict=True):
                assert torch.equal(one.targets, other.targets)
                for name in ("images", "shown"):
                    views = zip(getattr(one, name), one.targets.tolist(), strict=True)
                    expected = [view.rot90(quarters[index], (1, 2)) for view, index in views]
                    assert torch.equal(getattr(other, name), torch.stack(expected))
                    assert getattr(other, name).is_contiguous()
            seen.add(tuple(quarters))
        assert len(seen) == 6

    def test_of_one_size_there_is_one_tensor(self, pictures):
        assert all(batch.shown is batch.images for batch in stream(pictures, 4, turns=True).batches(0))

    def test_turned_images_are_mixed(self, pictures):
        turned = stream(pictures, 4, turns=True).batches(1)
        mixed = stream(pictures, 4, turns=True, mixup=0.7, classes=7).batches(1)
        for number, (one, other) in enumerate(zip(turned, mixed, strict=True)):
            share = draw_share(0.7, mixed_seed(Use.MIX, 0, 1, number))
            torch.testing.assert_close(other.images, share * one.images + (1 - share) * one.images.roll(1, 0))

    @pytest.mark.parametrize("start", [0, 1])
    @pytest.mark.parametrize("workers", [0, 2])
    def test_workers_parts_and_the_start_do_not_matter(self, pictures, start, workers):
        whole = content(stream(pictures, 3, turns=True).epoch(1))[start:]
        assert content(stream(pictures, 3, turns=True, workers=workers).epoch(1, start)) == whole
        halves = (stream(pictures, 3, turns=True, part=(part, 2)).epoch(1, start) for part in range(2))
        joined = [[torch.cat(both) for both in zip(*own, strict=True)] for own in zip(*halves, strict=True)]
        assert content(joined) == whole

    def test_with_mirror_images_eight_orientations_are_seen_alike(self):
        corner = torch.zeros(1600, 1, 4, 4, dtype=torch.uint8)  # too small for a margin
        corner[:, 0, 0, 1] = 255
        for flip, orientations in ((True, 8), (False, 4)):
            views, _ = next(stream(MemoryImages(corner, torch.arange(1600)), 1600, 5, 4, flip, turns=True).epoch(0))
            found, counts = views.unique(dim=0, return_counts=True)
            assert len(found) == orientations
            mean = 1600 / orientations
            assert (counts - mean).abs().max() < 4 * (mean * (1 - 1 / orientations)) ** 0.5


class TestTeacherSize:
    @pytest.mark.parametrize("augment", ["none", "rand"])
    def test_student_and_teacher_see_one_view_each_at_its_size(self, images, augment):
        options = {"batch_size": 4, "augment": augment}
        both = stream(images, size=16, teacher_size=24, **options).batches(1)
        alone, larger = (stream(images, size=size, **options).epoch(1) for size in (16, 24))
        for batch, (own, targets), (shown, _) in zip(both, alone, larger, strict=True):
            assert torch.equal(batch.images, own)
            assert torch.equal(batch.shown, shown)
            assert torch.equal(batch.targets, targets)

    def test_of_one_size_there_is_one_tensor(self, images):
        for teacher_size in (None, 16):
            for batch in stream(images, 4, teacher_size=teacher_size).batches(0):
                assert batch.shown is batch.images


class TestContents:
    def test_every_image_comes_once_an_epoch_in_an_order_of_the_epoch_and_the_seed(self):
        orders = {
            tuple(label for _, targets in stream(memory_images(), seed=seed).epoch(epoch) for label in targets.tolist())
            for seed, epoch in [(0, 0), (0, 1), (1, 0)]
        }
        assert len(orders) == 3
        assert all(sorted(order) == list(range(50)) for order in orders)

    def test_shapes_types_and_range(self, images):
        for views, targets in stream(images, 4, size=12).epoch(0):
            assert views.dtype == torch.float32
            assert tuple(views.shape) == (len(targets), 3, 12, 12)
            assert targets.dtype == torch.int64
            assert 0 <= views.min() < 0.2
            assert 0.8 < views.max() <= 1

    def test_the_label_stays_with_its_image(self):
        plain = torch.arange(50, dtype=torch.uint8).view(50, 1, 1, 1).expand(50, 3, 16, 16)
        for views, targets in stream(MemoryImages(plain, torch.arange(50))).epoch(0):
            assert (views * 255).round().flatten(1).unique(dim=1).flatten().tolist() == targets.tolist()

    def test_the_label_stays_with_its_file(self, tmp_path: Path):
        from PIL import Image

        paths = []
        for label in range(9):
            paths.append(str(tmp_path / f"{label}.png"))
            Image.new("RGB", (30 + label, 20), (label,) * 3).save(paths[-1])
        for workers in (0, 2):
            for views, targets in stream(FileImages(paths, torch.arange(9)), 4, workers=workers).epoch(0):
                assert (views * 255).round().amax((1, 2, 3)).tolist() == targets.tolist()

    def test_every_offset_and_both_sides_are_seen(self):
        # One image 8 pixels wide has 3 x 3 offsets, mirrored or not: 18 views.
        images = memory_images(n=2, size=8)
        views = {
            view.numpy().tobytes()
            for epoch in range(150)
            for batch, targets in stream(images, 2, size=8).epoch(epoch)
            for view, label in zip(batch, targets, strict=True)
            if label == 0
        }
        assert len(views) == 18

    def test_small_images_for_a_large_network_are_enlarged_after_the_crop(self):
        images = memory_images(n=6, size=8)
        small = list(stream(images, 6, size=8).epoch(0))
        large = list(stream(images, 6, size=24).epoch(0))
        assert tuple(large[0][0].shape) == (6, 3, 24, 24)
        assert torch.equal(large[0][1], small[0][1])
        assert torch.allclose(large[0][0].mean((1, 2, 3)), small[0][0].mean((1, 2, 3)), atol=0.02)

    def test_images_larger_than_the_network_s_are_made_smaller_before_the_crop(self):
        images = memory_images(n=6)
        windows = pad_reflect(resize(images.pixels, 12), 1).unfold(2, 12, 1).unfold(3, 12, 1)
        ((views, targets),) = stream(images, 6, size=12, flip=False).epoch(0)
        for view, label in zip(views, targets, strict=True):
            assert ((255 * view).round()[:, None, None] == windows[label]).all((0, 3, 4)).any()

    def test_grey_images(self):
        views, _ = next(stream(memory_images(channels=1)).epoch(0))
        assert tuple(views.shape) == (8, 1, 16, 16)


class TestBatches:
    @pytest.mark.parametrize(
        ("n", "batch_size", "sizes"),
        [(10, 5, [5, 5]), (10, 4, [4, 4, 2]), (9, 4, [4, 4]), (3, 1, [1, 1, 1]), (4, 4, [4]), (1, 1, [1])],
    )
    def test_a_last_batch_of_one_is_dropped(self, n, batch_size, sizes):
        batches = stream(memory_images(n), batch_size)
        assert [len(targets) for _, targets in batches.epoch(0)] == sizes
        assert batches.batches_per_epoch == len(sizes)

    @pytest.mark.parametrize("batch_size", [0, -1, 51])
    def test_impossible_batch_sizes(self, batch_size):
        with pytest.raises(InputError, match=rf"^batch_size: [^\n]*{batch_size}[^\n]*$"):
            stream(memory_images(50), batch_size)

    @pytest.mark.parametrize("start", [-1, 8])
    def test_impossible_starts_are_refused_at_the_call(self, start):
        with pytest.raises(InputError, match=r"^start: expected 0 to 7 batches"):
            stream(memory_images(50)).epoch(0, start=start)

    def test_impossible_image_sizes(self):
        with pytest.raises(InputError, match=r"^image_size: "):
            stream(memory_images(), size=0)
        with pytest.raises(InputError, match=r"^image_size: "):
            evaluation_batches(memory_images(), image_size=0, batch_size=8, device=CPU)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_file_that_has_gone_is_named_in_one_line(self, file_images, workers):
        Path(file_images.paths[4]).unlink()
        with pytest.raises(InputError, match=r"^image [^\n]+4\.png cannot be read \(No such file[^\n]+$"):
            content(stream(file_images, 3, workers=workers).epoch(0))
        with pytest.raises(InputError, match=r"^image [^\n]+4\.png cannot be read \(No such file[^\n]+$"):
            content(evaluation_batches(file_images, image_size=16, batch_size=3, device=CPU, workers=workers))


class TestEvaluation:
    def test_images_come_in_order_as_they_are(self):
        images = memory_images(10)
        batches = list(evaluation_batches(images, image_size=16, batch_size=4, device=CPU))
        assert [len(targets) for _, targets in batches] == [4, 4, 2]
        assert torch.equal(torch.cat([targets for _, targets in batches]), images.targets)
        assert torch.allclose(torch.cat([views for views, _ in batches]), images.pixels / 255, atol=1e-7)

    @pytest.mark.parametrize("view", ["whole", "centre"])
    def test_batches_are_dealt_out_in_turn(self, view):
        options = {"image_size": 16, "batch_size": 3, "device": CPU, "view": view}
        whole = list(evaluation_batches(memory_images(10), **options))
        for count in (2, 3, 5):
            parts = [list(evaluation_batches(memory_images(10), **options, part=(one, count))) for one in range(count)]
            assert sum(map(len, parts)) == len(whole) == 4
            for place, batch in enumerate(whole):
                assert all(map(torch.equal, parts[place % count][place // count], batch))

    def test_images_of_another_size_are_resized(self):
        views, _ = next(evaluation_batches(memory_images(), image_size=24, batch_size=4, device=CPU))
        assert tuple(views.shape) == (4, 3, 24, 24)

    def test_workers_do_not_matter(self, file_images):
        results = [
            content(evaluation_batches(file_images, image_size=16, batch_size=3, device=CPU, workers=workers))
            for workers in (0, 2)
        ]
        assert results[0] == results[1]
        assert [targets for _, targets in results[0]] == [[0, 1, 2], [0, 1, 2], [0]]

    def test_impossible_batch_sizes(self):
        with pytest.raises(InputError, match=r"^batch_size: expected at least 1, got 0$"):
            evaluation_batches(memory_images(), image_size=16, batch_size=0, device=CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("augment", ["none", "trivial"])
def test_the_device_does_not_matter(images, augment):
    def epoch(device):
        batches = TrainStream(
            images,
            image_size=16,
            flip=True,
            turns=True,
            augment=augment,
            batch_size=4,
            seed=0,
            device=torch.device(device),
            workers=1,
        )
        return content((views.cpu(), targets.cpu()) for views, targets in batches.epoch(0))

    assert epoch("cuda") == epoch("cpu")


@pytest.mark.parametrize("view", ["centre", "whole"])
def test_a_large_jpeg_is_seen_as_one_that_was_decoded_whole(tmp_path, monkeypatch, view):
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    large = Image.fromarray(coarse).resize((800, 600), Image.Resampling.BICUBIC)
    large.save(tmp_path / "a.jpg", quality=95)
    images = FileImages([str(tmp_path / "a.jpg")] * 8, torch.arange(8))
    read = FileImages.image
    shapes = set()

    def views():
        ((training, _),) = stream(images, 8, size=16).epoch(0)
        ((seen, _),) = evaluation_batches(images, image_size=16, batch_size=8, device=CPU, view=view)
        return 255 * training, 255 * seen

    def watched(self, index, side=None):
        image = read(self, index, side)
        shapes.add(tuple(image.shape[1:]))
        return image

    monkeypatch.setattr(FileImages, "image", watched)
    training, seen = views()
    assert shapes == {(150, 200), (75, 100)}
    monkeypatch.setattr(FileImages, "image", lambda self, index, side=None: read(self, index))
    whole_training, whole_seen = views()
    assert (seen - whole_seen).abs().mean() < 0.5
    # Corners are rounded to the smaller image's pixels; another seed's views are quite others.
    assert (training - whole_training).abs().mean() < 0.1 * (training - training.flip(0)).abs().mean()


@pytest.fixture
def begun(monkeypatch):
    """How many processes each loader was given that has been made; none gives an image."""
    counts = []

    class Loader:
        def __init__(self, views, num_workers, **_):
            counts.append(num_workers)

        def __iter__(self):
            return iter(())

    monkeypatch.setattr("spkd.data.views.DataLoader", Loader)
    return counts


@pytest.mark.parametrize(
    ("cpus", "threads_said", "workers", "started"),
    [
        (4, None, None, 4),
        (64, None, None, 16),
        (64, "5", None, 5),
        (64, "1", None, 2),
        (64, None, 20, 20),
        (1, None, 0, 0),
    ],
)
def test_for_a_gpu_as_many_processes_read_as_there_are_processors(monkeypatch, cpus, threads_said, workers, started):
    """Unless it is said how many threads a process has, as to one of several."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads_said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", threads_said)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2 if threads_said is None else int(threads_said))
    monkeypatch.setattr("spkd.data.views.usable_cpus", lambda: cpus)
    assert readers(workers, torch.device("cuda"), 100, 4, (16,)) == started
    assert readers(workers, torch.device("cuda"), 3, 4, (16,)) == min(started, 3)


def test_a_stream_tells_how_many_processes_read(monkeypatch, file_images):
    images = MemoryImages(torch.zeros(7, 3, 8, 8, dtype=torch.uint8), torch.arange(7))
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    monkeypatch.setattr("spkd.data.views.usable_cpus", lambda: 8)
    assert stream(images, 3).readers is None
    assert stream(images, 3, augment="rand", workers=1).readers == 1
    assert [stream(file_images, 1, workers=workers).readers for workers in (None, 0, 2)] == [3, 0, 2]


@pytest.mark.parametrize(
    ("threads", "cpus", "workers", "started"),
    [
        (1, 16, None, 2),
        (5, 16, None, 5),
        (64, 64, None, 8),
        (5, 3, None, 3),
        (1, 1, None, 1),
        (5, 16, 1, 1),
        (1, 1, 6, 6),
    ],
)
def test_as_many_processes_read_as_threads_compute(monkeypatch, begun, file_images, threads, cpus, workers, started):
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    monkeypatch.setattr("spkd.data.views.usable_cpus", lambda: cpus)
    images = FileImages([*file_images.paths] * 3, torch.arange(3 * len(file_images)))
    assert list(evaluation_batches(images, image_size=16, batch_size=1, device=CPU, workers=workers)) == []
    assert begun == [started]


@pytest.mark.parametrize(("free", "started"), [(10**9, 4), (2 * 3 * (3 * 16 * 16 * 2) * 3, 3), (1000, 0)])
def test_no_more_processes_read_than_the_shared_memory_holds(monkeypatch, begun, caplog, file_images, free, started):
    _tell_of_memory.cache_clear()
    usage = namedtuple("Usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(free))
    monkeypatch.setattr("spkd.data.views.usable_cpus", lambda: 16)
    for _ in range(2):
        assert list(evaluation_batches(file_images, image_size=16, batch_size=2, device=CPU, workers=4)) == []
    assert begun == [started, started]
    said = {4: [], 3: ["3 of 4 processes read images, since"], 0: ["images are read one by one, since"]}[started]
    assert [message.partition(" there is")[0] for message in caplog.messages] == said


def test_a_reader_that_dies_is_told_in_one_line(monkeypatch, file_images):
    own = os.getpid()

    def die(self, index, side=None):
        assert os.getpid() != own, "no other process reads"
        os._exit(1)

    monkeypatch.setattr(FileImages, "image", die)
    with pytest.raises(ReaderDied, match=r"^a process that reads images has died \([^\n]+\): fewer --workers[^\n]+$"):
        list(evaluation_batches(file_images, image_size=16, batch_size=2, device=CPU, workers=2))


def test_what_fails_with_a_reader_is_its_death(monkeypatch, file_images):
    """As of the thread that hands its batches to a GPU."""

    def started(loader, *, spawning):
        raise RuntimeError("Pin memory thread exited unexpectedly")
        yield

    monkeypatch.setattr("spkd.data.views._started", started)
    with pytest.raises(ReaderDied, match="Pin memory thread"):
        list(evaluation_batches(file_images, image_size=16, batch_size=2, device=CPU, workers=2))


@dataclass(frozen=True)
class WhoReads(FixedViews):
    """Tells of each image which process reads it."""

    def __getitem__(self, index):
        return [torch.tensor([os.getpid()])], index


def test_a_reader_that_is_killed_in_the_midst_of_a_step_is_told_of_after_it(monkeypatch, file_images):
    monkeypatch.setattr("spkd.data.views.to_unit_range", lambda pids: pids)
    batches = in_batches(WhoReads(file_images, (16,), "whole"), list(torch.arange(7).view(7, 1)), CPU, 1)
    ((reader,), _) = next(batches)
    os.kill(int(reader), signal.SIGKILL)
    time.sleep(0.5)  # the step, which the signal of the death reaches
    with pytest.raises(ReaderDied):
        list(batches)


@dataclass(frozen=True)
class HeldBack(FixedViews):
    """Tells of each image whether a reader holds back SIGINT and SIGTERM."""

    def __getitem__(self, index):
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        return [torch.tensor([signal.SIGINT in blocked, signal.SIGTERM in blocked])], index


def test_readers_leave_signals_to_stop_to_the_run_from_the_first_moment_on(file_images):
    (((told,), _),) = in_batches(HeldBack(file_images, (16,), "whole"), [torch.arange(2)], CPU, 1)
    assert told.all()
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGINT, signal.SIGTERM}


class TestMixing:
    """Held against the same stream without it, and the formula in float64."""

    @pytest.fixture
    def pictures(self, images):
        return images.select(torch.arange(7))

    def mixed(self, images, batch_size=3, **options):
        return stream(images, batch_size, mixup=0.7, classes=50, **options)

    @pytest.mark.parametrize("start", [0, 1])
    def test_each_image_is_mixed_with_the_one_before_it_and_its_label_too(self, pictures, start):
        plain, mixed = stream(pictures, 3).batches(2, start), self.mixed(pictures).batches(2, start)
        shares = []
        for number, (one, other) in enumerate(zip(plain, mixed, strict=True), start):
            share = draw_share(0.7, mixed_seed(Use.MIX, 0, 2, number))
            for place in range(len(one.images)):
                expected = share * one.images[place].double() + (1 - share) * one.images[place - 1].double()
                torch.testing.assert_close(other.images[place].double(), expected, rtol=0, atol=1e-6)
                row = [0.0] * 50
                row[one.targets[place]] += share
                row[one.targets[place - 1]] += 1 - share
                assert other.targets[place].tolist() == row
            assert other.shown is other.images
            shares.append(share)
        assert len(set(shares)) == len(shares)

    def test_parts_of_a_batch_are_those_of_the_whole(self, pictures):
        whole = list(self.mixed(pictures, 7).batches(1))
        parts = [list(self.mixed(pictures, 7, part=(part, 3)).batches(1)) for part in range(3)]
        for batch, own in zip(whole, zip(*parts, strict=True), strict=True):
            for field in range(3):
                assert torch.equal(batch[field], torch.cat([part[field] for part in own]))

    def test_both_sizes_are_mixed_alike(self, file_images):
        plain = stream(file_images, 3, size=12, teacher_size=20).batches(0)
        mixed = self.mixed(file_images, size=12, teacher_size=20).batches(0)
        for number, (one, other) in enumerate(zip(plain, mixed, strict=True)):
            share = draw_share(0.7, mixed_seed(Use.MIX, 0, 0, number))
            for view, size in (("images", 12), ("shown", 20)):
                own = getattr(one, view)
                torch.testing.assert_close(getattr(other, view), share * own + (1 - share) * own.roll(1, 0))
                assert own.shape[-1] == size

    def test_an_image_without_a_label_leaves_its_share_out(self):
        images = memory_images(4)
        images = images.relabelled(torch.tensor([-100, -100, -100, 3]))
        for batch in self.mixed(images, 4).batches(0):
            share = draw_share(0.7, mixed_seed(Use.MIX, 0, 0, 0))
            assert sorted(batch.targets.sum(1).tolist()) == sorted([0, 0, share, 1 - share])

    def test_a_batch_of_one_is_its_own_neighbour(self):
        plain, mixed = stream(memory_images(2), 1).epoch(0), self.mixed(memory_images(2), 1).epoch(0)
        for (images, targets), (same, shares) in zip(plain, mixed, strict=True):
            torch.testing.assert_close(same, images)
            assert shares[0, targets[0]] == 1

    def test_workers_do_not_matter(self, pictures):
        own, others = (self.mixed(pictures, workers=workers, augment="rand") for workers in (0, 2))
        assert content(own.epoch(2)) == content(others.epoch(2))


def test_an_epoch_is_drawn_as_is_said(images):
    images = images.select(torch.arange(7)).relabelled(torch.tensor([0, 0, 0, 0, 0, 0, 1]))
    seen = [target for _, targets in stream(images, 3, draw="balanced").epoch(1) for target in targets.tolist()]
    assert sorted(seen) in ([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1])
    assert (
        content(stream(images, 3, draw="balanced").epoch(1, start=1))
        == content(stream(images, 3, draw="balanced").epoch(1))[1:]
    )


@pytest.mark.parametrize("augment", ["none", "rand"])
def test_an_image_that_comes_several_times_is_seen_otherwise_each_time(images, augment):
    images = images.select(torch.arange(7)).relabelled(torch.tensor([0, 0, 0, 0, 0, 0, 1]))
    (seen, targets), *_ = stream(images, 7, draw="balanced", augment=augment).epoch(0)
    rare = seen[targets == 1]
    assert len(rare) >= 3
    assert len(rare.unique(dim=0)) == len(rare)
