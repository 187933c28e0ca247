"""A pipeline's sampling parameters: what its call takes besides the prompts."""

from __future__ import annotations

import inspect
import json
import logging
import math
from collections.abc import Mapping
from contextlib import suppress
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin

from gapbench.models.entry import changed
from gapbench.types import GapbenchError

LOG: Final = logging.getLogger("gapbench")
PLAIN: Final = (bool, int, float, str)
OURS: Final = frozenset({
    "prompt", "prompt_2", "output_type", "return_dict", "num_images_per_prompt",
    "caption_upsample_temperature",
})  # fmt: skip
"""What gapbench gives, or leaves alone: a caption that is sampled would depend on its batch."""
LIMIT: Final = 512
"""Tokens of a prompt where the call has no max_sequence_length: LongCat-Image's, the least."""


def whole_recipe(
    who: str, call: Any, own: Mapping[str, Any], changes: Mapping[str, object]
) -> dict[str, Any]:
    """The defaults of a pipeline's call, with `own` ones and with what --set changes.

    None stays where the pipeline decides; a text may stand in quotation marks. Raises GapbenchError
    for a key that it does not take, or a value of another kind.
    """
    usual: dict[str, Any] = {}
    kinds: dict[str, Any] = {}
    for name, parameter in inspect.signature(call, eval_str=True).parameters.items():
        wanted = [kind for kind in _kinds(parameter.annotation) if kind in PLAIN]
        if name not in OURS and wanted:
            default = own.get(name, parameter.default)
            usual[name] = default
            kinds[name] = wanted[0]() if default is None else default
    usual["block"] = kinds["block"] = 0
    given = {key: _unquoted(value) for key, value in changes.items()}
    said = {key: value for key, value in given.items() if (key, value) not in usual.items()}
    made = usual | {key: changed(who, kinds, said)[key] for key in said}
    for key, value in made.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise GapbenchError(f"recipe: {key} is {value}, must be a number")
    for key, least in (("num_inference_steps", 1), ("height", 1), ("width", 1), ("block", 0)):
        if made.get(key) is not None and made[key] < least:
            raise GapbenchError(
                f"recipe: {key} is {made[key]}, must be a whole number, {least} or more"
            )
    if (made.get("true_cfg_scale") or 0) > 1 and made["negative_prompt"] is None:
        LOG.warning(
            "%s: true_cfg_scale does nothing without a negative prompt, and this pipeline has none "
            "by default; --set 'negative_prompt=\" \"' gives an empty one", who,
        )  # fmt: skip
    return made


def _unquoted(value: object) -> object:
    """A text without the quotation marks around it, which keep --set from taking blanks off."""
    with suppress(ValueError):
        if isinstance(value, str) and value[:1] == '"':
            return json.loads(value)
    return value


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """What a union names, or the one kind."""
    union = get_origin(annotation) in (Union, UnionType)
    return get_args(annotation) if union else (annotation,)
