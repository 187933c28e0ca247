"""Science-T2I: a copy of the user's own in the hub's layout, from Parquet files to a table."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gapbench import GapbenchError, load_task
from gapbench.fetch.sources import cache_folder
from gapbench.tasks.task import Task, select

Cli = Callable[..., subprocess.CompletedProcess[str]]
PREPARE = ("prepare", "--tasks", "science-t2i", "--judge", "pixel")
LAWS = [("Physics", "gravity"), ("Physics", "light & heat"), ("Biology", "ripeness")]


def rows(name: str, count: int) -> list[dict[str, Any]]:
    return [
        {
            "implicit_prompt": f"{name} {i} as it is",
            "explicit_prompt": f"{name} {i} falls",
            "superficial_prompt": f"{name} {i} floats",
            "explicit_image": [{"bytes": b"\x89PNG" + bytes(2000), "path": None}],
            "superficial_image": [{"bytes": b"\x89PNG" + bytes(2000), "path": None}],
            "scene_scoring": "1 if it is there",
            "real_scoring": "3 if it falls",
            "category": LAWS[i % 3][0],
            "law": LAWS[i % 3][1],
        }
        for i in range(count)
    ]


def write(folder: Path, records: list[dict[str, Any]]) -> Path:
    """Two shards, as the hub has them."""
    folder.mkdir(parents=True)
    for shard in (0, 1):
        part = records[shard * len(records) // 2 : (shard + 1) * len(records) // 2]
        file = folder / f"test-{shard:05d}-of-00002.parquet"
        pq.write_table(pa.Table.from_pylist(part), file)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAPBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """S beside C; S as the hub's cache names it, C as `hf download --local-dir` may."""
    root = tmp_path / "data"
    write(root / "datasets--Jialuo21--Science-T2I-S/snapshots/0b3/data", rows("apple", 227))
    write(root / "Science-T2I-C" / "data", rows("stone", 227))
    return root


@pytest.fixture
def task(cli: Cli, data: Path) -> Callable[[str], Task]:
    done = cli(*PREPARE, "--data", str(data))
    assert done.returncode == 0, done.stderr
    return lambda variant="": load_task("science-t2i" + variant)


