from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gapbench.judges import vqa
from gapbench.judges.vqa import VqaJudge, VqaOfficialJudge
from gapbench.models.checkpoint import load_pretrained
from gapbench.models.torchvision_shim import ensure
from gapbench.types import GapbenchError, Prompt

WORDS = ["a", "red", "green", "dog", "cat", "lamp", "big", "?"]


def prompt(text: str) -> Prompt:
    return Prompt(
        id="1", task="t", category="c", tier="easy", text=text, question="", requirement={}
    )


def write_vocabulary(folder: Path) -> None:
    """BERT's special words at their places, a few words, and yes and no at theirs."""
    words = [f"[unused{i}]" for i in range(30522)]
    words[0], words[100], words[101], words[102], words[103] = (
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
    )
    words[1000 : 1000 + len(WORDS)] = WORDS
    words[vqa.YES], words[vqa.NO] = "yes", "no"
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")


def original_tensors() -> dict[str, Tensor]:
    """Random tensors under the authors' names: 64 wide, one layer each, 480 pixels."""
    generator = torch.Generator().manual_seed(0)
    width, wide, words, patches = 64, 96, 30524, (480 // 16) ** 2
    made: dict[str, Tensor] = {}

    def add(name: str, *shape: int) -> None:
        made[name] = torch.randn(shape, generator=generator) * 0.2

    def linear(name: str, out: int, into: int) -> None:
        add(f"{name}.weight", out, into)
        add(f"{name}.bias", out)

    def norm(name: str) -> None:
        made[f"{name}.weight"], made[f"{name}.bias"] = torch.ones(width), torch.zeros(width)

    eye = "visual_encoder"
    add(f"{eye}.cls_token", 1, 1, width)
    add(f"{eye}.pos_embed", 1, patches + 1, width)
    add(f"{eye}.patch_embed.proj.weight", width, 3, 16, 16)
    add(f"{eye}.patch_embed.proj.bias", width)
    linear(f"{eye}.blocks.0.attn.qkv", 3 * width, width)
    linear(f"{eye}.blocks.0.attn.proj", width, width)
    linear(f"{eye}.blocks.0.mlp.fc1", wide, width)
    linear(f"{eye}.blocks.0.mlp.fc2", width, wide)
    for name in ("blocks.0.norm1", "blocks.0.norm2", "norm"):
        norm(f"{eye}.{name}")
    for stem in ("text_encoder", "text_decoder.bert"):
        made[f"{stem}.embeddings.position_ids"] = torch.arange(512)[None]
        add(f"{stem}.embeddings.word_embeddings.weight", words, width)
        add(f"{stem}.embeddings.position_embeddings.weight", 512, width)
        norm(f"{stem}.embeddings.LayerNorm")
        layer = f"{stem}.encoder.layer.0"
        for block in ("attention", "crossattention"):
            for part in ("query", "key", "value"):
                linear(f"{layer}.{block}.self.{part}", width, width)
            linear(f"{layer}.{block}.output.dense", width, width)
            norm(f"{layer}.{block}.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", wide, width)
        linear(f"{layer}.output.dense", width, wide)
        norm(f"{layer}.output.LayerNorm")
    head = "text_decoder.cls.predictions"
    linear(f"{head}.transform.dense", width, width)
    norm(f"{head}.transform.LayerNorm")
    add(f"{head}.bias", words)
    made[f"{head}.decoder.bias"] = made[f"{head}.bias"]
    made[f"{head}.decoder.weight"] = made["text_decoder.bert.embeddings.word_embeddings.weight"]
    return made


@pytest.fixture(scope="session")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint in the authors' layout."""
    folder = tmp_path_factory.mktemp("checkpoints") / "authors"
    folder.mkdir()
    torch.save({"model": original_tensors()}, folder / "blip.pth")
    write_vocabulary(folder)
    return folder


def tiny_blip() -> Any:
    ensure()
    from transformers import BlipConfig

    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    eye = {**small, "num_attention_heads": 1, "image_size": 480, "layer_norm_eps": 1e-6}
    return BlipConfig(vision_config=eye, text_config={**small, "num_attention_heads": 1})


@pytest.fixture
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vqa, "blip_base", tiny_blip)


def build(folder: Path) -> None:
    """The same tensors in the hub's layout, which has no safetensors."""
    tensors = vqa.rename(original_tensors())
    model = load_pretrained(
        "test", "BlipForQuestionAnswering", folder, "float32", "cpu",
        config=tiny_blip(), tensors=tensors,
    )  # fmt: skip
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    write_vocabulary(folder)


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "hub"
    build(folder)
    return folder


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (5, 6, 6, 3), dtype=np.uint8)
    sizes = [(64, 64), (90, 40), (480, 480), (33, 70), (64, 64)]
    return [
        Image.fromarray(array).resize(size, Image.Resampling.NEAREST)
        for array, size in zip(small, sizes, strict=True)
    ]


ASKED = [
    ["a red dog?", "a lamp?", "a big green cat?"],
    ["a cat?"],
    [],
    ["a green lamp?", "a big big big red dog?"],
    ["a lamp?", "a red dog?"],
]


def test_questions() -> None:
    assert vqa.questions(["A Red (big) dog", "the 'lamp'"]) == ["a red big dog?", "the 'lamp'?"]
    assert vqa.questions(['no. 5: "x"!*#;~']) == ["no 5 x?"]
    assert len(vqa.questions(["a dog"] * 12)) == 8
    assert vqa.questions([" ".join(["big"] * 60)]) == [" ".join(["big"] * 50)]


