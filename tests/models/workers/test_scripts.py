"""The texts of workers' scripts on small models of the classes that upstream's are made of.

Upstream's own packages are not here: what these scripts call of them is written again, as small as
it can be.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pipelines
import pytest
import torch
from PIL import Image

from gapbench.models.workers.rows import SCRIPTS, WORKERS

RED, BLUE = (Image.new("RGB", (28, 28), colour) for colour in ("red", "blue"))
TALKS = [
    ([("user", ["what is ", RED, " and ", BLUE, "?"])], ""),
    ([("user", ["hello"])], ""),
    ([("user", [RED, "what?"]), ("assistant", ["red"]), ("user", ["sure?"])], " It is"),
]


def worker(script: str) -> Any:
    spec = importlib.util.spec_from_file_location(script, SCRIPTS / f"{script}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Worker({"repo": "", "recipe": {}})


def offer(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    module = ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A Qwen2.5-VL and its processor."""
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLProcessor

    folder = pipelines.write("longcat", tmp_path_factory.mktemp("qwen") / "it")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder")
    return model.eval().double(), Qwen2VLProcessor.from_pretrained(folder / "text_processor")


@pytest.fixture
def blip3_o(qwen: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    def vision(talk: Any) -> tuple[Any, None]:
        parts = [part for turn in talk for part in turn["content"]]
        return [part["image"] for part in parts if part["type"] == "image"] or None, None

    offer(monkeypatch, "qwen_vl_utils", process_vision_info=vision)
    made = worker("blip3_o")
    made.model, made.processor = qwen
    return made


class Letters:
    """A tokenizer whose tokens are letters, after a first token 1 as Llama's has; 2 is the end."""

    model_max_length = 200

    def __call__(self, text: str) -> Any:
        return SimpleNamespace(input_ids=[1, *(ord(letter) % 250 + 3 for letter in text)])

    def decode(self, ids: Any, skip_special_tokens: bool) -> str:
        return "".join(chr(n - 3) for n in ids.tolist() if n > 2)


class Vila:
    """As upstream's model: a Llama that sees a picture as two embeddings of its mean colour."""

    config, device = None, "cpu"

    def __init__(self) -> None:
        from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=512, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip
        self.llm = LlamaForCausalLM(config).double().eval()
        with torch.no_grad():
            self.llm.lm_head.weight.mul_(30)
        self.tokenizer, self.vision_tower = Letters(), SimpleNamespace(image_processor=None)
        self.default_generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0)

    def prepare_inputs_labels_for_multimodal(
        self, ids: Any, _places: Any, mask: Any, _past: Any, _labels: Any, pixels: Any
    ) -> Any:
        left, rows = iter(pixels), []
        for token in ids[0]:
            row = self.llm.model.embed_tokens(token.clamp(0)[None])
            rows.append(next(left).mean((1, 2)).repeat(2, 11)[:, :32] if token == -200 else row)
        embeds = torch.cat(rows)[None]
        return None, None, torch.ones(embeds.shape[:2], dtype=mask.dtype), None, embeds, None


@pytest.fixture
def vila_u(monkeypatch: pytest.MonkeyPatch) -> Any:
    def media(talk: Any, _config: Any) -> dict[str, Any]:
        shown = []
        for turn in talk:
            shown += [part for part in turn["value"] if not isinstance(part, str)]
            turn["value"] = "".join(p if isinstance(p, str) else "<image>\n" for p in turn["value"])
        return {"image": shown} if shown else {}

    def tokenized(talk: Any, tokenizer: Any, add_generation_prompt: bool) -> Any:
        assert add_generation_prompt
        names = {"human": "USER: ", "gpt": "ASSISTANT: "}
        text = " ".join(f"{names[turn['from']]}{turn['value']}" for turn in talk) + " ASSISTANT:"
        ids = [1]
        for piece in re.split("(<image>)", text):
            ids += [-200] if piece == "<image>" else tokenizer(piece).input_ids[1:]
        return torch.tensor(ids)

    def pixels(images: Any, _processor: Any, _config: Any) -> Any:
        size = [torch.tensor(list(image.resize((2, 2)).tobytes())) for image in images]
        return torch.stack([each.reshape(2, 2, 3).permute(2, 0, 1) / 64.0 for each in size])

    offer(monkeypatch, "vila_u")
    offer(monkeypatch, "vila_u.utils")
    offer(monkeypatch, "vila_u.mm_utils", process_images=pixels)
    offer(monkeypatch, "vila_u.utils.media", extract_media=media)
    offer(monkeypatch, "vila_u.utils.tokenizer", tokenize_conversation=tokenized)
    made = worker("vila_u")
    made.model = Vila()
    return made


