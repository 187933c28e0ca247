"""What a check consists of: rules, each tried, and what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from gapbench.adapters import place
from gapbench.files import blamed
from gapbench.types import Crash, GapbenchError

TOLERANCE: Final = {"float64": 1e-9, "float32": 1e-3}
"""Of numbers for other company in a batch, log-probabilities in nats; other dtypes get 0.1."""


@dataclass(frozen=True, slots=True)
class Rule:
    """`attempt` raises Broken, Skip or what the adapter raises; `about` is the class or the method
    that the rule is about."""

    words: str
    attempt: Callable[[], None]
    about: Any


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule: `failure` says how it was broken, `skipped` why it was not tried."""

    rule: str
    failure: str | None = None
    skipped: str | None = None


class Broken(Exception):  # noqa: N818 (a finding, not an error)
    """How a rule was broken."""


class Skip(Exception):  # noqa: N818 (no error either)
    """Why a rule could not be tried."""


def expect(holds: bool, otherwise: str) -> None:
    """Raises Broken where something does not hold."""
    if not holds:
        raise Broken(otherwise)


def expect_rows(
    method: str, gave: Any, asked: int, rows: str, check: Callable[[Any], None]
) -> None:
    """Raises Broken where a method did not give a list of as many rows as were asked for, each as
    `check` takes it: check_drawing or check_answer."""
    expect(isinstance(gave, list | tuple), f"{method} gave a {type(gave).__name__}, not a list")
    expect(len(gave) == asked, f"it was asked for {asked} and gave {len(gave)} {rows}")
    for row in gave:
        try:
            check(row)
        except ValueError as error:
            raise Broken(f"{method} gave {error}") from error


def findings(rules: Iterable[Rule]) -> Iterator[Finding]:
    """Try every rule; a broken one does not end the check. A failure has its file and line; one
    that an earlier rule had already counts as not tried."""
    known: dict[str, str] = {}
    for rule in rules:
        try:
            rule.attempt()
        except Skip as skip:
            yield Finding(rule.words, skipped=str(skip))
            continue
        except KeyboardInterrupt:
            raise
        except (Broken, GapbenchError, Crash) as error:
            key = str(error)
            failure = f"{key}{place(rule.about)}"
        except BaseException as error:  # an adapter may raise anything
            failure = f"it raised {blamed(error)}"
            key = failure[failure.rfind("(") :]  # one place may say something else of each prompt
        else:
            yield Finding(rule.words)
            continue
        if key in known:
            yield Finding(rule.words, skipped=f"it fails as {known[key]!r} does")
        else:
            known[key] = rule.words
            yield Finding(rule.words, failure=failure)


def unseeded(call: Callable[[], Any]) -> bool:
    """Whether two calls give the same from different global random states."""
    import torch

    gave = []
    for state in (1, 2):
        torch.manual_seed(state)
        np.random.seed(state)
        gave.append(call())
    return bool(gave[0] == gave[1])
