from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spkd.models import bfloat16
from spkd.models.bfloat16 import gains_from_bfloat16, is_slow_in_bfloat16

CPU = torch.device("cpu")


def processor(monkeypatch: pytest.MonkeyPatch, folder: Path, *, vendor: str, tiles: bool, avx512: bool) -> None:
    """Pretend to be on a processor of another kind."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    (folder / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(bfloat16, "PROCESSORS", folder / "cpuinfo")


@pytest.mark.parametrize(
    ("vendor", "tiles", "avx512", "gains"),
    [
        ("GenuineIntel", True, True, True),
        ("GenuineIntel", True, False, True),
        ("GenuineIntel", False, True, False),
        ("GenuineIntel", False, False, False),
        ("AuthenticAMD", False, True, True),
        ("AuthenticAMD", False, False, False),
    ],
)
def test_a_processor_gains_by_tiles_or_by_amd_s_avx_512(
    vendor: str, tiles: bool, avx512: bool, gains: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor(monkeypatch, tmp_path, vendor=vendor, tiles=tiles, avx512=avx512)
    assert gains_from_bfloat16(CPU) is gains


def test_without_a_word_on_the_vendor_instructions_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, tmp_path, vendor="", tiles=False, avx512=True)
    (tmp_path / "cpuinfo").unlink()
    assert gains_from_bfloat16(CPU)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_gain_from_the_ampere_generation_on(
    capability: tuple[int, int], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert gains_from_bfloat16(torch.device("cuda")) is expected
    assert not gains_from_bfloat16(torch.device("mps"))


@pytest.mark.parametrize(
    ("accelerator", "capability", "mps", "instructions", "slow"),
    [
        ("cpu", (9, 0), True, False, True),
        ("cpu", (7, 5), False, True, False),
        ("auto", (7, 5), False, True, True),
        ("cuda", (8, 0), False, False, False),
        ("auto", None, True, False, False),
        ("auto", None, False, False, True),
        ("auto", None, False, True, False),
    ],
)
def test_where_bfloat16_is_slow(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    accelerator: str,
    capability: tuple[int, int] | None,
    mps: bool,
    instructions: bool,
    slow: bool,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: capability is not None)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)
    processor(monkeypatch, tmp_path, vendor="AuthenticAMD", tiles=False, avx512=instructions)
    assert is_slow_in_bfloat16(accelerator) == slow
