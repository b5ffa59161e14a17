"""Read a method such as ``sp+kd`` and make its objective."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from spkd.errors import InputError, nearest, one_line
from spkd.imports import code_digest, import_object, split_arguments
from spkd.losses.attention import AttentionTransferLoss
from spkd.losses.base import DistillationLoss
from spkd.losses.objective import Criterion, Objective, Term
from spkd.losses.similarity import SimilarityPreservingLoss
from spkd.losses.soft_targets import SoftTargetLoss
from spkd.losses.weights import LossWeights
from spkd.taps import TapPair

# What may follow each name after "?", and the field of LossWeights that it sets.
_BUILT_IN: dict[str, dict[str, str]] = {
    "sp": {"weight": "gamma"},
    "kd": {"alpha": "alpha", "temperature": "temperature"},
    "at": {"weight": "beta"},
}
# A plus sign that is not the sign of an exponent, as in weight=1e+3.
_JOINT = re.compile(r"(?<!\d[eE])\+")


@dataclass(frozen=True)
class _Request:
    name: str
    arguments: dict[str, object]


def build_objective(
    method: str,
    pairs: Sequence[TapPair],
    weights: LossWeights,
    *,
    cross_entropy: float | None = None,
    criterion: Criterion | None = None,
    seed: int | None = None,
) -> Objective:
    """Make the objective that ``method`` names.

    A method is ``none`` (cross-entropy alone) or terms joined by ``+`` in any order:

    - ``sp``, similarity-preserving loss, weight γ; ``sp?weight=1000`` sets it in place.
    - ``at``, attention transfer, weight β; ``at?weight=10``.
    - ``sp?layers=last`` and ``at?layers=last`` compare the last of the pairs only, where another term is to compare
      them all.
    - ``kd``, soft targets, weight α, and cross-entropy then has 1 - α (otherwise 1);
      ``kd?alpha=0.5&temperature=2``.
    - ``package.module:Class`` or ``path/file.py:Class``, a :class:`DistillationLoss` of your own, with
      constructor arguments as ``file.py:Class?margin=0.5&weight=10``. ``weight`` (default 1) is that of the
      term and does not reach the constructor. A class whose constructor has a parameter ``pair`` is made
      once for every pair of layers, any other once.

    The terms of several pairs are summed. With one pair a term is named as the method names it ("sp", or the
    class name); with several, "sp/<student layer>", and "sp/<student layer>=<teacher layer>" where a
    student layer stands in several pairs.

    ``cross_entropy`` is the weight of the cross-entropy where it is not to be the method's; 0 for a student that learns
    without labels. ``criterion`` takes its place, as :class:`~spkd.losses.objective.Objective` says.

    With a ``seed`` the random numbers of PyTorch that an own loss is made with are those of the seed, of the loss and
    of its teacher layer, whatever other terms there are; without, they are the next ones.

    Raises:
        InputError: for an unknown, doubled or empty term, an unknown or unfit argument, a class that is no
            DistillationLoss or cannot be made, for a term of weight 0, and when a term needs pairs of layers
            and there are none.

    >>> objective = build_objective("sp+kd", [TapPair("group3", "group3")], LossWeights())
    >>> [(term.name, term.weight) for term in objective.terms]
    [('sp', 3000.0), ('kd', 0.9)]
    >>> round(objective.cross_entropy, 6)
    0.1
    """
    _check_pairs(pairs)
    if not isinstance(weights, LossWeights):
        raise InputError(f"weights: expected LossWeights(...), got {weights!r}")
    terms: list[Term] = []
    weight_of_labels = 1.0
    requests = _read(method)
    names = Counter(request.name.rpartition(":")[2] for request in requests)
    for request in requests:
        if request.name in _BUILT_IN:
            used = _weights_for(request, weights)
            terms += _built_in_terms(request.name, _pairs_for(request, pairs), used)
            if request.name == "kd":
                weight_of_labels = 1 - used.alpha
        else:
            terms += _own_terms(request, pairs, is_only=names[request.name.rpartition(":")[2]] == 1, seed=seed)
    for term in terms:
        if term.weight == 0:
            raise InputError(f"the term {term.name} of method {method!r} has weight 0; leave the term out")
    return Objective(terms, weight_of_labels if cross_entropy is None else cross_entropy, criterion=criterion)


def joined_methods(methods: Sequence[str]) -> str:
    """Return one method with every term of ``methods`` that remembers something of its own.

    Of the built-in terms the weights are dropped, since they do not change what is remembered. Of an own loss that
    stands there with several arguments the first is taken.

    Raises:
        InputError: for an unknown, doubled or empty term, and when there is no term at all.

    >>> joined_methods(["none", "kd?alpha=0.5", "sp+kd"])
    'kd+sp'
    """
    parts: dict[str, str] = {}
    for method in methods:
        for request in _read(method):
            text = request.name
            if request.name not in _BUILT_IN and request.arguments:
                text += "?" + "&".join(f"{name}={value!r}" for name, value in request.arguments.items())
            parts.setdefault(request.name, text)
    if not parts:
        raise InputError("the methods have no term that remembers anything of a teacher; name one such as sp")
    return "+".join(parts.values())


def method_label(method: str) -> str:
    """Return ``method`` without spaces, the built-in names in lower case, its order kept.

    Raises:
        InputError: for an unknown, doubled or empty term.

    >>> method_label("SP + kd")
    'sp+kd'
    """
    _read(method)
    return "+".join(_term_label(text) for text in _JOINT.split(method))


def term_names(method: str) -> tuple[str, ...]:
    """Return the names of the method's terms, without their arguments; () for ``none``.

    >>> term_names("sp?weight=1000+kd")
    ('sp', 'kd')

    Raises:
        InputError: for an unknown, doubled or empty term.
    """
    return tuple(request.name for request in _read(method))


def _read(method: str) -> list[_Request]:
    texts = _JOINT.split(method)
    if [_term_label(text) for text in texts] == ["none"]:
        return []
    requests = []
    for text in texts:
        name, arguments = split_arguments(_term_label(text))
        if name == "none":
            raise InputError(f"method {method!r}: none stands alone, without other terms or arguments")
        if name.endswith(".py"):
            raise InputError(f"method {method!r}: name the class in the file: {name}:NAME")
        if name not in _BUILT_IN and ":" not in name:
            known = ["none", *_BUILT_IN]
            raise InputError(
                f"method {method!r} has the unknown term {name!r}; use none, or sp, kd, at or "
                f"path/file.py:Class joined by '+'.{nearest(name, known)}"
            )
        requests.append(_Request(name, arguments))
    for name, count in Counter(request.name for request in requests).items():
        if count > 1:
            raise InputError(f"method {method!r} has the term {name!r} {count} times; give it once, with a weight")
    return requests


def _term_label(text: str) -> str:
    name, mark, arguments = text.strip().partition("?")
    name = name.strip()
    return (name.lower() if name.lower() in {*_BUILT_IN, "none"} else name) + mark + arguments.strip()


def _check_pairs(pairs: Sequence[TapPair]) -> None:
    if isinstance(pairs, TapPair) or not all(isinstance(pair, TapPair) for pair in pairs):
        raise InputError(f"pairs: expected a list of TapPair, as pair_taps gives it, got {pairs!r}")
    for pair, count in Counter(pairs).items():
        if count > 1:
            raise InputError(f"the pair of layers {pair.student}={pair.teacher} is given {count} times; give it once")


def _weights_for(request: _Request, weights: LossWeights) -> LossWeights:
    """Return ``weights`` with what stands after the term's "?"."""
    fields = _BUILT_IN[request.name]
    changed: dict[str, float] = {}
    known = list(fields) if request.name == "kd" else [*fields, "layers"]
    for name, value in request.arguments.items():
        if name not in known:
            raise InputError(
                f"the term {request.name} has no argument {name!r}; it takes {' and '.join(known)}."
                f"{nearest(name, known)}"
            )
        if name == "layers":
            continue
        changed[fields[name]] = _number(request.name, name, value)
    return replace(weights, **changed)


