"""BLIP-VQA: T2I-CompBench++'s score of colour, shape and texture (task-scoring.md 2.2).

Each noun chunk of the prompt is asked as a question; the score is the product of the answers'
probabilities of yes. An image is encoded once for all its chunks; the official script encodes it
for each of eight, asked or not.

`vqa` runs the hub's checkpoint, whose 30 x 30 position table was shrunk to 24 x 24 when it was
converted and is enlarged again here: close to the official numbers, not equal. `vqa-official` runs
the original file with the original table and settings.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gapbench.fetch import hub
from gapbench.fetch.sources import cache_folder
from gapbench.files import sha256_of
from gapbench.judges.parses.parses import FINGERPRINT, parse
from gapbench.judges.weights import WeightsJudge, batches, tensor, unpickled
from gapbench.models.torchvision_shim import ensure
from gapbench.types import Answer, GapbenchError, Prompt

NATIVE: Final = hub.Checkpoint(
    repo="Salesforce/blip-vqa-capfilt-large",
    revision="e53f95265aeab69013fabb5380500ab984adbbb4",
    license="BSD-3-Clause",
    files={"config.json": None, "pytorch_model.bin": None, "vocab.txt": None},
    bytes=1_540_000_000,
)
VOCABULARY: Final = hub.Checkpoint(
    repo="google-bert/bert-base-uncased",
    revision="86b5e0934494bd15c9632b12f734a8a67f723594",
    license="Apache-2.0",
    files={"vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"},
    bytes=232_000,
)
OFFICIAL: Final = "model_base_vqa_capfilt_large.pth"
OFFICIAL_URL: Final = (
    f"https://storage.googleapis.com/sfr-vision-language-research/BLIP/models/{OFFICIAL}"
)
"""The authors' weights (BSD-3-Clause), of no published digest: the fingerprint reads the file."""

SIZE: Final = 480
CHUNKS: Final = 8
WORDS: Final = 50
TOKENS: Final = 35
DECODE, ENCODE = 30522, 30523
"""[DEC], which starts an answer, and [ENC], which starts a question; transformers sets neither."""
YES, NO = 2748, 2053
IMAGES: Final = 16
"""Images encoded at once; their questions go together."""


