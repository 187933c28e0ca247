"""`--reflect K` from the command line to the report, with a model that answers at once: another
count of the same attempts says what must come out, and no other figure may change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from here import end
from PIL import Image
from stubs import files, records

import gapbench
from gapbench import GapbenchError, Generation, Verdict, load_task, open_run
from gapbench.comparison.compare import stored
from gapbench.comparison.words import render
from gapbench.metrics.verification import verification
from gapbench.models.base import Drawing, Model
from gapbench.runs.judge import judge_run
from gapbench.runs.merge import merge
from gapbench.runs.reflect import Tried, chains, tried
from gapbench.runs.run import Run
from gapbench.runs.seeds import seed_of
from gapbench.runs.settings import Shard
from gapbench.types import Failure, Unfinished

LIMIT, MOST = 12, 3
JUDGE = """
from gapbench import Answer

class Odd:
    name, fingerprint = "odd", "odd-1"
    def judge(self, images, prompts):
        return [Answer(verdict=image.getpixel((0, 0))[1] % 2) for image in images]

class Dim(Odd):
    name, fingerprint = "dim", "dim-1"
    def judge(self, images, prompts):
        return [Answer(verdict=int(image.getpixel((0, 0))[2] < 128)) for image in images]
"""


def chance(seed: int) -> float:
    """How sure the model is of the image of a seed: in three of five cases below a half."""
    return 0.21 + seed % 5 / 10 + seed % 97 / 1000


class Sure(Model):
    """Draws a picture for each seed, and is as sure of it as `chance` says. It draws no image of a
    seed of `refuses_seeds`, fails at those of `fails`, and abstains at those of `silent`."""

    name, capabilities, fingerprint = "sure", ("generate", "judge_logits"), "sure-1"

    def __init__(self) -> None:
        self.refuses_seeds, self.fails, self.silent = set[int](), set[int](), set[int]()
        self.drew, self.seeds = list[int](), dict[bytes, int]()

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawing]:
        done, failed = dict[int, Drawing](), dict[int, Failure]()
        for place, seed in enumerate(seeds):
            if seed in self.refuses_seeds | self.fails:
                failed[place] = Failure("not this one", final=seed in self.refuses_seeds)
                continue
            pixels = np.frombuffer(hashlib.sha256(b"%d" % seed).digest()[:12], np.uint8)
            image = Image.fromarray(pixels.reshape(2, 2, 3))
            self.seeds[image.tobytes()] = seed
            done[place] = Drawing(image)
            self.drew.append(seed)
        if failed:
            raise Unfinished("some failed", done, failed)
        return [done[place] for place in range(len(seeds))]

    def judge(self, images: Any, questions: Any, answers: Any) -> Any:
        drawn = [self.seeds[image.tobytes()] for image in images]
        odds = [(1 - chance(seed), chance(seed)) for seed in drawn]
        silent = np.array([[seed in self.silent] for seed in drawn])
        return np.where(silent, -np.inf, np.log(odds))

    def check_seeds(self, prompt: str, seed: int) -> None:  # draws no more
        return None


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("judge") / "odd.py"
    file.write_text(JUDGE)
    return f"{file}:Odd"


def draw(out: Path, odd: str, model: Model | None = None, **more: Any) -> Run:
    given: dict[str, Any] = {"samples": 1, "limit": LIMIT, "reflect": MOST, "judges": [odd]} | more
    return gapbench.run(model or Sure(), "shapes", out=out, **given)


@pytest.fixture(scope="module")
def reflected(tmp_path_factory: pytest.TempPathFactory, odd: str) -> Run:
    return draw(tmp_path_factory.mktemp("reflected"), odd)


def seeds(text: str, most: int = MOST) -> list[int]:
    """The seeds of a prompt's attempts, up to the first that is accepted."""
    every = [seed_of(0, text, k) for k in range(most + 1)]
    right = [place for place, seed in enumerate(every) if chance(seed) >= 0.5]
    return every[: right[0] + 1] if right else every


def drawn(run: Run) -> set[tuple[str, int]]:
    return set(run.folder.generations())


