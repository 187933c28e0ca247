from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gapbench.judges.base import Judge
from gapbench.judges.clip import ClipJudge
from gapbench.judges.weights import crop
from gapbench.models.torchvision_shim import ensure
from gapbench.types import GapbenchError, Prompt


def prompt(text: str) -> Prompt:
    return Prompt(
        id="1", task="t", category="c", tier="easy", text=text, question="", requirement={}
    )


def build(folder: Path) -> None:
    """A random open_clip checkpoint of 32 pixels in the hub's layout."""
    ensure()
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    folder.mkdir()
    config = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 2,
        },
    }
    made = open_clip.CLIP(**config)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file(made.state_dict(), folder / "open_clip_model.safetensors")


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-clip"
    build(folder)
    return folder


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(40, 40), (64, 32), (30, 51), (48, 48), (33, 200)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


TEXTS = ["a dog", "a cat and a much longer text", "", "a lamp", "word " * 200]


def test_a_batch_equals_one_by_one(tiny_clip: Path, pictures: list[Image.Image]) -> None:
    judge = ClipJudge(str(tiny_clip), device="cpu")
    together = judge.similarities(pictures, TEXTS)
    assert all(-1 <= value <= 1 for value in together)
    for picture, text, value in zip(pictures, TEXTS, together, strict=True):
        assert judge.similarities([picture], [text])[0] == pytest.approx(value, abs=1e-5)


def test_answers_have_a_score_and_no_verdict(tiny_clip: Path, pictures: list[Image.Image]) -> None:
    judge = ClipJudge(str(tiny_clip), device="cpu")
    asked = [prompt(text or "x") for text in TEXTS]
    answers = judge.judge(pictures, asked)
    assert [a.verdict for a in answers] == [None] * 5
    assert {a.reason for a in answers} == {"a score and no verdict"}
    assert all(a.score is not None for a in answers)
    assert judge.name == "clip-tiny-clip"
    assert judge.question(asked[0]) == "a dog"
    judge.release()


@pytest.mark.parametrize("size", [(40, 40), (301, 64), (64, 301), (97, 33), (3, 2)])
def test_crop_is_torchvisions(size: tuple[int, int]) -> None:
    ensure()
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    reference = Compose([Resize(32, InterpolationMode.BICUBIC), CenterCrop(32)])(image)
    assert np.array_equal(np.asarray(crop(image, 32)), np.asarray(reference))


def test_numbers_that_are_none_abstain() -> None:
    judge = Judge()
    assert judge.scored(float("nan")).score is None
    assert (judge.scored(0.3).score, judge.scored(0.3).verdict) == (0.3, None)
    judge.threshold = 0.5
    assert [judge.scored(v).verdict for v in (0.5, 0.4999, float("inf"))] == [1, 0, None]


def test_a_broken_folder_is_said(tmp_path: Path, tiny_clip: Path) -> None:
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"none")
    (tmp_path / "open_clip_config.json").write_bytes(
        (tiny_clip / "open_clip_config.json").read_bytes()
    )
    with pytest.raises(GapbenchError, match="cannot load"):
        _ = ClipJudge(str(tmp_path), device="cpu").loaded
