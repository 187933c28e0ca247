"""Rules about images and their tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gapbench.models.base import Drawing, Model, check_drawing
from gapbench.models.check.rules import TOLERANCE, Broken, Skip, expect, expect_rows, unseeded

LOG: Final = logging.getLogger("gapbench")
PROMPTS: Final = ("a red circle", "a blue square above two green stars", "three dogs")
SEEDS: Final = (11, 2**40 + 3, 7)
ROWS: Final = 64
Load = Callable[[str, Mapping[str, object]], Model]
"""Makes the model at a name or folder, with some keys of its recipe changed."""


def draw(model: Model, prompts: tuple[str, ...], seeds: tuple[int, ...]) -> list[Drawing]:
    drawn = model.generate(list(prompts), list(seeds))
    expect_rows("generate", drawn, len(prompts), "drawings", check_drawing)
    return drawn


def pixels(drawn: list[Drawing]) -> list[bytes]:
    return [drawing.image.tobytes() for drawing in drawn]


def pictures(model: Model) -> list[Image.Image]:
    """Three images to ask about, drawn by the model if it can."""
    try:
        if "generate" in model.capabilities:
            return [drawing.image for drawing in draw(model, PROMPTS, SEEDS)]
    except KeyboardInterrupt:
        raise
    except BaseException:  # the rules about drawing tell
        LOG.debug("drawing failed", exc_info=True)
    return [Image.new("RGB", (64, 64), color) for color in ("red", "blue", "green")]


def tolerance(model: Model) -> float:
    return TOLERANCE.get(model.dtype or "float32", 0.1)


def seeds(model: Model) -> None:
    same = (PROMPTS[0],) * 3
    first, second, other = pixels(draw(model, same, (5, 5, 6)))
    expect(first == second, "one prompt with one seed gave two images in a batch")
    expect(first != other, "two seeds gave the same image: is it drawing without sampling?")
    again = pixels(draw(model, same[:1], (5,)))[0]
    expect(first == again, "one prompt with one seed gave another image in a second call")


def company(model: Model) -> None:
    together = pixels(draw(model, PROMPTS, SEEDS))
    for place, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        alone = pixels(draw(model, (prompt,), (seed,)))[0]
        expect(
            alone == together[place],
            f"{prompt!r} with seed {seed} is another image alone than as number {place + 1} of "
            f"{len(PROMPTS)}: give each sample a random stream of its own",
        )
    turned = pixels(draw(model, PROMPTS[::-1], SEEDS[::-1]))[::-1]
    expect(turned == together, "images change with the order of their batch")


def state(model: Model) -> None:
    same = unseeded(lambda: pixels(draw(model, PROMPTS[:1], SEEDS[:1])))
    expect(same, "its images follow torch's or NumPy's global random state")


def refuses(model: Model) -> None:
    short = ("", " ", "ein Ölbild 🟥", "<image>", "<begin_of_image>")
    taken = []
    for text in (*short, "x " * 20_000):
        reason = model.refuses(text)
        expect(reason is None or isinstance(reason, str), "refuses() gives no text and no None")
        taken += [text] if reason is None and text in short else []
    draw(model, tuple(taken), (1,) * len(taken))


def greedy(name: str, load: Load, model: Model) -> None:
    heats = [key for key in model.recipe if key.endswith("temperature")]
    if not heats:
        raise Skip("its recipe has no temperature")
    drawn = []
    for heat in (0.0, 1e-7):
        cold = load(name, dict.fromkeys(heats, heat))
        said = {key: cold.recipe.get(key) for key in heats}
        expect(said == dict.fromkeys(heats, heat), f"set to {heat:g}, its recipe says {said}")
        expect(cold.fingerprint == model.fingerprint, "a temperature changed its fingerprint")
        drawn.append(pixels(draw(cold, PROMPTS[:1] * 2, (1, 2))))
        cold.release()
    expect(drawn[0][0] == drawn[0][1], "at temperature 0 two seeds gave two images")
    expect(drawn[0] == drawn[1], "at temperature 0 the image is not the likeliest one")


def tokens(model: Model) -> None:
    drawn = []
    for drawing in draw(model, PROMPTS[:2], SEEDS[:2]):
        tokens = drawing.tokens
        if tokens is None:
            raise Broken("it says image_tokens, and a drawing has none")
        drawn.append(tokens.tolist())
        expect(tokens.ndim == 1 and tokens.dtype == np.int32, "tokens are no (T,) int32")
        expect(bool((tokens >= 0).all()), "a token is negative")
    expect(drawn[0] != drawn[1], "two images have the same tokens")


def drawn_tokens(model: Model) -> NDArray[np.int32]:
    """(1, T) tokens of the first prompt's image."""
    (drawing,) = draw(model, PROMPTS[:1], SEEDS[:1])
    if drawing.tokens is None:
        raise Broken("a drawing has no tokens")
    return drawing.tokens[None]


def sums(model: Model) -> None:
    import torch

    (tokens,), codes = drawn_tokens(model), model.codes
    scored = model.image_logprobs(PROMPTS[:1], tokens[None])
    shape = tuple(scored.shape)
    expect(shape == (1, len(tokens)), f"(1, {len(tokens)}) tokens gave an array of {shape}")
    expect(scored.requires_grad, "log-probabilities carry no gradient")
    scored = scored.detach().double()
    # Every token in turn at one place.
    place, total = len(tokens) // 2, 0.0
    for start in range(0, codes, ROWS):
        some = np.arange(start, min(start + ROWS, codes), dtype=np.int32)
        rows = np.tile(tokens, (len(some), 1))
        rows[:, place] = some
        with torch.no_grad():
            part = model.image_logprobs(PROMPTS[:1] * len(some), rows).double()
        total += float(part[:, place].exp().sum())
        apart = float((part[:, :place] - scored[:, :place]).abs().max()) if place else 0.0
        expect(apart <= tolerance(model), "a token's probability depends on later tokens")
    expect(abs(total - 1) < 1e-2, f"over all {codes} tokens the probabilities sum to {total:.3f}")
