"""Result files of the official scorers as verdicts.

| file | of | what is read of it |
|---|---|---|
| results.jsonl | GenEval | filename, prompt, correct and reason, a line an image |
| vqa_result.json | T2I-CompBench | a list of {question_id, answer}; answers may be text |

Sources: djghosh13/geneval at af4902f (evaluation/evaluate_images.py), Karine-Huang/T2I-CompBench
(BLIPvqa_eval/BLIP_vqa.py, CLIPScore_eval/CLIP_similarity.py, UniDet_eval/2D_spatial_eval.py,
3_in_1_eval/3_in_1.py).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from PIL import Image

from gapbench.judges.base import Judge
from gapbench.models.image_folder import Folder, Picture, decode, read_folder
from gapbench.tasks.records import parsed
from gapbench.types import COSINE, SHARE, Answer, GapbenchError, Prompt

THRESHOLD: Final = 0.5
"""A T2I-CompBench score from here on counts as accepted: the scorers give no verdict, so this one
is ours. A file in which no score reaches it is taken for CLIPScore's, cosines near 0.3."""
ABOVE: Final = 3
"""Folders above the result file that are searched for the images it is about."""


class ImportedJudge(Judge):
    """`imported:FILE` or `imported:FILE#FOLDER`: what an official scorer said of a folder's images.

    FOLDER holds those images in the benchmark's own layout (`gapbench.models.images`); by default
    it is the nearest folder above the file that does. An image is recognised by its pixels and its
    prompt, not by its place in a run: a result can never be taken for another image's, and a PNG
    that was written anew is still the same. An image that was not scored is an abstention.
    `score` is the official value; the verdict is GenEval's `correct`, or score >= 0.5. A file with
    no score of 0.5 or more holds CLIPScores, which give no verdict.
    Raises GapbenchError where the file is broken or is not about those images.
    """

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
        geneval = file.suffix == ".jsonl"
        layout = "geneval" if geneval else "t2i-compbench"
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
        scored = (_geneval if geneval else _compbench)(file, data, folder)
        if not geneval:
            known = [answer.score for _, answer in scored if answer.score is not None]
            reached = max(known, default=THRESHOLD) >= THRESHOLD
            self.scale, self.threshold = (SHARE, THRESHOLD) if reached else (COSINE, None)
        self._decided = geneval
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
                pixels = _pixels(decode(self._folder.root / picture.path))
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
        if inner.is_dir() or any(folder.glob("[0-9]*/metadata.jsonl")):
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


def _unjudged(score: float) -> Answer:
    if not math.isfinite(score):
        return Answer(verdict=None, reason=f"the score is {score}")
    return Answer(verdict=None, score=score)
