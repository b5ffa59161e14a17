"""A model's spec: the string that says which architecture is meant, and the network that it makes."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.nn.parameter import is_lazy

from spkd.errors import InputError, nearest, one_line
from spkd.files import is_file
from spkd.imports import import_object, split_arguments
from spkd.models import libraries
from spkd.models.network import count_logits, replace_head
from spkd.models.wrn import WideResNet

_WRN = re.compile(r"wrn-(\d+)-(\d+)")
_LIKE_WRN = re.compile(r"wrn[-_\d][^/]*", re.IGNORECASE)
_LIBRARIES: Mapping[str, libraries.Library] = {"torchvision": "torchvision", "timm": "timm"}
_WRN_EXAMPLES = [f"wrn-{depth}-{width}" for depth in (10, 16, 22, 28, 40) for width in (1, 2, 4, 8, 10)]
# These load or fetch weights, of which the spec says nothing: a saved model is built from it without any.
_WEIGHT_ARGUMENTS = ("pretrained", "weights", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")


@dataclass(frozen=True)
class Architecture:
    """A spec taken apart.

    Attributes:
        spec: the spec, with the absolute path of a file, so that it holds in any working folder.
        source: ``wrn``, ``torchvision``, ``timm``, or ``callable`` for a user's own.
        name: what the source calls it: ``wrn-16-2``, ``resnet18``, ``package.module:callable``.
        arguments: for its constructor.
    """

    spec: str
    source: Literal["wrn", "torchvision", "timm", "callable"]
    name: str
    arguments: Mapping[str, object]


def parse_spec(spec: str) -> Architecture:
    """Take a spec apart.

    It reads ``wrn-DEPTH-WIDTH``, ``torchvision/NAME``, ``timm/NAME``, ``package.module:callable`` or
    ``path/file.py:callable``. Each may be followed by constructor arguments:
    ``timm/resnet18?in_chans=1&drop_rate=0.1``.

    Raises:
        InputError: for a spec of no such form, a name that the library does not know (with the nearest), or
            an argument that would load weights.

    >>> parse_spec("timm/resnet18?drop_rate=0.1").arguments
    {'drop_rate': 0.1}
    """
    reference, arguments = split_arguments(spec)
    for name in ("pretrained",) if ":" in reference else _WEIGHT_ARGUMENTS:
        if name in arguments:
            raise InputError(f"model {spec}: {name!r} belongs to the weights; give --weights pretrained instead.")
    if _WRN.fullmatch(reference):
        return Architecture(spec, "wrn", reference, arguments)
    if ":" in reference:
        where, _, name = reference.rpartition(":")
        if where.endswith(".py"):
            where = str(Path(where).expanduser().resolve())
        _, mark, given = spec.partition("?")
        return Architecture(f"{where}:{name}{mark}{given}", "callable", f"{where}:{name}", arguments)
    prefix, _, name = reference.partition("/")
    library = _LIBRARIES.get(prefix)
    if library is not None and name:
        libraries.check_name(library, name)
        return Architecture(spec, library, name, arguments)
    raise InputError(_unknown(reference))


def names_architecture(spec: str) -> bool:
    """Return whether a spec is the name of an architecture of ours or of a library, whatever folder is called so.

    >>> names_architecture("wrn-16-1"), names_architecture("./wrn-16-1"), names_architecture("timm/own")
    (True, False, False)
    """
    reference = spec.partition("?")[0]
    prefix, _, name = reference.partition("/")
    library = _LIBRARIES.get(prefix)
    return _WRN.fullmatch(reference) is not None or (
        library is not None and name.partition(".")[0] in libraries.model_names(library)
    )


def construct(
    architecture: Architecture,
    *,
    classes: int | None,
    channels: int,
    image_size: int,
    pretrained: bool = False,
) -> nn.Module:
    """Return the network that a spec means, with random weights.

    Args:
        architecture: from :func:`parse_spec`.
        classes: number of logits; None for as many as the network has by itself. A user's callable is given
            it as ``num_classes`` if its signature has that; if not, its head is what it is.
        channels: channels of the images, given to a wide residual network and to a user's callable whose
            signature has ``in_channels`` or ``in_chans``. Library models take three unless the spec says
            otherwise.
        image_size: side length of the images, for networks that are made for one size.
        pretrained: given to a user's callable whose signature has it.

    Raises:
        InputError: when an argument is unknown, the constructor fails or what it returns is no network.
    """
    arguments = dict(architecture.arguments)
    if architecture.source == "wrn" or architecture.source == "callable":
        make = _callable(architecture)
        names = _parameter_names(make)
        offered: dict[str, object] = {"pretrained": pretrained}
        if classes is not None:
            offered["num_classes"] = classes
        if not arguments.keys() & {"in_channels", "in_chans"}:
            offered["in_channels" if "in_channels" in names else "in_chans"] = channels
        taken = {name: value for name, value in offered.items() if name in names}
        return _call(make, {**taken, **arguments}, architecture.spec)
    if classes is not None:
        arguments.setdefault("num_classes", classes)
    make = functools.partial(libraries.make, architecture.source, architecture.name, arguments, image_size)
    return _call(make, {}, architecture.spec)


def takes(architecture: Architecture, argument: str) -> bool:
    """Return whether the constructor takes an argument of this name that the spec does not give already."""
    if argument in architecture.arguments:
        return False
    if architecture.source == "torchvision" or architecture.source == "timm":
        return argument == "num_classes"
    return argument in _parameter_names(_callable(architecture))


def requires(architecture: Architecture, argument: str) -> bool:
    """Return whether a user's callable cannot be called without this argument, which the spec does not give."""
    if architecture.source != "callable" or not takes(architecture, argument):
        return False
    return inspect.signature(_callable(architecture)).parameters[argument].default is inspect.Parameter.empty


