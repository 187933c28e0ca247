"""Show-o (showlab/Show-o at 45a5a2d) and HermesFlow (Gen-Verse/HermesFlow at d6cf91a), another
checkpoint of the same code: Phi-1.5 writes text token by token and fills in masked image codes.

Where the facts come from is said in checkpoint.py, layout.py, draw.py, vq.py and pictures.py.
Upstream reads one question at a time, and draws a batch from one random stream.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from gapbench.files import digest, first_line, read_object
from gapbench.models import lora, torchvision_shim
from gapbench.models.autoregressive.answers import answer_ids, cache_name, distinct
from gapbench.models.autoregressive.attention import repeatable
from gapbench.models.autoregressive.blocks import Blocks
from gapbench.models.autoregressive.finite import require_finite
from gapbench.models.autoregressive.model import SMALL
from gapbench.models.base import Batches, Drawing, Model
from gapbench.models.checkpoint import device_here, settings_files, weight_files
from gapbench.models.registry import MODELS
from gapbench.models.showo.checkpoint import load_magvit, load_phi, write
from gapbench.models.showo.draw import MASKED, Recipe, draw, training_mask
from gapbench.models.showo.layout import ASKED, ROOM, Layout, asking_mask, drawing_mask
from gapbench.models.showo.pictures import pixels_of
from gapbench.models.showo.vq import MagvitV2
from gapbench.types import GapbenchError

Role = Literal["model", "vq", "text"]
ROLES: Final[tuple[Role, ...]] = ("model", "vq", "text")
ADAPTER: Final = "showo-1"
BLOCK: Final = {"cuda": 8, "cpu": 4}
"""Images that are drawn together, by kind of device."""
WIDTH: Final = 64
"""Questions are padded to a multiple of this, so that a width is seldom new."""
REPLY_TOKENS: Final = 100
"""max_new_tokens in Gen-Verse/HermesFlow, configs/hermesflow_demo_512x512.yaml."""


class ShowoModel(Model):
    """Adapter for a checkpoint ("model"), its picture tokenizer ("vq") and text tokenizer ("text").

    Images are (side * side,) codes in reading order. `origin` stands for the files' digest in the
    fingerprint.
    """

    capabilities = MODELS["show-o"].capabilities
    parts: Mapping[str, str] = {
        "language-model": r"model\..+",
        "generation": r"(model|lm_head)\..+",
    }
    device: str
    dtype: str

    def __init__(
        self,
        name: str,
        folders: Mapping[Role, Path],
        recipe: Recipe,
        device: str = "auto",
        dtype: str = "auto",
        origin: str | None = None,
    ) -> None:
        self.name, self.folders = name, folders
        config = read_object(folders["model"] / "config.json")
        if config.get("w_clip_vit"):
            raise GapbenchError(
                f"{self._who}: {folders['model']} judges through a CLIP tower beside the model "
                "(w_clip_vit), which gapbench does not drive; take the checkpoint without"
            )
        self.config = config
        self.files = {role: weight_files(self._who, folders[role]) for role in ROLES[:2]}
        self.device = device_here(self._who, device)
        small = sum(file.stat().st_size for file in self.files["model"]) < SMALL
        on_cpu = self.device == "cpu"
        auto = "float64" if on_cpu and small else "float32"  # upstream's
        self.dtype = auto if dtype == "auto" else dtype
        exact = on_cpu and self.dtype == "float64"
        kind = torch.device(self.device).type
        size = recipe.block or (0 if exact else BLOCK.get(kind, BLOCK["cpu"]))
        self._recipe = replace(recipe, block=size)
        self.recipe = asdict(self._recipe)
        self.blocks, self.batches = Blocks(size), Batches.on(self.device, small, size)
        self._network: Any = None
        self._magvit: MagvitV2 | None = None
        self._lora: Path | None = None
        header = f"{ADAPTER} {self.dtype}\n{origin or ''}"
        kept = [*self.files["model"], *self.files["vq"], folders["model"] / "config.json"]
        self.fingerprint = digest(header, [] if origin else kept + settings_files(folders["text"]))

    # -- loading ---------------------------------------------------------------------------

    @property
    def _who(self) -> str:
        return f"model {self.name}"

    @cached_property
    def layout(self) -> Layout:
        """The tokenizer; needs no weights."""
        torchvision_shim.ensure()
        try:
            return Layout(self.folders["text"])
        except Exception as error:  # json, tokenizers and transformers raise many kinds
            raise GapbenchError(
                f"{self._who}: cannot load the tokenizer in {self.folders['text']}: "
                f"{first_line(error)}"
            ) from error

    def load(self) -> None:
        self._loaded()

    def release(self) -> None:
        self._network = self._magvit = None
        self.blocks.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def network(self) -> Any:
        """transformers' PhiForCausalLM; the picture tokenizer is not part of it."""
        return self._loaded()[0]

    @property
    def magvit(self) -> MagvitV2:
        """The picture tokenizer."""
        return self._loaded()[1]

    @torch.inference_mode(False)  # also where a method under it loads: weights have gradients
    def _loaded(self) -> tuple[Any, MagvitV2]:
        dtype, device = self.dtype, self.device
        if self._magvit is None:
            folder, wide = self.folders["vq"], "float64" if dtype == "float64" else "float32"
            self._magvit = load_magvit(self._who, folder, self.files["vq"], wide, device)
        if self._network is None:
            size = self.layout.first + self._magvit.codes + 1
            given = self.folders["model"], self.files["model"], self.folders["text"], size
            network = load_phi(self._who, *given, dtype, device)
            if self._lora:
                lora.merge(self._who, network, self._lora)
            self._network = network
        return self._network, self._magvit

    def use(self, network: torch.nn.Module) -> None:
        self.release()
        self._network = network
        self.device = str(next(network.parameters()).device)

    def adapt(self, folder: Path) -> None:
        self.name, self._lora = folder.resolve().name, folder
        self.fingerprint = lora.fingerprint(self.fingerprint, folder)

    def save(self, folder: Path) -> None:
        """Write the checkpoint in its published layout, and both tokenizers into vq/ and text/."""
        config = {"_class_name": "Showo", **self.config, "num_vq_tokens": self._places}
        write(folder, config, self.network, self.magvit)
        (folder / "text").mkdir(exist_ok=True)
        for file in settings_files(self.folders["text"]):
            shutil.copy(file, folder / "text")

    # -- drawing ---------------------------------------------------------------------------

    @property
    def _places(self) -> int:
        return self._recipe.side**2

    def refuses(self, text: str) -> str | None:
        return self.layout.refuses(text)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawing]:
        drawings: list[Drawing] = []
        size = self.blocks.size or max(1, len(seeds))
        for start in range(0, len(seeds), size):
            some = slice(start, start + size)
            try:
                codes = self._codes(prompts[some], seeds[some])
                with repeatable():
                    pixels = self.blocks.pictures(self._brightness, codes)
            except torch.OutOfMemoryError as error:
                raise GapbenchError(
                    f"{self._who}: {size} images drawn together do not fit into the memory of "
                    f"{self.device}; try --set block={max(1, size // 2)}"
                ) from error
            require_finite(self._who, "picture decoder", pixels)
            levels = (pixels.clamp(0, 1) * 255).to(torch.uint8).cpu().numpy()
            tokens = codes.cpu().numpy().astype(np.int32)
            drawings += map(Drawing, map(Image.fromarray, levels), tokens)
        return drawings

    def _codes(
        self, prompts: Sequence[str], seeds: Sequence[int], steps: int | None = None
    ) -> Tensor:
        """(B, places) codes of a block of images."""
        count, size = len(seeds), self.blocks.size or len(seeds)
        texts = [*prompts, *[prompts[0]] * (size - count)]
        rows = [*seeds, *[seeds[0]] * (size - count)]
        guidance, layout = self._recipe.guidance, self.layout
        heads = layout.prompts(texts + [""] * size * (guidance > 0)).to(self.device)
        seen = drawing_mask(self._ids(heads, heads.new_zeros(len(heads), self._places)), layout)

        def logits(known: Tensor) -> Tensor:
            given = known.repeat(len(heads) // size, 1)
            hidden = self._hidden(self._ids(heads, given), seen)
            found = self._head(hidden, slice(layout.first, layout.first + self.magvit.codes))
            if guidance > 0:
                cond, uncond = found.chunk(2)
                found = (1 + guidance) * cond - guidance * uncond
            require_finite(self._who, "language model", found)
            return found

        recipe = replace(self._recipe, steps=steps or self._recipe.steps)
        with repeatable():
            return draw(logits, self._places, rows, recipe, self.device)[:count]

    def _ids(self, heads: Tensor, codes: Tensor) -> Tensor:
        """Rows of prompts and (B, places) codes, where MASKED becomes the mask's id."""
        mask = self.layout.first + self.magvit.codes
        image = torch.where(codes == MASKED, mask, codes + self.layout.first)
        return torch.cat([heads, image, heads.new_full((len(heads), 1), self.layout.eoi)], 1)

    def _hidden(self, ids: Tensor, seen: Tensor) -> Tensor:
        """The hidden states (B, places, W) that say what the codes of rows of `_ids` are: each
        stands where its code does."""
        core = self.network.model
        hidden: Tensor = core(input_ids=ids, attention_mask=seen, use_cache=False).last_hidden_state
        return hidden[:, ROOM + 1 : -1]

    def _head(self, hidden: Tensor, ids: slice = slice(None)) -> Tensor:
        """Logits of some ids; other layers than a plain one, as LoRA's, have to compute all."""
        layer = self.network.lm_head
        if type(layer) is torch.nn.Linear:
            return linear(hidden, layer.weight[ids], layer.bias[ids])
        logits: Tensor = layer(hidden)[..., ids]
        return logits

    def _brightness(self, codes: Tensor) -> Tensor:
        return self.magvit.decode(codes).permute(0, 2, 3, 1) / 2 + 0.5

    @torch.inference_mode()
    def check_seeds(self, prompt: str, seed: int) -> str | None:
        def some(prompts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.int32]:
            return self._codes(prompts, seeds, steps=2).cpu().numpy().astype(np.int32)

        return self.blocks.warnings(some, prompt, seed)

    def generation_loss(
        self,
        prompts: Sequence[str],
        drawings: NDArray[Any],
        noise: Sequence[int],
        unconditional: bool | Sequence[bool] = False,
    ) -> Tensor:
        """Show-o's own: the mean cross-entropy of the masked codes over the whole vocabulary, times
        all codes. Upstream also scores the marks on both sides of an image, which nothing hides.

        Its mean over mask shares that are uniform would bound -log p(drawing | prompt) from above
        (as for any order of the codes). Show-o's cosine prefers high shares, so it is no bound.
        """
        away = np.broadcast_to(unconditional, len(prompts))
        texts = ["" if gone else text for text, gone in zip(prompts, away, strict=True)]
        codes = torch.as_tensor(drawings, device=self.device).long()
        masked = training_mask(noise, codes.shape[1], self.device)
        heads = self.layout.prompts(texts).to(self.device)
        ids = self._ids(heads, codes.masked_fill(masked, MASKED))
        logits = self._head(self._hidden(ids, drawing_mask(ids, self.layout))[masked])
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        each = cross_entropy(wide, codes[masked] + self.layout.first, reduction="none").double()
        row = masked.nonzero()[:, 0]
        total = each.new_zeros(len(codes)).index_add(0, row, each)
        return total * codes.shape[1] / masked.sum(1)

    # -- judging ---------------------------------------------------------------------------

    def _questions(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[list[int]]:
        """Ids of each image and the text about it; each distinct image is read once."""
        size, seen = self._recipe.side * self.magvit.scale, distinct(images)
        wide = next(self.magvit.parameters()).dtype
        codes = {
            place: self.magvit.encode(pixels_of(images[place], size)[None].to(self.device, wide))
            for place in set(seen)
        }
        known = {place: row[0].tolist() for place, row in codes.items()}
        return [self.layout.question(known[p], t) for p, t in zip(seen, texts, strict=True)]

    def _batches(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Tensor]]:
        """The places of rows that are computed together, and their ids, padded on the left: in
        shapes that do not depend on which rows there are."""
        block = self.blocks.size
        widths = [-(-len(row) // WIDTH) * WIDTH for row in rows]
        for width in sorted(set(widths)):
            places = [place for place, own in enumerate(widths) if own == width]
            for start in range(0, len(places), block or len(places)):
                some = places[start : start + (block or len(places))]
                filled = [*some, *[some[0]] * (block - len(some))]
                pad = self.layout.pad
                padded = [[pad] * (width - len(rows[p])) + list(rows[p]) for p in filled]
                yield some, torch.tensor(padded, device=self.device)

    @torch.inference_mode()
    def judge(
        self, images: Sequence[Image.Image], questions: Sequence[str], answers: Sequence[str]
    ) -> NDArray[np.float64]:
        texts = [ASKED.format(question) for question in questions]
        tails = answer_ids(self.layout.cut, texts, answers, self._who)
        contexts = list(dict.fromkeys(tail[:-1] for tail in tails))
        total = np.zeros((len(images), len(answers)))
        with repeatable():
            heads = self._questions(images, texts)
            rows = [[*head, *context] for head in heads for context in contexts]
            last = max(map(len, tails))
            for places, ids in self._batches(rows):
                hidden = self._read(ids, keep=False).last_hidden_state
                logprobs = self._head(hidden[:, -last:]).double().log_softmax(-1).cpu()
                require_finite(self._who, "language model", logprobs)
                for place, row in zip(places, logprobs, strict=False):
                    image, context = divmod(place, len(contexts))
                    for column, tail in enumerate(tails):
                        if tail[:-1] == contexts[context]:
                            found = row[len(row) - len(tail) :].gather(
                                1, torch.tensor(tail)[:, None]
                            )
                            total[image, column] = float(found.sum())
        return total

    def _read(self, ids: Tensor, keep: bool) -> Any:
        """What the core makes of questions, with its keys and values where those are to be kept."""
        return self.network.model(
            input_ids=ids,
            attention_mask=asking_mask(ids, self.layout),
            position_ids=((ids != self.layout.pad).cumsum(1) - 1).clamp(min=0),
            use_cache=keep,
        )

    @torch.inference_mode()
    def reply(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        said: dict[int, list[int]] = {}
        with repeatable():
            rows = self._questions(images, [ASKED.format(question) for question in questions])
            for places, ids in self._batches(rows):
                tokens = self._greedy(ids).tolist()
                said |= dict(zip(places, tokens, strict=False))
        tokenizer = self.layout.tokenizer
        texts = [tokenizer.decode(said[p], skip_special_tokens=True) for p in range(len(rows))]
        return [text.strip() for text in texts]

    def _greedy(self, ids: Tensor) -> Tensor:
        """(B, up to REPLY_TOKENS) ids that go on, with ends of text behind the first."""
        read, kept = self._read(ids, keep=True), cache_name(self.network)
        hidden, cache = read.last_hidden_state, {kept: getattr(read, kept)}
        seen = (ids != self.layout.pad)[:, None, None]
        place, end = seen.sum(3)[:, 0], self.layout.end
        said: list[Tensor] = []
        ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        while True:
            logits = self._head(hidden[:, -1])
            require_finite(self._who, "language model", logits)
            token = logits.argmax(-1).masked_fill(ended, end)
            ended |= token == end
            said.append(token)
            if ended.all() or len(said) == REPLY_TOKENS:
                return torch.stack(said, 1)
            seen = torch.cat([seen, torch.ones_like(seen[..., :1])], 3)
            hidden = self.network.model(
                input_ids=token[:, None],
                attention_mask=seen,
                position_ids=place,
                use_cache=True,
                **cache,
            ).last_hidden_state
            place = place + 1
