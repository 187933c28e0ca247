"""lmms-eval's own evaluator on models of gapbench's, offline, and what `gapbench compare` makes of
it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from here import end
from servers import Painter, Painting
from stubs import Stub

import gapbench
from gapbench import GapbenchError
from gapbench.models import load_model
from gapbench.tasks.prompts.questions import questions

pytest.importorskip("lmms_eval", reason='pip install "gapbench[lmms-eval]"')
pytestmark = pytest.mark.filterwarnings("ignore")  # lmms-eval's and its libraries' own

SPEC = """
task: {task}
dataset_path: {data}
dataset_kwargs: {{load_from_disk: true}}
test_split: test
output_type: {kind}
doc_to_visual: !function words.pictures
doc_to_text: !function words.{asked}
doc_to_target: {target}
{more}
"""
TASKS = {
    "colours": ("generate_until", "asked", "answer", (
        "generation_kwargs: {max_new_tokens: 8, temperature: 0, do_sample: false}\n"
        "process_results: !function words.results\n"
        "metric_list:\n"
        "  - {metric: right, aggregation: !function words.mean, higher_is_better: true}\n"
        "  - {metric: total, aggregation: !function words.total, higher_is_better: true}\n"
    )),
    "hot": ("generate_until", "asked", "answer", (
        "generation_kwargs: {temperature: 0.7, do_sample: true}\n"
        "process_results: !function words.results\n"
        "metric_list:\n"
        "  - {metric: right, aggregation: !function words.mean, higher_is_better: true}\n"
    )),
    "broken": ("generate_until", "wrong", "answer", "generation_kwargs: {max_new_tokens: 8}"),
}  # fmt: skip
WORDS = """
def pictures(doc):
    return [doc["image"].convert("RGB")]

