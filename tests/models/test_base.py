"""The contract of an adapter: its defaults, what is required, and who is told what is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import gapbench
from gapbench import GapbenchError, load_model
from gapbench.adapters import with_defaults
from gapbench.engines import local
from gapbench.models.base import (
    CAPABILITIES,
    REQUIRED,
    Batches,
    Drawing,
    Model,
    check_drawing,
    has_own,
)
from gapbench.types import Answer, Generation, Unfinished

Cli = Callable[..., subprocess.CompletedProcess[str]]
OLD = """
import numpy as np
from PIL import Image

from gapbench.models.base import Drawing


class Old:
    name, fingerprint, recipe = "old", "old-0001", {}
    capabilities = frozenset({"generate", "judge_logits"})
    parts = {"own": ".+"}

    def __init__(self, device="auto", dtype="auto"):
        self.loaded = 0

    @property
    def network(self):
        raise AssertionError("nobody asked for weights")

    def generate(self, prompts, seeds):
        noise = [np.random.default_rng(seed).integers(0, 256, (24, 24, 3)) for seed in seeds]
        images = [Image.fromarray(pixels.astype(np.uint8)) for pixels in noise]
        return [Drawing(i, None, p, None) for i, p in zip(images, prompts, strict=True)]

    def judge(self, images, questions, answers):
        return np.log(np.full((len(images), 2), 0.5))


class Nameless(Old):
    @property
    def name(self):
        raise AttributeError("name")


class Idle:
    pass