def test_no_more_is_drawn_than_each_prompt_needs(reflected: Run) -> None:
    texts = [prompt.text for prompt in reflected.plan.prompts]
    assert drawn(reflected) == {(text, seed) for text in texts for seed in seeds(text)}
    lengths = [len(seeds(text)) for text in texts]
    assert {1, MOST + 1} < {*lengths}  # some at once, some never
    samples = {(g.prompt, g.sample, g.seed) for g in reflected.folder.each(Generation)}
    assert samples == {(t, k, seed) for t in texts for k, seed in enumerate(seeds(t))}
    judged = {v.image for v in reflected.folder.each(Verdict) if v.judge == "odd"}
    kept = {each.kept.image for each in tried(reflected.plan, reflected.folder)}
    assert judged == kept | {*reflected.frame()["image"]}
    made = reflected.reflection()
    assert made is not None
    assert (made.images, made.overall.prompts, made.overall.judged) == (sum(lengths), 12, 12)


def test_figures_are_those_of_the_attempts(reflected: Run) -> None:
    made, frame = reflected.reflection(), reflected.frame()
    assert made is not None
    right, accepted = [], []
    for text in frame["text"]:
        best = max(seeds(text), key=chance)
        pixels = np.frombuffer(hashlib.sha256(b"%d" % best).digest()[:3], np.uint8)
        right.append(float(pixels[1] % 2))
        accepted.append(float(chance(best) >= 0.5))
    by = frame.assign(kept=right, accepted=accepted).groupby("category")
    whole = made.overall
    assert whole.first is not None
    assert whole.kept is not None
    assert whole.first.value == pytest.approx(by["outside"].mean().mean())
    assert whole.kept.value == pytest.approx(by["kept"].mean().mean())
    assert whole.accepted.value == pytest.approx(by["accepted"].mean().mean())
    rates = {(r.level, r.metric): r for r in reflected.rates()}
    plain = rates["overall", "generation"]
    assert (plain.value, plain.low) == pytest.approx((whole.first.value, whole.first.low))


def test_other_figures_stay_as_they_were(reflected: Run, odd: str, tmp_path: Path) -> None:
    plain = draw(tmp_path, odd, reflect=None)
    assert drawn(plain) < drawn(reflected)
    for mine, other in ((reflected, plain), (open_run(reflected.path), open_run(plain.path))):
        assert mine.rates() == other.rates()
        assert mine.frame().equals(other.frame())
        assert mine.own_verdicts() == other.own_verdicts()
        assert verification(mine.frame()) == verification(other.frame())
        assert not other.reflection()
    mine, other = (json.loads((r.path / "results.json").read_text()) for r in (reflected, plain))
    assert set(mine.pop("reflection")) == {"odd"}
    assert other.pop("reflection") == {}
    assert {**mine, "date": ""} == {**other, "date": ""}
    before = files(plain.path)
    assert draw(tmp_path, odd, samples=2, reflect=1).path == plain.path  # the second are there
    assert all(len(seeds(t, 1)) <= 2 for t, _ in drawn(plain))
    assert len(drawn(open_run(plain.path))) == 2 * LIMIT
    assert {f for f in before if f.startswith("images")} < {*files(plain.path)}


def same(mine: Run, other: Run) -> None:
    """What fewer attempts kept was judged too."""
    assert records(mine)[Generation] == records(other)[Generation]
    assert records(mine)[Verdict] >= records(other)[Verdict]
    assert mine.reflection() == other.reflection()
    assert mine.rates() == other.rates()


def test_no_way_to_the_end_changes_it(reflected: Run, odd: str, tmp_path: Path) -> None:
    """Fewer attempts first, one image a batch, prompts in two commands, an image that fails at
    first, shards, and a judge that comes later in shards of its own."""
    draw(tmp_path / "grown", odd, reflect=1)
    same(draw(tmp_path / "grown", odd, batch_size=1), reflected)
    texts = [prompt.text for prompt in reflected.plan.prompts]
    model = Sure()
    model.fails = {next(s[2] for s in map(seeds, texts[7:]) if len(s) > 2)}
    broken = draw(tmp_path / "apart", odd, model, only=texts[7:])
    assert "1 of 5 reflections missing" in broken.unfinished
    assert broken.failures() == {"images, attempt 3": {"not this one": 1}}
    left = broken.reflection()
    assert left is not None
    assert left.overall.prompts == 4
    model.fails = set()
    mended = draw(tmp_path / "apart", odd, model)
    assert not mended.unfinished
    same(mended, reflected)
    parts = [draw(tmp_path / "parts", odd, shard=f"{k}/2", judges=[]).path for k in (1, 2)]
    bare = merge(parts, tmp_path / "merged").path
    judged = tmp_path / "judged"
    parts = [judge_run(bare, [odd], shard=Shard(k, 2), out=judged).path for k in (1, 2)]
    same(merge([bare, *parts], tmp_path / "joined"), reflected)


