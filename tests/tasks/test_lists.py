"""Tasks of question lists: GenEval 2's own records, and records in rows of a CSV as DPG-Bench's."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from servers import Server

import gapbench
from gapbench import GapbenchError
from gapbench.fetch.sources import adopt
from gapbench.files import git_blob_of
from gapbench.judges.lists import chances_in, geometric, listed
from gapbench.report.tables import overall_lines
from gapbench.tasks.task import load_task

GENEVAL2 = Path(__file__).resolve().parents[3] / "shared" / "data" / "geneval2"
HEADS = (
    "item_id", "text", "keywords", "proposition_id", "dependency", "category_broad",
    "category_detailed", "tuple", "question_natural_language",
)  # fmt: skip
CAT = ("a1", "a red cat, on a mat", "")
ROWS = [
    (*CAT, "1", "0", "entity", "whole", "entity - (cat)", "Is there a cat?"),
    (*CAT, "2", "0", "entity", "whole", "entity - (mat)", "Is there a mat?"),
    (*CAT, "3", "1", "attribute", "color", "color - (cat, red)", "Is it red?"),
    (*CAT, "4", "1, 2", "relation", "spatial", "on - (cat)", "Is it on it?"),
    ("b2", 'a "blue"\nbowl', "", "1", "0", "entity", "whole", "(bowl)", "Is there a bowl?"),
]
ROOT = Path(__file__).parents[2]
SHIPPED = yaml.safe_load((ROOT / "tasks" / "dpg" / "task.yaml").read_text(encoding="utf-8"))
SPEC = {key: value for key, value in SHIPPED.items() if key not in {"base", "downloads", "splits"}}
"""The task.yaml of DPG-Bench, for a file beside it."""
MadeTask = Callable[..., Path]
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def dpg(user_task: Callable[..., Path]) -> MadeTask:
    def make(rows: Any = ROWS, heads: Any = HEADS, **more: Any) -> Path:
        folder = user_task([], name="dpg", **{**SPEC, "file": "dpg_bench.csv", **more})
        with (folder / "dpg_bench.csv").open("w", newline="") as opened:
            csv.writer(opened).writerows([heads, *rows])
        return folder

    return make


def refused(folder: Path) -> str:
    with pytest.raises(GapbenchError) as caught:
        load_task(str(folder)).prompts()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.skipif(not GENEVAL2.is_dir(), reason="the benchmark's file is not here")
def test_geneval2_by_atoms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAPBENCH_CACHE", str(tmp_path))
    task = load_task("geneval2")
    assert adopt(task.sources(), GENEVAL2) == []
    prompts = task.prompts()
    lines = [json.loads(x) for x in (GENEVAL2 / "geneval2_data.jsonl").read_text().splitlines()]
    assert [(p.text, p.category) for p in prompts] == [
        (line["prompt"], str(line["atom_count"])) for line in lines
    ]
    tiers = {"easy": (3, 4), "medium": (5, 6, 7), "hard": (8, 9, 10)}
    for prompt, line in zip(prompts, lines, strict=True):
        assert line["atom_count"] in tiers[prompt.tier]
        assert len(listed(prompt)) == len(prompt.requirement["skills"])
    assert {task.judge(p.category) for p in prompts} == {"soft-tifa"}


def test_rows_about_one_prompt_are_one(dpg: MadeTask) -> None:
    cat, bowl = load_task(str(dpg())).prompts()
    assert (cat.id, cat.text, cat.category, cat.tier) == ("a1", ROWS[0][1], "dpg", "medium")
    assert cat.requirement["category_broad"] == ["entity", "entity", "attribute", "relation"]
    assert [item.question for item in listed(cat)] == [row[-1] for row in ROWS[:4]]
    assert [item.parents for item in listed(cat)] == [(), (), (0,), (0, 1)]
    assert bowl.text == 'a "blue"\nbowl'


def test_dpg_comes_by_gits_id_and_its_questions_are_counted(
    dpg: MadeTask,
    user_task: Callable[..., Path],
    tmp_path: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The file of the shipped task is not here: a small one stands for it, by its own id."""
    monkeypatch.setenv("GAPBENCH_CACHE", str(tmp_path / "cache"))
    (source,) = load_task("dpg").sources()
    url = (
        "https://raw.githubusercontent.com/TencentQQGYLab/ELLA/[0-9a-f]{40}/dpg_bench/dpg_bench.csv"
    )
    assert re.fullmatch(url, source.url)
    assert source.git_blob == "98457fc9901943f51ff9a30367250fc292533bed"
    file = dpg() / "dpg_bench.csv"

    def named(count: int) -> str:
        download = {"path": "dpg_bench.csv", "git_blob": git_blob_of(file)}
        changed = {"downloads": [download], "splits": {"test": {"prompts": count}}, "file": None}
        return str(user_task([], name="named", **{**SPEC, "base": "https://x.org/", **changed}))

    asked = ("prepare", "--tasks", named(2), "--judge", "pixel", "--offline")
    done = cli(*asked, "--dry-run")
    assert re.search(rf"unknown +Apache-2.0 +git blob {git_blob_of(file)[:12]} +no", done.stdout)
    done = cli(*asked, "--data", str(file.parent))
    assert done.returncode == 0, done.stderr
    done = cli("tasks", named(2))
    assert "entity (3), attribute (1), relation (1)" in done.stdout
    assert re.search(r"dpg +medium +vlm-list +2 +5 +a red cat, on a mat", done.stdout)
    told = json.loads(cli("tasks", named(2), "--json").stdout)
    assert told["asked"] == {"entity": 3, "attribute": 1, "relation": 1}
    assert [row["questions"] for row in told["categories"]] == [5]
    assert "has 2 prompts with sha256" in refused(Path(named(3)))
    broken = dpg([*ROWS[:2], (*ROWS[2][:4], "9", *ROWS[2][5:])])
    done = cli("tasks", str(broken))
    assert done.returncode != 0
    assert "dpg, prompt a1: its list of questions is broken: question 3 depends on" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_docs_show_how_such_a_file_is_read() -> None:
    page = (ROOT / "docs" / "own-task.md").read_text(encoding="utf-8")
    (block,) = (b for b in re.findall(r"```yaml\n(.*?)```", page, flags=re.S) if "group:" in b)
    shown = yaml.safe_load(block)
    assert {key: shown[key] for key in SPEC if key not in {"title", "license"}} == {
        key: value for key, value in SPEC.items() if key not in {"title", "license"}
    }


