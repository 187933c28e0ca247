"""Checkpoints from the hub: pinned, verified, cached."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from tenacity import Retrying, retry_if_exception

from gapbench.fetch.libraries import is_offline
from gapbench.fetch.sources import RETRIES, Source
from gapbench.files import first_line, sha256_of
from gapbench.types import GapbenchError


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Weights and settings as the file that uses them names them.

    `files` maps each file to its sha256, or to None where the revision alone pins it; a name with a
    `*` is a pattern that at least one file must fit. `bytes` is about what they take together.
    """

    repo: str
    revision: str
    license: str
    files: Mapping[str, str | None] = field(hash=False)
    bytes: int = 0

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit; a branch may hold other weights tomorrow."""
        return re.fullmatch("[0-9a-f]{40}", self.revision) is not None

    @property
    def fingerprint(self) -> str:
        """What an answer made with it depends on; of a branch, the commit that is here."""
        named = " ".join(f"{name}:{sha256}" for name, sha256 in sorted(self.files.items()))
        folder = None if self.pinned else cached(self)
        revision = self.revision if folder is None else folder.name
        return hashlib.sha256(f"{self.repo}@{revision} {named}".encode()).hexdigest()


class Unreachable(GapbenchError):  # noqa: N818
    """The settings of a checkpoint are not here and cannot be fetched, so that all that is known of
    it stands in `needs`, with what else is needed beside it."""

    def __init__(self, text: str, checkpoint: Checkpoint) -> None:
        super().__init__(text)
        self.needs: tuple[Checkpoint | Source, ...] = (checkpoint,)


def present(checkpoint: Checkpoint) -> bool:
    """Whether all of a checkpoint's files are in the hub's cache, and the ones named."""
    return cached(checkpoint) is not None


def cached(checkpoint: Checkpoint) -> Path | None:
    """The folder of a checkpoint in the hub's cache if all of it is there, named by its commit."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                checkpoint.repo,
                revision=checkpoint.revision,
                allow_patterns=list(checkpoint.files),  # the repository may have more
                local_files_only=True,
            )
        )
        verify(folder, checkpoint.files, checkpoint.repo)
    except Exception:  # not there, or not whole: the hub client raises many kinds
        return None
    return folder


def fetch(checkpoint: Checkpoint) -> Path:
    """The folder of a checkpoint's files, downloaded into the hub's cache where they are missing.

    What is here is used as it is, so that a branch is followed once and no further.

    Raises GapbenchError where a file cannot be downloaded or is not the one named. It names the
    files and the folder that they belong in. HF_HUB_OFFLINE=1 keeps it off the network.
    """
    from huggingface_hub import constants

    try:
        folder = cached(checkpoint) or snapshot(
            checkpoint.repo, checkpoint.revision, list(checkpoint.files)
        )
    except Exception as error:  # the hub client raises many kinds
        files = ", ".join(
            name + (f" (sha256 {sha256})" if sha256 else "")
            for name, sha256 in checkpoint.files.items()
        )
        place = Path(constants.HF_HUB_CACHE) / f"models--{checkpoint.repo.replace('/', '--')}"
        raise GapbenchError(
            f"{checkpoint.repo} at {checkpoint.revision} cannot be downloaded "
            f"({trouble(error)}); it is {files}; run `gapbench prepare` where "
            f"there is a network, and copy {place} from there"
        ) from error
    verify(folder, checkpoint.files, f"{checkpoint.repo} at {checkpoint.revision}")
    return folder


def trouble(error: Exception) -> str:
    """Why a download failed, in one line."""
    return "offline" if is_offline() else first_line(error)


def _may_pass(error: BaseException) -> bool:
    from huggingface_hub.errors import HfHubHTTPError

    return isinstance(error, HfHubHTTPError) and error.response.status_code >= 500


@Retrying(retry=retry_if_exception(_may_pass), **RETRIES).wraps
def snapshot(repo: str, revision: str, patterns: Sequence[str], kind: str = "model") -> Path:
    """The folder, named by its commit, of a repository's files that fit the patterns. The hub
    client goes on where a file broke off, but gives up at a server's first refusal.

    Raises what the hub client raises.
    """
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(repo, repo_type=kind, revision=revision, allow_patterns=list(patterns))
    )


def verify(folder: Path, files: Mapping[str, str | None], name: str) -> None:
    """Raises GapbenchError where a file is missing or its sha256 is not the one named."""
    named = [name for name in _shards(folder) if any(fnmatch(name, file) for file in files)]
    for file, wanted in [*files.items(), *((name, None) for name in named)]:
        path = next(folder.glob(file), folder / file) if "*" in file else folder / file
        if not path.is_file():
            raise GapbenchError(f"{name}: {path} is missing; delete the folder and fetch it again")
        if wanted is None:
            continue
        digest = sha256_of(path)
        if digest != wanted:
            raise GapbenchError(
                f"{name}: {path} has sha256 {digest}, expected {wanted}; delete it and fetch it "
                "again, or name your own checkpoint"
            )


def fetch_settings(
    who: str, repo: str, revision: str | None, patterns: Sequence[str], inside: str = ""
) -> Path:
    """The snapshot folder of a hub checkpoint with its small files, cached or fetched; those in the
    repository's folder `inside`, where it keeps several checkpoints.

    Raises GapbenchError, for `who`, where they cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    under = f"{inside}/" * bool(inside)
    try:
        folder = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=[under + pattern for pattern in patterns],
            ignore_patterns=[f"{under}*/*"],
        )
        if not Path(folder, inside).is_dir():  # offline, the cache may hold only its neighbour
            raise FileNotFoundError(f"it has no folder {inside}")
    except Exception as error:  # the hub client raises many kinds
        at = f" at {revision}" if revision else ""
        name = f"{repo}/{inside}" if inside else repo
        raise GapbenchError(
            f"{who}: {name}{at} cannot be downloaded ({trouble(error)}); with a network, run "
            "`gapbench prepare`, or give a folder"
        ) from error
    return Path(folder)


def whole(
    repo: str, license: str, folder: Path, patterns: Sequence[str], inside: str = ""
) -> Checkpoint:
    """What a hub checkpoint in a snapshot's folder, or in the folder `inside` of it, has: its
    settings, and the weights that these name."""
    place = folder / inside
    settings = {file.name for pattern in patterns for file in place.glob(pattern)}
    shards, size = _index(place / "model.safetensors.index.json")
    names = sorted({*settings, *(shards or ["model.safetensors"])})
    files = dict.fromkeys((Path(inside) / name).as_posix() for name in names)
    return Checkpoint(repo=repo, revision=folder.name, license=license, files=files, bytes=size)


def _shards(folder: Path) -> list[str]:
    """The files that indices of weights name, also in a pipeline's folders: a fetch may have
    stopped between them."""
    return [
        str((index.parent / shard).relative_to(folder))
        for index in sorted(folder.rglob("*.index.json"))
        for shard in _index(index)[0]
    ]


def _index(file: Path) -> tuple[list[str], int]:
    """The files that an index of weights names, each once, and their bytes in all."""
    if not file.is_file():
        return [], 0
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        names = dict.fromkeys(map(str, raw["weight_map"].values()))
        return list(names), int(raw.get("metadata", {}).get("total_size", 0))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise GapbenchError(f"{file}: no index of weights ({error})") from error
