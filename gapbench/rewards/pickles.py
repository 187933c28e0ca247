"""Plain values out of pickled data, which is never unpickled.

Trainers of flow_grpo's kind send their requests pickled, and unpickling runs whatever a sender
likes. Here the opcodes are read one by one (`pickletools.genops`), and only those count that make
dicts, lists, texts, bytes and numbers.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, Final, cast

from gapbench.types import GapbenchError

_VALUES: Final = frozenset(
    ["BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "FLOAT",
     "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"]
)  # fmt: skip
_MADE: Final[dict[str, Callable[[], Any]]] = {
    "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_DICT": dict, "EMPTY_LIST": list,
}  # fmt: skip
_PUT: Final = frozenset(["BINPUT", "LONG_BINPUT", "PUT"])
_GET: Final = frozenset(["BINGET", "LONG_BINGET", "GET"])
_PASSED: Final = frozenset(["PROTO", "FRAME"])
_MOST: Final = 200_000
"""Values that what was read may have, those that stand in several places counted in each."""
_DEEPEST: Final = 32
_MARK: Final = object()


def plain(data: bytes) -> Any:
    """The value that was pickled: dict, list, str, bytes, float and int (bool is one) alone.

    Raises GapbenchError for anything else, and for data that is no pickle or is made to grow.
    """
    stack, memo = list[Any](), dict[int, Any]()
    try:
        for opcode, given, _ in pickletools.genops(data):
            name, argument = opcode.name, cast("Any", given)
            if name == "STOP":
                [made] = stack
                _check(made, 0, [_MOST])
                return made
            if name in _PASSED:
                continue
            if name in _VALUES:
                stack.append(argument)
            elif name in _MADE:
                stack.append(_MADE[name]())
            elif name == "MARK":
                stack.append(_MARK)
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in _PUT:
                memo[int(argument)] = stack[-1]
            elif name in _GET:
                stack.append(memo[int(argument)])
            elif name in ("APPEND", "SETITEM"):
                _fill(stack, 1 if name == "APPEND" else 2)
            elif name in ("APPENDS", "SETITEMS"):
                _fill(stack, _above(stack))
            else:
                raise GapbenchError(
                    f"the pickle holds {name}, and only dict, list, str, bytes, float and int are "
                    "taken; send plain values (a NumPy value by .tolist()), or JSON"
                )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
        raise GapbenchError(f"the body is no pickle of plain values ({error})") from error
    raise GapbenchError("the body is no pickle: it has no end")


def _above(stack: list[Any]) -> int:
    """How many values lie above the last mark, which is taken away."""
    marks = (n for n in range(len(stack) - 1, -1, -1) if stack[n] is _MARK)
    if (place := next(marks, None)) is None:
        raise ValueError("a mark is missing")
    del stack[place]
    return len(stack) - place


def _fill(stack: list[Any], count: int) -> None:
    """Move the last values into the list or dict that lies below them."""
    place = len(stack) - count
    values, into = stack[place:], stack[place - 1]
    del stack[place:]
    if any(value is _MARK for value in values):
        raise ValueError("a mark is no value")
    if isinstance(into, list):
        into.extend(values)
    else:
        into.update(zip(values[::2], values[1::2], strict=True))


def _check(value: Any, depth: int, left: list[int]) -> None:
    """Raises ValueError for too many values, too deep ones, and keys that are no text."""
    left[0] -= 1
    if left[0] < 0 or depth > _DEEPEST:
        raise ValueError("it holds too many values, or too deep ones")
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("a key is no text")
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            _check(each, depth + 1, left)
    elif value is _MARK:
        raise ValueError("a mark is no value")