def test_csv_files_that_are_broken(dpg: MadeTask) -> None:
    folder = dpg()
    file = folder / "dpg_bench.csv"
    assert "no column 'dependency'; it has item_id" in refused(
        dpg([row[:4] + row[5:] for row in ROWS], HEADS[:4] + HEADS[5:])
    )
    assert "no column 'item_id'" in refused(dpg(heads=("id", *HEADS[1:])))
    assert f"{file}:3: not 9 cells" in refused(dpg([ROWS[0], ROWS[1][:5]]))
    assert f"{file}:2: not 9 cells" in refused(dpg([(*ROWS[0], "more")]))
    changed = [ROWS[0], ("a1", "another text", *ROWS[1][2:])]
    assert f"{file}:3: text differs from that in {file}:2" in refused(dpg(changed))
    assert "id 'a1' is already at" in refused(dpg([*ROWS, ROWS[0]]))
    assert "holds no prompts" in refused(dpg([]))
    file.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as CSV" in refused(folder)
    assert "group takes fields" in refused(dpg(fields={}))


@pytest.mark.parametrize(
    ("dependency", "why"), [("9", "question 3 depends on question 9"), ("3", "depends on itself")]
)
def test_a_broken_list_stops_a_run_before_anything_is_drawn(
    dpg: MadeTask, tmp_path: Path, tiny_janus: Path, dependency: str, why: str
) -> None:
    rows = [row if row[3] != "3" else (*row[:4], dependency, *row[5:]) for row in ROWS]
    with pytest.raises(GapbenchError, match=f"prompt a1: its list of questions is broken.*{why}"):
        gapbench.run(
            tasks=str(dpg(rows)), judges=f"vlm-list:{tiny_janus}", samples=1, out=tmp_path / "runs"
        )
    assert not (tmp_path / "runs").exists()


