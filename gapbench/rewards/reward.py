"""A judge as a reward: a callable for trainers, TRL's among them."""

from __future__ import annotations

import base64
import binascii
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image

from gapbench.engines.rows import out_of_memory, tried
from gapbench.judges import load_judge
from gapbench.judges.base import Judge, check_answer
from gapbench.judges.own import OwnJudge, needed, usual_mode
from gapbench.models import as_model
from gapbench.models.base import Model, require
from gapbench.models.image_folder import decode, shown
from gapbench.runs.needs import bring_judge, obtain
from gapbench.tasks.task import load_task, task_folders
from gapbench.types import Answer, Failure, GapbenchError, Prompt

OWN: Final = "own:"
"""Before a model's name: the model is asked the verdict question."""
Draw = Callable[..., Sequence[Any]]
LOG: Final = logging.getLogger("gapbench")


class Reward:
    """What a judge says of images of a task's prompts, as a reward: `reward(prompts, images)`, also
    as TRL calls it.

    A reward is the judge's score, else its probability of yes, else its verdict, 1 or 0. None is
    what it could not judge: it is never 0.

    `judge` is one as `--judge` takes it, or made; a model, or own:NAME with a name as `--model`
    takes it, gives its own verdicts. `task` is one as `--tasks` takes it. `draw` makes the images
    of a trainer whose completions are tokens: it is called with all that the trainer gives (of
    TRL: prompts, completions, completion_ids, the data set's columns), as keywords. What judge and
    task lack is fetched; weights come in at first use. Raises GapbenchError where they cannot be
    had.
    """

    def __init__(
        self, judge: str | Judge | Model, task: str, device: str = "auto", draw: Draw | None = None
    ) -> None:
        self.judge, self.task, self.draw = _judge(judge, device), load_task(task), draw
        obtain(self.task, [], True, lambda _name: lambda _count: None)
        bring_judge(self.judge)
        self._known = {prompt.text: prompt for prompt in self.task.prompts()}
        ours = self.task.folder in task_folders().values()
        self._test = ours and self.task.split == "test"
        self.__name__ = f"gapbench_{self.judge.name}"  # trainers log it

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """A reward for each completion.

        A prompt is a text, or messages, of which the last text counts. A completion is an image:
        Pillow's, the bytes of a file, base64, or messages with one. Of the other columns
        `requirement` counts: what a judge checks, an object or its JSON, where a prompt is none of
        the task's. Raises GapbenchError for what is no image, a prompt that the judge cannot judge,
        and where it fails for all.
        """
        if self.draw is not None:
            completions = self.draw(prompts=prompts, completions=completions, **columns)
        given = columns.get("requirement") or [None] * len(prompts)
        if not len(prompts) == len(completions) == len(given):
            raise GapbenchError(
                f"{len(prompts)} prompts, {len(completions)} completions and {len(given)} "
                "requirements: they must be as many"
            )
        asked = [self.prompt(text_of(p), r) for p, r in zip(prompts, given, strict=True)]
        images = [image_of(c, f"completion {number}") for number, c in enumerate(completions)]
        said = self.answers(images, asked)
        failed = [each.reason for each in said if isinstance(each, Failure)]
        if failed and len(failed) == len(said):
            raise GapbenchError(f"judge {self.judge.name} failed for all images: {failed[0]}")
        if failed:
            LOG.warning("WARNING: %d of %d rewards missing: %s", len(failed), len(said), failed[0])
        return [value(each) for each in said]

    def prompt(self, text: str, requirement: Any = None) -> Prompt:
        """The task's prompt with this text, or one made of the text. Raises GapbenchError where the
        judge cannot judge it."""
        known = self._known.get(text)
        if known and self._test:
            self._test = False  # it is said once
            LOG.warning(
                "WARNING: %r is a test prompt of %s: the figures of a model that is trained on it "
                "say nothing",
                text, self.task.name,
            )  # fmt: skip
        if known is None or requirement is not None:
            category, tier = next(iter(self.task.tier_of.items()))
            known = Prompt(
                id=text, task=self.task.name, category=category, tier=tier, text=text,
                question=self.task.spec.question.replace("{prompt}", text),
                requirement=_object(requirement),
            )  # fmt: skip
        self.judge.question(known)
        return known

    def answers(
        self, images: Sequence[Image.Image], prompts: Sequence[Prompt]
    ) -> list[Answer | Failure]:
        """What the judge says of each image, or why it failed there."""
        said: list[Answer | Failure] = []
        pairs, size = [*zip(images, prompts, strict=True)], self.judge.batches.most

        def ask(batch: Sequence[tuple[Image.Image, Prompt]]) -> Sequence[Answer]:
            return self.judge.judge([image for image, _ in batch], [asked for _, asked in batch])

        while len(said) < len(pairs):
            batch = pairs[len(said) : len(said) + size]
            try:
                rows = tried(f"judge {self.judge.name}", ask, batch, check_answer)
            except (MemoryError, RuntimeError) as error:
                if len(batch) == 1 or not out_of_memory(error):
                    raise
                size = len(batch) // 2
                continue
            if rows.stop is not None:
                raise rows.stop
            lost = len(batch) - len(rows.done) - len(rows.failed)
            if lost:  # after so many failures the others were not tried
                raise GapbenchError(next(iter(rows.failed.values())).reason)
            both = rows.done | rows.failed
            said += [both[place] for place in range(len(batch))]
        return said


