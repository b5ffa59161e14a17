import errno
import os
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from spkd.data.decoding import (
    PATIENCE,
    _scaled,
    decoding_fault,
    header_size,
    map_files,
    most_of_16_bits,
    read_if_square,
    read_image,
)
from spkd.data.formats import EXTENSIONS
from spkd.errors import InputError

COLOURS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[0, 0, 0], [255, 255, 255], [200, 100, 50]]])


def saved(image, path, **arguments):
    image.save(path, **arguments)
    return str(path)


def read_hwc(path, channels=3):
    return read_image(path, channels).permute(1, 2, 0).numpy()


def test_colours_are_kept(tmp_path):
    path = saved(Image.fromarray(COLOURS.astype(np.uint8)), tmp_path / "a.png")
    np.testing.assert_array_equal(read_hwc(path), COLOURS)


@pytest.mark.parametrize("suffix", ["webp", "bmp", "tif", "ppm"])
def test_lossless_formats_agree(tmp_path, suffix):
    arguments = {"lossless": True} if suffix == "webp" else {}
    path = saved(Image.fromarray(COLOURS.astype(np.uint8)), tmp_path / f"a.{suffix}", **arguments)
    np.testing.assert_array_equal(read_hwc(path), COLOURS)


@pytest.mark.parametrize("ending", sorted(EXTENSIONS))
def test_each_ending_is_that_of_a_format_that_is_read(tmp_path, ending):
    path = saved(Image.fromarray(clouds(16, 24)), tmp_path / f"a{ending}")
    assert read_image(path, 3).shape == (3, 16, 24)
    assert decoding_fault(path) is None
    assert header_size(path) == (24, 16)


def test_a_phone_s_picture_of_several_frames_is_read(tmp_path):
    picture = Image.fromarray(clouds(160, 240))
    path = saved(picture, tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[picture.rotate(90)])
    with Image.open(path) as image:
        assert image.format == "MPO"
    assert read_image(path, 3).shape == (3, 160, 240)
    assert read_image(path, 3, 40).shape == (3, 40, 60)


def test_nothing_is_run_for_what_is_no_image_but_a_program(tmp_path, monkeypatch):
    def run(*arguments, **options):
        pytest.fail("a program was started")

    monkeypatch.setattr("subprocess.Popen", run)
    path = tmp_path / "a.jpg"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n{} loop\n")
    with Image.open(path) as image:
        assert image.format == "EPS"
    with pytest.raises(InputError, match=r"a\.jpg cannot be read \(not an image, or of an unknown format\)"):
        read_image(str(path), 3)
    assert decoding_fault(str(path)) == "not an image, or of an unknown format"
    assert header_size(str(path)) is None


def test_grey_is_repeated_and_colour_becomes_grey(tmp_path):
    grey = np.array([[0, 100], [200, 255]], dtype=np.uint8)
    path = saved(Image.fromarray(grey), tmp_path / "a.png")
    np.testing.assert_array_equal(read_hwc(path), np.repeat(grey[..., None], 3, 2))
    np.testing.assert_array_equal(read_hwc(path, channels=1)[..., 0], grey)


def test_transparent_pixels_show_white(tmp_path):
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)
    rgba[0, :, 3] = [0, 255, 128]
    white, black, between = read_hwc(saved(Image.fromarray(rgba), tmp_path / "a.png"))[0]
    assert white.tolist() == [255] * 3
    assert black.tolist() == [0] * 3
    assert abs(int(between[0]) - 127) <= 1


def test_palettes_with_and_without_transparency(tmp_path):
    picture = Image.fromarray(COLOURS.astype(np.uint8)).quantize(8)
    expected = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(read_hwc(saved(picture, tmp_path / "a.png")), expected)
    place = picture.getpixel((0, 0))
    transparent = read_hwc(saved(picture, tmp_path / "b.png", transparency=place))
    assert transparent[0, 0].tolist() == [255] * 3
    np.testing.assert_array_equal(transparent[1], expected[1])


def test_sixteen_bits_are_scaled(tmp_path):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    for suffix in ("png", "tif"):
        path = saved(Image.fromarray(values), tmp_path / f"a.{suffix}")
        assert read_hwc(path)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_sixteen_bits_are_scaled_where_one_value_is_transparent(tmp_path):
    values = np.array([[0, 257, 300, 32896, 65535]], dtype=np.uint16)
    path = saved(Image.fromarray(values), tmp_path / "a.png", transparency=257)
    with Image.open(path) as image:
        assert (image.info["transparency"], image.mode[:1]) == (257, "I")
    for channels in (1, 3):
        assert read_hwc(path, channels)[0, :, 0].tolist() == [0, 255, 1, 128, 255]


