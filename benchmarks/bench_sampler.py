"""How many draws change where rounding or a training moves the logits a little: Gumbel-max, which
gapbench uses, against inverting the cumulative distribution.

    python benchmarks/bench_sampler.py [--draws 4000] [--before janus-mini --after FOLDER]
        [--prompts 440]

Simulated: 16,384 codes whose logits are normal, at three entropies, moved by normal noise of a
standard deviation, what bfloat16's rounding does to a real model's. With `--after`, the
checkpoint of a training: the share of images that keep all tokens, before and after, under one
seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from gapbench import load_model, load_task
from gapbench.models.autoregressive.noise import gumbel, keys
from gapbench.models.autoregressive.sampling import draw

CODES = 16384
Draw = Callable[[Tensor, Tensor], Tensor]


def inverted(logprobs: Tensor, noise: Tensor) -> Tensor:
    """Tokens by inverting the cumulative distribution at a uniform number, which the noise of each
    row's first code stands for."""
    uniform = torch.exp(-torch.exp(-noise[:, :1]))
    cumulative = logprobs.exp().cumsum(-1)
    place = torch.searchsorted(cumulative, (uniform * cumulative[:, -1:]).contiguous())
    return place.squeeze(-1).clamp(max=logprobs.shape[1] - 1)


def entropy(logits: Tensor) -> float:
    logprobs = logits.log_softmax(-1)
    return float(-(logprobs.exp() * logprobs).sum(-1).mean())


def spread_for(target: float) -> float:
    """The standard deviation of normal logits whose softmax has an entropy, in nats."""
    normal = torch.randn(20, CODES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = 0.0, 30.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if entropy(middle * normal) > target else (low, middle)
    return low


def changed(ways: list[Draw], spread: float, moved: float, draws: int) -> list[float]:
    """The share of draws that each way makes otherwise once the logits are moved."""
    counts = np.zeros(len(ways))
    chance = torch.Generator().manual_seed(1)
    step = torch.tensor([0])
    for first in range(0, draws, 50):
        logits = spread * torch.randn(50, CODES, generator=chance, dtype=torch.float64)
        other = logits + moved * torch.randn(50, CODES, generator=chance, dtype=torch.float64)
        noise = gumbel(keys(range(first, first + 50)), step, CODES)
        for number, way in enumerate(ways):
            same = way(logits.log_softmax(-1), noise) == way(other.log_softmax(-1), noise)
            counts[number] += int((~same).sum())
    return [float(count) / draws for count in counts]


def kept(way: Draw, before: str, after: str, prompts: list[str]) -> float:
    """The share of images whose tokens two models draw alike."""
    rows = []
    with mock.patch("gapbench.models.autoregressive.draw.draw", way):
        for name in (before, after):
            model = load_model(name)
            drawn = []
            for first in range(0, len(prompts), 64):
                some = prompts[first : first + 64]
                drawn += [d.tokens for d in model.generate(some, range(first, first + len(some)))]
            rows.append(np.stack([tokens for tokens in drawn if tokens is not None]))
            model.release()
    return float((rows[0] == rows[1]).all(1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=4000)
    parser.add_argument("--before", default="janus-mini")
    parser.add_argument("--after")
    parser.add_argument("--prompts", type=int, default=440)
    args = parser.parse_args()
    ways: list[Draw] = [inverted, draw]
    print("entropy  moved by  inverse CDF  Gumbel-max, share of draws that change")
    for target, moved in ((6.7, 0.01), (6.7, 0.05), (4.5, 0.01), (4.5, 0.05), (2.5, 0.05)):
        shares = changed(ways, spread_for(target), moved, args.draws)
        print(f"{target:7} {moved:9} {shares[0]:12.4f} {shares[1]:11.4f}")
    if args.after:
        texts = [prompt.text for prompt in load_task("shapes").prompts()[: args.prompts]]
        same = [kept(way, args.before, args.after, texts) for way in ways]
        print(
            f"images with the same tokens, {args.before} and {args.after}: "
            f"{100 * same[0]:.1f} % by inverse CDF, {100 * same[1]:.1f} % by Gumbel-max"
        )


if __name__ == "__main__":
    main()
