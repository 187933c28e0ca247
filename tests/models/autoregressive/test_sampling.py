"""The sampler: guidance, warping against transformers' own, and the draw."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from gapbench.models.autoregressive.noise import gumbel, keys
from gapbench.models.autoregressive.sampling import Recipe, draw, guide, warp
from gapbench.types import GapbenchError

PLAIN = Recipe(guidance=1)


def logits_of(seed: int, rows: int = 5, codes: int = 40, spread: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(rows, codes, generator=generator, dtype=torch.float64)


def kept(logprobs: Tensor) -> list[set[int]]:
    return [set(torch.nonzero(row > -torch.inf).flatten().tolist()) for row in logprobs]


# -- guidance ----------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 5.0])
def test_guide_is_uncond_plus_guidance_times_the_difference(guidance: float) -> None:
    cond, uncond = logits_of(1), logits_of(2)
    found = guide(torch.cat([cond, uncond]), guidance)
    assert torch.equal(found, uncond + guidance * (cond - uncond))
    ends = {0.0: uncond, 1.0: cond}
    if guidance in ends:
        torch.testing.assert_close(found, ends[guidance])


# -- warping -----------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None)
@given(
    st.integers(0, 1000),
    st.integers(1, 60),
    st.floats(0.01, 10),
    st.integers(0, 70),
    st.floats(0.001, 1),
)
def test_warped_rows_sum_to_one_and_are_never_empty(
    seed: int, codes: int, temperature: float, top_k: int, top_p: float
) -> None:
    recipe = Recipe(temperature=temperature, top_k=top_k, top_p=top_p)
    warped = warp(logits_of(seed, codes=codes), recipe)
    assert warped.dtype == torch.float64
    torch.testing.assert_close(warped.exp().sum(-1), torch.ones(5, dtype=torch.float64))
    assert all(kept(warped))


def test_the_plain_recipe_only_normalises() -> None:
    logits = logits_of(0)
    assert torch.equal(warp(logits, PLAIN), logits.log_softmax(-1))


def test_warp_works_in_float64_from_bfloat16_logits() -> None:
    logits = logits_of(0).bfloat16()
    assert torch.equal(warp(logits, PLAIN), logits.double().log_softmax(-1))


@pytest.mark.parametrize("others", [{}, {"top_k": 3}, {"top_p": 0.1}])
def test_temperature_zero_takes_the_likeliest_token_for_certain(others: dict[str, Any]) -> None:
    logits = logits_of(3)
    warped = warp(logits, Recipe(temperature=0, **others))
    assert kept(warped) == [{i} for i in logits.argmax(-1).tolist()]
    assert torch.equal(warped.max(-1).values, torch.zeros(5, dtype=torch.float64))
    for seed in range(3):
        assert torch.equal(draw(warped, noise(seed, 5, 40)), logits.argmax(-1))


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 60))
def test_top_k_keeps_exactly_the_k_likeliest(seed: int, top_k: int) -> None:
    logits = logits_of(seed)
    count = top_k if 0 < top_k < 40 else 40
    likeliest = logits.topk(count).indices
    assert kept(warp(logits, Recipe(top_k=top_k))) == [set(row.tolist()) for row in likeliest]


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-6, 1))
def test_top_p_keeps_the_smallest_set_that_reaches_p(seed: int, top_p: float) -> None:
    logits = logits_of(seed)
    for row, found in zip(logits, kept(warp(logits, Recipe(top_p=top_p))), strict=True):
        probs = row.softmax(-1)
        total, wanted = 0.0, set()
        for i in row.argsort(descending=True).tolist():
            wanted.add(i)
            total += float(probs[i])
            if total >= top_p and top_p < 1:
                break
        assert found == wanted


def test_top_p_keeps_one_token_even_when_that_one_exceeds_p() -> None:
    logits = torch.tensor([[0.9, 0.05, 0.05]]).log()
    assert kept(warp(logits, Recipe(top_p=0.001))) == [{0}]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 7, 40])
@pytest.mark.parametrize("top_p", [0.2, 0.8, 1.0])
def test_the_order_is_that_of_transformers_warpers(
    temperature: float, top_k: int, top_p: float
) -> None:
    logits = logits_of(11, rows=50)
    expected = logits.clone()
    ids = torch.zeros(50, 1, dtype=torch.long)
    if temperature != 1:
        expected = TemperatureLogitsWarper(temperature)(ids, expected)
    if top_k:
        expected = TopKLogitsWarper(top_k)(ids, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(ids, expected)
    found = warp(logits, Recipe(temperature=temperature, top_k=top_k, top_p=top_p))
    assert kept(found) == kept(expected)
    torch.testing.assert_close(found, expected.log_softmax(-1))


def test_warp_leaves_its_input_as_it_was() -> None:
    logits = logits_of(4)
    before = logits.clone()
    warp(logits, Recipe(temperature=0.5, top_k=5, top_p=0.5))
    assert torch.equal(logits, before)


# -- drawing -----------------------------------------------------------------------------------


def noise(seed: int, steps: int, codes: int) -> Tensor:
    """(steps, codes): one seed's noise of the first steps."""
    every = torch.arange(steps).unsqueeze(1)
    return torch.cat([gumbel(keys([seed]), step, codes) for step in every])


