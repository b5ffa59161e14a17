"""References to the user's own code: found, or one clear line."""

from __future__ import annotations

import dataclasses
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spkd.errors import InputError
from spkd.imports import code_digest, failure, import_object, parse_arguments, split_arguments


@pytest.fixture(autouse=True)
def _restore_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-2", -2),
        ("1e-3", 1e-3),
        ("1e3", 1e3),
        ("true", True),
        ("False", False),
        ("none", None),
        ("null", None),
        ("relu", "relu"),
        ("'1'", "1"),
        ("[1, 2.5]", [1, 2.5]),
        ("(3, 3)", (3, 3)),
        ("a=b", "a=b"),
        ("layer4.1", "layer4.1"),
        ("weights/best model.pt", "weights/best model.pt"),
        ("__import__('os')", "__import__('os')"),
    ],
)
def test_values(text: str, value: object) -> None:
    parsed = parse_arguments(f"x={text}")["x"]
    assert parsed == value
    assert type(parsed) is type(value)


def test_several_arguments_and_none() -> None:
    assert parse_arguments("a=1& b = x") == {"a": 1, "b": "x"}
    assert parse_arguments("") == {}
    assert split_arguments("m.py:A?b=1&c=x?y") == ("m.py:A", {"b": 1, "c": "x?y"})
    assert split_arguments("m.py:A?") == ("m.py:A", {})


@pytest.mark.parametrize("text", ["a", "=1", "a=", "a b=1", "a=1&b", "1a=2"])
def test_malformed_arguments(text: str) -> None:
    with pytest.raises(InputError, match="name=value"):
        parse_arguments(text)


def test_doubled_arguments() -> None:
    with pytest.raises(InputError, match="'a' is given twice"):
        parse_arguments("a=1&a=2")


def test_a_file_may_use_dataclasses_and_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path / "spkd_test_neighbour.py", "WIDTH = 7\n")
    path = write(
        tmp_path / "net.py",
        "from __future__ import annotations\nimport dataclasses\nfrom spkd_test_neighbour import WIDTH\n"
        "@dataclasses.dataclass\nclass Net:\n    width: int = WIDTH\n",
    )
    net = import_object(f"{path}:Net")
    assert isinstance(net, type)
    assert dataclasses.asdict(net()) == {"width": 7}


@pytest.mark.parametrize("neighbour", ["spkd_test_blocks.py", "spkd_test_blocks/__init__.py"])
def test_a_neighbour_of_one_file_is_not_taken_for_that_of_another(tmp_path: Path, neighbour: str) -> None:
    nets = []
    for width, folder in enumerate((tmp_path / "a", tmp_path / "b")):
        (folder / neighbour).parent.mkdir(parents=True)
        write(folder / neighbour, f"WIDTH = {width}\n")
        nets.append(write(folder / "net.py", "import spkd_test_between\nWIDTH = spkd_test_between.WIDTH\n"))
        write(folder / "alone.py", f"WIDTH = {width}\n")
    for folder in ("a", "b"):
        write(tmp_path / folder / "spkd_test_between.py", "from spkd_test_blocks import WIDTH\n")
    try:
        assert import_object(f"{nets[0]}:WIDTH") == 0
        with pytest.raises(
            InputError, match=r"b/net\.py imports spkd_test_\w+, of which there is another in use, .*/a/"
        ):
            import_object(f"{nets[1]}:WIDTH")
        assert sys.modules["spkd_test_blocks"].WIDTH == 0
        assert import_object(f"{tmp_path / 'b' / 'alone.py'}:WIDTH") == 1  # which imports none of them
        assert import_object(f"{nets[0]}:WIDTH") == 0
        (tmp_path / "a").rename(tmp_path / "moved")  # with all its files
        assert import_object(f"{tmp_path / 'moved' / 'net.py'}:WIDTH") == 0
    finally:
        for name in ("spkd_test_blocks", "spkd_test_between"):
            sys.modules.pop(name, None)


def test_the_same_file_gives_the_same_object_until_it_changes(tmp_path: Path) -> None:
    path = write(tmp_path / "net.py", "class Net: width = 1\n")
    first = import_object(f"{path}:Net")
    assert import_object(f"{path}:Net") is first
    write(tmp_path / "net.py", "class Net: width = 2\n")
    assert import_object(f"{path}:Net").width == 2  # type: ignore[attr-defined]


