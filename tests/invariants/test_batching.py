"""A run's images and verdicts are the same whatever the batch size and the order of its prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import gapbench
from gapbench.judges import load_judge
from gapbench.judges.lists import answers_in
from gapbench.judges.own import Mode, question_of
from gapbench.models.base import Model
from gapbench.runs.run import Run
from gapbench.types import Verdict
from gapbench.verdict import ANSWERS

PROMPTS, SAMPLES = 5, 2
Key = tuple[str, int]
Asked = tuple[str, str, str]
NAMES = ("tiny", "showo", "janus-mini")
MODES: tuple[Mode, ...] = ("logits", "text", "questions")


@dataclass(frozen=True)
class Result:
    """What a run folder holds: by (prompt, seed), and by (image, question, judge)."""

    files: dict[Key, bytes]
    tokens: dict[Key, NDArray[np.int32]]
    logprobs: dict[Key, float]
    verdicts: dict[Asked, Verdict]


def result(run: Run) -> Result:
    drawn = run.folder.generations()
    files = {key: run.folder.image_path(g.image).read_bytes() for key, g in drawn.items()}
    for key, generation in drawn.items():
        assert hashlib.sha256(files[key]).hexdigest() == generation.image
    return Result(
        files=files,
        tokens={k: run.folder.tokens(g.tokens) for k, g in drawn.items() if g.tokens},
        logprobs={k: g.logprob for k, g in drawn.items() if g.logprob is not None},
        verdicts={(v.image, v.question, v.judge): v for v in run.folder.verdicts().values()},
    )


@pytest.fixture(scope="module")
def model_of(tiny_janus: Path, tiny_showo: Path) -> Callable[[str], str | Model]:
    def made(name: str) -> str | Model:
        if name == "showo":
            return gapbench.load_model(str(tiny_showo), recipe={"steps": 4})
        return str(tiny_janus) if name == "tiny" else name

    return made


@pytest.fixture(scope="module")
def once(
    model_of: Callable[[str], str | Model], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], Result]:
    """The run of a model at a batch size, all verdict modes in one folder, made at first use."""
    made: dict[tuple[str, int], Result] = {}

    def run(name: str, batch_size: int) -> Result:
        if (name, batch_size) not in made:
            made[name, batch_size] = measure(
                model_of(name), "shapes", batch_size, tmp_path_factory.mktemp("runs"), PROMPTS
            )
        return made[name, batch_size]

    return run


def measure(
    model: str | Model, task: str, batch_size: int, out: Path, limit: int | None = None
) -> Result:
    for mode in MODES:
        finished = gapbench.run(
            model, task, samples=SAMPLES, limit=limit, verdict=mode, batch_size=batch_size, out=out
        )  # fmt: skip
    return result(finished)


def same_images(found: Result, expected: Result) -> None:
    assert found.files.keys() == expected.files.keys()
    for key, data in expected.files.items():
        assert found.files[key] == data, key
        np.testing.assert_array_equal(found.tokens[key], expected.tokens[key])
        assert found.logprobs.get(key) == pytest.approx(expected.logprobs.get(key), abs=1e-9)


def same_verdicts(found: dict[Asked, Verdict], expected: dict[Asked, Verdict]) -> None:
    assert found.keys() == expected.keys()
    for key, one in found.items():
        other = expected[key]
        assert (one.verdict, one.reason) == (other.verdict, other.reason)
        if (chances := answers_in(other.text)) is None:
            assert one.text == other.text
        else:
            assert answers_in(one.text) == pytest.approx(chances, abs=1e-5)
        assert (one.fingerprint, one.score) == (other.fingerprint, other.score)
        assert one.p_yes == pytest.approx(other.p_yes, abs=1e-5)
        assert one.mass == pytest.approx(other.mass, abs=1e-5)


@pytest.mark.parametrize("batch_size", [7, 64])
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_any_size_gives_the_images_and_verdicts_of_single_work(
    once: Callable[[str, int], Result], name: str, batch_size: int
) -> None:
    alone, together = once(name, 1), once(name, batch_size)
    assert len(alone.files) == len(alone.tokens) == PROMPTS * SAMPLES
    assert len(alone.logprobs) == (0 if name == "showo" else PROMPTS * SAMPLES)
    assert len(set(alone.files.values())) > PROMPTS
    same_images(together, alone)
    assert {judge for _, _, judge in alone.verdicts} == {
        "self",
        "self-text",
        "self-questions",
        "pixel",
    }
    same_verdicts(together.verdicts, alone.verdicts)


@pytest.mark.parametrize("name", NAMES)
def test_a_second_thread_changes_no_image_and_no_verdict(
    once: Callable[[str, int], Result],
    model_of: Callable[[str], str | Model],
    tmp_path: Path,
    name: str,
) -> None:
    assert torch.get_num_threads() == 1
    one = once(name, 64)
    torch.set_num_threads(2)
    try:
        two = measure(model_of(name), "shapes", 64, tmp_path, PROMPTS)
    finally:
        torch.set_num_threads(1)
    same_images(two, one)
    same_verdicts(two.verdicts, one.verdicts)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_prompts_changes_no_image_and_no_verdict(
    once: Callable[[str, int], Result],
    model_of: Callable[[str], str | Model],
    user_task: Callable[..., Path],
    tmp_path: Path,
    name: str,
) -> None:
    known = once(name, 7)
    shapes = gapbench.load_task("shapes")
    texts = {prompt for prompt, _ in known.files}
    chosen = [p for p in shapes.prompts() if p.text in texts]
    records = [{"id": p.id, "text": p.text, "requirement": p.requirement} for p in chosen]
    shuffled = [records[i] for i in np.random.default_rng(0).permutation(len(records))]
    assert shuffled != records
    folder = user_task(shuffled, question=shapes.spec.question)
    found = measure(model_of(name), str(folder), 5, tmp_path / "runs")
    same_images(found, known)
    # The folder has one category, so images are held against other prompts: left out here.
    own = {(hashlib.sha256(known.files[k]).hexdigest(), k[0]) for k in known.files}
    pixel = load_judge("pixel")
    questions = {
        p.text: (p.question, question_of("self-questions", p), pixel.question(p)) for p in chosen
    }
    asked = {(image, question) for image, text in own for question in questions[text]}

    def matched(verdicts: dict[Asked, Verdict]) -> dict[Asked, Verdict]:
        return {k: v for k, v in verdicts.items() if k[:2] in asked}

    assert len(matched(found.verdicts)) >= len(asked)
    same_verdicts(matched(found.verdicts), matched(known.verdicts))


@pytest.mark.parametrize(("dtype", "times"), [("float32", 1), ("bfloat16", 3)])
def test_where_rounding_shows_blocks_of_one_shape_keep_every_byte(dtype: str, times: int) -> None:
    """44 or 132 images in blocks of 8: in batches of 7 and of 64, and the first 6 one by one.
    Without blocks, three of the 132 have other tokens in bfloat16."""
    model = gapbench.load_model("janus-mini", dtype=dtype)
    prompts = [prompt.text for prompt in gapbench.load_task("shapes").prompts()[::10]] * times
    seeds = range(1000, 1000 + len(prompts))

    def drawn(batch: int, count: int) -> list[tuple[list[int], float | None, bytes]]:
        made = []
        for first in range(0, count, batch):
            some = slice(first, min(first + batch, count))
            made += model.generate(prompts[some], seeds[some])
        tokens = [drawing.tokens for drawing in made]
        return [
            (row.tolist(), drawing.logprob, drawing.image.tobytes())
            for row, drawing in zip(tokens, made, strict=True)
            if row is not None
        ]

    whole = drawn(64, len(prompts))
    assert len(whole) == 44 * times
    assert drawn(7, len(prompts)) == whole
    assert drawn(1, 6) == whole[:6]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_keep_every_bit_of_a_verdict(dtype: str) -> None:
    """24 images in blocks of 8, of which 12 are asked a second question: in batches of 7 and 36,
    and one by one, with answers of one token and of several."""
    model = gapbench.load_model("janus-mini", dtype=dtype)
    chosen = gapbench.load_task("shapes").prompts()[::18][:24]
    images = [drawing.image for drawing in model.generate([p.text for p in chosen], range(24))]
    asked = [(image, prompt.question) for image, prompt in zip(images, chosen, strict=True)]
    asked += [(image, prompt.question) for image, prompt in zip(images, chosen[12:], strict=False)]
    answers = (*ANSWERS, " yes", " a red circle")

    def judged(batch: int) -> list[list[float]]:
        rows = []
        for first in range(0, len(asked), batch):
            some = asked[first : first + batch]
            rows += model.judge(*zip(*some, strict=True), answers).tolist()
        return rows

    whole = judged(len(asked))
    assert judged(7) == whole
    assert judged(1) == whole
    assert len({tuple(row) for row in whole}) > 20
