"""The contract of an adapter, tried on a few small batches (`gapbench check-model`).

What every figure rests on: an image depends on its prompt and seed alone, a verdict on its image
and question alone, and what the model says it can do it does.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gapbench.files import blamed
from gapbench.models import lora, saved_name
from gapbench.models.base import (
    CAPABILITIES,
    IMAGE,
    Drawing,
    Model,
    has_own,
    log_probabilities,
    misdescribed,
)
from gapbench.verdict import ANSWERS

PROMPTS: Final = ("a red circle", "a blue square above two green stars", "three dogs")
SEEDS: Final = (11, 2**40 + 3, 7)
QUESTIONS: Final = tuple(
    f"Does this image describe {prompt}? Please answer: The score is {{your score}}."
    for prompt in PROMPTS
)
DRAWS: Final = "generate"
JUDGES: Final = "judge_logits"
ROWS: Final = 64
TOLERANCE: Final = {"float64": 1e-9, "float32": 1e-3}
"""Of log-probabilities in nats, for other company in a batch; other dtypes get 0.1."""

Load = Callable[[str, Mapping[str, object]], Model]
"""Makes the model at a name or folder, with some keys of its recipe changed."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule: `failure` says how it was broken, `skipped` why it was not tried."""

    rule: str
    failure: str | None = None
    skipped: str | None = None


class Broken(Exception):  # noqa: N818 (a finding, not an error)
    """How a rule was broken."""


def check(name: str, load: Load) -> Iterator[Finding]:
    """Try every rule on the model called `name`; a broken one does not end the check."""
    model = load(name, {})
    has = model.capabilities

    @cache
    def pictures() -> list[Image.Image]:
        return _pictures(model)

    rules: list[tuple[str, str | None, Callable[[], None]]] = [
        ("describes itself before it loads", None, lambda: _describes(model)),
        ("equal seeds, equal images; other seeds, other images", DRAWS, lambda: _seeds(model)),
        ("an image does not depend on its batch", DRAWS, lambda: _company(model)),
        ("an image does not depend on a global random state", DRAWS, lambda: _state(model)),
        ("answers have log-probabilities", JUDGES, lambda: _judges(model, pictures())),
        ("a verdict does not depend on its batch", JUDGES, lambda: _company_of(model, pictures())),
        ("odd pictures are judged, or abstained from", JUDGES, lambda: _odd(model)),
        ("a reply does not depend on its batch", "judge_text", lambda: _says(model, pictures())),
        ("a text does not depend on its batch", "text", lambda: _reads(model, pictures())),
        ("tokens and images belong together", "image_tokens", lambda: _tokens(model)),
        ("log-probabilities of all tokens sum to one", "image_logprobs", lambda: _sums(model)),
        ("refuses a prompt or draws it", DRAWS, lambda: _refuses(model)),
        ("at temperature 0 the likeliest is drawn", DRAWS, lambda: _greedy(name, load, model)),
        ("logits and answers have gradients", "gradients", lambda: _slopes(model, pictures())),
        ("an embedding does not depend on its batch", "embeddings", lambda: _embeds(model)),
        ("draws with a network in memory", "train", lambda: _uses(model)),
        ("a saved model is the same", "train", lambda: _saves(name, model, load, pictures())),
        ("takes a LoRA adapter", "lora", lambda: _adapts(name, load, model)),
        ("a released model comes back", None, lambda: _returns(model)),
    ]
    for rule, needs, attempt in rules:
        try:
            if needs is not None and needs not in has:
                there = [m for m in CAPABILITIES[needs].methods if has_own(model, m)]
                hint = f", though it has {', '.join(there)}: declare it if that works"
                raise _Skip(f"it lacks {needs}{hint if there else ''}")
            attempt()
        except Broken as broken:
            yield Finding(rule, failure=str(broken))
        except _Skip as skip:
            yield Finding(rule, skipped=str(skip))
        except (Exception, SystemExit) as error:  # an adapter may raise anything
            yield Finding(rule, failure=f"it raised {blamed(error)}")
        else:
            yield Finding(rule)


class _Skip(Exception):  # noqa: N818 (no error either)
    """Why a rule could not be tried."""


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Broken(otherwise)


