"""The board: from results/ alone, checked in CI, and a page that shows what it is given as text."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gapbench.leaderboard.board import boards, markdown, page, published
from gapbench.leaderboard.submission import CARD, contents, read, sha256, submissions

Cli = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parents[2]
HOSTILE = '<img src=x onerror="alert(1)">|**x**'


class Reader(HTMLParser):
    """Tags with their attributes, and the texts of table cells by row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.text = ""

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.rows[-1].append(self.text.strip())


def entered(
    folder: Path, name: str, change: Callable[[Any], None] | None = None, **card: Any
) -> None:
    """Another submission beside one, with its rows changed."""
    place = folder.with_name(name)
    shutil.copytree(folder, place)
    old = json.loads((place / CARD).read_text())
    del old["files"]
    rows = read(place).rows.astype(object)
    records = rows.where(rows.notna(), None).to_dict("records")
    for row in records if change else ():
        change(row)  # type: ignore[misc]
    for file, data in contents({**old, "name": name, **card}, records).items():
        (place / file).write_bytes(data)


def table(text: str, title: str) -> list[list[str]]:
    """The cells of the Markdown table under the heading that ends with `title`."""
    part = re.split(rf"^#+ .*{re.escape(title)}$", text, flags=re.M)[1]
    lines = [line for line in part.split("\n#")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:1] + lines[2:]]


def test_the_repositorys_board_is_what_its_results_give() -> None:
    assert (ROOT / "leaderboard.md").read_text() == markdown(submissions(ROOT / "results"))


def test_the_command_writes_both_and_checks(copy: Path, board_cli: Cli, tmp_path: Path) -> None:
    absent = board_cli("leaderboard", "--check")
    assert (absent.returncode, absent.stderr) == (1, "")
    done = board_cli("leaderboard")
    assert (done.returncode, done.stderr) == (0, "")
    assert {f.name for f in tmp_path.iterdir()} == {"results", "leaderboard.md", "leaderboard.html"}
    assert board_cli("leaderboard", "--check").returncode == 0
    board = tmp_path / "leaderboard.md"
    board.write_text(board.read_text().replace("janus-mini", "janus-maxi", 1))
    changed = board_cli("leaderboard", "--check")
    assert changed.returncode == 1
    assert "run `gapbench leaderboard`" in changed.stdout
    assert "janus-maxi" in board.read_text()