@pytest.mark.parametrize(
    "recipe", [PLAIN, Recipe(temperature=2.0, top_k=12, top_p=0.9)], ids=["plain", "warped"]
)
def test_a_million_draws_follow_the_softmax(recipe: Recipe) -> None:
    codes, seeds, steps = 20, 1000, 1000
    logprobs = warp(logits_of(0, rows=1, codes=codes, spread=1.0), recipe)
    rows = keys(range(seeds))
    counts = np.zeros(codes)
    for step in range(steps):
        tokens = draw(logprobs, gumbel(rows, torch.tensor([step]), codes))
        counts += np.bincount(tokens.numpy(), minlength=codes)
    expected = seeds * steps * logprobs[0].exp().numpy()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert chisquare(counts[possible], expected[possible]).pvalue > 0.01


def test_draws_have_the_distribution_of_the_inverted_cumulative_one() -> None:
    logprobs = warp(logits_of(3, rows=1, codes=64), PLAIN)
    cumulative = logprobs[0].exp().numpy().cumsum()
    uniform = np.random.default_rng(0).random(50_000)
    inverted = np.searchsorted(cumulative / cumulative[-1], uniform, side="right")
    tokens = draw(logprobs, gumbel(keys(range(50_000)), torch.tensor([0]), 64)).numpy()
    both = np.stack([np.bincount(tokens, minlength=64), np.bincount(inverted, minlength=64)])
    assert chi2_contingency(both[:, both.sum(0) > 10]).pvalue > 0.01


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.0, 1e-300, 1e-12, 0.1, 1.0, 3.0]), min_size=1, max_size=30),
    st.integers(0, 2**64 - 1),
)
def test_a_token_of_probability_zero_is_never_drawn(weights: list[float], seed: int) -> None:
    if not sum(weights):
        weights[-1] = 1.0
    logprobs = torch.tensor([weights], dtype=torch.float64).log().log_softmax(-1)
    token = int(draw(logprobs, noise(seed, 1, len(weights))))
    assert 0 <= token < len(weights)
    assert weights[token] > 0


def test_rounding_moves_few_draws() -> None:
    """A tenth of what inverting the cumulative distribution loses, and less."""
    logits = logits_of(1, rows=400, codes=4096, spread=1.0)
    moved = logits + 0.01 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    own = noise(5, 400, 4096)
    changed = draw(warp(logits, PLAIN), own) != draw(warp(moved, PLAIN), own)
    uniform = torch.rand(400, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before, after = (
        torch.searchsorted(warp(each, PLAIN).exp().cumsum(-1), uniform) for each in (logits, moved)
    )
    assert 10 * int(changed.sum()) < int((before != after).sum())


@pytest.mark.parametrize("seed", range(3))
def test_a_single_code_is_always_drawn(seed: int) -> None:
    logprobs = warp(torch.tensor([[2.5], [-1.0]]), Recipe(top_k=1, top_p=0.5))
    assert draw(logprobs, noise(seed, 2, 1)).tolist() == [0, 0]


# -- recipe ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("guidance", "temperature") for value in (-0.1, -math.inf)),
        *((name, math.inf) for name in ("guidance", "temperature")),
        *((name, math.nan) for name in ("guidance", "temperature", "top_p")),
        *((n, v) for n in ("guidance", "temperature", "top_k", "top_p") for v in ("1", [1], True)),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0),
        ("top_p", -0.5),
        ("top_p", 1.01),
        ("block", -1),
        ("block", 0.5),
    ],
)
def test_a_recipe_refuses_values_that_make_no_sense(name: str, value: Any) -> None:
    with pytest.raises(GapbenchError, match=rf"^recipe: {name} is .*, must be a ") as caught:
        Recipe(**{name: value})
    assert "\n" not in str(caught.value)


def test_a_recipe_takes_the_ends_of_its_ranges() -> None:
    edge = Recipe(guidance=0, temperature=0, top_k=0, top_p=1)
    assert (edge.guidance, edge.temperature, edge.top_k, edge.top_p) == (0, 0, 0, 1)


def test_the_default_recipe_is_upstreams() -> None:
    assert Recipe() == Recipe(guidance=5.0, temperature=1.0, top_k=0, top_p=1.0)


def test_another_versions_sampler_is_refused() -> None:
    with pytest.raises(GapbenchError, match=r"sampler is 'cdf', this version .* draws by gumbel-1"):
        Recipe(sampler="cdf")
