"""Result files of the official scorers as verdicts.

| file | of | what is read of it |
|---|---|---|
| results.jsonl | GenEval | filename, prompt, correct and reason, a line an image |
| vqa_result.json | T2I-CompBench | a list of {question_id, answer}; answers may be text |
| ..._detail.txt | DPG-Bench | a line a question: file, corners in the grid, question, answer |

Sources: djghosh13/geneval at af4902f (evaluation/evaluate_images.py), Karine-Huang/T2I-CompBench
(BLIPvqa_eval/BLIP_vqa.py, CLIPScore_eval/CLIP_similarity.py, UniDet_eval/2D_spatial_eval.py,
3_in_1_eval/3_in_1.py), TencentQQGYLab/ELLA at 3c228f1 (dpg_bench/compute_dpg_bench.py).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from PIL import Image

from gapbench.judges.base import Judge
from gapbench.judges.lists import DPG, dpg_score, items_of
from gapbench.models.image_folder import DPG as DPG_FILE
from gapbench.models.image_folder import Folder, Layout, Picture, read_folder
from gapbench.tasks.records import joined, parsed, read
from gapbench.types import COSINE, SHARE, Answer, GapbenchError, Prompt

THRESHOLD: Final = 0.5
"""A T2I-CompBench score from here on counts as accepted: the scorers give no verdict, so this one
is ours. A file in which no score reaches it is taken for CLIPScore's, cosines near 0.3."""
LAYOUTS: Final[dict[str, Layout]] = {".jsonl": "geneval", ".txt": "dpg"}
_DETAIL: Final = re.compile(
    r"(?P<path>.+), \((?P<l>\d+), (?P<t>\d+), (?P<r>\d+), (?P<b>\d+)\), (?P<question>.+), "
    r"(?P<answer>[^,]*)"
)
ABOVE: Final = 3
"""Folders above the result file that are searched for the images it is about."""


class ImportedJudge(Judge):
    """`imported:FILE` or `imported:FILE#FOLDER`: what an official scorer said of a folder's images.

    FOLDER holds those images in the benchmark's own layout (`gapbench.models.images`); by default
    it is the nearest folder above the file that does. An image is recognised by its pixels and its
    prompt, not by its place in a run: a result can never be taken for another image's, and a PNG
    that was written anew is still the same. An image that was not scored is an abstention.
    `score` is the official value; the verdict is GenEval's `correct`, whether each answer of
    DPG-Bench is yes, or score >= 0.5. A file with no score of 0.5 or more holds CLIPScores, which
    give no verdict.
    Raises GapbenchError where the file is broken or is not about those images.
    """

    gpus = None
    any_prompt = False

    def __init__(self, argument: str | None = None, device: str = "auto") -> None:  # noqa: ARG002
        name, _, where = (argument or "").partition("#")
        if not name:
            raise GapbenchError(
                "judge imported needs a result file: --judge imported:results.jsonl, or "
                "imported:results.jsonl#FOLDER with the folder of the images"
            )
        file = Path(name)
        try:
            data = file.read_bytes()
        except OSError as error:
            raise GapbenchError(f"{file}: cannot be read ({error})") from error
        folder = read_folder(Path(where)) if where else _nearest(file)
        layout = LAYOUTS.get(file.suffix, "t2i-compbench")
        if folder.layout != layout:
            raise GapbenchError(
                f"{file}: a {file.suffix} file holds {layout} results, but {folder.root} holds "
                f"images in the layout of {folder.layout}"
            )
        self.name = f"imported-{layout}"
        digest = hashlib.sha256(f"imported-1 {folder.fingerprint} ".encode() + data)
        self.fingerprint = digest.hexdigest()
        self._folder = folder
        self._by_prompt: dict[str, list[tuple[Picture, Answer]]] = {}
        scored = READERS[layout](file, data, folder)
        self._decided = layout != "t2i-compbench"
        if not self._decided:
            known = [answer.score for _, answer in scored if answer.score is not None]
            reached = max(known, default=THRESHOLD) >= THRESHOLD
            self.scale, self.threshold = (SHARE, THRESHOLD) if reached else (COSINE, None)
        for picture, answer in scored:
            self._by_prompt.setdefault(picture.prompt, []).append((picture, answer))
        self._by_pixels: dict[str, dict[str, Answer]] = {}

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        missing = Answer(verdict=None, reason="the result file has no such image of the prompt")
        answers = [
            self._results(self._folder.text_of(prompt.text)).get(_pixels(image), missing)
            for image, prompt in zip(images, prompts, strict=True)
        ]
        return [
            answer if self._decided or answer.score is None else self.scored(answer.score)
            for answer in answers
        ]

    def _results(self, prompt: str) -> dict[str, Answer]:
        """Pixels -> answer; pictures are decoded when their prompt is first asked about."""
        if prompt not in self._by_pixels:
            known: dict[str, Answer] = {}
            for picture, answer in self._by_prompt.get(prompt, ()):
                pixels = _pixels(self._folder.image(picture))
                if known.setdefault(pixels, answer) != answer:
                    known[pixels] = Answer(
                        verdict=None, reason="equal images of the prompt have different results"
                    )
            self._by_pixels[prompt] = known
        return self._by_pixels[prompt]

    def release(self) -> None:
        self._by_pixels.clear()


def _pixels(image: Image.Image) -> str:
    head = f"{image.width} {image.height} ".encode()
    return hashlib.sha256(head + image.convert("RGB").tobytes()).hexdigest()


def _nearest(file: Path) -> Folder:
    for folder in list(file.resolve().parents)[:ABOVE]:
        inner = folder / "samples"
        dpg = (folder / DPG_FILE).is_file()
        if inner.is_dir() or dpg or any(folder.glob("[0-9]*/metadata.jsonl")):
            return read_folder(folder)
    raise GapbenchError(f"{file}: the images are not beside it; name them: imported:{file}#FOLDER")


