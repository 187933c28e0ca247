"""A judge as a reward: what it gives, and what it never calls 0."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from typing import Any

import pytest
from PIL import Image
from stubs import Stub

import gapbench
from gapbench import Answer, GapbenchError, Prompt
from gapbench.judges.base import Judge
from gapbench.rewards.reward import Reward, value
from gapbench.tasks.task import load_task
from gapbench.tasks.world import Sprite, render
from gapbench.types import Failure

RED, BLUE = "a red circle", "a photo of a blue square"


def painted(shape: str, color: str) -> Image.Image:
    return Image.fromarray(render({4: Sprite(shape, color)}))


def wanted(shape: str, color: str) -> dict[str, Any]:
    return {"include": [{"shape": shape, "count": 1, "color": color}]}


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


class Fake(Judge):
    """Says of an image what the test says of its first pixel."""

    name, fingerprint = "fake", "fake-1"

    def __init__(self, said: dict[int, Answer | Exception]) -> None:
        self.said, self.sizes = said, list[int]()

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        self.sizes.append(len(images))
        made = [self.said[image.getpixel((0, 0))[0]] for image in images]  # type: ignore[index]
        if error := next((each for each in made if isinstance(each, Exception)), None):
            raise error
        return made  # type: ignore[return-value]


def grey(level: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (level, level, level))


def test_a_plain_callable() -> None:
    reward = gapbench.reward(judge="pixel", task="shapes:train")
    known = next(p for p in load_task("shapes:train").prompts() if p.category == "colors")
    [item] = known.requirement["include"]
    right = painted(item["shape"], item["color"])
    wrong = painted(item["shape"], "red" if item["color"] != "red" else "blue")
    assert reward([known.text] * 2, [right, wrong]) == [1.0, 0.0]


def test_a_prompt_of_ones_own_has_its_requirement_in_a_column() -> None:
    reward = gapbench.reward(judge="pixel", task="shapes:train")
    images = [painted("circle", "red"), painted("circle", "red")]
    columns = {"requirement": [wanted("circle", "red"), json.dumps(wanted("square", "blue"))]}
    assert reward(["my circle", "my square"], images, other=[1, 2], **columns) == [1.0, 0.0]
    with pytest.raises(GapbenchError, match="has no requirement of the shapes world"):
        reward(["my circle"], images[:1])
    for odd in ("no JSON", "[1]", 7, {"a": b"bytes"}):
        with pytest.raises(GapbenchError, match="a requirement is an object or its JSON"):
            reward(["my circle"], images[:1], requirement=[odd])


def test_images_and_prompts_in_every_form() -> None:
    reward = gapbench.reward(judge="pixel", task="shapes:train")
    image = painted("circle", "red")
    png = encoded(image)
    text = base64.b64encode(png).decode()
    uri = f"data:image/png;base64,{text}"
    forms: list[Any] = [
        image, image.convert("RGBA"), png, text, uri,
        [{"role": "assistant", "content": [{"type": "image", "image": image}]}],
        [{"role": "assistant", "content": [
            {"type": "text", "text": "here"}, {"type": "image_url", "image_url": {"url": uri}}]}],
    ]  # fmt: skip
    asked: list[Any] = [
        "mine",
        [{"role": "system", "content": "draw"}, {"role": "user", "content": "mine"}],
        [{"role": "user", "content": [{"type": "text", "text": "mine"}]}],
    ]
    for prompt in asked:
        many = [prompt] * len(forms)
        given = [wanted("circle", "red")] * len(forms)
        assert reward(many, forms, requirement=given) == [1.0] * len(forms)
    for odd, said in (
        ("some text", "completion 0 is a text that is no base64 of an image"),
        (png[:40], "completion 0: broken image"),
        (base64.b64encode(b"hello").decode(), "completion 0: broken image"),
        (7, "completion 0 is no image, but a int"),
        ([{"role": "assistant", "content": "words"}], "completion 0 is no image, but a list"),
    ):
        with pytest.raises(GapbenchError, match=said):
            reward(["mine"], [odd], requirement=[wanted("circle", "red")])
    with pytest.raises(GapbenchError, match="a prompt is a text or messages"):
        reward([7], [image])
    with pytest.raises(GapbenchError, match="2 prompts, 1 completions"):
        reward(["mine"] * 2, [image])


def test_the_reward_is_score_else_probability_else_verdict() -> None:
    assert value(Answer(verdict=1, p_yes=0.8, score=0.3)) == 0.3
    assert value(Answer(verdict=None, score=0.3, reason="a score and no verdict")) == 0.3
    assert value(Answer(verdict=0, p_yes=0.4)) == 0.4
    assert (value(Answer(verdict=1)), value(Answer(verdict=0))) == (1.0, 0.0)
    assert value(Answer(verdict=None, reason="cut")) is None
    assert value(Failure("away")) is None


def test_what_fails_is_none_and_all_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    judge = Fake({0: Answer(verdict=0), 1: Answer(verdict=None, reason="cut"),
                  2: ValueError("no camera"), 3: Answer(verdict=7)})  # fmt: skip
    reward = gapbench.reward(judge=judge, task="shapes:train")
    images = [grey(n) for n in (0, 1, 2, 3, 0)]
    assert reward(["x"] * 5, images) == [0.0, None, None, None, 0.0]
    assert "2 of 5 rewards missing: ValueError: no camera" in caplog.text
    with pytest.raises(GapbenchError, match="failed for all images: ValueError: no camera"):
        reward(["x"] * 2, [grey(2)] * 2)
    assert reward(["x"], [grey(1)]) == [None]  # it abstained, and did not fail


def test_batches_are_halved_where_memory_does_not_do() -> None:
    class Small(Fake):
        def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
            if len(images) > 2:
                raise RuntimeError("CUDA out of memory")
            return super().judge(images, prompts)

    judge = Small({n: Answer(verdict=1, p_yes=n / 10) for n in range(9)})
    reward = gapbench.reward(judge=judge, task="shapes:train")
    assert reward(["x"] * 9, [grey(n) for n in range(9)]) == [n / 10 for n in range(9)]
    assert max(judge.sizes) == 2


def test_own_verdicts_are_a_reward(tiny_janus: Any) -> None:
    model = gapbench.load_model(str(tiny_janus), "cpu", "float32")
    image = Image.new("RGB", (32, 32), (200, 30, 30))
    prompts = [p.text for p in load_task("shapes:train").prompts()[:3]]
    given = gapbench.reward(judge=model, task="shapes:train")(prompts, [image] * 3)
    named = gapbench.reward(judge=f"own:{tiny_janus}", task="shapes:train", device="cpu")
    questions = [load_task("shapes").spec.question.replace("{prompt}", p) for p in prompts]
    said = [answer.p_yes for answer in model.answers([image] * 3, questions, words=False)]
    assert given == said
    assert all(p is not None and 0 < p < 1 for p in said)
    assert [round(p or 0, 2) for p in named(prompts, [image] * 3)] == [
        round(p or 0, 2) for p in said
    ]
    in_words = gapbench.reward(judge=Stub(), task="shapes:train")
    assert in_words(prompts[:2], [grey(3), grey(4)]) == [1.0, 0.0]


def test_what_cannot_be_a_reward_is_said(caplog: pytest.LogCaptureFixture) -> None:
    class Painter(Stub):
        capabilities = ("generate",)

    for judge, task, said in (
        ("owl", "shapes", "no judge 'owl'"), ("pixel", "shape", "no task 'shape'"),
        ("own:gpt", "shapes", "no model 'gpt'"), (Painter(), "shapes", "own verdicts are a reward"),
    ):  # fmt: skip
        with pytest.raises(GapbenchError, match=said):
            gapbench.reward(judge=judge, task=task)
    reward = Reward("pixel", "shapes")
    first, second = load_task("shapes").prompts()[:2]
    assert caplog.text == ""
    for prompt in (first, second):
        reward([prompt.text], [painted("circle", "red")])
    assert caplog.text.count("is a test prompt of shapes") == 1


def draw(completion_ids: Sequence[Sequence[int]], **_more: object) -> list[Image.Image]:
    """A policy's vocabulary in which each token is a coloured shape."""
    sprites = [(shape, color) for shape in ("circle", "square") for color in ("red", "blue")]
    return [painted(*sprites[ids[0] % len(sprites)]) for ids in completion_ids]


