"""The docs' gallery shows every category, and its images are what the page says of them."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from PIL import Image

from gapbench.judges.pixel import PixelJudge
from gapbench.tasks.task import load_task

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
PARTS = dict(re.findall(r"^###? (\S+)\n(.*?)(?=^##|\Z)", PAGE, flags=re.M | re.S))


def test_it_names_every_category_of_every_task() -> None:
    missing = []
    for spec in (ROOT / "tasks").glob("*/task.yaml"):
        task = yaml.safe_load(spec.read_text(encoding="utf-8"))
        named = [category for tier in task["tiers"].values() for category in tier]
        rows = re.findall(r"`([\w-]+)` \||^\| (\w+) \| ", PARTS[spec.parent.name], flags=re.M)
        missing += [name for name in named if name != "*" and (name, "") not in rows]
        if named == ["*"]:  # its categories are in its data; their subjects are here
            subjects = [re.sub(r"\[(.).\](\w+)-\*", r"\1\2", s) for s in task["overalls"]["paper"]]
            missing += [name for name in subjects if ("", name) not in rows]
    assert missing == []


def test_its_images_are_right_and_wrong_by_the_judge_of_shapes() -> None:
    prompts = {(p.category, p.text): p for p in load_task("shapes").prompts()}
    judge, wrong = PixelJudge(), []
    rows = re.findall(r"^\| \w+ \| `(\w+)` \|[^|]*\| ([^|]*) \|(.*)", PARTS["shapes"], flags=re.M)
    for category, text, pictures in rows:
        for name, word in re.findall(r"\((gallery/\w+-(right|wrong)\.png)\)", pictures):
            image = Image.open(ROOT / "docs" / name)
            small = image.resize((image.width // 4, image.height // 4), Image.Resampling.NEAREST)
            [answer] = judge.judge([small], [prompts[category, text]])
            if answer.verdict != (word == "right"):
                wrong.append(name)
    assert len(rows) == 14
    assert wrong == []


def test_no_prompt_of_geneval_stands_on_it() -> None:
    cells = {cell.strip() for line in PARTS["geneval"].splitlines() for cell in line.split("|")}
    assert "a photo of a teapot" in cells
    assert cells.isdisjoint(prompt.text for prompt in load_task("geneval").prompts())