def test_grids_of_dpg_bench_from_the_folder_to_its_overall(
    dpg: MadeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its script's answers, and by a server's: a grid is four samples of its prompt."""
    task, grids = dpg(), tmp_path / "grids"
    grids.mkdir()
    (grids / "dpg_bench.csv").write_bytes((task / "dpg_bench.csv").read_bytes())
    lines = []
    for number, item in enumerate(("a1", "b2")):
        Image.effect_noise((16, 16), 60 + number).convert("RGB").save(grids / f"{item}.png")
        asked = [row[-1] for row in ROWS if row[0] == item]
        for left, top in ((0, 0), (8, 0), (0, 8), (8, 8)):
            box = (left, top, left + 8, top + 8)
            said = "no" if left and top else "yes"
            lines += [f"{item}.png, {box}, {q}, {said}" for q in asked[item == "a1" :]]
    (grids / "x_detail.txt").write_text("\n".join(lines))

    server = Server()
    server.play = lambda handler, asked: handler.say(
        "No" if "a cat?" in asked["messages"][0]["content"][1]["text"] else "Yes"
    )
    with server.serving(monkeypatch):
        url = f"vlm-list:server:http://127.0.0.1:{server.server_port}/v1#m"
        judges = [f"imported:{grids / 'x_detail.txt'}", url]
        run = gapbench.run(
            f"images:{grids}", tasks=str(task), judges=judges, verdict="none", out=tmp_path / "runs"
        )
    theirs, ours = (
        [r for r in run.rates(judge) if r.level == "official"] for judge in run.judges()
    )
    # Nobody asked the script's judge for a cat, and the cat's redness depends on that.
    assert [(r.metric, r.value, r.abstained) for r in theirs] == [("generation", 3 / 4, 4)]
    # Without a cat nothing is red, nor on it; the mat and the bowl are there.
    assert [(r.metric, r.value, r.abstained) for r in ours] == [("generation", (1 / 4 + 1) / 2, 0)]
    assert len(server.asked) == 4 * len(ROWS)


def test_the_whole_path(
    user_task: Callable[..., Path], tmp_path: Path, tiny_janus: Path, cli: Cli
) -> None:
    """Images are judged by lists; both official means are printed, the mean by skill as their
    authors form it, and each question is kept."""
    pairs = [["How many circles are in the image?", "two"], ["Are they red?", "Yes"]]
    records = [
        {
            "text": text,
            "requirement": {"vqa_list": pairs[:count], "skills": ["count", "attribute"][:count]},
        }
        for text, count in (("two red circles", 2), ("two circles", 1))
    ]
    folder = user_task(
        list(records), judge=f"soft-tifa:{tiny_janus}",
        overalls={"official_gm": ["*"], "official": ["*"]},
    )  # fmt: skip
    run = gapbench.run(tasks=str(folder), samples=2, verdict="none", out=tmp_path / "runs")
    kept = [v for v in run.folder.verdicts().values() if v.judge == "soft-tifa-tiny-janus"]
    assert {len(chances_in(v.text) or ()) for v in kept} == {1, 2}
    frame = run.frame()
    gm, am = (r for r in run.rates() if r.level == "official")
    assert (gm.metric, am.metric) == ("geometric", "generation")
    assert gm.value == pytest.approx(frame["geometric"].mean())
    assert am.value == pytest.approx(frame["score"].mean())
    by_image = {v.image: v for v in kept}
    for row in frame.to_dict("records"):
        assert row["geometric"] == geometric(by_image[row["image"]].text)
        assert row["geometric"] <= row["score"] + 1e-12
    kinds: dict[str, list[float]] = {"count": [], "attribute": []}
    for image in frame["image"]:
        for skill, chance in zip(kinds, chances_in(by_image[image].text) or (), strict=False):
            kinds[skill].append(chance)
    assert {skill: len(values) for skill, values in kinds.items()} == {"count": 4, "attribute": 2}
    told = json.loads((run.path / "results.json").read_text())["skills"]["soft-tifa-tiny-janus"]
    for skill, values in kinds.items():
        mine = told["mine"][skill]
        assert mine["value"] == pytest.approx(sum(values) / len(values))
        assert mine["low"] <= mine["value"] <= mine["high"]
        assert mine["questions"] == len(values)
    shown = cli("show", str(run.path)).stdout
    assert "probability of the right answer by skill, by soft-tifa-tiny-janus" in shown
    assert re.search(rf"mine +count +{100 * told['mine']['count']['value']:.1f} \[.*4\n", shown)
    (line,) = overall_lines(run.rates())
    assert line.startswith("mine, official (its authors' overall): geometric mean ")
    assert "; generation " in line