def test_it_takes_the_results_alone(copy: Path, tmp_path: Path) -> None:
    """No task is installed, no torch is imported, and the order of folders does not matter."""
    entered(copy, "a-model")
    code = (
        "import sys; from pathlib import Path\n"
        "from gapbench.leaderboard.submission import submissions\n"
        "from gapbench.leaderboard.board import markdown\n"
        "sys.stdout.write(markdown(submissions(Path('results'))))\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == markdown(submissions(tmp_path / "results"))


def test_figures_are_those_of_the_run(made: Any) -> None:
    head, *rows = table(markdown([read(made.folder)]), ": overall")
    assert head == [
        "rank", "model", "unified", "generation", "non-unification", "weak generation",
        "false positive", "accepts mismatched",
    ]  # fmt: skip
    mine = next(row for row in rows if row[1] == "janus-mini")
    from gapbench.report.tables import cell

    rates = {rate.metric: rate for rate in made.run.rates() if rate.level == "overall"}
    assert mine[3] == " ".join(cell(rates["generation"]))
    assert mine[7] == " ".join(cell(rates["mismatch_acceptance"]))
    assert [row[0] for row in rows].count("baseline") == 3


def test_test_models_stand_apart_and_tiers_have_tables(copy: Path) -> None:
    origin = [{"role": "model", "repo": "a/b", "revision": "c" * 40}]
    entered(copy, "real-model", test_model=False, checkpoints=origin)
    found = boards(submissions(copy.parent))
    assert [(b.test, b.title.rsplit(" ", 1)[-1]) for b in found] == [
        (test, level) for test in (False, True) for level in ("overall", "easy", "medium", "hard")
    ]
    for board in found:
        models = [row.cells[1] for row in board.rows if row.kind == "model"]
        assert models == (["janus-mini"] if board.test else ["real-model"])


def test_a_better_model_ranks_above_and_equals_tie(copy: Path) -> None:
    def draws_well(row: Any) -> None:
        row["verdict"] = 0 if row["role"] in ("mismatched", "partner") else 1

    def draws_badly(row: Any) -> None:
        row["verdict"] = 1 if row["role"] == "mismatched" else 0

    for name, change in (("good", draws_well), ("twin", draws_well), ("bad", draws_badly)):
        entered(copy, name, change)
    _, *rows = table(markdown(submissions(copy.parent)), ": overall")
    ranks = {row[1]: row[0] for row in rows}
    assert ranks["good"] == ranks["twin"]
    assert ranks["good"].startswith("1= ")
    assert ranks["bad"].startswith("4 ")
    assert ranks["accepts everything, on good"] == "baseline"


@pytest.mark.parametrize("change", ["judge", "own", "task"])
def test_only_what_was_measured_alike_is_ranked_together(copy: Path, change: str) -> None:
    card = json.loads((copy / CARD).read_text())
    if change == "judge":
        card["judges"] = {"pixel": "other"}
    elif change == "own":
        card["own"] = "self-text"
    else:
        card["tasks"]["few-shapes"]["version"] = "2.0"
    entered(copy, "other", **{k: card[k] for k in ("judges", "own", "tasks")})
    found = boards(submissions(copy.parent))
    assert len({board.title for board in found}) == len(found) == 8
    for board in found:
        assert len([row for row in board.rows if row.kind == "model"]) == 1


def test_one_with_more_tasks_is_ranked_where_others_are(copy: Path) -> None:
    card = json.loads((copy / CARD).read_text())
    tasks = {**card["tasks"], "more": {**card["tasks"]["few-shapes"], "prompts": "e" * 64}}
    place = copy.with_name("wide")
    shutil.copytree(copy, place)
    rows = read(place).rows.astype(object)
    records = rows.where(rows.notna(), None).to_dict("records")
    records += [{**row, "task": "more"} for row in records]
    del card["files"]
    for file, data in contents({**card, "name": "wide", "tasks": tasks}, records).items():
        (place / file).write_bytes(data)
    overall = [b for b in boards(submissions(copy.parent)) if b.title.endswith("overall")]
    assert [
        (b.title.split(";")[0], sorted(r.cells[1] for r in b.rows if r.kind == "model"))
        for b in overall
    ] == [
        ("few-shapes 1.0, more 1.0", ["wide"]),
        ("few-shapes 1.0", ["janus-mini", "wide"]),
        ("more 1.0", ["wide"]),
    ]


def test_a_judge_whose_name_has_a_blank_keeps_it(copy: Path) -> None:
    def renamed(row: Any) -> None:
        row["judge"] = row["judge"].replace("pixel", "pixel of mine")

    card = json.loads((copy / CARD).read_text())
    tasks = card["tasks"]
    tasks["few-shapes"]["judges"] = dict.fromkeys(tasks["few-shapes"]["judges"], "pixel of mine")
    entered(copy, "other", renamed, judges={"pixel of mine": "some weights"}, tasks=tasks)
    mark = sha256("some weights")[:8]
    titles = [board.title for board in boards(submissions(copy.parent))]
    assert sum(f"outside judge pixel of mine ({mark});" in title for title in titles) == 4


def test_a_judge_of_scores_alone_has_a_place_on_the_board(copy: Path) -> None:
    def scored(row: Any) -> None:
        if row["role"] == "outside":
            row |= {"verdict": None, "score": 24.0, "reason": "a score and no verdict"}

    scales = {"pixel": ("SciScore", -100.0, 100.0)}
    entered(copy, "scored", scored, judges={"pixel": "other"}, scales=scales)
    text = markdown(submissions(copy.parent))
    row = next(line for line in text.splitlines() if line.startswith("| n/a") and "scored" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2] == "n/a"
    assert cells[3].startswith("24.000 [24.000, 24.000] SciScore (")
    assert cells[4].startswith("n/a") or "[" in cells[4]


def test_the_papers_figures_stand_apart_and_add_up() -> None:
    head, *rows = table(markdown([]), "Reported elsewhere")
    assert {row[0] for row in rows} == {"reported"}
    assert len(rows) == 12
    named = {row[1]: dict(zip(head[2:], row[2:], strict=True)) for row in rows}
    # Overall rows as the paper prints them for Janus-Pro-7B.
    assert named["janus-pro-7b, base"]["t2i-compbench++: generation"] == "35.21"
    assert named["janus-pro-7b, base"]["t2i-compbench++: non-unification"] == "26.22"
    assert named["janus-pro-7b, c-sft"]["t2i-compbench++: generation"] == "44.18"
    assert len(published()[1]) == 12


def test_the_page_loads_nothing_and_allows_its_own_script_only(made: Any) -> None:
    import base64
    import hashlib

    text = page([read(made.folder)])
    read_page = Reader(text)
    policy = next(
        attrs["content"] for tag, attrs in read_page.tags
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
    )  # fmt: skip
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for kind in ("script", "style"):
        [body] = re.findall(rf"<{kind}>(.*?)</{kind}>", text, flags=re.S)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    for _, attrs in read_page.tags:
        assert not {"src", "style"} & set(attrs)
        assert attrs.get("href", "data:,") == "data:,"  # the empty icon
        assert not any(name.startswith("on") for name in attrs)
    rows = [row for board in boards([read(made.folder)]) for row in board.rows]
    shown = [row for row in read_page.rows if row and row[0] != "rank"]
    # On the page the counts stand on a line of their own.
    joined = [["".join(cell.split()) for cell in row] for row in shown[: len(rows)]]
    assert joined == [["".join(cell.split()) for cell in row.cells] for row in rows]


def test_what_a_submission_says_stays_text(copy: Path) -> None:
    entered(
        copy, "hostile", contact=HOSTILE, recipe={HOSTILE: HOSTILE}, versions={HOSTILE: HOSTILE}
    )
    found = submissions(copy.parent)
    text = page(found)
    assert "<img" not in text
    assert "&lt;img src=x onerror=&#34;alert(1)&#34;&gt;" in text
    assert not any(tag == "img" for tag, _ in Reader(text).tags)
    assert HOSTILE not in markdown(found)


def test_names_that_are_no_names_are_refused(copy: Path, board_cli: Cli) -> None:
    entered(copy, "hostile")
    card = json.loads((copy.with_name("hostile") / CARD).read_text())
    (copy.with_name("hostile") / CARD).write_text(json.dumps({**card, "name": HOSTILE}))
    done = board_cli("leaderboard")
    assert (done.returncode, done.stdout) == (2, "")
    assert "card.json: name" in done.stderr
