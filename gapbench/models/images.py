"""Images drawn elsewhere, as a model that can only draw.

| layout | files |
|---|---|
| manifest | manifest.jsonl, a line {"prompt", "sample", "image", "seed"?} each; `image` is a path |
|  | inside the folder; `seed` is the reader's, nothing depends on it |
| geneval | <digits>/metadata.jsonl (an object with "prompt") and <digits>/samples/<digits>.png |
| t2i-compbench | <prompt>_<running number>.png, in the folder or in its samples/ |

In the last two, sample k of a prompt is its k-th image by number, from 0: running numbers do not
start anew for a prompt. Sources: djghosh13/geneval at af4902f (evaluation/evaluate_images.py),
Karine-Huang/T2I-CompBench (BLIPvqa_eval/BLIP_vqa.py).
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from PIL import Image

from gapbench.models.base import Batches, Drawing, Model
from gapbench.types import GapbenchError

ADAPTER: Final = "images-1"
MAX_PIXELS: Final = 8192 * 8192
FORMATS: Final = ("PNG", "JPEG", "WEBP")
Layout = Literal["manifest", "geneval", "t2i-compbench"]
_GENEVAL: Final = re.compile(r"\d+\.png")
_NUMBERED: Final = re.compile(r"(.+)_(\d+)\.png")


@dataclass(frozen=True, slots=True)
class Picture:
    """One image: `path` is relative to its folder, `number` the one in its file's name."""

    prompt: str
    sample: int
    path: str
    number: int


@dataclass(frozen=True, slots=True)
class Folder:
    """The images of a folder in one of the layouts.

    `fingerprint` is the digest of the sorted (relative path, sha256) of all files read.
    """

    root: Path
    layout: Layout
    pictures: list[Picture]
    fingerprint: str


class ImagesModel(Model):
    """`--model images:DIR`: hands out the images of a folder; it can neither judge nor train.

    Which sample of its prompt a seed stands for is the plan's to say: `bind` it before drawing.
    Raises GapbenchError where the folder has none of the layouts, or holds a file that is no image,
    is larger than 8192 x 8192 pixels or lies outside.
    """

    capabilities = frozenset({"generate"})
    batches = Batches(64, 64)

    def __init__(self, folder: Path, device: str = "auto", dtype: str = "auto") -> None:  # noqa: ARG002
        self.folder = read_folder(folder)
        self.name = f"images-{folder.resolve().name}"
        self.fingerprint = self.folder.fingerprint
        self.recipe: dict[str, Any] = {"layout": self.folder.layout}
        self._paths = {(p.prompt, p.sample): p.path for p in self.folder.pictures}
        self._samples: dict[tuple[str, int], int] = {}

    def bind(self, samples: Mapping[tuple[str, int], int]) -> None:
        """Say which sample of its prompt each (prompt text, seed) is.

        Raises GapbenchError where the folder lacks an image for any of them.
        """
        missing = [(p, k) for (p, _), k in samples.items() if (p, k) not in self._paths]
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
            Drawing(self._image(prompt, seed), None, prompt, None)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    def _image(self, prompt: str, seed: int) -> Image.Image:
        if (prompt, seed) not in self._samples:
            raise GapbenchError(
                f"model {self.name}: nothing says which sample of {prompt!r} seed {seed} is; "
                "call bind first"
            )
        path = self._paths[prompt, self._samples[prompt, seed]]
        return decode(_inside(self.folder.root, path, self.name))


def read_folder(root: Path) -> Folder:
    """Find, check and hash the images of a folder; pixels are decoded when they are needed."""
    if not root.is_dir():
        raise GapbenchError(f"{root} is no folder; give one that holds images")
    layout, pictures, sources = _find(root)
    if not pictures:
        raise GapbenchError(
            f"{root} holds no images in a known layout: manifest.jsonl, GenEval's "
            "<digits>/samples/<digits>.png, or T2I-CompBench's <prompt>_<number>.png"
        )
    lines = [f"{ADAPTER}\n"]
    for path in sorted({*sources, *(p.path for p in pictures)}):
        data = _read(_inside(root, path, str(root)))
        if path not in sources:
            _header(data, root / path)
        lines.append(f"{path} {hashlib.sha256(data).hexdigest()}\n")
    return Folder(root, layout, pictures, hashlib.sha256("".join(lines).encode()).hexdigest())


def decode(file: Path) -> Image.Image:
    """An image file as RGB. Raises GapbenchError, naming it, where it is broken or too large."""
    image = _header(_read(file), file)
    try:
        return image.convert("RGB")
    except Exception as error:  # Pillow raises many kinds
        raise GapbenchError(f"{file}: broken image ({error})") from error


