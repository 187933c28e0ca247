"""Official result files as verdicts."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gapbench.judges import load_judge
from gapbench.judges.imported import ImportedJudge
from gapbench.models.images import ImagesModel
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


# -- DPG-Bench -----------------------------------------------------------------------------------

HEADS = ("item_id", "text", "proposition_id", "dependency", "question_natural_language")
LISTS = {
    # item -> text, and of each question its id, those that it depends on, and its text
    "first": ("a cat, on a mat", [(1, "0", "A photo?"), (2, "0", "A cat?"), (3, "2", "Red?")]),
    "late": ("two dogs", [(3, "2", "Big?"), (2, "1", "Brown?"), (1, "0", "Dogs, two?")]),
    "error": ("a bowl", [(1, "0", "A bowl?"), (2, "1", "Blue?")]),
}
CORNERS = ("(0, 0, 4, 4)", "(4, 0, 8, 4)", "(0, 4, 4, 8)", "(4, 4, 8, 8)")


def dpg(root: Path) -> list[str]:
    """Grids of 4 x 4 pixels, and the lines of the script: the first question is never asked, and at
    one grid it stopped in its third image."""
    root.mkdir()
    with (root / "dpg_bench.csv").open("w", newline="") as opened:
        rows = [(k, t, *q) for k, (t, questions) in LISTS.items() for q in questions]
        csv.writer(opened).writerows([HEADS, *rows])
    lines = []
    for index, (item, (_, questions)) in enumerate(LISTS.items()):
        Image.effect_noise((8, 8), 90 + index).convert("RGB").save(root / f"{item}.png")
        for place, corners in enumerate(CORNERS):
            for number, _, question in questions[item == "first" :]:
                said = "no" if number == 1 + place else "yes"
                lines.append(f"/any/where, too/{item}.png, {corners}, {question}, {said}")
    return lines[:-3]


def test_dpg_bench_of_grids_as_its_script_scores_them(tmp_path: Path) -> None:
    root = tmp_path / "grids"
    lines = dpg(root)
    file = root / "dpg-bench_detail.txt"
    file.write_text("\n".join(lines) + "\n")
    judge = load_judge(f"imported:{file}")
    assert judge.name == "imported-dpg"
    model = ImagesModel(root)
    seen: dict[str, list[Answer]] = {}
    for item, (text, _) in LISTS.items():
        model.bind({(text, seed): seed for seed in range(4)})
        drawn = model.generate([text] * 4, range(4))
        images = [stored(drawing.image) for drawing in drawn]
        whole = Image.open(root / f"{item}.png").convert("RGB")
        assert images[1].tobytes() == whole.crop((4, 0, 8, 4)).tobytes()
        assert images[2].tobytes() == whole.crop((0, 4, 4, 8)).tobytes()
        seen[item] = judge.judge(images, [prompt(text)] * 4)
    # "A photo?" is skipped; A cat? no makes Red? 0.
    assert [a.score for a in seen["first"]] == [1, 0, 0.5, 1]
    assert [a.verdict for a in seen["first"]] == [1, 0, 0, 1]
    # Dogs? no zeroes Brown? before it is gone through, yet Big? stands before Brown?.
    assert [a.score for a in seen["late"]] == pytest.approx([1 / 3, 1 / 3, 2 / 3, 1])
    assert [a.verdict for a in seen["error"]] == [None] * 4
    assert {a.reason for a in seen["error"]} == {"the authors' script leaves this grid out"}


def test_a_question_that_depends_on_the_skipped_one_leaves_its_grid_out(tmp_path: Path) -> None:
    lines = dpg(tmp_path / "grids")
    table = tmp_path / "grids/dpg_bench.csv"
    table.write_text(table.read_text().replace("3,2,Red?", '3,"1, 2",Red?'))
    file = tmp_path / "grids/x_detail.txt"
    file.write_text("\n".join(lines))
    model, text = ImagesModel(tmp_path / "grids"), LISTS["first"][0]
    model.bind({(text, 3): 3})
    images = [stored(model.generate([text], [3])[0].image)]
    (answer,) = load_judge(f"imported:{file}").judge(images, [prompt(text)])
    assert answer.verdict is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda lines: [*lines, "grids/first.png, yes"], ":26: no answer of DPG-Bench"),
        (lambda lines: [line.replace("A cat?", "A dog?") for line in lines], "are not those of"),
        (lambda lines: [line.replace("late.png", "x.png") for line in lines], "x.png is not in"),
    ],
)
def test_broken_answers_of_dpg_bench(tmp_path: Path, change: Any, why: str) -> None:
    lines = dpg(tmp_path / "grids")
    file = tmp_path / "grids/x_detail.txt"
    file.write_text("\n".join(change(lines)))
    with pytest.raises(GapbenchError, match=re.escape(why)):
        load_judge(f"imported:{file}")


def test_broken_grids(tmp_path: Path) -> None:
    root = tmp_path / "grids"
    dpg(root)
    model, text = ImagesModel(root), LISTS["late"][0]
    model.bind({(text, 0): 0})
    Image.new("RGB", (9, 8)).save(root / "late.png")
    with pytest.raises(GapbenchError, match=r"late\.png: 9 x 8 pixels are no grid of 2 x 2"):
        model.generate([text], [0])
    Image.new("RGB", (8, 8)).save(root / "late.jpg")
    with pytest.raises(GapbenchError, match=r"late\.jpg and late\.png are of one item"):
        ImagesModel(root)
    (root / "late.jpg").rename(root / "other.jpg")
    with pytest.raises(GapbenchError, match=r"dpg_bench\.csv has no item 'other'"):
        ImagesModel(root)


@pytest.mark.parametrize("rows", ["a,red apple\nb,red apple\n", "a,red apple\na,green apple\n"])
def test_items_of_dpg_bench_have_one_text_each_and_their_own(tmp_path: Path, rows: str) -> None:
    (tmp_path / "dpg_bench.csv").write_text("item_id,text\n" + rows)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(GapbenchError, match=r"dpg_bench\.csv:3: an item has one text"):
        ImagesModel(tmp_path)
