"""The run folder against a dictionary, and what torn, edited or missing files do."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from gapbench import GapbenchError, Generation, Verdict
from gapbench.files import line_of, write_atomic
from gapbench.models.base import Drawing
from gapbench.runs.folder import FORMAT, RunFolder, folder_for

IDENTITY = {"model": "m", "recipe": {"guidance": 5.0}, "seed": 0}
TEXT = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("\n\r\u2028\x00\x85{}\"'\\"),
    max_size=20,
)
NUMBER = st.floats(allow_nan=False)
SHA = st.sampled_from([letter * 64 for letter in "0123456789abcdef"])
VERDICTS = st.builds(
    Verdict,
    image=SHA,
    question=TEXT,
    judge=TEXT,
    fingerprint=TEXT,
    verdict=st.sampled_from([0, 1, None]),
    p_yes=st.none() | NUMBER,
    mass=st.none() | NUMBER,
    score=st.none() | NUMBER,
    text=st.none() | TEXT,
    reason=st.none() | TEXT,
)


def create(out: Path, identity: dict[str, Any] | None = None) -> RunFolder:
    return RunFolder.create(out, "tiny/model", identity or IDENTITY, {"versions": {}})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return create(tmp_path)


def generation(folder: RunFolder, number: int, **more: Any) -> Generation:
    values = {
        "prompt": f"prompt {number}",
        "sample": 0,
        "seed": number,
        "image": folder.add_image(Image.new("RGB", (4, 4), (number, 0, 0))),
        "tokens": None,
        "effective_prompt": "x",
        "logprob": -1.5,
        "seconds": 0.1,
    }
    return Generation(**values | more)


def tokens_in(folder: RunFolder, tokens: NDArray[np.int32]) -> str:
    """Store token ids of an image; gives their digest."""
    digest = folder.add([Drawing(Image.new("RGB", (4, 4)), tokens)])[0].tokens
    assert digest
    return digest


def verdict(number: int) -> Verdict:
    return Verdict(
        image="a" * 64, question=f"{number} é 円 \n?", judge="j", fingerprint="f", verdict=1
    )


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.lists(VERDICTS, max_size=4), max_size=4))
def test_verdicts_come_back_as_a_dictionary_holds_them(batches: list[list[Verdict]]) -> None:
    with tempfile.TemporaryDirectory() as out:
        folder, twin = create(Path(out)), {}
        for batch in batches:
            folder.append(batch)
            twin |= {(v.image, v.question, v.fingerprint): v for v in batch}
            assert RunFolder.open(folder.path).verdicts() == twin


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(TEXT, TEXT, st.integers(0, 2**63 - 1), st.none() | NUMBER, NUMBER, st.booleans()),
        max_size=5,
    )
)
def test_generations_come_back_as_a_dictionary_holds_them(rows: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as out:
        folder, twin = create(Path(out)), {}
        for prompt, effective, seed, logprob, seconds, tokens in rows:
            made = generation(
                folder,
                seed % 256,
                prompt=prompt,
                seed=seed,
                effective_prompt=effective,
                logprob=logprob,
                seconds=seconds,
                tokens=tokens_in(folder, np.array([seed % 99], np.int32)) if tokens else None,
            )
            twin[prompt, seed] = made
            folder.append([made])
        assert RunFolder.open(folder.path).generations() == twin


def test_one_call_takes_very_many_records(folder: RunFolder) -> None:
    records = [verdict(number) for number in range(30_000)]
    folder.append(records)
    assert list(folder.verdicts().values()) == records


def test_images_and_tokens_come_back(folder: RunFolder) -> None:
    picture = Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3))
    tokens = np.array([5, 0, 2**31 - 1], np.int32)
    image, ids = folder.add_image(picture), tokens_in(folder, tokens)
    assert (image, ids) == (folder.add_image(picture), tokens_in(folder, tokens))
    np.testing.assert_array_equal(np.asarray(folder.image(image)), np.asarray(picture))
    np.testing.assert_array_equal(folder.tokens(ids), tokens)
    assert folder.image_path(image) == folder.path / "images" / image[:2] / f"{image}.png"


def test_latents_come_back_and_a_record_without_them_does_not_name_them(folder: RunFolder) -> None:
    latents = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4).transpose(0, 2, 1)
    [(_, _, digest)] = folder.add([Drawing(Image.new("RGB", (4, 4)), latents=latents)])
    assert digest
    np.testing.assert_array_equal(folder.latents(digest), latents)
    folder.append([generation(folder, 1), generation(folder, 2, latents=digest)])
    without, with_ = map(json.loads, (folder.path / "generations.jsonl").read_text().splitlines())
    assert "latents" not in without
    assert with_["latents"] == digest
    again = RunFolder.open(folder.path)
    assert [g.latents for g in again.generations().values()] == [None, digest]
    [place] = (folder.path / "latents").rglob(f"{digest}.safetensors")
    data = place.read_bytes()
    place.write_bytes(data[:-1] + b"x")
    with pytest.raises(GapbenchError, match="altered"):
        folder.latents(digest)
    place.unlink()
    assert [g.seed for g in again.generations().values()] == [1]
    other = sha256(b"no tensors").hexdigest()
    place = place.parents[1] / other[:2] / f"{other}.safetensors"
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(b"no tensors")
    with pytest.raises(GapbenchError, match="holds no latents"):
        folder.latents(other)


def test_many_images_are_stored_and_read_as_one_by_one(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "m", {"a": 1}, {})
    noise = np.random.default_rng(0).integers(0, 256, (12, 40, 40, 3), np.uint8)
    pictures = [Image.fromarray(noise[place % 12]) for place in range(48)]  # each four times
    digests = [kept.image for kept in folder.add([Drawing(picture) for picture in pictures])]
    assert digests == [folder.add_image(picture) for picture in pictures]
    assert len(set(digests)) == 12 == len(list((folder.path / "images").rglob("*.*")))
    for digest, picture in zip(digests, pictures, strict=True):
        np.testing.assert_array_equal(np.asarray(folder.image(digest)), np.asarray(picture))


def test_an_image_takes_its_file_along_to_another_process(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "m", {"a": 1}, {})
    fine, altered = (folder.add_image(Image.new("RGB", (8, 8), (red, 0, 0))) for red in (1, 2))
    folder.image_path(altered).write_bytes(b"altered")
    sent = [pickle.dumps(folder.stored(digest)) for digest in (fine, altered)]
    shutil.rmtree(folder.path)
    there, broken = map(pickle.loads, sent)
    assert there.sha256 == fine
    assert there.open().getpixel((0, 0)) == (1, 0, 0)
    with pytest.raises(GapbenchError, match="altered"):
        broken.open()


def test_a_torn_last_line_is_dropped_wherever_it_is_torn(folder: RunFolder) -> None:
    whole, last = [verdict(1), verdict(2)], verdict(3)
    folder.append(whole)
    file = folder.path / "verdicts.jsonl"
    kept = file.read_bytes()
    line = (line_of(asdict(last)) + "\n").encode()
    for cut in range(len(line) + 1):
        file.write_bytes(kept + line[:cut])
        wanted = [*whole, last] if cut == len(line) else whole
        # A reader next to a writer sees whole lines only, and leaves the file alone.
        assert list(folder.verdicts().values()) == wanted, cut
        assert file.read_bytes() == kept + line[:cut]
        with folder.lock():
            folder.append([last])
        assert file.read_bytes() in (kept + line, kept + line + line)
        assert list(folder.verdicts().values()) == [*whole, last]


def test_a_file_that_is_one_torn_line(folder: RunFolder) -> None:
    (folder.path / "generations.jsonl").write_bytes(b'{"prompt": "a ci')
    assert folder.generations() == {}
    with folder.lock():
        assert (folder.path / "generations.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    "line", [b"{", b"", b"\0\0\0", b"[]", b"7", b'{"image": "x"}', b'{"more": 1}', b"\xff"]
)
def test_a_broken_middle_line_is_named(folder: RunFolder, line: bytes) -> None:
    folder.append([verdict(1), verdict(2), verdict(3)])
    file = folder.path / "verdicts.jsonl"
    lines = file.read_bytes().split(b"\n")
    file.write_bytes(b"\n".join([lines[0], line, *lines[2:]]))
    with pytest.raises(GapbenchError) as caught:
        folder.verdicts()
    assert f"{file}:2: broken record" in str(caught.value)
    assert "delete the line" in str(caught.value)


def test_a_flipped_bit_is_found_wherever_it_is(folder: RunFolder) -> None:
    folder.append([verdict(1), verdict(2)])
    file, records = folder.path / "verdicts.jsonl", list(folder.verdicts().values())
    data = file.read_bytes()
    for place in range(len(data)):
        for bit in (1, 4):
            file.write_bytes(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :])
            try:
                kept = list(folder.verdicts().values())
            except GapbenchError:
                continue
            # Without its newline the last line counts as torn, and is asked for again.
            assert (place, kept) == (len(data) - 1, records[:1])


@pytest.mark.parametrize("change", [{"verdict": 0}, {"p_yes": 0.4}, {"question": "x"}])
def test_an_edited_record_is_found(folder: RunFolder, change: dict[str, Any]) -> None:
    folder.append([verdict(1)])
    file = folder.path / "verdicts.jsonl"
    record = json.loads(file.read_text()) | change
    file.write_text(json.dumps(record) + "\n")
    with pytest.raises(GapbenchError, match=r"verdicts\.jsonl:1: .* its checksum is another"):
        folder.verdicts()
    del record["checksum"]  # as gapbench 0.1.0 wrote it
    file.write_text(json.dumps(record) + "\n")
    assert [asdict(v) for v in folder.verdicts().values()] == [record]


def test_an_edited_identity_is_found(tmp_path: Path, folder: RunFolder) -> None:
    meta = json.loads((folder.path / "run.json").read_text())
    meta["identity"]["seed"] = 7
    (folder.path / "run.json").write_text(json.dumps(meta))
    with pytest.raises(GapbenchError, match=r"run\.json: broken \(altered since"):
        create(tmp_path)


def test_altered_tokens_are_found_when_they_are_read(folder: RunFolder) -> None:
    tokens = tokens_in(folder, np.array([1], np.int32))
    [place] = (folder.path / "tokens").rglob("*.npy")
    place.write_bytes(place.read_bytes()[:-1] + b"x")
    with pytest.raises(GapbenchError, match=f"{tokens}.npy was altered"):
        folder.tokens(tokens)


def test_what_a_killed_writer_left_is_swept(folder: RunFolder) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    (folder.path / "images" / "ab").mkdir(parents=True)
    places = [folder.path / "rates.json", folder.path / "images" / "ab" / "x.png"]
    dead = [place.with_name(f"{place.name}.{process.pid}.123.part") for place in places]
    living = folder.path / f"rates.json.{os.getpid()}.123.part"
    for file in (*dead, living):
        file.touch()
    with folder.lock():
        assert list(folder.path.rglob("*.part")) == [living]


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in (pipe, Path("/dev/null"), tmp_path):
        with pytest.raises(GapbenchError, match="not a regular file"):
            write_atomic(place, b"x")
    assert list(tmp_path.iterdir()) == [pipe]


def test_an_unknown_or_missing_key_is_named(folder: RunFolder) -> None:
    record = asdict(verdict(1))
    for broken, key in ((record | {"extra": 1}, "extra"), (dict(list(record.items())[1:]), None)):
        (folder.path / "verdicts.jsonl").write_text(json.dumps(broken) + "\n")
        with pytest.raises(GapbenchError, match=key or "verdict"):
            folder.verdicts()


def test_a_second_process_is_kept_out(folder: RunFolder) -> None:
    hold = (
        "import sys; from pathlib import Path; from gapbench.runs.folder import RunFolder\n"
        "with RunFolder.open(Path(sys.argv[1])).lock(): print('held', flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", hold, str(folder.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(GapbenchError, match="is being written by another gapbench"):
            folder.lock().__enter__()
        process.kill()
    with folder.lock():  # a killed writer holds nothing
        folder.append([verdict(1)])


def test_the_lock_is_free_after_an_error(folder: RunFolder) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError, match="inside"), folder.lock():
            raise RuntimeError("inside")


def test_a_lock_that_cannot_be_made_is_told(folder: RunFolder) -> None:
    (folder.path / ".lock").mkdir()
    with pytest.raises(GapbenchError, match="run the same command again"):
        folder.lock().__enter__()


def test_an_altered_image_is_named(folder: RunFolder) -> None:
    sha = folder.add_image(Image.new("RGB", (4, 4)))
    place = folder.image_path(sha)
    place.write_bytes(place.read_bytes() + b"x")
    with pytest.raises(GapbenchError) as caught:
        folder.image(sha)
    assert f"{place} was altered" in str(caught.value)


def test_generations_without_their_files_are_not_listed(folder: RunFolder) -> None:
    made = [generation(folder, n) for n in range(3)]
    tokens = tokens_in(folder, np.array([1], np.int32))
    made.append(generation(folder, 3, tokens=tokens))
    folder.append(made)
    assert list(folder.generations().values()) == made
    folder.image_path(made[1].image).unlink()
    (folder.path / "tokens" / tokens[:2] / f"{tokens}.npy").unlink()
    assert list(folder.generations().values()) == [made[0], made[2]]
    with pytest.raises(GapbenchError, match="is missing; run the same command again"):
        folder.image(made[1].image)


@pytest.mark.parametrize("sha", ["../..", "../../" + "a" * 58, "A" * 64, "a" * 63, "", "a" * 65])
def test_paths_do_not_leave_the_folder(folder: RunFolder, sha: str) -> None:
    for use in (folder.image, folder.image_path, folder.tokens):
        with pytest.raises(GapbenchError, match="is no sha256"):
            use(sha)
    folder.append([generation(folder, 1, image=sha)])
    with pytest.raises(GapbenchError, match="is no sha256"):
        folder.generations()


def test_a_folder_is_found_again(tmp_path: Path, folder: RunFolder) -> None:
    assert folder.path == folder_for(tmp_path, "tiny/model", IDENTITY)
    assert folder.path.parent == tmp_path
    assert folder.path.name.startswith("tiny-model-")
    before = (folder.path / "run.json").read_bytes()
    again = create(tmp_path)
    assert again.path == folder.path
    assert again.meta == folder.meta
    assert (folder.path / "run.json").read_bytes() == before
    for other in ({"seed": 1}, {"model": "n"}, {"recipe": {"guidance": 4.0}}):
        assert folder_for(tmp_path, "tiny/model", IDENTITY | other) != folder.path


def test_the_name_says_what_was_changed(tmp_path: Path) -> None:
    def named(changed: dict[str, object], **identity: Any) -> str:
        return folder_for(tmp_path, "m", {"seed": 0, **identity}, changed).name[:-9]

    assert named({}) == "m"
    assert named({"guidance": 4.0, "dtype": "float32"}, seed=3) == "m-guidance4-float32-seed3"
    assert named({"size": "a/b c\n"}) == "m-sizea-b-c-"
    assert len(named({"prefix": "x" * 300})) == 2 + 48
    identity = {"model": "n", "recipe": {"guidance": 4.0}, "seed": 0}
    older = RunFolder.create(tmp_path, "m", identity, {})  # as gapbench 0.1 named it
    assert folder_for(tmp_path, "m", identity, {"guidance": 4.0}) == older.path


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"format": FORMAT + 1}, f"has run format {FORMAT + 1}, this gapbench reads {FORMAT}"),
        ({"format": None}, "has run format None"),
        ({"identity": {"model": "other"}}, "holds a run of another identity"),
        ({"identity": None}, "run.json: broken (identity: Field required)"),
        ({"model": None}, "run.json: broken (model: Field required)"),
    ],
)
def test_mismatched_folders_are_refused(
    tmp_path: Path, folder: RunFolder, change: dict[str, Any], culprit: str
) -> None:
    meta = {k: v for k, v in (folder.meta | change).items() if v is not None}
    (folder.path / "run.json").write_text(json.dumps(meta))
    with pytest.raises(GapbenchError) as caught:
        create(tmp_path)
    assert culprit in str(caught.value)
    assert str(folder.path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "culprit"), [(None, "is not there"), ("{", "not JSON"), ("[]", "not a JSON object")]
)
def test_folders_that_are_no_run(
    tmp_path: Path, folder: RunFolder, text: str | None, culprit: str
) -> None:
    (folder.path / "run.json").unlink()
    if text is not None:
        (folder.path / "run.json").write_text(text)
    with pytest.raises(GapbenchError, match=culprit):
        RunFolder.open(folder.path)


def test_files_are_replaced_whole(folder: RunFolder) -> None:
    for value in ({"a": 1}, {"b": "é"}):
        folder.write("rates.json", value)
        assert folder.read("rates.json") == value
    folder.write_bytes("sheets/x.png", b"1")
    folder.write_bytes("sheets/x.png", b"22")
    assert (folder.path / "sheets" / "x.png").read_bytes() == b"22"


@contextmanager
def small_files() -> Iterator[None]:
    """No file may grow past 8,192 bytes, as on a disk that fills up.

    Not a fixture: the limit would hold for pytest's own report, which may go to a long file.
    """
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_a_disk_error_keeps_the_old_file_and_leaves_no_part(folder: RunFolder) -> None:
    folder.write("rates.json", {"old": 1})
    with small_files(), pytest.raises(OSError, match="too large"):
        write_atomic(folder.path / "rates.json", b"x" * 10_000)
    for write in (
        lambda: folder.write("rates.json", {"new": "x" * 10_000}),
        lambda: tokens_in(folder, np.zeros(10_000, np.int32)),
    ):
        with small_files(), pytest.raises(GapbenchError, match="run the same command again"):
            write()
    assert folder.read("rates.json") == {"old": 1}
    assert not list(folder.path.rglob("*.part"))


def test_appending_to_a_full_disk_keeps_what_fits(folder: RunFolder) -> None:
    kept = [verdict(number) for number in range(5)]
    folder.append(kept)
    with small_files(), pytest.raises(GapbenchError, match="run the same command again"):
        folder.append([verdict(number) for number in range(5, 100)])
    with folder.lock():
        found = list(folder.verdicts().values())
        assert found[:5] == kept
        assert found == [verdict(number) for number in range(len(found))]
        folder.append([verdict(200)])
    assert list(folder.verdicts().values()) == [*found, verdict(200)]


def test_a_full_disk_is_named_as_such(folder: RunFolder) -> None:
    # /dev/full answers every write with "no space left on device".
    (folder.path / "verdicts.jsonl").symlink_to("/dev/full")
    with pytest.raises(GapbenchError, match="the disk is full; what was computed is kept"):
        folder.append([verdict(1)])


def test_out_below_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GapbenchError, match="Not a directory"):
        create(tmp_path / "file" / "runs")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