class VqaJudge(WeightsJudge):
    """score: the product over noun chunks, 0..1, to four decimals; verdict 1 from 0.5 on."""

    base = "vqa"
    threshold = 0.5
    arithmetic = f"vqa-1 {FINGERPRINT}"
    checkpoints = (NATIVE,)

    def question(self, prompt: Prompt) -> str:
        asked = questions(parse(prompt.text, "chunks").chunks)
        if not asked:
            raise GapbenchError(
                f"judge {self.name} cannot judge prompt {prompt.id} of task {prompt.task}: it "
                "names no thing to ask about; choose another judge with --judge"
            )
        return json.dumps(asked, ensure_ascii=False)

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        asked = [questions(parse(prompt.text, "chunks").chunks) for prompt in prompts]
        answers = []
        for texts, chances in zip(asked, self.probabilities(images, asked), strict=True):
            if not texts:
                answers.append(Answer(verdict=None, reason="the prompt names nothing to ask about"))
                continue
            said = "; ".join(f"{t} {p:.4f}" for t, p in zip(texts, chances, strict=True))
            answers.append(self.scored(product(chances), said))
        return answers

    @torch.no_grad()
    def probabilities(
        self, images: Sequence[Image.Image], asked: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """P(yes) / (P(yes) + P(no)) of each question about each image."""
        chances: list[list[float]] = []
        pairs = list(zip(images, asked, strict=True))
        for part in batches(pairs, IMAGES):
            squares = [i.resize((SIZE, SIZE), Image.Resampling.BICUBIC) for i, _ in part]
            pixels = [tensor(square) for square in squares]
            chances += self._answers(torch.stack(pixels), [texts for _, texts in part])
        return chances

    def _answers(self, pixels: Tensor, asked: Sequence[Sequence[str]]) -> list[list[float]]:
        """Answers about images (n, 3, 480, 480), each with its own list of questions."""
        model, tokenizer = self.loaded
        probabilities = [[0.0] * len(texts) for texts in asked]
        # transformers drops the mask of the decoder's attention to the question, so that padding
        # would change answers: only questions of one length share a batch, and none is padded.
        groups: dict[int, list[tuple[int, int, list[int]]]] = defaultdict(list)
        for i, texts in enumerate(asked):
            for j, text in enumerate(texts):
                ids = tokenizer(text, truncation=True, max_length=TOKENS).input_ids
                groups[len(ids)].append((i, j, [ENCODE, *ids[1:]]))
        if not groups:
            return probabilities
        seen = model.vision_model(
            pixel_values=pixels.to(self.device), interpolate_pos_encoding=True
        ).last_hidden_state
        for group in groups.values():
            rows, columns, ids = zip(*group, strict=True)
            states = model.text_encoder(
                input_ids=torch.tensor(ids, device=self.device),
                encoder_hidden_states=seen[list(rows)],
            ).last_hidden_state
            start = torch.full((len(group), 1), DECODE, device=self.device)
            logits = model.text_decoder(start, encoder_hidden_states=states, use_cache=False).logits
            chances = logits[:, 0].softmax(-1)
            yes = chances[:, YES] / (chances[:, YES] + chances[:, NO])
            for i, j, value in zip(rows, columns, yes.tolist(), strict=True):
                probabilities[i][j] = value
        return probabilities

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        folder = self.own or hub.fetch(NATIVE)
        return self._model("BlipForQuestionAnswering", folder), vocabulary(folder)


class VqaOfficialJudge(VqaJudge):
    """The same with the authors' weights; an own folder holds `*.pth` and vocab.txt.

    Raises GapbenchError at once where the weights are not in the cache.
    """

    base = "vqa-official"
    arithmetic = f"vqa-official-1 {FINGERPRINT}"
    checkpoints = (VOCABULARY,)

    def _weights(self) -> list[str]:
        if self.own is not None:
            return super()._weights()
        return [sha256_of(self._file()), VOCABULARY.fingerprint]

    def _file(self) -> Path:
        if self.own is not None:
            files = sorted(self.own.glob("*.pth"))
            if len(files) != 1:
                raise GapbenchError(f"judge {self.base}: {self.own} holds {len(files)} .pth files")
            return files[0]
        file = cache_folder() / OFFICIAL
        if not file.is_file():
            raise GapbenchError(
                f"judge {self.base} needs {OFFICIAL}: download {OFFICIAL_URL} into {file.parent}"
            )
        return file

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        file = self._file()
        tensors = rename(unpickled(f"judge {self.name}", file, "model"))
        model = self._model("BlipForQuestionAnswering", file, config=blip_base(), tensors=tensors)
        return model, vocabulary(self.own or hub.fetch(VOCABULARY))


def blip_base() -> Any:
    """The configuration of the authors' model."""
    ensure()
    from transformers import BlipConfig

    return BlipConfig(
        vision_config={"image_size": SIZE, "layer_norm_eps": 1e-6},
        text_config={"num_attention_heads": 12},
    )


_RENAMES: Final = (
    (r"^visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (
        r"^visual_encoder\.blocks\.(\d+)\.attn\.proj\.",
        r"vision_model.encoder.layers.\1.self_attn.projection.",
    ),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.", r"vision_model.encoder.layers.\1.self_attn."),
    (r"^visual_encoder\.blocks\.(\d+)\.norm", r"vision_model.encoder.layers.\1.layer_norm"),
    (r"^visual_encoder\.blocks\.", "vision_model.encoder.layers."),
)


def rename(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' tensors under transformers' names, without the position counters."""
    renamed = {}
    for name, weight in weights.items():
        if name.endswith("position_ids"):
            continue
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = weight
    return renamed


def vocabulary(folder: Path) -> Any:
    """BERT's lower-casing tokenizer from vocab.txt."""
    from transformers import BertTokenizer

    file = folder / "vocab.txt"
    if not file.is_file():
        raise GapbenchError(f"{folder} holds no vocab.txt; copy bert-base-uncased's there")
    words = file.read_text(encoding="utf-8").splitlines()
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)}, do_lower_case=True)


def questions(chunks: Sequence[str]) -> list[str]:
    """What is asked of the first eight noun chunks."""
    cleaned = (re.sub(r"[.!\"()*#:;~]", "", f"{c}?".lower()).rstrip(" ") for c in chunks[:CHUNKS])
    return [" ".join(text.split(" ")[:WORDS]) for text in cleaned]


def product(probabilities: Sequence[float]) -> float:
    """The score: factors and product to four decimals, multiplied in float32 as officially."""
    total = np.float32(1)
    for probability in probabilities:
        total *= np.float32(f"{probability:.4f}")
    return float(f"{total:.4f}")