"""


class Tried(Model):
    """Draws noise, and moves a clock on by `each` seconds an image."""

    name, fingerprint = "tried", "tried-0001"
    capabilities = frozenset({"generate", "judge_logits"})

    def __init__(self, each: float = 0.0, look: Callable[[], object] = lambda: None) -> None:
        self.recipe: dict[str, Any] = {}
        self.each, self.look, self.now = each, look, 0.0
        self.drawn: list[int] = []
        self.judged: list[int] = []
        self.seen: list[object] = []

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawing]:
        self.drawn.append(len(prompts))
        self.seen.append(self.look())
        self.now += self.each * len(prompts)
        noise = [np.random.default_rng(s).integers(0, 256, (24, 24, 3), np.uint8) for s in seeds]
        return [
            Drawing(Image.fromarray(pixels), None, prompt, None)
            for pixels, prompt in zip(noise, prompts, strict=True)
        ]

    def judge(self, images: Sequence[Image.Image], questions: Any, answers: Any) -> Any:
        self.judged.append(len(images))
        yes = np.array([np.asarray(image).mean() / 256 for image in images])
        return np.log(np.stack([1 - yes, yes], 1))


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "old_adapter.py").write_text(OLD)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(gapbench.__file__).parents[1]}")
    monkeypatch.delitem(sys.modules, "old_adapter", raising=False)
    return "old_adapter:Old"


def images_of(run: gapbench.Run) -> set[str]:
    return {generation.image for generation in run.folder.generations().values()}


def test_an_adapter_without_the_base_class_gets_its_defaults(old: str, tmp_path: Path) -> None:
    model = load_model(old)
    assert (model.device, model.dtype, model.versions, model.pair) == (None, None, None, False)
    assert model.batches == Batches(1, 64)
    assert model.refuses("anything") is None
    assert model.parts == {"own": ".+"}
    with pytest.raises(GapbenchError, match="model old lacks lora: its adapter has no adapt"):
        model.adapt(tmp_path)
    run = gapbench.run(old, "shapes", samples=1, limit=4, judges=[], out=tmp_path / "runs")
    about = json.loads((run.path / "run.json").read_text())["model_about"]
    assert [about[key] for key in ("device", "dtype", "versions", "pair")] == [
        None, None, None, False,
    ]  # fmt: skip


def test_a_made_adapter_without_the_base_class_runs_too(old: str, tmp_path: Path) -> None:
    load_model(old)
    made = sys.modules["old_adapter"].Old()
    run = gapbench.run(made, "shapes", samples=1, limit=4, judges=[], out=tmp_path / "made")
    named = gapbench.run(old, "shapes", samples=1, limit=4, judges=[], out=tmp_path / "named")
    assert images_of(run) == images_of(named)
    assert run.rates() == named.rates()


def test_what_is_required_and_missing_is_named_in_one_line(
    cli: Cli, old: str, tmp_path: Path
) -> None:
    words = "Idle has no generate or judge or reply; see gapbench.models.base.Model"
    done = cli("run", "--model", "old_adapter:Idle")
    assert done.returncode == 2
    assert done.stderr.strip() == f"gapbench: model old_adapter:Idle: {words}"
    load_model(old)
    module = sys.modules["old_adapter"]
    for made, said in (
        (module.Idle(), f"model Idle: {words}"),
        (module.Old, "model type: it is a class; give an object of it, Old"),
        (module.Nameless(), "model Nameless: .*'name'"),
    ):
        with pytest.raises(GapbenchError, match=said):
            gapbench.run(made, out=tmp_path / "runs")


def test_each_capability_stands_for_members_of_the_contract() -> None:
    methods = [method for each in CAPABILITIES.values() for method in each.methods]
    assert len(set(methods)) == len(methods)
    model = Tried()
    for name, capability in CAPABILITIES.items():
        for method in capability.methods:
            assert has_own(model, method) == (name in model.capabilities)
    with pytest.raises(GapbenchError, match="model tried lacks train: its adapter has no network"):
        _ = model.network


@pytest.mark.parametrize(
    ("command", "lacks"),
    [
        ("run --verdict text --model", "judge_text: --verdict text needs it"),
        ("fix sft --out fixed --model", "generation_loss, train: gapbench fix cannot train"),
        ("lm-eval --tasks gapbench_shapes", "text: lm-eval cannot ask it"),
    ],
)
def test_a_command_names_the_capability_that_it_misses(
    cli: Cli, old: str, tmp_path: Path, command: str, lacks: str
) -> None:
    done = cli(*command.split(), old)
    assert done.returncode == 2
    assert done.stderr.startswith(f"gapbench: model old lacks {lacks}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_verdicts_of_a_batch_that_failed_in_part_are_read_too() -> None:
    class Ailing(Tried):
        def judge(self, images: Any, questions: Any, answers: Any) -> Any:
            raise Unfinished("it is not well", {1: np.log([0.25, 0.75])})

        def reply(self, images: Any, questions: Any) -> list[str]:
            raise Unfinished("it is not well", {0: "The score is 1"})

    for words, place, p_yes in ((False, 1, 0.75), (True, 0, None)):
        with pytest.raises(Unfinished, match="it is not well") as caught:
            Ailing().answers([], [], words)
        assert list(caught.value.done) == [place]
        answer: Answer = caught.value.done[place]
        assert answer.verdict == 1
        assert answer.p_yes == (None if p_yes is None else pytest.approx(p_yes))


def test_a_slow_adapter_shows_and_stores_early_and_draws_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"tasks": "shapes", "samples": 1, "limit": 30, "judges": []}
    shown: list[int] = []

    def progress(stage: str, there: int, total: int) -> Callable[[int], None]:
        return shown.append if stage == "images" else lambda _count: None

    def stored() -> tuple[int, int]:
        [folder] = (tmp_path / "slow").iterdir()
        file = folder / "generations.jsonl"
        return (file.read_text().count("\n") if file.exists() else 0, sum(shown))

    slow = Tried(each=0.05, look=stored)
    monkeypatch.setattr(local, "PATIENCE", 0.45)
    monkeypatch.setattr(local, "monotonic", lambda: slow.now)
    run = gapbench.run(slow, **options, out=tmp_path / "slow", progress=progress)
    assert slow.drawn == [1, 2, 4, 8, 8, 7]
    assert shown == slow.drawn
    for call, counts in enumerate(slow.seen):
        # While a batch is drawn the one before it may still be on its way to the disk.
        least, most = sum(slow.drawn[: max(0, call - 1)]), sum(slow.drawn[:call])
        assert all(least <= count <= most for count in counts)  # type: ignore[attr-defined]
    fast = Tried()
    other = gapbench.run(fast, **options, out=tmp_path / "fast")
    assert fast.drawn == [1, 2, 4, 8, 15]
    whole = Tried()
    gapbench.run(whole, **options, batch_size=64, out=tmp_path / "whole")
    assert whole.drawn == [30]
    assert images_of(run) == images_of(other)
    assert run.rates() == other.rates()


def test_an_adapter_says_how_many_images_it_wants(tmp_path: Path) -> None:
    model = Tried()
    model.batches = Batches(4, 10)
    run = gapbench.run(model, "shapes", samples=1, limit=30, judges=[], out=tmp_path)
    assert model.drawn == [4, 8, 10, 8]
    assert model.judged[:3] == [4, 8, 10]
    drawn: list[Generation] = list(run.folder.generations().values())
    assert len(drawn) == 30


def test_seeds_that_are_not_heeded_stand_in_the_run(tmp_path: Path) -> None:
    class Deaf(Tried):
        def check_seeds(self, prompt: str, seed: int) -> str | None:
            return "two images differ"

    run = gapbench.run(Deaf(), "shapes", samples=1, limit=2, judges=[], out=tmp_path)
    assert run.folder.read("checks.json") == {"the model's seeds": "two images differ"}


def test_batches_that_are_no_pair_are_told_before_a_run() -> None:
    said = {"name": "m", "fingerprint": "0" * 8, "recipe": {}, "generate": print}
    with pytest.raises(GapbenchError, match=r"m: its batches are 4, not Batches\(first, most\)"):
        with_defaults(SimpleNamespace(**said, batches=4), Model, REQUIRED, "m")
    assert with_defaults(SimpleNamespace(**said), Model, REQUIRED, "m").batches == (1, 64)


@pytest.mark.parametrize(
    "latents", [np.zeros((4, 8), np.float32), np.zeros((4, 8, 8)), [[[0.0]]], "none"]
)
def test_latents_of_another_form_are_refused(latents: Any) -> None:
    image = Image.new("RGB", (4, 4))
    check_drawing(Drawing(image, latents=np.zeros((4, 8, 8), np.float32)))
    with pytest.raises(ValueError, match="channels, height, width"):
        check_drawing(Drawing(image, latents=latents))
