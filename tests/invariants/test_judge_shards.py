"""Outside judges of a run, alone or in shards, give the run that had them from the first."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from here import end
from stubs import Stub, files, records

import gapbench
from gapbench import GapbenchError, Verdict
from gapbench.files import read_object
from gapbench.runs.judge import judge_run
from gapbench.runs.merge import merge
from gapbench.runs.run import Run, open_run
from gapbench.runs.settings import Shard

JUDGE = """
from gapbench import Answer

class Odd:
    name, fingerprint = "odd", "odd-1"
    def judge(self, images, prompts):
        sums = [sum(image.getpixel((0, 0))) + len(p.text) for image, p in zip(images, prompts)]
        return [Answer(verdict=s % 2, text=str(s)) if s % 5 else Answer(verdict=None, reason="five")
                for s in sums]

class Broken(Odd):
    name, fingerprint = "broken", "broken-1"
    def judge(self, images, prompts):
        if any(prompt.category == "colors" for prompt in prompts):
            raise ValueError("no colours today")
        return super().judge(images, prompts)
"""


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("judge") / "odd.py"
    file.write_text(JUDGE)
    return f"{file}:Odd"


def drawn(out: Path, judges: list[str] | None = None, limit: int = 9, samples: int = 2) -> Run:
    return gapbench.run(Stub(), "shapes", judges=judges, limit=limit, samples=samples, out=out)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that no outside judge saw."""
    return drawn(tmp_path_factory.mktemp("plain"), [])


def copied(run: Run, to: Path) -> Path:
    return Path(shutil.copytree(run.path, to / run.path.name))


def same(mine: Run, other: Run) -> None:
    """Equal in records, plan, figures and images."""
    assert records(mine) == records(other)
    assert mine.plan == other.plan
    assert mine.frame().equals(other.frame())
    assert mine.rates() == other.rates()
    results = [read_object(run.path / "results.json") for run in (mine, other)]
    assert {**results[0], "date": ""} == {**results[1], "date": ""}
    pictures = [
        {name: data for name, data in files(run.path).items() if name.startswith("images")}
        for run in (mine, other)
    ]
    assert pictures[0] == pictures[1]


def test_a_judge_that_comes_later_is_one_that_was_there(
    plain: Run, odd: str, tmp_path: Path
) -> None:
    later = judge_run(copied(plain, tmp_path), ["pixel", odd])
    first = drawn(tmp_path / "first", ["pixel", odd])
    same(later, first)
    # The mismatched pairs too, which the judge may accept.
    asked = {v.question for v in later.folder.each(Verdict) if v.judge == "odd"}
    assert asked > {p.question for p in later.plan.prompts}
    before = files(later.path)
    judge_run(later.path, ["pixel", odd])
    assert files(later.path) == before


def test_shards_merge_to_what_one_machine_gives(plain: Run, odd: str, tmp_path: Path) -> None:
    alone = judge_run(copied(plain, tmp_path / "alone"), [odd])
    run = copied(plain, tmp_path / "runs")
    before = files(run)
    shards = [judge_run(run, [odd], Shard(k, 3), tmp_path / "shards") for k in (1, 2, 3)]
    assert files(run) == before  # it is only read
    assert [shard.plan.n_prompts() for shard in shards] == [3, 3, 3]
    assert not any(shard.unfinished for shard in shards)
    mine = [{v.image for v in s.folder.each(Verdict) if v.judge == "odd"} for s in shards]
    assert sum(map(len, mine)) == len(set.union(*mine))
    paths = [shard.path for shard in shards]
    for given, out in ((paths, tmp_path / "elsewhere"), ([run, *paths], tmp_path / "named")):
        same(merge(given, out), alone)
    merged = merge(paths, tmp_path / "runs")
    assert merged.path == run
    same(merged, alone)
    there = files(run)
    for again in (paths, [*paths[::-1], paths[0]]):
        merge(again, tmp_path / "runs")
        assert files(run) == there


