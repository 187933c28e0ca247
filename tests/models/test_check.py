"""check-model: gapbench's models and the docs' template keep the contract, broken ones do not."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gapbench import load_model
from gapbench.models.check import Finding, check

Cli = Callable[..., subprocess.CompletedProcess[str]]
DOCS = Path(__file__).parents[2] / "docs" / "own-model.md"
TOYS = '''
import numpy as np
import torch
from pathlib import Path
from safetensors.torch import load_file, save_file

from gapbench.models.base import CAPABILITIES, Drawing
from my_model import Image, MyModel


class Toy(MyModel):
    """A table of weights: 16 tokens of 8 shades, each from the one before."""

    capabilities = frozenset(CAPABILITIES)
    codes = 8

    def __init__(self, device="auto", dtype="auto", recipe=None, folder=None):
        super().__init__(device, dtype, recipe)
        self.dtype = "float64"
        start = torch.Generator().manual_seed(0)
        self.weights = torch.randn(8, 8, generator=start, dtype=torch.float64)
        if folder is not None:
            self.weights = load_file(folder / "toy.safetensors")["weights"]
        self.weights.requires_grad_()

    def draws(self, seed):
        return np.random.default_rng(seed).random(16)

    def generate(self, prompts, seeds):
        return [self.one(p, self.draws(s)) for p, s in zip(prompts, seeds, strict=True)]

    def one(self, prompt, points):
        tokens, last = [], len(prompt) % 8
        for point in points:
            logits = self.weights.detach()[last] / max(self.recipe["temperature"], 1e-12)
            edges = logits.softmax(0).cumsum(0)
            last = min(int(torch.searchsorted(edges, torch.tensor(point), right=True)), 7)
            tokens.append(last)
        shades = np.array(tokens, np.uint8).reshape(4, 4, 1).repeat(3, 2) * 36
        return Drawing(Image.fromarray(shades), np.array(tokens, np.int32), prompt, None)

    def image_logprobs(self, prompts, tokens, unconditional=False):
        tokens = torch.from_numpy(np.asarray(tokens)).long()
        first = torch.tensor([[len(prompt) % 8] for prompt in prompts])
        before = torch.cat([first, tokens[:, :-1]], 1)
        logprobs = self.weights[before].log_softmax(-1)
        return logprobs.gather(2, tokens[..., None])[..., 0]

    def save(self, folder):
        save_file({"weights": self.weights.detach().clone()}, Path(folder) / "toy.safetensors")

    def chat(self, turns):
        return "".join(turn["content"] for turn in turns)

    def complete(self, images, texts, tokens, until=()):
        words = [f"{len(i)} of {len(t)}"[:tokens] for i, t in zip(images, texts, strict=True)]
        return ["" if until and w.startswith(until[0]) else w for w in words]

    def score(self, images, texts, endings):
        return [(-len(t + e) / 9, e == " yes") for t, e in zip(texts, endings, strict=True)]


class Crowded(Toy):
    def score(self, images, texts, endings):
        return [(p - len(texts), g) for p, g in super().score(images, texts, endings)]


class Endless(Toy):
    def complete(self, images, texts, tokens, until=()):
        return super().complete(images, texts, tokens)


class OneStream(Toy):
    def generate(self, prompts, seeds):
        points = np.random.default_rng(seeds[0]).random((len(seeds), 16))
        return [self.one(p, row) for p, row in zip(prompts, points, strict=True)]


class GlobalState(Toy):
    def draws(self, seed):
        return np.random.random(16)


class Deaf(Toy):
    def draws(self, seed):
        return np.random.default_rng(0).random(16)


class Sociable(Toy):
    def judge(self, images, questions, answers):
        scores = super().judge(images, questions, answers)
        return scores - abs(scores.mean(0, keepdims=True))


class Generous(Toy):
    def image_logprobs(self, prompts, tokens, unconditional=False):
        return super().image_logprobs(prompts, tokens) / 2


class Forgetful(Toy):
    def save(self, folder):
        save_file({"weights": torch.eye(8, dtype=torch.float64)}, Path(folder) / "toy.safetensors")


class Feverish(Toy):
    def generate(self, prompts, seeds):
        said, self.recipe = self.recipe, {"temperature": 1.0}
        try:
            return super().generate(prompts, seeds)
        finally:
            self.recipe = said


class Boastful(MyModel):
    capabilities = frozenset({"generate", "judge_logits", "judge_text", "image_tokens", "fly"})


class Stubborn(Toy):
    def refuses(self, text):
        raise KeyError(text)
'''


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The docs' template as my_model.py, and adapters around it, importable."""
    found = re.search(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    (tmp_path / "my_model.py").write_text(found[1])
    (tmp_path / "toys.py").write_text(TOYS)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{before}")
    for name in ("my_model", "toys"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    return tmp_path


def findings(name: str, **changes: object) -> list[Finding]:
    return list(check(name, lambda n, more: load_model(n, recipe={**changes, **more})))


def failures(name: str, **changes: object) -> dict[str, str]:
    return {f.rule: f.failure for f in findings(name, **changes) if f.failure}


def test_the_docs_template_is_short_and_keeps_the_contract(cli: Cli, toys: Path) -> None:
    lines = (toys / "my_model.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 42
    done = cli("check-model", "my_model:MyModel")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout
    assert "skip  tokens and images belong together: it lacks image_tokens" in done.stdout


def test_a_run_with_ones_own_model(cli: Cli, toys: Path) -> None:
    args = ("run", "--model", "my_model:MyModel", "--limit", "2", "--samples", "1")
    for setting in ((), ("--set", "temperature=0.5")):
        done = cli(*args, *setting)
        assert done.returncode == 0, done.stderr
        assert "my-model on shapes" in done.stdout
    assert len(list((toys / "runs").iterdir())) == 2  # another recipe, another run


def test_a_whole_toy_keeps_every_rule(toys: Path) -> None:
    found = findings("toys:Toy")
    assert [f for f in found if f.failure or f.skipped] == []
    assert len(found) >= 15


@pytest.mark.parametrize(
    ("name", "rule", "words"),
    [
        ("OneStream", "an image does not depend on its batch", "is another image alone"),
        ("OneStream", "equal seeds", "one prompt with one seed gave two images in a batch"),
        ("GlobalState", "global random state", "torch's or NumPy's global random state"),
        ("Deaf", "equal seeds", "two seeds gave the same image"),
        ("Sociable", "a verdict does not depend on its batch", "log-probabilities alone differ by"),
        ("Generous", "sum to one", "over all 8 tokens the probabilities sum to"),
        ("Forgetful", "a saved model is the same", "the saved model draws other images"),
        ("Feverish", "at temperature 0", "at temperature 0 two seeds gave two images"),
        ("Boastful", "describes itself", "capability 'fly' is none of generate"),
        ("Boastful", "tokens and images", "it says image_tokens, and a drawing has none"),
        ("Stubborn", "refuses a prompt", "it raised KeyError"),
        ("Crowded", "a text does not depend on its batch", "alone an ending's log-probability is"),
        ("Endless", "a text does not depend on its batch", "asked to stop at '1', it says '1 of"),
    ],
)  # fmt: skip
def test_broken_adapters_fail_in_the_right_words(
    toys: Path, name: str, rule: str, words: str
) -> None:
    broken = failures(f"toys:{name}")
    [said] = [failure for found, failure in broken.items() if rule in found]
    assert words in said
    if name not in ("OneStream", "GlobalState", "Boastful"):
        assert len(broken) == 1, broken


def test_failures_exit_with_1(cli: Cli, toys: Path) -> None:
    done = cli("check-model", "toys:Feverish")
    assert done.returncode == 1
    assert "FAIL  at temperature 0 the likeliest is drawn" in done.stdout
    assert "toys:Feverish keeps 14 of the 15 rules" in done.stdout
    absent = cli("check-model", "toys:Nobody")
    assert (absent.returncode, absent.stderr.count("\n")) == (2, 1)
    assert "toys has no 'Nobody'" in absent.stderr


def test_janus_mini_keeps_the_contract() -> None:
    assert [f for f in findings("janus-mini") if f.failure or f.skipped] == []


def test_tiny_checkpoints_keep_the_contract(
    tiny_janus: Path, tiny_original: Path, tiny_emu3: Path
) -> None:
    for folder, changes in (
        (tiny_janus, {}),
        (tiny_original, {}),
        (tiny_emu3, {"image_area": 1024}),
    ):
        found = findings(str(folder), **changes)
        assert [f for f in found if f.failure or f.skipped] == [], folder
