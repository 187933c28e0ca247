"""A pipeline's folder in the layout of diffusers: model_index.json names its components, each of
which has a folder of its own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Final

from gapbench.files import first_line, read_object
from gapbench.models.checkpoint import load_pretrained, unwarned, weights_in
from gapbench.types import GapbenchError

INDEX: Final = "model_index.json"
NETWORK: Final = "transformer"
"""The component that draws, in all of PIPELINES."""
SCHEDULER: Final = "FlowMatchEulerDiscreteScheduler"
"""The one that velocities are trained for here."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What the code of a pipeline does not say: whether its training has been tried (`trained`),
    what of its last block no image depends on (`unread`), defaults of its call that fail and what
    stands for them (`recipe`), how many of the text's tokens its own instructions take (`spent`),
    whether a prompt changes others of its batch (`alone`).
    """

    trained: bool = False
    unread: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    spent: int = 0
    alone: bool = False


PIPELINES: Final[Mapping[str, Kind]] = {
    "QwenImagePipeline": Kind(trained=True, unread=r"attn\.to_add_out|txt_mlp"),
    "QwenImage21Pipeline": Kind(trained=True),
    # It means "" by None, and encodes that once whatever the batch.
    "LongCatImagePipeline": Kind(trained=True, recipe={"negative_prompt": ""}),
    "Flux2Pipeline": Kind(spent=100),
    # A prompt with words in quotation marks changes the guidance of all beside it.
    "HunyuanImagePipeline": Kind(alone=True, recipe={"negative_prompt": ""}),
    "Kandinsky5T2IPipeline": Kind(),
    "BriaFibo2Pipeline": Kind(),
    "NucleusMoEImagePipeline": Kind(),
}
"""Those of diffusers 0.42.1 that draw an image from a text alone, several at a time, and whose text
encoder is a whole vision-language model."""
CHATS: Final = {
    "qwen2_5_vl": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
}
"""Chat templates of encoders that come without a processor, as Qwen-Image's does: its tokenizer's
template has no place for images. This is Qwen2.5-VL-7B-Instruct's for one question."""
PIXELS: Final = {"min_pixels": 56 * 56, "max_pixels": 16384 * 28 * 28}
"""Between which Qwen2.5-VL scales a picture: its preprocessor_config.json."""


def require_diffusers(who: str) -> None:
    """Raises GapbenchError where diffusers is not installed."""
    if not find_spec("diffusers"):
        raise GapbenchError(
            f"{who}: diffusers, which runs its pipeline, is not installed; "
            "pip install 'gapbench[diffusers]'"
        )