def test_product_rounds_factors_and_result() -> None:
    assert vqa.product([0.123449, 1.0]) == 0.1234
    assert vqa.product([0.66666, 0.66666]) == 0.4445  # 0.4444 if only the result were rounded
    assert vqa.product([]) == 1
    assert np.isnan(vqa.product([float("nan")]))


def test_an_image_encoded_once_gives_the_same_as_encoded_for_each_question(
    native: Path, pictures: list[Image.Image]
) -> None:
    judge = VqaJudge(str(native), device="cpu")
    once = judge.probabilities(pictures, ASKED)
    assert [len(found) for found in once] == [3, 1, 0, 2, 2]
    spread = [p for found in once for p in found]
    assert max(spread) - min(spread) > 0.01
    for picture, texts, found in zip(pictures, ASKED, once, strict=True):
        for text, chance in zip(texts, found, strict=True):
            alone = judge.probabilities([picture], [[text]])[0][0]
            assert alone == pytest.approx(chance, abs=1e-5)


@torch.no_grad()
def test_transformers_decoder_ignores_the_mask_of_the_question(native: Path) -> None:
    """Why no question is ever padded; when this fails, padding has become possible."""
    model, _ = VqaJudge(str(native), device="cpu").loaded
    states = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([states, torch.ones(1, 3, 64)], 1)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0]])
    start = torch.tensor([[vqa.DECODE]])
    plain = model.text_decoder(start, encoder_hidden_states=states).logits
    masked = model.text_decoder(
        start, encoder_hidden_states=padded, encoder_attention_mask=mask
    ).logits
    assert not torch.allclose(plain, masked, atol=1e-3)


@pytest.mark.usefixtures("_tiny")
def test_official_and_native_agree_where_the_table_was_not_shrunk(
    official: Path, native: Path, pictures: list[Image.Image]
) -> None:
    theirs = VqaOfficialJudge(str(official), device="cpu").probabilities(pictures, ASKED)
    ours = VqaJudge(str(native), device="cpu").probabilities(pictures, ASKED)
    for a, b in zip(theirs, ours, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def test_a_judge_answers_with_the_product_and_what_it_asked(
    native: Path, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gapbench.judges.parses import parses

    chunks = {"a red dog and a lamp": ("a red dog", "a lamp"), "running": ()}

    def known(text: str, *needs: str) -> parses.Parse:
        return parses.Parse(
            chunks=chunks[text], nouns=(), without_adjectives="", objects=(), kind="action"
        )

    monkeypatch.setattr(vqa, "parse", known)
    judge = VqaJudge(str(native), device="cpu")
    asked = prompt("a red dog and a lamp")
    answer, none = judge.judge(pictures[:2], [asked, prompt("running")])
    chances = judge.probabilities(pictures[:1], [["a red dog?", "a lamp?"]])[0]
    assert answer.score == vqa.product(chances)
    assert answer.verdict == int(answer.score >= 0.5)
    assert answer.text is not None
    assert "a red dog?" in answer.text
    assert none.verdict is None
    assert none.reason
    assert judge.question(asked) == '["a red dog?", "a lamp?"]'
    with pytest.raises(GapbenchError, match="names no thing"):
        judge.question(prompt("running"))


def test_names_and_fingerprints_tell_checkpoints_apart(native: Path, official: Path) -> None:
    own = VqaJudge(str(native))
    assert own.name == "vqa-hub"
    assert own.fingerprint == VqaJudge(str(native)).fingerprint
    assert own.fingerprint != VqaJudge().fingerprint
    assert VqaJudge().name == "vqa"
    assert VqaOfficialJudge(str(official)).name == "vqa-official-authors"


def test_missing_weights_are_said(
    tmp_path: Path, official: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GAPBENCH_CACHE", str(tmp_path))
    with pytest.raises(GapbenchError, match=r"storage\.googleapis\.com") as caught:
        VqaOfficialJudge()
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(GapbenchError, match="holds no weights"):
        VqaJudge(str(tmp_path))
    with pytest.raises(GapbenchError, match="is no folder"):
        VqaJudge(str(tmp_path / "none"))
    shutil.copy(official / "blip.pth", tmp_path / vqa.OFFICIAL)
    assert VqaOfficialJudge().fingerprint


@pytest.mark.usefixtures("_tiny")
def test_other_weights_are_refused(tmp_path: Path) -> None:
    tensors = original_tensors()
    del tensors["visual_encoder.norm.weight"]
    torch.save({"model": tensors}, tmp_path / "x.pth")
    with pytest.raises(GapbenchError, match=r"lack 1 tensors, vision_model\.post"):
        _ = VqaOfficialJudge(str(tmp_path)).loaded
    (tmp_path / "x.pth").write_bytes(b"no checkpoint")
    with pytest.raises(GapbenchError, match=r"x\.pth cannot be read"):
        _ = VqaOfficialJudge(str(tmp_path)).loaded


def test_the_authors_architecture() -> None:
    from transformers import BlipForQuestionAnswering

    with torch.device("meta"):
        state = BlipForQuestionAnswering(vqa.blip_base()).state_dict()
    assert state["vision_model.embeddings.position_embedding"].shape == (1, 30 * 30 + 1, 768)
    assert state["text_encoder.embeddings.word_embeddings.weight"].shape == (vqa.ENCODE + 1, 768)
    for layers in ("vision_model.encoder.layers", "text_decoder.bert.encoder.layer"):
        assert f"{layers}.11." in " ".join(state)
        assert f"{layers}.12." not in " ".join(state)
