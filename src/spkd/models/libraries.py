"""The models of torchvision and timm: their names, networks, pretrained weights and what goes with those."""

from __future__ import annotations

import math
import re
import ssl
import sys
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from spkd.errors import InputError, nearest, one_line

Library = Literal["torchvision", "timm"]

# torchvision rescales the input inside these two when it loads their weights itself; the weights need it
# however they are loaded. Naming an initialisation silences a warning about its default. Their auxiliary classifiers
# would need images of a certain size in training and are read by nobody.
_TORCHVISION_EXTRAS: Mapping[str, Mapping[str, object]] = {
    "googlenet": {"transform_input": True, "init_weights": True, "aux_logits": False},
    "inception_v3": {"transform_input": True, "init_weights": True, "aux_logits": False},
}
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
# torchvision writes the densenet weights' layer names with a dot that module names may not hold.
_OLD_DENSENET_NAME = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d\.)")
_OLD_VIT_NAME, _VIT_PLACES = re.compile(r"mlp\.linear_([12])\."), {"1": "0", "2": "3"}

# Modules of timm whose networks cut images into squares side by side, with a position embedding for each where
# they have any. Elsewhere squares overlap, or are of a convolution's outputs.
_OF_SQUARES = frozenset(f"timm.models.{name}" for name in ("beit", "cait", "deit", "eva", "vision_transformer"))
_REGISTERS = ("reg_token", "register_tokens")  # as timm and DINOv2 call them


@dataclass(frozen=True)
class Pretrained:
    """What a library knows of its pretrained weights of one architecture.

    Attributes:
        name: the weights' name for the library: a torchvision enum member, a timm tag; "" for the default.
        origin: where the file can be fetched by hand.
        image_size: side length of the images that they were evaluated on.
        mean: of the normalisation that they need.
        std: of the normalisation that they need.
        classes: names of the classes, where the library has them.
        repository: where the weights are on the Hugging Face hub, for those that are there.
    """

    name: str
    origin: str
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] | None
    repository: str | None


def model_names(library: Library) -> list[str]:
    """Return the names of the library's classification models."""
    if library == "timm":
        import timm

        return list(timm.list_models())
    from torchvision import models

    return list(models.list_models(module=models))


def check_name(library: Library, name: str) -> None:
    """Check that the library has a classification model called ``name``.

    Raises:
        InputError: with the nearest names; it says so where torchvision's model does another task.
    """
    if library == "timm":
        import timm

        if timm.is_model(name):
            try:
                timm.get_pretrained_cfg(name)
            except RuntimeError as error:
                architecture = name.partition(".")[0]
                known = timm.list_pretrained(f"{architecture}.*")
                raise InputError(
                    f"model timm/{name}: timm has {architecture} but no weights tagged "
                    f"{name.partition('.')[2]!r}; known: {', '.join(known) or 'none'}."
                ) from error
            return
    else:
        from torchvision import models

        if name in models.list_models(module=models):
            return
        if name in models.list_models():
            raise InputError(
                f"model torchvision/{name}: it is not an image classifier (torchvision has it for detection, "
                "segmentation, video, optical flow or quantised inference); choose a classification model."
            )
    raise InputError(
        f"model {library}/{name}: {library} has no model of this name."
        f"{nearest(name, model_names(library)) or ' Its documentation lists them.'}"
    )


def make(library: Library, name: str, arguments: Mapping[str, object], image_size: int) -> nn.Module:
    """Return the library's network with random weights; ``arguments`` go to its constructor.

    A network made for one image size only is made for ``image_size``, unless the arguments name a size.
    """
    network: nn.Module
    if library == "timm":
        import timm

        config = timm.get_pretrained_cfg(name)
        fixed = config is not None and config.fixed_input_size and config.input_size[-1] != image_size
        sized: dict[str, Any] = {"img_size": image_size, **arguments} if fixed else dict(arguments)
        network = timm.create_model(name, pretrained=False, **sized)
        return network
    from torchvision import models

    extras = dict(_TORCHVISION_EXTRAS.get(name, {}))
    if name.startswith("vit_"):
        extras["image_size"] = image_size
    elif name.startswith("maxvit_"):
        extras["input_size"] = (image_size, image_size)
    network = models.get_model(name, weights=None, **{**extras, **arguments})
    return network


def pretrained(library: Library, name: str, weights: str | None = None) -> Pretrained | None:
    """Return what the library knows of its weights for ``name``, None when it has none.

    ``weights`` is the name of one set of weights of torchvision (``IMAGENET1K_V2``); without it the default.

    Raises:
        InputError: for a name of weights that does not exist.
    """
    check_name(library, name)
    if library == "timm":
        import timm

        config = timm.get_pretrained_cfg(name)
        # An architecture without weights still has a configuration, of default values.
        if config is None or not (config.hf_hub_id or config.url):
            return None
        origin = f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else str(config.url)
        mean, std = tuple(config.mean), tuple(config.std)
        return Pretrained("", origin, config.input_size[-1], mean, std, None, config.hf_hub_id)
    member = _torchvision_weights(name, weights or "DEFAULT")
    transforms: Any = member.transforms()
    classes = tuple(member.meta["categories"])
    size, mean, std = transforms.crop_size[0], tuple(transforms.mean), tuple(transforms.std)
    return Pretrained(member.name, member.url, size, mean, std, classes, None)


