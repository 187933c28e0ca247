"""Reference images in a run: their files in its folder, and what is asked about them.

With own verdicts by questions, the model and the judges that answer a prompt's questions are asked
them about two images that it did not draw: the prompt's own reference, where most right answers are
there, and that of the prompt's mismatched partner, where many are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from gapbench.judges.lists import asked
from gapbench.judges.parts import questions
from gapbench.models.base import Drawing
from gapbench.runs.chosen import opened
from gapbench.runs.folder import RunFolder
from gapbench.runs.plan import Item, Plan
from gapbench.tasks.references import Reference
from gapbench.types import Prompt

Asked = tuple[Prompt, str]
"""A prompt whose questions are asked, and the sha256 of the image that they are about."""
Key = tuple[str, str, str]
"""The image, the question and the judge's fingerprint of a verdict."""
_BATCH: Final = 64
"""Images that are in memory at a time."""


def keep(folder: RunFolder, items: Iterable[Item], references: Mapping[str, Reference]) -> None:
    """Store the reference images of planned items, those that a locked folder has not."""
    lacking = folder.lacking([sha256 for item in items for _, sha256 in of_item(item)])
    for start in range(0, len(lacking), _BATCH):
        some = lacking[start : start + _BATCH]
        folder.add([Drawing(opened(references[sha256])) for sha256 in some])


def held(folder: RunFolder, items: Sequence[Item]) -> list[Item]:
    """Items with those of their reference images that a run folder has."""
    lacking = set(folder.lacking(sha256 for item in items for _, sha256 in of_item(item)))

    def there(sha256: str) -> str:
        return "" if sha256 in lacking else sha256

    return [
        item._replace(reference=there(item.reference), other_reference=there(item.other_reference))
        for item in items
    ]


def of_item(item: Item) -> list[Asked]:
    """What is asked about the reference images of an item, which has none but of a first sample."""
    images = (item.reference, item.other_reference)
    return [(item.prompt, sha256) for sha256 in images if sha256]


def for_model(items: Iterable[Item]) -> list[Asked]:
    """What the model is asked about reference images."""
    return [each for item in items if item.own for each in of_item(item)]


def for_judge(items: Iterable[Item], judge: str) -> tuple[list[Asked], list[Asked]]:
    """What an outside judge is asked about reference images: as its own list of questions, and by
    parts of the requirement. Others cannot answer."""
    of_list, by_parts = list[Asked](), list[Asked]()
    for item in items:
        if not (pairs := of_item(item)):
            continue
        if judge in item.answers:
            by_parts += pairs
        elif item.asks.get(judge) == asked(questions(item.prompt)):
            of_list += pairs
    return of_list, by_parts


def wanted_of(plan: Plan, items: Iterable[Item]) -> dict[str, set[Key]]:
    """The verdicts about reference images that are planned, by stage."""
    items = [item for item in items if item.reference]
    pairs = [("own verdicts", for_model(items), plan.own_fingerprint)]
    for judge, fingerprint in plan.judges.items():
        listed, parted = for_judge(items, judge)
        pairs.append((f"verdicts of {judge}", listed, fingerprint))
        pairs.append((f"answers of {judge}", parted, fingerprint))
    return {
        stage: {(image, asked(questions(prompt)), fingerprint) for prompt, image in about}
        for stage, about, fingerprint in pairs
        if about
    }
