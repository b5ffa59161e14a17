"""What ``import spkd`` gives."""

import subprocess
import sys

import pytest

import spkd


def test_every_public_name_is_there() -> None:
    assert set(spkd._HOMES) | {"__version__"} == set(spkd.__all__) == set(dir(spkd))
    for name in spkd.__all__:
        assert getattr(spkd, name) is not None
    assert spkd.Distiller.__module__ == "spkd.distiller"
    assert spkd.load_model.__name__ == "load_classifier"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="SimilarityLoss"):
        _ = spkd.SimilarityLoss


def test_importing_is_quick() -> None:
    code = "import sys, spkd; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