def asked(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def wrong(doc, lmms_eval_specific_kwargs=None):
    raise KeyError("no question here")

def results(doc, said):
    right = float(said[0].strip() == doc["answer"])
    return {"right": {"question_id": doc["number"], "score": right}, "total": right}

def mean(rows):
    return sum(row["score"] for row in rows) / len(rows)

def total(rows):
    return 100 * sum(rows)
"""
COLOURS = ["red", "green", "blue", "yellow"]


@pytest.fixture(scope="module")
def asked() -> list[dict[str, Any]]:
    """Ten questions about the colour of a shape."""
    return [q for q in questions("color") if q["answer"] in COLOURS][:10]


@pytest.fixture(scope="module")
def include(tmp_path_factory: pytest.TempPathFactory, asked: list[dict[str, Any]]) -> Path:
    """A folder of tasks on a data set that is here."""
    folder = tmp_path_factory.mktemp("lmms")
    rows = [q | {"number": n} for n, q in enumerate(asked)]
    DatasetDict({"test": Dataset.from_list(rows)}).save_to_disk(str(folder / "data"))
    (folder / "tasks").mkdir()
    (folder / "tasks" / "words.py").write_text(WORDS)
    for task, (kind, question, target, more) in TASKS.items():
        text = SPEC.format(
            task=task, data=folder / "data", kind=kind, asked=question, target=target, more=more
        )
        (folder / "tasks" / f"{task}.yaml").write_text(text)
    return folder / "tasks"


def samples(folder: Path, task: str) -> list[dict[str, Any]]:
    lines = (folder / "lmms-eval" / f"samples_{task}_0.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_entry_point_gives_lmms_eval_the_model() -> None:
    from lmms_eval.models import get_model

    from gapbench.lmeval.lmms import GapbenchLmms

    assert get_model("gapbench") is GapbenchLmms
    lm = GapbenchLmms.create_from_arg_string(
        "model=janus-mini,dtype=float64",
        {"batch_size": 4, "max_batch_size": None, "device": None},
    )
    assert (lm.model.name, lm.batch_size) == ("janus-mini", 4)


def test_answers_are_those_that_gapbench_gets(
    include: Path, asked: list[dict[str, Any]], tmp_path: Path
) -> None:
    from lmms_eval.api.instance import Instance

    from gapbench.lmeval import lmms

    model = load_model("janus-mini")
    images, words = [q["image"] for q in asked], [q["question"] for q in asked]
    replies = model.reply(images, words)
    scores = model.judge(images, words, [f" {colour}" for colour in COLOURS])
    lmms.evaluate(model, ["colours"], tmp_path, include=include)
    logged = sorted(samples(tmp_path, "colours"), key=lambda sample: sample["doc_id"])
    assert [s["doc"]["question"] for s in logged] == words
    assert [s["resps"][0][0].strip() for s in logged] == [r.strip() for r in replies]
    right = [float(r.strip() == q["answer"]) for r, q in zip(replies, asked, strict=True)]
    assert 0 < sum(right) < len(right)
    assert [s["right"] for s in logged] == right
    told = json.loads((tmp_path / "lmms-eval" / "results_0.json").read_text())["results"]
    assert told["colours"]["right,none"] == pytest.approx(np.mean(right))
    # lmms-eval 0.7 turns log-likelihoods into text before its tasks read them: asked directly.
    lm = lmms.GapbenchLmms(model, batch_size=3)
    lm.task_dict = {"colours": {"test": asked}}
    pictures = lambda doc: [doc["image"]]  # noqa: E731
    requests = [
        Instance(
            "loglikelihood", (q["question"], ending, pictures, n, "colours", "test"), 0,
            {"task": "colours", "doc_id": n, "repeats": 1},
        )
        for n, q in enumerate(asked) for ending in (*COLOURS[1:], lambda _doc: f" {COLOURS[0]}")
    ]  # fmt: skip
    losses = np.array([loss for loss, _ in lm.loglikelihood(requests)]).reshape(-1, 4)
    assert np.abs(-losses - scores[:, [1, 2, 3, 0]]).max() < 1e-6


def test_compare_adds_rows(include: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
                           monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for samples_ in (1, 2):  # two runs of one model, in folders of their own
        gapbench.run("janus-mini", limit=4, samples=samples_, out=tmp_path / f"runs{samples_}")
    before, after = (next((tmp_path / f"runs{n}").iterdir()) for n in (1, 2))
    page = (Path(__file__).parents[2] / "docs/lmms-eval.md").read_text()
    [typed] = re.findall(r"^    gapbench (compare .+)$", page, flags=re.M)
    given = {
        "runs/BEFORE": str(before),
        "runs/AFTER": str(after),
        "pope,gqa": "colours",
        "500": "6",
    }
    line = [given.get(word, word) for word in typed.split()]
    line += ["--include-path", str(include), "--json"]
    code, out, err = end(capfd, *line)
    assert code is None, err
    [told] = json.loads(out)["comparisons"]
    rows = {c["metric"]: c for c in told["changes"]}
    row = rows["colours: right"]
    assert (row["images"], row["difference"]) == (6, 0)
    assert "colours: total" not in rows
    assert any("lmms-eval colours: total is no mean" in note for note in told["notes"])
    [folder] = (after / "lmms-eval").iterdir()
    assert row["after"] == np.mean([s["right"] for s in samples(folder, "colours")])
    # The same command again asks nothing.
    monkeypatch.setattr("gapbench.lmeval.lmms.evaluate", None)
    assert end(capfd, *line)[1] == out
    # Another task of that name is asked.
    other = tmp_path / "other"
    shutil.copytree(include, other)
    (other / "words.py").write_text(WORDS + "\n# changed\n")
    line[line.index(str(include))] = str(other)
    assert end(capfd, *line)[0] == 2


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("nothing", r"no task 'nothing'.*from PyPI comes without tasks.*--include-path"),
        ("hot", r"samples its answers .* --gen_kwargs do_sample=False"),
        ("broken", "lmms-eval broken: KeyError: .*no question here"),
    ],
)
def test_a_task_that_cannot_be_run_is_told(
    include: Path, tmp_path: Path, task: str, words: str
) -> None:
    from gapbench.lmeval import lmms

    with pytest.raises(GapbenchError, match=words):
        lmms.evaluate(load_model("janus-mini"), [task], tmp_path / "out", include=include)
    assert not (tmp_path / "out").exists()


def test_a_model_without_text_is_refused() -> None:
    from gapbench.lmeval.lmms import GapbenchLmms

    with pytest.raises(GapbenchError, match="lacks text: lmms-eval cannot ask it"):
        GapbenchLmms(Stub())


def test_a_server_is_asked(
    include: Path, asked: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gapbench.lmeval import lmms

    server = Painting()
    server.says = Painter.talk
    with server.serving(monkeypatch):
        model = load_model(f"server:{server.argument}")
        lmms.evaluate(model, ["colours"], tmp_path, include=include)
    told = json.loads((tmp_path / "lmms-eval" / "results_0.json").read_text())["results"]
    assert told["colours"]["right,none"] == np.mean([q["answer"] == "red" for q in asked]) > 0
    assert len(server.chats) == len(asked)
