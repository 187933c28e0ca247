"""Data sets of which no revision is on record: the newest one, or a copy of the user's own.

What a branch holds today need not be what a figure of last year was computed on. So the text
columns of the Parquet files go into the cache under their own digest, which is checked at every use
and is part of the task's version: figures of two revisions never share a name.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gapbench.fetch.hub import snapshot, trouble
from gapbench.fetch.sources import cache_folder
from gapbench.files import sha256_of, write_atomic
from gapbench.tasks.records import read
from gapbench.types import GapbenchError


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A data set on the hub, OWNER/NAME, as Parquet files with these text `columns`.

    `rows` are the sizes that its revisions are known to have had: with another it is not whole.
    `bytes` is about what a download of it takes, pictures included.
    """

    dataset: str
    columns: tuple[str, ...]
    rows: tuple[int, ...]
    bytes: int
    license: str

    @property
    def name(self) -> str:
        return self.dataset.rsplit("/", 1)[-1]

    @property
    def folder(self) -> Path:
        """Where its text is kept, in a file named by its sha256."""
        return cache_folder() / "copies" / self.dataset.replace("/", "--")

    def digest(self) -> str | None:
        """sha256 of the text that is here, None where there is none or it was altered."""
        files = sorted(self.folder.glob("*.jsonl"))
        return next((f.stem for f in files if sha256_of(f) == f.stem), None)

    def commit(self) -> str | None:
        """The commit that `fetch` took it from; None for a copy of the user's own."""
        file = self.folder / f"{self.digest()}.commit"
        return file.read_text() if file.is_file() else None

    def records(self, what: str) -> list[dict[str, Any]]:
        """The rows. Raises GapbenchError where they are not here, or not as they came."""
        digest = self.digest()
        if digest is None:
            raise GapbenchError(f"{what} needs {self.dataset}: {self.how()}")
        lines = (self.folder / f"{digest}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]  # ASCII: no line ends in their midst

    def how(self) -> str:
        """How a person brings a copy."""
        return (
            f"no revision of {self.dataset} is on record; with a network `gapbench prepare` "
            f"fetches the newest, or download one (hf download {self.dataset} --repo-type dataset "
            f"--local-dir DIR/{self.name}) and run `gapbench prepare --data DIR`, which keeps its "
            f"text and sha256 under {self.folder}"
        )

    def fetch(self) -> None:
        """Take the text columns of the newest revision, and note its commit.

        Raises GapbenchError where it cannot be downloaded, or as `adopt` does.
        """
        try:
            folder = snapshot(self.dataset, "main", ["*.parquet"], "dataset")
        except Exception as error:  # the hub client raises many kinds
            raise GapbenchError(
                f"{self.dataset} cannot be downloaded ({trouble(error)}); {self.how()}"
            ) from error
        self._keep(sorted(folder.rglob("*.parquet")))
        write_atomic(self.folder / f"{self.digest()}.commit", folder.name.encode())

    def adopt(self, data: Path) -> bool:
        """Take the text columns of a copy below `data`; False where there is none.

        A copy is the Parquet files of one folder that is, or lies in, a folder named NAME or
        ...--NAME, as the hub's client makes them. Raises GapbenchError as `_keep` does.
        """
        root = data.resolve()
        files = [
            file
            for file in sorted(root.rglob("*.parquet"))
            if any(
                part == self.name or part.endswith(f"--{self.name}")
                for part in (root.name, *file.relative_to(root).parts[:-1])
            )
        ]
        if files:
            self._keep(files)
        return bool(files)

    def _keep(self, files: list[Path]) -> None:
        """Keep the text columns of these files. Raises GapbenchError where they are of several
        folders or are not the data set's by columns or size, or the cache holds another copy."""
        folders = {file.parent for file in files}
        if len(folders) > 1:
            first, second = sorted(folders)[:2]
            raise GapbenchError(
                f"{self.dataset}: there are copies in {first} and {second}; name one with --data"
            )
        rows = [row for file in files for row, _ in read(file, self.columns)]
        if len(rows) not in self.rows:
            known = " or ".join(map(str, self.rows))
            raise GapbenchError(
                f"{files[0].parent if files else 'main'}: {len(rows)} rows in {len(files)} files, "
                f"but {self.dataset} has {known}; bring all of its files"
            )
        text = "".join(
            json.dumps({c: row[c] for c in self.columns}) + "\n" for row in rows
        ).encode()
        digest, held = hashlib.sha256(text).hexdigest(), self.digest()
        if held not in {None, digest}:
            raise GapbenchError(
                f"{self.dataset}: {files[0].parent} holds other text (sha256 {digest}) than the "
                f"cache; delete {self.folder / f'{held}.jsonl'} to use it"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / f"{digest}.jsonl", text)
