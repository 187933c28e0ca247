"""How the hub's libraries behave in this process."""

from __future__ import annotations

import os


def go_offline(offline: bool | None) -> None:
    """Keep the hub's libraries off the network; only before they are imported."""
    if offline:
        os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def is_offline() -> bool:
    """Whether this process is to stay off the network."""
    return os.environ.get("HF_HUB_OFFLINE") == "1"


def allow_http(allowed: bool) -> None:
    """Let clients send to other machines by plain http, in this process and those it starts."""
    if allowed:
        os.environ["GAPBENCH_ALLOW_HTTP"] = "1"


def may_use_http() -> bool:
    """Whether plain http to other machines was allowed."""
    return os.environ.get("GAPBENCH_ALLOW_HTTP") == "1"


def quiet() -> None:
    """Keep libraries' chatter out of the progress bars."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # each new attempt is three lines
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
