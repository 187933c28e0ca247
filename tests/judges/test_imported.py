"""Official result files as verdicts."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gapbench.judges import load_judge
from gapbench.judges.imported import ImportedJudge
from gapbench.types import COSINE, Answer, GapbenchError, Prompt

PROMPTS = ("a photo of a bench", "a photo of two cats")
SAMPLES = 3


def prompt(text: str) -> Prompt:
    return Prompt(
        id=text, task="t", category="c", tier="easy", text=text, question=f"Is it {text}?",
        requirement={},
    )  # fmt: skip


def image(index: int, sample: int) -> Image.Image:
    return Image.effect_noise((8, 8), 90 + index).convert("RGB").rotate(90 * sample)


def stored(picture: Image.Image) -> Image.Image:
    """As the run folder hands it out: written anew, at another compression."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return Image.open(buffer).convert("RGB")


Pictures = dict[tuple[str, int], Image.Image]


def geneval(root: Path) -> tuple[Pictures, list[dict[str, Any]]]:
    """A scored folder, and its results in the scorer's order, which is that of the file system."""
    pictures, rows = {}, []
    for index, text in enumerate(PROMPTS):
        folder = root / f"{index:05d}/samples"
        folder.mkdir(parents=True)
        metadata = {"tag": "counting", "include": [], "prompt": text}
        (folder.parent / "metadata.jsonl").write_text(json.dumps(metadata))
        for sample in range(SAMPLES):
            pictures[text, sample] = image(index, sample)
            pictures[text, sample].save(folder / f"{sample:04d}.png")
            correct = (index + sample) % 2 == 0
            rows.append(
                {
                    "filename": f"/elsewhere/out/{index:05d}/samples/{sample:04d}.png",
                    "tag": "counting",
                    "prompt": text,
                    "correct": correct,
                    "reason": "" if correct else "expected cat>=2, found 1",
                    "metadata": json.dumps(metadata),
                    "details": "{}",
                }
            )
    return pictures, rows[::-1]


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    lines = [json.dumps(row).replace("/", "\\/") for row in rows]  # as pandas writes them
    file.write_text("\n".join(lines) + "\n")
    return str(file)


def compbench(root: Path, start: int = 0) -> Pictures:
    pictures = {}
    (root / "samples").mkdir(parents=True)
    for index, text in enumerate(PROMPTS):
        for sample in range(SAMPLES):
            pictures[text, sample] = image(index, sample)
            number = start + index * SAMPLES + sample
            pictures[text, sample].save(root / f"samples/{text}_{number:06d}.png")
    return pictures


def results(root: Path, answers: Sequence[object], start: int = 0, kind: str = "blip") -> str:
    file = root / f"annotation_{kind}/vqa_result.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"question_id": start + i, "answer": answer} for i, answer in enumerate(answers)]
    file.write_text(json.dumps(rows))
    return str(file)


def ask(judge: ImportedJudge, pictures: Pictures) -> list[Answer]:
    return judge.judge([stored(i) for i in pictures.values()], [prompt(p) for p, _ in pictures])


def test_geneval_results(tmp_path: Path) -> None:
    pictures, rows = geneval(tmp_path)
    judge = ImportedJudge(write(tmp_path / "results.jsonl", rows))
    assert judge.name == "imported-geneval"
    assert judge.question(prompt("x")) == "Is it x?"
    answers = ask(judge, pictures)
    assert [a.verdict for a in answers] == [1, 0, 1, 0, 1, 0]
    assert [a.score for a in answers] == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    assert answers[1].reason == "expected cat>=2, found 1"
    assert answers[0].reason is None
    judge.release()
    assert ask(judge, pictures) == answers


def test_the_images_may_lie_elsewhere(tmp_path: Path) -> None:
    pictures, rows = geneval(tmp_path / "images")
    (tmp_path / "scores").mkdir()
    file = write(tmp_path / "scores/results.jsonl", rows)
    with pytest.raises(GapbenchError, match="images are not beside it"):
        ImportedJudge(file)
    answers = ask(ImportedJudge(f"{file}#{tmp_path / 'images'}"), pictures)
    assert [a.verdict for a in answers] == [1, 0, 1, 0, 1, 0]


def test_other_pixels_or_prompts_are_abstentions(tmp_path: Path) -> None:
    pictures, rows = geneval(tmp_path)
    judge = ImportedJudge(write(tmp_path / "results.jsonl", rows[1:]))
    first = next(iter(pictures.values()))
    almost = first.copy()
    almost.putpixel((0, 0), (1, 2, 3))
    unscored = pictures[PROMPTS[1], SAMPLES - 1]
    asked = [(almost, PROMPTS[0]), (first, PROMPTS[1]), (first, "x"), (unscored, PROMPTS[1])]
    for answer in judge.judge([i for i, _ in asked], [prompt(p) for _, p in asked]):
        assert answer.verdict is None
        assert answer.reason == "the result file has no such image of the prompt"


