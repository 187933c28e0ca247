"""What a run takes of `all`, of a tier and by default, with a network and without one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from here import end
from PIL import Image

import gapbench
from gapbench import GapbenchError, load_task, open_run
from gapbench.models.base import Drawing, Model
from gapbench.models.registry import MODELS
from gapbench.report.tables import render
from gapbench.runs.chosen import PAPER
from gapbench.runs.plan import Prepared, prepare
from gapbench.runs.settings import RunSettings
from gapbench.tasks.copies import Copy

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DATA = {"Jialuo21/Science-T2I-S": "apple", "Jialuo21/Science-T2I-C": "stone"}
MINI = MODELS["janus-mini"].folder


class Hub:
    """What answers for the hub: two data sets and SciScore; `fetched` is its cache."""

    def __init__(self, place: Path, sciscore: Path) -> None:
        self.online, self.fetched, self.place = False, set[str](), place
        self.sciscore = sciscore

    def snapshot_download(
        self, repo: str, *, local_files_only: bool = False, **_more: object
    ) -> str:
        if repo not in self.fetched and (local_files_only or not self.online):
            raise ConnectionError("no route to the hub")
        folder = self.place / repo.replace("/", "--") / "snapshots" / COMMIT
        if repo == "Jialuo21/SciScore":
            shutil.copytree(self.sciscore, folder, dirs_exist_ok=True)
        elif repo in DATA:
            folder.mkdir(parents=True, exist_ok=True)
            texts = [f"{DATA[repo]} {i}" for i in range(227)]
            columns: dict[str, Any] = dict.fromkeys(load_task("science-t2i").spec.columns, texts)
            laws = {"category": ["Physics"] * 227, "law": ["gravity"] * 227}
            pq.write_table(pa.table(columns | laws), folder / "test.parquet")
        else:
            raise ConnectionError("404")
        self.fetched.add(repo)
        return str(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_sciscore: Path) -> Hub:
    """No network, but for what a test lets the hub answer."""
    made = Hub(tmp_path / "hub", tiny_sciscore)
    monkeypatch.setenv("GAPBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", made.snapshot_download)
    monkeypatch.setattr("gapbench.fetch.sources._transfer", lambda *_: "no route")
    monkeypatch.chdir(tmp_path)
    return made


def planned(**settings: Any) -> Prepared:
    return prepare(RunSettings(limit=2, samples=1, **settings))


def test_all_ends_with_a_table_with_a_network_and_without(
    hub: Hub, tiny_janus: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    command = (
        "run",
        "--model",
        str(tiny_janus),
        "--tasks",
        "all",
        "--limit",
        "2",
        "--device",
        "cpu",
    )
    code, shown, told = end(capfd, *command, "--offline", "--out", "alone")
    assert code is None, told
    (run,) = (open_run(path) for path in Path("alone").iterdir())
    assert list(run.plan.tasks) == ["shapes"]  # by own verdicts alone
    assert "Skipped geneval: judge detector (2.0 GB): not here (offline)" in shown
    assert "judge pixel reads only images of 24 x 24 pixels, and none of the first 8" in caplog.text
    code, shown, told = end(capfd, *command, "--offline", "--strict")
    assert (code, shown) == (2, "")
    assert told.startswith("gapbench: task dpg: judge vlm (18 GB)")
    assert told.count("\n") == 1
    assert not Path("runs").exists()

    hub.online = True
    code, shown, told = end(capfd, *command)
    assert code is None, told
    (run,) = (open_run(path) for path in Path("runs").iterdir())
    assert list(run.plan.tasks) == ["science-t2i"]
    assert "Physics-gravity" in render(run.rates(), "csv")
    assert f"UNPINNED: Jialuo21/Science-T2I-C at commit {COMMIT}, the newest when" in shown
    for line in (
        "Skipped geneval: judge detector (2.0 GB): not here (facebook/mask2former",
        "Skipped geneval2: judge vlm (18 GB): Qwen/Qwen3-VL-8B-Instruct at 0c351",
        "Skipped t2i-compbench: its prompts (0.4 MB), judge vqa (1.5 GB), ",
        f"Skipped shapes: judge pixel reads only images of 24 x 24 pixels, which {tiny_janus.name}",
    ):
        assert line in shown, line
    assert "`gapbench prepare --tasks t2i-compbench` brings it.\n" in shown

    hub.online = False
    code, again, told = end(capfd, *command, "--offline")
    assert code is None, told
    assert "Outside judge: sciscore" in again
    assert "Skipped geneval: judge detector (2.0 GB): not here (offline)" in again
    assert len(open_run(run.path).folder.generations()) == 4


def test_strict_stops_where_a_task_would_be_skipped(hub: Hub) -> None:
    with pytest.raises(GapbenchError, match=r"^task dpg: judge vlm \(18 GB\): Qwen"):
        planned(tasks="all", strict=True)
    assert "shapes" in planned(tasks="all").plan.tasks
    assert hub.fetched == set()


def test_much_is_not_fetched_unasked(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.online = True
    monkeypatch.setattr("gapbench.runs.needs.UNASKED", 5e9)
    monkeypatch.setattr(Copy, "fetch", lambda _copy: pytest.fail("fetched"))
    (told,) = (t for t in planned(tasks="hard").plan.left_out if t.startswith("science"))
    assert told == (
        "science-t2i: its prompts (1.1 GB), judge sciscore (3.9 GB): too large to fetch unasked; "
        "`gapbench prepare --tasks science-t2i` brings it"
    )


def test_the_default_is_the_papers_tasks_but_in_the_small_world(
    hub: Hub, tiny_janus: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(MINI or "", tmp_path / "trained")
    assert gapbench.load_model(str(copy)).image_size == (24, 24)
    assert gapbench.load_model(str(tiny_janus)).image_size == (32, 32)
    for model in ("janus-mini", str(copy)):
        assert list(planned(model=model).plan.tasks) == ["shapes"]
    alone = planned(model=str(tiny_janus)).plan
    assert list(alone.tasks) == ["shapes"]
    assert sorted(each.partition(":")[0] for each in alone.left_out) == sorted(PAPER)
    with pytest.raises(GapbenchError, match="task geneval: judge detector"):
        planned(model=str(tiny_janus), strict=True)
    hub.online = True
    done = planned(model=str(tiny_janus)).plan
    assert list(done.tasks) == ["science-t2i"]
    assert [each.partition(":")[0] for each in done.left_out] == ["geneval", "t2i-compbench"]


@pytest.mark.parametrize("selection", ["shapes/hard", "shapes:train/hard"])
def test_a_tier_of_a_task(hub: Hub, selection: str) -> None:
    plan = prepare(RunSettings(tasks=selection, samples=1, limit=8)).plan
    assert {prompt.tier for prompt in plan.prompts} == {"hard"}
    assert len({prompt.category for prompt in plan.prompts}) == 4


class Large(Model):
    """Draws images that judge pixel cannot read, the `some` first but for those."""

    name, fingerprint, recipe = "large", "large-1", {}
    capabilities = frozenset({"generate"})

    def __init__(self, readable: int = 0) -> None:
        self.drawn, self.readable = 0, readable

    def generate(self, prompts: Any, seeds: Any) -> list[Drawing]:
        size = (24, 24) if self.drawn < self.readable else (64, 48)
        self.drawn += len(prompts)
        return [Drawing(Image.new("RGB", size), None, prompt, None) for prompt in prompts]


def test_a_judge_that_can_read_no_image_is_told_after_the_first_batch(
    tmp_path: Path, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    def told(model: Large, batch_size: int) -> tuple[list[str], int]:
        caplog.clear()
        out = tmp_path / f"{model.readable}-{batch_size}"
        asked = {"samples": 1, "limit": 10, "verdict": "none", "batch_size": batch_size}
        done = gapbench.run(model, "shapes", out=out, **asked)
        assert done.frame()["outside"].notna().sum() == model.readable
        return [record.getMessage() for record in caplog.records], len(done.frame())

    for size in (4, 10):  # the batch says when it is told, and changes nothing else
        (line,), images = told(Large(), size)
        assert line.startswith(
            "WARNING: judge pixel reads only images of 24 x 24 pixels, and none of the first "
            f"{size} that large drew is"
        )
        assert images == 10
    assert told(Large(readable=4), 4) == ([], 10)
