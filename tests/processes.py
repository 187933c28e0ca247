"""A command as a process of its own, forked from a server that has imported what takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

CHILD = """
import os, sys, warnings
warnings.simplefilter("default")
os.chdir(folder)
os.environ.update(environment)
sys.path[:0] = ["", *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
for number, name in ((1, "out"), (2, "err")):
    file = os.path.join(logs, name + mark)
    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
try:
    exec(code)
finally:
    sys.stdout.flush()
    sys.stderr.flush()
"""
COMMAND = """
import sys
sys.argv = ["gapbench", *arguments]
from gapbench.cli.main import main
main()
"""
WARM = """
import os
os.environ.pop("COLUMNS", None)  # readline, which pytest may import, sets it for processes
from gapbench.models import torchvision_shim
torchvision_shim.ensure()
import accelerate, datasets, peft, pandas, matplotlib.figure, PIL.ImageFont
import gapbench.cli.main, gapbench.fix.run, gapbench.fix.trainer, gapbench.fix.network
import gapbench.metrics, gapbench.models.janus.adapter, gapbench.models.emu3
import gapbench.cli.progress, gapbench.report.sheets, gapbench.report.tables
import gapbench.comparison.compare, gapbench.judges.pixel, gapbench.leaderboard.verify, tabulate
import transformers.models.janus.modeling_janus, transformers.models.janus.processing_janus
import transformers.models.emu3.modeling_emu3, transformers.models.emu3.processing_emu3
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
# Made once a process, which takes a second.
get_checkpoint_conversion_mapping("janus")
gapbench.load_task("shapes").prompts()
"""
Start = Callable[..., BaseProcess]


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start `gapbench ARGUMENTS`, or some code, in a folder; what it says is in `out` and `err`."""
    warm = tmp_path_factory.mktemp("warm")
    (warm / "gapbench_warm.py").write_text(WARM)
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["gapbench_warm"])

    def call(
        folder: Path,
        *arguments: str,
        code: str = COMMAND,
        environment: Mapping[str, str] | None = None,
        mark: str = "",
        logs: Path | None = None,
    ) -> BaseProcess:
        known = {
            "folder": str(folder), "arguments": list(map(str, arguments)), "code": code,
            "environment": dict(environment or {}), "mark": mark, "logs": str(logs or folder),
        }  # fmt: skip
        process = server.Process(target=exec, args=(CHILD, known))
        process.start()
        return process

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(warm), *sys.path]))
        ensure_running()  # now: a test may set another PYTHONPATH
        yield call


def finish(process: BaseProcess) -> int | None:
    process.join(300)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    process.close()
    return code


@pytest.fixture(scope="session")
def end() -> Callable[[BaseProcess], int | None]:
    """Wait for a process and give its exit code."""
    return finish


@pytest.fixture
def wait_until() -> Callable[[Callable[[], object], BaseProcess], None]:
    def wait(ready: Callable[[], object], process: BaseProcess) -> None:
        limit = time.monotonic() + 240  # on a busy machine
        while not ready():
            assert process.is_alive(), "the process ended before the moment came"
            assert time.monotonic() < limit
            time.sleep(0.01)

    return wait
