"""The counter-based noise: the published generator, and what its users count on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency, gumbel_r, kstest

from gapbench.models.autoregressive.noise import WORD, gumbel, keys, philox

STEP = torch.tensor([0])


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((WORD,) * 4, (WORD,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_known_vectors_of_philox4x32_10(
    counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]
) -> None:
    """Random123 1.14, kat_vectors."""
    made = philox([torch.tensor([c]) for c in counter], [torch.tensor([k]) for k in key])
    assert tuple(map(int, made)) == words


def test_the_noise_of_a_seed_is_pinned() -> None:
    """A change of these numbers is another sampler and needs another name."""
    noise = gumbel(keys([2**63 - 1]), torch.tensor([7]), 5, stream=1)
    expected = [
        -0.6164384871972879,
        2.4636846020486143,
        -0.9592816019677531,
        -0.5466858280780699,
        -0.6793608314599622,
    ]
    np.testing.assert_allclose(noise[0].numpy(), expected, rtol=0, atol=1e-12)


def test_a_row_depends_on_its_seed_step_and_stream_alone() -> None:
    seeds = [3, 2**40, 5, 2**63 - 1]
    together = gumbel(keys(seeds), STEP, 50)
    for place, seed in enumerate(seeds):
        assert torch.equal(gumbel(keys([seed]), STEP, 50)[0], together[place])
    assert torch.equal(gumbel(keys(seeds), STEP, 13), together[:, :13])
    torch.manual_seed(3)
    before = torch.get_rng_state()
    gumbel(keys(seeds), STEP, 50)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_number_of_threads_changes_nothing() -> None:
    threads, made = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            made.append(gumbel(keys(range(64)), STEP, 4096))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*made)


def test_the_noise_is_gumbels() -> None:
    noise = gumbel(keys(range(100)), STEP, 1000)
    assert kstest(noise.flatten().numpy(), gumbel_r.cdf).pvalue > 0.01


@pytest.mark.parametrize("kind", ["codes", "steps", "streams", "seeds", "high seeds"])
def test_neighbours_are_independent(kind: str) -> None:
    """Of words next to one another, and of their lowest bits, in every direction."""
    count = 40_000
    seeds = keys(range(count // 4))
    one = gumbel(seeds, STEP, 4)
    two = {
        "codes": lambda: gumbel(seeds, STEP, 5)[:, 1:],
        "steps": lambda: gumbel(seeds, STEP + 1, 4),
        "streams": lambda: gumbel(seeds, STEP, 4, stream=1),
        "seeds": lambda: gumbel(keys(range(1, count // 4 + 1)), STEP, 4),
        "high seeds": lambda: gumbel(keys([s + 2**32 for s in range(count // 4)]), STEP, 4),
    }[kind]()
    assert not torch.equal(one, two)
    shares = [np.exp(-np.exp(-noise.flatten().numpy())) for noise in (one, two)]
    for cut in (8, 2**20):  # eighths, and the 18th to 20th bit
        first, second = ((share * cut).astype(int) % 8 for share in shares)
        table = np.bincount(8 * first + second, minlength=64).reshape(8, 8)
        assert chi2_contingency(table).pvalue > 0.001