def test_trl_trains_on_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real GRPOTrainer teaches a tiny model to draw what is asked."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    torch.manual_seed(0)
    words = ["t0", "t1", "t2", "t3", "<pad>", "<eos>", "draw", "it"]
    base = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="it"))
    base.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base, pad_token="<pad>", eos_token="<eos>", unk_token="it"
    )
    config = LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32,
        pad_token_id=4, eos_token_id=5, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    lost = list[int]()

    class Failing(Judge):
        """The pixel judge, away for one image in five."""

        name, fingerprint = "failing", "failing-1"

        def __init__(self) -> None:
            self.pixel, self.asked = gapbench.load_judge("pixel"), 0

        def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
            made = self.pixel.judge(images, prompts)
            for place in range(len(made)):
                self.asked += 1
                if self.asked % 5 == 0:
                    lost.append(self.asked)
                    made[place] = Answer(verdict=None, reason="away")
            return made

    reward = gapbench.reward(judge=Failing(), task="shapes:train", draw=draw)
    rows = [{"prompt": "draw it", "requirement": json.dumps(wanted("square", "blue"))}] * 64
    arguments = GRPOConfig(
        output_dir=str(tmp_path), max_steps=30, per_device_train_batch_size=16, num_generations=8,
        max_completion_length=1, learning_rate=3e-2, use_cpu=True, report_to="none", seed=1,
        save_strategy="no", disable_tqdm=True, logging_steps=1, bf16=False, beta=0.0,
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=model, reward_funcs=reward, args=arguments, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    logged = [line for line in trainer.state.log_history if "reward" in line]
    means = [line["rewards/gapbench_failing/mean"] for line in logged]
    assert len(means) == 30
    assert lost
    assert sum(means[:3]) / 3 < 0.6
    assert min(means[-5:]) > 0.9  # what the judge did not answer is no 0 there