def with_classes(spec: str) -> str:
    """Return the spec as it is written with a number of classes.

    >>> with_classes("net.py:Net"), with_classes("net.py:Net?width=2")
    ('net.py:Net?num_classes=N', 'net.py:Net?width=2&num_classes=N')
    """
    return f"{spec}{'&' if '?' in spec else '?'}num_classes=N"


def rebuild(architecture: Architecture, *, classes: int, channels: int, image_size: int) -> nn.Module:
    """Return the network as :func:`construct` does, with a head of ``classes`` logits whatever it takes.

    Raises:
        InputError: as :func:`construct`, or when the head cannot be replaced.
    """
    network = construct(architecture, classes=classes, channels=channels, image_size=image_size)
    lazy = any(is_lazy(value) for value in network.state_dict().values())
    if lazy or not takes(architecture, "num_classes"):
        outputs = count_logits(network, architecture.spec, channels, image_size)
        if outputs != classes:
            replace_head(network, architecture.spec, outputs, classes, channels, image_size)
    return network


def _callable(architecture: Architecture) -> Callable[..., object]:
    matched = _WRN.fullmatch(architecture.name)
    if matched:
        return functools.partial(WideResNet, int(matched[1]), int(matched[2]))
    found = import_object(architecture.name)
    if isinstance(found, nn.Module):
        raise InputError(
            f"model {architecture.spec}: it is a network already, and a new one is made each time "
            "it is loaded; name a class, or a function that returns a network."
        )
    if not callable(found):
        raise InputError(
            f"model {architecture.spec}: expected a class or a function that returns a network, "
            f"got {type(found).__name__}."
        )
    return found


def _parameter_names(make: Callable[..., object]) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(make).parameters)
    except (TypeError, ValueError):
        return ()


def _call(make: Callable[..., Any], arguments: Mapping[str, object], spec: str) -> nn.Module:
    try:
        inspect.signature(make).bind(**arguments)
    except TypeError as error:
        names = _parameter_names(make)
        hints = [nearest(name, names) for name in arguments if name not in names]
        if not hints and "num_classes" in names and "num_classes" not in arguments:
            hints = [f" Give it as {with_classes(spec)}."]
        raise InputError(
            f"model {spec}: {error}; its arguments are: {', '.join(names) or 'none'}.{''.join(hints[:1])}"
        ) from error
    except ValueError:
        pass
    try:
        network = make(**arguments)
    except InputError as error:
        raise InputError(f"model {spec}: {error}") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"model {spec}: it could not be made ({one_line(error)}).") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"model {spec}: expected a torch.nn.Module to be returned, got {type(network).__name__}.")
    return network


def _unknown(reference: str) -> str:
    forms = "wrn-DEPTH-WIDTH, torchvision/NAME, timm/NAME, MODULE_OR_FILE:callable, or a saved model's folder"
    path = Path(reference)
    if is_file(path):
        if path.suffix == ".py":
            return f"model {reference}: name the class or function in the file: {reference}:NAME."
        return f"model {reference}: it is a file; give the architecture as model and the file as weights."
    same = libraries.names_like(reference)
    if same:
        return f"model {reference}: say whose it is: {' or '.join(same)}."
    hint = nearest(reference, _WRN_EXAMPLES)
    if _LIKE_WRN.fullmatch(reference):
        forms = "wrn-DEPTH-WIDTH, where DEPTH is 6n + 4 and WIDTH is a whole number, such as wrn-16-2"
        return f"model {reference}: unknown, and no folder of this name; expected {forms}.{hint}"
    if not hint and "/" not in reference:
        bare = {name for library in _LIBRARIES.values() for name in libraries.model_names(library)}
        hint = nearest(reference, bare)
    return f"model {reference}: unknown, and no folder of this name; expected {forms}.{hint}"