def test_equal_images_with_different_results_are_abstentions(tmp_path: Path) -> None:
    pictures, rows = geneval(tmp_path)
    for sample in range(SAMPLES):
        pictures[PROMPTS[0], 0].save(tmp_path / f"00000/samples/{sample:04d}.png")
    judge = ImportedJudge(write(tmp_path / "results.jsonl", rows))
    (answer,) = judge.judge([pictures[PROMPTS[0], 0]], [prompt(PROMPTS[0])])
    assert answer.verdict is None
    assert "different results" in (answer.reason or "")


@pytest.mark.parametrize("start", [0, 7])
def test_compbench_scores(tmp_path: Path, start: int) -> None:
    """BLIP-VQA writes text and ranks, UniDet numbers and file numbers; both are read."""
    pictures = compbench(tmp_path, start)
    scores = [0.0, 0.4999, 0.5, 1.0, float("nan"), 0.75]
    ranks = ImportedJudge(results(tmp_path, [f"{s:.4f}" for s in scores]))
    numbers = ImportedJudge(results(tmp_path / "labels", scores, start, "obj_detection_2d"))
    assert ranks.name == "imported-t2i-compbench"
    answers = ask(ranks, pictures)
    assert answers == ask(numbers, pictures)
    assert [a.verdict for a in answers] == [0, 0, 1, 1, None, 1]
    assert [a.score for a in answers] == [0.0, 0.4999, 0.5, 1.0, None, 0.75]
    assert answers[4].reason == "the score is nan"


def test_clip_scores_give_no_verdict_unless_a_threshold_is_set(tmp_path: Path) -> None:
    pictures = compbench(tmp_path)
    file = results(tmp_path, [0.28, 0.29, 0.3, 0.31, 0.32, 0.33], kind="clip")
    judge = ImportedJudge(file)
    assert judge.scale == COSINE
    answers = ask(judge, pictures)
    assert {a.verdict for a in answers} == {None}
    assert [a.score for a in answers] == [0.28, 0.29, 0.3, 0.31, 0.32, 0.33]
    chosen: Any = load_judge(f"imported@0.3:{file}")
    assert chosen.name == "imported-t2i-compbench@0.3"
    assert [a.verdict for a in ask(chosen, pictures)] == [0, 0, 1, 1, 1, 1]


def test_the_fingerprint_is_of_results_and_images(tmp_path: Path) -> None:
    pictures, rows = geneval(tmp_path)
    file = tmp_path / "results.jsonl"
    before = ImportedJudge(write(file, rows)).fingerprint
    assert ImportedJudge(write(file, rows)).fingerprint == before
    pictures[PROMPTS[1], 0].save(tmp_path / "00000/samples/0001.png")
    moved = ImportedJudge(write(file, rows)).fingerprint
    rows[0]["correct"] = not rows[0]["correct"]
    assert len({before, moved, ImportedJudge(write(file, rows)).fingerprint}) == 3


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"correct": "true"}, "correct is 'true'"),
        ({"correct": None}, "correct is None"),
        ({"filename": 3}, "no GenEval result"),
        ({"filename": "a/00007/samples/0000.png"}, "00007/samples/0000.png is not in"),
        ({"prompt": "a cat"}, "name the folder that was scored"),
        ({"filename": "00000/samples/0000.png", "prompt": PROMPTS[0]}, "another result"),
    ],
)
def test_broken_geneval_lines(tmp_path: Path, change: dict[str, object], why: str) -> None:
    _, rows = geneval(tmp_path)
    rows = [rows[-1], rows[-2] | change]
    with pytest.raises(GapbenchError, match=f"results.jsonl:2: .*{why}"):
        ImportedJudge(write(tmp_path / "results.jsonl", rows))


def test_broken_files(tmp_path: Path) -> None:
    geneval(tmp_path)
    file = tmp_path / "results.jsonl"
    for text, why in (("{", "not JSON"), ("[1]", "no GenEval"), ("{}", "it needs filename")):
        file.write_text(text + "\n")
        with pytest.raises(GapbenchError, match=f"results.jsonl:1: .*{why}"):
            ImportedJudge(str(file))
    with pytest.raises(GapbenchError, match="needs a result file"):
        ImportedJudge()
    with pytest.raises(GapbenchError, match="cannot be read"):
        ImportedJudge(str(tmp_path / "nowhere.jsonl"))
    (tmp_path / "vqa_result.json").write_text("[]")
    with pytest.raises(GapbenchError, match="in the layout of geneval"):
        ImportedJudge(str(tmp_path / "vqa_result.json"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{}", "it is a list"),
        ("[", "not JSON"),
        ('[{"question_id": 0}]', "item 1: .* needs question_id"),
        ('[{"question_id": 0, "answer": "yes"}]', "item 1: .* a number as answer"),
        ('[{"question_id": "0", "answer": 1}]', "item 1: question_id '0'"),
        ('[{"question_id": 0, "answer": 1}, {"question_id": 0, "answer": 1}]', "item 2: .*twice"),
        ('[{"question_id": 0, "answer": 1}]', "its 1 results are not those of the 6 images"),
    ],
)
def test_broken_compbench_files(tmp_path: Path, text: str, why: str) -> None:
    compbench(tmp_path)
    file = tmp_path / "annotation_blip/vqa_result.json"
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(GapbenchError, match=why):
        ImportedJudge(str(file))
