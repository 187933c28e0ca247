"""The Triton kernels in Triton's interpreter against the same functions in torch."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from types import ModuleType

import pytest
import torch
from torch import Tensor

from gapbench.models.autoregressive import plain
from gapbench.models.autoregressive.layers import causal
from gapbench.models.autoregressive.noise import keys

ROWS, HEADS, GROUPS, WIDTH, ROOM = 5, 4, 2, 24, 200
PLACES = torch.tensor([0, 3, 64, 130, 199])
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 0.05, torch.float64: 1e-14}
Draw = partial[Tensor]
COMPILE = """
import triton.language as tl
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from gapbench.models.autoregressive import kernels

POINTERS = {"places": "*i64", "step": "*i64", "out": "*fp64"}
NUMBERS = ("width", "heads", "groups", "room", "each", "codes", "stream")
CONSTANTS = {
    "_add_norm": {"EPS": 1e-6, "SIZE": 2048},
    "_rotate_and_keep": {"HALF": 64, "SIZE": 64, "HEADS": kernels.HEADS},
    "_attend": {
        "SCALE": 0.1, "EACH": 1, "WIDTH": 128, "SIZE": 128, "TILE": 32, "STAGES": kernels.STAGES
    },
    "_swiglu": {"SIZE": 1024},
    "_gumbel": {"ROUNDS": 10, "SIZE": kernels.WORDS},
}
for name, constants in CONSTANTS.items():
    kernel, noise = getattr(kernels, name), name == "_gumbel"
    constants |= {} if noise else {"WIDE": tl.float32}
    own = {**POINTERS, "keys": "*i64"} if noise else {"places": "*i64"}
    signature = {
        argument: "constexpr" if argument in constants
        else "i32" if argument in NUMBERS else own.get(argument, "*bf16")
        for argument in kernel.arg_names
    }
    where = {(kernel.arg_names.index(key),): value for key, value in constants.items()}
    made = compile(ASTSource(kernel, signature, where), target=GPUTarget("cuda", 90, 32))
    print(name, len(made.asm["cubin"]) > 0)
"""


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    from gapbench.models.autoregressive import kernels

    return kernels


@pytest.fixture(params=TOLERANCE, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    kind: torch.dtype = request.param
    return kind


def random(dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(one: Tensor, two: Tensor, tolerance: float = 0.0) -> None:
    tolerance = tolerance or TOLERANCE[one.dtype]
    torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)


def test_add_norm(kernels: ModuleType, dtype: torch.dtype) -> None:
    given = random(dtype, ROWS, 48), random(dtype, ROWS, 48, seed=1), random(dtype, 48, seed=2)
    (total, normed), (wanted, wanted_norm) = (
        ops.add_norm(*given, 1e-6) for ops in (kernels, plain)
    )
    close(total, wanted)
    # The norm of float64 is in float32, whose sum depends on the machine's vectors.
    close(normed, wanted_norm, max(1e-6, TOLERANCE[dtype]))


def test_rotate_and_keep(kernels: ModuleType, dtype: torch.dtype) -> None:
    joined = random(dtype, ROWS, (HEADS + 2 * GROUPS) * WIDTH)
    cos, sin = random(dtype, 2, ROOM, WIDTH, seed=1)
    mine, theirs = (random(dtype, 2, ROWS, GROUPS, ROOM, WIDTH, seed=2) for _ in range(2))
    before = mine.clone()
    close(
        kernels.rotate_and_keep(joined, cos, sin, PLACES, *mine),
        plain.rotate_and_keep(joined, cos, sin, PLACES, *theirs),
    )
    close(mine, theirs)
    changed = (mine != before).any(-1).nonzero()
    assert {(int(row), int(place)) for _, row, _, place in changed} == set(
        enumerate(PLACES.tolist())
    )


def test_several_tokens_of_a_row_are_rotated_and_kept(
    kernels: ModuleType, dtype: torch.dtype
) -> None:
    joined = random(dtype, ROWS * 3, (HEADS + 2 * GROUPS) * WIDTH)
    cos, sin = random(dtype, 2, ROOM, WIDTH, seed=1)
    places = torch.arange(2, 5).repeat(ROWS)
    mine, theirs, single = (random(dtype, 2, ROWS, GROUPS, ROOM, WIDTH, seed=2) for _ in range(3))
    query = kernels.rotate_and_keep(joined, cos, sin, places, *mine)
    close(query, plain.rotate_and_keep(joined, cos, sin, places, *theirs))
    close(mine, theirs)
    for token in range(3):
        one = joined[token::3].contiguous()
        own = kernels.rotate_and_keep(one, cos, sin, places[token::3].contiguous(), *single)
        assert torch.equal(own, query[token::3])
    assert torch.equal(single, mine)


@pytest.mark.parametrize("tokens", [1, 3, 8])
def test_attention_of_a_rows_last_tokens(tokens: int) -> None:
    query = random(torch.float64, ROWS * tokens, HEADS, WIDTH)
    keys_, values = random(torch.float64, 2, ROWS, GROUPS, 8, WIDTH, seed=1)
    found = causal(query, keys_, values, 0.3).view(ROWS, tokens, HEADS, WIDTH)
    for row in range(ROWS):
        for token in range(tokens):
            for head in range(HEADS):
                group, seen = head // (HEADS // GROUPS), 8 - tokens + token + 1
                match = keys_[row, group, :seen] @ query[row * tokens + token, head] * 0.3
                wanted = match.softmax(0) @ values[row, group, :seen]
                close(found[row, token, head], wanted, 1e-9)


def test_attend(kernels: ModuleType, dtype: torch.dtype) -> None:
    query = random(dtype, ROWS, HEADS, WIDTH)
    held = random(dtype, 2, ROWS, GROUPS, ROOM, WIDTH, seed=1)
    given = (PLACES, WIDTH**-0.5, ROOM)
    close(kernels.attend(query, *held, *given), plain.attend(query, *held, *given))


def test_attention_does_not_see_other_rows_or_empty_places(
    kernels: ModuleType, dtype: torch.dtype
) -> None:
    query = random(dtype, ROWS, HEADS, WIDTH)
    held = random(dtype, 2, ROWS, GROUPS, ROOM, WIDTH, seed=1)
    together = kernels.attend(query, *held, PLACES, 0.2, ROOM)
    for row, place in enumerate(PLACES.tolist()):
        alone = held[:, row : row + 1, :, : place + 1].contiguous()
        own = kernels.attend(query[row : row + 1], *alone, PLACES[row : row + 1], 0.2, place + 1)
        assert torch.equal(own[0], together[row])


def test_swiglu(kernels: ModuleType, dtype: torch.dtype) -> None:
    joined = random(dtype, ROWS, 2 * 1500)
    close(kernels.swiglu(joined), plain.swiglu(joined))


@pytest.mark.parametrize("codes", [1, 130, 2050])
def test_gumbel_noise_is_the_same_numbers(kernels: ModuleType, codes: int) -> None:
    rows, step = keys([0, 2**40 + 5, 2**63 - 1]), torch.tensor([7])
    close(kernels.gumbel(rows, step, codes, 1), plain.gumbel(rows, step, codes, 1))


def test_they_compile_for_an_h100() -> None:
    """Triton's own compiler needs no GPU for it."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    said = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, env=env, check=False
    )
    assert said.stdout.split() == [
        word
        for name in ("_add_norm", "_rotate_and_keep", "_attend", "_swiglu", "_gumbel")
        for word in (name, "True")
    ], said.stderr
