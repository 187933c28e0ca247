"""Records as columns and in parts, against a dictionary; edited lines, broken parts."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gapbench import GapbenchError, Generation, Verdict
from gapbench.files import with_checksum
from gapbench.runs import records
from gapbench.runs.records import Lines, Records

TEXT = st.text(max_size=4) | st.sampled_from(["\0", "a\nb", "é円"])
NUMBER = st.none() | st.floats(allow_nan=False)
VERDICTS = st.builds(
    Verdict,
    image=st.sampled_from("ab").map(lambda letter: letter * 64),
    question=st.sampled_from("xyz"),
    judge=TEXT,
    fingerprint=st.sampled_from("fg"),
    verdict=st.sampled_from([0, 1, None]),
    p_yes=NUMBER,
    mass=NUMBER,
    score=NUMBER,
    text=st.none() | TEXT,
    reason=st.none() | TEXT,
)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "PART", 3)


def key(verdict: Verdict) -> tuple[str, str, str]:
    return verdict.image, verdict.question, verdict.fingerprint


def write(folder: Path, verdicts: list[Verdict], odd: Any = None) -> Path:
    file = folder / "verdicts.jsonl"
    with file.open("a") as opened:
        for verdict in verdicts:
            row = asdict(verdict) if odd is None else {**asdict(verdict), **odd}
            opened.write(json.dumps(with_checksum(row)) + "\n")
    return file


def parts(folder: Path) -> list[Path]:
    return sorted((folder / "index").glob("*.parquet"))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(VERDICTS, max_size=7), max_size=3), st.lists(VERDICTS, max_size=4))
def test_records_are_those_of_a_dictionary(
    added: list[list[Verdict]], others: list[Verdict]
) -> None:
    twin: dict[tuple[str, str, str], Verdict] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writer, reader = Lines(folder, Verdict), Lines(folder, Verdict)
        for batch in added:
            writer.save()
            write(folder, batch)
            writer.added(len(batch))
            twin |= {key(verdict): verdict for verdict in batch}
            for lines in (reader, Lines(folder, Verdict)):
                found = lines.read()
                assert [*found.items()] == [*twin.items()]
                assert len(found) == len(twin)
                for verdict in others:
                    assert found.get(key(verdict)) == twin.get(key(verdict))
        every = sum(map(len, added))
        assert len(parts(folder)) == every // 3 or every < 3
        assert [*Lines(folder, Verdict).each()] == [v for batch in added for v in batch]


def test_some_of_the_records() -> None:
    verdicts = [
        Verdict(image=f"{n}" * 64, question="q", judge="j", fingerprint="f", verdict=n % 2)
        for n in range(5)
    ]
    found: Records[Any, Verdict] = Records(Verdict, records._columns(Verdict, verdicts))
    some = found.only(found.column("verdict") == 1)
    assert [*some.values()] == [verdicts[1], verdicts[3]]
    assert key(verdicts[0]) not in some
    assert len(found) == 5


def some(count: int = 10) -> list[Verdict]:
    return [
        Verdict(image="a" * 64, question=str(n), judge="j", fingerprint="f", verdict=1, p_yes=0.5)
        for n in range(count)
    ]


def test_a_part_of_other_lines_or_a_damaged_one_counts_for_nothing(tmp_path: Path) -> None:
    chance, made = random.Random(0), tmp_path / "made"
    made.mkdir()
    file = write(made, some())
    Lines(made, Verdict).save()
    assert len(parts(made)) == 3
    for number in range(12):
        folder = tmp_path / str(number)
        shutil.copytree(made, folder)
        place = chance.choice(parts(folder))
        data = bytearray(place.read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        place.write_bytes(data)
        assert [*Lines(folder, Verdict).read().values()] == some()
        Lines(folder, Verdict).save()
        assert [p.read_bytes() for p in parts(folder)] == [p.read_bytes() for p in parts(made)]
    lines = file.read_text().splitlines(keepends=True)
    other = replace(some()[4], verdict=0)
    lines[4] = json.dumps(with_checksum(asdict(other))) + "\n"
    file.write_text("".join(lines))
    assert Lines(made, Verdict).read()[key(other)].verdict == 0
    Lines(made, Verdict).save()
    assert len(parts(made)) == 3
    file.unlink()
    assert len(Lines(made, Verdict).read()) == 0


def test_a_line_that_is_edited_after_a_part_is_told_by_its_number(tmp_path: Path) -> None:
    file = write(tmp_path, some())
    Lines(tmp_path, Verdict).save()
    for number in (2, 9):
        lines = file.read_text().splitlines(keepends=True)
        before = lines[number]
        lines[number] = before.replace('"verdict": 1', '"verdict": 0')
        file.write_text("".join(lines))
        for do in (Lines(tmp_path, Verdict).read, Lines(tmp_path, Verdict).save):
            if number == 9 and do.__name__ == "save":
                continue  # it is in no part
            with pytest.raises(GapbenchError, match=rf"verdicts\.jsonl:{number + 1}: .*altered"):
                do()
        lines[number] = before
        file.write_text("".join(lines))


def test_what_a_part_cannot_hold_is_read_from_the_lines(tmp_path: Path) -> None:
    """Half a surrogate pair, a number beyond 64 bits, NaN, a whole number for one with a point."""
    write(tmp_path, some(3), {"text": "\ud800"})
    lines = Lines(tmp_path, Verdict)
    lines.save()
    lines.added(3)
    assert [v.text for v in lines.read().values()] == ["\ud800"] * 3
    assert parts(tmp_path) == []
    made = Generation(
        prompt="p", sample=0, seed=2**70, image="a" * 64, tokens=None, effective_prompt="p",
        logprob=None, seconds=1.0,
    )  # fmt: skip
    row = {k: v for k, v in asdict(made).items() if k != "latents"}
    with (tmp_path / "generations.jsonl").open("w") as file:
        for seed, seconds in ((2**70, float("nan")), (1, 2), (3, 0.5)):
            told = with_checksum({**row, "seed": seed, "seconds": seconds})
            file.write(json.dumps(told) + "\n")
    Lines(tmp_path, Generation).save()
    found = Lines(tmp_path, Generation).read()
    assert repr(found["p", 2**70].seconds) == "nan"
    assert repr(found["p", 1].seconds) == "2.0"
    assert found["p", 3].seconds == 0.5


def test_what_is_no_part_counts_for_nothing(tmp_path: Path) -> None:
    file = write(tmp_path, some(3))
    index = tmp_path / "index"
    (index / f"verdicts-0-{file.stat().st_size}-folder.parquet").mkdir(parents=True)
    for span in ("0-99999999999999999999", "0-9000000000000000", "0-100", "5-1"):
        (index / f"verdicts-{span}-abcd.parquet").write_bytes(b"x")
    (index / "verdicts-0-101-abcd.parquet").symlink_to("nowhere")
    assert [*Lines(tmp_path, Verdict).read().values()] == some(3)
    Lines(tmp_path, Verdict).save()
    shutil.rmtree(index)
    index.write_text("no folder")
    write(tmp_path, some())
    Lines(tmp_path, Verdict).save()
    assert [*Lines(tmp_path, Verdict).read().values()] == some()
