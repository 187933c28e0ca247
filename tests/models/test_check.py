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
from gapbench.models.base import CAPABILITIES
from gapbench.models.check import Finding, check

Cli = Callable[..., subprocess.CompletedProcess[str]]
DOCS = Path(__file__).parents[2] / "docs" / "own-model.md"
TOYS = '''
import numpy as np
import torch
from pathlib import Path
from safetensors.torch import load_file, save_file

from gapbench.models import lora
from gapbench.models.base import CAPABILITIES, Drawing
from my_model import Image, MyModel


class Table(torch.nn.Module):
    device = "cpu"

    def __init__(self, weights):
        super().__init__()
        self.rows = torch.nn.Linear(8, 8, bias=False, dtype=torch.float64)
        self.rows.weight = torch.nn.Parameter(weights)


class Toy(MyModel):
    """A table of weights: 16 tokens of 8 shades, each from the one before."""

    capabilities = frozenset(CAPABILITIES) - {"image_latents"}
    codes = 8
    likelihood = True
    network = None
    parts = {"language-model": "rows.+"}

    def __init__(self, device="auto", dtype="auto", recipe=None, folder=None):
        super().__init__(device, dtype, recipe)
        self.dtype = "float64"
        start = torch.Generator().manual_seed(0)
        weights = torch.randn(8, 8, generator=start, dtype=torch.float64)
        if folder is not None:
            weights = load_file(folder / "toy.safetensors")["weights"]
        self.network = Table(weights)

    @property
    def weights(self):
        return self.network.rows.weight

    def use(self, network):
        self.network = network

    def adapt(self, folder):
        self.fingerprint = lora.fingerprint(self.fingerprint, folder)
        lora.merge("toy", self.network, folder)

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

    def image_logits(self, prompts, tokens):
        tokens = torch.from_numpy(np.asarray(tokens)).long()
        first = torch.tensor([[len(prompt) % 8] for prompt in prompts])
        return self.weights[torch.cat([first, tokens[:, :-1]], 1)]

    def generation_loss(self, prompts, drawings, noise, unconditional=False):
        logprobs = self.image_logits(prompts, drawings).log_softmax(-1)
        return -logprobs.gather(2, torch.from_numpy(drawings).long()[..., None]).sum((1, 2))

    def answer_logprobs(self, images, questions, answers):
        return torch.from_numpy(self.judge(images, questions, answers)) + 0 * self.weights.sum()

    def embed_texts(self, texts):
        return np.array([[len(text), 1.0] for text in texts])

    def embed_images(self, images):
        return np.array([np.asarray(image).mean((0, 1)) for image in images])

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


class Brief(Toy):
    fingerprint = "brief"


class Listed(Toy):
    capabilities = [*Toy.capabilities]


class Short(Toy):
    def answers(self, images, questions, words):
        return super().answers(images, questions, words)[1:]


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
    def generation_loss(self, *given):
        return super().generation_loss(*given) / 2


class Noisy(Toy):
    def generation_loss(self, prompts, drawings, noise, unconditional=False):
        jitter = [np.random.default_rng(seed).random() for seed in noise]
        return super().generation_loss(prompts, drawings, noise) * torch.tensor(jitter)


class Exact(Toy):
    likelihood = False


class Loud(Toy):
    def generation_loss(self, *given):
        return super().generation_loss(*given) + torch.rand(())


class Mixed(Toy):
    def generation_loss(self, *given):
        return super().generation_loss(*given).mean().expand(len(given[0]))


class Foreseeing(Toy):
    def image_logits(self, prompts, tokens):
        return super().image_logits(prompts, tokens[:, ::-1].copy())


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


class Steep(Toy):
    def image_logits(self, prompts, tokens):
        return super().image_logits(prompts, tokens).detach()


class Otherwise(Toy):
    def answer_logprobs(self, images, questions, answers):
        return super().answer_logprobs(images, questions, answers) - 1


class Huddled(Toy):
    def embed_images(self, images):
        embedded = super().embed_images(images)
        return embedded - embedded.mean(0)


class Faithless(Toy):
    def use(self, network):
        self.network = Table(network.rows.weight.detach() / 9)


class Partless(Toy):
    parts = {"language-model": "layers.+"}


class Unmoved(Toy):
    def adapt(self, folder):
        pass


class Bent(Toy):
    def adapt(self, folder):
        super().adapt(folder)
        self.network = Table(self.weights.detach() / 9)


class Hungry(Toy):
    batches = (0, 64)


class Mute(MyModel):
    capabilities = frozenset({"generate", "judge_logits", "text"})


class Boastful(MyModel):
    capabilities = frozenset(
        {"generate", "judge_logits", "judge_text", "image_tokens", "image_latents", "fly"}
    )


class Plain:
    """Of no base class, with what such adapters had to have and no more."""

    name, fingerprint, recipe = "plain", "plain-0001", {}
    capabilities = frozenset({"generate", "judge_text"})

    def __init__(self, device="auto", dtype="auto"):
        self.inner = MyModel()

    def load(self):
        pass

    def release(self):
        pass

    def refuses(self, text):
        return None

    def generate(self, prompts, seeds):
        return self.inner.generate(prompts, seeds)

    def judge(self, images, questions, answers):
        return self.inner.judge(images, questions, answers)


class Rude(MyModel):
    def generate(self, prompts, seeds):
        raise BaseException(prompts[0])

    def reply(self, images, questions):
        return [1] * len(images)


class Stubborn(Toy):
    def refuses(self, text):
        raise KeyError(text)
'''


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The docs' template as my_model.py, and adapters around it, importable."""
    _, whole, _flow = re.findall(
        r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL
    )
    (tmp_path / "my_model.py").write_text(whole)
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
    small = ("--tasks", "shapes", "--limit", "2", "--samples", "1", "--batch-size", "2")
    args = ("run", "--model", "my_model:MyModel", *small)
    for name, setting in (
        ("my-model", ()),
        ("my-model (temperature=0.5)", ("--set", "temperature=0.5")),
    ):
        done = cli(*args, *setting)
        assert done.returncode == 0, done.stderr
        assert f"{name} on shapes" in done.stdout
    assert len(list((toys / "runs").iterdir())) == 2  # another recipe, another run


