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

from gapbench.runs.folder import RunFolder
from gapbench.types import GapbenchError

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS: Final = {
    "prompt": "the text that was drawn",
    "task": "its task, with the split",
    "category": "its category",
    "origin": '"epoch 0" for the first candidates, "epoch E" for those of the replay at epoch E',
    "image": "the picture",
    "tokens": "the ids that were drawn; training uses these, never the picture",
    "seed": "the seed of its random stream",
    "p_yes": "the probability that the model itself gave to a verdict of 1",
}
PAIRED: Final = ("image", "tokens", "seed", "p_yes")
"""Of a pair these come twice, with the suffixes _chosen and _rejected."""


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
            tokens = drawn[record["text"], seed].tokens
            if tokens is None:
                raise GapbenchError(f"{folder.path}: candidates have no token ids; draw them anew")
            row |= {
                f"image{end}": record[f"image{end}"],
                f"tokens{end}": tokens,
                f"seed{end}": seed,
                f"p_yes{end}": float(record[f"p_yes{end}"]),
            }
        rows.append(row | {"folder": str(folder.path)})
    return rows


def digest(rows: Sequence[Mapping[str, Any]]) -> str:
    """Sha256 over what is trained on, in order; images and tokens by their digests."""
    hasher = hashlib.sha256()
    for row in rows:
        kept = {key: value for key, value in row.items() if key != "folder"}
        hasher.update(json.dumps(kept, sort_keys=True).encode() + b"\n")
    return hasher.hexdigest()


def write(rows: Sequence[Mapping[str, Any]], folder: Path, card: str) -> None:
    """Replace the dataset in `folder`; `card` becomes its README.md."""
    import datasets

    datasets.disable_progress_bars()
    paired = "tokens_chosen" in rows[0]
    features: dict[str, Any] = {
        key: datasets.Value("string") for key in ("prompt", "task", "category", "origin")
    }
    for end in ("_chosen", "_rejected") if paired else ("",):
        features |= {
            f"image{end}": datasets.Image(),
            f"tokens{end}": datasets.List(datasets.Value("int32")),
            f"seed{end}": datasets.Value("int64"),
            f"p_yes{end}": datasets.Value("float64"),
        }

    def examples() -> Iterator[dict[str, Any]]:
        opened: dict[str, RunFolder] = {}
        for row in rows:
            run = opened.setdefault(row["folder"], RunFolder.open(Path(row["folder"])))
            made = {key: row[key] for key in features}
            for key in features:
                if key.startswith("image"):
                    run.image(row[key])  # checked against its digest
                    made[key] = {"bytes": run.image_path(row[key]).read_bytes(), "path": None}
                elif key.startswith("tokens"):
                    made[key] = run.tokens(row[key])
            yield made

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
        )
        made.save_to_disk(part)
        (part / "README.md").write_text(card, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except OSError as error:
        raise GapbenchError(
            f"{folder}: {error}; make room or mend it, then run the same command again"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(cache, ignore_errors=True)


def card(title: str, facts: Mapping[str, object], paired: bool) -> str:
    """A dataset card: front matter, facts as a table, columns."""
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
        names = [f"{key}_chosen", f"{key}_rejected"] if paired and key in PAIRED else [key]
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
        row: dict[str, Any] = self.rows[index]
        if self.reference:
            row["reference"] = self.reference[epoch][index]
        return {**row, "dropped": bool(dropped[index]), "noise": noise[index]}


def collate(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Examples as the arguments of ImageLoss."""
    import torch

    def ids(key: str) -> torch.Tensor:
        return torch.tensor([example[key] for example in examples])

    batch: dict[str, Any] = {
        "prompts": [example["prompt"] for example in examples],
        "dropped": ids("dropped"),
        "noise": ids("noise"),
    }
    if "reference" not in examples[0]:
        return batch | {"tokens": ids("tokens")}
    return batch | {
        "tokens": ids("tokens_chosen"),
        "rejected": ids("tokens_rejected"),
        "reference": ids("reference"),
    }
