"""The contract of an adapter, tried on a few small batches (`gapbench check-model`).

What every figure rests on: an image depends on its prompt and seed alone, a verdict on its image
and question alone, and what the model says it can do it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from functools import cache
from typing import Final

from PIL import Image

from gapbench.models.base import CAPABILITIES, Model, has_own, misdescribed
from gapbench.models.check import drawing, judging, weights
from gapbench.models.check.drawing import Load
from gapbench.models.check.rules import Broken, Finding, Rule, Skip, expect, findings
from gapbench.models.functions import FunctionModel

DRAWS: Final = "generate"
JUDGES: Final = "judge_logits"


def check(name: str, load: Load) -> Iterator[Finding]:
    """Try every rule on the model called `name`."""
    model = load(name, {})

    @cache
    def pictures() -> list[Image.Image]:
        return drawing.pictures(model)

    def rule(words: str, needs: str, attempt: Callable[[], None]) -> Rule:
        def able() -> None:
            if needs not in model.capabilities:
                there = [m for m in CAPABILITIES[needs].methods if has_own(model, m)]
                hint = f", though it has {', '.join(there)}: declare it if that works"
                raise Skip(f"it lacks {needs}{hint if there else ''}")
            attempt()

        method = next(iter(CAPABILITIES[needs].methods), DRAWS)
        return Rule(words, able, functions.get(method) or getattr(type(model), method, None))

    functions = model.functions if isinstance(model, FunctionModel) else {}
    return findings([
        Rule("describes itself before it loads", lambda: _describes(model), type(model)),
        rule("equal seeds, equal images; other seeds, other images", DRAWS, lambda: drawing.seeds(model)),
        rule("an image does not depend on its batch", DRAWS, lambda: drawing.company(model)),
        rule("an image does not depend on a global random state", DRAWS, lambda: drawing.state(model)),
        rule("answers have log-probabilities", JUDGES, lambda: judging.judges(model, pictures())),
        rule("a verdict does not depend on its batch", JUDGES, lambda: judging.company(model, pictures())),
        rule("odd pictures are judged, or abstained from", JUDGES, lambda: judging.odd(model)),
        rule("a reply does not depend on its batch", "judge_text", lambda: judging.says(model, pictures())),
        rule("a text does not depend on its batch", "text", lambda: judging.reads(model, pictures())),
        rule("tokens and images belong together", "image_tokens", lambda: drawing.tokens(model)),
        rule("latents and images belong together", "image_latents", lambda: drawing.latents(model)),
        rule("a loss depends on its drawing, prompt and noise", "generation_loss", lambda: drawing.losses(model)),
        rule("refuses a prompt or draws it", DRAWS, lambda: drawing.refuses(model)),
        rule("at temperature 0 the likeliest is drawn", DRAWS, lambda: drawing.greedy(name, load, model)),
        rule("image logits give the likelihood", "gradients", lambda: drawing.likelihood(model)),
        rule("logits and answers have gradients", "gradients", lambda: judging.slopes(model, pictures())),
        rule("an embedding does not depend on its batch", "embeddings", lambda: judging.embeds(model)),
        rule("draws with a network in memory", "train", lambda: weights.uses(model)),
        rule("a saved model is the same", "train", lambda: weights.saves(name, model, load, pictures())),
        rule("takes a LoRA adapter", "lora", lambda: weights.adapts(name, load, model)),
        Rule("a released model comes back", lambda: weights.returns(model), type(model)),
    ])  # fmt: skip


def _describes(model: Model) -> None:
    expect(not (wrong := misdescribed(model)), str(wrong))
    expect(len(str(model.fingerprint)) >= 8, "its fingerprint has fewer than 8 characters")
    expect(isinstance(model.capabilities, Set), "its capabilities are no frozenset")
    for unknown in sorted(set(model.capabilities) - set(CAPABILITIES)):
        raise Broken(f"capability {unknown!r} is not one of {', '.join(CAPABILITIES)}")
    for name in model.capabilities:
        for method in CAPABILITIES[name].methods:
            expect(has_own(model, method), f"it says {name} and has no {method}")
    for key, value in dict(model.recipe).items():
        plain = value is None or isinstance(value, (bool, int, float, str))
        expect(plain, f"recipe: {key} is a {type(value).__name__}, not a plain value")
