"""Folders of images as benchmarks and people save them: layouts, names, pixels.

| layout | files |
|---|---|
| manifest | manifest.jsonl, a line {"prompt", "sample", "image", "seed"?} each; `image` is a path |
|  | inside the folder; `seed` is the reader's, nothing depends on it |
| geneval | <digits>/metadata.jsonl (an object with "prompt") and <digits>/samples/<digits>.png |
| t2i-compbench | <prompt>_<running number>.png, in the folder or in its samples/ |
| dpg | dpg_bench.csv, and for its items <item id>.png, a grid of 2 x 2 images: samples 0 and 1 |
|  | above, 2 and 3 below |

In the middle two, sample k of a prompt is its k-th image by number, from 0: running numbers do not
start anew for a prompt. JPEG and WebP files count as well, with endings in capitals too. Names that
begin with "._" are macOS's notes about a file. A GenEval record whose prompt was rewritten is known
by what it requires, which is different for each of the 553 prompts. Sources: djghosh13/geneval at
af4902f (evaluation/evaluate_images.py), Karine-Huang/T2I-CompBench (BLIPvqa_eval/BLIP_vqa.py),
TencentQQGYLab/ELLA at 3c228f1 (dpg_bench/compute_dpg_bench.py).
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from PIL import Image, ImageOps

from gapbench.files import inside
from gapbench.tasks.prompts.geneval import make
from gapbench.tasks.records import parsed, read
from gapbench.types import GapbenchError

ADAPTER: Final = "images-2"
MAX_PIXELS: Final = 8192 * 8192
FORMATS: Final = ("PNG", "JPEG", "WEBP")
Layout = Literal["manifest", "geneval", "t2i-compbench", "dpg"]
DPG: Final = "dpg_bench.csv"
_GENEVAL: Final = re.compile(r"(\d+)\.(?:png|jpe?g|webp)", re.IGNORECASE)
_ITEM: Final = re.compile(r"([^.]+)\.(?:.+\.)?(?:png|jpe?g|webp)", re.IGNORECASE)
_NUMBERED: Final = re.compile(r"(.+)_(\d+)\.(?:png|jpe?g|webp)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Picture:
    """One image: `path` is relative to its folder, `number` the one in its file's name, or its
    place in a grid of four, where it is one of those."""

    prompt: str
    sample: int
    path: str
    number: int
    in_grid: bool = False


@dataclass(frozen=True, slots=True)
class Folder:
    """The images of a folder in one of the layouts.

    `fingerprint` is the digest of the sorted (relative path, sha256) of all files read. `rewritten`
    maps GenEval's own prompts to the texts that images were drawn from instead.
    """

    root: Path
    layout: Layout
    pictures: list[Picture]
    fingerprint: str
    rewritten: dict[str, str]

    def image(self, picture: Picture) -> Image.Image:
        """A picture's pixels. Raises GapbenchError where its file is broken or is no grid."""
        whole = decode(self.root / picture.path)
        if not picture.in_grid:
            return whole
        width, height = whole.width // 2, whole.height // 2
        if (2 * width, 2 * height) != whole.size:
            raise GapbenchError(
                f"{self.root / picture.path}: {whole.width} x {whole.height} pixels are no grid of "
                "2 x 2 images"
            )
        left, top = picture.number % 2 * width, picture.number // 2 * height
        return whole.crop((left, top, left + width, top + height))

    def text_of(self, prompt: str) -> str:
        """The text that the folder's images of a prompt were drawn from."""
        own = _composed(prompt)
        return self.rewritten.get(own, own)


def read_folder(root: Path) -> Folder:
    """Find, check and hash the images of a folder; pixels are decoded when they are needed."""
    if not root.is_dir():
        raise GapbenchError(f"{root} is not a folder; give one that holds images")
    rewritten: dict[str, str] = {}
    layout, pictures, sources = _find(root, rewritten)
    if not pictures:
        raise GapbenchError(
            f"{root} holds no images in a known layout: manifest.jsonl, GenEval's "
            "<digits>/samples/<digits>.png, T2I-CompBench's <prompt>_<number>.png, or DPG-Bench's "
            f"grids beside {DPG}"
        )
    lines = [f"{ADAPTER}\n"]
    for path in sorted({*sources, *(p.path for p in pictures)}):
        data = _read(inside(root, path, str(root)))
        if path not in sources:
            _header(data, root / path)
        lines.append(f"{path} {hashlib.sha256(data).hexdigest()}\n")
    # A folder may hold a prompt's own images beside those of the rewritten one.
    for text in {picture.prompt for picture in pictures} & rewritten.keys():
        del rewritten[text]
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    return Folder(root, layout, pictures, digest, rewritten)


def decode(file: Path, data: bytes | None = None) -> Image.Image:
    """An image file, or what was read of it, as a viewer shows it.

    Raises GapbenchError, naming it, where it is broken or too large.
    """
    image = _header(_read(file) if data is None else data, file)
    try:
        return shown(image)
    except Exception as error:  # Pillow raises many kinds
        raise GapbenchError(f"{file}: broken image ({error})") from error


