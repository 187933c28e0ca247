"""WISE: its own records, and what is asked of images of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gapbench.fetch.sources import adopt
from gapbench.judges.base import with_meaning
from gapbench.judges.server import ServerJudge
from gapbench.judges.vlm import VlmJudge
from gapbench.tasks.task import load_task
from gapbench.types import Prompt

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "wise"
PROMPT = Prompt(
    id="1", task="wise", category="Chemistry", tier="hard", text="An old bronze bell",
    question="Does this image describe An old bronze bell? An old bronze bell is asked for.",
    requirement={"Explanation": " It is green all over. "},
)  # fmt: skip


@pytest.mark.skipif(not DATA.is_dir(), reason="the benchmark's file is not here")
def test_its_prompts_are_those_of_its_authors(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("GAPBENCH_CACHE", str(tmp_path))
    task = load_task("wise")
    assert adopt(task.sources(), DATA) == []
    prompts = task.prompts()
    assert len({p.text for p in prompts}) == 1000
    counts = Counter(p.category for p in prompts)
    assert counts.pop("Cultural-knowledge") == 400
    assert [*counts.values()] == [120] * 5
    assert {p.tier for p in prompts} == {"hard"}
    # Every prompt has a meaning, which the judge is told and the model is not.
    for prompt in prompts:
        meaning = prompt.requirement["Explanation"].strip().rstrip(".")
        assert f"{prompt.text} ({meaning})" in with_meaning(prompt)
        assert meaning not in prompt.question
    official = task.overalls["official"]
    assert isinstance(official, dict)
    assert official.keys() == {p.category for p in prompts}
    assert sum(official.values()) == pytest.approx(1)
    assert task.judge("time") == "vlm:8b"


def test_a_judge_is_told_what_a_prompt_means(
    tiny_janus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = ServerJudge("https://example.org/v1#m")
    assert judge.question(PROMPT) == (
        "Does this image describe An old bronze bell (It is green all over)? An old bronze bell is "
        "asked for."
    )
    local, texts = VlmJudge(str(tiny_janus), "cpu"), list[str]()
    asked = local.logprobs
    monkeypatch.setattr(
        local, "logprobs", lambda images, questions, answers: (
            texts.extend(questions), asked(images, questions, answers)
        )[1],
    )  # fmt: skip
    (answer,) = local.judge([Image.new("RGB", (32, 32))], [PROMPT])
    assert answer.p_yes is not None
    assert len(texts) == 1
    assert "An old bronze bell (It is green all over)? An old bronze bell is asked for." in texts[0]
    plain: Prompt = replace(PROMPT, requirement={"include": []})
    assert judge.question(plain) == plain.question
