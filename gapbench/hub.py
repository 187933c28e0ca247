"""Checkpoints from the hub: pinned, verified, cached."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import sleep

from gapbench.fetch import ATTEMPTS
from gapbench.types import GapbenchError


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Weights and settings as the file that uses them names them.

    `files` maps each file to its sha256, or to None where the revision alone pins it; `bytes` is
    about what they take together.
    """

    repo: str
    revision: str
    license: str
    files: Mapping[str, str | None]
    bytes: int = 0

    def __hash__(self) -> int:
        return hash((self.repo, self.revision))

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit; a branch may hold other weights tomorrow."""
        return re.fullmatch("[0-9a-f]{40}", self.revision) is not None

    @property
    def fingerprint(self) -> str:
        """What an answer made with it depends on; of a branch, the commit that is here."""
        named = " ".join(f"{name}:{sha256}" for name, sha256 in sorted(self.files.items()))
        folder = None if self.pinned else _here(self)
        revision = self.revision if folder is None else folder.name
        return hashlib.sha256(f"{self.repo}@{revision} {named}".encode()).hexdigest()


def present(checkpoint: Checkpoint) -> bool:
    """Whether all of a checkpoint's files are in the hub's cache, and the ones named."""
    folder = _here(checkpoint)
    try:
        verify(folder or Path(), checkpoint.files, checkpoint.repo)
    except GapbenchError:
        return False
    return folder is not None


def _here(checkpoint: Checkpoint) -> Path | None:
    """The folder of a checkpoint's files, named by its commit, where the cache holds them all."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(checkpoint.repo, revision=checkpoint.revision, local_files_only=True)
        )
    except Exception:  # not there: the hub client raises many kinds
        return None
    return folder if all((folder / name).is_file() for name in checkpoint.files) else None


def fetch(checkpoint: Checkpoint) -> Path:
    """The folder of a checkpoint's files, downloaded into the hub's cache where they are missing.

    What is here is used as it is, so that a branch is followed once and no further.

    Raises GapbenchError where a file cannot be had or is not the one named, naming the files and
    the folder that they belong in; HF_HUB_OFFLINE=1 keeps it off the network.
    """
    from huggingface_hub import constants

    try:
        folder = _here(checkpoint) or _download(checkpoint)
    except Exception as error:  # the hub client raises many kinds
        files = ", ".join(
            name + (f" (sha256 {sha256})" if sha256 else "")
            for name, sha256 in checkpoint.files.items()
        )
        place = Path(constants.HF_HUB_CACHE) / f"models--{checkpoint.repo.replace('/', '--')}"
        raise GapbenchError(
            f"{checkpoint.repo} at {checkpoint.revision} cannot be had "
            f"({str(error).strip().splitlines()[0]}); it is {files}; run `gapbench prepare` where "
            f"there is a network, and copy {place} from there"
        ) from error
    verify(folder, checkpoint.files, f"{checkpoint.repo} at {checkpoint.revision}")
    return folder


def _download(checkpoint: Checkpoint) -> Path:
    """Its folder, from the network; the hub client goes on where a file broke off, but gives up at
    a server's first refusal."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    attempt = 1
    while True:
        try:
            return Path(
                snapshot_download(
                    checkpoint.repo,
                    revision=checkpoint.revision,
                    allow_patterns=list(checkpoint.files),
                )
            )
        except HfHubHTTPError as error:
            if attempt == ATTEMPTS or error.response.status_code < 500:
                raise
            sleep(min(8.0, 0.5 * 2**attempt))
            attempt += 1


def verify(folder: Path, files: Mapping[str, str | None], name: str) -> None:
    """Raises GapbenchError where a file is missing or its sha256 is not the one named."""
    for file, wanted in files.items():
        path = folder / file
        if not path.is_file():
            raise GapbenchError(f"{name}: {path} is missing; delete the folder and fetch it again")
        if wanted is None:
            continue
        with path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if digest != wanted:
            raise GapbenchError(
                f"{name}: {path} has sha256 {digest}, expected {wanted}; delete it and fetch it "
                "again, or name your own checkpoint"
            )
