"""Runs with images that the model refused to draw: submitted, verified and ranked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import gapbench
from gapbench.leaderboard.again import check_again
from gapbench.leaderboard.board import boards
from gapbench.leaderboard.submission import REFUSED, contents, frame, read
from gapbench.leaderboard.submit import submit
from gapbench.leaderboard.verify import check
from gapbench.metrics.ranking import standings

REASON = "it is too long"


def refusing(made: Any, monkeypatch: pytest.MonkeyPatch, texts: set[str]) -> None:
    monkeypatch.setattr(
        type(made.model), "refuses", lambda _, text: REASON if text in texts else None
    )


@pytest.fixture(scope="module")
def refused(made: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    """A run whose first prompt was refused, and its submission; it is refused still."""
    place = tmp_path_factory.mktemp("refused")
    with pytest.MonkeyPatch.context() as patch:
        refusing(made, patch, {made.run.plan.prompts[0].text})
        run = gapbench.run(made.model, "few-shapes", out=place / "runs")
        yield run, submit(run, place / "results", test_model=True)


def test_the_card_counts_them_and_every_level_passes(refused: tuple[Any, Path]) -> None:
    run, place = refused
    card = json.loads((place / "card.json").read_text())
    assert card["refused"] == {REASON: 2}
    rates = json.loads((place / "rates.json").read_text())["ranked"]
    assert rates == json.loads(json.dumps([asdict(rate) for rate in run.rates()]))
    assert check(place) == []
    assert check_again(place, run.path, rejudge=24, redraw=24) == []


def test_they_count_against_the_rank(made: Any, refused: tuple[Any, Path]) -> None:
    """As a model's that rejects these images and accepts their mismatched pairs."""
    mine = read(refused[1])
    whole = frame(read(made.folder).rows, {})
    lost = whole["prompt"] == made.run.plan.prompts[0].id
    whole.loc[lost, ["own", "outside"]] = 0.0
    whole.loc[lost & whole["mismatched_asked"], "mismatched"] = 1.0
    expected = standings({"same": whole})["same"]
    assert standings({"same": frame(mine.rows, mine.card.scales)})["same"] == expected
    [overall] = [b for b in boards([mine]) if b.title.endswith("overall")]
    [row] = [row for row in overall.rows if row.kind == "model"]
    assert row.values[2] == expected.value


def test_a_tier_that_was_refused_as_a_whole_has_no_figures(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(made, monkeypatch, {p.text for p in made.run.plan.prompts if p.tier == "hard"})
    run = gapbench.run(made.model, "few-shapes", out=tmp_path / "runs")
    place = submit(run, tmp_path / "results", test_model=True)
    assert check(place) == []
    [hard] = [b for b in boards([read(place)]) if b.title.endswith("hard")]
    [row] = [row for row in hard.rows if row.kind == "model"]
    assert set(row.cells[3:]) == {"n/a"}
    assert row.values[2] == -1.0


@pytest.mark.parametrize(
    ("forge", "fault"),
    [
        (lambda rows, card: card.update(refused={}), "by other reasons or counts than the card's"),
        (lambda rows, card: card.update(refused={"it cannot": 2}), "by other reasons or counts"),
        (lambda rows, card: rows[0].update(verdict=1), "a verdict on an image that the model ref"),
        (lambda rows, card: rows[0].update(score=0.5), "a verdict on an image that the model ref"),
        (lambda rows, card: rows[0].update(reason=""), "no verdict, and no reason"),
        (lambda rows, card: rows[0].update(reason="another"), "refused for two reasons"),
        (lambda rows, card: rows[0].update(image="0" * 64), "two images of one prompt and seed"),
    ],
)
def test_forged(refused: tuple[Any, Path], forge: Any, fault: str, tmp_path: Path) -> None:
    place = Path(shutil.copytree(refused[1], tmp_path / "janus-mini"))
    submission = read(place)
    rows = submission.rows.astype(object)
    rows = rows.where(rows.notna(), None).to_dict("records")
    rows.sort(key=lambda row: row["image"] != REFUSED)
    card = submission.card.model_dump(exclude={"files"})
    forge(rows, card)
    for name, data in contents(card, rows).items():
        (place / name).write_bytes(data)
    [found, *_] = check(place)
    assert fault in found


def test_failures_that_are_called_refused(
    made: Any, refused: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows cannot tell; the run and the model can."""
    place = refused[1]
    [against_the_run] = check_again(place, made.run.path)
    assert "refused is" in against_the_run
    refusing(made, monkeypatch, set())
    faults = check_again(place, redraw=24)
    assert [fault.split(": ")[-1] for fault in faults] == [
        "the model does not refuse to draw it"
    ] * 2