def test_paths_and_modules_are_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "net.py", "A = 1\n")
    write(tmp_path / "spkd_test_module.py", "B = 2\n")
    assert import_object("sub/net.py:A") == 1
    assert import_object("spkd_test_module:B") == 2
    del sys.modules["spkd_test_module"]


def test_nothing_installed_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "json.py", "raise RuntimeError\n")
    path = write(tmp_path / "net.py", "import importlib, json\ndumps = json.dumps\n")
    monkeypatch.delitem(sys.modules, "json")
    assert import_object(f"{path}:dumps")([1]) == "[1]"  # type: ignore[operator]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("net", "must read package.module:Name"),
        ("net.py:", "must read package.module:Name"),
        (":Net", "must read package.module:Name"),
        ("no_such_package.sub:Net", "module 'no_such_package' was not found"),
        ("collections.no_such:Net", "module 'collections.no_such' was not found"),
        ("collections:OrderdDict", "Did you mean 'OrderedDict'"),
        ("no/such/net.py:Net", "file no/such/net.py was not found"),
    ],
)
def test_what_is_not_there(reference: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        import_object(reference)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nraise RuntimeError('two\\nlines')\n", r"RuntimeError: two lines \(line 2 of broken.py\)"),
        ("def f(:\n", r"SyntaxError: invalid syntax \(broken.py, line 1\)"),
        (
            "import no_such_dependency\n",
            r"ModuleNotFoundError: .*no_such_dependency.* \(line 1 of broken.py\)",
        ),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
    ],
)
def test_errors_while_importing(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "broken.py", text)
    for _ in range(2):
        with pytest.raises(InputError, match=f"importing .*broken.py failed: {message}") as caught:
            import_object(f"{path}:Net")
        assert "\n" not in str(caught.value)
    assert not any(name.startswith("spkd_user_broken") for name in sys.modules)


def test_a_failures_line_is_the_users_where_a_library_raised_it(tmp_path: Path) -> None:
    path = write(tmp_path / "own.py", "import json\ndef read(text):\n    return json.loads(text)\n")
    read = import_object(f"{path}:read")
    with pytest.raises(ValueError, match="Expecting") as caught:
        read("{")  # type: ignore[operator]
    assert failure(caught.value, path).endswith(" (line 3 of own.py)")
    assert failure(caught.value).endswith(" of decoder.py)")
    assert failure(RuntimeError()) == "RuntimeError"


def test_a_module_whose_own_import_is_missing_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "spkd_test_needs.py", "import no_such_dependency\n")
    with pytest.raises(InputError, match="importing spkd_test_needs failed: ModuleNotFoundError"):
        import_object("spkd_test_needs:Net")


def test_a_near_file_name_is_suggested(tmp_path: Path) -> None:
    write(tmp_path / "losses.py", "")
    with pytest.raises(InputError, match=r"Did you mean 'losses\.py'"):
        import_object(f"{tmp_path / 'loses.py'}:Net")


def test_the_code_of_a_class_is_that_of_what_it_derives_from_too(tmp_path: Path) -> None:
    base, derived = tmp_path / "base.py", tmp_path / "derived.py"
    base.write_text("class Base:\n    factor = 1\n")
    derived.write_text(
        f"from spkd.imports import import_object\n\nclass Own(import_object('{base}:Base')):\n    pass\n"
    )
    own = import_object(f"{derived}:Own")
    before = code_digest(own)
    assert code_digest(own) == before
    base.write_text("class Base:\n    factor = 2\n")
    assert code_digest(own) != before
    base.write_text("class Base:\n    factor = 1\n")
    assert code_digest(own) == before
    assert code_digest(import_object(f"{derived}:import_object")) == code_digest(object)


NEIGHBOURS = {
    "a constant": ("from noticed_a import WIDTH\n", "noticed_a.py"),
    "all": ("from noticed_b import *\n", "noticed_b.py"),
    "inside a function": ("def late():\n    import noticed_c\n", "noticed_c.py"),
    "of a folder": ("import noticed_d.deep.settings as settings\n", "noticed_d/deep/settings.py"),
    "of a package": ("from noticed_e.settings import WIDTH\n", "noticed_e/__init__.py"),
    "through another": ("import noticed_f\n", "noticed_g.py"),
    "a submodule": ("from noticed_h import settings\n", "noticed_h/settings.py"),
}


