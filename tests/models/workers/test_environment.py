"""Workers' environments: source by commit, packages by lock, and what is said where they lack."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gapbench.models import load_model
from gapbench.models.entry import Entry, Upstream, hub
from gapbench.models.registry import MODELS
from gapbench.models.workers.environment import (
    differences,
    prepare_worker,
    prepared,
)
from gapbench.models.workers.rows import WORKERS
from gapbench.runs.flow import run
from gapbench.types import GapbenchError

HERE = Path(__file__).parent / "scripts"
Command = Callable[..., "subprocess.CompletedProcess[str]"]


def git(folder: Path, *args: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *identity, *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of PATH, which has git and not uv."""
    git = shutil.which("git")
    assert git is not None
    folder = tmp_path / "path"
    folder.mkdir()
    (folder / "git").symlink_to(git)
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def standin(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> Upstream:
    """A registered model "stand-in" whose upstream is a repository on this disk."""
    monkeypatch.setenv("GAPBENCH_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "repository"
    repository.mkdir()
    git(repository, "init", "-q")
    (repository / "model.py").write_text("print('upstream')\n")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "one")
    lock = tmp_path / "stand_in.lock"
    lock.write_text("# none\n")
    made = Upstream(
        url=str(repository),
        commit=git(repository, "rev-parse", "HEAD"),
        script=HERE / "standin.py",
        lock=lock,
        pythons=(f"{sys.version_info.major}.{sys.version_info.minor}",),
        dtype="float32",
    )
    entry = Entry(
        summary="", family="worker", license="", parameters="", memory="", recipe={"steps": 2},
        capabilities=frozenset({"generate", "judge_logits", "judge_text", "image_tokens"}),
        source="", upstream=made,
    )  # fmt: skip
    monkeypatch.setitem(MODELS, "stand-in", entry)
    return made


def test_an_environment_of_ones_own(standin: Upstream, tmp_path: Path) -> None:
    with pytest.raises(GapbenchError, match=r"run `gapbench prepare --model stand-in`, with --wor"):
        load_model("stand-in")
    assert not prepared("stand-in", MODELS["stand-in"])
    prepare_worker("stand-in", MODELS["stand-in"], Path(sys.executable))
    assert prepared("stand-in", MODELS["stand-in"])
    done = run("stand-in", "shapes", limit=2, samples=1, out=tmp_path / "runs")
    assert len(done.frame()) == 2
    other = load_model("stand-in", recipe={"steps": "3"})
    assert other.recipe == {"steps": 3}
    other.release()
    with pytest.raises(GapbenchError, match="computes in float32, not in bfloat16"):
        load_model("stand-in", dtype="bfloat16")


def test_a_made_environment(standin: Upstream) -> None:
    said: list[str] = []
    prepare_worker("stand-in", MODELS["stand-in"], None, said.append)
    assert [line.split()[0] for line in said] == ["fetching", "making"]
    assert "with venv and pip" in said[1]
    model = load_model("stand-in")
    assert model.versions["pillow"] == "missing"  # type: ignore[attr-defined]
    model.release()
    prepare_worker("stand-in", MODELS["stand-in"], None, said.append)
    assert len(said) == 2
    standin.lock.write_text("# others\n")
    with pytest.raises(GapbenchError, match="was made for other packages"):
        load_model("stand-in")


UV = """#!/bin/sh
echo "$@" >> "{log}"
if [ "$1" = venv ]; then
    for last; do true; done
    exec "{python}" -m venv --without-pip "$last"
fi
"""


@pytest.mark.parametrize("version", [None, "3.1"])
def test_uv_makes_the_environment_where_it_is_installed(
    standin: Upstream, path: Path, monkeypatch: pytest.MonkeyPatch, version: str | None
) -> None:
    """Of the interpreter that is here, else of the version that uv shall download."""
    log = path / "log"
    (path / "uv").write_text(UV.format(log=log, python=sys.executable))
    (path / "uv").chmod(0o755)
    upstream = replace(standin, pythons=(version,) if version else standin.pythons)
    monkeypatch.setitem(MODELS, "stand-in", replace(MODELS["stand-in"], upstream=upstream))
    said: list[str] = []
    prepare_worker("stand-in", MODELS["stand-in"], None, said.append)
    assert f"with uv, Python {version or sys.executable}, in " in said[1]
    make, install = (line.split() for line in log.read_text().splitlines())
    assert make[:-1] == ["venv", "--quiet", "--seed", "--python", version or sys.executable]
    python = f"{make[-1]}/bin/python"
    assert install == ["pip", "install", "--quiet", "--python", python, "-r", str(standin.lock)]
    model = load_model("stand-in")
    model.release()


def test_a_source_that_was_altered(standin: Upstream, tmp_path: Path) -> None:
    prepare_worker("stand-in", MODELS["stand-in"], Path(sys.executable))
    (file,) = (tmp_path / "cache").rglob("model.py")
    file.write_text("print('mine')\n")
    with pytest.raises(GapbenchError, match="is not upstream's commit as it was; delete it"):
        load_model("stand-in")


def test_a_commit_that_is_not_there(
    standin: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(standin, commit="0" * 40)
    monkeypatch.setitem(MODELS, "stand-in", replace(MODELS["stand-in"], upstream=other))
    with pytest.raises(GapbenchError, match="at 000000000000 could not be fetched: ") as refused:
        prepare_worker("stand-in", MODELS["stand-in"], Path(sys.executable))
    assert "\n" not in str(refused.value)
    assert not prepared("stand-in", MODELS["stand-in"])


def test_packages_that_cannot_be_had(standin: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    standin.lock.write_text("no-such-package==1.0\n")
    with pytest.raises(GapbenchError, match=r"could not be installed: .*no-such-package==1\.0"):
        prepare_worker("stand-in", MODELS["stand-in"])
    assert not prepared("stand-in", MODELS["stand-in"])


def test_no_interpreter_of_the_right_version(
    standin: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(standin, pythons=("3.1",))
    monkeypatch.setitem(MODELS, "stand-in", replace(MODELS["stand-in"], upstream=other))
    with pytest.raises(GapbenchError, match=r"need Python 3\.1, and there is no python3\.1 here"):
        prepare_worker("stand-in", MODELS["stand-in"])


def test_weights_that_are_not_here(standin: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(MODELS["stand-in"], needs={"model": hub("some/model", "MIT", 1.0, "*")})
    monkeypatch.setitem(MODELS, "stand-in", entry)
    prepare_worker("stand-in", MODELS["stand-in"], Path(sys.executable))
    with pytest.raises(
        GapbenchError, match=r"its model checkpoint, some/model .* is not here; run"
    ):
        load_model("stand-in")


def test_differences_from_a_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("# a==1\nNo_Such==1.0\npillow==0.1\n")
    missing, other = differences(Path(sys.executable), lock)
    assert missing == "no-such is missing, upstream pins 1.0"
    assert re.fullmatch(r"pillow [\d.]+, upstream pins 0\.1", other)
    with pytest.raises(GapbenchError, match=r"--worker-python /no/python: .*No such file"):
        differences(Path("/no/python"), lock)


def test_the_rows_and_the_files_agree() -> None:
    for name, entry in WORKERS.items():
        upstream = entry.upstream
        assert upstream is not None
        spec = importlib.util.spec_from_file_location("one_worker", upstream.script)
        assert spec is not None
        assert spec.loader is not None
        worker = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(worker)
        assert set(worker.Worker.capabilities) == MODELS[name].capabilities
        pins = [
            line
            for line in upstream.lock.read_text().splitlines()
            if line and not line.startswith("#")
        ]
        assert all("==" in line or " @ " in line for line in pins)
        assert re.fullmatch("[0-9a-f]{40}", upstream.commit)
        assert upstream.commit[:7] in upstream.script.read_text()


def test_the_command_line(cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAPBENCH_CACHE", str(tmp_path / "cache"))
    for name in ("vila-u", "blip3-o"):
        refused = cli("run", "--model", name)
        assert refused.returncode == 2
        assert refused.stderr.startswith(f"gapbench: model {name}: its environment is not here")
        assert refused.stderr.count("\n") == 1
        assert f"gapbench prepare --model {name}" in cli("models", name).stdout
    wanted = cli("prepare", "--model", "vila-u,blip3-o", "--dry-run").stdout
    assert wanted.count("source and environment") == 2
    refused = cli("prepare", "--model", "janus-pro", "--worker-python", sys.executable)
    assert "name a worker's model by --model" in refused.stderr