def _describes(model: Model) -> None:
    _expect(not (wrong := misdescribed(model)), str(wrong))
    _expect(len(str(model.fingerprint)) >= 8, "its fingerprint has fewer than 8 characters")
    _expect(isinstance(model.capabilities, Set), "its capabilities are no frozenset")
    for unknown in sorted(set(model.capabilities) - set(CAPABILITIES)):
        raise Broken(f"capability {unknown!r} is not one of {', '.join(CAPABILITIES)}")
    for name in model.capabilities:
        for method in CAPABILITIES[name].methods:
            _expect(has_own(model, method), f"it says {name} and has no {method}")
    for key, value in dict(model.recipe).items():
        plain = value is None or isinstance(value, (bool, int, float, str))
        _expect(plain, f"recipe: {key} is a {type(value).__name__}, not a plain value")


def _draw(model: Model, prompts: tuple[str, ...], seeds: tuple[int, ...]) -> list[Drawing]:
    drawn = model.generate(list(prompts), list(seeds))
    _expect(isinstance(drawn, list | tuple), f"generate gave a {type(drawn).__name__}, not a list")
    _expect(len(drawn) == len(prompts), f"{len(prompts)} prompts gave {len(drawn)} drawings")
    for drawing in drawn:
        _expect(isinstance(drawing, Drawing), f"generate gave a {type(drawing).__name__} in a row")
        image = drawing.image
        _expect(isinstance(image, Image.Image), f"image is a {type(image).__name__}, no PIL image")
        _expect(image.mode == "RGB", f"an image is of mode {image.mode}, not RGB")
        logprob = 0.0 if drawing.logprob is None else drawing.logprob
        _expect(isinstance(logprob, float) and logprob <= 1e-6, f"a logprob is {logprob!r:.40}")
    return drawn


def _bytes(drawn: list[Drawing]) -> list[bytes]:
    return [drawing.image.tobytes() for drawing in drawn]


def _seeds(model: Model) -> None:
    same = (PROMPTS[0],) * 3
    first, second, other = _bytes(_draw(model, same, (5, 5, 6)))
    _expect(first == second, "one prompt with one seed gave two images in a batch")
    _expect(first != other, "two seeds gave the same image: is it drawing without sampling?")
    again = _bytes(_draw(model, same[:1], (5,)))[0]
    _expect(first == again, "one prompt with one seed gave another image in a second call")


def _company(model: Model) -> None:
    together = _bytes(_draw(model, PROMPTS, SEEDS))
    for place, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        alone = _bytes(_draw(model, (prompt,), (seed,)))[0]
        _expect(
            alone == together[place],
            f"{prompt!r} with seed {seed} is another image alone than as number {place + 1} of "
            f"{len(PROMPTS)}: give each sample a random stream of its own",
        )
    turned = _bytes(_draw(model, PROMPTS[::-1], SEEDS[::-1]))[::-1]
    _expect(turned == together, "images change with the order of their batch")


def _state(model: Model) -> None:
    import torch

    images = []
    for state in (1, 2):
        torch.manual_seed(state)
        np.random.seed(state)
        images.append(_bytes(_draw(model, PROMPTS[:1], SEEDS[:1])))
    _expect(images[0] == images[1], "its images follow torch's or NumPy's global random state")


def _pictures(model: Model) -> list[Image.Image]:
    if "generate" in model.capabilities:
        return [drawing.image for drawing in _draw(model, PROMPTS, SEEDS)]
    return [Image.new("RGB", (64, 64), color) for color in ("red", "blue", "green")]


def _scores(model: Model, places: list[int], pictures: list[Image.Image]) -> NDArray[np.float64]:
    gave = model.judge([pictures[p] for p in places], [QUESTIONS[p] for p in places], ANSWERS)
    return log_probabilities("the model", gave, len(places))


def _judges(model: Model, pictures: list[Image.Image]) -> None:
    mass = float(np.exp(_scores(model, [0, 1, 2], pictures)).sum(1).max())
    _expect(mass <= 1 + 1e-6, f"two different answers have {mass:.3f} of probability together")
    rows = model.answers(pictures, QUESTIONS, words=False)
    _expect(len(rows) == 3, f"answers gave {len(rows)} rows for 3 images")


def _tolerance(model: Model) -> float:
    return TOLERANCE.get(model.dtype or "float32", 0.1)


def _company_of(model: Model, pictures: list[Image.Image]) -> None:
    together, most = _scores(model, [0, 1, 2], pictures), _tolerance(model)
    alone = np.concatenate([_scores(model, [place], pictures) for place in range(3)])
    turned = _scores(model, [2, 1, 0], pictures)[::-1]
    for other, how in ((alone, "alone"), (turned, "in another order")):
        differ = other != together  # both may be -inf
        apart = float(np.abs(other[differ] - together[differ]).max(initial=0))
        _expect(apart <= most, f"log-probabilities {how} differ by {apart:.2g} (allowed {most:g})")


