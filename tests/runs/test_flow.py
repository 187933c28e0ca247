"""The whole flow through the public functions: what a plan holds, what a run adds to a folder."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scenes import sample_scene

import gapbench
from gapbench import GapbenchError, Prompt, load_model, load_task, open_run
from gapbench.models.base import Model
from gapbench.runs.folder import RunFolder
from gapbench.runs.plan import Plan, prepare
from gapbench.runs.run import Run
from gapbench.runs.seeds import seed_of
from gapbench.runs.settings import RunSettings
from gapbench.tasks.world import unmet
from gapbench.types import Answer

COLUMNS = [
    "task", "category", "tier", "prompt", "cluster", "text", "sample", "seed", "image", "own",
    "own_asked", "p_yes", "own_reason", "outside", "outside_asked", "score", "scale", "geometric",
    "outside_reason", "judge", "mismatched", "mismatched_asked",
]  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("janus-mini")


@pytest.fixture
def run(model: Model, tmp_path: Path) -> Callable[..., Run]:
    """gapbench.run on three prompts of shapes/colors, one sample each, unless told otherwise."""

    def call(tasks: Any = "shapes/colors", **more: Any) -> Run:
        options = {"samples": 1, "limit": 3, "out": tmp_path / "runs", **more}
        return gapbench.run(options.pop("model", model), tasks, **options)

    return call


def plan_of(model: Model, tasks: str, limit: int | None = None, **more: Any) -> Plan:
    return prepare(RunSettings(model, tasks, limit=limit, **more)).plan


def lines(done: Run, name: str = "generations.jsonl") -> bytes:
    return (done.path / name).read_bytes()


def test_frame_and_rates(run: Callable[..., Run]) -> None:
    done = run(samples=2)
    frame = done.frame()
    assert list(frame.columns) == COLUMNS
    assert len(frame) == 6
    prompts = [p for p in load_task("shapes").prompts() if p.category == "colors"][:3]
    assert frame["prompt"].tolist() == [p.id for p in prompts for _ in range(2)]
    assert frame["text"].tolist() == [p.text for p in prompts for _ in range(2)]
    assert frame["sample"].tolist() == [0, 1] * 3
    assert set(frame["task"]) == {"shapes"}
    assert set(frame["tier"]) == {"easy"}
    assert set(frame["judge"]) == {"pixel"} == set(done.judges())
    assert frame["own"].isin([0.0, 1.0]).all()
    assert frame["outside"].isin([0.0, 1.0]).all()
    assert (frame["own"] == (frame["p_yes"] > 0.5)).all()
    assert (frame["score"] == frame["outside"]).all()
    assert (frame["outside_reason"].isna() == (frame["outside"] == 1)).all()
    assert frame["mismatched_asked"].tolist() == [True, False] * 3
    assert (frame["mismatched"].notna() == frame["mismatched_asked"]).all()
    assert [done.folder.image(sha).size for sha in frame["image"]] == [(24, 24)] * 6

    figures = {(r.level, r.metric): r for r in done.rates()}
    accepted = figures["overall", "generation"]
    assert (accepted.numerator, accepted.denominator) == (frame["outside"].sum(), 6)
    assert figures["overall", "mismatch_acceptance"].denominator == 3
    written = done.folder.read("results.json")["groups"]["overall"]
    assert written["generation,pixel"] == accepted.value
    assert written["generation_denominator,pixel"] == 6
    with pytest.raises(GapbenchError, match="no verdicts of judge 'owl'; it has pixel"):
        done.frame("owl")


def test_a_run_opens_again_as_it_was(run: Callable[..., Run]) -> None:
    done = run()
    again = open_run(done.path)
    assert again.plan == done.plan
    pd.testing.assert_frame_equal(again.frame(), done.frame(), check_dtype=False)
    assert again.rates() == done.rates()
    assert again.folder.meta["versions"]["gapbench"]
    (done.path / "plan.json").write_text('{"prompts": []}')
    with pytest.raises(GapbenchError, match=r"plan\.json: broken"):
        open_run(done.path)


def test_more_samples_add_only_themselves(run: Callable[..., Run]) -> None:
    first = run(samples=2)
    drawn, judged = lines(first), lines(first, "verdicts.jsonl")
    frame = first.frame()
    more = run(samples=4)
    assert more.path == first.path
    assert lines(more).startswith(drawn)
    assert lines(more, "verdicts.jsonl").startswith(judged)
    assert lines(more).count(b"\n") == 12
    wide = more.frame()
    assert len(wide) == 12
    kept = wide[wide["sample"] < 2].astype(object).fillna("")
    assert kept.values.tolist() == frame.astype(object).fillna("").values.tolist()
    # A table is computed for the plan that was asked for, whatever else the folder holds.
    pd.testing.assert_frame_equal(run(samples=2).frame(), frame, check_dtype=False)


def test_the_same_run_again_adds_nothing(run: Callable[..., Run]) -> None:
    first = run()
    before = {f: f.read_bytes() for f in first.path.rglob("*") if f.is_file()}
    told = []

    def progress(stage: str, there: int, total: int) -> Callable[[int], None]:
        told.append((stage, there, total))
        return lambda count: told.append((stage, count, -1))

    run(progress=progress)
    assert {f: f.read_bytes() for f in first.path.rglob("*") if f.is_file()} == before
    assert told == [("images", 3, 3), ("own verdicts", 6, 6), ("verdicts of pixel", 6, 6)]


def test_a_plan_of_an_earlier_version_opens(run: Callable[..., Run]) -> None:
    done = run()
    raw = done.folder.read("plan.json")
    for key in ("others", "partner_asks", "mismatched", "checksum"):
        del raw[key]
    done.folder.write("plan.json", {**raw, "partner": [1, 2, 0]})
    again = open_run(done.path)
    assert [item.partner for item in again.plan.items()] == [
        again.plan.prompts[i] for i in (1, 2, 0)
    ]
    assert again.plan.notes() == []


def test_another_category_adds_only_its_records(run: Callable[..., Run]) -> None:
    first = run("shapes/colors", limit=2)
    drawn = lines(first)
    both = run(["shapes/colors", "shapes/attributes"], limit=4)
    assert both.path == first.path
    assert lines(both).startswith(drawn)
    added = [json.loads(line) for line in lines(both)[len(drawn) :].splitlines()]
    wanted = [p.text for p in load_task("shapes").prompts() if p.category == "attributes"][:2]
    assert [record["prompt"] for record in added] == wanted
    assert both.frame()["category"].value_counts().to_dict() == {"colors": 2, "attributes": 2}


def test_another_seed_is_another_folder(run: Callable[..., Run]) -> None:
    first, second = run(limit=1), run(limit=1, seed=1)
    assert first.path != second.path
    assert first.path.parent == second.path.parent
    assert first.frame()["seed"].tolist() != second.frame()["seed"].tolist()
    assert second.folder.meta["identity"]["seed"] == 1


def test_text_verdicts_stand_beside_logits(run: Callable[..., Run]) -> None:
    logits = run()
    drawn, judged, frame = lines(logits), lines(logits, "verdicts.jsonl"), logits.frame()
    words = run(verdict="text")
    assert words.path == logits.path
    assert lines(words) == drawn
    assert lines(words, "verdicts.jsonl").startswith(judged)
    judges = [v.judge for v in words.folder.verdicts().values()]
    assert {name: judges.count(name) for name in judges} == {
        "self": 6,
        "pixel": 6,
        "self-text": 6,
    }
    assert words.plan.own == "self-text"
    assert words.frame()["p_yes"].isna().all()
    pd.testing.assert_frame_equal(run().frame(), frame, check_dtype=False)


def test_words_read_by_older_rules_are_kept_and_asked_for_again(run: Callable[..., Run]) -> None:
    words = run(verdict="text")
    frame = words.frame()
    for name in ("plan.json", "verdicts.jsonl"):
        file = words.path / name
        older = file.read_text().replace("self-text-3-", "self-text-1-")
        file.write_text(re.sub(r',\s*"checksum": "\w+"', "", older))
    older = open_run(words.path)
    assert older.plan.own_fingerprint.startswith("self-text-1-")
    pd.testing.assert_frame_equal(older.frame(), frame)
    before = lines(words, "verdicts.jsonl")
    again = run(verdict="text")
    added = lines(again, "verdicts.jsonl")[len(before) :].splitlines()
    assert lines(again, "verdicts.jsonl").startswith(before)
    assert len(added) == 6
    assert all(json.loads(line)["fingerprint"].startswith("self-text-3-") for line in added)


def test_a_model_by_name_and_as_object_are_the_same_run(run: Callable[..., Run]) -> None:
    named = run(model="janus-mini", limit=1)
    before = lines(named)
    given = run(limit=1)
    assert given.path == named.path
    assert lines(given) == before


def test_a_missing_image_is_made_again(run: Callable[..., Run]) -> None:
    done = run()
    place = done.folder.image_path(done.frame()["image"][1])
    data = place.read_bytes()
    place.unlink()
    assert len(open_run(done.path).frame()) == 2
    again = run()
    assert place.read_bytes() == data
    assert len(again.frame()) == 3


def test_a_task_without_a_judge_has_non_unification(
    run: Callable[..., Run], user_task: Callable[..., Path]
) -> None:
    folder = user_task([{"text": "a red circle"}, {"text": "<b>{prompt}</b>"}], judge=None)
    done = run(str(folder), limit=None)
    frame = done.frame()
    assert done.judges() == []
    assert frame["own"].notna().all()
    assert frame["outside"].isna().all()
    figures = {r.metric: r for r in done.rates() if r.level == "overall"}
    assert figures["non_unification"].denominator == 2
    assert figures["non_unification"].value is not None
    for metric in ("generation", "self_accuracy", "weak_generation", "false_positive"):
        found = figures.get(metric)
        assert found is None or (found.value is None and found.denominator == 0), metric
    overall = done.folder.read("results.json")["groups"]["overall"]
    assert overall["non_unification,none"] == figures["non_unification"].value


def test_images_that_the_judge_cannot_read_abstain(
    run: Callable[..., Run], tiny_janus: Path
) -> None:
    done = run(model=str(tiny_janus), limit=2)
    assert done.path.name.startswith("tiny-janus-")
    frame = done.frame()
    assert frame["outside"].isna().all()
    assert frame["outside_reason"].str.startswith("image is 32 x 32, and judge pixel").all()
    generation = next(r for r in done.rates() if r.metric == "generation")
    assert (generation.value, generation.denominator, generation.abstained) == (None, 0, 2)


def test_limit_takes_categories_in_turn(model: Model) -> None:
    categories = list(load_task("shapes").tier_of)
    for limit in (1, len(categories), 25):
        plan = plan_of(model, "shapes", limit)
        found = [p.category for p in plan.prompts]
        assert len(found) == limit
        for place, category in enumerate(categories):
            assert found.count(category) == len(range(place, limit, len(categories)))
        assert plan.prompts == [p for p in load_task("shapes").prompts() if p in plan.prompts]
    assert len(plan_of(model, "shapes", 9999).prompts) == 440


def test_partners_never_ask_for_the_same(model: Model) -> None:
    plan = plan_of(model, "shapes")
    rng = np.random.default_rng(0)
    assert plan.others == []
    for index, partner in enumerate(plan.partner):
        assert partner is not None
        one, other = plan.prompts[index], plan.prompts[partner]
        assert one.category == other.category
        scenes = [sample_scene(one.requirement, rng) for _ in range(40)]
        assert not any(unmet(scene, other.requirement) is None for scene in scenes), (one, other)


def test_prompts_that_all_ask_for_the_same_have_no_partner(
    model: Model, user_task: Callable[..., Path]
) -> None:
    heart, cross = {"shape": "heart", "count": 1}, {"shape": "cross", "count": 1}
    one = {"include": [heart, {**cross, "position": ["above", 0]}]}
    other = {"include": [cross, {"position": ["below", 0], **heart}]}
    beside = {"include": [heart, {**cross, "position": ["left of", 0]}]}
    listed = (("x", one), ("y", other), ("w", beside))
    records = [{"text": text, "requirement": r} for text, r in listed]
    same = plan_of(model, str(user_task(records, name="same")))
    assert same.partner == [None, None, None]
    assert not any(item.partner for item in same.items())
    records.append({"text": "z", "requirement": {"include": [{**cross, "count": 2}]}})
    assert plan_of(model, str(user_task(records, name="more"))).partner == [3, 3, 3, 0]


def test_partners_are_the_same_whatever_the_limit_is(model: Model) -> None:
    def pairs(limit: int | None, **more: Any) -> dict[str, str]:
        items = plan_of(model, "shapes", limit, samples=1, **more).items()
        return {item.prompt.id: item.partner.id for item in items if item.partner}

    whole, some, near = pairs(None), pairs(20), pairs(20, mismatched="near")
    assert len(some) == 20
    assert some.items() <= whole.items()
    assert some != near
    assert some != pairs(20, seed=1)


def test_a_pair_that_the_outside_judge_accepts_is_left_out(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "gapbench.judges.pixel.PixelJudge.judge",
        lambda _self, _images, prompts: [Answer(verdict=int("red" in p.text)) for p in prompts],
    )
    done = run(limit=10)
    pairs = {item.prompt.id: item.partner for item in done.plan.items()}
    fits = [bool(pairs[name]) and "red" in pairs[name].text for name in done.frame()["prompt"]]
    assert 0 < sum(fits) < 10
    assert done.frame()["mismatched_asked"].tolist() == [not each for each in fits]
    [figure] = [
        r for r in done.rates() if (r.level, r.metric) == ("overall", "mismatch_acceptance")
    ]
    assert (figure.denominator, figure.abstained) == (10 - sum(fits), 0)
    assert "Mismatched pairs: far" in done.plan.notes()[-1]


def test_only_first_samples_are_held_against_partners(model: Model) -> None:
    plan = plan_of(model, "shapes/colors", 4, samples=3)
    for item in plan.items():
        assert (item.partner is not None) == (item.sample == 0)
        assert item.partner != item.prompt


def test_questions_about_an_image_are_asked_side_by_side(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, asked = model.judge, []

    def noted(images: Sequence[Image.Image], *rest: Any) -> Any:
        asked.extend(image.tobytes() for image in images)
        return judge(images, *rest)

    monkeypatch.setattr(model, "judge", noted)
    gapbench.run(model, "shapes/colors", samples=2, limit=4, batch_size=3, out=tmp_path)
    turns = [image for image, _ in itertools.groupby(asked)]
    assert len(turns) == len(set(turns)) == 8 < len(asked) == 12


def test_plans_survive_json(model: Model, user_task: Callable[..., Path]) -> None:
    folder = user_task([{"text": '{"é"} \u2028 <b>'}], judge=None)
    plan = plan_of(model, f"shapes/position,{folder}", 5)
    assert Plan.from_json(json.loads(json.dumps(asdict(plan)))) == plan
    assert all(isinstance(p, Prompt) for p in plan.prompts)
    assert plan.tasks == {"shapes": "2.0", "mine": "1"}
    assert plan.samples == {"shapes": 4, "mine": 2}
    assert len(plan.items()) == 5 * 4 + 2


def test_seeds_depend_on_text_and_sample(model: Model) -> None:
    seeds = {seed_of(run, text, k) for run in (0, 1) for text in ("a", "b", "") for k in range(9)}
    assert len(seeds) == 54
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(0, "a red circle", 0) == 2412686195777972461
    alone = {(i.prompt.text, i.sample): i.seed for i in plan_of(model, "shapes/colors").items()}
    among = {(i.prompt.text, i.sample): i.seed for i in plan_of(model, "shapes").items()}
    assert alone.items() <= among.items()


def test_equal_prompts_are_drawn_once(
    run: Callable[..., Run], user_task: Callable[..., Path]
) -> None:
    task = user_task([{"text": "a red circle"}, {"text": "a red circle"}], judge=None)
    done = run(str(task), limit=None)
    assert lines(done).count(b"\n") == 1
    assert len(done.frame()) == 2
    assert done.frame()["image"].nunique() == 1


@pytest.mark.parametrize(
    ("wrong", "culprit"),
    [
        ({"samples": 0}, "samples must be at least 1, not 0"),
        ({"limit": -1}, "limit must be at least 1, not -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        (
            {"verdict": "vibes"},
            "verdict must be 'logits', 'text', 'questions' or 'none', not 'vibes'",
        ),
        ({"judges": ["owl"]}, "no judge 'owl'"),
        ({"model": "gpt"}, "no model 'gpt'"),
        ({"tasks": "shape"}, "no task 'shape'"),
    ],
)
def test_wrong_arguments_write_nothing(
    run: Callable[..., Run], tmp_path: Path, wrong: dict[str, Any], culprit: str
) -> None:
    with pytest.raises(GapbenchError) as caught:
        run(**wrong)
    assert culprit in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_judge_refuses_a_task_before_anything_is_drawn(
    run: Callable[..., Run], user_task: Callable[..., Path], tmp_path: Path
) -> None:
    requirement = {"include": [{"shape": "circle", "count": "two"}]}
    folder = user_task([{"text": "two circles", "requirement": requirement}])
    with pytest.raises(GapbenchError, match="judge pixel cannot judge task mine: prompt 00001"):
        run(str(folder))
    assert not (tmp_path / "runs").exists()


def test_a_run_with_nothing_drawn_has_an_empty_table(run: Callable[..., Run]) -> None:
    done = run(limit=1)
    (done.path / "generations.jsonl").unlink()
    empty = Run(RunFolder.open(done.path), done.plan)
    assert len(empty.frame()) == 0
    assert not [r for r in empty.rates() if r.value is not None and not math.isnan(r.value)]
