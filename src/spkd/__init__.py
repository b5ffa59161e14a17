"""Similarity-preserving knowledge distillation (Tung & Mori, ICCV 2019) for PyTorch.

The names below are loaded at their first use, so that ``import spkd`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from spkd.calibration import Calibration, temperature_of
    from spkd.distiller import Distiller, Remembered
    from spkd.errors import InputError
    from spkd.export import ExportReport, export_model
    from spkd.functional import (
        attention_map,
        attention_transfer_loss,
        similarity_matrix,
        similarity_preserving_loss,
        soft_target_loss,
    )
    from spkd.losses.attention import AttentionTransferLoss
    from spkd.losses.base import DistillationLoss
    from spkd.losses.methods import build_objective
    from spkd.losses.objective import UNLABELLED, LossBreakdown, Objective, Term
    from spkd.losses.similarity import SimilarityPreservingLoss
    from spkd.losses.soft_targets import SoftTargetLoss
    from spkd.losses.weights import LossWeights
    from spkd.models.classifier import Classifier, ModelInfo, Normalisation
    from spkd.models.saved_model import load_classifier as load_model
    from spkd.models.saved_model import save_model
    from spkd.pairing import Candidate, block_ends, pair_taps
    from spkd.taps import Activations, TapPair, Taps
    from spkd.training.evaluation import ClassError, Evaluation, evaluate
    from spkd.training.own_images import load_image

_HOMES = {
    "UNLABELLED": "spkd.losses.objective",
    "Activations": "spkd.taps",
    "AttentionTransferLoss": "spkd.losses.attention",
    "Calibration": "spkd.calibration",
    "Candidate": "spkd.pairing",
    "ClassError": "spkd.training.evaluation",
    "Classifier": "spkd.models.classifier",
    "DistillationLoss": "spkd.losses.base",
    "Distiller": "spkd.distiller",
    "Evaluation": "spkd.training.evaluation",
    "ExportReport": "spkd.export",
    "InputError": "spkd.errors",
    "LossBreakdown": "spkd.losses.objective",
    "LossWeights": "spkd.losses.weights",
    "ModelInfo": "spkd.models.classifier",
    "Normalisation": "spkd.models.classifier",
    "Objective": "spkd.losses.objective",
    "Remembered": "spkd.distiller",
    "SimilarityPreservingLoss": "spkd.losses.similarity",
    "SoftTargetLoss": "spkd.losses.soft_targets",
    "TapPair": "spkd.taps",
    "Taps": "spkd.taps",
    "Term": "spkd.losses.objective",
    "attention_map": "spkd.functional",
    "attention_transfer_loss": "spkd.functional",
    "block_ends": "spkd.pairing",
    "build_objective": "spkd.losses.methods",
    "evaluate": "spkd.training.evaluation",
    "export_model": "spkd.export",
    "load_image": "spkd.training.own_images",
    "load_model": "spkd.models.saved_model:load_classifier",
    "pair_taps": "spkd.pairing",
    "save_model": "spkd.models.saved_model",
    "similarity_matrix": "spkd.functional",
    "similarity_preserving_loss": "spkd.functional",
    "soft_target_loss": "spkd.functional",
    "temperature_of": "spkd.calibration",
}

__all__ = [
    "UNLABELLED",
    "Activations",
    "AttentionTransferLoss",
    "Calibration",
    "Candidate",
    "ClassError",
    "Classifier",
    "DistillationLoss",
    "Distiller",
    "Evaluation",
    "ExportReport",
    "InputError",
    "LossBreakdown",
    "LossWeights",
    "ModelInfo",
    "Normalisation",
    "Objective",
    "Remembered",
    "SimilarityPreservingLoss",
    "SoftTargetLoss",
    "TapPair",
    "Taps",
    "Term",
    "__version__",
    "attention_map",
    "attention_transfer_loss",
    "block_ends",
    "build_objective",
    "evaluate",
    "export_model",
    "load_image",
    "load_model",
    "pair_taps",
    "save_model",
    "similarity_matrix",
    "similarity_preserving_loss",
    "soft_target_loss",
    "temperature_of",
]


if not TYPE_CHECKING:  # or type checkers would take every name for one of ours

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'spkd' has no attribute {name!r}")
        module, _, attribute = _HOMES[name].partition(":")
        return getattr(importlib.import_module(module), attribute or name)


def __dir__() -> list[str]:
    return __all__
