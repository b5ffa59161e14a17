from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from spkd.models import bfloat16
from spkd.models.bfloat16 import gains_from_bfloat16, is_slow_in_bfloat16

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _untried() -> Iterator[None]:
    """A processor that has not been tried, before and after."""
    bfloat16._gain_of_processor.cache_clear()
    yield
    bfloat16._gain_of_processor.cache_clear()


@pytest.mark.parametrize(
    ("float32", "short", "gains"),
    [
        # What AMX, AVX-512 of AMD's, AVX-512 of Intel's without AMX, and AVX2 do.
        (8.0, 1.0, True),
        (2.0, 1.0, True),
        (1.0, 1.9, False),
        (1.0, 6.0, False),
        (1.0, 1.0, False),
    ],
)
def test_a_processor_gains_where_a_convolution_is_quicker(
    float32: float, short: float, gains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, calls = [0.0], list[torch.dtype]()

    def convolve(images: torch.Tensor, weight: torch.Tensor, padding: int) -> torch.Tensor:
        disturbed = 50.0 if len(calls) % 5 == 0 else 0.0  # by another program, now and then
        clock[0] += disturbed + (float32 if images.dtype == torch.float32 else short)
        calls.append(images.dtype)
        return images

    monkeypatch.setattr(torch, "conv2d", convolve)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert gains_from_bfloat16(CPU) is gains
    assert gains_from_bfloat16(CPU) is gains
    assert calls == [torch.float32, torch.bfloat16] * bfloat16.ROUNDS  # once


def test_trying_a_processor_draws_no_random_number() -> None:
    state = torch.get_rng_state()
    gains_from_bfloat16(CPU)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="needs AMX tiles")
def test_a_processor_with_tiles_for_it_gains() -> None:
    assert gains_from_bfloat16(CPU)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_gain_from_the_ampere_generation_on(
    capability: tuple[int, int], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert gains_from_bfloat16(torch.device("cuda")) is expected
    assert not gains_from_bfloat16(torch.device("mps"))


@pytest.mark.parametrize(
    ("accelerator", "capability", "mps", "processor", "slow"),
    [
        ("cpu", (9, 0), True, 0.5, True),
        ("cpu", (7, 5), False, 2.0, False),
        ("auto", (7, 5), False, 2.0, True),
        ("cuda", (8, 0), False, 0.5, False),
        ("auto", None, True, 0.5, False),
        ("auto", None, False, 0.5, True),
        ("auto", None, False, 2.0, False),
    ],
)
def test_where_bfloat16_is_slow(
    monkeypatch: pytest.MonkeyPatch,
    accelerator: str,
    capability: tuple[int, int] | None,
    mps: bool,
    processor: float,
    slow: bool,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: capability is not None)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)
    monkeypatch.setattr(bfloat16, "_gain_of_processor", lambda: processor)
    assert is_slow_in_bfloat16(accelerator) == slow
