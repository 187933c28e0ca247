"""Shards of a run, merged, are that run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from here import end
from hypothesis import given, settings
from hypothesis import strategies as st
from stubs import Stub, files, records

import gapbench
from gapbench.files import read_object
from gapbench.runs.merge import merge
from gapbench.runs.plan import Plan, prepare
from gapbench.runs.run import Run
from gapbench.runs.settings import RunSettings, Shard


def run(out: Path, shard: str | None = None, tasks: str = "shapes", limit: int = 9) -> Run:
    return gapbench.run(Stub(), tasks, limit=limit, samples=2, out=out, shard=shard)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    out = tmp_path_factory.mktemp("shards")
    return [run(out, f"{number}/3") for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def plan() -> Plan:
    return prepare(RunSettings("janus-mini", "shapes")).plan


@settings(max_examples=20)
@given(st.integers(1, 60))
def test_shards_are_equal_parts_of_a_run(plan: Plan, count: int) -> None:
    parts = [replace(plan, shard=Shard(n, count)).items() for n in range(1, count + 1)]
    keys = [(i.prompt.id, i.sample) for part in parts for i in part]
    known = {(i.prompt.id, i.sample): i for i in plan.items()}
    assert sorted(keys) == sorted(known)
    assert all(known[i.prompt.id, i.sample] == i for part in parts for i in part)  # partners too
    for category in {prompt.category for prompt in plan.prompts} | {None}:
        sizes = [
            len({i.prompt.text for i in part if category in (None, i.prompt.category)})
            for part in parts
        ]
        assert max(sizes) - min(sizes) <= 1


def test_shards_merged_are_the_run(whole: Run, shards: list[Run], tmp_path: Path) -> None:
    assert shards[1].name == "stub (verdict=text, shard=2/3)"
    assert shards[1].plan.n_prompts() == 3
    paths = [shard.path for shard in shards]
    merged = merge(paths, tmp_path)
    assert merged.path.name == whole.path.name
    assert merged.plan == whole.plan
    assert records(merged) == records(whole)
    assert merged.rates() == whole.rates()
    assert merged.frame().equals(whole.frame())
    mine, other = (read_object(each.path / "results.json") for each in (merged, whole))
    assert {**mine, "date": ""} == {**other, "date": ""}
    before = files(merged.path)
    assert {f: data for f, data in before.items() if f.startswith("images")} == {
        f: data for f, data in files(whole.path).items() if f.startswith("images")
    }
    for again in (paths, [*paths[::-1], paths[0]], [merged.path]):
        merge(again, tmp_path)
        assert files(merged.path) == before
    assert run(tmp_path).path == merged.path  # nothing is left to do
    assert records(merged) == records(whole)


def test_runs_of_several_tasks_are_merged(tmp_path: Path) -> None:
    both = [
        run(tmp_path / task, tasks=f"shapes/{task}", limit=2) for task in ("position", "texture")
    ]
    both.append(run(tmp_path / "one", tasks="shapes/position", limit=2))
    run(tmp_path / "one", tasks="shapes/texture", limit=2)
    merged = merge([each.path for each in both[:2]], tmp_path / "merged")
    assert records(merged) == records(both[2])
    assert merged.rates() == gapbench.open_run(both[2].path).rates()


def test_what_does_not_fit_is_said(
    shards: list[Run], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second, third = (str(shard.path) for shard in shards)
    twice, half = tmp_path / "twice", run(tmp_path, "1/2", limit=4).path
    damaged = Path(shutil.copytree(third, tmp_path / "damaged"))
    with (damaged / "verdicts.jsonl").open("r+") as file:
        file.write("[")  # in the place of the first line's brace
    shutil.copytree(first, twice)
    other = gapbench.run("janus-mini", "shapes/position", limit=1, samples=1, out=tmp_path)
    to = ("--out", str(tmp_path / "m"))
    fewer = run(tmp_path / "fewer", "3/3", limit=8).path
    for command, said in (
        (("merge", first, third), "2/3: 1 of 3 shards missing beside"),
        (("merge", first, second, str(fewer)), "other shards were asked otherwise (prompts"),
        (("merge", first, second, third, str(twice)), "are both shard 1/3; name one"),
        (("merge", first, str(other.path)), "the model is janus-mini, not stub as in"),
        (("merge", first, second, str(damaged)), "verdicts.jsonl:1: "),
        (("merge", str(half)), "2/2: 1 of 2 shards missing"),
        (("merge", str(tmp_path / "no")), "is not there"),
        (("submit", first, "--contact", "me"), "is shard 1/3 of a run; join all shards"),
    ):
        code, out, told = end(capfd, *command, *to[: 2 * (command[0] == "merge")])
        assert (code, out, told.count("\n")) == (2, "", 1)
        assert said in told
    assert not (tmp_path / "m").exists()
    assert "shard 1/3" in end(capfd, "runs", str(Path(first).parent))[1]
    shown = end(capfd, "show", first)[1]
    assert "shard=1/3" in shown
    assert "Shard 1/3 of the prompts; `gapbench merge` joins the shards." in shown
    (Path(first) / "verdicts.jsonl").unlink()
    said = end(capfd, "merge", first, second, third, *to)[1]
    assert "missing; finish the shards and merge them again" in said
    assert "Merged into " in said