def of(run: Run, text: str) -> Tried:
    return next(t for t in tried(run.plan, run.folder) if t.chain.prompt.text == text)


def test_what_has_no_image_or_no_verdict_is_neither_accepted_nor_rejected(
    odd: str, tmp_path: Path
) -> None:
    prompts = [p.text for p in load_task("shapes").prompts()]
    rejected = [s for s in map(seeds, prompts) if len(s) == MOST + 1 and chance(s[-1]) < 0.5]
    at_once = [s for s in map(seeds, prompts) if len(s) == 1]
    first, second, third = rejected[:3]
    text = {s[0]: t for s, t in zip(map(seeds, prompts), prompts, strict=True)}
    model = Sure()
    model.refuses_seeds = {first[1], at_once[0][0]}
    model.silent = {second[0], *third, at_once[1][0]}
    only = {text[s[0]] for s in (first, second, third, at_once[0], at_once[1])}
    run = draw(tmp_path, odd, model, limit=None, only=only)
    assert not run.unfinished
    assert len(tried(run.plan, run.folder)) == 4  # none of a prompt whose first image was refused
    refused = of(run, text[first[0]])
    assert (refused.refused, len(refused.verdicts), refused.accepted) == (1, MOST, False)
    silent = of(run, text[second[0]])
    assert [v.verdict for v in silent.verdicts] == [None, 0, 0, 0]
    assert silent.kept.p_yes == pytest.approx(max(map(chance, second[1:])))
    assert of(run, text[third[0]]).kept == of(run, text[third[0]]).verdicts[0]
    later = of(run, text[at_once[1][0]])  # its first is not accepted any more
    assert later.verdicts[0].verdict is None
    assert len(later.verdicts) > 1
    made = run.reflection()
    assert made is not None
    assert (made.refused, made.abstained) == (1, 1 + MOST + 1 + 1)
    model.refuses_seeds, model.silent = set(), set()
    again = draw(tmp_path, odd, model, limit=None, only=only, retry_refused=True)
    assert [len(t.verdicts) for t in tried(again.plan, again.folder)] == [
        len(seeds(p.text)) for p in again.plan.prompts
    ]


def test_plans_of_several_commands(odd: str, tmp_path: Path) -> None:
    """What another command asked for does not reflect, and what it judges is no part of it."""
    model = Sure()
    draw(tmp_path, odd, model, limit=2)
    dim = odd.replace("Odd", "Dim")
    path = draw(tmp_path, odd, model, reflect=None, judges=[dim]).path
    run = open_run(path)
    assert not run.unfinished
    assert [len(chains(run.plan)), chains(run.plan)[0].most] == [2, MOST]
    assert run.reflection("dim") is None
    assert run.reflection("odd") is not None
    assert run.reflection(("odd", "dim")) is not None
    draw(tmp_path, odd, model, limit=3, reflect=1, judges=[dim])
    run = open_run(path)
    assert [chain.most for chain in chains(run.plan)] == [MOST, MOST, 1]
    assert [[*chain.asks] for chain in chains(run.plan)] == [
        ["odd", "dim"],
        ["odd", "dim"],
        ["dim"],
    ]


def test_a_judge_that_comes_later_sees_what_was_kept_before(odd: str, tmp_path: Path) -> None:
    draw(tmp_path / "runs", odd)
    again = draw(tmp_path / "runs", odd.replace("Odd", "Dim"), reflect=1)
    assert open_run(again.path).unfinished == ""


