"""The parts of scripts/small_world*.py and scripts/planted.py that decide what its tables mean."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from gapbench import load_judge, load_task
from gapbench.models import load_model
from gapbench.models.base import Model
from gapbench.verdict import ANSWERS

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture(scope="module")
def scripts():
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def drawn():
    """Prompts of all tiers with an image each, and what janus-mini and the judge say of them."""
    prompts = load_task("shapes").prompts()[::15]
    model = load_model("janus-mini")
    images = [d.image for d in model.generate([p.text for p in prompts], [3] * len(prompts))]
    own = accepted(model, images, prompts)
    judge = np.array([a.verdict == 1 for a in load_judge("pixel").judge(images, prompts)])
    assert 5 < own.sum() < len(own) - 5
    assert 5 < judge.sum() < len(judge) - 5
    return prompts, images, own, judge


def accepted(model: Model, images, prompts):
    logprobs = model.judge(images, [p.question for p in prompts], ANSWERS)
    assert (np.exp(logprobs).sum(1) < 1 + 1e-6).all()
    return logprobs[:, 1] > logprobs[:, 0]


def planted(kind, share, monkeypatch):
    monkeypatch.setenv("SMALL_WORLD_SHARE", str(share))
    return load_model(f"planted:{kind}")


def test_planted_verdicts_are_what_their_names_say(scripts, drawn, monkeypatch):
    prompts, images, own, judge = drawn
    said = {
        kind: accepted(planted(kind, 1, monkeypatch), images, prompts)
        for kind in ("Inverted", "Outside", "Lot")
    }
    assert said["Inverted"].tolist() == (~own).tolist()
    assert said["Outside"].tolist() == judge.tolist()
    assert said["Lot"].all()


def test_a_share_is_taken_by_lot_and_stays_the_same(scripts, drawn, monkeypatch):
    prompts, images, _, judge = drawn
    outside, lot = (planted(kind, 0.5, monkeypatch) for kind in ("Outside", "Lot"))
    kept = accepted(outside, images, prompts)
    assert not (kept & ~judge).any()
    by_lot = accepted(lot, images * 8, [p for p in prompts for _ in range(8)])
    assert 0.35 < by_lot.mean() < 0.65
    again = accepted(lot, images[::-1], prompts[::-1])[::-1]
    assert again.tolist() == accepted(lot, images, prompts).tolist()
    assert kept.tolist() == (judge & again).tolist()


def test_an_interval_over_seeds_has_the_prompts_and_the_seeds(scripts):
    from small_world_tables import over_seeds

    assert over_seeds([(0.1, 0.07, 0.13)]) == pytest.approx((10, 7, 13))
    mean, low, high = over_seeds([(0.08, 0.05, 0.11), (0.1, 0.07, 0.13), (0.12, 0.09, 0.15)])
    seeds = 4.302653 * 2 / 3**0.5  # Student's t, 2 degrees of freedom
    half = (3**2 + seeds**2) ** 0.5
    assert (mean, low, high) == pytest.approx((10, 10 - half, 10 + half), abs=1e-4)


def test_a_fix_that_another_series_made_is_not_made_again(scripts, tmp_path):
    from small_world import Series, folder, plan

    lines = {name: line for name, (line, _) in plan(tmp_path, "search").items()}
    made = {"SFT, seed 0": {"command": lines["mixed, 3e-4"]}}
    (tmp_path / "claims.json").write_text(json.dumps(made))
    series = Series.__new__(Series)
    series.work = tmp_path
    assert series.equal(lines["mixed, 3e-4"]) == folder("claims", "SFT, seed 0")
    assert series.equal(lines["mixed, 1e-3"]) is None


def test_no_lot_gives_the_two_answers_more_than_everything(scripts, drawn, monkeypatch):
    prompts, images, _, _ = drawn
    for share in (0, 1):
        lot = planted("Lot", share, monkeypatch)
        monkeypatch.setattr("planted._lot", lambda *_: 1e-7)
        assert accepted(lot, images, prompts).all() == bool(share)
        monkeypatch.undo()
