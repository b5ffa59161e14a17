"""The losses as pure functions of tensors: each can be read beside the equation that it implements."""

from __future__ import annotations

from spkd.functional.attention import (
    attention_distance,
    attention_map,
    attention_transfer_loss,
    relative_attention_map,
)
from spkd.functional.similarity import (
    matrix_preserving_loss,
    similarity_distance,
    similarity_matrix,
    similarity_preserving_loss,
)
from spkd.functional.soft_targets import soft_target_loss

__all__ = [
    "attention_distance",
    "attention_map",
    "attention_transfer_loss",
    "matrix_preserving_loss",
    "relative_attention_map",
    "similarity_distance",
    "similarity_matrix",
    "similarity_preserving_loss",
    "soft_target_loss",
]
