"""The environments of models that run as workers: upstream's source at a commit, its packages.

<cache>/workers/source/<model>-<commit>/     upstream's repository
<cache>/workers/env/<lock>/                  a virtual environment, or the name of another
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from gapbench.fetch.sources import cache_folder
from gapbench.files import sha256_of, write_json
from gapbench.models.entry import Entry, Upstream, weights
from gapbench.models.workers.adapter import WorkerModel
from gapbench.models.workers.rows import SCRIPTS
from gapbench.types import GapbenchError


def make(
    name: str, entry: Entry, *, recipe: Mapping[str, Any], device: str, dtype: str
) -> WorkerModel:
    """A registered worker's model, its process started, its weights not yet loaded.

    Raises GapbenchError where its environment, its source or its weights are missing or altered.
    """
    upstream = _upstream(entry)
    if dtype not in ("auto", upstream.dtype):
        raise GapbenchError(f"model {name}: its code computes in {upstream.dtype}, not in {dtype}")
    python, source = _python(name, upstream), source_of(name, upstream)
    checkpoints = {role: weights(name, role, item) for role, item in entry.needs.items()}
    settings = {
        "repo": str(source),
        "checkpoints": {role: str(folder) for role, folder in checkpoints.items()},
        "recipe": dict(recipe),
        "device": device,
        "dtype": upstream.dtype,
    }
    identity = {
        "worker": sha256_of(upstream.script),
        "protocol": sha256_of(SCRIPTS / "serve.py"),
        "upstream": upstream.commit,
        "dtype": upstream.dtype,
        # The hub's cache calls a snapshot's folder by its commit.
        **{role: folder.name for role, folder in checkpoints.items()},
    }
    command: list[str | Path] = [
        python,
        SCRIPTS / "serve.py",
        upstream.script,
        json.dumps(settings),
    ]
    return WorkerModel(name, command, recipe, identity)


def _upstream(entry: Entry) -> Upstream:
    assert entry.upstream is not None, "not a worker's row"
    return entry.upstream


def source_of(name: str, upstream: Upstream) -> Path:
    """Upstream's source in the cache. Raises GapbenchError where it is not, or was altered."""
    folder = _home() / "source" / f"{name}-{upstream.commit}"
    if not folder.is_dir():
        raise GapbenchError(
            f"model {name}: its source ({upstream.url} at {upstream.commit[:12]}) is not here; run "
            f"`gapbench prepare --model {name}`"
        )
    at = _git(folder, "rev-parse", "HEAD")
    if at != upstream.commit or _git(folder, "status", "--porcelain"):
        raise GapbenchError(
            f"model {name}: {folder} is not upstream's commit as it was; delete it and run "
            f"`gapbench prepare --model {name}`"
        )
    return folder


def prepared(name: str, entry: Entry) -> bool:
    """Whether a worker's source and environment are here."""
    upstream = _upstream(entry)
    try:
        _python(name, upstream)
        source_of(name, upstream)
    except GapbenchError:
        return False
    return True


def prepare_worker(
    name: str,
    entry: Entry,
    python: Path | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> None:
    """Fetch a worker's source at its commit, and make its environment (or take an existing one).

    The environment is made with uv where that is installed, else with venv and pip. `python` is the
    interpreter of an existing environment. git checks what it fetches by its digest, which the
    commit is. Raises GapbenchError where either fails.
    """
    upstream = _upstream(entry)
    home = _home()
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / ".lock"):
        source = home / "source" / f"{name}-{upstream.commit}"
        if not source.is_dir():
            say(f"fetching {upstream.url} at {upstream.commit[:12]}")
            _fetch(name, upstream, source)
        source_of(name, upstream)
        env = home / "env" / upstream.lock.stem
        if python is not None:
            for line in differences(python, upstream.lock):
                say(f"{python}: {line}")
            _note(env, python.absolute(), upstream)
        elif not _ready(env, upstream):
            _build(name, upstream, env, source, say)


