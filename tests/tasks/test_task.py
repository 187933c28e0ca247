"""Tasks: what selections mean, and every way a task folder can be broken."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from gapbench import GapbenchError, Prompt, load_task
from gapbench.tasks.task import LONGEST, select, task_folders

UserTask = Callable[..., Path]
QUESTION = "Does this original image describe {prompt}? Answer: The score is {your score}."


def counts(*selections: str) -> dict[str, int]:
    return {task.name: len(prompts) for task, prompts in select(selections)}


def categories(*selections: str) -> set[str]:
    return {p.category for _, prompts in select(selections) for p in prompts}


def refusal(folder: Path) -> str:
    with pytest.raises(GapbenchError) as caught:
        load_task(str(folder)).prompts()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def texts(folder: Path) -> list[str]:
    return [prompt.text for prompt in load_task(str(folder)).prompts()]


# -- selections ----------------------------------------------------------------------------------


@pytest.fixture
def _installed(user_task: UserTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed are `shapes` and a task `own` of one easy and two hard prompts."""
    tasks = tmp_path / "tasks"
    shutil.copytree(load_task("shapes").folder, tasks / "shapes")
    records: list[object] = [{"text": t, "category": c} for t, c in ("xa", "yb", "zb")]
    user_task(records, name="tasks/own", tiers={"easy": ["a"], "hard": ["b"]})
    monkeypatch.setattr("gapbench.tasks.task._shipped", lambda: tasks)


@pytest.mark.usefixtures("_installed")
def test_all_holds_every_installed_task() -> None:
    assert counts("all") == {"own": 3, "shapes": 440}
    assert counts("all", "easy", "own/a", "shapes") == {"own": 3, "shapes": 440}


@pytest.mark.usefixtures("_installed")
def test_a_tier_holds_its_categories() -> None:
    assert counts("easy") == {"own": 1, "shapes": 140}
    assert counts("medium") == {"shapes": 150}
    assert counts("hard") == {"own": 2, "shapes": 150}
    tier_of = load_task("shapes").tier_of
    for tier in ("easy", "medium", "hard"):
        assert {p.tier for _, prompts in select([tier]) for p in prompts} == {tier}
        assert categories(tier) - {"a", "b"} == {c for c in tier_of if tier_of[c] == tier}


def test_task_and_category() -> None:
    assert counts("shapes") == {"shapes": 440}
    assert counts("shapes/colors") == {"shapes": 10}
    assert categories("shapes/colors") == {"colors"}


def test_selections_merge_without_repeating() -> None:
    assert counts("shapes/colors", "shapes/counting", "shapes/colors") == {"shapes": 38}
    assert counts("shapes/colors", "shapes") == {"shapes": 440}
    assert select(["shapes/counting", "shapes/colors"])[0][1] == [
        p for p in load_task("shapes").prompts() if p.category in ("counting", "colors")
    ]


def test_folders(user_task: UserTask) -> None:
    records: list[object] = [
        {"text": "x", "category": "a", "requirement": {"k": 1}},
        {"text": "y", "category": "b", "id": "named"},
    ]
    folder = user_task(records, tiers={"easy": ["a"], "hard": ["b"]})
    [(task, prompts)] = select([str(folder)])
    assert (task.name, task.version, task.samples, task.judge("only")) == ("mine", "1", 2, "pixel")
    assert prompts == [
        Prompt(
            id="00001", task="mine", category="a", tier="easy", text="x",
            question="Does this original image describe x? Answer: The score is {x}.",
            requirement={"k": 1},
        ),
        Prompt(
            id="named", task="mine", category="b", tier="hard", text="y",
            question="Does this original image describe y? Answer: The score is {x}.",
            requirement={},
        ),
    ]  # fmt: skip
    assert counts(f"{folder}/") == {"mine": 2}
    assert categories(f"{folder}/b") == {"b"}
    assert counts(f"{folder}/a", "shapes/colors", f"{folder}/b") == {"mine": 2, "shapes": 10}


