"""Kernel entries against whole Jacobians, and against what a step does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gapbench import load_model
from gapbench.explain.kernel import STEPS, Heads, first_order
from gapbench.explain.sides import heads_of, keep_precision
from gapbench.fix.settings import FixSettings

ONE, TWO, OTHER = "a red circle", "a blue square and a red circle", "describe a circle"
QUESTION = "Does this original image describe a red circle? The score is {your score}."
MATRIX = "model.language_model.layers.1.self_attn.q_proj.weight"
NORM = "model.language_model.layers.0.input_layernorm.weight"


def over(model: Any, lora: int = 0, rank: int = 0, only: tuple[str, ...] = ()) -> Heads:
    """The heads of a model over what a fix would train, or some of it."""
    settings = FixSettings(method="sft", lora=lora, out=Path("unused"))
    heads = heads_of(model, settings, rank=rank, seed=7)
    if only:
        moved = {name: p for name, p in heads.moved.items() if name.endswith(only)}
        heads = Heads(model, heads.network, moved)
    return heads


@pytest.fixture
def model(tiny_janus: Path) -> Any:
    return load_model(str(tiny_janus), dtype="float64")


def drawn(model: Any, *seeds: int) -> tuple[list[Any], list[Any]]:
    """Tokens and pictures."""
    found = model.generate([ONE] * len(seeds), seeds)
    return [d.tokens for d in found], [d.image for d in found]


def jacobian(heads: Heads, values: Tensor) -> Tensor:
    """Of each of the values by all parameters, (values, parameters)."""
    rows = []
    for part in torch.eye(values.numel(), dtype=values.dtype).split(512):
        found = torch.autograd.grad(
            values.flatten(), list(heads.moved.values()), part, is_grads_batched=True,
            retain_graph=True, allow_unused=True,
        )  # fmt: skip
        rows.append(
            torch.cat(
                [
                    torch.zeros(len(part), p.numel(), dtype=p.dtype) if g is None else g.flatten(1)
                    for g, p in zip(found, heads.moved.values(), strict=True)
                ],
                1,
            )
        )
    return torch.cat(rows)


@pytest.mark.parametrize("lora", [0, 1])
def test_entries_are_those_of_the_whole_jacobian(model: Any, lora: int) -> None:
    heads = over(model, lora, only=() if lora else (MATRIX, NORM))
    if lora:  # at B = 0 half of the gradients vanish
        stream = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in heads.moved.items():
                if "lora_B" in name:
                    parameter.copy_(0.05 * torch.randn(parameter.shape, generator=stream))
    (x0, xu), (picture, _) = drawn(model, 1, 2)
    with sdpa_kernel(SDPBackend.MATH):  # the others have no batched gradients
        whole, residuals = [], []
        for text, tokens in ((ONE, x0), (TWO, xu)):
            logits = heads([text], tokens[None])[0]
            whole.append(jacobian(heads, logits))
            hot = torch.nn.functional.one_hot(torch.from_numpy(tokens).long(), logits.shape[-1])
            residuals.append((hot - logits.detach().softmax(-1)).flatten())
        verdict = jacobian(heads, heads.verdicts([picture], [QUESTION]))
    kernel, mine = whole[0] @ whole[1].T, residuals[1]
    assert kernel.shape == (16 * 128, 16 * 128)

    step = heads.of_likelihood(TWO, xu)
    entry = float(residuals[0] @ kernel @ mine)
    found = heads.inner(heads.of_likelihood(ONE, x0), step).sum()
    assert abs(found - entry) <= 1e-8 * max(1, abs(entry))
    wanted = float(verdict[0] @ whole[1].T @ mine)
    found = heads.inner(heads.of_verdict(picture, QUESTION), step).sum()
    assert abs(found - wanted) <= 1e-8 * max(1, abs(wanted))

    # Other sequences in the batch change nothing.
    pushed = heads.push([ONE, OTHER], np.stack([x0, x0]), step)
    assert pushed.norms[0] == pytest.approx(float((kernel @ mine).norm()), rel=1e-8)
    assert heads.norms([ONE], x0[None], step) == pytest.approx(pushed.norms[:1])
    assert pushed.likelihood[0] == pytest.approx(entry, rel=1e-8, abs=1e-8)
    # A layer's norm is that of the Jacobians' columns of its parameters.
    start = 0
    columns: dict[int, list[Tensor]] = {}
    for place, parameter in zip(heads._places, heads.moved.values(), strict=True):
        columns.setdefault(place, []).append(
            torch.arange(start, start := start + parameter.numel())
        )
    for place, parts in columns.items():
        some = torch.cat(parts)
        moved = whole[0][:, some] @ (whole[1][:, some].T @ mine)
        assert pushed.by_layer[place, 0] == pytest.approx(float(moved.norm()), rel=1e-8)


def ratios(steps: list[Any], head: str) -> list[float]:
    return [step.actual / step.predicted for step in steps if step.head == head]


@pytest.mark.parametrize("name", ["tiny", "janus-mini"])
def test_the_kernel_predicts_small_steps(name: str, tiny_janus: Path) -> None:
    model: Any = load_model(str(tiny_janus) if name == "tiny" else name, dtype="float64")
    heads = over(model)
    before = [parameter.detach().clone() for parameter in heads.moved.values()]
    (x0, xu), (picture, _) = drawn(model, 1, 2)
    steps = first_order(heads, (ONE, x0, picture, QUESTION), (ONE, xu))
    assert len(steps) == 2 * len(STEPS) == 8
    for head in ("likelihood", "verdict"):
        away = [abs(ratio - 1) for ratio in ratios(steps, head)]
        assert away[-1] < 1e-3, (head, away)
        assert away[-1] < away[-2] / 5 < away[-3] / 10, (head, away)
    after = list(heads.moved.values())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_wrong_slope_would_be_seen(model: Any) -> None:
    """Of another training pair the same step is not predicted."""
    heads = over(model)
    (x0, xu, xw), (picture, *_) = drawn(model, 1, 2, 3)
    right = first_order(heads, (ONE, x0, picture, QUESTION), (ONE, xu))
    wrong = first_order(heads, (ONE, x0, picture, QUESTION), (TWO, xw))
    mixed = [a.actual / (a.eta * b.predicted / b.eta) for a, b in zip(right, wrong, strict=True)][
        -2:
    ]
    assert min(abs(ratio - 1) for ratio in mixed) > 0.01


def test_projected_gradients_estimate_the_kernel(tiny_janus: Path) -> None:
    """Entries over the lengths of their gradients, of three images and a verdict."""
    found = {}
    for rank in (0, 16, 256):
        model: Any = load_model(str(tiny_janus), dtype="float64")
        heads = over(model, rank=rank, only=() if rank else ("_proj.weight",))
        tokens, pictures = drawn(model, 1, 2, 3)
        sides = [
            heads.of_likelihood(text, mine)
            for text, mine in zip((ONE, TWO, OTHER), tokens, strict=True)
        ]
        sides.append(heads.of_verdict(pictures[0], QUESTION))
        found[rank] = np.array([[heads.inner(a, b).sum() for a in sides] for b in sides])
    lengths = np.sqrt(np.diag(found[0]))
    errors = {r: np.abs((found[r] - found[0]) / np.outer(lengths, lengths)).max() for r in found}
    assert errors[256] < 0.25
    assert errors[256] < errors[16]


def test_norms_keep_float64(model: Any) -> None:
    model.load()
    norm = model.network.model.language_model.norm
    hidden = torch.randn(1, 3, 64, dtype=torch.float64)
    rounded = norm(hidden)
    keep_precision(model.network)
    scale = (hidden.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
    exact = hidden * scale * norm.weight
    assert torch.allclose(norm(hidden), exact, rtol=0, atol=1e-14)
    assert 0 < (rounded - exact).abs().max() < 1e-5


def test_one_emu3_has_both_heads(tiny_emu3: Path) -> None:
    model: Any = load_model(str(tiny_emu3 / "gen"), dtype="float64", recipe={"image_area": 1024})
    heads = over(model, lora=2)
    [drawing] = model.generate([ONE], [1])
    steps = first_order(
        heads, (ONE, drawing.tokens, drawing.image, QUESTION), (ONE, drawing.tokens), [1e-7, 1e-8]
    )
    for head in ("likelihood", "verdict"):
        assert ratios(steps, head)[-1] == pytest.approx(1, abs=1e-3)
    pushed = heads.push([ONE], drawing.tokens[None], heads.of_likelihood(ONE, drawing.tokens))
    assert pushed.likelihood[0] == pytest.approx(steps[-2].predicted / steps[-2].eta, rel=1e-9)