@pytest.mark.parametrize("name", WORKERS)
def test_the_table_says_what_the_script_does(name: str) -> None:
    upstream = WORKERS[name].upstream
    assert upstream is not None
    made = worker(upstream.script.stem)
    assert set(made.capabilities) == WORKERS[name].capabilities
    assert all(hasattr(made, method) for method in ("draw", "judge", "reply", "complete", "score"))


def test_what_vila_u_says_is_what_it_scores_highest(vila_u: Any) -> None:
    said = list(vila_u.complete(TALKS, 3, []))
    assert len(set(said)) == 3  # what is shown and said counts
    scored = list(vila_u.score(TALKS, said))
    assert [likeliest for _, likeliest in scored] == [True] * 3
    other = list(vila_u.score(TALKS, [" The score is 1"] * 3))
    assert [likeliest for _, likeliest in other] == [False] * 3


def test_what_blip3_o_says_is_transformers_own(blip3_o: Any) -> None:
    eye = "<|vision_start|><|image_pad|><|vision_end|>"
    texts = [f"what is {eye} and {eye}?", "hello", f"{eye}what?"]
    texts[2] += "<|im_end|>\n<|im_start|>assistant\nred<|im_end|>\n<|im_start|>user\nsure?"
    begun, ending = ["", "", "It is"], [" The score", " The score", " The score"]
    said, scored = list(blip3_o.complete(TALKS, 3, [])), list(blip3_o.score(TALKS, ending))
    for place, text in enumerate(texts):
        shown = [
            part for _, parts in TALKS[place][0] for part in parts if not isinstance(part, str)
        ]
        chat = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n{begun[place]}"

        def read(text: str, shown: list[Any] = shown) -> tuple[Any, Any]:
            batch = blip3_o.processor(text=[text], images=shown or None, return_tensors="pt")
            with torch.no_grad():
                return batch.input_ids[0], blip3_o.model(**batch).logits[0]

        whole = chat + (ending[place] if begun[place] else ending[place].lstrip())
        (short, last), (ids, logits) = read(chat), read(whole)
        odds = logits.float().log_softmax(-1)[len(short) - 1 : -1]
        total = float(odds.gather(1, ids[len(short) :, None]).sum())
        assert scored[place] == (pytest.approx(total, abs=1e-4), False)
        first = blip3_o.processor.tokenizer.decode([int(last[-1].argmax())])
        assert said[place].startswith(first.rstrip("\N{REPLACEMENT CHARACTER}"))
    assert len(set(said)) > 1


@pytest.mark.parametrize("script", ["blip3_o", "vila_u"])
def test_scores_add_up_and_stop_words_end_an_answer(
    script: str, request: pytest.FixtureRequest
) -> None:
    made = request.getfixturevalue(script)
    turns = [("user", [RED, "what?"])]
    (odds,) = made.judge([RED], ["what?"], [" is it", " is"])
    assert [total for total, _ in made.score([(turns, "")] * 2, [" is it", " is"])] == odds
    ((rest, _),) = made.score([(turns, " is")], [" it"])
    assert odds[1] + rest == pytest.approx(odds[0], abs=1e-4)
    long = next(made.complete(TALKS[:1], 9, []))
    short = next(made.complete(TALKS[:1], 9, ["", long[0]]))  # the rest gapbench cuts
    assert long.startswith(short)
    assert 0 < len(short) < len(long)
    with pytest.raises(ValueError, match=r"up to 9000 more, of"):
        list(made.complete(TALKS, 9000, []))
