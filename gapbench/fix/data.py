"""The training set: accepted candidates as a `datasets` dataset on disk, with card and digest."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gapbench.runs.folder import RunFolder
from gapbench.types import GapbenchError, Generation

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS: Final = {
    "prompt": "the text that was drawn",
    "task": "its task, with the split",
    "category": "its category",
    "origin": '"epoch 0" for the first candidates, "epoch E" for those of the replay at epoch E',
    "image": "the picture",
    "tokens": "the ids that were drawn; training uses these, never the picture",
    "latents": "what the picture was decoded from, (channels, height, width) in float32; training "
    "uses these, never the picture",
    "seed": "the seed of its random stream",
    "p_yes": "the probability that the model itself gave to a verdict of 1",
}
"""A set holds tokens or latents. Of a pair, what is an image's comes twice, with the suffixes
_chosen and _rejected."""
ENDS: Final = ("", "_chosen", "_rejected")
PAIR: Final = ("drawing_chosen", "drawing_rejected")
"""Columns of pairs, as `load` calls them."""
WRITTEN: Final = 10
"""Rows that are in memory when a set is written: latents have a megabyte at 1024 pixels."""


def kept(folder: RunFolder, drawn: Generation) -> dict[str, str]:
    """The digest of what an image is trained on, by its column: latents where it has some, else
    tokens. Raises GapbenchError where it has neither."""
    if drawn.latents:
        return {"latents": drawn.latents}
    if drawn.tokens:
        return {"tokens": drawn.tokens}
    raise GapbenchError(
        f"{folder.path}: the image of {drawn.prompt!r} with seed {drawn.seed} was kept without "
        "tokens and without latents, so nothing can be trained on it. If the model's adapter keeps "
        "them now, delete this folder and run the same command again"
    )


def rows_of(chosen: pd.DataFrame, folder: RunFolder, origin: str) -> list[dict[str, Any]]:
    """Training rows of accepted candidates or of pairs, by the digests of their files."""
    drawn = folder.generations()
    paired = "seed_chosen" in chosen
    suffixes = ("_chosen", "_rejected") if paired else ("",)
    rows = []
    for record in chosen.to_dict("records"):
        first = suffixes[0]
        row: dict[str, Any] = {"prompt": record["text"], "origin": origin}
        row |= {key: record[f"{key}{first}"] for key in ("task", "category")}
        for end in suffixes:
            seed = int(record[f"seed{end}"])
            digests = kept(folder, drawn[record["text"], seed])
            row |= {f"{column}{end}": value for column, value in digests.items()}
            row |= {
                f"image{end}": record[f"image{end}"],
                f"seed{end}": seed,
                f"p_yes{end}": float(record[f"p_yes{end}"]),
            }
        rows.append(row | {"folder": str(folder.path)})
    return rows


def digest(rows: Sequence[Mapping[str, Any]]) -> str:
    """Sha256 over what is trained on, in order; images, tokens and latents by their digests."""
    hasher = hashlib.sha256()
    for row in rows:
        told = {key: value for key, value in row.items() if key != "folder"}
        hasher.update(json.dumps(told, sort_keys=True).encode() + b"\n")
    return hasher.hexdigest()


def write(rows: Sequence[Mapping[str, Any]], folder: Path, card: str) -> None:
    """Replace the dataset in `folder`; `card` becomes its README.md.

    Raises GapbenchError where a candidate's file is missing or altered, and where tokens or latents
    differ in shape: they are trained on in batches.
    """
    import datasets
    from datasets.exceptions import DatasetGenerationError

    datasets.disable_progress_bars()
    runs = {place: RunFolder.open(Path(place)) for place in {row["folder"] for row in rows}}
    features = {
        key: _feature(key, value) for key, value in _example(rows[0], runs[rows[0]["folder"]])
    }

    def examples() -> Iterator[dict[str, Any]]:
        forms = set[str]()
        for row in rows:
            example = dict(_example(row, runs[row["folder"]]))
            forms |= {
                f"{key.partition('_')[0]} of {' x '.join(map(str, value.shape))}"
                for key, value in example.items()
                if isinstance(value, np.ndarray)
            }
            if len(forms) > 1:
                raise GapbenchError(
                    f"{row['folder']}: its images were kept as {' and as '.join(sorted(forms))}; "
                    "training takes one size: let the model draw all images in it"
                )
            yield example

    part, cache = folder.with_name(f"{folder.name}.part"), folder.with_name(f"{folder.name}.cache")
    for old in (part, cache):
        shutil.rmtree(old, ignore_errors=True)
    try:
        # The digest as fingerprint: pickling the rows for one would take longer than writing them.
        made = datasets.Dataset.from_generator(
            examples,
            features=datasets.Features(features),
            cache_dir=str(cache),
            fingerprint=digest(rows)[:16],
            writer_batch_size=WRITTEN,
        )
        made.save_to_disk(part)
        (part / "README.md").write_text(card, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except (OSError, DatasetGenerationError) as error:
        if isinstance(error.__cause__, GapbenchError):
            raise error.__cause__ from None
        raise GapbenchError(
            f"{folder}: {error.__cause__ or error}; make room or mend it, then run the same "
            "command again"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(cache, ignore_errors=True)


def _example(row: Mapping[str, Any], run: RunFolder) -> Iterator[tuple[str, Any]]:
    """A row's columns, with the files that it names by their digests."""
    for key, value in row.items():
        match key.partition("_")[0]:
            case "image":
                yield key, {"bytes": run.image_bytes(value), "path": None}
            case "tokens":
                yield key, run.tokens(value)
            case "latents":
                yield key, run.latents(value)
            case "folder":
                pass
            case _:
                yield key, value