def test_a_second_judge_of_the_shards(plain: Run, odd: str, tmp_path: Path) -> None:
    run, alone = copied(plain, tmp_path / "runs"), copied(plain, tmp_path / "alone")
    for judges in ([odd], ["pixel"]):
        judge_run(alone, judges)
        paths = [judge_run(run, judges, Shard(k, 2), tmp_path / "s").path for k in (1, 2)]
    same(merge(paths, tmp_path / "runs"), open_run(alone))


def test_a_run_of_several_commands(odd: str, tmp_path: Path) -> None:
    """Neither asked for all: more samples of fewer prompts, and fewer samples of more."""
    drawn(tmp_path / "runs", ["pixel"], limit=4, samples=2)
    run = drawn(tmp_path / "runs", [], limit=9, samples=1).path
    alone = judge_run(copied(open_run(run), tmp_path / "alone"), [odd])
    paths = [judge_run(run, [odd], Shard(k, 5), tmp_path / "s").path for k in range(1, 6)]
    same(merge(paths, tmp_path / "runs"), open_run(alone.path))
    assert open_run(run).judges() == ["pixel", "odd"]


def test_a_shard_that_was_stopped_goes_on(plain: Run, odd: str, tmp_path: Path) -> None:
    run = copied(plain, tmp_path / "runs")
    whole = judge_run(run, [odd], Shard(1, 2), tmp_path / "s")
    kept = records(whole)
    lines = (whole.path / "verdicts.jsonl").read_text().splitlines(keepends=True)
    torn = "".join(lines[:-3]) + lines[-3][:40]
    (whole.path / "verdicts.jsonl").write_text(torn)
    assert open_run(whole.path).unfinished
    assert records(judge_run(run, [odd], Shard(1, 2), tmp_path / "s")) == kept


def test_from_the_command_line(
    plain: Run, odd: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, shards = copied(plain, tmp_path / "runs"), tmp_path / "shards"
    for k in (1, 2):
        more = ("--judge", odd, "--shard", f"{k}/2", "--out", str(shards))
        code, said, _ = end(capfd, "judge", str(run), *more)
        assert code is None
        assert "Join the shards: gapbench merge" in said
    code, said, told = end(
        capfd, "merge", *map(str, sorted(shards.iterdir())), "--out", str(tmp_path / "runs")
    )
    assert code is None, told
    assert f"Merged into {run}: 18 images of 9 prompts" in said
    broken = odd.replace(":Odd", ":Broken")
    code, said, told = end(capfd, "judge", str(run), "--judge", broken)
    assert code == 2
    assert "no colours today" in said
    # Images of colours, and pairs with one: none of them is a 0.
    missing = [v for v in open_run(run).folder.each(Verdict) if v.judge == "broken"]
    assert (
        0 < len(missing) < len([v for v in open_run(run).folder.each(Verdict) if v.judge == "odd"])
    )
    assert "missing, as said above; run the same command again" in told


def test_what_cannot_be_judged_is_said(plain: Run, odd: str, tmp_path: Path) -> None:
    run = copied(plain, tmp_path / "runs")
    part = judge_run(run, [odd], Shard(1, 2), tmp_path / "s").path
    before = files(run)
    for given, judges, shard, out, said in (
        (run, ["detector"], None, None, "judge detector cannot judge task shapes"),
        (run, [odd, odd], None, None, "two of these are the same judge"),
        (run, [odd], None, tmp_path, "is for --shard; without it the verdicts go into"),
        (run, [odd], Shard(1, 10), None, "there are only 9 prompts, so take fewer shards"),
        (part, [odd], Shard(1, 2), None, "is shard 1/2 of a run; judge it without --shard"),
        (tmp_path, [odd], None, None, "is not there; is"),
    ):
        with pytest.raises(GapbenchError, match=said):
            judge_run(given, judges, shard, out)
    assert files(run) == before
    with pytest.raises(GapbenchError, match="2/2: 1 of 2 shards missing"):
        merge([part], tmp_path / "runs")
    judge_run(part, ["pixel"])  # a shard may be judged as it is
    assert {v.judge for v in open_run(part).folder.each(Verdict)} == {"odd", "pixel", "self-text"}