def _says(model: Model, pictures: list[Image.Image]) -> None:
    together = model.reply(pictures, list(QUESTIONS))
    _expect(len(together) == 3, f"3 questions gave {len(together)} replies")
    for reply in together:
        _expect(isinstance(reply, str), f"a reply is a {type(reply).__name__}, not a text")
    if _tolerance(model) > TOLERANCE["float64"]:
        return  # a rounding may tip a word
    alone = [model.reply([p], [q])[0] for p, q in zip(pictures, QUESTIONS, strict=True)]
    _expect(alone == together, "a reply changes with its batch")


def _reads(model: Model, pictures: list[Image.Image]) -> None:
    shown: list[list[Image.Image]] = [pictures[:1], [], pictures[:2]]
    asked = (f"{IMAGE}what is this?", "hello", f"is {IMAGE} or {IMAGE} larger?")
    texts = [model.chat([{"role": "user", "content": text}]) for text in asked]
    endings = [" yes", " no", " it is"]
    together = model.score(shown, texts, endings)
    _expect(len(together) == 3, f"3 texts gave {len(together)} scores")
    for images, text, ending, (scored, _) in zip(shown, texts, endings, together, strict=True):
        ((alone, likeliest),) = model.score([images], [text], [ending])
        apart = abs(alone - scored)
        _expect(isinstance(likeliest, bool), "whether an ending is the likeliest is no bool")
        _expect(alone <= 1e-6, "a log-probability is above 0")
        _expect(apart <= _tolerance(model), f"alone an ending's log-probability is {apart:.2g} off")
    if _tolerance(model) > TOLERANCE["float64"]:
        return  # a rounding may tip a word
    said = model.complete(shown, texts, 8)
    ones = [model.complete([i], [t], 8)[0] for i, t in zip(shown, texts, strict=True)]
    _expect(ones == said, "how a text goes on changes with its batch")
    if first := said[0][:1]:
        stopped = model.complete(shown[:1], texts[:1], 8, [first])
        _expect(stopped == [""], f"asked to stop at {first!r}, it says {stopped[0]!r}")


def _tokens(model: Model) -> None:
    drawn = []
    for drawing in _draw(model, PROMPTS[:2], SEEDS[:2]):
        tokens = drawing.tokens
        if tokens is None:
            raise Broken("it says image_tokens, and a drawing has none")
        drawn.append(tokens.tolist())
        _expect(tokens.ndim == 1 and tokens.dtype == np.int32, "tokens are no (T,) int32")
        _expect(bool((tokens >= 0).all()), "a token is negative")
    _expect(drawn[0] != drawn[1], "two images have the same tokens")


def _drawn_tokens(model: Model) -> NDArray[np.int32]:
    """(1, T) tokens of the first prompt's image."""
    (drawing,) = _draw(model, PROMPTS[:1], SEEDS[:1])
    if drawing.tokens is None:
        raise Broken("a drawing has no tokens")
    return drawing.tokens[None]


def _sums(model: Model) -> None:
    import torch

    (tokens,), codes = _drawn_tokens(model), model.codes
    scored = model.image_logprobs(PROMPTS[:1], tokens[None])
    shape = tuple(scored.shape)
    _expect(shape == (1, len(tokens)), f"(1, {len(tokens)}) tokens gave an array of {shape}")
    _expect(scored.requires_grad, "log-probabilities carry no gradient")
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
        _expect(apart <= _tolerance(model), "a token's probability depends on later tokens")
    _expect(abs(total - 1) < 1e-2, f"over all {codes} tokens the probabilities sum to {total:.3f}")


def _refuses(model: Model) -> None:
    short = ("", " ", "ein Ölbild 🟥", "<image>", "<begin_of_image>")
    taken = []
    for text in (*short, "x " * 20_000):
        reason = model.refuses(text)
        _expect(reason is None or isinstance(reason, str), "refuses() gives no text and no None")
        taken += [text] if reason is None and text in short else []
    _draw(model, tuple(taken), (1,) * len(taken))


def _odd(model: Model) -> None:
    pictures = [Image.new("RGB", size, "white") for size in ((1, 1), (400, 8), (8, 400))]
    _scores(model, [0, 1, 2], pictures)


