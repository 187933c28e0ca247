"""Rules about verdicts, texts and embeddings."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gapbench.models.base import IMAGE, Model, log_probabilities
from gapbench.models.check.drawing import PROMPTS, drawn_tokens, tolerance
from gapbench.models.check.rules import TOLERANCE, expect
from gapbench.verdict import ANSWERS

QUESTIONS: Final = tuple(
    f"Does this image describe {prompt}? Please answer: The score is {{your score}}."
    for prompt in PROMPTS
)


def scores(model: Model, places: list[int], pictures: list[Image.Image]) -> NDArray[np.float64]:
    gave = model.judge([pictures[p] for p in places], [QUESTIONS[p] for p in places], ANSWERS)
    return log_probabilities("the model", gave, len(places))


def judges(model: Model, pictures: list[Image.Image]) -> None:
    mass = float(np.exp(scores(model, [0, 1, 2], pictures)).sum(1).max())
    expect(mass <= 1 + 1e-6, f"two different answers have {mass:.3f} of probability together")
    rows = model.answers(pictures, QUESTIONS, words=False)
    expect(len(rows) == 3, f"answers gave {len(rows)} rows for 3 images")


def company(model: Model, pictures: list[Image.Image]) -> None:
    together, most = scores(model, [0, 1, 2], pictures), tolerance(model)
    alone = np.concatenate([scores(model, [place], pictures) for place in range(3)])
    turned = scores(model, [2, 1, 0], pictures)[::-1]
    for other, how in ((alone, "alone"), (turned, "in another order")):
        differ = other != together  # both may be -inf
        apart = float(np.abs(other[differ] - together[differ]).max(initial=0))
        expect(apart <= most, f"log-probabilities {how} differ by {apart:.2g} (allowed {most:g})")


def odd(model: Model) -> None:
    pictures = [Image.new("RGB", size, "white") for size in ((1, 1), (400, 8), (8, 400))]
    scores(model, [0, 1, 2], pictures)


def says(model: Model, pictures: list[Image.Image]) -> None:
    together = model.reply(pictures, list(QUESTIONS))
    expect(len(together) == 3, f"3 questions gave {len(together)} replies")
    for reply in together:
        expect(isinstance(reply, str), f"a reply is a {type(reply).__name__}, not a text")
    if tolerance(model) > TOLERANCE["float64"]:
        return  # a rounding may tip a word
    alone = [model.reply([p], [q])[0] for p, q in zip(pictures, QUESTIONS, strict=True)]
    expect(alone == together, "a reply changes with its batch")


def reads(model: Model, pictures: list[Image.Image]) -> None:
    shown: list[list[Image.Image]] = [pictures[:1], [], pictures[:2]]
    asked = (f"{IMAGE}what is this?", "hello", f"is {IMAGE} or {IMAGE} larger?")
    texts = [model.chat([{"role": "user", "content": text}]) for text in asked]
    endings = [" yes", " no", " it is"]
    together = model.score(shown, texts, endings)
    expect(len(together) == 3, f"3 texts gave {len(together)} scores")
    for images, text, ending, (scored, _) in zip(shown, texts, endings, together, strict=True):
        ((alone, likeliest),) = model.score([images], [text], [ending])
        apart = abs(alone - scored)
        expect(isinstance(likeliest, bool), "whether an ending is the likeliest is no bool")
        expect(alone <= 1e-6, "a log-probability is above 0")
        expect(apart <= tolerance(model), f"alone an ending's log-probability is {apart:.2g} off")
    if tolerance(model) > TOLERANCE["float64"]:
        return  # a rounding may tip a word
    said = model.complete(shown, texts, 8)
    ones = [model.complete([i], [t], 8)[0] for i, t in zip(shown, texts, strict=True)]
    expect(ones == said, "how a text goes on changes with its batch")
    if first := said[0][:1]:
        stopped = model.complete(shown[:1], texts[:1], 8, [first])
        expect(stopped == [""], f"asked to stop at {first!r}, it says {stopped[0]!r}")


def slopes(model: Model, pictures: list[Image.Image]) -> None:
    tokens = drawn_tokens(model)
    logits = model.image_logits(PROMPTS[:1], tokens)
    answers = model.answer_logprobs(pictures, QUESTIONS, ANSWERS)
    expect(logits.requires_grad and answers.requires_grad, "logits or answers have no gradient")
    apart = np.abs(answers.detach().double().cpu().numpy() - scores(model, [0, 1, 2], pictures))
    expect(float(apart.max()) <= tolerance(model), "answer_logprobs is not what judge gives")


def embeds(model: Model) -> None:
    pictures = [Image.new("RGB", (64, 64), color) for color in ("red", "blue", "green")]
    for rows, together in (
        ([model.embed_texts([text]) for text in PROMPTS], model.embed_texts(PROMPTS)),
        ([model.embed_images([one]) for one in pictures], model.embed_images(pictures)),
    ):
        expect(together.ndim == 2 and len(together) == 3, f"3 rows gave {together.shape}")
        apart = float(np.abs(np.concatenate(rows) - together).max())
        expect(apart <= tolerance(model), f"alone an embedding is {apart:.2g} off")