def differences(python: Path, lock: Path) -> list[str]:
    """Where an environment's packages are not the ones of a lock file, a line each.

    Raises GapbenchError where the interpreter does not run, or is older than Python 3.8.
    """
    code = (
        "import sys, json\nassert sys.version_info >= (3, 8), 'it is older than Python 3.8'\n"
        "from importlib.metadata import distributions\n"
        "print(json.dumps({(d.metadata['Name'] or '').lower().replace('_', '-'): d.version "
        "for d in reversed(list(distributions()))}))"
    )
    here = json.loads(_run([str(python), "-c", code], f"--worker-python {python}"))
    lines = []
    for line in lock.read_text(encoding="utf-8").splitlines():
        package, _, wanted = line.partition("==")
        name = package.strip().lower().replace("_", "-")
        if wanted and not line.startswith("#") and here.get(name) != wanted:
            lines.append(f"{name} {here.get(name, 'is missing')}, upstream pins {wanted}")
    return lines


def _python(name: str, upstream: Upstream) -> Path:
    env = _home() / "env" / upstream.lock.stem
    if not _ready(env, upstream):
        raise GapbenchError(
            f"model {name}: its environment is not here or was made for other packages; run "
            f"`gapbench prepare --model {name}`, with --worker-python PATH for one of your own"
        )
    return Path(json.loads((env / "environment.json").read_text(encoding="utf-8"))["python"])


def _ready(env: Path, upstream: Upstream) -> bool:
    try:
        noted = json.loads((env / "environment.json").read_text(encoding="utf-8"))
        return noted["lock"] == sha256_of(upstream.lock) and Path(noted["python"]).exists()
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _note(env: Path, python: Path, upstream: Upstream) -> None:
    env.mkdir(parents=True, exist_ok=True)
    noted = {"python": str(python), "lock": sha256_of(upstream.lock)}
    write_json(env / "environment.json", noted)


def _fetch(name: str, upstream: Upstream, source: Path) -> None:
    part = source.with_name(source.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    _git(part, "init", "--quiet")
    _run(
        ["git", "-C", str(part), "fetch", "--quiet", "--depth", "1", upstream.url, upstream.commit],
        f"model {name}: {upstream.url} at {upstream.commit[:12]} could not be fetched",
    )
    _git(part, "-c", "advice.detachedHead=false", "checkout", "--quiet", upstream.commit)
    part.rename(source)


def _build(
    name: str, upstream: Upstream, env: Path, source: Path, say: Callable[[str], None]
) -> None:
    venv, python = str(env / "venv"), str(env / "venv" / "bin" / "python")
    base = next((path for version in upstream.pythons if (path := _interpreter(version))), None)
    if uv := shutil.which("uv"):
        base = base or upstream.pythons[0]  # which uv downloads
        make = [uv, "venv", "--quiet", "--seed", "--python", base, venv]
        install = [uv, "pip", "install", "--quiet", "--python", python]
    elif base:
        make = [base, "-m", "venv", venv]
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    else:
        raise GapbenchError(
            f"model {name}: its packages need Python {' or '.join(upstream.pythons)}, and there is "
            f"no python{upstream.pythons[0]} here; install it, or uv, which downloads it, or make "
            f"an environment with the packages of {upstream.lock} and name it by --worker-python"
        )
    by = "uv" if uv else "venv and pip"
    say(f"making an environment with {by}, Python {base}, in {env}; its packages are several GB")
    shutil.rmtree(env, ignore_errors=True)
    _run(make, f"model {name}: no environment of Python {base} could be made")
    what = f"model {name}: its packages could not be installed"
    _run([*install, "-r", str(upstream.lock)], what)
    if upstream.replaces:
        folder, package = upstream.replaces
        code = f"import importlib.util as u; print(u.find_spec({package!r}).origin)"
        inside = Path(_run([python, "-c", code], what).strip()).parent
        shutil.copytree(source / folder, inside, dirs_exist_ok=True)
    _note(env, Path(python), upstream)


def _interpreter(version: str) -> str | None:
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    return sys.executable if version == own else shutil.which(f"python{version}")


def _home() -> Path:
    return cache_folder() / "workers"


def _git(folder: Path, *args: str) -> str:
    # Untracked files (Python's caches) do not make a source another one.
    more = ["--untracked-files=no"] if args[0] == "status" else []
    return _run(["git", "-C", str(folder), *args, *more], f"git {args[0]} in {folder}").strip()


def _run(command: Sequence[str], what: str) -> str:
    """What a command prints. Raises GapbenchError with `what` and its last words."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError as error:
        raise GapbenchError(f"{what}: {command[0]}: {error.strerror}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise GapbenchError(f"{what}: {said}")
    return done.stdout