def in_eight_bits(values, scale, transparent=None):
    eight = np.clip(np.rint(np.nan_to_num(values) * scale), 0, 255).astype(np.uint8)
    eight[values == transparent] = 255
    return eight


@pytest.mark.parametrize("transparent", [None, 0, 4711, 65535])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_every_value_of_sixteen_bits_is_rounded_to_the_nearest(order, transparent):
    values = np.arange(65536, dtype=order).reshape(256, 256)
    image = Image.frombytes("I;16" if order == "<u2" else "I;16B", (256, 256), values.tobytes())
    if transparent is not None:
        image.info["transparency"] = transparent
    wanted = in_eight_bits(values, 255 / 65535, transparent)
    np.testing.assert_array_equal(np.asarray(_scaled(image)), wanted)


@pytest.mark.parametrize("transparent", [None, 1, 7])
@pytest.mark.parametrize("most", [1, 255, 256, 70000])
def test_whole_numbers_and_floats_are_rounded_to_the_nearest(most, transparent):
    numbers = np.random.default_rng(0).uniform(-0.1 * most, most, (64, 64)).astype(np.float32)
    numbers[0, :3] = most, np.nan, min(7, most)
    whole = np.rint(np.nan_to_num(numbers)).astype(np.int32)
    for values, scale in ((numbers, 255.0 if most == 1 else 1.0), (whole, 255 / 65535 if most > 255 else 1.0)):
        image = Image.fromarray(values)
        if transparent is not None:
            image.info["transparency"] = transparent
        np.testing.assert_array_equal(np.asarray(_scaled(image)), in_eight_bits(values, scale, transparent))


@pytest.mark.parametrize(("mode", "most"), [("I;16", 7), ("I", 18), ("F", 14)])
def test_more_than_eight_bits_take_a_few_bytes_for_each_pixel(mode, most):
    """Above those of the image itself: two arrays of float64 alone would be sixteen."""
    image = Image.new(mode, (1000, 1000), 500)
    tracemalloc.start()
    try:
        _scaled(image)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak / 1e6 <= most


def test_floats_are_scaled(tmp_path):
    path = saved(Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)), tmp_path / "a.tif")
    assert read_hwc(path)[0, :, 0].tolist() == [0, 128, 255]


def test_the_scale_is_the_format_s_and_not_the_image_s(tmp_path):
    floats = saved(Image.fromarray(np.array([[0.0, 100.0, 255.0]], dtype=np.float32)), tmp_path / "a.tif")
    assert read_hwc(floats)[0, :, 0].tolist() == [0, 100, 255]
    dark = saved(Image.fromarray(np.array([[0, 200, 255]], dtype=np.uint16)), tmp_path / "a.png")
    assert read_hwc(dark)[0, :, 0].tolist() == [0, 1, 1]


@pytest.mark.parametrize("most", [255, 256])
def test_a_pgm_of_16_bits_is_one_however_dark(tmp_path, most):
    """Pillow opens it as 32-bit integers, of which it says nothing."""
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 3 1 65535\n" + np.array([0, 200, most], dtype=">u2").tobytes())
    with Image.open(path) as image:
        assert image.mode == "I"
    assert read_hwc(str(path))[0, :, 0].tolist() == [0, 1, 1]
    assert most_of_16_bits(str(path)) == most


def test_cmyk_and_bilevel(tmp_path):
    cmyk = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    red = read_hwc(saved(cmyk, tmp_path / "a.jpg", quality=100)).reshape(-1, 3).mean(0)
    assert red[0] > 200
    assert max(red[1:]) < 60
    bilevel = Image.fromarray(np.array([[True, False]]))
    assert read_hwc(saved(bilevel, tmp_path / "b.png"))[0, :, 0].tolist() == [255, 0]


def test_exif_rotation_is_undone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to view
    path = saved(Image.fromarray(COLOURS.astype(np.uint8)), tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_hwc(path), np.rot90(COLOURS, -1))


def clouds(height, width):
    """Return a smooth coloured picture, (h, w, 3)."""
    coarse = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("side", "part"), [(None, 1), (81, 1), (80, 2), (41, 2), (40, 4), (21, 4), (20, 8), (1, 8)])
