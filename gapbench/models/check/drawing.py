"""Rules about images and their tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gapbench.models.base import Drawing, Model, check_drawing
from gapbench.models.check.rules import TOLERANCE, Broken, Skip, expect, expect_rows, unseeded

LOG: Final = logging.getLogger("gapbench")
PROMPTS: Final = ("a red circle", "a blue square above two green stars", "three dogs")
SEEDS: Final = (11, 2**40 + 3, 7)
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


def latents(model: Model) -> None:
    first, second = (drawing.latents for drawing in draw(model, PROMPTS[:2], SEEDS[:2]))
    if first is None or second is None:
        raise Broken("it says image_latents, and a drawing has none")
    expect(bool(np.isfinite(first).all()), "a latent is not finite")
    expect(not np.array_equal(first, second), "two images have the same latents")


def drawn_tokens(model: Model) -> NDArray[np.int32]:
    """(1, T) tokens of the first prompt's image."""
    (drawing,) = draw(model, PROMPTS[:1], SEEDS[:1])
    if drawing.tokens is None:
        raise Broken("a drawing has no tokens")
    return drawing.tokens[None]


def losses(model: Model) -> None:
    """Withheld prompts in the middle: a row must not depend on what the others withhold."""
    import torch

    drawn = draw(model, PROMPTS, SEEDS)
    kept = [one.tokens if one.latents is None else one.latents for one in drawn]
    tokens = np.stack([one for one in kept if one is not None])
    expect(len(tokens) == len(PROMPTS), "a drawing has no tokens and no latents")
    away = [False, True, False]

    def loss(noise: Sequence[int], rows: slice = slice(None)) -> torch.Tensor:
        return model.generation_loss(PROMPTS[rows], tokens[rows], noise, away[rows])

    found = loss(SEEDS)
    expect(tuple(found.shape) == (3,), f"3 drawings gave losses of {tuple(found.shape)}")
    expect(found.requires_grad, "the losses have no gradient")
    with torch.no_grad():
        same = unseeded(lambda: loss(SEEDS).tolist())
        expect(same, "losses of the same noise follow torch's or NumPy's global random state")
        known = loss(SEEDS).double()
        expect(bool(known.isfinite().all()), "a loss is not finite")
        alone = [loss(SEEDS[i : i + 1], slice(i, i + 1)).double() for i in range(3)]
        near = tolerance(model) * max(1.0, float(known.abs().max()))
        apart = float((torch.cat(alone) - known).abs().max())
        expect(apart <= near, f"alone a loss is {apart:.2g} off")
        other = float((loss([seed + 1 for seed in SEEDS]).double() - known).abs().max())
    if model.likelihood:
        expect(other <= near, "it says likelihood = True, and noise changes its losses")
    else:
        exact = "noise changes no loss: is it exact? Then say likelihood = True"
        expect(other > tolerance(model), exact)


def likelihood(model: Model) -> None:
    """The logits of each token depend on those before it, and add up to the loss."""
    import torch

    tokens = drawn_tokens(model)
    place = tokens.shape[1] // 2
    later = tokens.copy()
    later[:, place:] = (later[:, place:] + 1) % model.codes
    with torch.no_grad():
        logits, other = (model.image_logits(PROMPTS[:1], each).double() for each in (tokens, later))
        expect(
            tuple(logits.shape) == (*tokens.shape, model.codes),
            f"logits of shape {tuple(logits.shape)}, not {(*tokens.shape, model.codes)}",
        )
        apart = float((logits - other)[:, : place + 1].abs().max())
        expect(apart <= tolerance(model), "a token's logits depend on later tokens")
        codes = torch.from_numpy(tokens).to(logits.device, torch.long)[..., None]
        said = -float(logits.log_softmax(-1).gather(2, codes).sum())
        apart = abs(float(model.generation_loss(PROMPTS[:1], tokens, [0])) - said)
        near = tolerance(model) * max(1.0, said)
        expect(apart <= near, f"the loss is {apart:.2g} off what the logits say")