def test_a_whole_toy_keeps_every_rule(toys: Path) -> None:
    found = findings("toys:Toy")
    assert [f.skipped for f in found if f.failure or f.skipped] == ["it lacks image_latents"]
    assert len(found) >= 15


@pytest.mark.parametrize(
    ("name", "rule", "words"),
    [
        ("OneStream", "an image does not depend on its batch", "is another image alone"),
        ("OneStream", "equal seeds", "one prompt with one seed gave two images in a batch"),
        ("GlobalState", "global random state", "torch's or NumPy's global random state"),
        ("Deaf", "equal seeds", "two seeds gave the same image"),
        ("Sociable", "a verdict does not depend on its batch", "log-probabilities alone differ by"),
        ("Generous", "image logits give the likelihood", "off what the logits say"),
        ("Noisy", "a loss depends on", "it says likelihood = True, and noise changes its losses"),
        ("Exact", "a loss depends on", "noise changes no loss: is it exact?"),
        ("Loud", "a loss depends on", "torch's or NumPy's global random state"),
        ("Mixed", "a loss depends on", "alone a loss is"),
        ("Foreseeing", "image logits give the likelihood", "depend on later tokens"),
        ("Forgetful", "a saved model is the same", "the saved model draws other images"),
        ("Feverish", "at temperature 0", "at temperature 0 two seeds gave two images"),
        ("Boastful", "describes itself", "capability 'fly' is not one of generate"),
        ("Boastful", "tokens and images", "it says image_tokens, and a drawing has none"),
        ("Boastful", "latents and images", "it says image_latents, and a drawing has none"),
        ("Steep", "have gradients", "logits or answers have no gradient"),
        ("Otherwise", "have gradients", "answer_logprobs is not what judge gives"),
        ("Huddled", "an embedding does not", "alone an embedding is"),
        ("Faithless", "a network in memory", "given to use() it draws other images"),
        ("Partless", "a network in memory", "no parameter's name fits its part 'language-model'"),
        ("Unmoved", "LoRA", "an adapter leaves its fingerprint"),
        ("Bent", "LoRA", "with an adapter that changes nothing it draws other images"),
        ("Brief", "describes itself", "its fingerprint has fewer than 8 characters"),
        ("Listed", "describes itself", "its capabilities are no frozenset"),
        ("Short", "answers have log-probabilities", "answers gave 2 rows for 3 images"),
        ("Hungry", "describes itself", "its batches are of 0 to 64 images"),
        ("Mute", "describes itself", "it says text and has no chat"),
        ("Mute", "a text does not", "lacks text: its adapter has no chat"),
        ("Plain", "describes itself", "it says judge_text and has no reply"),
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
    several = ("OneStream", "GlobalState", "Boastful", "Steep", "Faithless", "Mute", "Plain")
    several += ("Noisy", "Loud", "Mixed", "Foreseeing")
    if name not in several:
        assert len(broken) == 1, broken


def test_each_failure_is_told_once_with_its_line_and_ends_nothing(toys: Path) -> None:
    found = findings("toys:Rude")
    lines = (toys / "toys.py").read_text().splitlines()
    raised, reply = (
        1 + number
        for number, line in enumerate(lines)
        if "raise BaseException" in line or "return [1]" in line
    )
    assert {f.rule: f.failure for f in found if f.failure} == {
        "equal seeds, equal images; other seeds, other images": (
            f"it raised BaseException: a red circle ({toys / 'toys.py'}, line {raised})"
        ),
        "a reply does not depend on its batch": (
            f"a reply is a int, not a text ({toys / 'toys.py'}, line {reply - 1})"
        ),
    }
    again = "it fails as 'equal seeds, equal images; other seeds, other images' does"
    assert [f.skipped for f in found].count(again) == 5
    judged = next(f for f in found if f.rule == "answers have log-probabilities")
    assert judged.failure is judged.skipped is None  # on pictures of one color


def test_a_method_without_its_capability_is_pointed_out(toys: Path) -> None:
    skipped = {found.rule: found.skipped for found in findings("toys:Plain") if found.skipped}
    assert skipped["answers have log-probabilities"] == (
        "it lacks judge_logits, though it has judge: declare it if that works"
    )
    assert skipped["takes a LoRA adapter"] == "it lacks lora"


def test_the_docs_list_what_each_capability_needs() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name, _ in rows] == list(CAPABILITIES)
    for name, needs in rows:
        assert set(CAPABILITIES[name].methods) <= set(re.findall(r"`(\w+)`", needs))


def test_failures_exit_with_1(cli: Cli, toys: Path) -> None:
    done = cli("check-model", "toys:Feverish")
    assert done.returncode == 1
    assert "FAIL  at temperature 0 the likeliest is drawn" in done.stdout
    assert "toys:Feverish keeps 19 of the 20 rules" in done.stdout
    absent = cli("check-model", "toys:Nobody")
    assert (absent.returncode, absent.stderr.count("\n")) == (2, 1)
    assert "toys has no 'Nobody'" in absent.stderr


def test_janus_mini_keeps_the_contract() -> None:
    found = [f for f in findings("janus-mini") if f.failure or f.skipped]
    assert [f.skipped for f in found] == ["it lacks image_latents"]


def test_tiny_checkpoints_keep_the_contract(
    tiny_janus: Path, tiny_original: Path, tiny_emu3: Path
) -> None:
    """Show-o's is tried in models/showo/test_whole.py."""
    for folder, changes in (
        (tiny_janus, {}),
        (tiny_original, {}),
        (tiny_emu3, {"image_area": 1024}),
    ):
        found = findings(str(folder), **changes)
        assert [f for f in found if f.failure] == [], folder
        skipped = {f.skipped for f in found if f.skipped}
        pair = {"it is a pair", "it lacks embeddings"} if folder == tiny_emu3 else set()
        assert skipped == pair | {"it lacks image_latents"}, folder
