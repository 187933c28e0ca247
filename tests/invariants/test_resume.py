"""However a run is broken off, the same command completes it to what an undisturbed one gives."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import COMMAND, Start, finish

from gapbench import Generation, Verdict, open_run
from gapbench.files import without_checksum
from gapbench.runs.run import Run

PROMPTS = 12
ARGUMENTS = [
    "run", "--model", "janus-mini", "--tasks", "shapes", "--limit", str(PROMPTS), "--samples", "1",
    "--batch-size", "2",
]  # fmt: skip
# No file may grow past LIMIT, as on a full disk.
LIMITED = """
import os, resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["LIMIT"]),) * 2)
"""


def found(folder: Path) -> Path | None:
    return next(folder.glob("runs/janus-mini-*"), None)


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    run = found(folder)
    if run is None or not (run / name).exists():
        return []
    kept = (run / name).read_bytes().split(b"\n")[:-1]
    return [without_checksum(json.loads(line)) for line in kept]


def count(folder: Path, judge: str | None = None) -> int:
    """Generations, or verdicts of a judge, that are there."""
    file = found(folder)
    file = file and file / ("verdicts.jsonl" if judge else "generations.jsonl")
    if file is None or not file.exists():
        return 0
    return file.read_bytes().count(f'"judge": "{judge}"'.encode() if judge else b"\n")


@pytest.fixture(scope="module")
def undisturbed(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert finish(start(folder, *ARGUMENTS)) == 0
    path = found(folder)
    assert path is not None
    return open_run(path)


def files(run: Run, *kinds: str) -> dict[str, bytes]:
    return {
        str(file.relative_to(run.path)): file.read_bytes()
        for kind in kinds
        for file in (run.path / kind).rglob("*")
        if file.is_file() and file.suffix != ".part"
    }


def assert_same(folder: Path, wanted: Run) -> None:
    path = found(folder)
    assert path is not None
    run = open_run(path)
    assert run.path.name == wanted.path.name
    assert run.plan == wanted.plan
    assert files(run, "images", "tokens") == files(wanted, "images", "tokens")

    generations = [Generation(**raw) for raw in lines(folder, "generations.jsonl")]
    assert len({(g.prompt, g.seed) for g in generations}) == len(generations) == PROMPTS
    verdicts = [Verdict(**raw) for raw in lines(folder, "verdicts.jsonl")]
    assert len({(v.image, v.question, v.fingerprint) for v in verdicts}) == len(verdicts)

    for key, other in wanted.folder.generations().items():
        mine = run.folder.generations()[key]
        assert mine.logprob == pytest.approx(other.logprob, abs=1e-5)
        for field in ("sample", "image", "tokens", "effective_prompt"):
            assert getattr(mine, field) == getattr(other, field)
    mine_all, other_all = run.folder.verdicts(), wanted.folder.verdicts()
    assert mine_all.keys() == other_all.keys()
    for ask, verdict in other_all.items():
        mine = mine_all[ask]
        for field in ("verdict", "score", "text", "reason", "judge"):
            assert getattr(mine, field) == getattr(verdict, field)
        assert mine.p_yes == pytest.approx(verdict.p_yes, abs=1e-5)
        assert mine.mass == pytest.approx(verdict.mass, abs=1e-5)
    assert files(run, "sheets").keys() == files(wanted, "sheets").keys()
    assert run.rates() == wanted.rates()


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "half the images": lambda folder: count(folder) >= PROMPTS // 2,
    "own verdicts": lambda folder: count(folder, "self") >= 4,
    "outside verdicts": lambda folder: count(folder, "pixel") >= 2,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_runs_complete(
    moment: str, start: Start, wait_until: Any, undisturbed: Run, tmp_path: Path
) -> None:
    process = start(tmp_path, *ARGUMENTS)
    wait_until(lambda: MOMENTS[moment](tmp_path), process)
    process.kill()
    assert finish(process) == -signal.SIGKILL
    before = {name: lines(tmp_path, name) for name in ("generations.jsonl", "verdicts.jsonl")}
    assert finish(start(tmp_path, *ARGUMENTS)) == 0
    for name, there in before.items():
        assert lines(tmp_path, name)[: len(there)] == there
    assert_same(tmp_path, undisturbed)


def test_one_folder_survives_every_tear(start: Start, undisturbed: Run, tmp_path: Path) -> None:
    path = tmp_path / "runs" / undisturbed.path.name
    shutil.copytree(undisturbed.path, path)
    for name in ("generations.jsonl", "verdicts.jsonl"):
        file = path / name
        with file.open("r+b") as opened:
            opened.truncate(file.stat().st_size * 2 // 3)
    for file in list((path / "images").rglob("*.png"))[:3]:
        file.unlink()
    (path / "rates.json.1.part").write_bytes(b"{")
    assert finish(start(tmp_path, *ARGUMENTS)) == 0
    by_key = {(raw["prompt"], raw["seed"]): raw for raw in lines(tmp_path, "generations.jsonl")}
    assert by_key.keys() == undisturbed.folder.generations().keys()
    again = open_run(path)
    assert files(again, "images", "tokens") == files(undisturbed, "images", "tokens")
    assert again.rates() == undisturbed.rates()


def test_stopped_runs_end_with_whole_batches(
    start: Start, wait_until: Any, undisturbed: Run, tmp_path: Path
) -> None:
    process = start(tmp_path, *ARGUMENTS)
    wait_until(lambda: count(tmp_path) >= 4, process)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process) == 130
    path = found(tmp_path)
    assert path is not None
    assert (
        (tmp_path / "err")
        .read_text()
        .endswith(
            "gapbench: stopped after the batch in hand; run the same command again to go on\n"
        )
    )
    assert "Traceback" not in (tmp_path / "err").read_text()
    assert (path / "generations.jsonl").read_bytes().endswith(b"\n")
    assert 4 <= count(tmp_path) < PROMPTS
    assert count(tmp_path) % 2 == 0
    assert not (path / "verdicts.jsonl").exists()
    assert not list(path.rglob("*.part"))
    assert finish(start(tmp_path, *ARGUMENTS)) == 0
    assert_same(tmp_path, undisturbed)


@pytest.mark.parametrize("file", ["generations.jsonl", "verdicts.jsonl"])
def test_a_full_disk_stops_in_one_line(
    file: str, start: Start, undisturbed: Run, tmp_path: Path
) -> None:
    # No file may grow past half of what this one needs: the plan, then the verdicts do not fit.
    limit = (undisturbed.path / file).stat().st_size // 2
    assert (
        finish(
            start(tmp_path, *ARGUMENTS, code=LIMITED + COMMAND, environment={"LIMIT": str(limit)})
        )
        == 2
    )
    last = (tmp_path / "err").read_text().splitlines()[-1]
    assert last.startswith("gapbench: runs/janus-mini-")
    assert last.endswith("run the same command again")
    assert "Traceback" not in (tmp_path / "err").read_text()
    assert not list(tmp_path.rglob("*.part"))
    assert finish(start(tmp_path, *ARGUMENTS)) == 0
    assert_same(tmp_path, undisturbed)