def test_a_jpeg_is_decoded_no_larger_than_needed(tmp_path, side, part):
    picture = clouds(160, 240)
    path = saved(Image.fromarray(picture), tmp_path / "a.jpg", quality=95)
    found = read_image(path, 3, side)
    assert tuple(found.shape) == (3, 160 // part, 240 // part)
    means = picture.astype(float).reshape(160 // part, part, 240 // part, part, 3).mean((1, 3))
    assert np.abs(found.permute(1, 2, 0).numpy() - means).mean() < 1.5


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_smaller_jpeg_is_upright_and_of_any_mode(tmp_path, mode):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(clouds(160, 240)).convert(mode)
    path = saved(picture, tmp_path / "a.jpg", quality=95, exif=exif)
    for channels in (1, 3):
        whole, smaller = read_image(path, channels), read_image(path, channels, 40)
        assert tuple(smaller.shape) == (channels, 60, 40)
        means = whole.float().unfold(1, 4, 4).unfold(2, 4, 4).mean((-1, -2))
        assert (smaller - means).abs().mean() < 1.5


def test_only_jpegs_are_decoded_smaller(tmp_path):
    path = saved(Image.fromarray(COLOURS.astype(np.uint8)), tmp_path / "a.png")
    assert torch.equal(read_image(path, 3, 1), read_image(path, 3))


@pytest.fixture
def broken(tmp_path):
    """Return files that are no readable images, by kind."""
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
    contents = {"truncated": whole.read_bytes()[:900], "text": b"<html>404</html>", "empty": b""}
    paths = {"missing": str(tmp_path / "missing.jpg"), "folder": str(tmp_path)}
    for kind, content in contents.items():
        (tmp_path / f"{kind}.jpg").write_bytes(content)
        paths[kind] = str(tmp_path / f"{kind}.jpg")
    return paths


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "missing", "folder"])
def test_an_unreadable_file_is_named_in_one_line(broken, kind):
    with pytest.raises(InputError, match=r"^image [^\n]+ cannot be read \([^\n]+\)[^\n]+--skip_bad_images$") as raised:
        read_image(broken[kind], 3)
    assert broken[kind] in str(raised.value)
    assert decoding_fault(broken[kind])
    assert isinstance(read_if_square(broken[kind], 64), str)


def test_a_whole_file_has_no_fault(broken, tmp_path):
    assert decoding_fault(str(tmp_path / "whole.jpg")) is None
    assert header_size(str(tmp_path / "whole.jpg")) == (64, 64)
    assert header_size(broken["text"]) is None


def test_squares_of_one_size_are_read_and_others_not(tmp_path):
    path = saved(Image.fromarray(COLOURS.astype(np.uint8)), tmp_path / "a.png")
    assert read_if_square(path, 3) is None
    square = saved(Image.fromarray(COLOURS[:2, :2].astype(np.uint8)), tmp_path / "b.png")
    np.testing.assert_array_equal(read_if_square(square, 2), COLOURS[:2, :2])


def test_files_are_mapped_in_order():
    names = [str(number) for number in range(1000)]
    assert map_files(int, names) == list(range(1000))
    assert map_files(int, []) == []


def test_pixels_are_bytes(tmp_path):
    path = saved(Image.fromarray(COLOURS.astype(np.uint8)), tmp_path / "a.png")
    assert read_image(path, 3).dtype == read_image(path, 1).dtype == torch.uint8


@pytest.mark.parametrize("failing", [1, 3])
def test_a_disk_that_does_not_answer_is_asked_again(tmp_path, monkeypatch, failing):
    path = saved(Image.fromarray(COLOURS.astype(np.uint8)), tmp_path / "a.png")
    pauses = []
    monkeypatch.setattr("time.sleep", pauses.append)
    really, errors = Image.open, iter([OSError(errno.EIO, "Input/output error")] * failing)

    def open_at_last(file, formats):
        for error in errors:
            raise error
        return really(file, formats=formats)

    monkeypatch.setattr(Image, "open", open_at_last)
    np.testing.assert_array_equal(read_hwc(path), COLOURS)
    assert pauses == list(PATIENCE[:failing])


@pytest.mark.parametrize(("number", "asked"), [(errno.EIO, 4), (errno.EACCES, 1)])
def test_a_disk_that_never_answers_is_told_like_a_broken_file(tmp_path, monkeypatch, number, asked):
    path = saved(Image.fromarray(COLOURS.astype(np.uint8)), tmp_path / "a.png")
    monkeypatch.setattr("time.sleep", lambda pause: None)
    calls = []

    def fail(file, formats):
        calls.append(file)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Image, "open", fail)
    assert decoding_fault(path) == os.strerror(number)
    with pytest.raises(InputError, match=rf"a\.png cannot be read \({os.strerror(number)}\)"):
        read_image(path, 3)
    assert len(calls) == 2 * asked


@pytest.mark.parametrize(("rank", "told"), [(None, 3), ("0", 3), ("1", 0)])
def test_how_far_it_is_among_many_files_is_told_by_the_first_process(monkeypatch, caplog, rank, told):
    monkeypatch.setattr("spkd.data.decoding.TOLD_EVERY", 0.0)
    for name in ("TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False) if rank is None else monkeypatch.setenv(name, rank)
    names = [str(number) for number in range(70)]
    assert map_files(int, names) == list(range(70))
    assert caplog.messages == [f"checking image files: {count} of 70" for count in (32, 64, 70)][:told]