reward = Reward
"""The public name, `gapbench.reward`."""


def value(said: Answer | Failure) -> float | None:
    """The reward that an answer is, None where it is none."""
    if isinstance(said, Failure):
        return None
    if said.score is not None:
        return float(said.score)
    if said.verdict is None:
        return None
    return float(said.verdict if said.p_yes is None else said.p_yes)


def text_of(prompt: Any) -> str:
    """A prompt's text, or the last one of messages. Raises GapbenchError where there is none."""
    if isinstance(prompt, str):
        return prompt
    for content in _contents(prompt):
        parts = content if isinstance(content, list) else [{"text": content}]
        texts = [p["text"] for p in parts if isinstance(p, Mapping) and p.get("text")]
        if texts and isinstance(texts[-1], str):
            return texts[-1]
    raise GapbenchError(f"a prompt is a text or messages with one, not {prompt!r:.60}")


def image_of(given: Any, what: str) -> Image.Image:
    """An image in one of the forms that `Reward` takes, RGB. Raises GapbenchError, naming it."""
    if isinstance(given, Image.Image):
        return shown(given)
    if isinstance(given, str):
        try:
            given = base64.b64decode(given.partition("base64,")[2] or given, validate=True)
        except (ValueError, binascii.Error) as error:
            raise GapbenchError(
                f"{what} is a text that is no base64 of an image; give images, which your trainer "
                "decodes"
            ) from error
    if isinstance(given, bytes):
        return decode(Path(what), given)
    for content in _contents(given):
        for part in content if isinstance(content, list) else ():
            if isinstance(part, Mapping) and str(part.get("type")).startswith("image"):
                inner = part.get(part["type"])
                return image_of(inner.get("url") if isinstance(inner, Mapping) else inner, what)
    raise GapbenchError(f"{what} is no image, but a {type(given).__name__}")


def _contents(messages: Any) -> list[Any]:
    """What messages say, the last first."""
    if not isinstance(messages, list | tuple):
        return []
    return [m["content"] for m in reversed(messages) if isinstance(m, Mapping) and "content" in m]


def _object(requirement: Any) -> dict[str, Any]:
    if requirement is None:
        return {}
    try:
        made = json.loads(requirement) if isinstance(requirement, str) else requirement
        if isinstance(made, Mapping):
            json.dumps(made := dict(made))
            return made
    except (ValueError, TypeError, RecursionError):
        pass
    raise GapbenchError(f"a requirement is an object or its JSON, not {requirement!r:.60}")


def _judge(judge: str | Judge | Model, device: str) -> Judge:
    if isinstance(judge, str) and judge.startswith(OWN):
        judge = as_model(judge.removeprefix(OWN), device)
    if isinstance(judge, str):
        return load_judge(judge, device)
    if isinstance(judge, Judge):
        return judge
    model = as_model(judge)
    mode = usual_mode(model)
    require(model, [needed(model, mode)], "its own verdicts are a reward only where it gives some")
    return OwnJudge(model, mode)
