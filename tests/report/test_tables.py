"""Tables carry every figure; contact sheets show every group of verdicts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scenes import sample_scene

from gapbench import GapbenchError, Generation, Prompt, Rates, Verdict, load_task, open_run
from gapbench.metrics.metric import shown_in
from gapbench.report import tables
from gapbench.report.sheets import COLUMNS, MOST, SIDE, write_sheets
from gapbench.runs.folder import RunFolder
from gapbench.runs.plan import Plan
from gapbench.runs.run import Run
from gapbench.runs.seeds import seed_of
from gapbench.tasks.world import render

RED, ORANGE, BLUE, GREEN, GREY = (
    (200, 40, 40),
    (215, 130, 0),
    (60, 90, 190),
    (40, 140, 70),
    (120, 120, 120),
)
ODD = (
    "<img src=x onerror=alert(1)>",
    "{prompt} {your score} [bold]",
    "🟥 円 naïve \u202e right to left \u2028 separator",
    "W" * 400,
    "word " * 200,
    "\u3000x",
    "../../etc/passwd",
)
Make = Callable[..., Run]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A run folder from (category, text, own, outside) rows, without a model."""

    def call(rows: list[tuple[str, str, int | None, int | None]], size: int = 24) -> Run:
        folder = RunFolder.create(tmp_path, "m", {"model": "m", "seed": 0}, {})
        rng = np.random.default_rng(0)
        scenes = [p.requirement for p in load_task("shapes").prompts()]
        prompts, records = [], []
        for number, (category, text, own, outside) in enumerate(rows):
            prompt = Prompt(
                id=f"{number}", task="mine", category=category, tier="easy", text=text,
                question=f"{number}: {text}?", requirement={},
            )  # fmt: skip
            scene = sample_scene(scenes[number % len(scenes)], rng)
            picture = Image.fromarray(render(scene, noise=2, seed=number)).resize((size, size))
            image = folder.add_image(picture)
            seed = seed_of(0, text, 0)
            prompts.append(prompt)
            records.append(
                Generation(
                    prompt=text, sample=0, seed=seed, image=image, tokens=None,
                    effective_prompt=text, logprob=None, seconds=0.0,
                )
            )  # fmt: skip
            answers = (
                ("self", prompt.question, own, 0.25),
                ("pixel", f"ask {number}", outside, None),
            )
            records += [
                Verdict(
                    image=image, question=question, judge=judge, fingerprint=judge, verdict=verdict,
                    p_yes=p_yes, reason=None if verdict is not None else "abstained",
                )
                for judge, question, verdict, p_yes in answers
            ]  # fmt: skip
        folder.append(records)
        plan = Plan(
            tasks={"mine": "1"}, prompts=prompts, partner=[None] * len(rows),
            asks=[{"pixel": f"ask {n}"} for n in range(len(rows))], samples={"mine": 1},
            judges={"pixel": "pixel"}, own="self", own_fingerprint="self", seed=0,
        )  # fmt: skip
        folder.write("plan.json", asdict(plan))
        return open_run(folder.path)

    return call


def rate(**more: Any) -> Rates:
    values = {
        "level": "category", "name": "shapes/colors", "metric": "generation", "value": 0.25,
        "low": 0.1, "high": 0.456, "numerator": 3.0, "denominator": 12.0, "n_prompts": 4,
        "deff": 1.5, "abstained": 0,
    }  # fmt: skip
    return Rates(**values | more)


SOME = [
    rate(),
    rate(metric="non_unification", value=0.5, numerator=6.0, abstained=2),
    rate(metric="misunderstanding", value=0.125, numerator=1.0, denominator=8.0),
    rate(metric="false_positive", value=None, low=None, high=None, numerator=0.0, denominator=0.0),
    rate(level="task", name="shapes", value=0.987, numerator=77.0, denominator=78.0),
    rate(level="overall", name="overall", metric="generation", value=0.3, numerator=2.5),
]


def text_of(
    rates: list[Rates], width: int = 200, show: Callable[..., None] = tables.show, **more: bool
) -> str:
    console = Console(width=width, file=io.StringIO(), markup=False, highlight=False)
    show(rates, console, **more)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_cells() -> None:
    assert tables.cell(rate()) == ("25.0 [10.0, 45.6]", "(3/12)")
    assert tables.cell(rate(abstained=2)) == ("25.0 [10.0, 45.6]", "(3/12, 2 abstained)")
    assert tables.cell(rate(value=1.0, low=0.999, high=1.0))[0] == "100.0 [99.9, 100.0]"
    assert tables.cell(rate(value=0.0, low=0.0, high=0.0004))[0] == "0.0 [0.0, 0.0]"
    assert tables.cell(rate(numerator=2.5))[1] == "(2.5/12)"
    nothing = rate(value=None, low=None, high=None, numerator=0.0, denominator=0.0)
    assert tables.cell(nothing) == ("n/a", "(0/0)")
    science = rate(value=24.5, low=24.0, high=25.0, numerator=294.0, unit="SciScore")
    assert tables.cell(science) == ("24.500 [24.000, 25.000]", "SciScore (294/12)")
    mixed = rate(value=None, low=None, high=None, numerator=294.5, unit="%, SciScore")
    assert tables.cell(mixed) == ("n/a", "(no mean of %, SciScore)")
    assert tables.cell(replace(nothing, abstained=7)) == ("n/a", "(0/0, 7 abstained)")
    both = replace(nothing, metric="weak_generation", abstained=7)
    assert tables.cell(both) == ("n/a", "(7 abstained)")


