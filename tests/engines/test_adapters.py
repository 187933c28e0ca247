# ruff: noqa: E501 (bodies of classes, a line each)
"""Adapters that misbehave in every way: `run` and `check-model` end right, or in one line that says
where. `--fuzz 1000` tries all of them."""

from __future__ import annotations

import importlib
from itertools import product
from pathlib import Path

import pytest
from here import end

import gapbench

HEAD = """
import os, sys, threading, time, numpy as np
from PIL import Image
from gapbench.models.base import Batches, Drawing, Model

FINE = Image.new("RGB", (24, 24))

def drawing(image=FINE, tokens=None, prompt="p", logprob=None):
    return Drawing(image, tokens, prompt, logprob)

class Own(Exception):
    def __str__(self):
        raise ValueError("no words")

class Toy(Model):
    name, fingerprint, recipe = "toy", "toy-0001", {"temperature": 1.0}
    capabilities = frozenset({"generate", "judge_logits"})

    def __init__(self, device="auto", dtype="auto"):
        pass

    def generate(self, prompts, seeds):
        shade = lambda text, seed: (seed % 251, len(text) % 251, seed // 251 % 251)
        return [drawing(Image.new("RGB", (24, 24), shade(t, s)), prompt=t)
                for t, s in zip(prompts, seeds)]

    def judge(self, images, questions, answers):
        return np.log(np.tile([0.9, 0.1], (len(images), 1)))

class Odd(Toy):
"""
ROWS = [
    "drawing(FINE.convert('CMYK'))", "drawing(FINE.convert('F'))", "drawing(FINE.convert('L'))",
    "drawing(FINE.convert('RGBA'))", "drawing(FINE.convert('I;16'))", "drawing(FINE.convert('P'))",
    "drawing(FINE.convert('1'))", "drawing(FINE.convert('HSV'))", "drawing(FINE.convert('LAB'))",
    "drawing(Image.new('RGB', (0, 5)))", "drawing(Image.new('RGB', (9000, 9000)))",
    "drawing(np.zeros((24, 24, 3), np.uint8))", "drawing(np.zeros((3, 24, 24)))", "drawing(None)",
    "drawing('x.png')", "drawing(b'png')", "drawing(tokens=np.zeros((2, 3), np.int32))",
    "drawing(tokens=np.zeros(3))", "drawing(tokens=[1])", "drawing(tokens=np.array('a'))",
    "drawing(prompt=None)", "drawing(prompt=b'x')", "drawing(prompt='\\ud800')",
    "drawing(prompt='x' * 10**6)", "drawing(logprob=0.5)", "drawing(logprob=float('nan'))",
    "drawing(logprob=-float('inf'))", "drawing(logprob='-1')", "drawing(logprob=np.float32(-1))",
    "drawing(logprob=np.array(-1.0))", "drawing(logprob=True)", "FINE", "None", "7", "'x'",
    "(FINE, None, 'p', None)", "{'image': FINE}", "Drawing", "drawing(Image.Image())",
]  # fmt: skip
BATCHES = [
    "rows[1:]", "rows + rows", "[]", "None", "7", "'ab'", "iter(rows)", "(r for r in rows)",
    "(r for r in rows[:1])", "{0: rows[0]}", "set()", "tuple(rows)", "rows[0]", "map(None, rows)",
    "np.array([r.image for r in rows])", "{i: r for i, r in enumerate(rows)}", "range(len(rows))",
]  # fmt: skip
LOGPROBS = [
    "np.zeros((n, 3))", "np.zeros(n)", "np.zeros((n, 2, 1))", "np.zeros((0, 2))", "np.zeros((n, 0))",
    "np.full((n, 2), np.nan)", "np.full((n, 2), 0.5)", "np.full((n, 2), np.inf)",
    "np.full((n, 2), -np.inf)", "np.log(np.full((n, 2), 0.9))", "np.full((n, 2), 1j)", "None",
    "'no'", "[['a', 'b']] * n", "[[1], [2, 3]]", "[[None, None]] * n", "iter([])", "{}", "7",
    "[[-1, -2]] * (n - 1)", "[[-1, -2]] * (n + 1)", "np.full((n, 2), True)", "[(-1.0, -2.0)] * n",
    "np.full((2, n), -1.0)", "np.array([[object(), 1]] * n)",
]  # fmt: skip
RAISED = [
    "ValueError('bad')", "KeyError('k')", "RuntimeError('CUDA error')", "OSError(28, 'full')",
    "StopIteration()", "GeneratorExit()", "KeyboardInterrupt()", "SystemExit(0)", "SystemExit('x')",
    "os._Environ", "MemoryError()", "RecursionError()", "AssertionError()", "Own()",
    "ValueError('two\\nlines\\x1b[2J')", "UnicodeDecodeError('utf-8', b'x', 0, 1, 'no')",
    "BrokenPipeError()", "ExceptionGroup('g', [ValueError('in')])", "NotImplementedError()",
    "BaseException('base')",
]  # fmt: skip
PLACES = ["__init__", "load", "generate", "judge", "refuses", "release"]
SAYS = [
    "name = None", "name = 7", "name = ''", "name = '../x'", "name = 'a\\nb'", "name = 'x' * 300",
    "fingerprint = None", "fingerprint = b'x'", "fingerprint = object()", "recipe = None",
    "recipe = []", "recipe = {1: 2}", "recipe = {'a': object()}", "recipe = {'a': float('nan')}",
    "recipe = {'a': np.float32(1)}", "capabilities = None", "capabilities = ['generate']",
    "capabilities = frozenset()", "capabilities = 'generate'", "capabilities = {'fly'}",
    "batches = None", "batches = (0, 0)", "batches = (-1, 4)", "batches = (4,)", "batches = 8",
    "batches = (2.5, 4)", "batches = (8, 4)", "device = 7", "dtype = object()", "versions = 3",
    "pair = 'yes'", "def refuses(self, text): return 7", "def refuses(self, text): return True",
    "def refuses(self): pass", "def check_seeds(self, prompt, seed): return 7",
    "def check_seeds(self, prompt, seed): raise KeyError('seed')", "def load(self, more): pass",
    "def served(self): return 7", "def __getattr__(self, name): raise KeyError(name)",
    "def __init__(self): pass", "generate = None", "judge = 7", "def generate(self): pass",
    "def generate(self, prompts, seeds): print('hello', file=sys.stderr); return super().generate(prompts, seeds)",
    "def generate(self, prompts, seeds): time.sleep(0.1); return super().generate(prompts, seeds)",
    "def generate(self, prompts, seeds): out = super().generate(prompts, seeds); prompts.clear(); seeds.clear(); return out",
    "def generate(self, prompts, seeds): threading.Thread(target=lambda: 1 / 0).start(); return super().generate(prompts, seeds)",
    "def generate(self, prompts, seeds): os.chdir('/'); return super().generate(prompts, seeds)",
    "def generate(self, prompts, seeds): np.random.seed(0); return super().generate(prompts, seeds)",
    "def judge(self, images, questions, answers): [i.paste(0, (0, 0, 9, 9)) for i in images]; return super().judge(images, questions, answers)",
    "def judge(self, images, questions, answers): images.clear(); return np.zeros((0, 2))",
]  # fmt: skip
BODIES = [
    *(f"def generate(self, prompts, seeds): return [{row} for _ in prompts]" for row in ROWS),
    *(f"def generate(self, prompts, seeds): rows = super().generate(prompts, seeds); return {said}" for said in BATCHES),
    *(f"def judge(self, images, questions, answers): n = len(images); return {odds}" for odds in LOGPROBS),
    *(f"def {place}(self, *args, **more): raise {error}" for place, error in product(PLACES, RAISED)),
    *SAYS,
]  # fmt: skip
PACKAGE = str(Path(gapbench.__file__).parent)