def _pairs_for(request: _Request, pairs: Sequence[TapPair]) -> Sequence[TapPair]:
    """Return the pairs that a built-in term compares: all, or with ``layers=last`` the last."""
    layers = request.arguments.get("layers", "all")
    if layers not in ("all", "last"):
        raise InputError(f"layers of the term {request.name} must be all or last, got {layers!r}")
    return pairs[-1:] if layers == "last" else pairs


def _number(term: str, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{name} of the term {term} must be a number, got {value!r}; try {name}=1")
    return float(value)


def _built_in_terms(name: str, pairs: Sequence[TapPair], weights: LossWeights) -> list[Term]:
    if name == "kd":
        return [Term("kd", weights.alpha, SoftTargetLoss(weights.temperature), "logits")]
    if name == "sp":
        return [
            Term(label, weights.gamma, SimilarityPreservingLoss(pair), f"similarity of {pair.teacher}")
            for label, pair in _labelled("sp", pairs)
        ]
    return [
        Term(label, weights.beta, AttentionTransferLoss(pair), f"attention of {pair.teacher}")
        for label, pair in _labelled("at", pairs)
    ]


def _labelled(name: str, pairs: Sequence[TapPair]) -> list[tuple[str, TapPair]]:
    """Give each pair the name of its term."""
    if not pairs:
        raise InputError(f"the term {name} compares layers, but no pair of layers is given; name one with taps")
    if len(pairs) == 1:
        return [(name, pairs[0])]
    uses = Counter(pair.student for pair in pairs)
    return [
        (
            f"{name}/{pair.student}" if uses[pair.student] == 1 else f"{name}/{pair.student}={pair.teacher}",
            pair,
        )
        for pair in pairs
    ]


def _own_terms(request: _Request, pairs: Sequence[TapPair], *, is_only: bool, seed: int | None) -> list[Term]:
    """Return the terms of an own loss, called by its class, and by its file as well unless its name is the only one."""
    reference = request.name
    loss_class = import_object(reference)
    if not (isinstance(loss_class, type) and issubclass(loss_class, DistillationLoss)):
        what = type(loss_class).__name__
        if isinstance(loss_class, type):
            what = f"the class {loss_class.__name__}, which is not"
        raise InputError(f"{reference} must be a class derived from spkd.losses.base.DistillationLoss, got {what}")
    arguments = dict(request.arguments)
    weight = _number(reference, "weight", arguments.pop("weight", 1.0))
    parameters = inspect.signature(loss_class).parameters
    if "pair" in arguments:
        raise InputError(f"the argument 'pair' of {reference} comes from the chosen layers; leave it out")
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in arguments:
        if name not in parameters and not takes_any:
            takes = ", ".join(parameter for parameter in parameters if parameter != "pair") or "none"
            raise InputError(
                f"{reference} has no argument {name!r}; its arguments: {takes}.{nearest(name, parameters)}"
            )
    where = Path(reference.rpartition(":")[0])
    label = loss_class.__name__ if is_only else f"{where.stem}.{loss_class.__name__}"
    memory = f"{loss_class.__name__} {_digest(loss_class, reference, arguments)}"
    if "pair" not in parameters:
        with _random_numbers_of(seed, memory):
            return [Term(label, weight, _make(reference, loss_class, arguments), memory)]
    terms = []
    for name, pair in _labelled(label, pairs):
        of_layer = f"{memory} of {pair.teacher}"
        with _random_numbers_of(seed, of_layer):
            loss = _make(reference, loss_class, {"pair": pair, **arguments})
        terms.append(Term(name, weight, loss, of_layer))
    return terms


@contextlib.contextmanager
def _random_numbers_of(seed: int | None, memory: str) -> Iterator[None]:
    """Have random numbers that depend on the seed and what is remembered alone, and leave the others as they are.

    A tape may have been recorded with other terms before or behind this one.
    """
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        digest = hashlib.sha256(f"{seed} {memory}".encode()).digest()
        torch.default_generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        yield


def _digest(loss_class: type[DistillationLoss], reference: str, arguments: dict[str, object]) -> str:
    """Return a hash of what decides what an own loss remembers: its code, also of its neighbours, and its arguments."""
    told = f"{code_digest(loss_class, reference)} {loss_class.__qualname__} {sorted(arguments.items())!r} seeded"
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def _make(reference: str, loss_class: type[DistillationLoss], arguments: dict[str, object]) -> DistillationLoss:
    try:
        return loss_class(**arguments)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{reference} could not be made: {one_line(error)}") from error