@pytest.mark.parametrize("width", [200, 100, 60])
def test_text_carries_every_figure(width: int) -> None:
    shown = text_of(SOME, width, verbose=True)
    words = " ".join(shown.split())
    short = text_of(SOME, width)
    assert "25.0 [10.0, 45.6]" in short
    assert "(" not in short
    science = replace(SOME[0], unit="SciScore", value=24.5, low=24.0, high=25.0)
    assert "24.500 [24.000, 25.000] SciScore" in text_of([science, *SOME[4:]], width)
    for figure in ("25.0 [10.0, 45.6]", "50.0 [10.0, 45.6]", "98.7 [10.0, 45.6]", "n/a"):
        assert figure in words
    for counts in ("(3/12)", "(77/78)", "(0/0)", "(2.5/12)"):
        assert counts in words
    assert "(6/12, 2 abstained)" in words
    for metric in shown_in("tables"):
        assert metric.title in words
    assert all(len(line) <= width for line in shown.splitlines())


def test_names_that_begin_alike_are_never_cut() -> None:
    """Of two tasks, whose categories stand below them, at every width."""
    names = [f"{task}/a_category_with_a_very_long_name_{end}" for task in "ab" for end in "xy"]
    rates = [rate(name=name) for name in names] + [rate(level="task", name=task) for task in "ab"]
    for width in (40, 60, 80):
        shown = text_of(rates, width)
        assert "…" not in shown
        assert all(len(line) <= width for line in shown.splitlines())
    wide = [line.split()[0] for line in text_of(rates, 120).splitlines() if "25.0" in line]
    assert wide[:6] == ["a", names[0][2:], names[1][2:], "b", names[2][2:], names[3][2:]]


def test_the_short_table_holds_the_tiers_and_the_total() -> None:
    tiers = [
        rate(level="tier", name=name, value=share) for name, share in (("easy", 0.9), ("hard", 0.1))
    ]
    rows = text_of([*SOME, *tiers], 80, tables.show_overall).splitlines()
    assert [row.split() for row in rows if row.strip()] == [
        ["%", "overall", "easy", "hard"],
        ["generation", "30.0", "[10.0,", "45.6]", "90.0", "10.0"],
    ]


def test_markdown_carries_every_figure() -> None:
    rows = tables.render(SOME, "markdown").splitlines()
    assert len({row.count("|") for row in rows}) == 1
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[0] == ["", *(metric.title for metric in shown_in("tables"))]
    assert [row[0] for row in cells[2:]] == ["shapes/colors", "**shapes**", "**overall**"]
    assert cells[2][1:5] == [
        "25.0 [10.0, 45.6] (3/12)",
        "50.0 [10.0, 45.6] (6/12, 2 abstained)",
        "n/a",
        "n/a (0/0)",
    ]


def test_what_others_form_stands_apart_from_the_table() -> None:
    theirs = [rate(level="official", name="geneval"), rate(level="paper", name="geneval")]
    lines = tables.render([*SOME, *theirs], "markdown").splitlines()
    assert lines[-2:] == [
        "- geneval, official (its authors' overall): generation 25.0 [10.0, 45.6] (3/12)",
        "- geneval, the paper's mean: generation 25.0 [10.0, 45.6] (3/12)",
    ]
    assert text_of([*SOME, *theirs], verbose=True).splitlines()[-2:] == [
        line[2:] for line in lines[-2:]
    ]
    assert not [line for line in lines if line.startswith("|") and "geneval" in line]


def test_csv_and_json_are_the_records() -> None:
    assert json.loads(tables.render(SOME, "json")) == [asdict(r) for r in SOME]
    rows = list(csv.DictReader(io.StringIO(tables.render(SOME, "csv"))))
    assert list(rows[0]) == list(asdict(SOME[0]))
    for row, wanted in zip(rows, SOME, strict=True):
        for key, value in asdict(wanted).items():
            if value is None:
                assert row[key] == ""
            elif isinstance(value, str):
                assert row[key] == value
            else:
                assert float(row[key]) == value