def test_relative_folders(user_task: UserTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(user_task([{"text": "x"}]).parent)
    assert counts("mine") == counts("./mine") == {"mine": 1}
    monkeypatch.chdir("mine")
    assert counts(".") == {"mine": 1}
    assert counts("shapes/colors", "shapes") == {"shapes": 440}


def test_two_tasks_of_one_name_are_refused(user_task: UserTask, tmp_path: Path) -> None:
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        user_task([{"text": place}], name=f"{place}/same")
    with pytest.raises(GapbenchError, match="two tasks are named 'same'"):
        select([str(tmp_path / "one" / "same"), str(tmp_path / "two" / "same")])


@pytest.mark.parametrize(
    ("selection", "culprit"),
    [
        ("shape", "no task 'shape'; installed: "),
        ("", "no task ''"),
        ("shapes/colour", "no category 'colour'; it has colors, attributes"),
        ("nowhere/colors", "no task 'nowhere/colors'"),
        ("EASY", "no task 'EASY'"),
        ("../shapes", "no task '../shapes'"),
    ],
)
def test_unknown_selections_are_named(selection: str, culprit: str) -> None:
    with pytest.raises(GapbenchError) as caught:
        select([selection])
    assert culprit in str(caught.value)


def test_nothing_selected() -> None:
    with pytest.raises(GapbenchError, match="no tasks selected"):
        select([])


def test_unknown_split() -> None:
    with pytest.raises(GapbenchError, match="no split 'dev'; it has test, validation, train"):
        load_task("shapes").prompts("dev")


# -- task.yaml -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "culprit"),
    [
        ({"colour": 1}, "unknown key 'colour'"),
        ({"question": "Does it?"}, "question does not contain {prompt}"),
        ({"tiers": {"easy": ["a", "a"]}}, "category 'a' is listed twice"),
        ({"tiers": {"easy": ["a"], "hard": ["a"]}}, "category 'a' is listed twice"),
        ({"tiers": {"simple": ["a"]}}, "tiers.simple"),
        ({"tiers": {"easy": ["../../up"]}}, "category '../../up'"),
        ({"tiers": {"easy": ["two words, comma"]}}, "category 'two words, comma'"),
        ({"samples": 0}, "samples: "),
        ({"samples": "many"}, "samples: "),
        ({"version": None}, "version: "),
        ({"file": None}, "needs `file:`, `downloads:`, `datasets:` or `generator:`"),
        ({"file": None, "generator": "nothing"}, "no generator 'nothing'"),
        ({"file": None, "generator": "../shapes"}, "generator: "),
        ({"file": "missing.jsonl"}, "missing.jsonl: cannot be read"),
        ({"file": "."}, "cannot be read"),
        ({"file": "../outside.txt"}, "is outside the task"),
        ({"file": "/etc/hostname"}, "is outside the task"),
        ({"splits": {"test": {"prompts": 1, "sha256": "short"}}}, "splits.test.sha256"),
        ({"downloads": [{"path": "a"}]}, "downloads.0: a download takes one digest"),
        ({"downloads": [{"path": "a", "git_blob": "0" * 64}]}, "downloads.0.git_blob"),
    ],
)
def test_broken_specs(user_task: UserTask, spec: dict[str, Any], culprit: str) -> None:
    folder = user_task([{"text": "x"}], **spec)
    (folder.parent / "outside.txt").write_text("secret\n")
    message = refusal(folder)
    assert culprit in message
    assert "secret" not in message


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("a: [", "not YAML"),
        ("title: x\n\ttabs: y\n", "not YAML"),
        ("!!python/object/apply:os.getcwd []", "not YAML"),
        ("", "task.yaml: "),
        ("- a\n- b\n", "task.yaml: "),
        ("title: x\n", "version: Field required"),
    ],
)
def test_files_that_are_no_spec(user_task: UserTask, text: str, culprit: str) -> None:
    folder = user_task([{"text": "x"}])
    (folder / "task.yaml").write_text(text)
    assert culprit in refusal(folder)
    assert str(folder / "task.yaml") in refusal(folder)


def test_specs_that_are_no_text(user_task: UserTask) -> None:
    folder = user_task([{"text": "x"}])
    (folder / "task.yaml").write_bytes(b"title: \xff\n")
    assert "not YAML" in refusal(folder)


