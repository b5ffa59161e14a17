"""From a spec, weights and the data's classes to a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from spkd.data.options import View
from spkd.errors import InputError, some
from spkd.files import is_folder
from spkd.models import libraries
from spkd.models.classifier import Classifier, ModelInfo, Normalisation, composed
from spkd.models.network import HeadMismatch, count_logits, replace_head
from spkd.models.saved_model import check_answer, read_info
from spkd.models.spec import Architecture, construct, requires, takes, with_classes
from spkd.models.weights import Match, load, match
from spkd.models.weights_source import Origin, Weights, find_origin, read_weights

# A network that cannot be made without a number of classes is made with this one, to be held against the weights.
_TRIAL_CLASSES = 10


@dataclass(frozen=True)
class BuiltModel:
    """What :func:`build_model` gives.

    Attributes:
        classifier: the network with its normalisation, on the CPU, in training mode.
        trained: whether it has weights other than random ones.
        notes: lines to say to the user: a prefix that was stripped, a head that was replaced.
    """

    classifier: Classifier
    trained: bool
    notes: tuple[str, ...]


def build_model(
    spec: str,
    *,
    classes: Sequence[str] | None,
    channels: int,
    image_size: int,
    normalisation: Normalisation,
    weights: str | None = None,
    own_normalisation: Normalisation | None = None,
    view: View | None = None,
    replace_head: bool = False,
) -> BuiltModel:
    """Build the network that ``spec`` means, load its weights and give it its normalisation.

    Args:
        spec: ``wrn-DEPTH-WIDTH``, ``torchvision/NAME``, ``timm/NAME``, ``package.module:callable``,
            ``path/file.py:callable``, each with constructor arguments if need be
            (``timm/resnet18?in_chans=1&drop_rate=0.1``), or the folder of a run or a saved model.
        classes: names of the classes to tell apart. None keeps the head that the network or its weights have,
            with the weights' own class names or "0", "1", ...; a user's callable that requires
            ``num_classes`` is given as many as its weights file has.
        channels: channels of the images. Grey images go to a network of three channels repeated.
        image_size: side length of the images.
        normalisation: the data's, used where the weights have none of their own.
        weights: None for random ones (a folder's own, for a folder), "pretrained" for the library's default
            ones, the name of weights of torchvision, or a file. For a user's callable, "pretrained" means those that
            it loads by itself, called with ``pretrained=True`` if its signature has that.
        own_normalisation: what the network was trained with, where that is known better than by its weights.
        view: what it is made to see of an image, see :class:`~spkd.models.classifier.ModelInfo`.
        replace_head: where the head does not fit the classes, put a new, random one in its place.

    Raises:
        HeadMismatch: when the head's classes are not ``classes`` (an :class:`~spkd.errors.InputError`). A
            saved model's are compared by name too, unless either side's names are plain numbers.
        InputError: for an unknown model, weights that cannot be read or do not fit, a failed download, or images that
            the network cannot take.
    """
    origin = find_origin(spec, weights)
    architecture, info = origin.architecture, origin.info
    wanted = len(classes) if classes is not None else None
    built_for = info.channels if info is not None else channels
    network = construct(
        architecture,
        classes=wanted or _own_classes(origin),
        channels=built_for,
        image_size=image_size,
    )
    outputs = count_logits(network, architecture.spec, built_for, image_size)
    builder = _Builder(architecture, built_for, image_size, wanted, replace_head)
    source = read_weights(origin, channels, image_size)
    notes: list[str] = []
    if is_folder(spec) and origin.info is None:
        notes.append(
            f"{spec} is taken as the architecture, not as the folder of that name; for the folder, write ./{spec}"
        )
    if source is not None:
        network, outputs, said = builder.load(network, outputs, source)
        notes += said
    if wanted is not None and outputs != wanted:
        notes.append(builder.fit_head(network, outputs))
        outputs = wanted
    described = origin.described
    if described is not None and classes is not None and _named_differently(described.classes, classes):
        notes.append(builder.rename_head(network, described.classes, classes))
    classifier = Classifier(
        network,
        ModelInfo(
            spec=architecture.spec,
            classes=tuple(classes) if classes is not None else _names(source, outputs),
            channels=max(channels, built_for),
            image_size=image_size,
            normalisation=own_normalisation or (source and source.normalisation) or normalisation,
            view=view,
        ),
    )
    if channels == 1 and classifier.network_channels == 3:
        notes.append(f"{spec} takes three channels: the one channel of grey images is repeated three times")
    if source is not None and own_normalisation is None and not (source.normalisation and source.says_itself):
        why = "since the weights do not say theirs"
        if source.normalisation is not None:
            why = f"as for {architecture.source}'s own weights, since these do not say theirs"
        notes.append(
            f"images are normalised with {_numbers(classifier.info.normalisation)}, {why}; if they were "
            "trained with another, give it with --normalisation"
        )
    return BuiltModel(classifier, trained=source is not None, notes=tuple(notes))


def _own_classes(origin: Origin) -> int | None:
    """Return how many classes to make the network with where no number is wanted, None for its own."""
    if origin.info is not None:
        return len(origin.info.classes)
    read = origin.weights not in (None, "pretrained") and requires(origin.architecture, "num_classes")
    return _TRIAL_CLASSES if read else None


@dataclass(frozen=True)
class _Builder:
    """What the network has to fit, while weights are loaded into it; its methods return what to say to the user."""

    architecture: Architecture
    channels: int
    image_size: int
    wanted: int | None
    replace: bool

    def load(self, network: nn.Module, outputs: int, source: Weights) -> tuple[nn.Module, int, list[str]]:
        """Load the weights; return the network (made anew where their head asks for it), its logits and the notes."""
        found, notes = self._match(network, outputs, source)
        own = found.head_classes(outputs)
        if found.problems and own is None:
            unsaid = self.wanted is None and requires(self.architecture, "num_classes")
            hint = f" Give its number of classes: {with_classes(self.architecture.spec)}." if unsaid else ""
            raise InputError(self._misfit(source, found) + hint)
        if own and self.wanted in (None, own):
            network = self._with_head(network, outputs, own)
            outputs = own
            found, _ = self._match(network, outputs, source)
            if found.problems:
                raise InputError(self._misfit(source, found))
        elif own is not None:
            if not self.replace or self.wanted is None:
                has = f"a head of {own} classes" if own else "no head"
                raise self._mismatch(f"{source.label} has {has}", own, outputs)
            notes.append(self._replaced(f"of {own} classes" if own else "that the weights lack"))
        load(network, found)
        # One for another image size may have had its position embeddings resized.
        if source.folder is not None and own is None and read_info(source.folder).image_size == self.image_size:
            check_answer(network, source.folder)
        return network, outputs, [*source.notes, *notes, *found.notes]

    def fit_head(self, network: nn.Module, outputs: int) -> str:
        """Replace a head of the wrong size, which the constructor does not let be chosen."""
        if not self.replace or self.wanted is None:
            raise self._mismatch(f"it has a head of {outputs} classes", outputs, outputs)
        self._put_head(network, outputs, self.wanted)
        return self._replaced(f"of {outputs} classes")

    def rename_head(self, network: nn.Module, own: Sequence[str], classes: Sequence[str]) -> str:
        """Replace a head of the right size for other classes."""
        if not self.replace:
            raise HeadMismatch(
                f"model {self.architecture.spec}: its classes ({some(own, 3)}) are not the data's "
                f"({some(classes, 3)}); give --replace_head for a new, random head.",
                found=len(own),
                wanted=len(classes),
            )
        self._put_head(network, len(classes), len(classes))
        return self._replaced(f"for {some(own, 3)}")

    def _match(self, network: nn.Module, outputs: int, source: Weights) -> tuple[Match, list[str]]:
        found = match(network, source.tensors)
        library, name = self.architecture.source, self.architecture.name
        if found.head_classes(outputs) is not None or not found.problems or library in ("wrn", "callable"):
            return found, []
        adapted = libraries.adapt("timm" if library == "timm" else "torchvision", name, network, found.tensors)
        again = match(network, adapted) if adapted is not None else found
        if again.problems < found.problems:
            return again, [f"weights: names or position embeddings were converted as {library} does"]
        return found, []

    def _misfit(self, source: Weights, found: Match) -> str:
        return f"weights: {source.label} does not fit {self.architecture.spec}: {found.complaint()}."

    def _with_head(self, network: nn.Module, outputs: int, classes: int) -> nn.Module:
        if takes(self.architecture, "num_classes"):
            return construct(self.architecture, classes=classes, channels=self.channels, image_size=self.image_size)
        self._put_head(network, outputs, classes)
        return network

    def _put_head(self, network: nn.Module, outputs: int, classes: int) -> None:
        replace_head(network, self.architecture.spec, outputs, classes, self.channels, self.image_size)

    def _mismatch(self, what: str, found: int, outputs: int) -> HeadMismatch:
        wanted = f"the data have {self.wanted}" if self.wanted is not None else f"the network has {outputs}"
        return HeadMismatch(
            f"model {self.architecture.spec}: {what} and {wanted}; give --replace_head for a new, "
            "random head, or weights that fit.",
            found=found,
            wanted=outputs if self.wanted is None else self.wanted,
        )

    def _replaced(self, old: str) -> str:
        return (
            f"{self.architecture.spec}: the head {old} was replaced by a new one of {self.wanted}, with random weights"
        )


def _names(source: Weights | None, count: int) -> tuple[str, ...]:
    known = source.classes if source is not None else None
    return known if known is not None and len(known) == count else tuple(map(str, range(count)))


def _numbers(normalisation: Normalisation) -> str:
    mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (normalisation.mean, normalisation.std))
    return f"mean {mean} and std {std}"


def _named_differently(own: Sequence[str], classes: Sequence[str]) -> bool:
    """Return whether as many classes have other names, or another order; letter case and punctuation do not count."""
    own, classes = composed(own), composed(classes)
    if sorted(own) == sorted(classes):
        return list(own) != list(classes)
    numbers = [str(number) for number in range(len(classes))]
    if len(own) != len(classes) or numbers in (list(own), list(classes)):
        return False
    plain = [["".join(filter(str.isalnum, name.casefold())) for name in names] for names in (own, classes)]
    return plain[0] != plain[1]
