"""lm-eval's own evaluator on models of gapbench's, and what `gapbench compare` makes of it."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from here import end
from safetensors.torch import load_file, save_file
from stubs import Stub

import gapbench
from gapbench import GapbenchError
from gapbench.comparison import compare as comparison
from gapbench.comparison.words import render
from gapbench.judges.pixel import read
from gapbench.lmeval.regression import Elsewhere
from gapbench.metrics.paired import scored
from gapbench.models import load_model
from gapbench.models.registry import MODELS
from gapbench.tasks.prompts.questions import MOST, WORDS, Kind, questions
from gapbench.tasks.world import COLORS

Cli = Callable[..., subprocess.CompletedProcess[str]]
KINDS: tuple[Kind, ...] = ("color", "count", "presence")
LIMIT = 12


def logs(folder: Path, task: str) -> list[dict[str, Any]]:
    [file] = folder.glob(f"samples_{task}_2*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def results(folder: Path) -> dict[str, Any]:
    [file] = folder.glob("results_*.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def refused(done: subprocess.CompletedProcess[str], *culprits: str) -> None:
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("gapbench: ")]
    assert all(culprit in line for culprit in culprits), line
    assert "Traceback" not in done.stderr


def test_figures_are_what_the_model_answers_when_gapbench_asks(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said, told = end(
        capfd, "lm-eval", "janus-mini", "--tasks", "gapbench_shapes", "--limit", str(LIMIT),
        "--batch-size", "5", "--out", "out", "--offline",
    )  # fmt: skip
    assert code is None, told
    folder = tmp_path / "out" / "janus-mini"
    assert str(Path("out", "janus-mini")) in said
    found = results(folder)
    model = load_model("janus-mini")
    assert found["config"]["fingerprint"] == model.fingerprint
    every = []
    for kind in KINDS:
        asked = questions(kind)[:LIMIT]
        images, words = [q["image"] for q in asked], [q["question"] for q in asked]
        if kind == "presence":
            scores = model.judge(images, words, (" no", " yes"))
            right = (scores.argmax(1) == [q["answer"] for q in asked]).astype(float)
        else:
            replies = model.reply(images, words)
            right = np.array([float(r == q["answer"]) for r, q in zip(replies, asked, strict=True)])
        task = f"gapbench_shapes_{kind}"
        logged = sorted(logs(folder, task), key=lambda sample: sample["doc_id"])
        assert [s["doc"]["question"] for s in logged] == words
        assert [s["acc"] for s in logged] == right.tolist()
        if kind == "presence":
            own = [[float(resp[0][0]) for resp in s["resps"]] for s in logged]
            assert np.abs(np.array(own) - scores).max() < 1e-9
            best = [[resp[0][1] == "True" for resp in s["resps"]] for s in logged]
            # The likeliest text of all is one of the two answers, the likelier, or neither.
            for greedy, scored in zip(best, own, strict=True):
                assert [n for n, said in enumerate(greedy) if said] in (
                    [],
                    [int(np.argmax(scored))],
                )
        else:
            assert [s["resps"] for s in logged] == [[[reply]] for reply in replies]
        assert found["results"][task]["acc,none"] == pytest.approx(right.mean())
        every.append(right)
    assert found["groups"]["gapbench_shapes"]["acc,none"] == pytest.approx(np.mean(every))
    assert np.mean(every) > 0.3  # answers, not noise
    model.release()


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of the 15,000 files of lm-eval's own tasks, which take minutes to read
    from a disk."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(folder / "manager.py"))
    return folder


@pytest.mark.usefixtures("theirs")
def test_lm_evals_own_command_line_with_our_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gapbench.lmeval.harness import TASKS

    args = ("--model", "gapbench", "--model_args", "model=janus-mini", "--tasks",
            "gapbench_shapes_color", "--include_path", str(TASKS), "--limit", "6", "--log_samples",
            "--apply_chat_template", "--output_path", "out")  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LMEVAL_LOG_LEVEL", "ERROR")
    with patch.object(sys, "argv", ["lm-eval", *args]), patch.dict(os.environ):
        runpy.run_module("gapbench.lmeval", run_name="__main__")
    model = load_model("janus-mini")
    asked = questions("color")[:6]
    said = model.reply([q["image"] for q in asked], [q["question"] for q in asked])
    logged = logs(tmp_path / "out" / "janus-mini", "gapbench_shapes_color")
    assert [s["resps"] for s in logged] == [[[reply]] for reply in said]


def test_questions_have_one_answer_and_are_always_the_same() -> None:
    for kind in KINDS:
        asked = questions(kind, 60)
        for one, two in zip(asked, questions(kind, 60), strict=True):
            assert one["image"].tobytes() == two["image"].tobytes()
            assert (one["question"], one["answer"]) == (two["question"], two["answer"])
            sprites, faults = read(np.asarray(one["image"]))
            assert not faults
            words = one["question"].rstrip("?").split()
            there = [(s.color, s.shape) for s in sprites.values()]
            if kind == "color":
                assert [color for color, shape in there if shape == words[-1]] == [one["answer"]]
            elif kind == "count":
                shapes = [shape for _, shape in there]
                assert WORDS[shapes.count(words[-1])] == one["answer"]
            else:
                assert ((words[-2], words[-1]) in there) == one["answer"]
        answers = [q["answer"] for q in asked]
        if kind == "color":
            assert set(answers) <= set(COLORS)
            assert len(set(answers)) == len(COLORS)
        elif kind == "count":
            assert set(answers) <= set(WORDS[: MOST + 1])
            assert len(set(answers)) >= 3
        else:
            assert answers.count(1) == 30


def test_scores_and_words_are_transformers_own(tiny_janus: Path, tiny_emu3: Path) -> None:
    """Several images in a text, none in another: forward passes of the class itself say it."""
    pictures = [q["image"] for q in questions("color", 3)]
    images, endings = [pictures[:2], [], pictures[2:]], [" a red", " The score is 1", " b"]
    asked = ["<image>x<image> y", "describe", "<image>what?"]
    for folder in (tiny_janus, tiny_emu3):
        model: Any = load_model(str(folder))
        module, processor = (
            (model.network, model.processor())
            if folder == tiny_janus
            else (model.module("und"), model.processor("und"))
        )

        def read(text: str, own: list[Any], more: tuple[int, ...] = ()) -> tuple[Any, Any]:
            batch = dict(processor(text=[text], images=own or None, return_tensors="pt"))  # noqa: B023
            ids = torch.cat([batch["input_ids"], torch.tensor([more]).long()], 1)
            batch |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if own:
                batch["pixel_values"] = batch["pixel_values"].to(module.dtype)  # noqa: B023
            with torch.inference_mode():
                return ids[0], module(**batch).logits[0].log_softmax(-1)  # noqa: B023

        texts = [model.chat([{"role": "user", "content": text}]) for text in asked]
        found, said = model.score(images, texts, endings), model.complete(images, texts, 3)
        for place, (own, text) in enumerate(zip(images, texts, strict=True)):
            start = len(read(text, own)[0])
            ids, logits = read(text + endings[place], own)
            tail, before = ids[start:], logits[start - 1 : -1]
            total = float(before.gather(1, tail[:, None]).sum())
            assert found[place][0] == pytest.approx(total, abs=1e-7)
            assert found[place][1] == before.argmax(-1).equal(tail)
            tokens: tuple[int, ...] = ()
            while len(tokens) < 3 and 2 not in tokens:
                tokens += (int(read(text, own, tokens)[1][-1].argmax()),)
            assert said[place] == processor.tokenizer.decode(tokens, skip_special_tokens=True)
        assert len(said[0]) > 1
        assert model.complete(images, texts, 3, ["no", said[0][1]])[0] == said[0][:1]
        model.release()


def test_a_chat_keeps_its_turns_and_the_answers_blank(tiny_janus: Path) -> None:
    from gapbench.lmeval.harness import GapbenchLM

    lm = GapbenchLM(str(tiny_janus), batch_size=2)
    history = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>what?"},
        {"role": "assistant", "content": "a circle"},
        {"role": "user", "content": "and <image>?"},
    ]
    text = lm.apply_chat_template(history)
    assert text == (
        "User: Be brief.\n\n<image_placeholder>\nwhat?\n\nAssistant: a circle\n\n"
        "User: and <image_placeholder>\n?\n\nAssistant: "
    )
    begun = [*history, {"role": "assistant", "content": "It is"}]
    assert lm.apply_chat_template(begun, add_generation_prompt=False) == f"{text}It is"


OWN = {
    "broken": "custom_dataset: !function data.broken\noutput_type: generate_until",
    "rolling": "custom_dataset: !function data.docs\noutput_type: loglikelihood_rolling",
    "hot": "custom_dataset: !function data.docs\noutput_type: generate_until\n"
    "generation_kwargs: {do_sample: true, temperature: 0.7, until: []}",
    "long": "custom_dataset: !function data.docs\noutput_type: generate_until\n"
    "generation_kwargs: {max_gen_toks: 2000, until: []}",
    "unsafe": "custom_dataset: !function data.docs\noutput_type: generate_until\nunsafe_code: true",
}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of tasks that cannot be run."""
    folder = tmp_path / "own"
    folder.mkdir()
    for name, spec in OWN.items():
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\n{spec}\ntest_split: test\ndoc_to_text: q\ndoc_to_target: a\n"
        )
    (folder / "data.py").write_text(
        "from datasets import Dataset\n\n"
        "def docs(**_):\n    return {'test': Dataset.from_list([{'q': 'why?', 'a': 'so'}])}\n\n"
        "def broken(**_):\n    raise RuntimeError('no picture of that name')\n"
    )
    return folder


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("broken", "task broken cannot be loaded: RuntimeError: no picture of that name"),
        ("rolling", r"perplexities of whole documents \(loglikelihood_rolling\)"),
        ("hot", "samples its answers .* --gen_kwargs do_sample=False"),
        ("long", "up to 2000 more, it has room for 1024"),
        ("unsafe", "task unsafe runs code that a model writes"),
    ],
)
def test_a_task_that_cannot_be_run_is_told(
    own: Path, tmp_path: Path, task: str, words: str
) -> None:
    from gapbench.lmeval.harness import evaluate

    with pytest.raises(GapbenchError, match=words):
        evaluate(load_model("janus-mini"), "janus-mini", [task], tmp_path / "out", include=own)
    assert not list((tmp_path / "out").iterdir())


