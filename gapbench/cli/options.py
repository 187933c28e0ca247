"""Typer commands whose options are the fields of a settings record and the function's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand
from typer.models import OptionInfo

from gapbench.files import read_yaml
from gapbench.runs.settings import SettingError, checked, names, option_of
from gapbench.types import GapbenchError

RunPath = Annotated[
    Path,
    typer.Argument(
        help="A run folder; or, of those in runs, a model's name (its latest run), the start of a folder's name, or @last.",
        metavar="RUN",
    ),
]
SeveralJudges = Annotated[
    Sequence[str],
    typer.Option(
        "--judge", parser=names, show_default="set by each task",
        help="Compute the figures against this outside judge; of several, separated by commas, against each and their majority.",
    ),
]  # fmt: skip
TableForm = Annotated[
    Literal["text", "markdown", "csv", "json", "latex"],
    typer.Option("--format", help="Format of the table; --json is short for --format json."),
]
Form = Annotated[
    Literal["text", "json"],
    typer.Option("--format", help="Format; --json is short for --format json."),
]
ReportTo = Annotated[
    Sequence[str],
    typer.Option(
        parser=names,
        show_default="none",
        help="Also log the figures to tensorboard, trackio or wandb; separate several with commas.",
    ),
]
Results = Annotated[Path, typer.Option(help="Folder of submissions.")]


class Command(TyperCommand):
    """Typer's command; the help calls an argument that can be repeated a path, not a list[Path]."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        for param in self.params:
            if param.nargs == -1:
                vars(param)["display_type"] = lambda ctx: "<path>"  # noqa: ARG005

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer's; --json is short for --format json."""
        args = ["--format=json" if word == "--json" else word for word in args]
        return super().parse_args(ctx, args)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A typer command of a function; the fields of its parameter `settings` are options too.

    Values arrive as text and are checked by their types. Those of a `config` file count where an
    option is not given. The command raises GapbenchError, which names the option.
    """
    record = get_type_hints(function).get("settings")
    fields, own = _options(record) if record else {}, _options(function)
    options = fields | own
    labels = {name: _label(name, parameter) for name, parameter in options.items()}

    def arguments(values: Mapping[str, Any]) -> dict[str, Any]:
        try:
            taken = checked(function, {name: values[name] for name in own if name in values})
            if record:
                taken["settings"] = record(**{n: values[n] for n in fields if n in values})
        except SettingError as error:
            raise GapbenchError(f"{labels[error.name]} {error.wrong}") from error
        return taken

    @wraps(function)
    def run(**given: Any) -> None:
        given = {name: value for name, value in given.items() if value is not None}
        if file := given.get("config"):
            keys = {_key(label): name for name, label in labels.items() if name != "config"}
            there = read_yaml(file)
            read = {_key(key): value for key, value in there.items()}
            if len(read) < len(there):
                raise GapbenchError(f"{file}: a key stands twice, with - and with _")
            if unknown := [key for key in read if key not in keys]:
                known = ", ".join(keys)
                raise GapbenchError(f"{file}: unknown key {unknown[0]!r}; keys are {known}")
            read = {keys[key]: value for key, value in read.items()}
            if not isinstance(read.get("model", ""), str):
                raise GapbenchError(f"{file}: model must be text, not {read['model']!r}")
            try:
                arguments(read)
            except GapbenchError as error:
                raise GapbenchError(f"{file}: {str(error).removeprefix('--')}") from error
            given = read | given
        function(**arguments(given))

    vars(run)["__signature__"] = Signature(list(options.values()))
    return run


def _options(of: Callable[..., Any]) -> dict[str, Parameter]:
    """The parameters as typer takes them: text or a flag, None where it is not given."""
    hints, types = get_type_hints(of, include_extras=True), get_type_hints(of)
    options = {}
    for name, parameter in signature(of).parameters.items():
        if not (info := copy(option_of(hints[name]))):
            continue
        union = get_origin(types[name]) in (Union, UnionType)
        kinds = [
            k for k in (get_args(types[name]) if union else [types[name]]) if k is not NoneType
        ]
        text: Any = next((k for k in kinds if k in (bool, Path) or get_origin(k) is list), str)
        if get_origin(kinds[0]) is Mapping:
            text = list[str]
        elif get_origin(text) is list and isinstance(info, OptionInfo):
            info.metavar = info.metavar or _metavar(get_args(text)[0])
        elif text is str and isinstance(info, OptionInfo):
            info.metavar = info.metavar or "|".join(map(_metavar, kinds))
        default = parameter.default
        shown = info.show_default if isinstance(info.show_default, str) else default
        if shown not in (Parameter.empty, None, "", ()) and shown is not False:
            shown = ",".join(map(str, shown)) if isinstance(shown, tuple) else shown
            info.help = f"{info.help}  [default: {shown}]"
        info.show_default, info.min, info.max, info.parser = False, None, None, None
        if default is not Parameter.empty:
            text, default = text | None, None
        annotation = Annotated[text, info]
        options[name] = Parameter(
            name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation
        )
    return options


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    return f"{_metavar(get_args(kind)[0])},..." if get_args(kind) else f"<{kind.__name__.lower()}>"


def _label(name: str, parameter: Parameter) -> str:
    """An option or argument as it is typed."""
    info = option_of(parameter.annotation)
    if not isinstance(info, OptionInfo):
        return name.upper()
    return info.default if isinstance(info.default, str) else f"--{name.replace('_', '-')}"


def _key(label: object) -> str:
    return str(label).removeprefix("--").replace("-", "_")