def _find(root: Path) -> tuple[Layout, list[Picture], list[str]]:
    """Layout, pictures, and the other files that they were read from."""
    if (root / "manifest.jsonl").is_file():
        return "manifest", list(_manifest(root)), ["manifest.jsonl"]
    prompts = sorted(
        f.name for f in root.iterdir() if f.name.isdigit() and (f / "metadata.jsonl").is_file()
    )
    if prompts:
        sources = [f"{name}/metadata.jsonl" for name in prompts]
        return "geneval", _count(_geneval(root, sources)), sources
    inner = root / "samples" if (root / "samples").is_dir() else root
    found = [(m, f) for f in inner.iterdir() if (m := _NUMBERED.fullmatch(f.name))]
    numbered = [(m[1], int(m[2]), f.relative_to(root).as_posix()) for m, f in found]
    return "t2i-compbench", _count(sorted(numbered, key=lambda n: (n[1], n[2]))), []


def _count(found: Sequence[tuple[str, int, str]]) -> list[Picture]:
    """Pictures from (prompt, number, path) in order: the k-th of a prompt is its sample k."""
    seen: dict[str, int] = {}
    pictures = []
    for prompt, number, path in found:
        sample = seen.get(prompt, 0)
        seen[prompt] = sample + 1
        pictures.append(Picture(prompt, sample, path, number))
    return pictures


def _geneval(root: Path, sources: Sequence[str]) -> list[tuple[str, int, str]]:
    found = []
    for source in sources:
        file = root / source
        prompt = _object(_read(_inside(root, source, str(root))), str(file)).get("prompt")
        if not isinstance(prompt, str):
            raise GapbenchError(f"{file}: no text 'prompt'")
        samples = file.parent / "samples"
        names = [f.name for f in samples.iterdir()] if samples.is_dir() else []
        numbered = sorted((int(n[:-4]), n) for n in names if _GENEVAL.fullmatch(n))
        found += [(prompt, k, (samples / n).relative_to(root).as_posix()) for k, n in numbered]
    return found


def _manifest(root: Path) -> Iterator[Picture]:
    file, seen = root / "manifest.jsonl", set[tuple[str, int]]()
    data = _read(_inside(root, "manifest.jsonl", str(root)))
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        place = f"{file}:{number}"
        row = _object(line, place)
        unknown = set(row) - {"prompt", "sample", "image", "seed"}
        if unknown:
            raise GapbenchError(f"{place}: unknown key {sorted(unknown)[0]!r}")
        for name, kind in (("prompt", str), ("sample", int), ("image", str)):
            if type(row.get(name)) is not kind:
                raise GapbenchError(f"{place}: {name} is {row.get(name)!r}, not {kind.__name__}")
        key = (row["prompt"], row["sample"])
        if row["sample"] < 0 or key in seen:
            why = "given twice" if key in seen else "negative"
            raise GapbenchError(f"{place}: sample {row['sample']} of {row['prompt']!r} is {why}")
        seen.add(key)
        _inside(root, row["image"], place)
        yield Picture(row["prompt"], row["sample"], row["image"], row["sample"])


def _object(data: bytes, place: str) -> dict[str, Any]:
    try:
        row = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise GapbenchError(f"{place}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise GapbenchError(f"{place}: not a JSON object")
    return row


def _inside(root: Path, path: str, place: str) -> Path:
    """The file at a relative path, which neither `..` nor a link may lead elsewhere."""
    pure, base = PurePosixPath(path), root.resolve()
    fits = path and not pure.is_absolute() and ".." not in pure.parts and "\0" not in path
    if not fits or (base / pure).resolve() != base / pure:
        raise GapbenchError(
            f"{place}: {path!r} must be a path inside {root}, with no '..' and through no link"
        )
    if not (base / pure).is_relative_to(base) or not (base / pure).is_file():
        raise GapbenchError(f"{place}: {root / pure} is missing or no file")
    return root / pure


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise GapbenchError(f"{file}: cannot be read ({error})") from error


def _header(data: bytes, file: Path) -> Image.Image:
    """An opened, not yet decoded image: a few bytes may claim gigabytes of pixels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        size = image.width * image.height
    except Image.DecompressionBombError:
        size = MAX_PIXELS + 1
    except Exception as error:  # Pillow raises many kinds
        raise GapbenchError(f"{file}: broken image, no {', '.join(FORMATS)} ({error})") from error
    if size > MAX_PIXELS:
        raise GapbenchError(f"{file}: the image has more than {MAX_PIXELS:,} pixels")
    return image
