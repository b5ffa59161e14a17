"""The formats of image files that are read, and the endings that such files have."""

from __future__ import annotations

from PIL import features

_ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2",),
}
_CODECS = {"AVIF": "avif", "JPEG2000": "jpg_2000"}  # what not every Pillow can read, and its name there
_KNOWN_CODECS = {*features.modules, *features.codecs}  # of others Pillow warns

# Not all that Pillow knows: it goes by the content, and would hand PostScript in a .jpg to Ghostscript, which runs it.
FORMATS = tuple(
    name
    for name in _ENDINGS
    if name not in _CODECS or (_CODECS[name] in _KNOWN_CODECS and features.check(_CODECS[name]))
)
"""Pillow's names of the formats that are read, whatever a file's ending; its JPEG takes the MPO files of phones too."""

EXTENSIONS = frozenset(ending for name in FORMATS for ending in _ENDINGS[name])
"""Endings of the files that are taken for images, in lower case."""
