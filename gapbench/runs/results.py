"""results.json: a run's figures for other programs, laid out as lm-eval lays out its results."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from gapbench.types import Rates

if TYPE_CHECKING:
    from gapbench.metrics.questions import Scored
    from gapbench.runs.run import Run

_PLACE: Final = ("level", "name", "metric", "value")


def results(run: Run) -> dict[str, Any]:
    """What results.json holds of a run (docs/results.md)."""
    meta, plan, stages = run.folder.meta, run.plan, run.stages()
    about, versions = meta.get("model_about", {}), meta.get("versions", {})
    drawn, items = run.folder.generations(), run.items
    places: dict[str, dict[str, dict[str, Any]]] = {"results": {}, "groups": {}}
    for judge in run.judges() or ["none"]:
        for rate in run.rates(None if judge == "none" else judge):
            group = rate.level in ("tier", "overall")
            place = places["groups" if group else "results"].setdefault(rate.name, {})
            place |= _keys(rate, judge)
    from gapbench.metrics.questions import record as record_of
    from gapbench.metrics.reflection import record as record_of_trials
    from gapbench.metrics.verification import record
    from gapbench.runs.questions import of_run, scores

    judges = run.judges()
    asked = {judge: found for judge in judges if (found := of_run(run, judge))}
    tried = {judge: run.reflection(judge) for judge in judges} or {"none": run.reflection()}
    worth = {judge: made for judge in judges if (made := run.verification(judge))}
    return {
        **places,
        "verification": {judge: record(made) for judge, made in worth.items()},
        "questions": {judge: record_of(found) for judge, found in asked.items()},
        "reflection": {judge: record_of_trials(made) for judge, made in tried.items() if made},
        "skills": {judge: _skills(told) for judge in judges if (told := scores(run, judge))},
        "versions": plan.tasks,
        "n-samples": {
            task: {
                "original": sum(item.prompt.task == task for item in items),
                "effective": sum(
                    (item.prompt.text, item.seed) in drawn
                    for item in items
                    if item.prompt.task == task
                ),
            }
            for task in plan.tasks
        },
        "config": {
            "model": meta["model"],
            "fingerprint": meta["identity"].get("model"),
            "recipe": meta["identity"].get("recipe"),
            "changed": about.get("changed", {}),
            "seed": plan.seed,
            "dtype": about.get("dtype"),
            "device": about.get("device"),
            "verdict": run.mode,
            "mismatched": plan.mismatched,
            "judges": plan.judges,
        },
        "finished": not run.unfinished,
        "missing": {
            s: planned - there for s, (there, planned) in stages.items() if planned > there
        },
        "date": meta.get("started"),
        **{f"{package}_version": version for package, version in versions.items()},
    }


def _skills(found: list[Scored]) -> dict[str, dict[str, dict[str, Any]]]:
    """Task -> skill -> its mean probability of the right answer."""
    tasks: dict[str, dict[str, dict[str, Any]]] = {}
    for each in found:
        counts = {"questions": each.questions, "prompts": each.prompts}
        tasks.setdefault(each.task, {})[each.skill] = each.score._asdict() | counts
    return tasks


def _keys(rate: Rates, judge: str) -> dict[str, Any]:
    """A figure under lm-eval's keys: "metric,judge" where lm-eval has "metric,filter"."""
    name = rate.metric + f"_{rate.level}" * (rate.level in ("official", "paper"))
    more = {k: v for k, v in asdict(rate).items() if k not in _PLACE}
    return {f"{name},{judge}": rate.value} | {f"{name}_{k},{judge}": v for k, v in more.items()}