def test_text_verdicts_keep_the_accepted_one_or_the_first(odd: str, tmp_path: Path) -> None:
    class Worded(Sure):
        capabilities = ("generate", "judge_text")

        def reply(self, images: Any, questions: Any) -> list[str]:
            return [str(int(chance(self.seeds[image.tobytes()]) >= 0.5)) for image in images]

    run = draw(tmp_path, odd, Worded())
    for each in tried(run.plan, run.folder):
        assert each.kept is each.verdicts[-1 if each.accepted else 0]


def test_what_is_shown(reflected: Run, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert str(LIMIT) in end(capfd, "runs", str(reflected.path.parent))[1]
    code, out, _ = end(capfd, "show", str(reflected.path))
    assert code is None
    shown = out.partition("Reflection: drawn again, up to 3 times, while it rejects")[2]
    made = reflected.reflection()
    assert made is not None
    assert made.overall.kept is not None
    assert f"{100 * made.overall.kept.value:.1f} [" in shown
    assert f"{made.overall.images.value:.2f} [" in shown
    report = tmp_path / "r.html"
    assert end(capfd, "report", str(reflected.path), "--out", str(report))[0] is None
    assert "What does drawing again until it accepts bring?" in report.read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--reflect", "0"), "--reflect must be at least 1, not 0"),
        (("--reflect", "-2"), "--reflect must be at least 1, not -2"),
        (("--reflect", "some"), "--reflect must be a whole number, not 'some'"),
        (("--reflect", "2", "--verdict", "none"), "leave out --verdict none"),
        (("--reflect", "2", "--model", "images:{here}"), "lacks judge_logits: --reflect draws"),
        (("--config", "{here}/c.yaml"), "reflect must be a whole number, not 'yes'"),
    ],
)
def test_what_cannot_reflect_is_said(
    options: tuple[str, ...], said: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text("reflect: 'yes'\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "a red circle_000000.png")
    told = [option.format(here=tmp_path) for option in options]
    out = ("--tasks", "shapes", "--limit", "1", "--out", str(tmp_path / "runs"))
    code, printed, error = end(capfd, "run", *told, *out)
    assert (code, printed, error.count("\n")) == (2, "", 1)
    assert said in error
    assert not (tmp_path / "runs").exists()


def test_a_broken_plan_is_said(reflected: Run, tmp_path: Path) -> None:
    raw = json.loads((reflected.path / "plan.json").read_text())
    del raw["checksum"]
    for name in ("run.json", "plan.json"):
        (tmp_path / name).write_bytes((reflected.path / name).read_bytes())
    for wrong in ({"reflect": 0}, {"reflect": 2, "own": ""}):
        (tmp_path / "plan.json").write_text(json.dumps(raw | wrong))
        with pytest.raises(GapbenchError, match="times again by these own verdicts"):
            open_run(tmp_path)


def test_a_comparison_tells_training_and_drawing_again_apart(
    reflected: Run, odd: str, tmp_path: Path
) -> None:
    class Trained(Sure):
        fingerprint = "sure-2"

    after = draw(tmp_path / "after", odd, Trained())
    made = stored(reflected, after)
    once = reflected.reflection()
    assert once is not None
    assert [(way.side, way.again) for way in made.again] == [
        (side, again) for side in ("before", "after") for again in (False, True)
    ]
    assert [made.again[0].right, made.again[1].right] == [once.overall.first, once.overall.kept]
    assert made.again[1].change == once.overall.gain
    assert made.again[1].images == once.overall.images
    assert [way.right for way in made.again[:2]] == [way.right for way in made.again[2:]]
    told = json.loads(render([made], "json"))["comparisons"][0]["again"]
    assert told[1]["change"]["value"] == once.overall.gain.value  # type: ignore[union-attr]
    shown = render([made], "text", 80)
    assert "AFTER, drawn again" in shown
    assert max(len(line) for line in shown.splitlines() if ", first image" in line) <= 80

    plain = draw(tmp_path / "plain", odd, Trained(), reflect=None)
    alone = stored(reflected, plain)
    assert alone.again == []
    assert "Only BEFORE drew again (--reflect)" in alone.notes