@pytest.mark.parametrize("how", NEIGHBOURS)
def test_every_neighbour_that_is_imported_is_part_of_the_code(tmp_path: Path, how: str) -> None:
    statement, where = NEIGHBOURS[how]
    files = {file for _, file in NEIGHBOURS.values()} | {"noticed_e/settings.py", "noticed_h/__init__.py"}
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, "WIDTH = 8\n")
    write(tmp_path / "noticed_f.py", "def late():\n    from noticed_g import WIDTH\n")
    reference = f"{tmp_path / 'net.py'}:make"
    write(tmp_path / "net.py", f"{statement}def make():\n    return 1\n")
    try:
        before = code_digest(import_object(reference), reference)
        write(tmp_path / "unused.py", "")
        assert code_digest(import_object(reference), reference) == before
        write(tmp_path / where, "WIDTH = 32\n")
        assert code_digest(import_object(reference), reference) != before
    finally:
        for name in [name for name in sys.modules if name.startswith("noticed_")]:
            del sys.modules[name]


def test_a_file_with_a_dot_in_its_name_has_neighbours_too(tmp_path: Path) -> None:
    write(tmp_path / "noticed_i.py", "WIDTH = 8\n")
    reference = (
        write(tmp_path / "net.v2.py", "from noticed_i import WIDTH\n\n\ndef make():\n    return WIDTH\n") + ":make"
    )
    try:
        before = code_digest(import_object(reference), reference)
        write(tmp_path / "noticed_i.py", "WIDTH = 32\n")
        assert code_digest(import_object(reference), reference) != before
    finally:
        del sys.modules["noticed_i"]


def test_the_code_of_a_package_s_module_is_that_of_what_it_imports_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "noticed_package"
    (package / "inner").mkdir(parents=True)
    for name in ("__init__.py", "settings.py", "inner/__init__.py", "inner/late.py", "unused.py"):
        write(package / name, "WIDTH = 8\n")
    write(tmp_path / "noticed_beside.py", "")
    lines = "import noticed_beside\nfrom ..settings import WIDTH\n\n\ndef make():\n    from . import late\n"
    write(package / "inner" / "net.py", lines)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    reference = "noticed_package.inner.net:make"
    try:
        digests = [code_digest(import_object(reference), reference)]
        for name in ("settings.py", "inner/late.py", "__init__.py", "inner/__init__.py", "unused.py"):
            write(package / name, "WIDTH = 32\n")
            digests.append(code_digest(import_object(reference), reference))
        write(tmp_path / "noticed_beside.py", "WIDTH = 32\n")
        digests.append(code_digest(import_object(reference), reference))
    finally:
        for name in [name for name in sys.modules if name.startswith("noticed_")]:
            del sys.modules[name]
    assert len(set(digests)) == 5
    assert digests[4] == digests[5] == digests[6]


def test_a_file_that_was_interrupted_is_run_again(tmp_path: Path) -> None:
    """As by the button that stops a cell of a notebook."""
    other = write(tmp_path / "theirs.py", "import beside\nclass Name: pass")
    write(tmp_path / "beside.py", "")
    import_object(f"{other}:Name")
    folder = tmp_path / "own"
    folder.mkdir()
    write(folder / "beside.py", "")
    here = tmp_path / "again"
    text = f"class Half: pass\nfrom pathlib import Path\nif not Path({str(here)!r}).exists(): raise KeyboardInterrupt\n"
    file = write(folder / "m.py", text + "class Whole: pass\n")
    with pytest.raises(KeyboardInterrupt):
        import_object(f"{file}:Half")
    assert Path(str(sys.modules["beside"].__file__)).parent == tmp_path  # the other file's, as before
    here.touch()
    assert import_object(f"{file}:Whole").__name__ == "Whole"


def test_threads_are_not_given_half_a_file(tmp_path: Path) -> None:
    file = write(tmp_path / "slow.py", "import time\ntime.sleep(0.3)\nclass Name: pass\n")
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(import_object, [f"{file}:Name"] * 4))
    assert len(set(found)) == 1
