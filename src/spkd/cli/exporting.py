"""What ``spkd export`` does: a saved network as a file to deploy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from spkd.cli.options import pick
from spkd.cli.showing import say, show
from spkd.data.kept import keeping_last
from spkd.data.options import DataOptions
from spkd.errors import InputError
from spkd.export_options import WEIGHT_BITS
from spkd.files import is_folder, require_writable

if TYPE_CHECKING:
    from jsonargparse import Namespace

CHECKED = 64
"""Images on which an exported file is checked."""


@keeping_last()
def export(options: Namespace) -> int:
    """Write a saved network to a file to deploy."""
    from spkd.export import export_model, require_batch
    from spkd.report.networks import calibration_text, export_table
    from spkd.training.counting import counting
    from spkd.training.own_images import images_in, own_data, real_images, validation_images
    from spkd.training.progress import display

    require_batch(options.batch)
    if options.int8:
        return _export_int8(options)
    if options.weight_bits is not None:
        raise InputError("--weight_bits is for 8-bit integers: give --int8 as well, or leave it out")
    if options.calibrate and options.check_images:
        raise InputError("--calibrate needs labelled images to measure on: give --data, not --check_images")
    _require_place(options, "model")
    labelled, number, shown = None, 0, display(brief=True)
    if options.check_images:
        useless = [name for name, value in pick(DataOptions, options).items() if value is not None]
        if useless:
            raise InputError(f"--check_images takes files as they are: leave out --{useless[0]}")
        images = images_in(options.check_images, options.folder, CHECKED)
    else:
        data = own_data(options.folder, pick(DataOptions, options))
        images = real_images(options.folder, data, CHECKED)
        if options.calibrate:
            labelled, number = validation_images(options.folder, data, say=shown.say)
    report = export_model(
        options.folder,
        options.out,
        options.format,
        images=images,
        tolerance=options.tolerance,
        batch=options.batch,
        labelled=labelled,
        shown=counting(shown, "calibrating", number),
    )
    show(export_table(report))
    if report.calibration is not None:
        say(calibration_text(report.calibration))
    say(
        f"largest difference from PyTorch's logits: {report.relative_difference:.1g} of the largest logit "
        f"(allowed: {options.tolerance:g})"
    )
    say(f"written: {report.path}")
    return 0


def _export_int8(options: Namespace) -> int:
    from spkd.quantisation import export_int8
    from spkd.report.networks import calibration_text, int8_table, int8_text
    from spkd.training.counting import counting
    from spkd.training.own_images import images_to_quantise_with, own_data, real_images
    from spkd.training.progress import display

    if options.format != "onnx":
        raise InputError("--int8 makes an ONNX file: leave out --format")
    if options.check_images:
        raise InputError("--int8 needs labelled images to measure on: give --data, not --check_images")
    _require_place(options, "model-int8")
    data = own_data(options.folder, pick(DataOptions, options))
    shown = display(brief=True)
    typical, labelled, number = images_to_quantise_with(options.folder, data, say=shown.say)
    report = export_int8(
        options.folder,
        options.out,
        images=real_images(options.folder, data, CHECKED),
        typical=typical,
        labelled=labelled,
        tolerance=options.tolerance,
        weight_bits=options.weight_bits or WEIGHT_BITS,
        batch=options.batch,
        calibrate=options.calibrate,
        shown=counting(shown, "comparing", number),
    )
    show(int8_table(report))
    say(int8_text(report))
    if report.calibration is not None:
        say(calibration_text(report.calibration))
    say(f"written: {report.path}")
    return 0


def _require_place(options: Namespace, name: str) -> None:
    """Refuse a file that cannot be written, before the images are looked at, which may take long."""
    from spkd.export import export_path

    out = None if options.out is None else Path(options.out)
    path = export_path(Path(options.folder), out, options.format, name)
    if is_folder(options.folder):  # where there is none, that is what must be said
        require_writable(path)