def weights_names(library: Library, name: str) -> tuple[str, ...]:
    """Return the names of the library's weights for a model; timm's are part of the model's name."""
    if library == "timm":
        return ()
    from torchvision import models

    return tuple(models.get_model_weights(name).__members__)


def has_positions(library: Library, name: str) -> bool:
    """Return whether the library's network may have weights that tell its image size to :func:`size_by_positions`."""
    if library == "torchvision":
        return False
    import timm

    return timm.model_entrypoint(name).__module__ in _OF_SQUARES


def size_by_positions(tensors: Mapping[str, Tensor]) -> int | None:
    """Return for what image size the weights of a vision transformer were made; None where they do not tell.

    There is a position embedding for each square of the image, whose side the first convolution's filters have, and
    perhaps for the class or for each token beside these: ``size = side · √(rows − tokens)``. None where that is no
    whole number.
    """
    sizes: set[int | None] = set()
    for name, positions in tensors.items():
        prefix = name.removesuffix("pos_embed")
        filters = tensors.get(f"{prefix}patch_embed.proj.weight")
        if prefix == name or filters is None or positions.dim() != 3:
            continue
        single = sum(f"{prefix}{token}" in tensors for token in ("cls_token", "dist_token"))
        registers = sum(tensors[f"{prefix}{one}"].shape[1] for one in _REGISTERS if f"{prefix}{one}" in tensors)
        along = math.isqrt(positions.shape[1])
        tokens = positions.shape[1] - along**2
        sizes.add(along * filters.shape[-1] if tokens in (0, single, single + registers) else None)
    return sizes.pop() if len(sizes) == 1 else None


def make_pretrained(library: Library, name: str, arguments: Mapping[str, object], chosen: Pretrained) -> nn.Module:
    """Return the library's network with its own pretrained weights and head, downloaded where need be.

    Raises:
        InputError: when they cannot be downloaded; the line says how to give a local file instead.
    """
    own_head: dict[str, Any] = {
        key: value for key, value in arguments.items() if key not in ("num_classes", "aux_logits")
    }
    network: nn.Module
    try:
        if library == "timm":
            import timm

            _check_hub_reachable(chosen.repository)
            network = timm.create_model(name, pretrained=True, **own_head)
        else:
            from torchvision import models

            network = models.get_model(name, weights=_torchvision_weights(name, chosen.name), **own_head)
    except InputError:
        raise
    # The libraries raise OSError, RuntimeError and their HTTP clients' own errors alike.
    except Exception as error:
        raise InputError(
            f"weights: the pretrained weights of {library}/{name} could not be downloaded "
            f"({one_line(error)}); fetch them elsewhere from {chosen.origin} and give the file as weights."
        ) from error
    return network


def adapt(library: Library, name: str, network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the weights converted as the library itself does when it loads them, None where it cannot.

    timm converts other authors' files and resizes position embeddings; torchvision renames the layers of
    its densenets, leaves out auxiliary classifiers and resizes the position embeddings of its vision transformers.
    """
    if library == "timm":
        converter = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
        if converter is None:
            return None
        try:
            converted: dict[str, Tensor] = converter(dict(tensors), network)
        # It is written for the files that its authors know; one that it cannot read does not fit.
        except Exception:
            return None
        return converted
    if name in _TORCHVISION_EXTRAS:
        own = network.state_dict().keys()
        return {key: value for key, value in tensors.items() if key in own or not key.startswith(_AUXILIARY)}
    if name.startswith("densenet"):
        return {_OLD_DENSENET_NAME.sub(r"\1\2", key): value for key, value in tensors.items()}
    if name.startswith("vit_") and "encoder.pos_embedding" in tensors:
        # The library's own files have names of before, which its layers know when they load them.
        tensors = {
            _OLD_VIT_NAME.sub(lambda old: f"mlp.{_VIT_PLACES[old[1]]}.", key): value for key, value in tensors.items()
        }
        from torchvision.models.vision_transformer import interpolate_embeddings

        size: Any = network.image_size
        patch: Any = network.patch_size
        try:
            return dict(interpolate_embeddings(size, patch, OrderedDict(tensors)))
        except (ValueError, RuntimeError):
            return None
    return None


def names_like(name: str) -> Iterable[str]:
    """Return the specs of the library models that are called ``name``.

    >>> list(names_like("resnet18"))
    ['torchvision/resnet18', 'timm/resnet18']
    """
    libraries: tuple[Library, ...] = ("torchvision", "timm")
    return [f"{library}/{name}" for library in libraries if name in model_names(library)]


def _torchvision_weights(name: str, weights: str) -> Any:
    from torchvision import models

    members = models.get_model_weights(name).__members__
    if weights not in members:
        raise InputError(f"weights: torchvision/{name} has no weights {weights!r}; known: {', '.join(members)}.")
    return members[weights]


def _check_hub_reachable(repository: str | None) -> None:
    """Raise at once where the hub cannot be reached and a repository of it is not in the cache.

    The hub's own client tries for most of a minute before it gives up.
    """
    from huggingface_hub import constants

    if repository is None or constants.HF_HUB_OFFLINE:
        return
    if (Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}").is_dir():
        return
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=10).close()
    except urllib.error.HTTPError:
        return
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ssl.SSLError):  # the hub's client brings certificates of its own
            raise
