"""Reflection (`--reflect K`): a prompt is drawn again, up to K times, while the model rejects its
own image, and the image that it gives the highest probability is kept.

Attempt k is sample k of the prompt, so that images which are samples anyway are not drawn twice.
What decides about an attempt are records of the run folder alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gapbench.runs.folder import RunFolder
from gapbench.runs.frame import ByJudge, majority
from gapbench.runs.missing import missing_items
from gapbench.runs.plan import Item, Plan
from gapbench.runs.seeds import seed_of, seeds_of
from gapbench.runs.whole import Whole
from gapbench.tasks.content import cluster
from gapbench.types import Answer, Prompt, Verdict

if TYPE_CHECKING:
    import pandas as pd

    from gapbench.metrics.reflection import Reflection


@dataclass(frozen=True, slots=True)
class Chain:
    """A planned prompt's attempts: its image 0, and `most` more. `asks` says what each judge is
    asked about the image that is kept; `judge` is the first of all the prompt's, if any."""

    prompt: Prompt
    most: int
    asks: Mapping[str, str]
    judge: str


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of a chain. An attempt that the model refused to draw has no image, and one on
    which it abstained is neither accepted nor rejected: the next follows either.

    `verdicts` are the own verdicts on its images, in order; `refused` counts attempts without one.
    `ended` is false while an image or an own verdict is missing: it can still end otherwise.
    """

    chain: Chain
    verdicts: Sequence[Verdict]
    refused: int
    ended: bool

    @property
    def accepted(self) -> bool:
        return bool(self.verdicts) and self.verdicts[-1].verdict == 1

    @property
    def kept(self) -> Verdict:
        """The own verdict on the image that is kept: the one with the highest p_yes (the verdict,
        where a model gives no probability), the earliest of equals; an abstention only where there
        is nothing else."""
        return max(self.verdicts, key=_held)


def chains(plan: Plan) -> list[Chain]:
    """The chains of a plan, or of the commands that it is made of, in the order of its prompts."""
    parts = plan.parts if isinstance(plan, Whole) else [plan]
    known = {(p.task, p.id): (p, a) for p, a in zip(plan.prompts, plan.asks, strict=True)}
    made: dict[tuple[str, str], Chain] = {}
    for part in parts:
        if not part.reflect or part.own != plan.own:
            continue
        for prompt, asks, *_ in part.asked():
            key = prompt.task, prompt.id
            latest, every = known.get(key, (None, {}))
            if latest != prompt or part.tasks[prompt.task] != plan.tasks[prompt.task]:
                continue
            old = made.get(key, Chain(prompt, 0, {}, next(iter(every), "")))
            most = max(old.most, part.reflect)
            made[key] = replace(old, most=most, asks={**old.asks, **asks})
    return [made[key] for key in known if key in made]


def tried(plan: Plan, folder: RunFolder, before: int | None = None) -> list[Tried]:
    """What came of a plan's chains, by the records of their attempts `before` a number. A prompt
    whose first image the model refused has none: there is nothing to better."""
    known = chains(plan)
    if not known:
        return []
    drawn, verdicts, refusals = folder.generations(), folder.verdicts(), folder.refusals()
    made = []
    for chain in known:
        text, said, refused, ended = chain.prompt.text, list[Verdict](), 0, True
        question = plan.own_question(chain.prompt)
        numbers = range(min(chain.most + 1, before or chain.most + 1))
        for number, seed in enumerate(seeds_of(plan.seed, text, numbers)):
            generation = drawn.get((text, seed))
            if generation is None and (text, seed) in refusals:
                refused += 1
                if number:
                    continue
                break
            image = generation.image if generation else ""
            verdict = verdicts.get((image, question, plan.own_fingerprint))
            if verdict is None:
                ended = False
                break
            said.append(verdict)
            if verdict.verdict == 1:
                break
        if said or not ended:
            made.append(Tried(chain, said, refused, ended))
    return made


@dataclass(frozen=True, slots=True)
class Attempt:
    """What chains need at one attempt beyond the plan's samples: `missing` is to be drawn, and then
    the model to be asked about all that is `there`."""

    number: int
    items: Sequence[Item]
    missing: Sequence[Item]
    folder: RunFolder

    def there(self) -> list[tuple[Prompt, str]]:
        drawn = self.folder.generations()
        found = ((item.prompt, drawn.get((item.prompt.text, item.seed))) for item in self.items)
        return [(prompt, generation.image) for prompt, generation in found if generation]

    def __str__(self) -> str:
        return f"attempt {self.number + 1}"


def attempts(plan: Plan, folder: RunFolder, retry: bool) -> Iterator[Attempt]:
    """The attempts that a plan's chains need, each once what the one before needed was tried. With
    `retry`, refused ones are missing too."""
    for number in range(1, (plan.reflect or 0) + 1):
        items = [
            Item(chain.prompt, number, seed, chain.asks, None, {}, own=True)
            for each in tried(plan, folder, number)
            for chain in [each.chain]
            for seed in [seed_of(plan.seed, chain.prompt.text, number)]
            if each.ended and not each.accepted and number >= plan.samples[chain.prompt.task]
        ]
        refused = {} if retry else folder.refusals()
        if items:
            missing = missing_items(items, folder.generations(), refused)
            yield Attempt(number, items, missing, folder)


def kept_images(plan: Plan, folder: RunFolder, judge: str) -> list[tuple[Prompt, str]]:
    """The images that were kept, with their prompts, of the prompts that a judge is asked about."""
    return [
        (each.chain.prompt, each.kept.image)
        for each in tried(plan, folder)
        if each.ended and judge in each.chain.asks
    ]


def figures(plan: Plan, folder: RunFolder, judge: ByJudge) -> Reflection | None:
    """What a plan's chains come to, as `Run.reflection` gives it."""
    from gapbench.metrics.reflection import reflection

    rows = frame(plan, folder, judge)
    return reflection(rows) if len(rows) else None


def frame(plan: Plan, folder: RunFolder, judge: ByJudge) -> pd.DataFrame:
    """A row for each chain that was not left off midway, with the columns of
    `gapbench.metrics.reflection.reflection`."""
    import pandas as pd

    verdicts = folder.verdicts()
    named = (judge,) if isinstance(judge, str) else judge
    rows = []
    for each in tried(plan, folder):
        prompt, asks = each.chain.prompt, each.chain.asks
        names = [name for name in named or [each.chain.judge] if name in asks]
        if not each.ended or (named and not names):
            continue
        first, kept = (
            majority(verdicts.get((image, asks[name], plan.judges[name])) for name in names)
            for image in (each.verdicts[0].image, each.kept.image)
        )
        rows.append(
            {
                "task": prompt.task,
                "category": prompt.category,
                "tier": prompt.tier,
                "prompt": prompt.id,
                "cluster": cluster(prompt),
                "most": each.chain.most,
                "images": len(each.verdicts),
                "abstained": sum(v.verdict is None for v in each.verdicts),
                "refused": each.refused,
                "accepted": float(each.accepted),
                "first": _right(first),
                "kept": _right(kept),
            }
        )
    return pd.DataFrame(rows)


def _held(verdict: Verdict) -> float:
    if verdict.verdict is None:
        return -1.0
    return float(verdict.verdict) if verdict.p_yes is None else verdict.p_yes


def _right(answer: Answer | None) -> float:
    return float("nan") if answer is None or answer.verdict is None else float(answer.verdict)
