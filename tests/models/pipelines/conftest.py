"""Tiny pipelines, made once."""

from __future__ import annotations

from pathlib import Path

import pipelines
import pytest


@pytest.fixture(scope="session")
def tiny_pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of a pipeline of each kind."""
    place = tmp_path_factory.mktemp("pipelines")
    return {kind: pipelines.write(kind, place / f"tiny-{kind}") for kind in pipelines.KINDS}
