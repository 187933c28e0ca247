"""Entries of the empirical neural tangent kernel (eNTK), contracted, by per-sample gradients.

For a pair Y = (prompt y, image x) let z(Y) be the (T, V) logits of the image's tokens, teacher
forced, log p(Y) their log-likelihood and v(Y) the verdict logit, log p(yes) - log p(no) for the
question about (x, y). A step of SGD on a training pair Yu moves the parameters by eta * g_u with
g_u = grad log p(Yu) = J(Yu)^T r_u, r_u being the residual (one-hot less softmax). To first order

    the change of log p(Y) is  eta * <grad log p(Y), g_u>  =  eta * r^T K(Y, Yu) r_u,
    the change of v(Y) is      eta * <grad v(Y), g_u>,
    the change of z(Y) is      eta * J(Y) g_u  =  eta * K(Y, Yu) r_u,

where K(Y, Yu) = J(Y) J(Yu)^T is the paper's kernel, (T V) x (T V). The first two are inner products
of gradients and the third one Jacobian-vector product: all are exact, no block of K is ever held.
Source: paper, section 4; arXiv 2407.10490 for the decomposition.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from gapbench.models.base import Model
from gapbench.verdict import ANSWERS

Gradient = list[Tensor | None]
"""A tensor for each parameter, in their order; None where a scalar does not depend on it."""
Tokens = NDArray[np.int32]
STEPS: Final = (1e-4, 1e-5, 1e-6, 1e-7)
"""Lengths of the single steps of the first-order check, as shares of the parameters' norm."""
_LAYER: Final = re.compile(r"\.layers\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a step of length 1 along a direction does, to first order, to B sequences.

    `norms` (B,) are Frobenius norms of the change of the (T, V) logits, `by_layer` (layers, B) the
    same where only one layer moves, `likelihood` (B,) the change of the log-likelihood in nats.
    """

    norms: NDArray[np.float64]
    by_layer: NDArray[np.float64]
    likelihood: NDArray[np.float64]


class Heads(nn.Module):
    """A model's two heads as functions of some of its parameters.

    `parameters` are those that training moves, by their names in `network`, which is the network
    that `model` runs through.
    """

    def __init__(self, model: Model, network: nn.Module, moved: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.network, self.moved = network, dict(moved)
        self._model = model
        keys = [layer_of(name) for name in self.moved]
        self.layers = list(dict.fromkeys(keys))
        self._places = [self.layers.index(key) for key in keys]
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        for parameter in self.moved.values():
            parameter.requires_grad_(True)

    @property
    def size(self) -> int:
        """How many numbers the parameters are."""
        return sum(parameter.numel() for parameter in self.moved.values())

    def forward(self, prompts: Sequence[str], tokens: Tokens) -> Tensor:
        return self._model.image_logits(prompts, tokens)

    # -- scalars ---------------------------------------------------------------------------

    def likelihoods(self, prompts: Sequence[str], tokens: Tokens) -> Tensor:
        """log p(image | prompt) in nats of B prompts with (B, T) tokens: (B,)."""
        return -self._model.generation_loss(prompts, tokens, [0] * len(tokens)).double()

    def verdicts(self, images: Sequence[Image.Image], questions: Sequence[str]) -> Tensor:
        """log p(yes) - log p(no) in nats for B images, each with its question: (B,)."""
        no, yes = self._model.answer_logprobs(images, questions, ANSWERS).unbind(1)
        return yes - no

    # -- gradients -------------------------------------------------------------------------

    def gradient(self, scalar: Tensor) -> Gradient:
        """Of a scalar by the parameters."""
        return list(torch.autograd.grad(scalar, list(self.moved.values()), allow_unused=True))

    def of_likelihood(self, prompt: str, tokens: Tokens) -> Gradient:
        """grad log p(image | prompt), tokens (T,)."""
        return self.gradient(self.likelihoods([prompt], tokens[None]).squeeze())

    def of_verdict(self, image: Image.Image, question: str) -> Gradient:
        """grad v."""
        return self.gradient(self.verdicts([image], [question]).squeeze())

    def inner(self, one: Gradient, two: Gradient) -> NDArray[np.float64]:
        """Inner products by layer, (layers,); their sum is the whole one."""
        products = np.zeros(len(self.layers))
        for place, a, b in zip(self._places, one, two, strict=True):
            if a is not None and b is not None:
                products[place] += float((a.double() * b.double()).sum())
        return products

    # -- logits ----------------------------------------------------------------------------

    def push(self, prompts: Sequence[str], tokens: Tokens, direction: Gradient) -> Pushed:
        """K(Y, Yu) r_u for B sequences (B, T), by forward-mode Jacobian-vector products: one along
        the whole of `direction` (g_u) and one for each layer of it."""
        whole = set(range(len(self.layers)))
        logits, change = self._jvp(prompts, tokens, direction, whole)
        target = torch.from_numpy(tokens).long().to(change.device).unsqueeze(2)
        mean = (logits.softmax(-1) * change).sum(-1)
        likelihood = (change.gather(2, target).squeeze(2) - mean).sum(1)
        by_layer = [
            _norms(self._jvp(prompts, tokens, direction, {place})[1])
            for place in range(len(self.layers))
        ]
        return Pushed(_norms(change), np.stack(by_layer), likelihood.cpu().numpy())

    def norms(
        self, prompts: Sequence[str], tokens: Tokens, direction: Gradient
    ) -> NDArray[np.float64]:
        """The `norms` of `push` alone."""
        return _norms(self._jvp(prompts, tokens, direction, set(range(len(self.layers))))[1])

    def _jvp(
        self, prompts: Sequence[str], tokens: Tokens, direction: Gradient, layers: set[int]
    ) -> tuple[Tensor, Tensor]:
        """Logits and their change, float64; only torch's plain attention has forward mode."""
        with (
            warnings.catch_warnings(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH),
            torch.no_grad(),
        ):  # fmt: skip
            warnings.filterwarnings("ignore", ".*torch.jit.script", DeprecationWarning)
            duals: dict[str, Tensor] = {}
            for (name, parameter), place, part in zip(
                self.moved.items(), self._places, direction, strict=True
            ):
                if part is not None and place in layers:
                    tangent = part.to(parameter.dtype)
                    dual = forward_ad.make_dual(parameter.detach(), tangent)  # type: ignore[no-untyped-call]
                    duals[f"network.{name}"] = dual
            made = torch.func.functional_call(self, duals, (prompts, tokens))
            unpacked: Any = forward_ad.unpack_dual(made)  # type: ignore[no-untyped-call]
            change = torch.zeros_like(made) if unpacked.tangent is None else unpacked.tangent
            return unpacked.primal.double(), change.double()

    # -- steps -----------------------------------------------------------------------------

    @contextmanager
    def stepped(self, direction: Gradient, share: float) -> Iterator[float]:
        """The parameters after one step along `direction`, whose length is `share` of the
        parameters' own norm (of 1 where they are all 0, as projected ones are); gives eta. They are
        as they were afterwards, bit by bit."""
        old = [parameter.detach().clone() for parameter in self.moved.values()]
        length = sum(float(p.double().square().sum()) for p in old) ** 0.5 or 1.0
        steep = float(self.inner(direction, direction).sum()) ** 0.5
        eta = share * length / steep if steep else 0.0
        try:
            with torch.no_grad():
                for parameter, part in zip(self.moved.values(), direction, strict=True):
                    if part is not None:
                        parameter.add_(part, alpha=eta)
            yield eta
        finally:
            with torch.no_grad():
                for parameter, kept in zip(self.moved.values(), old, strict=True):
                    parameter.copy_(kept)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of SGD on a training pair: what the kernel predicts of a tested pair, and what
    happened, in nats."""

    share: float
    eta: float
    head: str
    predicted: float
    actual: float


def first_order(
    heads: Heads,
    tested: tuple[str, Tokens, Image.Image, str],
    trained: tuple[str, Tokens],
    shares: Sequence[float] = STEPS,
) -> list[Step]:
    """Single steps on `trained` (prompt, tokens) of shrinking length, and how far the kernel
    predicts what they do to `tested` (prompt, tokens, image, question)."""
    prompt, tokens, image, question = tested
    step = heads.of_likelihood(*trained)

    def values() -> dict[str, float]:
        with torch.no_grad():
            return {
                "likelihood": float(heads.likelihoods([prompt], tokens[None])),
                "verdict": float(heads.verdicts([image], [question])),
            }

    slopes = {
        "likelihood": heads.inner(heads.of_likelihood(prompt, tokens), step).sum(),
        "verdict": heads.inner(heads.of_verdict(image, question), step).sum(),
    }
    start, steps = values(), []
    for share in shares:
        with heads.stepped(step, share) as eta:
            end = values()
        steps += [
            Step(share, eta, head, float(eta * slope), end[head] - start[head])
            for head, slope in slopes.items()
        ]
    return steps


def layer_of(name: str) -> str:
    """The layer that a parameter belongs to, as it is printed."""
    match = _LAYER.search(name)
    if match:
        return f"layer {match[1]}"
    return "embeddings" if "embed" in name else "final norm" if "norm" in name else "other"


def _norms(change: Tensor) -> NDArray[np.float64]:
    norms: NDArray[np.float64] = change.flatten(1).norm(dim=1).cpu().numpy()
    return norms