def test_latex_prints_every_text_as_it_is() -> None:
    theirs = rate(level="official", name="my_task")
    made = tables.render([*SOME, rate(name="[a] & 50% $x_1^2$ {#} ~\\"), theirs], "latex", "* two")
    lines = made.splitlines()
    assert lines[1] == rf"\begin{{tabular}}{{l{'r' * len(shown_in('tables'))}}}"
    assert lines[5].startswith(r"shapes/colors & 25.0 [10.0, 45.6] & 50.0 [10.0, 45.6] & n/a &")
    (odd,) = [line for line in lines if "50" in line and "[a]" in line]
    assert odd.startswith(
        r"{}[a] \& 50\% \$x\_1\textasciicircum{}2\$ \{\#\} \textasciitilde{}\textbackslash{} & "
    )
    assert lines[-2] == (
        r"\par my\_task, official (its authors' overall): generation 25.0 [10.0, 45.6] (3/12)"
    )
    assert lines[-1] == r"\par * two"


def test_no_rates_and_no_format() -> None:
    assert json.loads(tables.render([], "json")) == []
    assert "generation" in tables.render([], "markdown")
    assert "generation" in text_of([])
    with pytest.raises(GapbenchError, match="no format 'yaml'; there are text, markdown, csv"):
        tables.render(SOME, "yaml")


def colours(file: Path) -> set[tuple[int, ...]]:
    pixels = np.asarray(Image.open(file).convert("RGB")).reshape(-1, 3)
    return {tuple(color) for color in np.unique(pixels, axis=0).tolist()}


def test_one_sheet_a_category(make: Make) -> None:
    done = make([("a", "x", 1, 1), ("b", "y", 0, 0), ("b", "z", 0, 0)])
    files = write_sheets(done)
    assert files == [done.path / "sheets" / f"mine-{c}.png" for c in "ab"]
    for file in files:
        picture = Image.open(file)
        picture.load()
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        assert picture.width == COLUMNS * (SIDE + 10) + 10
    assert files == write_sheets(done)
    assert sorted(done.path.glob("sheets/*")) == files


@pytest.mark.parametrize(
    ("own", "outside", "color"),
    [
        (1, 0, RED),
        (0, 1, ORANGE),
        (0, 0, BLUE),
        (1, 1, GREEN),
        (None, 1, GREY),
        (0, None, GREY),
        (None, None, GREY),
    ],
)
def test_images_stand_in_the_group_of_their_verdicts(
    make: Make, own: int | None, outside: int | None, color: tuple[int, int, int]
) -> None:
    [file] = write_sheets(make([("a", "x", own, outside)]))
    frames = {RED, ORANGE, BLUE, GREEN, GREY} & colours(file)
    assert frames - {color} <= {GREY} - {color}
    assert color in frames
    # The frame around the one picture.
    picture = np.asarray(Image.open(file))
    assert tuple(picture[66, 50]) == color
    assert tuple(picture[68 + SIDE + 1, 50]) == color


def test_mistakes_come_first_and_groups_share_the_room(make: Make) -> None:
    rows: list[tuple[str, str, int | None, int | None]] = []
    rows += [("a", f"right {n}", 1, 1) for n in range(60)]
    rows += [("a", f"wrong {n}", 1, 0) for n in range(3)]
    rows += [("a", f"missed {n}", 0, 1) for n in range(30)]
    [file] = write_sheets(make(rows))
    picture = np.asarray(Image.open(file))
    tops = {
        color: [y for y in range(picture.shape[0]) if tuple(picture[y, 60]) == color]
        for color in (RED, ORANGE, GREEN)
    }
    assert max(tops[RED]) < min(tops[ORANGE])
    assert max(tops[ORANGE]) < min(tops[GREEN])
    frames = (picture == np.array(RED)).all(-1)[66]
    assert frames.sum() == 3 * (SIDE + 4)
    # 3 + 19 + 18 pictures: one row, three rows, three rows.
    assert picture.shape[0] == 40 + 3 * 28 + 7 * (SIDE + 62 + 10)
    assert MOST == 3 + 19 + 18


@pytest.mark.parametrize("size", [24, 32, 384])
def test_odd_prompts_do_not_break_a_sheet(make: Make, size: int) -> None:
    done = make([("a", text, number % 2, 0) for number, text in enumerate(ODD)], size)
    [file] = write_sheets(done)
    assert file.parent == done.path / "sheets"
    Image.open(file).load()


def test_an_altered_image_is_not_shown(make: Make) -> None:
    done = make([("a", "x", 1, 1)])
    place = done.folder.image_path(done.frame()["image"][0])
    place.write_bytes(b"not a picture")
    with pytest.raises(GapbenchError, match="was altered"):
        write_sheets(done)


def test_sheets_that_cannot_be_written_say_so(make: Make) -> None:
    done = make([("a", "x", 1, 1)])
    (done.path / "sheets").write_text("in the way")
    with pytest.raises(GapbenchError, match="run the same command again"):
        write_sheets(done)
