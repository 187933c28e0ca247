"""How Show-o writes prompts, questions and images as one row of ids, and what each id may see.

Facts from showlab/Show-o 45a5a2d: training/prompting_utils.py (UniversalPrompting, the two masks),
inference_mmu.py (the question) and configs/showo_demo_512x512.yaml (lengths and offsets). Ids are
the tokenizer's, then [PAD] and the nine marks, then the codes of images, then the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

MARKS: Final = (
    "<|soi|>", "<|eoi|>", "<|sov|>", "<|eov|>", "<|t2i|>", "<|mmu|>", "<|t2v|>", "<|v2v|>",
    "<|lvg|>",
)  # fmt: skip
PAD: Final = "[PAD]"
ROOM: Final = 129
"""Ids of a prompt with its three marks: max_seq_length and one."""
ASKED: Final = "USER: \n{} ASSISTANT:"


class Layout:
    """A tokenizer with Show-o's marks. Raises whatever transformers does for a broken folder."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.tokenizer.add_special_tokens({"pad_token": PAD})
        self.tokenizer.add_tokens(list(MARKS))
        self.first = len(self.tokenizer)
        """The id of the first code."""
        ids = self.tokenizer.convert_tokens_to_ids
        self.pad, self.soi, self.eoi = ids(PAD), ids("<|soi|>"), ids("<|eoi|>")
        self._draw, self._ask = ids("<|t2i|>"), ids("<|mmu|>")
        self.begin, self.end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id

    def cut(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts."""
        cut: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return cut

    def refuses(self, text: str) -> str | None:
        """Why a prompt cannot be drawn. Upstream would cut a long one in silence."""
        for mark in (*MARKS, PAD, *self.tokenizer.all_special_tokens):
            if mark in text:
                return f"it contains {mark!r}, which the model reads as a special token"
        count, room = len(self.cut([text])[0]), ROOM - 3
        return f"it takes {count} tokens, the model has room for {room}" if count > room else None

    def prompts(self, texts: Sequence[str]) -> Tensor:
        """(B, ROOM + 1) ids up to an image's start: [PAD]s on the left, the task, the text between
        two ends of text, and the start of the image."""
        rows = [[self._draw, self.begin, *cut, self.end, self.soi] for cut in self.cut(texts)]
        return torch.tensor([[self.pad] * (ROOM + 1 - len(row)) + row for row in rows])

    def question(self, codes: Sequence[int], text: str) -> list[int]:
        """Ids of an image and a question's text (`ASKED`) about it."""
        image = [self.soi, *(code + self.first for code in codes), self.eoi]
        return [self._ask, *image, self.begin, *self.cut([text])[0]]


def drawing_mask(ids: Tensor, layout: Layout) -> Tensor:
    """(B, 1, L, L) of rows that end with an image: text sees the text before it, the image sees
    all. Nothing but [PAD]s sees a [PAD]."""
    image = (ids == layout.soi).cumsum(1) > 0
    pad = ids == layout.pad
    length = ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
    seen: Tensor = (causal | image[:, :, None]) & (pad[:, :, None] | ~pad[:, None, :])
    return seen[:, None]


def asking_mask(ids: Tensor, layout: Layout) -> Tensor:
    """(B, 1, L, L) of questions that are padded on the left: all sees the image and what is before
    it, and the text before itself. A [PAD] sees itself alone, and is seen by no other."""
    length = ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
    begun = (ids == layout.eoi).cumsum(1) - (ids == layout.eoi).int() == 0
    pad = ids == layout.pad
    alone = torch.eye(length, dtype=torch.bool, device=ids.device)
    seen: Tensor = (causal | begun[:, None, :]) & ~pad[:, None, :] & ~pad[:, :, None]
    return (seen | alone)[:, None]
