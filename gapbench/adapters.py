"""Models and judges of one's own: found in a file or a module, made, and what they leave out."""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from inspect import Parameter
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final, NamedTuple, TypeVar

from gapbench.files import blamed, digest, first_line
from gapbench.types import Crash, GapbenchError

T = TypeVar("T")
_SEVERAL: Final = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
_OPTIONS: Final = {"recipe": "--set", "folder": "@FOLDER", "argument": ":ARGUMENT"}
_SPEC: Final = re.compile(r"(.+?\.py|[A-Za-z_][\w.]*):([A-Za-z_]\w*)(?:([@:].+))?")


class Spec(NamedTuple):
    """`home` is file.py or my_package.module, `rest` what follows the name in it: @... or :..."""

    home: str
    name: str
    rest: str


def parse(text: str) -> Spec | None:
    """./my.py:MyModel or my_package.module:MyModel, with what follows; None for another text."""
    matched = _SPEC.fullmatch(text)
    return Spec(matched[1], matched[2], matched[3] or "") if matched else None


def find(who: str, spec: Spec) -> Any:
    """The class, function or object that a spec names. The current folder counts as one of
    PYTHONPATH's, the last, and so does the folder of a file.

    Raises GapbenchError where there is no such file, module or name. What the code raises as it is
    imported is not caught.
    """
    module = _file(who, Path(spec.home)) if spec.home.endswith(".py") else _module(who, spec.home)
    if not hasattr(module, spec.name):
        raise GapbenchError(f"{who}: {spec.home} has no {spec.name!r}{_others(module)}")
    return getattr(module, spec.name)


def which(who: str, file: str) -> GapbenchError:
    """The error for a Python file without the name of the class in it."""
    return GapbenchError(f"{who}: name the class too, {file}:NAME{_others(_file(who, Path(file)))}")


def _others(module: ModuleType) -> str:
    own = [
        name
        for name, each in vars(module).items()
        if getattr(each, "__module__", "") == module.__name__
        or type(each).__module__.startswith("gapbench.")
    ]
    return f"; it has {', '.join(own)}" if own else ""


def _file(who: str, file: Path) -> ModuleType:
    """A file as a module. It is run again once it has changed."""
    try:
        code = file.read_bytes()
    except OSError as error:
        raise GapbenchError(f"{who}: {file} cannot be read ({error.strerror})") from error
    file = file.resolve()
    name = f"{file.stem}_{hashlib.sha256(bytes(file) + code).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    _search(file.parent)
    module = sys.modules[name] = ModuleType(name)  # a dataclass looks its module up
    module.__file__ = str(file)
    try:
        exec(compile(code, str(file), "exec"), vars(module))  # noqa: S102 (what was asked for)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _module(who: str, name: str) -> ModuleType:
    _search(Path.cwd())
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if not error.name or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, and one that it imports is not
        raise GapbenchError(
            f"{who}: no module {error.name!r} in the current folder or on PYTHONPATH"
        ) from error


