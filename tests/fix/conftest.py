"""`gapbench fix` as a process, and as the two of torchrun."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Start, finish


@pytest.fixture
def group(start: Start) -> Callable[..., list[int | None]]:
    """Run two processes as torchrun would; gives their exit codes."""

    def call(folder: Path, *arguments: object, **more: str) -> list[int | None]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        environment = {
            "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        both = [
            start(
                folder,
                *map(str, arguments),
                environment={**environment, "RANK": rank, "LOCAL_RANK": rank},
                mark=rank,
                **more,
            )
            for rank in ("0", "1")
        ]
        return [finish(process) for process in both]

    return call
