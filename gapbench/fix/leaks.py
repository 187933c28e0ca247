"""Which training prompts are, or nearly are, prompts that models are tested on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from gapbench.tasks.content import cluster, words
from gapbench.tasks.task import Task, select, task_folders
from gapbench.types import GapbenchError, Prompt, counted

NEAR: Final = 0.8
"""Share of words in common (of all words of both) from which a prompt counts as a near copy."""


@dataclass(frozen=True, slots=True)
class Leaks:
    """What training and test prompts have in common: the test splits that are trained on, how many
    training prompts were left out as copies of a test prompt (but for punctuation and case, or for
    the order of words), how many near copies stayed, and how many that stayed have the requirement
    of a test prompt of their category in other words."""

    test_splits: list[str] = field(default_factory=list)
    same: int = 0
    reordered: int = 0
    near: int = 0
    reworded: int = 0

    def words(self) -> list[str]:
        """In lines to print; none where there is nothing to say."""
        lines = []
        if self.test_splits:
            lines.append(
                f"WARNING: trains on test prompts ({', '.join(self.test_splits)}): its figures on "
                "them say nothing"
            )
        if self.same or self.reordered:
            lines.append(
                f"Left out as copies of test prompts: {counted(self.same, 'prompt')} equal but for "
                f"punctuation or case, {self.reordered} with the same words in another order"
            )
        if self.near:
            lines.append(
                f"Kept, although {100 * NEAR:.0f} % or more of the words are a test prompt's: "
                f"{counted(self.near, 'prompt')}"
            )
        if self.reworded:
            lines.append(
                "Kept, although a test prompt of the category has the same requirement: "
                f"{counted(self.reworded, 'prompt')}"
            )
        return lines


def find(prompts: Sequence[str], despite: bool) -> tuple[Leaks, set[str] | None]:
    """What `--prompts` leaks, and the texts to train on, None for all of them.

    `despite` trains on test splits and copies too. Raises GapbenchError for a test split without
    it. A task folder that names no splits holds whatever its owner made it for.
    """
    tests, texts = [], set[str]()
    same = reordered = near = reworded = 0
    for task, chosen in select(prompts):
        if _is_test(task):
            if not despite:
                instead = f"train on {task.name}:train, or " * ("train" in task.splits())
                raise GapbenchError(
                    f"--prompts {task.name}: these {counted(len(chosen), 'prompt')} are for "
                    f"testing; {instead}add --despite-leak to train on them all the same"
                )
            tests.append(task.name)
        elif task.split != "test" and "test" in task.splits() and not despite:
            tested = task.prompts("test")
            known = [words(prompt.text) for prompt in tested]
            contents = {(p.category, cluster(p)) for p in tested if p.requirement}
            copies = _copies(chosen, known)
            same += sum(kind == "same" for kind in copies.values())
            reordered += sum(kind == "reordered" for kind in copies.values())
            chosen = [prompt for prompt in chosen if prompt.text not in copies]
            near += _near(chosen, known)
            reworded += sum((p.category, cluster(p)) in contents for p in chosen)
        texts.update(prompt.text for prompt in chosen)
    return Leaks(tests, same, reordered, near, reworded), texts if same or reordered else None


def _is_test(task: Task) -> bool:
    if task.spec.seeded:
        return True
    names_splits = bool(task.spec.splits or task.spec.downloads)
    return task.split == "test" and (names_splits or task.folder in task_folders().values())


def _copies(prompts: Iterable[Prompt], known: Sequence[list[str]]) -> dict[str, str]:
    """The texts that have the words of a test prompt, in its order ("same") or in another."""
    ordered = {tuple(each) for each in known}
    sorted_ones = {tuple(sorted(each)) for each in known}
    copies = {}
    for prompt in prompts:
        mine = words(prompt.text)
        if tuple(sorted(mine)) in sorted_ones:
            copies[prompt.text] = "same" if tuple(mine) in ordered else "reordered"
    return copies


def _near(prompts: Iterable[Prompt], known: Sequence[list[str]]) -> int:
    """How many prompts share most of their words with a test prompt."""
    sets = list({frozenset(each) for each in known})
    count = 0
    for prompt in prompts:
        mine = frozenset(words(prompt.text))
        count += any(len(mine & other) >= NEAR * len(mine | other) for other in sets)
    return count