def fault(capfd: pytest.CaptureFixture[str], command: str, model: str, folder: Path) -> str | None:
    """What is wrong with how a command ended, if anything."""
    options = ("--tasks", "shapes/colors", "--limit", "3", "--samples", "1", "--out", str(folder))
    arguments = ("--model", model, *options) if command == "run" else (model,)
    try:
        code, out, err = end(capfd, command, *arguments)
    except BaseException as error:
        capfd.readouterr()
        return f"a traceback: {type(error).__name__}: {error!r:.100}"
    last = next(iter(err.splitlines()[::-1]), "")
    right = "Pictures: " if command == "run" else " keeps "
    if code in (None, 0, 1) and right not in out:
        return f"exit {code} without a result"
    if code == 130 and "KeyboardInterrupt" in (folder.parent / f"{model[:-4]}.py").read_text():
        return None  # as Ctrl-C ends it
    if code not in (None, 0, 1) and not last.startswith("gapbench: "):
        return f"exit {code} without a word: {err[-200:]}"
    if "in _bootstrap_inner" not in err and "Traceback" in err:
        return "a traceback"
    told = out + last if command == "check-model" else last
    told = told.replace("Odd.", "odd_")  # Python names the method whose arguments do not fit
    if (f"({PACKAGE}" in told and "odd_" not in told) or (
        "--traceback" in last and "odd_" not in told
    ):
        return "ours: " + next(x for x in (out + err).splitlines() if PACKAGE in x or x == last)
    return None


@pytest.mark.parametrize("command", ["run", "check-model"])
def test_misbehaving_adapters(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str], cases: int,
) -> None:  # fmt: skip
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    chosen = BODIES[:: max(1, 5 * len(BODIES) // cases)] if cases < 5 * len(BODIES) else BODIES
    for number, body in enumerate(chosen):
        name = f"odd_{command[:3]}{number}"
        (tmp_path / f"{name}.py").write_text(f"{HEAD}    {body}\n")
    importlib.invalidate_caches()
    wrong = {}
    for number, body in enumerate(chosen):
        model = f"odd_{command[:3]}{number}:Odd"
        if said := fault(capfd, command, model, tmp_path / str(number)):
            wrong[body] = said
    told = "".join(f"\n{body}\n    {said}" for body, said in wrong.items())
    with capfd.disabled():
        right = len(chosen) - len(wrong)
        print(f"\n{command}: {right} of {len(chosen)} end right or in one line{told}")
    assert not wrong