def test_a_link_out_of_the_folder_is_refused(user_task: UserTask, tmp_path: Path) -> None:
    folder = user_task([{"text": "x"}])
    (tmp_path / "elsewhere.jsonl").write_text('{"text": "secret"}\n')
    (folder / "prompts.jsonl").unlink()
    (folder / "prompts.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    assert "is outside the task" in refusal(folder)


def test_a_digest_pins_the_prompts(user_task: UserTask) -> None:
    record = {"text": "x", "id": "1", "category": "only"}
    digest = hashlib.sha256((json.dumps(record) + "\n").encode()).hexdigest()
    folder = user_task([record], splits={"test": {"prompts": 1, "sha256": digest}})
    assert texts(folder) == ["x"]
    (folder / "prompts.jsonl").write_text(json.dumps(record | {"text": "y"}) + "\n")
    assert digest in refusal(folder)
    assert "need a new version" in refusal(folder)


# -- prompts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "culprit"),
    [
        ('{"text": ', "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('"a prompt"', "a prompt is an object"),
        ('{"text": "y", "id": "one"}', "id 'one' is already at"),
        ('{"text": ""}', "the prompt is empty"),
        ('{"text": " \\u3000 "}', "the prompt is empty"),
        ('{"text": 5}', "the prompt is empty"),
        ('{"prompt": "y"}', "unknown key 'prompt'"),
        (json.dumps({"text": "y" * 100_000}), f"100,000 characters, more than {LONGEST:,}"),
        ('{"text": "a\\u000bb"}', "control character '\\x0b'"),
        ('{"text": "a\\u0000b"}', "control character '\\x00'"),
        ('{"text": "a\\u001b[31mb"}', "control character '\\x1b'"),
        ('{"text": "a\\u0085b"}', "control character '\\x85'"),
        ('{"text": "a\\ud800b"}', "not JSON"),
        ('{"text": "y", "id": "\\ud800"}', "not JSON"),
        ('{"text": "y", "colour": "red"}', "unknown key 'colour'"),
        ('{"text": "y", "category": "other"}', "category 'other' is not in task.yaml"),
        ('{"text": "y", "category": ["only"]}', "category ['only'] is not in task.yaml"),
        ('{"text": "y", "id": 5}', "the id 5 is not a text"),
        ('{"text": "y", "id": ""}', "the id '' is not a text"),
        ('{"text": "y", "requirement": []}', "the requirement is not an object"),
    ],
)
def test_broken_prompts_name_file_and_line(user_task: UserTask, line: str, culprit: str) -> None:
    folder = user_task([{"text": "x", "id": "one"}, line, {"text": "z"}])
    message = refusal(folder)
    assert culprit in message
    assert f"{folder / 'prompts.jsonl'}:2: " in message
    assert len(message) < 500


def test_a_file_without_prompts(user_task: UserTask) -> None:
    folder = user_task([{"text": "x"}])
    (folder / "prompts.jsonl").write_text("")
    assert "holds no prompts" in refusal(folder)


def test_prompts_that_are_no_text(user_task: UserTask) -> None:
    folder = user_task([{"text": "x"}])
    (folder / "prompts.jsonl").write_bytes(b'{"text": "\xff"}\n')
    assert "cannot be read as UTF-8" in refusal(folder)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_text_files_hold_a_prompt_a_line(user_task: UserTask, newline: str, mark: str) -> None:
    folder = user_task([], file="prompts.txt")
    lines = ["a red circle", 'a "quoted" {prompt}', "two\u2028parts", "{not json"]
    (folder / "prompts.txt").write_bytes((mark + newline.join(lines)).encode())
    assert texts(folder) == lines
    assert [p.id for p in load_task(str(folder)).prompts()] == ["00001", "00002", "00003", "00004"]


def test_a_blank_line_of_a_text_file_is_named(user_task: UserTask) -> None:
    folder = user_task([], file="prompts.txt")
    (folder / "prompts.txt").write_text("a circle\n\na square\n")
    assert f"{folder / 'prompts.txt'}:2: the prompt is empty" in refusal(folder)


@pytest.mark.parametrize(
    "text",
    [
        "{prompt}",
        "{your score}",
        "{0} {} {{x}}",
        "<img src=x onerror=alert(1)>",
        "$HOME `id` %s \\n",
        "[bold]not markup[/bold]",
        "naïve 🟥 円 \u202e right to left",
        "line\u2028separator",
        "x" * LONGEST,
    ],
)
def test_prompts_stay_text(user_task: UserTask, text: str) -> None:
    folder = user_task([], question=QUESTION)
    for ascii_only in (True, False):
        line = json.dumps({"text": text}, ensure_ascii=ascii_only) + "\n"
        (folder / "prompts.jsonl").write_bytes(line.encode())
        [prompt] = load_task(str(folder)).prompts()
        assert prompt.text == text
        before, _, after = QUESTION.partition("{prompt}")
        assert prompt.question == before + text + after
        assert prompt.question.endswith("The score is {your score}.")


def test_the_longest_prompt_is_allowed_and_one_more_is_not(user_task: UserTask) -> None:
    assert len(texts(user_task([{"text": "y" * LONGEST}]))[0]) == LONGEST
    assert "10,001 characters" in refusal(user_task([{"text": "y" * (LONGEST + 1)}]))


def test_shipped_tasks_load_and_are_short() -> None:
    for name, folder in task_folders().items():
        task = load_task(name)
        assert "{prompt}" in task.spec.question
        assert yaml.safe_load((folder / "task.yaml").read_text())["license"]
        assert os.fspath(task.folder) == os.fspath(folder)
