"""Images drawn elsewhere, as a model that can only draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from gapbench.files import inside
from gapbench.models.base import Batches, Drawing, Model
from gapbench.models.image_folder import read_folder
from gapbench.types import GapbenchError


class ImagesModel(Model):
    """`--model images:DIR`: hands out the images of a folder; it can neither judge nor train.

    Which sample of its prompt a seed stands for is the plan's to say: `bind` it before drawing.
    Raises GapbenchError where the folder has none of the layouts, or holds a file that is no image,
    is larger than 8192 x 8192 pixels or lies outside.
    """

    capabilities = frozenset({"generate"})
    batches = Batches(64, 64)
    gpus = None

    def __init__(self, folder: Path, device: str = "auto", dtype: str = "auto") -> None:  # noqa: ARG002
        self.folder = read_folder(folder)
        self.name = f"images-{folder.resolve().name}"
        self.fingerprint = self.folder.fingerprint
        self.recipe: dict[str, Any] = {"layout": self.folder.layout}
        self._pictures = {(p.prompt, p.sample): p for p in self.folder.pictures}
        self._samples: dict[tuple[str, int], int] = {}
        self._texts: dict[str, str] = {}

    def bind(self, samples: Mapping[tuple[str, int], int]) -> None:
        """Say which sample of its prompt each (prompt text, seed) is.

        Raises GapbenchError where the folder lacks an image for any of them.
        """
        self._texts |= {prompt: self.folder.text_of(prompt) for prompt, _ in samples}
        missing = [
            (p, k) for (p, _), k in samples.items() if (self._texts[p], k) not in self._pictures
        ]
        if missing:
            prompt, sample = missing[0]
            raise GapbenchError(
                f"{self.folder.root}: {len(missing)} of {len(samples)} images are missing, first "
                f"sample {sample} of {prompt!r}; add them, or choose fewer --samples or --tasks"
            )
        self._samples.update(samples)

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawing]:
        """The image of each (prompt, seed). Raises GapbenchError where it is broken or changed."""
        return [
            Drawing(self._image(prompt, seed), None, self._texts[prompt], None)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    def _image(self, prompt: str, seed: int) -> Image.Image:
        if (prompt, seed) not in self._samples:
            raise GapbenchError(
                f"model {self.name}: nothing says which sample of {prompt!r} seed {seed} is; "
                "call bind first"
            )
        picture = self._pictures[self._texts[prompt], self._samples[prompt, seed]]
        inside(self.folder.root, picture.path, self.name)
        return self.folder.image(picture)