def test_without_a_copy_it_says_what_to_do_and_fetches_nothing(cli: Cli, tmp_path: Path) -> None:
    dry = cli(*PREPARE, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "Jialuo21/Science-T2I-S" in dry.stdout
    assert "568.52" in dry.stdout
    assert "Apache-2.0" in dry.stdout
    done = cli(*PREPARE, "--offline")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    for name in ("Science-T2I-S", "Science-T2I-C"):
        assert f"no revision of Jialuo21/{name} is on record" in done.stderr
        assert str(tmp_path / "cache" / "copies" / f"Jialuo21--{name}") in done.stderr
    assert "gapbench prepare --data DIR" in done.stderr
    ran = cli("run", "--tasks", "science-t2i", "--offline")
    assert ran.returncode == 2
    assert "no revision of Jialuo21/Science-T2I-S is on record" in ran.stderr
    assert "science-t2i" in cli("tasks").stdout


def test_a_copy_of_ones_own_is_the_task(task: Callable[[str], Task]) -> None:
    prompts = task("").prompts()
    assert len(prompts) == 454
    assert {p.tier for p in prompts} == {"hard"}
    categories = ["Physics-gravity", "Physics-light-heat", "Biology-ripeness"]
    assert list(task("").tier_of) == categories
    assert [p.category for p in prompts[:3]] == categories
    assert [prompts[0].id, prompts[-1].id] == ["S-001", "C-227"]
    assert prompts[0].text == "apple 0 as it is"
    assert prompts[0].requirement == {
        "implicit_prompt": "apple 0 as it is",
        "scene_scoring": "1 if it is there",
        "real_scoring": "3 if it falls",
    }
    assert task("").judge("Biology-ripeness") == "sciscore"
    [(_, chosen)] = select(["science-t2i@C/Biology-ripeness"])
    assert len(chosen) == 75
    with pytest.raises(GapbenchError, match="no category 'Magic'; it has Physics-gravity"):
        select(["science-t2i/Magic"])


def test_splits_and_wordings_are_variants(task: Callable[[str], Task]) -> None:
    first = {v: task(f"@{v}").prompts()[0] for v in task("").spec.variants}
    assert {v: p.text for v, p in first.items()} == {
        "S": "apple 0 as it is",
        "C": "stone 0 as it is",
        "explicit": "apple 0 falls",
        "superficial": "apple 0 floats",
        "S-explicit": "apple 0 falls",
        "S-superficial": "apple 0 floats",
        "C-explicit": "stone 0 falls",
        "C-superficial": "stone 0 floats",
    }
    assert len(task("@C-explicit").prompts()) == 227
    # Whatever it was drawn from, an image is scored against the implicit prompt.
    assert first["C-explicit"].requirement["implicit_prompt"] == "stone 0 as it is"
    versions = {v: task(f"@{v}").version for v in ("", *first) if v}
    assert len(set(versions.values())) == 8
    held = {
        name: next((cache_folder() / "copies" / f"Jialuo21--Science-T2I-{name}").iterdir()).stem[:8]
        for name in "SC"
    }
    assert versions["S-explicit"] == f"1.0-S-explicit+{held['S']}"
    assert task("").version == f"1.0+{held['S']}+{held['C']}"


def test_a_prompt_of_both_counts_once_and_the_older_size_is_known(
    cli: Cli, data: Path, tmp_path: Path
) -> None:
    (data / "datasets--Jialuo21--Science-T2I-S").rename(tmp_path / "away")
    write(data / "Science-T2I-S", [*rows("apple", 661), *rows("stone", 10)])
    assert cli(*PREPARE, "--data", str(data)).returncode == 0
    prompts = load_task("science-t2i").prompts()
    assert len(prompts) == 671 + 227 - 10
    assert prompts[671].id == "C-011"
    assert len(load_task("science-t2i@C").prompts()) == 227


def test_pictures_are_left_where_they_are(task: Callable[[str], Task]) -> None:
    assert task("").ready()
    files = [file for file in cache_folder().rglob("*") if file.is_file()]
    assert len(files) == 2
    kept = json.loads(files[0].read_text().splitlines()[0])
    assert list(kept) == load_task("science-t2i").spec.columns


def test_an_altered_text_is_found_and_mended(
    task: Callable[[str], Task], cli: Cli, data: Path
) -> None:
    before = task("@S").prompts()
    file = next((cache_folder() / "copies" / "Jialuo21--Science-T2I-S").iterdir())
    whole = file.read_bytes()
    for damage in (whole[:-1], whole.replace(b"apple 7 ", b"apple 8 ")):
        file.write_bytes(damage)
        with pytest.raises(GapbenchError, match="needs Jialuo21/Science-T2I-S: no revision"):
            load_task("science-t2i@S").prompts()
        assert cli(*PREPARE, "--data", str(data)).returncode == 0
        assert load_task("science-t2i@S").prompts() == before


def test_another_copy_never_takes_the_place_of_the_first(
    task: Callable[[str], Task], cli: Cli, tmp_path: Path
) -> None:
    before = task("").prompts()
    write(tmp_path / "other" / "Science-T2I-C", rows("pear", 227))
    done = cli(*PREPARE, "--data", str(tmp_path / "other"))
    assert done.returncode == 2
    assert "holds other text" in done.stderr
    file = next((cache_folder() / "copies" / "Jialuo21--Science-T2I-C").iterdir())
    assert f"delete {file} to use it" in done.stderr
    assert load_task("science-t2i").prompts() == before
    file.unlink()
    assert cli(*PREPARE, "--data", str(tmp_path / "other")).returncode == 0
    assert load_task("science-t2i@C").prompts()[0].text == "pear 0 as it is"


def test_copies_that_are_not_the_data_set_are_refused(cli: Cli, tmp_path: Path) -> None:
    shard = write(tmp_path / "shard" / "Science-T2I-C", rows("stone", 227))
    (shard / "test-00001-of-00002.parquet").unlink()
    renamed = [{("subject" if k == "category" else k): v for k, v in row.items()}
               for row in rows("stone", 227)]  # fmt: skip
    write(tmp_path / "columns" / "Science-T2I-C", renamed)
    text = write(tmp_path / "text" / "Science-T2I-C", rows("stone", 227))
    (text / "test-00000-of-00002.parquet").write_text("<html>")
    write(tmp_path / "two" / "a" / "Science-T2I-C", rows("stone", 227))
    write(tmp_path / "two" / "b" / "Science-T2I-C", rows("stone", 227))
    for name, why in (
        ("shard", "113 rows in 1 files, but Jialuo21/Science-T2I-C has 227; bring all"),
        ("columns", "the dataset's columns changed, 'category' is gone; it has"),
        ("text", "cannot be read as Parquet"),
        ("two", "there are copies in"),
    ):
        done = cli(*PREPARE, "--data", str(tmp_path / name))
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert why in done.stderr
    assert not list((tmp_path / "cache").rglob("*.jsonl"))


def test_a_run_ends_in_a_table_of_laws(
    task: Callable[[str], Task], cli: Cli, tiny_sciscore: Path
) -> None:
    done = cli(
        "run", "--tasks", "science-t2i@C", "--limit", "6", "--samples", "1",
        "--judge", f"sciscore:{tiny_sciscore}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"science-t2i@C {task('@C').version}: 6 images of 6 prompts" in done.stdout
    assert "Outside judge: sciscore-tiny-sciscore\n" in done.stdout
    [whole] = re.findall(r"gapbench show (\S+)", done.stdout)
    assert re.search(
        r"^science-t2i@C (.*\n)+  Physics-light-heat ", cli("show", whole).stdout, re.M
    )