class Layout:
    """What a folder holds, known without loading weights.

    Raises GapbenchError where it is no pipeline of PIPELINES, lacks files, or needs code that does
    not come with diffusers or transformers: such code is never run.
    """

    def __init__(self, who: str, folder: Path) -> None:
        require_diffusers(who)
        self.who, self.folder = who, folder
        index = read_object(folder / INDEX)
        self.pipeline = str(index.get("_class_name"))
        self.parts: dict[str, tuple[str, str]] = {}
        for name, said in index.items():
            if not isinstance(said, list) or len(said) != 2 or said == [None, None]:
                continue
            library, kind = said
            if library not in ("diffusers", "transformers") or "/" in name:
                raise GapbenchError(
                    f"{who}: {folder / INDEX} takes {name} from {library!r}, and only components "
                    "of diffusers and transformers are loaded; code of a checkpoint is never run"
                )
            self.parts[name] = library, str(kind)
        self.encoder = self._encoder()
        if self.pipeline not in PIPELINES:
            raise GapbenchError(
                f"{who}: gapbench drives {', '.join(PIPELINES)}, not {self.pipeline}; {ELSEWHERE}"
            )
        self.files = [folder / INDEX, *(f for name in self.parts for f in self._files(name))]
        if read_object(self._scheduler).get("stochastic_sampling"):
            raise GapbenchError(
                f"{who}: its scheduler draws new noise in each step from a state that all images "
                f"share; set stochastic_sampling to false in {self._scheduler}"
            )

    @property
    def kind(self) -> Kind:
        return PIPELINES[self.pipeline]

    @property
    def trainable(self) -> bool:
        """Whether the network's velocity is trained here."""
        return self.kind.trained and self.parts["scheduler"][1] == SCHEDULER

    @property
    def trained(self) -> str:
        """Matches the names of the network's weights that are trained. Of those that no image
        depends on, several processes would wait for the gradients."""
        blocks = r"(single_)?transformer_blocks\..+"
        if not self.kind.unread:
            return blocks
        last = int(read_object(self.folder / NETWORK / "config.json").get("num_layers", 0)) - 1
        return rf"(?!transformer_blocks\.{last}\.({self.kind.unread})\.){blocks}"

    @cached_property
    def pipeline_class(self) -> Any:
        return resolve_name(f"diffusers:{self.pipeline}")

    @property
    def _scheduler(self) -> Path:
        return self.folder / "scheduler" / "scheduler_config.json"

    def _encoder(self) -> str:
        """The component that is a vision-language model with its language head."""
        from transformers.models.auto import modeling_auto

        whole = set(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values())
        for name, (library, kind) in self.parts.items():
            if library == "transformers" and kind in whole:
                return name
        read = [kind for name, (_, kind) in self.parts.items() if "encoder" in name]
        raise GapbenchError(
            f"{self.who}: {self.pipeline} reads prompts with {' and '.join(read) or 'no encoder'}, "
            "which is no vision-language model with its language head, so nothing of it can judge "
            f"an image; {ELSEWHERE}"
        )

    def _files(self, name: str) -> list[Path]:
        """A component's settings and weights."""
        place = self.folder / name
        settings = sorted(
            file
            for kind in ("*.json", "*.jinja", "*.txt", "*.model")
            for file in place.glob(kind)
            if not file.name.endswith(".index.json")
        )
        if not settings:
            raise GapbenchError(
                f"{self.who}: {self.folder} lacks {name}/, which its {INDEX} names; download or "
                "save the pipeline again"
            )
        if not (place / "config.json").is_file():
            return settings
        model = self.parts[name][0] == "transformers"
        whole = "model.safetensors" if model else "diffusion_pytorch_model.safetensors"
        if not (weights := weights_in(self.who, place, whole)):
            raise GapbenchError(
                f"{self.who}: no .safetensors file in {place}; other weight formats are not "
                "loaded, save the pipeline with save_pretrained first"
            )
        return settings + weights

    # -- loading ---------------------------------------------------------------------------

    def tokenizer(self) -> Any:
        """What cuts the texts that are drawn; needs no weights."""
        name = "tokenizer" if "tokenizer" in self.parts else "processor"
        made = self._transformers(name)
        return getattr(made, "tokenizer", made)

    def processor(self) -> Any:
        """What puts images and questions before the encoder: the pipeline's, or one made around its
        tokenizer. Raises GapbenchError where neither is there."""
        for name, (library, kind) in self.parts.items():
            if library == "transformers" and kind.endswith("Processor"):
                return self._transformers(name)
        read = read_object(self.folder / self.encoder / "config.json").get("model_type")
        if read not in CHATS:
            raise GapbenchError(
                f"{self.who}: it has no processor for its {self.encoder} ({read!r}); save one into "
                f"{self.folder / 'processor'} and name it in {INDEX}"
            )
        import transformers

        return transformers.Qwen2_5_VLProcessor(
            transformers.Qwen2VLImageProcessor(**PIXELS),
            self.tokenizer(),
            transformers.Qwen2VLVideoProcessor(),
            CHATS[read],
        )

    def _transformers(self, name: str) -> Any:
        """A component of transformers without weights."""
        import transformers

        place = self.folder / name
        try:
            with unwarned():
                made = getattr(transformers, self.parts[name][1], transformers.AutoTokenizer)
                return made.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # json, tokenizers and transformers raise many kinds
            raise GapbenchError(f"{self.who}: cannot load {place}: {first_line(error)}") from error

    def load(self, dtype: str, device: str, network: Any = None) -> Any:
        """The pipeline, each component with all of its weights; `network` replaces its own."""
        from diffusers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()  # what it would warn of, the adapter says
        made: dict[str, Any] = {} if network is None else {NETWORK: network}
        for name, (library, kind) in self.parts.items():
            place = self.folder / name
            if name in made or not (place / "config.json").is_file():
                continue
            if library == "transformers":
                made[name] = load_pretrained(self.who, kind, place, dtype, device)
            else:
                made[name] = self._diffusers(kind, place, dtype)
        try:
            with unwarned():
                pipeline = self.pipeline_class.from_pretrained(
                    self.folder, **made, local_files_only=True, trust_remote_code=False
                )
            pipeline.to(device)
        except Exception as error:  # as above, and torch of a full memory
            raise GapbenchError(
                f"{self.who}: cannot load {self.folder}: {first_line(error)}"
            ) from error
        pipeline.set_progress_bar_config(disable=True)
        settings = made[self.encoder].generation_config
        # Some write prompts anew with their encoder: as Qwen's settings sample at a temperature
        # near 0, from a state that all images share.
        settings.update(do_sample=False, temperature=None, top_p=None, top_k=None)
        return pipeline

    def save(self, network: Any, folder: Path) -> None:
        """Write a pipeline with this network and all that is here besides."""
        for name in self.parts:
            if name != NETWORK:
                shutil.copytree(self.folder / name, folder / name, dirs_exist_ok=True)
        network.save_pretrained(folder / NETWORK)
        shutil.copyfile(self.folder / INDEX, folder / INDEX)

    def _diffusers(self, kind: str, place: Path, dtype: str) -> Any:
        import torch

        try:
            model, info = resolve_name(f"diffusers:{kind}").from_pretrained(
                place,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        except Exception as error:  # diffusers, safetensors and torch raise many kinds
            raise GapbenchError(f"{self.who}: cannot load {place}: {first_line(error)}") from error
        if missing := sorted(info["missing_keys"]):
            raise GapbenchError(
                f"{self.who}: the weights in {place} lack {len(missing)} tensors, {missing[0]} "
                "among them"
            )
        return model.eval().requires_grad_(place.name == NETWORK)


ELSEWHERE: Final = (
    "draw with diffusers into a folder of images and measure that with an outside judge: --model "
    "images:FOLDER"
)
"""What to do with a pipeline that is not driven."""
