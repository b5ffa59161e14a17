"""Image files of any mode to tensors."""

from __future__ import annotations

import errno
import logging
import stat
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from spkd.data.formats import FORMATS
from spkd.errors import InputError, UnreadableImage
from spkd.machine import is_follower, usable_cpus

Result = TypeVar("Result")

Bytes = NDArray[np.uint8]

Picture = str | BinaryIO | Image.Image
"""The path of a picture's file, the file opened to read bytes, or ``io.BytesIO``, or what Pillow has opened."""

_BLOCK = 32

TOLD_EVERY = 10.0
"""Seconds between two lines on how many of many files have been looked at."""
PATIENCE = (0.1, 1.0, 5.0)
"""Seconds to wait before each new try to read a file from a disk that does not answer."""
_PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH}
_log = logging.getLogger(__name__)


def read_image(picture: Picture, channels: int, side: int | None = None) -> Tensor:
    """Read an image of any mode, turned upright as its EXIF data say.

    Transparent pixels show white, 16-bit values are scaled to 8 bits, palettes and CMYK become RGB.

    Args:
        picture: the path of its file, or what is open already, which stays so.
        channels: 3 for RGB, 1 for grey.
        side: how many pixels its shorter side must have. A JPEG that keeps them is decoded at a half, a quarter or an
            eighth of its size, which is several times as quick; all else is read whole.

    Returns:
        uint8, shape (channels, h, w).

    Raises:
        UnreadableImage: when it cannot be read (one line, names the file).
    """
    try:
        pixels = torch.from_numpy(patiently(_decoded, picture, channels, side))
    except Exception as error:  # a broken file makes decoders raise errors of any kind
        name = picture if isinstance(picture, str) else "in memory"
        raise UnreadableImage(f"image {name} cannot be read ({reason(error)})") from error
    # Left as a view: the channels lie last in memory, the order in which resizing is quickest.
    return pixels.permute(2, 0, 1) if channels == 3 else pixels.unsqueeze(0)


def _decoded(picture: Picture, channels: int, side: int | None) -> Bytes:
    if isinstance(picture, Image.Image):
        own = picture.copy()
        own.format = picture.format
        return _pixels(own, channels)
    with _opened(picture) as image:
        if side is not None:
            image.draft(image.mode, (side, side))
        return _pixels(image, channels)


def patiently(read: Callable[..., Result], *arguments: object, tries: int = 0) -> Result:
    """Return what ``read`` gives, after several tries where a disk, over a network say, does not answer."""
    try:
        return read(*arguments)
    except OSError as error:
        if error.errno not in _PASSING or tries == len(PATIENCE):
            raise
    time.sleep(PATIENCE[tries])
    return patiently(read, *arguments, tries=tries + 1)


def read_if_square(path: str, size: int) -> Bytes | str | None:
    """Read an RGB image (h, w, 3) of ``size`` x ``size`` pixels.

    Returns:
        The pixels, why they cannot be read, or None, at the cost of reading its header, when the image has
        another size.
    """
    try:
        return patiently(_decoded_if_square, path, size)
    except Exception as error:
        return reason(error)


def _decoded_if_square(path: str, size: int) -> Bytes | None:
    with _opened(path) as image:
        return _pixels(image, channels=3) if image.size == (size, size) else None


def header_size(picture: Picture) -> tuple[int, int] | None:
    """Return an image's (width, height) as stored, from its header alone; None when there is none."""
    try:
        return patiently(_size, picture)
    except Exception:
        return None


def _size(picture: Picture) -> tuple[int, int]:
    if isinstance(picture, Image.Image):
        return picture.size
    with _opened(picture) as image:
        width, height = image.size
        return width, height


def most_of_16_bits(path: str) -> int | None:
    """Return the greatest value in an image of one channel of 16 bits; None of any other, at the cost of its header."""
    try:
        return patiently(_most_of_16_bits, path)
    except Exception:
        return None


def _most_of_16_bits(path: str) -> int | None:
    with _opened(path) as image:
        if not image.mode.startswith("I"):
            return None
        most = int(np.asarray(image).max())
        return most if _is_of_16_bits(image, most) else None


