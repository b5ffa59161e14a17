"""What ``import spkd`` gives."""

import subprocess
import sys
from pathlib import Path

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


def test_the_library_is_imported_where_a_system_has_no_locks_and_no_forks(tmp_path: Path) -> None:
    code = (
        "import sys, os, torch, spkd\n"
        "sys.modules['fcntl'] = None\n"
        "del os.register_at_fork, os.fork\n"
        "for name in spkd.__all__:\n"
        "    getattr(spkd, name)\n"
        "from spkd.files import locked\n"
        "with locked(__import__('pathlib').Path(sys.argv[1]), wait=False):\n"
        "    print('imported')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout == "imported\n", done.stderr


def test_the_compiler_is_imported_only_where_something_is_compiled_or_trained() -> None:
    # It takes as long as PyTorch itself; a command that only evaluates, or that fails at once, does without.
    code = (
        "import sys, importlib, pkgutil, spkd\n"
        "for module in pkgutil.walk_packages(spkd.__path__, 'spkd.'):\n"
        "    if module.name not in ('spkd.__main__', 'spkd.division'):\n"
        "        importlib.import_module(module.name)\n"
        "print('spkd.distiller' in sys.modules, 'torch._dynamo' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found == "True False\n"
