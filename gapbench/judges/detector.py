"""GenEval's judge: Mask2Former (Swin-S, COCO instances) finds objects, CLIP names their colours.

Pre- and post-processing are the official script's (geneval_rule) whatever the weights: the hub's
own processor squashes images and resizes masks by nearest neighbour. Another checkpoint is another
judge name, so that figures of two never share a column.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from gapbench.fetch import hub
from gapbench.fetch.sources import Source, cache_folder, place
from gapbench.files import first_line, sha256_of
from gapbench.judges import geneval_rule as rule
from gapbench.judges.base import Judge
from gapbench.judges.weights import batches, free_memory, unpickled
from gapbench.models.base import Batches
from gapbench.models.checkpoint import device_here, load_pretrained
from gapbench.models.torchvision_shim import ensure
from gapbench.tasks.prompts.geneval import CLASSES, COLORS
from gapbench.types import Answer, GapbenchError, Prompt

VERSION: Final = "detector-1"
NATIVE: Final = hub.Checkpoint(
    repo="facebook/mask2former-swin-small-coco-instance",
    revision="main",  # its commits are on record by seven digits alone, which pin nothing
    license="CC-BY-NC-4.0",
    files={"config.json": None, "model.safetensors": None},
    bytes=276_000_000,
)
CLIP: Final = hub.Checkpoint(
    repo="timm/vit_large_patch14_clip_224.openai",
    revision="main",  # no commit with this file is on record
    license="MIT",
    files={"open_clip_model.safetensors": None},
    bytes=1_710_000_000,
)
OFFICIAL: Final = Source(
    url="https://download.openmmlab.com/mmdetection/v2.0/mask2former/"
    "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco/"
    "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth",
    sha256="743b7d99015f1224c6d57fd4b14d04b15cc8ec72ae7ee7831e7c71d8873b7a54",
    bytes=275_630_991,
    license="Apache-2.0",
)
NEEDLESS: Final = ("criterion.empty_weight", "swin.layernorm.weight", "swin.layernorm.bias")
"""Tensors without a use in answering, which checkpoints may lack."""
CROPS: Final = 64
"""Crops that CLIP sees at a time."""


class DetectorJudge(Judge):
    """Decides a GenEval requirement by detection and colour.

    `argument` picks the detector: None or "native" the hub's checkpoint, "official" the one behind
    published numbers, or a folder with a Mask2Former of COCO's 80 classes in the hub's layout (its
    sub-folder `clip`, in open_clip's layout, replaces CLIP where there is one).
    """

    scores = False
    by_parts = True

    def __init__(self, argument: str | None = None, device: str = "auto") -> None:
        self.device = device_here("judge detector", device)
        self.batches = Batches.on(self.device, small=False)
        self.batch = 8 if self.device.startswith("cuda") else 1
        self._folder: Path | None = None
        self._own_clip: Path | None = None
        self._official = argument == "official"
        clip = CLIP.fingerprint
        if argument is None or argument == "native":
            self.name, weights = "detector", NATIVE.fingerprint
        elif self._official:
            self.name, weights = "detector-official", OFFICIAL.sha256
        else:
            self._folder = folder = Path(argument)
            if not (folder / "config.json").is_file():
                raise GapbenchError(
                    f"judge detector: {argument!r} is neither native, official nor a folder with a "
                    "Mask2Former checkpoint (config.json, model.safetensors)"
                )
            self.name, weights = f"detector-{folder.resolve().name}", _digest(folder)
            if (folder / "clip").is_dir():
                self._own_clip = folder / "clip"
                clip = _digest(self._own_clip)
        named = f"{VERSION} {self.name} {weights} {clip} {rule.FINGERPRINT}"
        self.fingerprint = hashlib.sha256(named.encode()).hexdigest()
        self.needs = [] if self._folder else [OFFICIAL if self._official else NATIVE]
        self.needs += [] if self._own_clip else [CLIP]
        self._vectors: dict[str, Tensor] = {}

    def question(self, prompt: Prompt) -> str:
        if wrong := rule.trouble(prompt.requirement):
            raise GapbenchError(
                f"judge {self.name} cannot judge task {prompt.task}: prompt {prompt.id} has no "
                f"requirement of GenEval's ({wrong}); choose another judge with --judge"
            )
        return json.dumps(prompt.requirement, sort_keys=True)

    def check_ready(self) -> None:
        if not self._official:
            super().check_ready()
            return
        _official_file()  # it has two places
        hub.fetch(CLIP)

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        decided = self._decided(images, [[prompt.requirement] for prompt in prompts])
        return [
            Answer(verdict=None, reason=each)
            if isinstance(each, str)
            else Answer(verdict=int(each[0][0]), reason=each[0][1])
            for each in decided
        ]

    def judge_parts(
        self, images: Sequence[Image.Image], parts: Sequence[Sequence[Mapping[str, Any]]]
    ) -> list[list[bool] | str]:
        return [
            each if isinstance(each, str) else [correct for correct, _ in each]
            for each in self._decided(images, parts)
        ]

    def _decided(
        self, images: Sequence[Image.Image], wanted: Sequence[Sequence[Mapping[str, Any]]]
    ) -> list[list[tuple[bool, str | None]] | str]:
        """`rule.decide` of each image for each of its requirements, by one detection; why it cannot
        be told where the image is too thin."""
        thin = {i for i, image in enumerate(images) if not min(rule.resized(*image.size))}
        pixels = {i: np.asarray(image) for i, image in enumerate(images) if i not in thin}
        detected = dict(zip(pixels, self.detect(list(pixels.values())), strict=True))
        rows = dict[tuple[int, str, int], None]()
        for i, objects in detected.items():
            for requirement in wanted[i]:
                kept = rule.select(objects.boxes, requirement)
                for name, best in rule.wanted_colors(kept, requirement).items():
                    rows |= dict.fromkeys((i, name, row) for row in best)
        crops = [detected[i].crop(pixels[i], name, row) for i, name, row in rows]
        colors = dict(zip(rows, self.colors(crops, [name for _, name, _ in rows]), strict=True))

        def decided(i: int) -> list[tuple[bool, str | None]] | str:
            if i in thin:
                return f"the image, {images[i].width} x {images[i].height}, is too thin"

            def color_of(name: str, best: Sequence[int]) -> list[str]:
                return [colors[i, name, row] for row in best]

            return [rule.decide(detected[i].boxes, each, color_of) for each in wanted[i]]

        return [decided(i) for i in range(len(images))]

    def check_picture(self) -> str | None:
        """A warning where nothing is found in two discs, or their red and blue are mixed up."""
        # Broken installations score on in silence (task-scoring notes, section 5).
        pixels, discs = rule.discs()
        if not self.detect([pixels])[0].boxes:
            return f"judge {self.name} detects nothing in a picture of two discs; distrust it"
        seen = self.colors([discs.crop(pixels, rule.BALL, i) for i in (0, 1)], [rule.BALL] * 2)
        mixed = f"judge {self.name} sees a red and a blue disc as {seen[0]} and {seen[1]}"
        return None if seen == [*rule.DISCS] else mixed

    def release(self) -> None:
        vars(self).pop("loaded", None)
        self._vectors.clear()
        free_memory()

    @torch.inference_mode()
    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[rule.Found]:
        """What can matter to the rule in each RGB image (height, width, 3)."""
        detector, detected = self.loaded[0], dict[int, rule.Found]()
        for group in _batches([rule.padded(i.shape[1], i.shape[0]) for i in images], self.batch):
            batch = torch.stack([rule.prepare(images[i]) for i in group]).to(self.device)
            out = detector(pixel_values=batch)
            pairs = zip(out.class_queries_logits, out.masks_queries_logits, strict=True)
            for i, (logits, masks) in zip(group, pairs, strict=True):
                detected[i] = rule.instances(logits, masks, images[i].shape[:2])
        return [detected[i] for i in range(len(images))]

    @torch.inference_mode()
    def colors(self, crops: Sequence[Image.Image], classes: Sequence[str]) -> list[str]:
        """The colour, one of the ten, of each crop of an object of that class."""
        _, clip, preprocess, _ = self.loaded
        named: list[str] = []
        for part in batches(list(zip(crops, classes, strict=True)), CROPS):
            batch = torch.stack([preprocess(image) for image, _ in part])
            seen = normalize(clip.encode_image(batch.to(self.device)), dim=-1)
            texts = torch.stack([self._color_vectors(name) for _, name in part])
            named += [COLORS[i] for i in (texts @ seen[:, :, None])[..., 0].argmax(-1).tolist()]
        return named

    def _color_vectors(self, name: str) -> Tensor:
        """(10, width): unit vectors of the colours of a class."""
        if name not in self._vectors:
            _, clip, _, tokenizer = self.loaded
            tokens = tokenizer(rule.color_texts(name)).to(self.device)
            vectors = normalize(clip.encode_text(tokens), dim=-1)
            means = vectors.reshape(len(COLORS), -1, vectors.shape[-1]).mean(1)
            self._vectors[name] = normalize(means, dim=-1)
        return self._vectors[name]

    @cached_property
    def loaded(self) -> tuple[Any, Any, Any, Any]:
        """The detector, and CLIP with its image transform and its tokenizer."""
        ensure()  # before open_clip, which imports torchvision
        import open_clip

        detector = (
            _official(self.device)
            if self._official
            else _from_hub(self._folder or hub.fetch(NATIVE), self.device)
        )
        own = self._own_clip
        name = f"local-dir:{own}" if own else "ViT-L-14-quickgelu"
        weights = None if own else str(hub.fetch(CLIP) / "open_clip_model.safetensors")
        try:
            clip, preprocess = open_clip.create_model_from_pretrained(
                name, pretrained=weights, device=self.device
            )
            tokenizer = open_clip.get_tokenizer(name)
        except Exception as error:  # open_clip and torch raise many kinds
            raise GapbenchError(
                f"judge {self.name}: cannot load CLIP: {first_line(error)}"
            ) from error
        return detector, clip.eval(), preprocess, tokenizer


def _batches(kinds: Sequence[tuple[int, int]], size: int) -> Iterator[list[int]]:
    """Places of equal kinds, at most `size` at a time."""
    for kind in dict.fromkeys(kinds):
        places = [i for i, k in enumerate(kinds) if k == kind]
        yield from (places[start : start + size] for start in range(0, len(places), size))


def swin_small() -> Any:
    """The configuration of both named checkpoints."""
    ensure()
    from transformers import Mask2FormerConfig, SwinConfig

    depths, heads, out = [2, 2, 18, 2], [3, 6, 12, 24], [f"stage{i}" for i in range(1, 5)]
    swin = SwinConfig(embed_dim=96, depths=depths, num_heads=heads, window_size=7, out_features=out)
    return Mask2FormerConfig(backbone_config=swin, num_labels=len(CLASSES))


def load(folder: Path, device: str, **more: Any) -> Any:
    """A Mask2Former from a folder, or from `config` and `tensors` under the hub's names.

    Raises GapbenchError where it cannot be loaded or is not whole.
    """
    kind = "Mask2FormerForUniversalSegmentation"
    return load_pretrained(
        "judge detector", kind, folder, "float32", device, needless=NEEDLESS, **more
    )


def _from_hub(folder: Path, device: str) -> Any:
    model = load(folder, device)
    if wrong := rule.class_trouble([name for _, name in sorted(model.config.id2label.items())]):
        raise GapbenchError(f"judge detector: {folder} is of other classes: {wrong}")
    return model


def _official_file() -> Path:
    homes = (cache_folder() / OFFICIAL.name, place(OFFICIAL))
    file = next((home for home in homes if home.is_file()), None)
    if file is None:
        raise GapbenchError(
            f"judge detector-official needs {OFFICIAL.url} ({OFFICIAL.bytes:,} bytes, sha256 "
            f"{OFFICIAL.sha256}); put it into {cache_folder()}"
        )
    return file


def _official(device: str) -> Any:
    file = _official_file()
    hub.verify(file.parent, {file.name: OFFICIAL.sha256}, "judge detector-official")
    state = unpickled("judge detector-official", file, "state_dict")
    return load(file, device, config=swin_small(), tensors=from_mmdet(state))


_SWIN: Final = (
    ("patch_embed.projection", "embeddings.patch_embeddings.projection"),
    ("patch_embed.norm", "embeddings.norm"), ("stages.", "encoder.layers."),
    (".norm1.", ".layernorm_before."), (".norm2.", ".layernorm_after."),
    *((f"norm{i}.", f"hidden_states_norms.stage{i + 1}.") for i in range(4)),
    ("attn.w_msa.proj", "attention.output.dense"), ("attn.w_msa", "attention.self"),
    ("ffn.layers.0.0", "intermediate.dense"), ("ffn.layers.1", "output.dense"),
)  # fmt: skip
_PIXELS: Final = (
    ("input_convs", "input_projections"), ("lateral_convs.0", "adapter_1"),
    ("output_convs.0", "layer_1"), (".conv.", ".0."), (".gn.", ".1."),
    ("level_encoding.weight", "level_embed"), ("mask_feature.", "mask_projection."),
    ("attentions.0", "self_attn"), ("norms.0", "self_attn_layer_norm"),
    ("norms.1", "final_layer_norm"), ("ffns.0.layers.0.0", "fc1"), ("ffns.0.layers.1", "fc2"),
)  # fmt: skip
_QUERIES: Final = (
    ("transformer_decoder", "decoder"), ("post_norm", "layernorm"),
    ("attentions.0.attn", "cross_attn"), ("attentions.1.attn", "self_attn"),
    ("norms.0", "cross_attn_layer_norm"), ("norms.1", "self_attn_layer_norm"),
    ("norms.2", "final_layer_norm"), ("ffns.0.layers.0.0", "fc1"), ("ffns.0.layers.1", "fc2"),
    ("query_embed", "queries_embedder"), ("query_feat", "queries_features"),
    *((f"mask_embed.{2 * i}", f"decoder.mask_predictor.mask_embedder.{i}.0") for i in range(3)),
)  # fmt: skip
_PARTS: Final = (
    ("backbone.", "model.pixel_level_module.encoder.", _SWIN),
    ("panoptic_head.pixel_decoder.", "model.pixel_level_module.decoder.", _PIXELS),
    ("panoptic_head.cls_embed.", "class_predictor.", ()),
    ("panoptic_head.", "model.transformer_module.", _QUERIES),
)
"""How mmdet's names begin, how the hub's do, and what to replace in the rest, in this order."""
_FUSED: Final = {
    "attention.self.qkv.": [f"attention.self.{part}." for part in ("query", "key", "value")],
    "self_attn.in_proj_": [f"self_attn.{part}_proj." for part in "qkv"],
}
"""mmdet's one tensor for query, key and value -> the hub's three."""


def from_mmdet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of mmdet's Mask2Former under the hub's names, whatever its size.

    mmdet merges Swin's patches in nn.Unfold's order (channel, row, column), transformers in the
    order column, row, channel; the inputs of the merging layers are put in the latter.
    """
    made = {}
    for key, tensor in state.items():
        if key.endswith("relative_position_index"):
            continue  # the same in both, and computed
        begins, name, renames = next(part for part in _PARTS if key.startswith(part[0]))
        rest = key.removeprefix(begins)
        for old, new in renames:
            rest = rest.replace(old, new)
        name += rest
        if ".downsample." in name:
            grid = tensor.reshape(*tensor.shape[:-1], -1, 2, 2)
            tensor = grid.transpose(-1, -3).reshape(tensor.shape)
        fused = next((part for part in _FUSED if part in name), None)
        if fused is None:
            made[name] = tensor
        else:
            pieces = zip(_FUSED[fused], tensor.chunk(3), strict=True)
            made.update({name.replace(fused, part): piece for part, piece in pieces})
    return made


def _digest(folder: Path) -> str:
    """Of the names and bytes of a checkpoint's files."""
    digest = hashlib.sha256()
    for file in sorted(f for f in folder.iterdir() if f.suffix in {".json", ".safetensors"}):
        digest.update(file.name.encode() + bytes.fromhex(sha256_of(file)))
    return digest.hexdigest()
