"""Batches through a model or a judge: what comes back is checked here, row by row."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

import numpy as np
from PIL import Image

from gapbench.engines.local import out_of_memory
from gapbench.files import blamed
from gapbench.models.base import Drawing
from gapbench.models.image_folder import MAX_PIXELS
from gapbench.types import Answer, Failure, GapbenchError, Unfinished

S = TypeVar("S")
T = TypeVar("T")
HOPELESS: Final = 8
"""So many rows that fail one after another end a stage: the cause is not theirs."""
LOG: Final = logging.getLogger("gapbench")


@dataclass(slots=True)
class Rows(Generic[T]):
    """What a batch gave, by place in it, why other rows failed, and what stopped it, if anything
    did."""

    done: dict[int, T] = field(default_factory=dict)
    failed: dict[int, Failure] = field(default_factory=dict)
    stop: GapbenchError | None = None


def tried(
    who: str,
    call: Callable[[Sequence[S]], Sequence[T]],
    batch: Sequence[S],
    check: Callable[[T], None],
) -> Rows[T]:
    """What `call` gives for a batch, each row as `check` takes it.

    A row that `check` raises ValueError for has failed. Where `call` raises, each row is tried
    alone, so that one that crashes costs only itself. Raises GapbenchError where there are not as
    many rows as were asked for: it is not known then whose they are.
    """
    rows: Rows[T] = Rows()
    try:
        gave = call(batch)
    except Unfinished as error:
        rows.done, rows.failed = dict(error.done), dict(error.failed)
        rows.stop = error if len(rows.done) + len(rows.failed) < len(batch) else None
    except (Exception, SystemExit) as error:
        if isinstance(error, Exception) and out_of_memory(error):
            raise
        if len(batch) > 1:
            return _alone(who, call, batch, check)
        LOG.debug("%s failed", who, exc_info=error)
        rows.failed[0] = Failure(blamed(error))
    else:
        if not hasattr(gave, "__len__") or len(gave) != len(batch):
            count = len(gave) if hasattr(gave, "__len__") else f"a {type(gave).__name__}, not"
            raise GapbenchError(f"{who} gave {count} rows for {len(batch)}; one is needed for each")
        rows.done = dict(enumerate(gave))
    for place, row in list(rows.done.items()):
        try:
            check(row)
        except ValueError as error:
            del rows.done[place]
            rows.failed[place] = Failure(f"{who} gave {error}")
    return rows


def _alone(
    who: str,
    call: Callable[[Sequence[S]], Sequence[T]],
    batch: Sequence[S],
    check: Callable[[T], None],
) -> Rows[T]:
    rows: Rows[T] = Rows()
    for place, row in enumerate(batch):
        one = tried(who, call, [row], check)
        rows.done.update((place, done) for done in one.done.values())
        rows.failed.update((place, failed) for failed in one.failed.values())
        rows.stop = one.stop
        if rows.stop or (not rows.done and len(rows.failed) == HOPELESS):
            break
    return rows


def check_drawing(row: Drawing) -> None:
    """Raises ValueError for what is no Drawing of an RGB image that can be read back."""
    if not isinstance(row, Drawing):
        raise ValueError(f"a {type(row).__name__}, not a Drawing")
    image, tokens, logprob = row.image, row.tokens, row.logprob
    if not isinstance(image, Image.Image):
        raise ValueError(f"an image that is a {type(image).__name__}, no PIL image")
    if image.mode != "RGB":
        raise ValueError(f"an image of mode {image.mode}, not RGB")
    if not 0 < image.width * image.height <= MAX_PIXELS:
        raise ValueError(f"an image of {image.width} x {image.height} pixels")
    if tokens is not None and not (
        isinstance(tokens, np.ndarray) and tokens.ndim == 1 and tokens.dtype == np.int32
    ):
        raise ValueError("tokens that are no (T,) int32 array")
    if not isinstance(row.effective_prompt, str | None):
        raise ValueError(f"an effective_prompt that is a {type(row.effective_prompt).__name__}")
    if logprob is not None and not (_is_number(logprob) and logprob <= 1e-6):
        raise ValueError(f"an image's log-probability of {logprob!r}")


def check_answer(row: Answer) -> None:
    """Raises ValueError for what is no Answer with numbers in their ranges."""
    if not isinstance(row, Answer):
        raise ValueError(f"a {type(row).__name__}, not an Answer")
    if row.verdict is not None and (type(row.verdict) is not int or row.verdict not in (0, 1)):
        raise ValueError(f"the verdict {row.verdict!r}, not 1, 0 or None")
    for name in ("p_yes", "mass", "score"):
        number = getattr(row, name)
        most = math.inf if name == "score" else 1 + 1e-6
        least = -math.inf if name == "score" else 0
        if number is not None and not (_is_number(number) and least <= number <= most):
            raise ValueError(f"a {name} of {number!r}")
    for name in ("text", "reason"):
        if not isinstance(getattr(row, name), str | None):
            raise ValueError(f"a {name} that is a {type(getattr(row, name)).__name__}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