def decoding_fault(path: str) -> str | None:
    """Return why a file cannot be read as :func:`read_image` does, None when it can."""
    try:
        patiently(_decode_quickly, path)
    except Exception as error:
        return reason(error)
    return None


def _decode_quickly(path: str) -> None:
    with _opened(path) as image:
        # A JPEG is read to its end at an eighth of the size, at a fraction of the cost.
        image.draft(image.mode, (max(image.width // 8, 1), max(image.height // 8, 1)))
        _pixels(image, channels=3)


def reason(error: Exception) -> str:
    """Return an error's text in one line, without the path that the caller names anyway."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of an unknown format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def look_into(path: str, look: Callable[[Path], Result]) -> Result:
    """Return what ``look`` finds in a file, after several tries where a disk does not answer.

    Raises:
        UnreadableImage: when it cannot be read.
    """
    try:
        return patiently(look, Path(path))
    except OSError as error:
        raise UnreadableImage(f"image {path} cannot be read ({reason(error)})") from error


def file_size(path: Path) -> int:
    """Return how many bytes a file has."""
    return path.stat().st_size


def map_files(function: Callable[[str], Result], paths: Sequence[str]) -> list[Result]:
    """Return ``function`` of every path, in order; in threads, since decoders let others run meanwhile.

    Every ``TOLD_EVERY`` seconds a line is logged that says how far it is.
    """
    # In blocks, since handing a thread its work takes as long as reading a small image.
    blocks = [paths[first : first + _BLOCK] for first in range(0, len(paths), _BLOCK)]
    # More than processors, since disks over a network keep each waiting.
    with ThreadPoolExecutor(max_workers=min(4 * usable_cpus(), 16)) as pool:
        results: list[Result] = []
        told = time.monotonic()
        for block in pool.map(lambda block: [function(path) for path in block], blocks):
            results += block
            if time.monotonic() - told >= TOLD_EVERY and not is_follower():
                _log.warning("checking image files: %s of %s", f"{len(results):,}", f"{len(paths):,}")
                told = time.monotonic()
        return results


def _opened(file: str | BinaryIO) -> Image.Image:
    if isinstance(file, str) and not stat.S_ISREG(Path(file).stat().st_mode):  # a pipe, say, which would be waited for
        raise OSError("not a file")
    return Image.open(file, formats=FORMATS)


def _pixels(image: Image.Image, channels: int) -> Bytes:
    """Return an open image's pixels, upright: (h, w, 3) for three channels, (h, w) for one."""
    ImageOps.exif_transpose(image, in_place=True)
    mode = "RGB" if channels == 3 else "L"
    eight = _eight_bits(image)
    return np.array(eight if eight.mode == mode else eight.convert(mode))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return the image without transparency and in at most 8 bits per channel."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _scaled(image)
    if not image.has_transparency_data:
        return image
    colours = image.convert("RGBA")
    white = Image.new("RGBA", colours.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, colours)


def _is_of_16_bits(image: Image.Image, most: float) -> bool:
    """Return whether an image of integers has 16 bits, of which ``most`` is the greatest value in it.

    Some formats of 16 bits open as 32-bit integers: PGM always, and then scaled to all 16; of others the values tell.
    """
    return image.mode != "I" or image.format == "PPM" or most > 255


def _scaled(image: Image.Image) -> Image.Image:
    """Return an image of one channel of more than 8 bits in 8 bits, white where it is transparent."""
    # In place, since an image may have hundreds of millions of pixels, and several are read at once.
    stored = np.asarray(image)
    if stored.dtype.kind == "u":
        values = np.minimum(stored, 65535 - 128)  # or the next line would leave 16 bits
        values += 128
        values //= 257  # which rounds 255 / 65535 of it
    else:
        if image.mode == "F":
            values = np.nan_to_num(stored)
            scale = 255.0 if values.max() <= 1 else 1.0
        else:
            values = stored.astype(np.float64)
            scale = 255 / 65535 if _is_of_16_bits(image, values.max()) else 1.0
        values *= scale
        np.clip(np.rint(values, out=values), 0, 255, out=values)
    eight = values.astype(np.uint8)
    if "transparency" in image.info:
        eight[stored == image.info["transparency"]] = 255
    return Image.fromarray(eight)
