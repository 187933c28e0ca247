"""Files by digest, packed or not, against a dictionary; a run whose images are packed."""

from __future__ import annotations

import os
import tarfile
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stubs import Stub, records

import gapbench
from gapbench import Generation
from gapbench.models.base import Drawing
from gapbench.report.page import write_report
from gapbench.runs import blobs
from gapbench.runs.blobs import ENTRY, INDEX, Blobs
from gapbench.runs.judge import judge_run
from gapbench.runs.merge import merge
from gapbench.runs.run import Run
from gapbench.runs.settings import Shard
from gapbench.types import GapbenchError

DATA = st.sampled_from(
    [b"", b"x", b"a" * 511, b"b" * 512, b"c" * 513, b"403"]  # the last one's digest ends in 00
)


def digest_of(data: bytes) -> str:
    return sha256(data).hexdigest()


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.lists(DATA, max_size=4), max_size=5),
    st.integers(0, 4),
    st.sampled_from([1, 2000, blobs.TAR]),
    st.sampled_from([1, 1000]),
)
def test_files_are_those_of_a_dictionary(
    batches: list[list[bytes]], packed_from: int, largest: int, most: int
) -> None:
    twin: dict[str, bytes] = {}
    every = [b"", b"x", b"a" * 511, b"b" * 512, b"c" * 513, b"403", b"never"]
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(blobs, "TAR", largest)
        patch.setattr(blobs, "MOST", most)
        folder = Path(name) / "images"
        writer, reader = Blobs(folder, ".png"), Blobs(folder, ".png")
        for number, batch in enumerate(batches):
            if number == packed_from:
                writer.pack()
            assert writer.add(batch) == [*map(digest_of, batch)]
            twin |= {digest_of(data): data for data in batch}
            for each in (writer, reader, Blobs(folder, ".png")):
                digests = [None, *map(digest_of, every)]
                assert each.there(digests).tolist() == [d is None or d in twin for d in digests]
                assert {d: each.get(d) for d in twin} == twin
                assert sorted(each.sizes()) == sorted(map(len, twin.values()))
            with pytest.raises(GapbenchError, match="is missing"):
                writer.get(digest_of(b"never"))
        alone = {f.stem: f.read_bytes() for f in folder.rglob("*.png")}
        members = dict[str, bytes]()
        for place in folder.glob("*.tar"):
            with tarfile.open(place) as tar:
                assert place.stat().st_size % 512 == 0
                for member in tar.getmembers():
                    opened = tar.extractfile(member)
                    assert opened
                    members[member.name.removesuffix(".png")] = opened.read()
        assert alone | members == twin
        assert not alone.keys() & members.keys()


def packed(folder: Path, *files: bytes) -> Blobs:
    made = Blobs(folder, ".png")
    made.pack()
    made.add(files)
    return made


def test_what_was_recorded_outlives_a_crash(tmp_path: Path) -> None:
    packed(tmp_path, b"one", b"two")
    for tar_grew, index_grew in ((700, b""), (0, b"x" * 20), (5, b"x" * 47)):
        with (tmp_path / "00000.tar").open("ab") as tar:
            tar.write(b"z" * tar_grew)
        with (tmp_path / INDEX).open("ab") as index:
            index.write(index_grew)
        again = Blobs(tmp_path, ".png")
        again.settle()
        assert (tmp_path / INDEX).stat().st_size % ENTRY.itemsize == 0
        new = b"after %d" % tar_grew
        again.add([new, b"two"])
        assert [again.get(digest_of(d)) for d in (b"one", b"two", new)] == [b"one", b"two", new]
        with tarfile.open(tmp_path / "00000.tar") as tar:
            assert len(tar.getnames()) == len(again.sizes())


def test_a_deleted_or_cut_tar_file_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "TAR", 1)
    made = packed(tmp_path, b"one")
    made.add([b"two"])
    made.add([b"three"])
    (tmp_path / "00002.tar").unlink()
    os.truncate(tmp_path / "00000.tar", 512)
    again = Blobs(tmp_path, ".png")
    every = [b"one", b"two", b"three"]
    assert again.there([*map(digest_of, every)]).tolist() == [False, True, False]
    with pytest.raises(GapbenchError, match="is missing"):
        again.get(digest_of(b"one"))
    again.settle()
    again.add([b"four", *every])
    assert [again.get(digest_of(d)) for d in every] == every
    assert [Blobs(tmp_path, ".png").get(digest_of(d)) for d in every] == every


def test_an_altered_tar_file_is_named(tmp_path: Path) -> None:
    made = packed(tmp_path, b"one")
    place = tmp_path / "00000.tar"
    place.write_bytes(place.read_bytes().replace(b"one", b"two"))
    with pytest.raises(GapbenchError, match=rf"{digest_of(b'one')} in {place} was altered"):
        made.get(digest_of(b"one"))
    for wrong in ("../..", "a" * 63):
        with pytest.raises(GapbenchError, match="is no sha256"):
            made.get(wrong)