def _greedy(name: str, load: Load, model: Model) -> None:
    heats = [key for key in model.recipe if key.endswith("temperature")]
    if not heats:
        raise _Skip("its recipe has no temperature")
    drawn = []
    for heat in (0.0, 1e-7):
        cold = load(name, dict.fromkeys(heats, heat))
        said = {key: cold.recipe.get(key) for key in heats}
        _expect(said == dict.fromkeys(heats, heat), f"set to {heat:g}, its recipe says {said}")
        _expect(cold.fingerprint == model.fingerprint, "a temperature changed its fingerprint")
        drawn.append(_bytes(_draw(cold, PROMPTS[:1] * 2, (1, 2))))
        cold.release()
    _expect(drawn[0][0] == drawn[0][1], "at temperature 0 two seeds gave two images")
    _expect(drawn[0] == drawn[1], "at temperature 0 the image is not the likeliest one")


def _slopes(model: Model, pictures: list[Image.Image]) -> None:
    tokens = _drawn_tokens(model)
    logits = model.image_logits(PROMPTS[:1], tokens)
    shape = (*tokens.shape, model.codes)
    _expect(tuple(logits.shape) == shape, f"logits of shape {tuple(logits.shape)}, not {shape}")
    answers = model.answer_logprobs(pictures, QUESTIONS, ANSWERS)
    _expect(logits.requires_grad and answers.requires_grad, "logits or answers have no gradient")
    apart = np.abs(answers.detach().double().cpu().numpy() - _scores(model, [0, 1, 2], pictures))
    _expect(float(apart.max()) <= _tolerance(model), "answer_logprobs is not what judge gives")


def _embeds(model: Model) -> None:
    pictures = [Image.new("RGB", (64, 64), color) for color in ("red", "blue", "green")]
    for rows, together in (
        ([model.embed_texts([text]) for text in PROMPTS], model.embed_texts(PROMPTS)),
        ([model.embed_images([one]) for one in pictures], model.embed_images(pictures)),
    ):
        _expect(together.ndim == 2 and len(together) == 3, f"3 rows gave {together.shape}")
        apart = float(np.abs(np.concatenate(rows) - together).max())
        _expect(apart <= _tolerance(model), f"alone an embedding is {apart:.2g} off")


def _uses(model: Model) -> None:
    names = [name for name, _ in model.network.named_parameters()]
    for part, pattern in model.parts.items():
        fits = any(re.fullmatch(pattern, name) for name in names)
        _expect(fits, f"no parameter's name fits its part {part!r}")
    if model.pair:
        raise _Skip("it is a pair")
    before = _bytes(_draw(model, PROMPTS[:1], SEEDS[:1]))
    model.use(model.network)
    after = _bytes(_draw(model, PROMPTS[:1], SEEDS[:1]))
    model.release()
    _expect(before == after, "with its own network given to use() it draws other images")


def _adapts(name: str, load: Load, model: Model) -> None:
    made, adapted = load(name, {}), load(name, {})
    with tempfile.TemporaryDirectory() as folder:
        lora.write_blank(made.network, Path(folder))
        made.release()
        adapted.adapt(Path(folder))
        _expect(adapted.fingerprint != model.fingerprint, "an adapter leaves its fingerprint")
        before, after = (_bytes(_draw(m, PROMPTS, SEEDS)) for m in (model, adapted))
        _expect(before == after, "with an adapter that changes nothing it draws other images")
        adapted.release()


def _saves(name: str, model: Model, load: Load, pictures: list[Image.Image]) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "saved"
        folder.mkdir()
        model.save(folder)
        for file in folder.rglob("*"):
            pickled = file.suffix in (".bin", ".pt", ".pth", ".pkl")
            _expect(not pickled, f"it saved {file.name}, which is pickled: write safetensors")
        saved = saved_name(name, folder)
        again = load(saved, {})
        if dict(again.recipe) != dict(model.recipe):
            again = load(saved, dict(model.recipe))
        before, after = (_bytes(_draw(m, PROMPTS, SEEDS)) for m in (model, again))
        _expect(before == after, "the saved model draws other images")
        if "judge_logits" in model.capabilities:
            apart = np.abs(_scores(model, [0, 1], pictures) - _scores(again, [0, 1], pictures))
            _expect(float(apart.max()) <= _tolerance(model), "the saved model judges otherwise")
        again.release()


def _returns(model: Model) -> None:
    model.load()
    model.release()
    model.release()
    if "generate" in model.capabilities:
        first = _bytes(_draw(model, PROMPTS[:1], SEEDS[:1]))
        model.release()
        again = _bytes(_draw(model, PROMPTS[:1], SEEDS[:1]))
        _expect(first == again, "after release() it draws other images")
