from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gapbench.judges.sciscore import SciScoreJudge
from gapbench.types import GapbenchError, Prompt


def prompt(text: str, **requirement: str) -> Prompt:
    return Prompt(
        id="1", task="t", category="c", tier="hard", text=text, question="", requirement=requirement
    )


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(40, 40), (64, 32), (30, 51)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


ASKED = [prompt("ice in the sun"), prompt("wet", implicit_prompt="rust on iron"), prompt("x " * 99)]


def test_a_batch_equals_one_by_one(tiny_sciscore: Path, pictures: list[Image.Image]) -> None:
    judge = SciScoreJudge(str(tiny_sciscore), device="cpu")
    together = judge.judge(pictures, ASKED)
    for picture, asked, answer in zip(pictures, ASKED, together, strict=True):
        assert answer.score is not None
        assert answer.verdict is None
        assert answer.reason == "a score and no verdict"
        assert judge.judge([picture], [asked])[0].score == pytest.approx(answer.score, abs=1e-5)


def test_the_score_is_the_models_own_logit(
    tiny_sciscore: Path, pictures: list[Image.Image]
) -> None:
    from transformers import CLIPImageProcessorPil

    judge = SciScoreJudge(str(tiny_sciscore), device="cpu")
    model, tokenizer = judge.loaded
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    texts = [judge.question(asked) for asked in ASKED]
    with torch.no_grad():
        logits = model(
            **processor(pictures, return_tensors="pt"),
            **tokenizer(texts, padding=True, truncation=True, max_length=77, return_tensors="pt"),
        ).logits_per_image.diagonal()
    found = [answer.score for answer in judge.judge(pictures, ASKED)]
    assert found == pytest.approx(logits.tolist(), abs=1e-4)


def test_the_implicit_prompt_is_what_counts(
    tiny_sciscore: Path, pictures: list[Image.Image]
) -> None:
    judge = SciScoreJudge(str(tiny_sciscore), device="cpu")
    implicit = prompt("rust on iron")
    assert judge.question(ASKED[1]) == judge.question(implicit) == "rust on iron"
    one, other = judge.judge([pictures[0]] * 2, [ASKED[1], implicit])
    assert one.score == pytest.approx(other.score, abs=1e-6)
    assert judge.name == "sciscore-tiny-sciscore"


def test_a_checkpoint_that_lacks_tensors_is_refused(tmp_path: Path, tiny_sciscore: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in tiny_sciscore.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(GapbenchError, match="lack 1 tensors"):
        _ = SciScoreJudge(str(tmp_path), device="cpu").loaded
