"""The sampler: streams of seeds, guidance, warping against transformers' own, and the draw."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from gapbench.models.autoregressive.sampling import Recipe, draw, guide, uniforms, warp
from gapbench.types import GapbenchError

ALMOST_ONE = 1 - 2**-53
PLAIN = Recipe(guidance=1)


def logits_of(seed: int, rows: int = 5, codes: int = 40, spread: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(rows, codes, generator=generator, dtype=torch.float64)


def kept(logprobs: Tensor) -> list[set[int]]:
    return [set(torch.nonzero(row > -torch.inf).flatten().tolist()) for row in logprobs]


# -- streams -----------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6), st.integers(1, 20), st.data())
def test_a_row_of_uniforms_depends_on_its_seed_alone(
    seeds: list[int], steps: int, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(seeds))))
    together = uniforms(seeds, steps)
    shuffled = uniforms([seeds[i] for i in order], steps)
    assert together.shape == (len(seeds), steps)
    assert together.dtype == torch.float64
    assert ((together >= 0) & (together < 1)).all()
    for place, i in enumerate(order):
        assert torch.equal(shuffled[place], together[i])
        assert torch.equal(uniforms([seeds[i]], steps)[0], together[i])


def test_uniforms_neither_read_nor_move_the_global_stream() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = uniforms([7], 5)
    assert torch.equal(torch.rand(1), expected)
    torch.manual_seed(2)
    assert torch.equal(uniforms([7], 5), first)


def test_other_seeds_give_other_uniforms_and_they_fill_the_interval() -> None:
    many = uniforms(list(range(200)), 50)
    assert len({tuple(row) for row in many.tolist()}) == 200
    counts = np.histogram(many.numpy(), bins=20, range=(0, 1))[0]
    assert chisquare(counts).pvalue > 0.01


def test_fewer_steps_are_the_beginning_of_more_steps() -> None:
    assert torch.equal(uniforms([3], 20)[:, :8], uniforms([3], 8))


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
    for uniform in (0.0, 0.3, ALMOST_ONE):
        drawn = draw(warped, torch.full((5,), uniform, dtype=torch.float64))
        assert torch.equal(drawn, logits.argmax(-1))


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


@pytest.mark.parametrize("recipe", [PLAIN, Recipe(temperature=2.0, top_k=12, top_p=0.9)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_frequencies_of_draws_match_the_distribution(recipe: Recipe, seed: int) -> None:
    draws = 20_000
    logprobs = warp(logits_of(seed, rows=1, codes=20, spread=1.0), recipe)
    tokens = draw(logprobs.expand(draws, -1).contiguous(), uniforms([seed], draws)[0])
    counts = np.bincount(tokens.numpy(), minlength=20)
    expected = draws * logprobs[0].exp().numpy()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert chisquare(counts[possible], expected[possible]).pvalue > 0.01


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.0, 1e-300, 1e-12, 0.1, 1.0, 3.0]), min_size=1, max_size=30),
    st.one_of(st.sampled_from([0.0, 2**-53, 0.5, ALMOST_ONE]), st.floats(0, ALMOST_ONE)),
)
def test_a_token_of_probability_zero_is_never_drawn(weights: list[float], uniform: float) -> None:
    if not sum(weights):
        weights[-1] = 1.0
    logprobs = torch.tensor([weights], dtype=torch.float64).log().log_softmax(-1)
    token = int(draw(logprobs, torch.tensor([uniform], dtype=torch.float64)))
    assert 0 <= token < len(weights)
    assert weights[token] > 0


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 1), (ALMOST_ONE, 3), (1.0, 3)])
def test_the_ends_of_the_interval_draw_the_outermost_possible_tokens(
    uniform: float, token: int
) -> None:
    logprobs = torch.tensor([[0.0, 0.2, 0.0, 0.8, 0.0, 0.0]], dtype=torch.float64).log()
    assert draw(logprobs, torch.tensor([uniform], dtype=torch.float64)).tolist() == [token]


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 1000), st.floats(0, ALMOST_ONE))
def test_a_draw_inverts_the_cumulative_distribution(seed: int, uniform: float) -> None:
    logprobs = warp(logits_of(seed, rows=1), PLAIN)
    token = int(draw(logprobs, torch.tensor([uniform], dtype=torch.float64)))
    cumulative = [0.0, *np.cumsum(logprobs[0].exp().numpy())]
    assert cumulative[token] - 1e-12 <= uniform <= cumulative[token + 1] + 1e-12


@pytest.mark.parametrize("uniform", [0.0, 0.5, ALMOST_ONE])
def test_a_single_code_is_always_drawn(uniform: float) -> None:
    logprobs = warp(torch.tensor([[2.5], [-1.0]]), Recipe(top_k=1, top_p=0.5))
    drawn = draw(logprobs, torch.full((2,), uniform, dtype=torch.float64))
    assert drawn.tolist() == [0, 0]


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