def shown(image: Image.Image) -> Image.Image:
    """A picture as RGB, as a viewer shows it: upright by its EXIF orientation, 16-bit grey scaled
    to 8 bits, and what is transparent on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.float64) / 257
        image = Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def _find(root: Path, rewritten: dict[str, str]) -> tuple[Layout, list[Picture], list[str]]:
    """Layout, pictures, and the other files that they were read from; fills in `rewritten`."""
    if (root / "manifest.jsonl").is_file():
        return "manifest", list(_manifest(root)), ["manifest.jsonl"]
    if (root / DPG).is_file():
        return "dpg", _dpg(root), [DPG]
    prompts = sorted(
        f.name for f in root.iterdir() if f.name.isdigit() and (f / "metadata.jsonl").is_file()
    )
    if prompts:
        sources = [f"{name}/metadata.jsonl" for name in prompts]
        return "geneval", _count(root, _geneval(root, sources, rewritten)), sources
    inner = root / "samples" if (root / "samples").is_dir() else root
    numbered = [
        (_composed(match[1]), int(match[2]), file.relative_to(root).as_posix())
        for file in inner.iterdir()
        if not file.name.startswith("._") and (match := _NUMBERED.fullmatch(file.name))
    ]
    return "t2i-compbench", _count(root, sorted(numbered, key=lambda n: (n[1], n[2]))), []


def _composed(text: str) -> str:
    """A text with its accents as macOS's file names do not have them: é as one character."""
    return unicodedata.normalize("NFC", text)


def _count(root: Path, numbered: Sequence[tuple[str, int, str]]) -> list[Picture]:
    """Pictures from (prompt, number, path) in order: the k-th of a prompt is its sample k.

    Raises GapbenchError where two files, say .png and .jpg, have one prompt and number.
    """
    by_prompt: dict[str, dict[int, str]] = {}
    pictures = []
    for prompt, number, path in numbered:
        known = by_prompt.setdefault(prompt, {})
        if number in known:
            raise GapbenchError(
                f"{root}: {known[number]} and {path} are image {number} of one prompt; remove one"
            )
        pictures.append(Picture(prompt, len(known), path, number))
        known[number] = path
    return pictures


def _geneval(
    root: Path, sources: Sequence[str], rewritten: dict[str, str]
) -> list[tuple[str, int, str]]:
    own = {_required(r["category"], r["requirement"]): r["text"] for r in make("test")}
    numbered = []
    for source in sources:
        file = root / source
        record = _object(_read(inside(root, source, str(root))), str(file))
        prompt = record.get("prompt")
        if not isinstance(prompt, str):
            raise GapbenchError(f"{file}: no text 'prompt'")
        official = own.get(_required(record.get("tag"), record), prompt)
        if official != prompt:
            rewritten[official] = prompt
        samples = file.parent / "samples"
        names = [f.name for f in samples.iterdir()] if samples.is_dir() else []
        matched = sorted((int(m[1]), n) for n in names if (m := _GENEVAL.fullmatch(n)))
        numbered += [(prompt, k, (samples / n).relative_to(root).as_posix()) for k, n in matched]
    return numbered


def _dpg(root: Path) -> list[Picture]:
    rows = read(inside(root, DPG, str(root)), ("item_id", "text"))
    texts, items = dict[str, str](), dict[str, str]()
    for record, place in rows:
        item, text = record["item_id"], record["text"]
        if texts.setdefault(item, text) != text or items.setdefault(text, item) != item:
            raise GapbenchError(f"{place}: an item has one text, and no two items have the same")
    pictures, seen = [], dict[str, str]()
    for name in sorted(file.name for file in root.iterdir()):
        if name.startswith("._") or not (match := _ITEM.fullmatch(name)):
            continue
        item = match[1]
        if item not in texts:
            raise GapbenchError(f"{root / name}: {DPG} has no item {item!r}")
        if item in seen:
            raise GapbenchError(f"{root}: {seen[item]} and {name} are of one item; remove one")
        seen[item] = name
        pictures += [Picture(_composed(texts[item]), k, name, k, True) for k in range(4)]
    return pictures


def _required(tag: Any, record: Mapping[str, Any]) -> str:
    """What tells one GenEval prompt from another, whatever its words."""
    return json.dumps([tag, record.get("include"), record.get("exclude")], sort_keys=True)


def _manifest(root: Path) -> Iterator[Picture]:
    file, seen = root / "manifest.jsonl", set[tuple[str, int]]()
    data = _read(inside(root, "manifest.jsonl", str(root)))
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
        inside(root, row["image"], place)
        yield Picture(row["prompt"], row["sample"], row["image"], row["sample"])


def _object(data: bytes, place: str) -> dict[str, Any]:
    row = parsed(data, place)
    if not isinstance(row, dict):
        raise GapbenchError(f"{place}: not a JSON object")
    return row


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
