"""The figures by skill of a submission's answers to questions, from its rows alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gapbench.judges.lists import ENOUGH, answers_in
from gapbench.types import GapbenchError

if TYPE_CHECKING:
    import pandas as pd

    from gapbench.metrics.questions import Questions, Skill


def by_skill(rows: pd.DataFrame, answers: pd.DataFrame) -> dict[str, Questions]:
    """Each task that has answers of the model and of its judge, with its figures. `rows` are those
    of verdicts.parquet, `answers` those of questions.parquet. Raises GapbenchError as `answered`
    does."""
    from gapbench.metrics.questions import figures

    made = {}
    for task in dict.fromkeys(answers["task"]):
        images, mine = rows[rows["task"] == task], answers[answers["task"] == task]
        masses = [*mine.loc[mine["role"] == "own", "mass"].dropna()]
        if found := figures(answered(images, mine), images, None, masses):
            made[task] = found
    return made


def answered(rows: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """A row for each question about each image, as `gapbench.metrics.questions.figures` takes it.

    Raises GapbenchError for answers about an image that is not among the rows, and for those that
    are not as many as their questions.
    """
    import pandas as pd

    key = ["task", "prompt", "sample"]
    images = rows.loc[rows["role"] == "own", [*key, "category", "cluster"]]
    about = {(t, p, s): (c, u) for t, p, s, c, u in images.itertuples(index=False, name=None)}
    said: dict[tuple[Any, ...], dict[str, float]] = {}
    columns = answers[[*key, "role", "skills", "text"]].fillna({"text": ""})
    for task, prompt, sample, role, skills, text in columns.itertuples(index=False, name=None):
        where = f"questions.parquet: task {task}, prompt {prompt}, sample {sample}"
        if (task, prompt, sample) not in about:
            raise GapbenchError(f"{where} has no verdict of its own")
        names = skills_in(skills)
        kept = answers_in(text) or [None] * len(names)
        if not names or len(kept) != len(names):
            raise GapbenchError(f"{where}: {len(kept)} answers about {len(names)} skills")
        for place, (name, chance) in enumerate(zip(names, kept, strict=True)):
            right = float("nan") if chance is None else float(chance >= ENOUGH)
            said.setdefault((task, prompt, sample, place, name), {})[role] = right
    return pd.DataFrame(
        {
            "task": task,
            "prompt": prompt,
            "sample": sample,
            "category": about[task, prompt, sample][0],
            "cluster": about[task, prompt, sample][1],
            "skill": name,
            **{role: each.get(role, float("nan")) for role in ("own", "outside")},
            **{f"{role}_asked": role in each for role in ("own", "outside")},
        }
        for (task, prompt, sample, _, name), each in said.items()
    )


def skills_in(text: str) -> list[str]:
    """What the questions of a row ask about; empty where the text is no list of texts."""
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return names if isinstance(names, list) and all(isinstance(n, str) for n in names) else []


def record(skills: Mapping[str, Questions]) -> dict[str, Any]:
    """questions.json: a task's figures, {value, low, high} where there is an interval."""
    return {
        task: {
            "mass": made.mass,
            "overall": _plain(made.overall),
            "skills": {skill.name: _plain(skill) for skill in made.skills},
        }
        for task, made in skills.items()
    }


def _plain(skill: Skill) -> dict[str, Any]:
    seen = skill.agrees
    shares = {"draws": skill.draws, "sees_less_draws": skill.more, "both_right": skill.both}
    return {
        "questions": skill.questions,
        "prompts": skill.prompts,
        "abstained": skill.abstained,
        **{n: None if share is None else share._asdict() for n, share in shares.items()},
        "sees": {"value": seen.raw, "low": seen.raw_low, "high": seen.raw_high},
        "kappa": {"value": seen.kappa, "low": seen.kappa_low, "high": seen.kappa_high},
        "finding": skill.finding,
    }
