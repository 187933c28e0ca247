"""The command that writes a model, a task or a judge to begin with."""

from __future__ import annotations

import ast
import keyword
import re
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from gapbench.types import GapbenchError

TEMPLATES: Final = Path(__file__).parent / "templates"
Kind = Literal["model", "task", "judge"]


def init(
    kind: Annotated[Kind, typer.Argument(help="What to write: model, task or judge.", metavar="KIND")],
    name: Annotated[str, typer.Argument(help="Its name: NAME.py for a model or a judge, the folder NAME for a task.", metavar="NAME")],
) -> None:  # fmt: skip
    """Write a model, a task or a judge that works, to be changed into your own."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise GapbenchError(
            f"NAME must be letters, digits, - and _, beginning with a letter, not {name!r}"
        )
    target = Path(name if kind == "task" else f"{name}.py")
    if target.exists():
        raise GapbenchError(f"{target} is there already; give another name, or move it away")
    try:
        if kind == "task":
            target.mkdir()
            for file in ("task.yaml", "prompts.txt"):
                (target / file).write_text((TEMPLATES / file).read_text())
        else:
            words = name.replace("_", "-").split("-")
            made = "".join(word[:1].upper() + word[1:] for word in words)
            text = (TEMPLATES / f"{kind}.py.txt").read_text()
            used = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
            if made in used or keyword.iskeyword(made):
                raise GapbenchError(
                    f"NAME {name}: its class would be called {made}, which means something else "
                    "in the file; give another name"
                )
            target.write_text(text.replace(f"My{kind.title()}", made).replace(f"my-{kind}", name))
    except OSError as error:
        raise GapbenchError(f"{target} cannot be written ({error.strerror})") from error
    if kind == "task":
        check, use = f"tasks ./{name}", f"--tasks ./{name}"
    else:
        check = f"check-{kind} ./{target}:{made}"
        use = f"--{kind} ./{target}:{made} --tasks shapes --limit 5"
    typer.echo(f"Wrote {target}. Change it, check it, run it:")
    typer.echo(f"  gapbench {check}\n  gapbench run {use}")
