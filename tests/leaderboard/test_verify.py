"""Forgeries of a submission. A forger who knows the format signs anew: figures, digests, card."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gapbench import GapbenchError
from gapbench.leaderboard.again import check_again
from gapbench.leaderboard.board import markdown
from gapbench.leaderboard.submission import CARD, RATES, VERDICTS, contents, read, schema, sha256
from gapbench.leaderboard.submit import submit
from gapbench.leaderboard.verify import ANSWER, check
from gapbench.runs.seeds import seed_of
from gapbench.verdict import RULES

Rows = list[dict[str, Any]]
Cli = Callable[..., subprocess.CompletedProcess[str]]


def rows_of(folder: Path) -> Rows:
    rows = read(folder).rows.astype(object)
    return rows.where(rows.notna(), None).to_dict("records")


def sign(folder: Path, rows: Rows | None = None, **card: Any) -> None:
    """Write a submission whose digests and figures are right for its rows."""
    old = json.loads((folder / CARD).read_text())
    del old["files"]
    made = contents({**old, **card}, rows_of(folder) if rows is None else rows)
    for name, data in made.items():
        (folder / name).write_bytes(data)


def sign_file(folder: Path, name: str) -> None:
    """Put the digest of a file, as it is now, into the card."""
    card = json.loads((folder / CARD).read_text())
    card["files"][name] = sha256((folder / name).read_bytes())
    (folder / CARD).write_text(json.dumps(card))


def agreeing(made: Any, rows: Rows, place: Path) -> Path:
    """A copy of the run, forged so that its verdicts are those of the rows."""
    run = Path(shutil.copytree(made.run.path, place / "forged"))
    said = {(r["image"], r["question"], r["fingerprint"]): r for r in rows}
    lines = []
    for verdict in made.run.folder.verdicts().values():
        row = said[verdict.image, sha256(verdict.question), verdict.fingerprint]
        changed = {key: row[key] for key in ("verdict", "p_yes", "mass", "score")}
        more = {"text": row["reply"] or None, "reason": row["reason"] or None}
        lines.append(json.dumps(asdict(verdict) | changed | more) + "\n")
    (run / "verdicts.jsonl").write_text("".join(lines))
    return run


def only_fault(folder: Path) -> str:
    faults = check(folder)
    assert faults, "the forgery was not caught"
    return faults[0]


def test_failures_that_point_at_a_good_image_of_their_prompt(made: Any, copy: Path) -> None:
    """Each verdict is true of the image that it names. Counting tells, and so does drawing."""
    rows = rows_of(copy)
    outside = {(r["prompt"], r["sample"]): r for r in rows if r["role"] == "outside"}
    good = {prompt: sample for (prompt, sample), r in outside.items() if r["verdict"] == 1}
    bad = [key for key, r in outside.items() if r["verdict"] == 0 and key[0] in good]
    assert len(bad) > 1
    said = {(r["prompt"], r["sample"], r["role"]): dict(r) for r in rows}
    for row in rows:
        if (row["prompt"], row["sample"]) in bad:
            own = said[row["prompt"], good[row["prompt"]], "own"]
            better = said.get((row["prompt"], good[row["prompt"]], row["role"]), row)
            row.update({key: better[key] for key in ANSWER}, image=own["image"])
    sign(copy, rows)
    assert "images are equal to one of another prompt or seed" in only_fault(copy)
    faults = check_again(copy, redraw=24)
    assert len(faults) == len(bad)
    assert all("drawn again it is another image" in fault for fault in faults)


@pytest.mark.parametrize(
    ("role", "change", "fault"),
    [
        ("outside", {"score": 50.0}, "score is 50.0, pixel gives 0 to 1"),
        ("outside", {"score": 1.0}, "a score of 1.0; pixel gives none"),
        ("own", {"score": 1.0}, "own verdicts have none"),
        ("own", {"mass": 7.0}, "mass is 7.0"),
        ("own", {"p_yes": None, "reply": "The score is 7."}, "not what the reply says"),
        ("own", {"p_yes": None, "verdict": None, "reply": "The score is 0.", "reason": "tired"},
         "no verdict, and the reply states one"),
        ("own", {"p_yes": None, "reply": None, "verdict": 1}, "without a probability or a reply"),
    ],
)  # fmt: skip
def test_answers_that_cannot_be(copy: Path, role: str, change: dict[str, Any], fault: str) -> None:
    rows = rows_of(copy)
    next(r for r in rows if r["role"] == role).update(change)
    sign(copy, rows)
    assert fault in only_fault(copy)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"recipe": {"guidance": 9.0}}, "recipe is {'guidance': 9.0}"),
        ({"pair": True}, "pair is True"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"versions": {}}, "versions is {}"),
    ],
)
def test_a_card_is_held_against_the_run(
    made: Any, copy: Path, change: dict[str, Any], fault: str
) -> None:
    sign(copy, **change)
    assert check(copy) == []
    assert fault in check_again(copy, made.run.path)[0]


def test_a_test_model_under_another_name(copy: Path) -> None:
    origin = {"role": "model", "repo": "me/great", "revision": "a" * 40}
    change = {"name": "great", "model": "great", "test_model": False, "checkpoints": [origin]}
    sign(copy, **change)
    copy = copy.rename(copy.parent / "great")
    assert "has the weights of a test model, and another name" in only_fault(copy)
    sign(copy, **change | {"name": "janus-pro", "model": "janus-pro", "fingerprint": "0" * 64})
    copy = copy.rename(copy.parent / "janus-pro")
    assert "janus-pro has its weights from deepseek-community" in only_fault(copy)


def test_a_card_names_no_code_to_run(copy: Path) -> None:
    sign(copy, name="os-abort", model="os:abort")
    copy = copy.rename(copy.parent / "os-abort")
    with pytest.raises(GapbenchError, match="give --model, no model is called 'os:abort'"):
        check_again(copy, redraw=1)


def test_words_of_a_submission_are_no_markup(copy: Path) -> None:
    card, rows = read(copy).card.model_dump(), rows_of(copy)
    evil = "![x](https://e.example/p.png)<img>|www.e.example|"
    for row in rows:
        row["judge"] = evil if row["role"] == "outside" else row["judge"]
    tasks = card["tasks"]
    tasks["few-shapes"]["judges"] = dict.fromkeys(tasks["few-shapes"]["judges"], evil)
    sign(copy, rows, judges={evil: "x"}, tasks=tasks)
    title = next(t for t in markdown([read(copy)]).splitlines() if "e.example" in t)
    assert r"!\[x\](https:\//e.example/p.png)\<img\>\|www\.e.example\|" in title


def test_what_submit_writes_verifies(made: Any, board_cli: Cli) -> None:
    done = board_cli("verify", str(made.folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert "every figure recomputed" in done.stdout
    sign_again = rows_of(made.folder)
    # 12 prompts x 2 images, a verdict of its own and an outside one each, and of each of 12
    # mismatched pairs.
    assert len(sign_again) == 12 * 2 * 2 + 12 * 2


def test_an_edited_cluster(copy: Path) -> None:
    rows = rows_of(copy)
    for row in rows:
        row["cluster"] = row["prompt"]
    sign(copy, rows)
    assert "cluster is" in only_fault(copy)


def test_signing_anew_without_a_change_is_no_forgery(copy: Path) -> None:
    sign(copy)
    assert check(copy) == []


@pytest.mark.parametrize("field", ["value", "numerator", "high", "abstained"])
def test_an_edited_rate(copy: Path, field: str) -> None:
    rates = json.loads((copy / RATES).read_text())
    rates["ranked"][-1][field] = 0.123
    (copy / RATES).write_text(json.dumps(rates))
    assert "rates.json: its sha256" in only_fault(copy)
    sign_file(copy, RATES)
    assert f"{field} is 0.123" in only_fault(copy)


def test_a_rate_left_out_or_added(copy: Path) -> None:
    for change in (
        lambda r: r["ranked"].pop(),
        lambda r: r["ranked"].clear(),
        lambda r: r.update(ranked=[1]),
        lambda r: r["ranked"][-1].update(metric=[]),
        lambda r: r.update(mine=r["ranked"]),
    ):
        rates = json.loads((copy / RATES).read_text())
        change(rates)
        (copy / RATES).write_text(json.dumps(rates))
        sign_file(copy, RATES)
        assert "rates.json" in only_fault(copy)
        sign(copy)


def test_an_edited_verdict(copy: Path, board_cli: Cli) -> None:
    rows = rows_of(copy)
    row = next(r for r in rows if r["role"] == "own")
    row["verdict"] = 1 - row["verdict"]
    sign(copy, rows)
    assert f"with p_yes {row['p_yes']}" in only_fault(copy)
    done = board_cli("verify", "results/janus-mini")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("FAIL  results/janus-mini: task few-shapes, prompt ")


def test_an_edited_verdict_with_its_probability(made: Any, copy: Path, tmp_path: Path) -> None:
    """The rows alone cannot tell; the run can, and where it is forged too, the model."""
    rows = rows_of(copy)
    row = next(r for r in rows if r["role"] == "own")
    row["verdict"], row["p_yes"] = 1 - row["verdict"], 1 - row["p_yes"]
    for twin in rows:  # equal images have equal verdicts
        if (twin["image"], twin["question"]) == (row["image"], row["question"]):
            twin.update(verdict=row["verdict"], p_yes=row["p_yes"])
    sign(copy, rows)
    assert check(copy) == []
    [fault] = check_again(copy, made.run.path)
    assert f"own verdict of self: verdict is {row['verdict']}, {made.run.path} has" in fault
    faults = check_again(copy, agreeing(made, rows, tmp_path), 24)
    assert faults
    assert all("own verdict" in fault and "asked again" in fault for fault in faults)


def test_an_edited_outside_verdict(made: Any, copy: Path, tmp_path: Path) -> None:
    rows = rows_of(copy)
    for row in rows:
        if row["role"] == "outside":
            row["verdict"], row["reason"] = 1, None
    sign(copy, rows)
    assert check(copy) == []
    faults = check_again(copy, agreeing(made, rows, tmp_path), 24)
    drawn_wrong = sum(made.run.frame()["outside"] == 0)
    assert 0 < drawn_wrong == len(faults)
    assert all("outside verdict of pixel" in fault for fault in faults)


def test_an_own_verdict_that_became_an_abstention(copy: Path) -> None:
    rows = rows_of(copy)
    row = next(r for r in rows if r["role"] == "own")
    row.update(verdict=None, reason=None)
    sign(copy, rows)
    assert "no verdict, and no reason" in only_fault(copy)


def test_dropped_failures(copy: Path) -> None:
    rows = rows_of(copy)
    failed = {
        (r["prompt"], r["sample"]) for r in rows if r["role"] == "outside" and r["verdict"] == 0
    }
    kept = [r for r in rows if (r["prompt"], r["sample"]) not in failed]
    assert 0 < len(kept) < len(rows)
    sign(copy, kept)
    assert f"{len(rows) - len(kept)} verdicts are missing" in only_fault(copy)


def test_a_dropped_sample_in_rows_and_card(copy: Path) -> None:
    card = json.loads((copy / CARD).read_text())
    card["tasks"]["few-shapes"]["samples"] = 1
    sign(copy, [r for r in rows_of(copy) if r["sample"] == 0], tasks=card["tasks"])
    assert "1 image a prompt, it takes 2" in only_fault(copy)


def test_duplicated_easy_prompts(copy: Path) -> None:
    rows = rows_of(copy)
    easy = [r for r in rows if r["tier"] == "easy"]
    table = pa.Table.from_pylist([r for r in rows if r["tier"] != "hard"] + easy, schema=schema())
    pq.write_table(table, copy / VERDICTS)
    sign_file(copy, VERDICTS)
    assert "are given twice" in only_fault(copy)
    with pytest.raises(GapbenchError, match="two own verdicts of one image"):
        markdown([read(copy)])


def test_easy_prompts_under_hard_prompts_ids(copy: Path) -> None:
    """The count is right; seeds and questions tell."""
    rows = rows_of(copy)
    hard = [r for r in rows if r["tier"] == "hard"]
    easy = [r for r in rows if r["tier"] == "easy"]
    named = [
        {**e, **{key: h[key] for key in ("prompt", "cluster", "category", "tier")}}
        for e, h in zip(easy, hard, strict=True)
    ]
    sign(copy, [r for r in rows if r["tier"] != "hard"] + named)
    assert "seed is " in only_fault(copy)


def test_another_seeds_images(made: Any, copy: Path, tmp_path: Path) -> None:
    with pytest.raises(GapbenchError, match="drawn with seed 1"):
        submit(made.other, tmp_path / "elsewhere", test_model=True)
    there = {(i.prompt.id, i.sample): i for i in made.other.plan.items()}
    drawn = made.other.folder.generations()
    verdicts = made.other.folder.verdicts()
    rows = rows_of(copy)
    for row in rows:
        item = there[row["prompt"], row["sample"]]
        row["seed"] = item.seed
        row["image"] = drawn[item.prompt.text, item.seed].image
        asked = (row["image"], row["question"], row["fingerprint"])
        said = next(
            (v for v in verdicts.values() if (v.image, sha256(v.question), v.fingerprint) == asked),
            None,
        )
        if said is None:
            assert row["role"] in ("mismatched", "partner")  # another seed has other partners
            continue
        row.update(verdict=said.verdict, p_yes=said.p_yes, mass=said.mass, reason=said.reason)
    sign(copy, rows, seed=1)
    assert "the run's seed is 1" in only_fault(copy)
    sign(copy, rows, seed=0)
    assert "seed is " in only_fault(copy)
    # With the seeds written over, only the images tell.
    for row in rows:
        row["seed"] = seed_of(0, there[row["prompt"], row["sample"]].prompt.text, row["sample"])
    sign(copy, rows)
    assert check(copy) == []
    assert f"{made.run.path} has " in check_again(copy, made.run.path)[0]
    faults = check_again(copy, redraw=24)
    assert len(faults) > 20  # janus-mini draws some images twice
    assert all("drawn again it is another image" in fault for fault in faults)


def test_rows_from_two_models(copy: Path) -> None:
    rows = rows_of(copy)
    for row in rows:
        if row["role"] == "own" and row["tier"] == "hard":
            row["fingerprint"] = "self-1-" + "b" * 64
    sign(copy, rows)
    assert "fingerprint is 'self-1-bbb" in only_fault(copy)


def test_a_card_of_another_model(made: Any, copy: Path) -> None:
    rows, other = rows_of(copy), "self-1-" + "b" * 64
    sign(copy, rows, fingerprint="b" * 64)
    assert "not of the model" in only_fault(copy)
    for row in rows:
        if row["role"] in ("own", "mismatched"):
            row["fingerprint"] = other
    sign(copy, rows, fingerprint="b" * 64, own_fingerprint=other)
    assert "fingerprint is 'bbb" in check_again(copy, made.run.path)[0]
    with pytest.raises(GapbenchError, match="other weights"):
        check_again(copy, redraw=1)


@pytest.mark.parametrize("rules", range(1, RULES + 2))
def test_rules_of_reading_are_those_of_some_version(copy: Path, rules: int) -> None:
    rows, card = rows_of(copy), read(copy).card
    other = f"self-{rules}-{card.fingerprint}"
    for row in rows:
        if row["role"] in ("own", "mismatched"):
            row["fingerprint"] = other
    sign(copy, rows, own_fingerprint=other)
    assert check(copy) == [] if rules <= RULES else "not of the model" in only_fault(copy)


def test_two_verdicts_of_one_image(copy: Path) -> None:
    rows = rows_of(copy)
    own = [r for r in rows if r["role"] == "own"]
    first = own[0]
    twin = next(r for r in own if r["prompt"] == first["prompt"] and r is not first)
    old, twin["image"] = twin["image"], first["image"]
    twin["p_yes"] = (first["p_yes"] + round(first["p_yes"])) / 2
    twin["verdict"] = first["verdict"]
    for row in rows:
        if row["image"] == old and row["prompt"] == first["prompt"]:
            row["image"] = first["image"]
    sign(copy, rows)
    assert "two verdicts of one judge" in only_fault(copy)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"version": "0.9"}, "has version 0.9, installed is 1.0"),
        ({"prompts": "0" * 64}, "other prompts than the installed ones"),
        ({"judges": {"colors": "pixel"}}, "its judges are not the task's own"),
        ({"samples": 1}, "1 image a prompt, it takes 2"),
    ],
)
def test_a_changed_task(copy: Path, change: dict[str, Any], fault: str) -> None:
    card = json.loads((copy / CARD).read_text())
    card["tasks"]["few-shapes"] |= change
    sign(copy, tasks=card["tasks"])
    assert fault in only_fault(copy)


def test_another_judge_under_the_tasks_judges_name(copy: Path) -> None:
    rows = rows_of(copy)
    for row in rows:
        if row["role"] == "outside":
            row["fingerprint"] = "kinder"
    sign(copy, rows, judges={"pixel": "kinder"})
    assert "judge pixel of task few-shapes is not the one" in only_fault(copy)


@pytest.mark.parametrize("name", [VERDICTS, RATES])
def test_a_forged_digest(copy: Path, name: str) -> None:
    card = json.loads((copy / CARD).read_text())
    card["files"][name] = "0" * 64
    (copy / CARD).write_text(json.dumps(card))
    assert f"{name}: its sha256 is not the one in card.json" in only_fault(copy)


def test_a_forged_image_digest(made: Any, copy: Path) -> None:
    rows = rows_of(copy)
    image = rows[0]["image"]
    for digest, fault in (("0" * 63, "is no sha256"), ("Z" * 64, "is no sha256"), ("0" * 64, None)):
        for row in rows:
            row["image"] = digest if row["image"] == image else row["image"]
        sign(copy, rows)
        image = digest
        assert (fault in only_fault(copy)) if fault else (check(copy) == [])
    assert "image is '000" in check_again(copy, made.run.path)[0]


@pytest.mark.parametrize(
    ("card", "fault"),
    [
        ({"test_model": False}, "not marked as one"),
        ({"name": "emu3"}, "the card calls janus-mini emu3, the name of another model"),
        ({"name": "gpt-5", "model": "gpt-5"}, "the folder is called janus-mini"),
        ({"checkpoints": [{"role": "m", "repo": "a/b", "revision": "main"}]}, "revision"),
        ({"surprise": 1}, "unknown key 'surprise'"),
        ({"tasks": {}}, "tasks"),
        ({"own": "mother"}, "own: Input should be 'self' or 'self-text'"),
        ({"judges": {}}, "has no fingerprint in the card"),
        ({"contact": "x" * 201}, "contact"),
    ],
)
def test_a_card_that_lies(copy: Path, card: dict[str, Any], fault: str) -> None:
    sign(copy, **card)
    assert fault in only_fault(copy)


def test_files_of_another_form(copy: Path, tmp_path: Path) -> None:
    good = (copy / VERDICTS).read_bytes()

    def holding(data: bytes) -> str:
        (copy / VERDICTS).write_bytes(data)
        sign_file(copy, VERDICTS)
        return only_fault(copy)

    assert "cannot be read as Parquet" in holding(b"PAR1 nothing PAR1")
    file = tmp_path / "more.parquet"
    table = pq.read_table(pa.BufferReader(good))
    pq.write_table(table.append_column("more", [["text"] * len(table)]), file)
    assert "its columns are not" in holding(file.read_bytes())
    (copy / VERDICTS).unlink()
    (copy / VERDICTS).symlink_to(file)
    assert "missing, or no plain file" in only_fault(copy)
    (copy / CARD).write_text("[]")
    (copy / VERDICTS).unlink()
    (copy / VERDICTS).write_bytes(good)
    assert "not a JSON object" in only_fault(copy)


def test_images_are_judged_again(made: Any, board_cli: Cli) -> None:
    folder, run = str(made.folder), str(made.run.path)
    done = board_cli("verify", folder, "--run", run, "--rejudge", "5", "--redraw", "3")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-3000:]
    said, again = done.stdout.splitlines()
    assert said.endswith("all as in its run, 5 images judged again, 3 images drawn again")
    assert re.fullmatch(r"The same images again: --draw \d+", again)
    refused = board_cli("verify", folder, "--rejudge", "5")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == ("gapbench: --rejudge takes the images of a run; give --run\n")