def _feature(key: str, value: Any) -> Any:
    """How datasets stores a column, by one of its values."""
    from datasets import Array3D, Image, List, Value

    match key.partition("_")[0]:
        case "image":
            return Image()
        case "tokens":
            return List(Value("int32"))
        case "latents":
            return Array3D(value.shape, "float32")
        case "seed":
            return Value("int64")
        case "p":
            return Value("float64")
    return Value("string")


def load(folder: Path) -> Dataset:
    """What is trained on: the columns prompt, and drawing or drawing_chosen and drawing_rejected,
    which are read as arrays when they are needed."""
    from datasets import load_from_disk

    rows: Any = load_from_disk(folder)
    drawings = {
        name: f"drawing{name.removeprefix(column)}"
        for name in rows.column_names
        for column in ("tokens", "latents")
        if name.startswith(column)
    }
    rows = rows.select_columns(["prompt", *drawings]).rename_columns(drawings)
    made: Dataset = rows.with_format("numpy", [*drawings.values()], output_all_columns=True)
    return made


def card(title: str, facts: Mapping[str, object], row: Mapping[str, Any]) -> str:
    """A dataset card: front matter, facts as a table, the columns of a row."""
    lines = ["---", "tags: [gapbench, text-to-image, self-improvement]", "---", f"# {title}", ""]
    lines += [
        "Candidates that a unified model drew and accepted itself, as gapbench fix trains on them",
        "(arXiv 2507.16663, algorithms 1 and 2).",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in facts.items()),
        "",
        "| column | holds |",
        "|---|---|",
    ]
    for key, what in COLUMNS.items():
        if names := [name for name in (f"{key}{end}" for end in ENDS) if name in row]:
            lines.append(f"| {', '.join(names)} | {what} |")
    lines += ["", "`datasets.load_from_disk(folder).push_to_hub(name)` publishes it.", ""]
    return "\n".join(lines)


class Drawn:
    """A phase's steps as a dataset of examples in the order in which they are trained.

    Every epoch is a permutation of its own, and epochs follow each other without a gap up to a
    whole number of batches, so that any number of processes trains the same batches. Order,
    dropout and noise are functions of seed, epoch and row: a resume needs no random state.

    `reference` holds, for DPO, the rows' reference losses in each of the epochs in `turns`.
    """

    def __init__(
        self,
        rows: Dataset,
        epochs: tuple[int, int],
        batch: int,
        dropout: float,
        seed: int,
    ) -> None:
        self.rows, self.dropout, self.seed = rows, dropout, seed
        self.first, self.last = epochs
        self.steps = -(-len(rows) * (epochs[1] - epochs[0]) // batch)
        self._batch = batch
        self.turns = range(self.first, self.first + -(-len(self) // len(rows)))
        self.reference: Mapping[int, Sequence[Sequence[float]]] = {}
        self._orders: dict[int, Any] = {}

    def __len__(self) -> int:
        return self.steps * self._batch

    def noise(self, epoch: int) -> list[int]:
        """A seed for each row: of what is random in its losses in one epoch."""
        stream = np.random.default_rng([self.seed, epoch, 1])
        seeds: list[int] = stream.integers(2**63, size=len(self.rows)).tolist()
        return seeds

    def __getitem__(self, place: int) -> dict[str, Any]:
        turn, offset = divmod(place, len(self.rows))
        epoch = self.turns[turn]
        if epoch not in self._orders:
            stream = np.random.default_rng([self.seed, epoch])
            self._orders = {
                epoch: (
                    stream.permutation(len(self.rows)),
                    stream.random(len(self.rows)) < self.dropout,
                    self.noise(epoch),
                )
            }
        order, dropped, noise = self._orders[epoch]
        index = int(order[offset])
        row: dict[str, Any] = {**self.rows[index]}
        if self.reference:
            row["reference"] = self.reference[epoch][index]
        return {**row, "dropped": bool(dropped[index]), "noise": noise[index]}


def stacked(rows: Sequence[Mapping[str, Any]], column: str) -> NDArray[Any]:
    """The tokens (B, T) int32 or latents (B, channels, height, width) float32 of rows."""
    drawings = np.stack([row[column] for row in rows])
    return drawings.astype(np.int32) if drawings.dtype.kind == "i" else drawings


def collate(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Examples as the arguments of ImageLoss. Drawings stay arrays, as models take them: what holds
    tensors may shorten their numbers."""
    import torch

    def numbers(key: str) -> torch.Tensor:
        return torch.tensor([example[key] for example in examples])

    batch: dict[str, Any] = {
        "prompts": [example["prompt"] for example in examples],
        "dropped": numbers("dropped"),
        "noise": numbers("noise"),
    }
    if "reference" not in examples[0]:
        return batch | {"drawings": stacked(examples, "drawing")}
    return batch | {
        "drawings": stacked(examples, PAIR[0]),
        "rejected": stacked(examples, PAIR[1]),
        "reference": numbers("reference"),
    }