class Token(Stub):
    """Has tokens and latents too."""

    def generate(self, prompts: Any, seeds: Any) -> list[Drawing]:
        return [
            Drawing(
                drawing.image,
                np.array([seed % 1000], np.int32),
                latents=np.full((1, 2, 2), seed % 100, np.float32),
            )
            for drawing, seed in zip(super().generate(prompts, seeds), seeds, strict=True)
        ]


def run(out: Path, **more: Any) -> Run:
    given: dict[str, Any] = {
        "tasks": "shapes/colors,shapes/counting",
        "limit": 6,
        "samples": 2,
    } | more
    return gapbench.run(Token(), out=out, **given)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """A run with a file for each image, and the same whose images are packed."""
    out = tmp_path_factory.mktemp("runs")
    return run(out / "alone"), run(out / "packed", pack_images=True)


def files_of(of: Run) -> list[bytes]:
    """The bytes of every image, and what its tokens and latents hold."""
    folder, made = of.folder, list[bytes]()
    for generation in sorted(of.folder.each(Generation), key=lambda g: (g.prompt, g.seed)):
        assert generation.tokens
        assert generation.latents
        made.append(folder.image_bytes(generation.image))
        made.append(folder.tokens(generation.tokens).tobytes())
        made.append(folder.latents(generation.latents).tobytes())
    return made


def few(of: Run) -> None:
    """Three kinds of files, each in a tar file and an index."""
    for kind in ("images", "tokens", "latents"):
        assert sorted(f.name for f in (of.path / kind).rglob("*")) == ["00000.tar", INDEX]


def test_a_packed_run_has_what_another_has(runs: tuple[Run, Run], tmp_path: Path) -> None:
    alone, packed = runs
    few(packed)
    assert records(packed) == records(alone)
    assert files_of(packed) == files_of(alone)
    assert packed.rates() == alone.rates()
    sheets = [{f.name: f.read_bytes() for f in (r.path / "sheets").glob("*")} for r in runs]
    assert sheets[0] == sheets[1]
    assert packed.folder.bytes_of_an_image() == alone.folder.bytes_of_an_image()
    pages = [tmp_path / "packed.html", tmp_path / "alone.html"]
    for of, page in zip((packed, alone), pages, strict=True):
        write_report([of], page)
    with_tars, with_files = (page.read_text() for page in pages)
    assert '"folder":null' in with_tars
    assert with_tars.count("data:image") == with_files.count("data:image") > 12


def test_packed_shards_merge_and_are_judged(runs: tuple[Run, Run], tmp_path: Path) -> None:
    parts = [run(tmp_path / "parts", pack_images=n < 3, shard=Shard(n, 3)).path for n in (1, 2, 3)]
    merged = merge(parts, tmp_path)
    few(merged)
    assert records(merged) == records(runs[0])
    assert files_of(merged) == files_of(runs[0])
    again = run(tmp_path, judges=[])  # nothing is left to draw, and it stays packed
    few(again)
    judged = judge_run(merged.path, ["pixel"], Shard(1, 2), tmp_path / "judged")
    few(judged)
    assert len(judged.folder.generations()) == 6
    more = run(tmp_path, samples=3)
    few(more)
    assert len(more.folder.generations()) == 18


def test_a_tar_file_that_comes_back_is_there_again(tmp_path: Path) -> None:
    packed(tmp_path / "images", b"one")
    tar = tmp_path / "images/00000.tar"
    tar.rename(tmp_path / "away")
    Blobs(tmp_path / "images", ".png").settle()
    later = packed(tmp_path / "images", b"two")
    assert digest_of(b"one") not in later
    (tmp_path / "away").rename(tar)
    for each in (b"one", b"two"):
        assert Blobs(tmp_path / "images", ".png").get(digest_of(each)) == each


def test_a_tar_file_that_the_index_does_not_know_is_not_written_over(tmp_path: Path) -> None:
    packed(tmp_path / "images", b"one")
    before = (tmp_path / "images/00000.tar").read_bytes()
    (tmp_path / "images" / INDEX).unlink()
    packed(tmp_path / "images", b"two")
    assert (tmp_path / "images/00000.tar").read_bytes() == before


@pytest.mark.parametrize("value", [2**32 - 1, 52_000_000])
def test_a_number_of_no_tar_file_costs_nothing(tmp_path: Path, value: int) -> None:
    packed(tmp_path / "images", b"one", b"two")
    index = tmp_path / "images" / INDEX
    table = np.fromfile(index, ENTRY)
    table["tar"][0], table["start"][1] = value, 2**64 - 100
    table.tofile(index)
    again = packed(tmp_path / "images", b"one", b"two")
    assert [again.get(digest_of(each)) for each in (b"one", b"two")] == [b"one", b"two"]
    assert len(list(index.parent.iterdir())) == 3
