"""Options of a command: made from the types of a settings record, or of the function itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from typer.models import OptionInfo, ParameterInfo

from gapbench.runs.settings import SettingError, Settings, checked
from gapbench.types import GapbenchError


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A typer command of `function`. Where it takes a settings record, the record's fields are its
    options.

    Values arrive as text and are checked by their types. Those of a `config` file count where an
    option is not given. The command raises GapbenchError, which names the option.
    """
    records = {
        name: type_
        for name, type_ in get_type_hints(function).items()
        if isinstance(type_, type) and issubclass(type_, Settings)
    }
    takers: list[Callable[..., Any]] = [*records.values(), function]
    options = {of: _options(of) for of in takers}
    parameters = {p.name: p for each in options.values() for p in each}
    labels = {name: _label(parameter) for name, parameter in parameters.items()}
    keys = {_key(label): name for name, label in labels.items() if name != "config"}

    def arguments(values: Mapping[str, Any]) -> dict[str, Any]:
        mine = {
            of: {p.name: values[p.name] for p in options[of] if p.name in values} for of in takers
        }
        try:
            made = {name: record(**mine[record]) for name, record in records.items()}
            return made | checked(function, mine[function])
        except SettingError as error:
            name = labels[error.name]
            raise GapbenchError(f"{name} {error.value}: {error.wrong}") from error

    @wraps(function)
    def run(**given: Any) -> None:
        given = {name: value for name, value in given.items() if value is not None}
        if "config" in given:
            file = Path(given["config"])
            read = _read(file, keys)
            try:
                arguments(read)
            except GapbenchError as error:
                raise GapbenchError(f"{file}: {str(error).removeprefix('--')}") from error
            given = read | given
        function(**arguments(given))

    vars(run)["__signature__"] = Signature(list(parameters.values()))
    return run


def _options(of: Callable[..., Any]) -> list[Parameter]:
    hints, types = get_type_hints(of, include_extras=True), get_type_hints(of)
    return [
        _option(parameter, hints[name], types[name])
        for name, parameter in signature(of).parameters.items()
        if get_origin(hints[name]) is Annotated
    ]


def _option(parameter: Parameter, hint: Any, type_: Any) -> Parameter:
    """A parameter as typer takes it: text or a flag, None where it is not given."""
    [info] = (copy(each) for each in hint.__metadata__ if isinstance(each, ParameterInfo))
    either = get_args(type_) if get_origin(type_) in (Union, UnionType) else (type_,)
    kinds = [kind for kind in either if kind is not NoneType]
    text: Any = next((k for k in kinds if k in (bool, Path) or get_origin(k) is list), str)
    if get_origin(kinds[0]) is Mapping:
        text = list[str]
    if text is str and isinstance(info, OptionInfo):
        info.metavar = info.metavar or "|".join(map(_metavar, kinds))
    default = parameter.default
    shown = info.show_default if isinstance(info.show_default, str) else default
    if shown not in (Parameter.empty, None, "", ()) and shown is not False:
        shown = ",".join(map(str, shown)) if isinstance(shown, tuple) else shown
        info.help = f"{info.help}  [default: {shown}]"
    info.min = info.max = info.parser = None
    info.show_default = False
    if default is not Parameter.empty:
        text, default = text | None, None
    return Parameter(
        parameter.name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[text, info]
    )


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    return f"{_metavar(get_args(kind)[0])},..." if get_args(kind) else f"<{kind.__name__.lower()}>"


def _label(parameter: Parameter) -> str:
    """An option or argument as it is typed."""
    [_, info] = get_args(parameter.annotation)
    if not isinstance(info, OptionInfo):
        return parameter.name.upper()
    return str(info.default) if info.default is not ... else "--" + parameter.name.replace("_", "-")


def _read(file: Path, keys: Mapping[str, str]) -> dict[str, Any]:
    """The values of a YAML file, by the names that its keys stand for."""
    import yaml

    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise GapbenchError(f"--config {file}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GapbenchError(f"{file}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(raw, dict):
        raise GapbenchError(f"{file}: not a list of `key: value` lines")
    read = {_key(key): value for key, value in raw.items()}
    for key in read:
        if key not in keys:
            raise GapbenchError(f"{file}: unknown key {key!r}; keys are {', '.join(keys)}")
    return {keys[key]: value for key, value in read.items()}


def _key(label: object) -> str:
    return str(label).removeprefix("--").replace("-", "_")
