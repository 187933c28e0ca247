"""What draws a block: where its memory goes, what it shares, and Triton's kernels in its place."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency

from gapbench import load_model
from gapbench.models.autoregressive import draw, kernels, plain
from gapbench.models.emu3 import MODELS, Emu3Model
from gapbench.models.janus.t2i_r1 import T2IR1Model

PROMPTS = ["a red circle", "a blue square and a red circle"]


RECIPE = {**MODELS["emu3"].recipe, "image_area": 1024, "top_k": 8}


def test_the_other_rows_of_a_block_stay_empty(
    tiny_janus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention reads nothing for them, and the image is the same as in a full block."""
    model = load_model(str(tiny_janus), "cpu", "bfloat16")
    seen = []
    attend = plain.attend

    def noted(query: torch.Tensor, *given: object) -> torch.Tensor:
        seen.append(given[2].tolist())  # type: ignore[attr-defined]
        return attend(query, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(plain, "attend", noted)
    alone = model.generate(PROMPTS[:1], [3])[0]
    branch = len(seen[-1]) // 2
    assert [place for place in seen[-1] if place] == [seen[-1][0], seen[-1][branch]]
    beside = model.generate([*PROMPTS * 3, PROMPTS[0]], [*range(10, 16), 3])[-1]
    assert alone.image.tobytes() == beside.image.tobytes()


def test_memory_is_given_back_at_once(tiny_janus: Path) -> None:
    """Gigabytes on a GPU, which the next block or a judge needs."""
    model = load_model(str(tiny_janus), "cpu", "float32")
    model.generate(PROMPTS, [0, 1])
    kept = [weakref.ref(drawer) for _, drawer in model.blocks._kept.values()]  # type: ignore[attr-defined]
    gc.disable()
    try:
        model.release()
        assert kept
        assert [drawer() for drawer in kept] == [None]
    finally:
        gc.enable()


def test_plan_and_picture_keep_a_drawer_each(tiny_janus: Path) -> None:
    model = T2IR1Model("r1", tiny_janus, device="cpu", dtype="float32")
    model.reasoning = type(model.reasoning)(reasoning_tokens=4)
    seen = []
    for seed in range(2):
        model.generate(PROMPTS, [seed, seed + 1])
        seen.append([drawer for _, drawer in model.blocks._kept.values()])
    assert len(seen[0]) == 2
    assert set(map(id, seen[0])) == set(map(id, seen[1]))


def test_images_are_the_same_by_the_kernels(
    tiny_emu3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Emu3's, which has fewer keys than queries and forced ends of lines."""
    tokens = []
    for ops in (plain, kernels):
        monkeypatch.setattr(draw, "operations", lambda device, ops=ops: (ops, None))
        model = Emu3Model("pair", tiny_emu3 / "gen", tiny_emu3 / "gen", RECIPE, "cpu", "float64")
        with torch.inference_mode():
            tokens.append(model._tokens(PROMPTS[:1], [3], steps=7)[1].tolist())
    assert tokens[0] == tokens[1]


def test_a_gpu_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: object) -> None:
        raise RuntimeError("Failed to find C compiler. Please specify via CC")

    class Cuda:
        type = "cuda"

    monkeypatch.setattr(kernels, "gumbel", fails)
    monkeypatch.setattr(torch, "zeros", lambda *shape, **_more: torch.ones(shape).long())
    ops, why = draw.operations(Cuda())  # type: ignore[arg-type]
    assert ops is plain
    assert why == (
        "Triton does not work here, so attention is slower: Failed to find C compiler. Please "
        "specify via CC"
    )


def test_a_real_model_draws_as_it_did_by_inverting_the_cumulative_distribution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """janus-mini's first four tokens of one prompt, over 600 seeds each way."""

    def inverted(logprobs: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        uniform = torch.exp(-torch.exp(-noise[:, :1]))
        cumulative = logprobs.exp().cumsum(-1)
        return torch.searchsorted(cumulative, uniform * cumulative[:, -1:]).squeeze(-1)

    model = load_model("janus-mini")
    ways = []
    for first, way in ((0, draw.draw), (10_000, inverted)):
        monkeypatch.setattr(draw, "draw", way)
        with torch.inference_mode():
            drawn = model._tokens(["a red circle"] * 600, range(first, first + 600), steps=4)  # type: ignore[attr-defined]
        ways.append(drawn[1])
    for place in range(4):
        counts = np.stack([np.bincount(way[:, place], minlength=256) for way in ways])
        some = counts[:, counts.sum(0) >= 10]
        rare = counts.sum(1, keepdims=True) - some.sum(1, keepdims=True)
        table = np.concatenate([some, rare], 1)
        assert table.shape[1] > 2
        assert chi2_contingency(table[:, table.sum(0) > 0]).pvalue > 0.001


def test_emu3_draws_with_a_head_that_was_trained_meanwhile(tiny_emu3: Path) -> None:
    """What draws is kept, so it must hold the head's weights and no copy of them."""
    model = Emu3Model("pair", tiny_emu3 / "gen", tiny_emu3 / "gen", RECIPE, "cpu", "float32")
    seen = []
    for _ in range(2):
        with torch.inference_mode():
            seen.append(model._tokens(PROMPTS, [3, 4])[1].tolist())
        with torch.no_grad():
            model.network.lm_head.weight.neg_()
    with torch.no_grad():
        model.network.lm_head.weight.neg_()
    model.blocks.clear()
    with torch.inference_mode():
        assert model._tokens(PROMPTS, [3, 4])[1].tolist() == seen[1]
    assert seen[0] != seen[1]