def test_bad_input_is_told_in_one_line(cli: Cli, theirs: Path, tmp_path: Path) -> None:
    from gapbench.lmeval.harness import GapbenchLM, evaluate

    refused(cli("lm-eval", "janus-mini", "--tasks", "a,,b"), "--tasks must be a list with commas")
    (tmp_path / "file").write_text("")
    mini = load_model("janus-mini")
    with pytest.raises(GapbenchError, match="file cannot be written"):
        evaluate(mini, "janus-mini", ["gapbench_shapes"], tmp_path / "file")
    with pytest.raises(GapbenchError, match=r"no task 'gapbench_shape'; .*lm-eval ls tasks"):
        evaluate(mini, "janus-mini", ["gapbench_shape"], tmp_path / "out")
    (theirs / "known.yaml").write_text("task: known\ncustom_dataset: !function nowhere.docs")
    with pytest.raises(GapbenchError, match="task known cannot be loaded"):
        evaluate(mini, "janus-mini", ["known"], tmp_path / "out")
    with pytest.raises(GapbenchError, match="nowhere: no such folder"):
        evaluate(mini, "janus-mini", ["x"], tmp_path / "out", include=tmp_path / "nowhere")
    with pytest.raises(GapbenchError, match="lacks text: lm-eval cannot ask it"):
        GapbenchLM(Stub())
    with pytest.raises(GapbenchError, match="batch_size auto: give a number"):
        GapbenchLM("janus-mini", batch_size="auto")


