"""A run's folder as a data set of the hub, a checkpoint's folder as a model."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Final, Literal

from gapbench.files import first_line
from gapbench.runs.listing import find_run
from gapbench.types import GapbenchError

LEFT_OUT: Final = (".*", "*.part")
"""Locks and unfinished files."""


@dataclass(frozen=True, slots=True)
class Push:
    """What would be sent where: files are named relative to `folder`."""

    folder: Path
    repo: str
    kind: Literal["dataset", "model"]
    files: list[str]
    bytes: int

    def words(self) -> str:
        """What would be sent, in words."""
        kinds = Counter(Path(name).suffix or name for name in self.files)
        listed = ", ".join(f"{count} {suffix}" for suffix, count in kinds.most_common())
        return (
            f"{self.kind} {self.repo}: {len(self.files)} files ({listed}), "
            f"{self.bytes / 1e6:.1f} MB from {self.folder}; a new repository is private"
        )


def plan(folder: Path, repo: str) -> Push:
    """What pushing a folder, or a run by its name, to a repository OWNER/NAME would send. It
    touches no network.

    Raises GapbenchError for a folder that is neither a run nor a checkpoint, for a link in it, and
    for another form of name.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII):
        raise GapbenchError(f"--repo {repo}: give OWNER/NAME")
    folder = folder if folder.is_dir() else find_run(folder)
    kind: Literal["dataset", "model"]
    if (folder / "run.json").is_file():
        kind = "dataset"
    elif (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        kind = "model"
    else:
        raise GapbenchError(
            f"{folder}: neither a run folder (run.json) nor a checkpoint (config.json or "
            "adapter_config.json)"
        )
    files, size = [], 0
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if any(fnmatch(part, pattern) for part in name.parts for pattern in LEFT_OUT):
            continue
        if file.is_symlink():
            raise GapbenchError(f"{file} is a link; only files of the folder itself are sent")
        if file.is_file():
            files.append(name.as_posix())
            size += file.stat().st_size
    return Push(folder, repo, kind, files, size)


def push(planned: Push) -> str:
    """Send it, into a repository that is made private where there is none; what the hub has already
    is not sent again. Returns the repository's address.

    A run without README.md gets one with its table. Raises GapbenchError where the hub refuses.
    """
    from huggingface_hub import HfApi

    card = _card(planned) if "README.md" not in planned.files else None
    api = HfApi()
    try:
        made = api.create_repo(
            planned.repo, repo_type=planned.kind, visibility="private", exist_ok=True
        )
        api.upload_folder(
            repo_id=planned.repo,
            repo_type=planned.kind,
            folder_path=planned.folder,
            ignore_patterns=[p for pattern in LEFT_OUT for p in (pattern, f"*/{pattern}")],
            commit_message="Upload by gapbench push",
        )
        if card is not None:
            api.upload_file(
                repo_id=planned.repo,
                repo_type=planned.kind,
                path_or_fileobj=card.encode(),
                path_in_repo="README.md",
                commit_message="Say what was measured",
            )
    except Exception as error:  # the hub client raises many kinds
        why = first_line(error)
        raise GapbenchError(
            f"{planned.repo}: the hub did not take it ({why}); are you logged in "
            "(`hf auth login`)? The same command goes on"
        ) from error
    return str(made)


def _card(planned: Push) -> str | None:
    """A run's README with its table, for the hub."""
    if planned.kind == "model":
        return None
    from gapbench.report.tables import render
    from gapbench.runs.run import open_run

    run = open_run(planned.folder)
    versions = ", ".join(f"{name} {version}" for name, version in run.plan.tasks.items())
    return (
        f"---\ntags: [gapbench]\n---\n\n# {run.name} on {versions}\n\n"
        "Images, own verdicts and outside verdicts of a gapbench run. Percent, with 95 % intervals "
        f"over prompts.\n\n{render(run.rates(), 'markdown', run.footnote, run.unfinished)}\n\n"
        f"Model fingerprint `{run.folder.meta['identity']['model']}`, seed {run.plan.seed}.\n"
    )
