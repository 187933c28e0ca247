"""Engines: where the batches of a run are worked off."""

from __future__ import annotations

from typing import Literal

from gapbench.engines.base import Engine, Source
from gapbench.engines.local import Local
from gapbench.types import GapbenchError


def make_engine(
    name: Literal["local", "ray"] | None,
    workers: int | Literal["all"],
    address: str | None,
    model: Source,
) -> Engine:
    """The engine that a command's options name; by default this process, or Ray where workers or an
    address are given. Nothing is started yet.

    Raises GapbenchError where the options contradict each other, Ray is not installed, or the
    model cannot be made in another process.
    """
    if name is None:
        name = "ray" if workers != 1 or address else "local"
    if name == "local":
        if workers != 1 or address:
            wrong = f"--ray-address {address}" if address else f"--workers {workers}"
            raise GapbenchError(f"{wrong} needs --engine ray, not local")
        return Local()
    if model.here.gpus is None:
        raise GapbenchError(f"--workers copies weights; {model.here.name} has none here")
    if model.make is None:
        raise GapbenchError("workers: give the model by its name, so that copies can be made")
    try:
        from gapbench.engines.ray import RayEngine
    except ImportError as error:
        raise GapbenchError(
            f'--workers {workers}: Ray is not installed ({error}); pip install "gapbench[ray]", or '
            "leave out --workers, --engine and --ray-address"
        ) from error
    return RayEngine(workers, address)
