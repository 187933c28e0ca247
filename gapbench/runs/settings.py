"""The settings of a run: one record makes the command's options, a config file's keys and the
keywords of `gapbench.run`."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Protocol, get_type_hints

from typer import Option
from typer.models import ParameterInfo

from gapbench.tasks.content import Difficulty
from gapbench.types import GapbenchError

if TYPE_CHECKING:
    from gapbench.models.base import Model
else:
    Model = object  # `gapbench --help` has no time to import it


class Advance(Protocol):
    """Called with each batch's size once it is stored, from another thread, and with a note to
    show beside the stage, such as its loss."""

    def __call__(self, count: int, note: str = "") -> None: ...


Progress = Callable[[str, int, int], Advance]
"""Told (stage, items that are there already, items in all)."""


def silent(_stage: str, _there: int, _total: int) -> Advance:
    """A Progress that shows nothing."""
    return lambda count, note="": None  # noqa: ARG005


def names(given: str | Sequence[Any]) -> list[Any]:
    """A list, which may be given as text with commas."""
    if not isinstance(given, Sequence):
        raise ValueError(f"must be a list with commas, not {given!r}")
    # The addresses of one server are joined by commas too.
    apart = re.split(",(?!https?://)", given) if isinstance(given, str) else None
    listed = list(given) if apart is None else [name.strip() for name in apart]
    if "" in listed or len(set(listed)) < len(listed):
        raise ValueError(f"must be a list with commas, each item once, not {given!r}")
    return listed


def judge_names(given: str | Sequence[Any]) -> list[Any]:
    """As `names`; `none`, alone, stands for no judge."""
    listed = names(given)
    return [] if listed == ["none"] else listed


def pairs(given: Mapping[str, object] | Sequence[str]) -> dict[str, object]:
    """Keys and values, which may be given as texts KEY=VALUE."""
    if isinstance(given, Mapping):
        return dict(given)
    if not isinstance(given, Sequence):
        raise ValueError(f"must be lines of the form `key: value`, not {given!r}")
    listed = [given] if isinstance(given, str) else [str(each) for each in given]
    split = [[part.strip() for part in text.partition("=")] for text in listed]
    if wrong := [text for text, parts in zip(listed, split, strict=True) if not all(parts)]:
        raise ValueError(f"must be KEY=VALUE, such as guidance=4, not {wrong[0]!r}")
    return {key: value for key, _, value in split}


class Shard(NamedTuple):
    """One of `of` equal parts of a run's prompts, from 1: 3/16."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def shard(given: str | Sequence[Any]) -> Shard:
    """A Shard, which may be given as text."""
    parts = given.split("/") if isinstance(given, str) else list(map(str, given))
    if len(parts) == 2 and all(re.fullmatch(r"[0-9]{1,6}", part) for part in parts):
        made = Shard(*map(int, parts))
        if 1 <= made.number <= made.of:
            return made
    raise ValueError(f"must be K/N with K from 1 to N, such as 3/16, not {given!r}")


def device_name(given: str) -> str:
    """A device as torch names it, or auto."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", given):
        raise ValueError(f"must be auto, cpu, cuda, cuda:1 or mps, not {given!r}")
    return given


def ray_address(given: str) -> str:
    """Where a Ray cluster is."""
    if not re.fullmatch(r"auto|(\[[\da-fA-F:]+\]|[\w.-]+):\d{1,5}", given):
        raise ValueError(f"must be auto or HOST:PORT, such as 10.0.0.1:6379, not {given!r}")
    return given


class SettingError(GapbenchError):
    """A setting that cannot be used: its name, and what is wrong with it ("must be ...")."""

    def __init__(self, name: str, wrong: str) -> None:
        super().__init__(f"{name} {wrong}")
        self.name, self.wrong = name, wrong


def option_of(hint: Any) -> ParameterInfo | None:
    """What a type says about its option, if it has one."""
    said = getattr(hint, "__metadata__", ())
    return next((each for each in said if isinstance(each, ParameterInfo)), None)


def checked(of: Callable[..., object], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the fields or parameters of `of`, as their types. Raises SettingError."""
    from pydantic import TypeAdapter, ValidationError

    hints, result = get_type_hints(of, include_extras=True), dict(values)
    for name, given in values.items():
        if not (info := option_of(hints[name])):
            continue
        try:
            value = given if info.parser is None or given is None else info.parser(given)
            if isinstance(value, bool) and info.min is not None:
                raise ValueError(f"must be a number, not {value}")
            value = result[name] = TypeAdapter(hints[name]).validate_python(value)
            if isinstance(value, int | float):
                if info.min is not None and not value >= info.min:
                    raise ValueError(f"must be at least {info.min:g}, not {value:g}")
                if info.max is not None and not value <= info.max:
                    raise ValueError(f"must be at most {info.max:g}, not {value:g}")
        except ValidationError as error:
            first, *_ = errors = error.errors()
            kinds = dict.fromkeys(_kind(each["type"], each.get("ctx", {})) for each in errors)
            wrong = f"must be {' or '.join(kinds)}, not {first['input']!r}"
            raise SettingError(name, wrong) from error
        except (TypeError, ValueError) as error:
            raise SettingError(name, str(error)) from error
    return result


def _kind(error: str, context: Mapping[str, Any]) -> str:
    """What a value must be, by the type of pydantic's error."""
    kind = error.partition("_")[0]
    kinds = {"int": "a whole number", "float": "a number", "bool": "true or false"}
    return str(context.get("expected") or kinds.get(kind, f"a {kind}"))


