"""Whether a device is quicker in bfloat16 than in float32."""

from __future__ import annotations

from pathlib import Path

import torch

PROCESSORS = Path("/proc/cpuinfo")


def gains_from_bfloat16(device: torch.device) -> bool:
    """Return whether the device is quicker in bfloat16 than in float32.

    A GPU is from the Ampere generation on. A processor must have instructions for it, but those of AVX-512 take twice
    as long as float32 on Intel's, where AMX is not to be had, as in many virtual machines. It is a rule and not a
    timing, so that a run can be repeated to the same bits beside whatever else runs.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    return _has("_is_amx_tile_supported") or (_has("_is_avx512_bf16_supported") and not _is_of_intel())


def is_slow_in_bfloat16(accelerator: str) -> bool:
    """Return whether what is computed on ``accelerator`` is computed where bfloat16 is no quicker than float32.

    Of Apple's devices that is not known, and taken not to be so.
    """
    if accelerator != "cpu" and torch.cuda.is_available():
        return not gains_from_bfloat16(torch.device("cuda"))
    if accelerator != "cpu" and torch.backends.mps.is_available():
        return False
    return not gains_from_bfloat16(torch.device("cpu"))


def _has(check: str) -> bool:
    """Return what a check of PyTorch's says, which a version may not have."""
    return bool(getattr(torch.cpu, check, bool)())


def _is_of_intel() -> bool:
    try:
        return "GenuineIntel" in PROCESSORS.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return False