def _search(folder: Path) -> None:
    """Let imports search a folder, after all others."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def make(who: str, source: Any, asked: Mapping[str, Any], **offered: Any) -> Any:
    """What a class or function makes of the keywords `asked`, which it must take, and of those
    `offered` that it takes. An object that is made already is taken as it is.

    Raises GapbenchError where it does not take what was asked for, or needs more.
    """
    made = not (inspect.isroutine(source) or isinstance(source, type | partial))
    parameters = {} if made else inspect.signature(source).parameters
    several = [p.kind for p in parameters.values() if p.kind in _SEVERAL]
    for name in asked:
        if name not in parameters and Parameter.VAR_KEYWORD not in several:
            option = _OPTIONS.get(name, f"--{name}")
            raise GapbenchError(f"{who}: its adapter takes no {name}, so {option} cannot be used")
    given = {**offered, **asked}
    needs = [
        name
        for name, each in parameters.items()
        if each.default is each.empty and each.kind not in _SEVERAL and name not in given
    ]
    if needs:
        raise GapbenchError(
            f"{who}: {getattr(source, '__name__', 'it')} needs {', '.join(needs)}, and gapbench "
            f"gives only {', '.join(given)}; give it a default"
        )
    if made:
        return source
    if Parameter.VAR_KEYWORD not in several:
        given = {name: value for name, value in given.items() if name in parameters}
    try:
        return source(**given)
    except StopIteration as error:  # would end a loop of ours
        raise Crash(blamed(error)) from error


def with_defaults(
    made: Any,
    contract: type[T],
    required: Sequence[str],
    who: str,
    folder: Path | None = None,
    argument: str = "",
) -> T:
    """An adapter that somebody else made, with the contract's defaults where it says nothing. Its
    name is then its class's, and its fingerprint that of the file of its class, of the folder and
    the argument that it was made with, and of its dtype.

    Raises GapbenchError where it has none of the methods that are required, where one takes other
    arguments, and where no code is found for a fingerprint. `who` names the adapter.
    """
    if isinstance(made, type):
        raise GapbenchError(f"{who}: it is a class; give an object of it, {made.__name__}(...)")
    kind = type(made)
    if not any(hasattr(made, method) for method in required):
        raise GapbenchError(
            f"{who}: {kind.__name__} has no {' or '.join(required)}; see {contract.__module__}."
            f"{contract.__name__}"
        )
    for method in required:
        if hasattr(made, method):
            takes = list(inspect.signature(getattr(contract, method)).parameters)[1:]
            check_arguments(f"{who}: {method}", getattr(made, method), takes)
    try:
        if not hasattr(made, "name"):
            made.name = kind.__name__
        if not hasattr(made, "fingerprint"):
            parts = [fingerprint(kind, *([folder] if folder else [])), argument]
            parts.append(getattr(made, "dtype", None) or "")
            made.fingerprint = "-".join(map(str, filter(None, parts)))
        for name, default in vars(contract).items():
            if not (name.startswith("_") or isinstance(default, property) or hasattr(made, name)):
                bound = isinstance(default, FunctionType)
                setattr(made, name, MethodType(default, made) if bound else default)
    except AttributeError as error:
        raise GapbenchError(f"{who}: {first_line(error)}") from error
    match made.batches:
        case (int(), int()):
            pass
        case other:
            raise GapbenchError(f"{who}: its batches are {other!r}, not Batches(first, most)")
    adapter: T = made
    return adapter


def check_arguments(who: str, function: Any, takes: Sequence[str]) -> None:
    """Raises GapbenchError, with file and line, where a function does not take these arguments."""
    try:
        inspect.signature(function).bind(*takes)
    except TypeError as error:
        why = f"{who} does not take ({', '.join(takes)}): {error}{place(function)}"
        raise GapbenchError(why) from error
    except ValueError:
        return  # of a function in C, what it takes is not known


def place(of: Any) -> str:
    """ " (file, line)" of a class or a function; empty where it is not known."""
    of = inspect.unwrap(of)
    try:
        return f" ({inspect.getsourcefile(of)}, line {inspect.getsourcelines(of)[1]})"
    except (OSError, TypeError):
        return ""


def fingerprint(*parts: str | Path | type | Callable[..., Any]) -> str:
    """A digest for `Model.fingerprint` and `Judge.fingerprint`: hex sha256 over parts in order.

    A part is the path of a file or of a folder, whose files count by name and bytes, such as
    weights and `__file__`; or a class or a function, which counts by the bytes of the file that it
    is in, or by its own lines where it is in none, as in a notebook. What a file imports does not
    count. Raises GapbenchError where a path is not there, or no code is found.
    """
    total = hashlib.sha256()
    for part in parts:
        total.update(_contents(part).encode())
    return total.hexdigest()


def _contents(part: str | Path | type | Callable[..., Any]) -> str:
    if not isinstance(part, str | Path):
        name = getattr(part, "__name__", repr(part))
        code: Any = inspect.unwrap(part)  # not the decorator's, as with @torch.no_grad()
        try:
            file = inspect.getsourcefile(code)
            if not file or not Path(file).is_file():
                return hashlib.sha256(inspect.getsource(code).encode()).hexdigest()
        except (OSError, TypeError) as error:
            raise GapbenchError(
                f"{name}: no source code of it is found, so give it a fingerprint ({error})"
            ) from error
        part = file
    path = Path(part)
    if not path.exists():
        raise GapbenchError(f"fingerprint: there is no file or folder {path}")
    if path.is_file():
        return digest("", [path])
    files = [f for f in path.rglob("*") if f.is_file() and f.parent.name != "__pycache__"]
    return digest("", sorted(files), path)