# fmt: off
# Options of several commands.
Recipe = Annotated[Mapping[str, object] | None, Option("--set", parser=pairs, metavar="KEY=VALUE", help="Change one sampling parameter of the model, such as guidance=4. Can be repeated.")]
Judges = Annotated[Sequence[str] | None, Option("--judge", parser=judge_names, show_default="set by each task", help="Outside judges, separated by commas: names (vqa, human:labels.csv, ...), or ./my.py:Class; or none. NAME@0.7 sets the score from which a verdict is 1.")]
Device = Annotated[str, Option(parser=device_name, help="Where the model runs: auto, cpu, cuda, cuda:1 or mps.")]
Dtype = Annotated[Literal["auto", "float64", "float32", "bfloat16", "float16"], Option(help="Data type of the model's weights and computation.")]
Limit = Annotated[int | None, Option(min=1, max=1_000_000, show_default="all", help="Use at most this many prompts of each task, spread evenly over its categories.")]
Workers = Annotated[int | Literal["all"], Option(min=1, help="Number of processes, each with its own copy of the model, then of each judge, on the GPUs of this machine or of a Ray cluster; all: as many as there is room for. Does not change results.")]
RayAddress = Annotated[str | None, Option(parser=ray_address, metavar="auto|HOST:PORT", show_default="Ray is started on this machine, for this command", help="The Ray cluster to use: auto (the one that this machine belongs to), or its head's HOST:PORT.")]
InShards = Annotated[Shard | None, Option(parser=shard, metavar="K/N", show_default="all", help="Only the K-th of N equal parts of the prompts, in a run folder of its own, which `gapbench merge` joins with the others. Does not change results.")]
Offline = Annotated[bool, Option("--offline", help="Do not use the network.")]
MODEL = "The model: a name (see `gapbench models`), a checkpoint folder, diffusers:OWNER/NAME, images:FOLDER, server:URL#MODEL, ./my.py:Class, or my_package.module:Class."
TASKS = "What to measure: all, a tier of every task (easy, medium, hard), a task, task/category, task/tier, or a task folder; separate several with commas. What a task lacks is downloaded. all and tiers skip what is not available; a task that is named is an error then."


@dataclass(frozen=True)
class Part:
    """Which part of a run to look at, as `open_run` takes it; all that was ever asked by default."""

    tasks: Annotated[Sequence[str] | None, Option(parser=names, show_default="all", help="Only these of the run's tasks: a tier, a task, task/category or task/tier; separate several with commas.")] = None
    samples: Annotated[int | None, Option(min=1, show_default="all", help="Only the first images of each prompt, this many.")] = None
    own: Annotated[Literal["logits", "text", "questions"] | None, Option(show_default="logits, if the run has them", help="Which of the model's own verdicts.")] = None

    def __post_init__(self) -> None:
        """Check the values. Raises SettingError."""
        vars(self).update(checked(Part, vars(self)))


@dataclass(frozen=True)
class RunSettings:
    """What a run is told. `recipe` and `judges` are `--set` and `--judge` on the command line."""

    model: Annotated[str | Model, Option(metavar="NAME", help=MODEL)] = "janus-mini"
    tasks: Annotated[Sequence[str] | None, Option(parser=names, show_default="shapes for janus-mini and what is trained from it; else geneval,t2i-compbench,science-t2i, skipped like all", help=TASKS)] = None
    _: KW_ONLY
    recipe: Recipe = None
    samples: Annotated[int | None, Option(min=1, max=10_000, show_default="set by each task", help="Images per prompt.")] = None
    limit: Limit = None
    judges: Judges = None
    verdict: Annotated[Literal["logits", "text", "questions", "none"] | None, Option("--verdict", "--own", show_default="logits; text for a model that only writes", help="How the model judges its own images: logits (probabilities of the two answers), text (the text that it writes), questions (its answer to each question of the prompt's list, or of what the prompt requires), or none.")] = None
    reflect: Annotated[int | None, Option(min=1, max=10_000, metavar="K", show_default="never", help="While the model rejects its own image, draw again, up to K times, and keep the best by its own verdict. Reported apart from the other figures.")] = None
    mismatched: Annotated[Difficulty, Option(help="The other prompt of a mismatched pair: far (shares as few content words as possible) or near (differs in as few).")] = "far"
    batch_size: Annotated[int | Literal["auto"], Option(min=1, help="Images per batch; auto increases it while a batch fits into memory and takes under ten seconds. Does not change results.")] = "auto"
    workers: Workers = 1
    engine: Annotated[Literal["local", "ray"] | None, Option(show_default="local; ray with --workers or --ray-address", help="What computes the batches: local (this process) or ray (processes of Ray). Does not change results.")] = None
    ray_address: RayAddress = None
    shard: InShards = None
    pack_images: Annotated[bool, Option("--pack-images", help="Put images, and their tokens and latents, into a few tar files instead of a file each, for file systems that are slow with many files. A run that has begun so goes on so. Does not change results.")] = False
    strict: Annotated[bool, Option("--strict", help="Stop with an error instead of skipping a task.")] = False
    retry_refused: Annotated[bool, Option("--retry-refused", help="Ask again for images that the model refused to draw, and for verdicts that were abstentions.")] = False
    seed: Annotated[int, Option(min=0, help="Seed of the run. Another seed starts a separate run.")] = 0
    device: Device = "auto"
    dtype: Dtype = "auto"
    out: Annotated[str | Path, Option(help="Folder in which run folders are created.")] = "runs"
    only: Collection[str] | None = None
    progress: Progress = silent

    def __post_init__(self) -> None:
        """Check the values. Raises SettingError."""
        vars(self).update(checked(RunSettings, vars(self)))
