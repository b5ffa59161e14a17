"""At which size student and teacher see images, and how much of them."""

from __future__ import annotations

from dataclasses import replace

from spkd.data.images import ImageData
from spkd.errors import InputError
from spkd.models.weights_source import Defaults, model_defaults
from spkd.training.options import Request

_SEEN = {"whole": "whole images", "centre": "the centre of images"}

STREAMED_SIZE = 224
"""Side length of images that have no common small size and whose network names none."""


def image_size_for(request: Request, data: ImageData) -> int:
    """Return the size asked for, else the teacher's own, else the student's, else the images', else 224."""
    own = own_sizes(request)
    if request.teacher_size is not None:
        own.pop("teacher")
    sizes = [request.data.image_size, *own.values(), data.native_size, STREAMED_SIZE]
    return next(size for size in sizes if size is not None)


def teacher_size_for(request: Request, image_size: int) -> int:
    """Return the size at which the teacher sees images.

    Raises:
        InputError: when it is less than the student's, or what is done to images is not the same at two sizes.
    """
    size = request.teacher_size or image_size
    if size < image_size:
        raise InputError(
            f"--teacher_size {size} is less than the student's {image_size} pixels; give --image_size {size} or less "
            "as well"
        )
    if size > image_size and request.data.augment == "trivial":
        raise InputError(
            "--augment trivial shifts images by as many pixels at every size, so it cannot be used with "
            "--teacher_size; give --augment rand"
        )
    return size


def own_sizes(request: Request) -> dict[str, int | None]:
    """Return for what size the weights of each network were made, or are taken to be, as far as that is known."""
    return {name: known.image_size for name, known in _defaults(request).items()}


def _defaults(request: Request) -> dict[str, Defaults]:
    student = {"student" if request.teacher else "network": model_defaults(request.model, request.weights)}
    if request.teacher is None:
        return student
    return {"teacher": model_defaults(request.teacher, request.teacher_weights), **student}


def other_sizes(request: Request, image_size: int, teacher_size: int) -> list[str]:
    """Return a line for each network that was made for images of another size, or that does not say for which.

    A teacher that is shown smaller images than its own may well know less of them, which is warned of.
    """
    lines = []
    for name, known in _defaults(request).items():
        is_teacher = name == "teacher"
        shown = teacher_size if is_teacher else image_size
        if is_teacher and known.size_of is not None and (request.teacher_size or request.data.image_size) is None:
            option = "--image_size, or for the teacher alone --teacher_size"
            lines.append(f"{name}: {known.unsaid_size()}; if they were trained at another size, give {option}")
        elif known.image_size is not None and known.image_size != shown:
            made = f"were made for images of {known.image_size} × {known.image_size} pixels"
            if known.size_of is not None:
                lines.append(f"{name}: {known.unsaid_size()}; it is shown {shown} × {shown}")
            elif is_teacher and known.image_size > shown:
                lines.append(
                    f"warning: the teacher's weights {made}, but it is shown {shown} × {shown}; --teacher_size "
                    f"{known.image_size} shows it the same crops at its own size"
                )
            else:
                lines.append(f"{name}: its weights {made}, but it is shown {shown} × {shown}")
    return lines


def as_the_student_sees(data: ImageData, request: Request) -> ImageData:
    """Return the data to be seen in evaluation as a saved student sees images, unless something else is said."""
    seen = model_defaults(request.model, request.weights).view
    if request.data.view is not None or seen in (None, data.view):
        return data
    note = f"{request.model} was made to see {_SEEN[seen]}, so it is shown that in evaluation"
    if seen == "whole" and request.data.crop_scale < 1:
        note += (
            f"; training shows crops of at least {request.data.crop_scale:.0%}, or with --crop_scale 1 whole images too"
        )
    return replace(data, chosen_view=seen, notes=(*data.notes, note))


def another_view(request: Request, data: ImageData) -> list[str]:
    """Return a line where the teacher was made to see another part of an image."""
    is_said = request.teacher is None or request.data.view is not None
    seen = None if is_said else model_defaults(str(request.teacher), request.teacher_weights).view
    if seen in (None, data.view):
        return []
    return [f"teacher: it was made to see {_SEEN[seen]}, but evaluation shows {_SEEN[data.view]}; give --view {seen}"]