def _geneval(file: Path, data: bytes, folder: Folder) -> list[tuple[Picture, Answer]]:
    pictures = {picture.path: picture for picture in folder.pictures}
    results: dict[str, tuple[Picture, Answer]] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        place = f"{file}:{number}"
        row = parsed(line, place)
        try:
            name, prompt, correct = row["filename"], row["prompt"], row["correct"]
            # The scorer writes paths as it was given them: what counts is 00012/samples/0003.png.
            path = "/".join(PurePosixPath(name.replace("\\", "/")).parts[-3:])
            reason = str(row["reason"]) or None
        except (KeyError, TypeError, AttributeError) as error:
            raise GapbenchError(
                f"{place}: no GenEval result; it needs filename, prompt, correct and reason"
            ) from error
        if not isinstance(correct, bool):
            raise GapbenchError(f"{place}: correct is {correct!r}, not true or false")
        if path not in pictures:
            raise GapbenchError(f"{place}: image {path} is not in {folder.root}")
        if pictures[path].prompt != prompt:
            raise GapbenchError(
                f"{place}: {path} is of {pictures[path].prompt!r} in {folder.root}, of {prompt!r} "
                "here; name the folder that was scored"
            )
        answer = Answer(verdict=int(correct), score=float(correct), reason=reason)
        if results.setdefault(path, (pictures[path], answer))[1] != answer:
            raise GapbenchError(f"{place}: image {path} already has another result")
    return list(results.values())


def _compbench(file: Path, data: bytes, folder: Folder) -> list[tuple[Picture, Answer]]:
    rows = parsed(data, str(file))
    if not isinstance(rows, list):
        raise GapbenchError(f"{file}: no T2I-CompBench result; it is a list")
    scores: dict[int, float] = {}
    for number, row in enumerate(rows, 1):
        try:
            identity, score = row["question_id"], float(row["answer"])
        except (KeyError, TypeError, ValueError) as error:
            raise GapbenchError(
                f"{file}, item {number}: no T2I-CompBench result; it needs question_id and a "
                "number as answer"
            ) from error
        if type(identity) is not int or identity in scores:
            raise GapbenchError(
                f"{file}, item {number}: question_id {identity!r} is given twice or no whole number"
            )
        scores[identity] = score
    # UniDet's scorers number images by their file names, the others by their rank among those.
    by_number = {picture.number: picture for picture in folder.pictures}
    by_rank = dict(enumerate(folder.pictures))
    pictures = by_number if set(by_number) == set(scores) else by_rank
    if set(pictures) != set(scores) or len(pictures) != len(folder.pictures):
        raise GapbenchError(
            f"{file}: its {len(scores)} results are not those of the {len(folder.pictures)} images "
            f"in {folder.root}; name the folder that was scored, whole"
        )
    return [(pictures[key], _unjudged(score)) for key, score in scores.items()]


def _dpg(file: Path, data: bytes, folder: Folder) -> list[tuple[Picture, Answer]]:
    """Each image's score as DPG-Bench's script computes it, quirks included (`dpg_score`)."""
    rows = read(folder.root / DPG_FILE, ("item_id", *DPG))
    by_item = {
        record["item_id"]: (items_of(record, place), number == 0)
        for number, (record, place) in enumerate(joined(rows, "item_id", ("item_id",), DPG))
    }
    said: dict[tuple[str, int], list[tuple[str, str]]] = {}
    text = data.decode("utf-8", "replace")
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if not (match := _DETAIL.fullmatch(line.rstrip("\r"))):
            raise GapbenchError(
                f"{file}:{number}: no answer of DPG-Bench; it needs file, corners, question, answer"
            )
        name = PurePosixPath(match["path"].replace("\\", "/")).name
        left, top, right, bottom = (int(match[side]) for side in ("l", "t", "r", "b"))
        place = left // max(right - left, 1) + 2 * (top // max(bottom - top, 1))
        said.setdefault((name, place), []).append((match["question"], match["answer"]))
    drawn = 1 + max((place for _, place in said), default=0)  # of each grid, as its option says
    answered: dict[Picture, Answer | None] = {}
    for picture in folder.pictures:
        if picture.number >= drawn:
            continue
        answers = said.pop((picture.path, picture.number), [])
        items, first = by_item[picture.path.partition(".")[0]]
        there = [item.question for item in items[first:]]  # the first row of the CSV is skipped
        if [question for question, _ in answers] != there[: len(answers)]:
            raise GapbenchError(
                f"{file}: the questions about image {picture.number} of {picture.path} are not "
                f"those of {folder.root / DPG_FILE}"
            )
        yes = [answer == "yes" for _, answer in answers]
        whole = len(answers) == len(there)
        score = dpg_score(items, [*[None] * first, *yes]) if whole else None
        answered[picture] = None if score is None else Answer(verdict=int(all(yes)), score=score)
    if said:
        raise GapbenchError(f"{file}: image {min(said)[0]} is not in {folder.root}")
    failed = {picture.path for picture, answer in answered.items() if answer is None}
    left_out = Answer(verdict=None, reason="the authors' script leaves this grid out")
    return [
        (picture, left_out if answer is None or picture.path in failed else answer)
        for picture, answer in answered.items()
    ]


def _unjudged(score: float) -> Answer:
    if not math.isfinite(score):
        return Answer(verdict=None, reason=f"the score is {score}")
    return Answer(verdict=None, score=score)


READERS: Final[dict[Layout, Callable[[Path, bytes, Folder], list[tuple[Picture, Answer]]]]] = {
    "geneval": _geneval,
    "t2i-compbench": _compbench,
    "dpg": _dpg,
}
