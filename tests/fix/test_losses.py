"""The losses against independent references, and what they reach in real (tiny) models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gapbench import GapbenchError
from gapbench.fix.losses import ImageLoss, dpo_loss, dpo_margin
from gapbench.fix.network import base_model, prepare
from gapbench.fix.settings import FixSettings
from gapbench.models import load_model

PROMPTS = ["a red circle", "two green stars and a heart", "a blue square"]


@pytest.fixture(params=["janus", "emu3"])
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(f"tiny_{request.param}")
    return found


def model_of(folder: Path, dtype: str = "float64") -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    more = {} if "janus" in folder.name else {"image_area": 1024}
    model: Any = load_model(str(folder), "cpu", dtype, more)
    drawn = model.generate(PROMPTS * 2, list(range(6)))
    tokens = torch.from_numpy(np.stack([drawing.tokens for drawing in drawn])).long()
    return model, tokens[:3], tokens[3:]


def settings(**more: Any) -> FixSettings:
    return FixSettings(method="sft", out=Path("unused"), **{"lora": 0, **more})


NONE = torch.zeros(3, dtype=torch.bool)
NOISE = torch.arange(3)


@torch.no_grad()
def test_sft_is_torchs_cross_entropy_of_emu3_logits(tiny_emu3: Path) -> None:
    model, tokens, _ = model_of(tiny_emu3)
    network, (codes, end) = model.network, model._codes()
    losses = []
    for prompt, row in zip(PROMPTS, tokens, strict=True):
        head = model._heads([prompt])[1]
        lines = codes[row].reshape(4, 4)
        body = torch.cat([lines, torch.full((4, 1), end)], 1).reshape(1, -1)
        logits = network(input_ids=torch.cat([head, body], 1)).logits[0, head.shape[1] - 1 : -1]
        drawn = logits.reshape(4, 5, -1)[:, :4].reshape(16, -1)[:, codes]
        losses.append(torch.nn.functional.cross_entropy(drawn, row))
    found = ImageLoss(model, network)(PROMPTS, tokens.numpy(), NONE, NOISE)["loss"]
    assert float(found) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-9)


@torch.no_grad()
def test_sft_is_torchs_cross_entropy_of_janus_logits(tiny_janus: Path) -> None:
    model, tokens, _ = model_of(tiny_janus)
    network = model.network
    losses = []
    for prompt, row in zip(PROMPTS, tokens, strict=True):
        ids = model.processor().tokenizer(model._heads([prompt])[0][0])
        head = network.get_input_embeddings()(torch.tensor([ids["input_ids"]]))
        body = network.prepare_embeddings_for_image_generation(row[None, :-1])
        hidden = network.model.language_model(
            inputs_embeds=torch.cat([head, body], 1)
        ).last_hidden_state[:, head.shape[1] - 1 :]
        logits = network.model.generation_head(hidden)[0]
        losses.append(torch.nn.functional.cross_entropy(logits, row))
    found = ImageLoss(model, network)(PROMPTS, tokens.numpy(), NONE, NOISE)["loss"]
    assert float(found) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-9)


def test_probabilities_sum_to_one_over_the_vocabulary(folder: Path) -> None:
    model, tokens, _ = model_of(folder)
    rows = tokens[:1].repeat(model.codes, 1)
    rows[:, 5] = torch.arange(model.codes)
    for away in (False, True):
        with torch.no_grad():
            logits = model.image_logits(PROMPTS[:1], rows[:1].numpy(), away)
            losses = model.generation_loss(
                PROMPTS[:1] * model.codes, rows.numpy(), [0] * model.codes, away
            )
        # Of sequences up to the place that varies; what follows it is seen to depend on it.
        assert not torch.allclose(losses, losses[:1].expand_as(losses), atol=1e-3)
        chosen = logits.log_softmax(-1)[0].gather(1, rows[:1].T).sum()
        assert float(losses[0]) == pytest.approx(-float(chosen), abs=1e-9)


def trl_sigmoid(
    policy_chosen: list[float], policy_rejected: list[float],
    ref_chosen: list[float], ref_rejected: list[float], beta: float,
) -> list[float]:  # fmt: skip
    """TRL's DPOTrainer, loss_type "sigmoid" without label smoothing, in plain Python."""
    found = []
    for pc, pr, rc, rr in zip(
        policy_chosen, policy_rejected, ref_chosen, ref_rejected, strict=True
    ):
        logits = (pc - pr) - (rc - rr)
        found.append(math.log1p(math.exp(-beta * logits)))
    return found


