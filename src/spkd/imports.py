"""A class or function of the user's own, found by module path or file path.

The reference ``package.module:Name`` or ``path/to/file.py:Name`` may carry constructor arguments:
``file.py:Name?width=2&norm=batch``.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import cast

from spkd.errors import InputError, nearest, one_line
from spkd.files import is_file

_USER = "spkd_user_"  # begins the names of modules that are made of a file
_IMPORTING = threading.RLock()  # one file at a time: another thread would be given half a module
_LIBRARIES = frozenset({"torch", "torchvision", "timm", "spkd", *sys.stdlib_module_names})
_WORDS: dict[str, object] = {"true": True, "false": False, "none": None, "null": None}


def split_arguments(reference: str) -> tuple[str, dict[str, object]]:
    """Split ``reference?name=value&...`` into the reference and its arguments.

    >>> split_arguments("timm/resnet18?in_chans=1")
    ('timm/resnet18', {'in_chans': 1})
    >>> split_arguments("wrn-16-1")
    ('wrn-16-1', {})
    """
    name, mark, arguments = reference.partition("?")
    return name, parse_arguments(arguments) if mark else {}


def parse_arguments(text: str) -> dict[str, object]:
    """Read ``name=value&name=value``.

    A value is a Python literal (numbers, quoted strings, tuples, lists), ``true``, ``false``, ``none`` or
    ``null`` in any case, or else the string as it stands.

    Raises:
        InputError: when a part is not ``name=value`` or a name comes twice.

    >>> parse_arguments("depth=2&rate=1e-3&act=relu&bias=false&sizes=[1, 2]")
    {'depth': 2, 'rate': 0.001, 'act': 'relu', 'bias': False, 'sizes': [1, 2]}
    """
    return {name: _read_value(value) for name, value in argument_texts(text).items()}


def argument_texts(text: str) -> dict[str, str]:
    """Split ``name=value&name=value``; the values are texts as they stand.

    Raises:
        InputError: as :func:`parse_arguments` does.

    >>> argument_texts("label=01&path=Image Index")
    {'label': '01', 'path': 'Image Index'}
    """
    arguments: dict[str, str] = {}
    for part in filter(None, text.split("&")):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name.isidentifier() or not value:
            raise InputError(f"arguments after '?' must read name=value&name=value, got {part!r} in {text!r}")
        if name in arguments:
            raise InputError(f"the argument {name!r} is given twice in {text!r}; keep one")
        arguments[name] = value
    return arguments


def import_object(reference: str) -> object:
    """Return what ``package.module:Name`` or ``path/to/file.py:Name`` names.

    Modules are also looked for in the current folder, and a file may import its neighbours: both folders are
    appended to ``sys.path``, where they hide nothing. A file is run once; the same content at the same path
    gives the same objects again.

    Raises:
        InputError: when the reference has another form, the module or file does not exist, it raises an
            error while being imported, or it has no such name (the nearest are listed).

    >>> import_object("collections:OrderedDict")
    <class 'collections.OrderedDict'>
    """
    where, _, name = reference.rpartition(":")
    if not where or not name:
        raise InputError(f"{reference!r} must read package.module:Name or path/to/file.py:Name")
    module = _import_file(where) if where.endswith(".py") else _import_module(where)
    if not hasattr(module, name):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise InputError(f"{where} has no {name!r}; name something that it defines.{nearest(name, public)}")
    found: object = getattr(module, name)
    return found


def is_of_python(reference: str) -> bool:
    """Return whether a reference, by module or by file, with or without arguments, is to Python's own library.

    >>> is_of_python("os:system?command=ls"), is_of_python("os.py:Net"), is_of_python("wrn-16-1")
    (True, False, False)
    """
    where, _, _ = reference.partition("?")[0].rpartition(":")
    if not where.endswith(".py"):
        return where.partition(".")[0] in sys.stdlib_module_names
    file = Path(where).expanduser().resolve()
    return file.is_relative_to(Path(sysconfig.get_path("stdlib")).resolve()) and "site-packages" not in file.parts


def code_digest(found: object, reference: str | None = None) -> str:
    """Return a hash of the files in which an object is written; of a class also those of what it derives from.

    What belongs to Python, PyTorch, torchvision, timm or this package is left out. With the ``reference`` by which it
    was imported, the file is hashed in which that name stands, since what a call has made tells of no file, and what
    that imports of its neighbours.
    """
    classes = found.__mro__ if isinstance(found, type) else (found,)
    digest = hashlib.sha256()
    where = "" if reference is None else reference.rpartition(":")[0]
    if where and where.partition(".")[0] not in _LIBRARIES:
        first = _import_file(where) if where.endswith(".py") else _import_module(where)
        files = _with_imported(_own_files(first, first, set()), first)
        for file in sorted(files, key=lambda file: (file.name, file)):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    for one in classes:
        module = getattr(one, "__module__", None) or ""
        if module.partition(".")[0] in _LIBRARIES:
            continue
        try:
            digest.update(Path(inspect.getfile(cast(type, one))).read_bytes())
        except (TypeError, OSError):  # made by a call, or written in no file
            digest.update(f"{module}.{getattr(one, '__qualname__', one)}".encode())
    return digest.hexdigest()


def _own_files(module: ModuleType, first: ModuleType, known: set[Path]) -> set[Path]:
    """Return, with ``known``, the file of a module and of those below it whose classes and functions it has.

    Below ``first``: what lies in its folder, or of a package's module what is of the same package.
    """
    file = getattr(module, "__file__", None)
    if file is None or (path := Path(file).resolve()) in known:
        return known
    known.add(path)
    for value in list(vars(module).values()):
        if isinstance(value, ModuleType):
            name = value.__name__
            if name.startswith(f"{module.__name__}."):
                continue  # which of a package's modules hang on it depends on what else has been imported
        else:
            name = value.__module__ if isinstance(value, type | FunctionType) else type(value).__module__
        other = sys.modules.get(name)
        if other is not None and _belongs(other, first):
            _own_files(other, first, known)
    return known


def _belongs(module: ModuleType, first: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    if file is None or "site-packages" in Path(file).parts:
        return False
    if _package(first) is None:
        return Path(file).resolve().is_relative_to(_root(first))
    return module.__name__.partition(".")[0] == _package(first)


def _package(module: ModuleType) -> str | None:
    """Return the name of the outermost package that a module is of, None where it is of none."""
    name = module.__name__.partition(".")[0]
    is_alone = module.__name__.startswith(_USER) or (name == module.__name__ and not hasattr(module, "__path__"))
    return None if is_alone else name


def _root(module: ModuleType) -> Path:
    """Return the folder in which a module lies, or its outermost package."""
    file = Path(str(module.__file__)).resolve()
    depth = 0 if _package(module) is None else module.__name__.count(".") + hasattr(module, "__path__")
    return file.parents[depth]


def _with_imported(files: set[Path], first: ModuleType) -> set[Path]:
    """Return the files, and those below ``first`` that their import statements name, at any place in them."""
    found = set(files)
    waiting = [file for file in files if "site-packages" not in file.parts]
    while waiting:
        for file in _imported_by(waiting.pop(), first):
            if file not in found:
                found.add(file)
                waiting.append(file)
    return found


def _imported_by(file: Path, first: ModuleType) -> Iterator[Path]:
    try:
        statements = list(ast.walk(ast.parse(file.read_bytes())))
    except (SyntaxError, ValueError):  # an extension module, say
        return
    package = _package(first)
    for one in statements:
        if isinstance(one, ast.Import):
            named = [(_root(first), alias.name.split(".")) for alias in one.names]
        elif isinstance(one, ast.ImportFrom):
            place = file.parents[one.level - 1] if one.level else _root(first)
            above = one.module.split(".") if one.module else []
            if one.level and (its_own := place / "__init__.py").is_file():
                yield its_own
            named = [(place, [*above, alias.name]) for alias in one.names]
        else:
            continue
        for place, parts in named:
            if place != _root(first) or package in (None, parts[0]):
                yield from _files_of(place, parts)


def _files_of(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """Yield the files of the packages and of the module that a dotted name means in a folder."""
    for part in parts:
        below = folder / part
        if (file := below / "__init__.py").is_file():
            yield file.resolve()
        elif (file := folder / f"{part}.py").is_file():
            yield file.resolve()
            return
        folder = below


def failure(error: BaseException, file: str | None = None) -> str:
    """Return an error that a user's code raised, with the line where, on one line.

    The line is the last one in ``file`` that the error came through, or else the one that raised it.
    """
    if isinstance(error, SyntaxError):
        return one_line(error)
    places = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    inside = [place for place in places if place[0] == file] or places
    where = f" (line {inside[-1][1]} of {Path(inside[-1][0]).name})" if inside else ""
    return one_line(error) + where


def _import_module(name: str) -> ModuleType:
    _append_to_path(Path.cwd())
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and (name == missing or name.startswith(f"{missing}.")):
            raise InputError(
                f"module {missing!r} was not found (looked in the current folder {Path.cwd()} and the "
                "installed packages); for a file write path/to/file.py:Name"
            ) from error
        raise InputError(f"importing {name} failed: {failure(error)}") from error


def _import_file(name: str) -> ModuleType:
    path = Path(name).expanduser().resolve()
    if not is_file(path):
        near = nearest(path.name, [file.name for file in path.parent.glob("*.py")])
        raise InputError(f"file {name} was not found (looked at {path}); check the path.{near}")
    try:
        digest = hashlib.sha256(bytes(path) + b"\0" + path.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise InputError(f"file {name} cannot be read: {error.strerror}; check its permissions") from error
    module_name = f"{_USER}{path.stem}_{digest}"
    with _IMPORTING:
        return sys.modules.get(module_name) or _run_file(name, path, module_name)


def _run_file(name: str, path: Path, module_name: str) -> ModuleType:
    _append_to_path(path.parent)
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"file {name} cannot be imported as Python; check the path")
    module = importlib.util.module_from_spec(spec)
    others = _neighbours_of_others(path.parent)
    for other in others:
        del sys.modules[other]
    # Registered before it runs: dataclasses and pickle look their module up by name.
    sys.modules[module_name] = module
    failed: BaseException | None = None
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        failed = error
    except BaseException:  # Ctrl-C, after which the next call is to run it again
        del sys.modules[module_name]
        raise
    finally:
        twice = next((other for other in others if other in sys.modules), None)
        sys.modules.update(others)
    if twice is not None or failed is not None:
        del sys.modules[module_name]
    if twice is not None:
        raise InputError(
            f"{name} imports {twice}, of which there is another in use, {others[twice].__file__}; give one of them "
            "another name"
        ) from failed
    if failed is not None:
        raise InputError(f"importing {name} failed: {failure(failed)}") from failed
    return module


def _neighbours_of_others(folder: Path) -> dict[str, ModuleType]:
    """Return the modules that a user's file in another folder has imported, and that have a namesake in this one."""
    files = [Path(str(module.__file__)) for name, module in list(sys.modules.items()) if name.startswith(_USER)]
    places = {file.parent for file in files}
    return {
        name: module
        for name, module in list(sys.modules.items())
        if _is_namesake(name, module, folder) and any(Path(str(module.__file__)).is_relative_to(at) for at in places)
    }


def _is_namesake(name: str, module: ModuleType, folder: Path) -> bool:
    """Return whether a module is a user's, and an import in a file of ``folder`` may mean another of this name."""
    root = name.partition(".")[0]
    own, package = folder / f"{root}.py", folder / root
    if root == "spkd" or root.startswith(_USER) or not (own.is_file() or package.is_dir()):
        return False
    file = Path(getattr(module, "__file__", None) or "")
    # One whose file is gone has been moved, most likely to here.
    is_elsewhere = file.is_file() and file != own and not file.is_relative_to(package)
    return is_elsewhere and "site-packages" not in file.parts


def _append_to_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _read_value(text: str) -> object:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        value: object = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return value