def test_without_lm_eval_it_says_what_to_install(cli: Cli, tmp_path: Path) -> None:
    hide = "import sys; sys.modules['lm_eval'] = None; sys.path_importer_cache.clear()"
    code = (
        f"{hide}\nimport importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'lm_eval' else find(name, *a)\n"
        "from gapbench.cli.main import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "lm-eval", "janus-mini", "--tasks", "gapbench_shapes"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    refused(done, "lm-eval is not installed", 'pip install "gapbench[lm-eval]"')


def altered(folder: Path, noise: float) -> Path:
    """A copy of janus-mini; the language model's matrices get noise of so many spreads."""
    shutil.copytree(MODELS["janus-mini"].folder or "", folder)
    weights = load_file(folder / "model.safetensors")
    stream = torch.Generator().manual_seed(0)
    for name, weight in weights.items():
        if "language_model" in name and weight.ndim == 2:
            step = torch.randn(weight.shape, generator=stream) * weight.float().std() * noise
            weights[name] = weight + step.to(weight.dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_compare_tests_scores_question_by_question(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    broken = altered(tmp_path / "broken", 2)
    runs = tmp_path / "runs"
    for model in ("janus-mini", str(broken)):
        gapbench.run(model, limit=4, samples=1, out=runs)
    before, after = sorted(runs.iterdir(), key=lambda run: run.name.startswith("broken"))
    moved = tmp_path / "elsewhere"
    broken.rename(moved)
    args = ("compare", f"runs/{before.name}", f"runs/{after.name}", "--lm-eval",
            "gapbench_shapes,gapbench_shapes_color", "--lm-eval-limit", "20")  # fmt: skip

    def again(*models: str) -> comparison.Comparison:
        tasks = ("gapbench_shapes", "gapbench_shapes_color")
        asked = [Elsewhere("lm-eval", tasks, 20)]
        [found] = comparison.compare(before, [after], elsewhere=asked, models=models)
        return found

    with pytest.raises(GapbenchError, match=r"broken.*give its folder or name with --model"):
        again()
    code, said, told = end(capfd, *args, "--model", "elsewhere", "--gate")
    assert code == 1, told
    assert "gapbench_shapes_color: acc" in said
    assert "Significantly worse: " in said

    # The same command again evaluates nothing, and needs no model.
    shutil.rmtree(moved)
    found = again()
    assert render([found], "text") + "\n" == said.replace("runs/", f"{tmp_path}/runs/")
    figures = {c.metric: c for c in found.changes}
    group, leaf = figures["gapbench_shapes: acc"], figures["gapbench_shapes_color: acc"]
    assert (group.images, leaf.images) == (60, 20)
    assert leaf.difference is not None
    assert leaf.p is not None
    assert leaf.p_holm is not None
    assert leaf.difference < -0.3
    assert "gapbench_shapes_color: acc" in found.worse
    # One family with generation and the others.
    ps = sorted((c.p, c.p_holm) for c in found.changes if c.p is not None and c.p_holm is not None)
    assert len(ps) > 2
    assert ps[0][1] == min(1, ps[0][0] * len(ps))
    assert "gapbench_shapes_color: acc" in render([found, found], "markdown").split("\n\n")[1]

    # The rows are lm-eval's own figures, kept beside each run, and the test is that of the logs.
    sides = []
    for run, value in ((before, leaf.before), (after, leaf.after)):
        assert len(list((run / "lm-eval").iterdir())) == 2
        [folder] = (run / "lm-eval").glob("gapbench_shapes_color-*/*")
        assert value == results(folder)["results"]["gapbench_shapes_color"]["acc,none"]
        logged = sorted(logs(folder, "gapbench_shapes_color"), key=lambda s: s["doc_id"])
        sides.append([s["acc"] for s in logged])
    tested = scored("gapbench_shapes_color: acc", [sides[0]], [sides[1]])
    assert (tested.p, tested.low) == (leaf.p, leaf.low)

    # Other questions than before are refused, and a log that is cut is told.
    [file] = (after / "lm-eval").glob("gapbench_shapes_color-*/*/samples_*")
    lines = file.read_text()
    file.write_text(lines.replace("what colour is the", "what color is the", 1))
    with pytest.raises(GapbenchError, match="asked different questions; remove"):
        again()
    file.write_text(lines[: len(lines) // 2])
    with pytest.raises(GapbenchError, match=r"cannot be read .* remove the folder"):
        again()


def test_scores_are_tested_as_verdicts_are() -> None:
    rng = np.random.default_rng(0)
    old = rng.random(40) < 0.5
    same = scored("acc", [old], [old])
    assert (same.difference, same.p, same.verdict) == (0, 1, 0)
    better = scored("acc", [np.zeros(40)], [np.ones(40)])
    assert better.p is not None
    assert better.p < 0.001
    assert (better.before, better.after, better.images, better.prompts) == (0, 1, 40, 40)
    # Parts weigh equally, and where less is better a rise is a worsening.
    parts = scored("err", [[0.0] * 30, [0.0] * 10], [[0.5] * 30, [1.0] * 10], lower_is_better=True)
    assert parts.after == pytest.approx(0.75)
    from gapbench.metrics.paired import adjusted

    assert adjusted([parts])[0].verdict == -1