def test_dpo_is_trls_formula() -> None:
    numbers = [
        [-310.0, -42.5, -7.0],
        [-300.0, -60.0, -7.0],
        [-305.0, -50.0, -9.0],
        [-299.0, -49.0, -6.5],
    ]
    pc, pr, rc, rr = (torch.tensor(row, dtype=torch.float64) for row in numbers)
    margin = dpo_margin(-pc, -pr, -torch.stack([rc, rr], 1))
    for beta in (0.1, 0.7):
        found = dpo_loss(margin, beta)
        assert found.tolist() == pytest.approx(trl_sigmoid(*numbers, beta), rel=1e-12)


@pytest.mark.parametrize("how", ["sum", "mean"])
def test_the_dpo_module_adds_the_chosen_likelihood(tiny_janus: Path, how: Any) -> None:
    model, chosen, rejected = model_of(tiny_janus)
    size = 16 if how == "mean" else 1
    with torch.no_grad():
        pc, pr = (
            -model.generation_loss(PROMPTS, t.numpy(), [0] * 3) / size for t in (chosen, rejected)
        )
        withheld = [False, True, False]
        nll = model.generation_loss(PROMPTS, chosen.numpy(), [0] * 3, withheld).mean() / 16
        reference = torch.stack([pc - 3, pr + 2], 1)
        dropped = torch.tensor(withheld)
        loss = ImageLoss(model, model.network, beta=0.3, logprobs=how, nll_weight=0.5)
        found = loss(PROMPTS, chosen.numpy(), dropped, NOISE, rejected.numpy(), -reference)
        start = loss(
            PROMPTS, chosen.numpy(), NONE, NOISE, rejected.numpy(), -torch.stack([pc, pr], 1)
        )
    by_hand = trl_sigmoid(pc.tolist(), pr.tolist(), *reference.T.tolist(), 0.3)
    assert float(found["loss"]) == pytest.approx(np.mean(by_hand) + 0.5 * float(nll), rel=1e-9)
    assert float(found["preferred"]) == 1
    assert float(start["dpo"]) == pytest.approx(math.log(2), rel=1e-9)  # policy = reference


def test_withheld_prompts_are_the_rows_that_guidance_subtracts(folder: Path) -> None:
    model, tokens, _ = model_of(folder)
    with torch.no_grad():
        mixed, given, away = (
            model.generation_loss(PROMPTS, tokens.numpy(), [0] * 3, withheld)
            for withheld in ([True, False, True], False, True)
        )
    assert torch.allclose(mixed[[0, 2]], away[[0, 2]], atol=1e-9)
    assert torch.allclose(mixed[1], given[1], atol=1e-9)
    assert not torch.allclose(given[0], away[0], atol=1e-3)


REACHED = {
    "language-model": {"model.language_model", "model.text_model"},
    "generation": {
        "model.language_model", "model.generation_head", "model.generation_embeddings",
        "model.generation_aligner",
    },
}  # fmt: skip


@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize("part", REACHED)
def test_gradients_reach_what_is_trained_and_nothing_frozen(
    folder: Path, part: Any, lora: int
) -> None:
    if part not in load_model(str(folder)).parts:  # type: ignore[attr-defined]
        assert "emu3" in folder.name
        with pytest.raises(GapbenchError, match="has language-model"):
            base_model(settings(train=part, model=str(folder)), "cpu", "auto")
        return
    reached = REACHED[part]
    model, tokens, _ = model_of(folder, "float32")
    network = prepare(model, settings(lora=lora, train=part))
    loss = ImageLoss(model, network)
    loss.train()
    loss(PROMPTS, tokens.numpy(), torch.tensor([False, True, False]), NOISE)["loss"].backward()
    names = {
        name.removeprefix("base_model.model."): parameter.grad
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }
    assert names
    assert all(".lora_" in name for name in names) == bool(lora)
    parts = {next((part for part in reached if name.startswith(part)), name) for name in names}
    assert parts <= reached
    for name, grad in names.items():
        assert grad is not None, name
        assert lora or float(grad.abs().max()) > 0, name
    frozen = [p for p in network.parameters() if not p.requires_grad]
    assert frozen
    assert all(p.grad is None for p in frozen)


@pytest.mark.parametrize("how", [{"gradient_checkpointing": True}, {"lora": 4}])
def test_the_loss_is_the_same_in_training_mode(folder: Path, how: dict[str, Any]) -> None:
    model, tokens, _ = model_of(folder, "float32")
    with torch.no_grad():
        before = float(
            ImageLoss(model, model.network)(PROMPTS, tokens.numpy(), NONE, NOISE)["loss"]
        )
    loss = ImageLoss(model, prepare(model, settings(**how)))
    loss.train()  # dropout of the checkpoint's settings, as Emu3's attention has, must be off
    found = loss(PROMPTS, tokens.numpy(), NONE, NOISE)["loss"]
    assert found.item() == pytest.approx(before, abs=1e-5)
    found.backward()
