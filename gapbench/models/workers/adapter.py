"""A model that runs as a process in an environment of its own (see scripts/serve.py).

What a worker has answered is kept whatever happens to it next. A crash, a hang, a lack of memory or
an answer of another form ends the process; a new one gets what is left, half as much at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gapbench.models.base import CAPABILITIES, Drawing, Model
from gapbench.models.image_folder import MAX_PIXELS
from gapbench.types import Failure, GapbenchError, Unfinished

ADAPTER: Final = "worker-1"
PROTOCOL: Final = 1
LARGEST: Final = 10_000_000
"""Characters of a message that are read."""
GREETING: Final = 120.0
"""Seconds until the greeting, which comes before any weights."""


class WorkerModel(Model):
    """Drives a worker started as `command`.

    `identity` (digests of the worker's files, upstream commit, checkpoint revisions, dtype) and the
    versions in the greeting make the fingerprint; with `recipe` they are the run's identity.
    `timeout` bounds the seconds until the next message of a request, `load_timeout` those for
    bringing in the weights. Raises GapbenchError where the process does not start, or greets
    wrongly.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        recipe: Mapping[str, Any],
        identity: Mapping[str, str],
        *,
        timeout: float = 1800.0,
        load_timeout: float = 3600.0,
    ) -> None:
        self.name = name
        self.recipe: dict[str, Any] = dict(recipe)
        self.dtype = identity.get("dtype")
        self._command = [str(part) for part in command]
        self._timeout, self._load_timeout = timeout, load_timeout
        self._process: _Process | None = None
        self._loaded = False
        self._room: int | None = None
        self._refusals: dict[str, str | None] = {}
        greeting = self._started().greeting
        self.capabilities = frozenset(greeting["capabilities"])
        self.versions = greeting["versions"]
        digest = hashlib.sha256(f"{ADAPTER}\n".encode())
        digest.update(json.dumps([identity, self.versions], sort_keys=True).encode())
        self.fingerprint = digest.hexdigest()

    # -- the process -----------------------------------------------------------------------

    def _started(self) -> _Process:
        if self._process is None:
            try:
                self._process = _Process(self._command)
            except (OSError, _Trouble) as error:
                raise GapbenchError(f"model {self.name}: its worker {error}") from error
            greeting = self._process.greeting
            if greeting.get("protocol") != PROTOCOL:
                self.release()
                raise GapbenchError(
                    f"model {self.name}: its worker speaks protocol {greeting.get('protocol')!r}, "
                    f"this gapbench speaks {PROTOCOL}; use the worker file that came with it"
                )
            said, versions = greeting.get("capabilities"), greeting.get("versions")
            if not (
                isinstance(said, list)
                and all(one in CAPABILITIES for one in said)
                and isinstance(versions, dict)
                and all(isinstance(value, str) for value in versions.values())
            ):
                self.release()
                raise GapbenchError(
                    f"model {self.name}: its worker's greeting lacks its capabilities or versions"
                )
            if self.versions not in (None, versions):
                self.release()
                raise GapbenchError(
                    f"model {self.name}: its environment changed while it ran ({versions}, was "
                    f"{self.versions}); run the same command again"
                )
        return self._process

    def load(self) -> None:
        if self._loaded:
            return
        try:
            for message in self._started().ask({"op": "load"}, self._load_timeout):
                raise _Trouble(f"said {message!r} where it should only load")
        except _Trouble as trouble:
            self.release()
            raise GapbenchError(f"model {self.name}: its worker {trouble}") from trouble
        self._loaded = True

    def release(self) -> None:
        if self._process is not None:
            self._process.stop()
        self._process, self._loaded = None, False

    # -- requests --------------------------------------------------------------------------

    def _work(
        self,
        op: str,
        items: Sequence[Mapping[str, Any]],
        read: Callable[[dict[str, Any], Path], Any],
        **more: Any,
    ) -> list[Any]:
        """What `read` makes of each item's answer, in order.

        Raises Unfinished, holding what is done, where an item fails or kills two workers alone.
        """
        done: dict[int, Any] = {}
        failed: dict[int, str] = {}
        strikes = 0
        while left := [i for i in range(len(items)) if i not in done and i not in failed]:
            batch = left[: self._room]
            try:
                if op != "refuse":  # which takes no weights
                    self.load()
                process = self._started()
                request = {"op": op, "items": [items[i] for i in batch], **more}
                request |= {"folder": str(process.folder)} if op == "draw" else {}
                for message in process.ask(request, self._timeout):
                    place = message.get("item")
                    if type(place) is not int or not 0 <= place < len(batch):
                        raise _Trouble(f"answered item {place!r} of {len(batch)}")
                    index = batch[place]
                    if index in done or index in failed:
                        raise _Trouble(f"answered item {place} twice")
                    if "error" in message:
                        failed[index] = _line(message["error"])
                    else:
                        done[index] = read(message, process.folder)
                if missing := [i for i in batch if i not in done and i not in failed]:
                    raise _Trouble(f"left out {len(missing)} of {len(batch)} items")
            except _Trouble as trouble:
                self.release()
                self._room = max(1, len(batch) // 2)
                strikes += len(batch) == 1 and batch[0] not in done
                if strikes == 2:
                    raise Unfinished(f"model {self.name}: its worker {trouble}", done) from trouble
            except GapbenchError as error:
                raise Unfinished(str(error), done) from error
            else:
                strikes = 0
        if failed:
            first = min(failed)
            subject = items[first].get("prompt", items[first].get("question"))
            raise Unfinished(
                f"model {self.name}: its worker failed at {len(failed)} of {len(items)} items, "
                f"first {subject!r}: {failed[first]}",
                done,
                {place: Failure(f"model {self.name}: {why}") for place, why in failed.items()},
            )
        return [done[i] for i in range(len(items))]

    def refuses(self, text: str) -> str | None:
        if text not in self._refusals:
            self._refusals[text] = self._work("refuse", [{"prompt": text}], _reason)[0]
        return self._refusals[text]

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawing]:
        items = [{"prompt": p, "seed": s} for p, s in zip(prompts, seeds, strict=True)]
        return self._work("draw", items, _drawing)

    def judge(
        self, images: Sequence[Image.Image], questions: Sequence[str], answers: Sequence[str]
    ) -> NDArray[np.float64]:
        def read(message: dict[str, Any], _folder: Path) -> list[float]:
            logprobs = message.get("logprobs")
            if (
                not isinstance(logprobs, list)
                or len(logprobs) != len(answers)
                or not all(type(value) in (int, float) for value in logprobs)
            ):
                raise _Trouble(f"gave {logprobs!r} for log-probabilities of {len(answers)} answers")
            return [float(value) for value in logprobs]

        with _sent(images, questions) as items:
            return np.array(self._work("judge", items, read, answers=list(answers)), np.float64)

    def reply(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        with _sent(images, questions) as items:
            return self._work("reply", items, _text)


class _Trouble(Exception):  # noqa: N818
    """What a worker did that ends it, as a clause after "its worker"."""


class _Process:
    """A worker's process, in a session of its own: Ctrl-C goes to gapbench alone."""

    def __init__(self, command: list[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="gapbench-worker-")
        self.folder = Path(self._folder.name)
        self._log = self.folder / "stderr.txt"
        # The environment is the model's own: nothing of this one's Python leaks into it. It leaves
        # upstream's source as it is, and fetches nothing: that is `gapbench prepare`'s.
        variables = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONHOME"}}
        variables |= {"PYTHONDONTWRITEBYTECODE": "1"}
        variables |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        with self._log.open("wb") as log:
            try:
                self._popen = subprocess.Popen(  # noqa: S603 (a registered command, no shell)
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=variables,
                    start_new_session=True,
                )
            except OSError as error:
                self._folder.cleanup()
                raise _Trouble(f"cannot be started: {command[0]}: {error.strerror}") from error
        self._lines: queue.Queue[bytes] = queue.Queue()
        # Threads hold no reference to this object, so that it ends when nobody uses it.
        reader = threading.Thread(target=_read, args=(self._popen, self._lines), daemon=True)
        reader.start()
        self.stop = weakref.finalize(self, _kill, self._popen, self._folder)
        self._number = 0
        try:
            self.greeting = self._message(GREETING)
        except _Trouble:
            self.stop()
            raise

    def _message(self, timeout: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise _Trouble(f"said nothing for {timeout:g} s") from None
        if not line:
            raise _Trouble(self._last_words())
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise _Trouble(f"said {_line(line[:200].decode(errors='replace'))!r}, no message")
        return message

    def ask(self, request: dict[str, Any], timeout: float) -> Iterator[dict[str, Any]]:
        """The messages about a request's items, until the worker says that it is done.

        Raises _Trouble where it dies, is silent for `timeout` seconds, lacks memory or talks
        nonsense; it is of no use then.
        """
        self._number += 1
        line = json.dumps({"id": self._number, **request}).encode() + b"\n"
        # In a thread: a worker that does not read must not hold gapbench up.
        threading.Thread(target=_write, args=(self._popen, line), daemon=True).start()
        while True:
            message = self._message(timeout)
            if message.get("id") != self._number:
                raise _Trouble(f"answered request {message.get('id')!r}, not {self._number}")
            if "item" in message:
                yield message
            elif message.get("done") is True:
                return
            elif "error" in message:
                memory = "ran out of memory" if message.get("memory") else "failed"
                raise _Trouble(f"{memory}: {_line(message['error'])}")
            else:
                raise _Trouble(f"said {_line(json.dumps(message))!r}, no message")

    def _last_words(self) -> str:
        try:
            code = self._popen.wait(5)
        except subprocess.TimeoutExpired:
            return "closed its output and went on"
        ended = f"was killed by signal {-code}" if code < 0 else f"left with exit code {code}"
        said = self._log.read_bytes()[-4000:].decode(errors="replace").split("\n")
        last = next((line for line in reversed(said) if line.strip()), "")
        return f"{ended} ({_line(last)})" if last else ended


def _read(popen: subprocess.Popen[bytes], lines: queue.Queue[bytes]) -> None:
    assert popen.stdout is not None
    while line := popen.stdout.readline(LARGEST):
        lines.put(line)
    popen.stdout.close()
    lines.put(b"")


def _write(popen: subprocess.Popen[bytes], line: bytes) -> None:
    assert popen.stdin is not None
    with contextlib.suppress(OSError, ValueError):  # its death shows where its words are read
        popen.stdin.write(line)
        popen.stdin.flush()


def _kill(popen: subprocess.Popen[bytes], folder: tempfile.TemporaryDirectory[str]) -> None:
    with contextlib.suppress(OSError):
        os.killpg(popen.pid, signal.SIGKILL)  # with whatever it started
    popen.wait()
    assert popen.stdin is not None
    with contextlib.suppress(OSError):
        popen.stdin.close()
    folder.cleanup()


@contextlib.contextmanager
def _sent(
    images: Sequence[Image.Image], questions: Sequence[str]
) -> Iterator[list[dict[str, str]]]:
    """Items about images, each in a file as long as they are worked on."""
    with tempfile.TemporaryDirectory(prefix="gapbench-images-") as folder:
        items = []
        for image, question in zip(images, questions, strict=True):
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            digest = hashlib.sha256(buffer.getvalue()).hexdigest()
            place = Path(folder) / f"{digest}.png"
            place.write_bytes(buffer.getvalue())
            items.append({"image": str(place), "sha256": digest, "question": question})
        yield items


def _drawing(message: dict[str, Any], folder: Path) -> Drawing:
    digest, tokens, logprob = (message.get(key) for key in ("sha256", "tokens", "logprob"))
    place = folder / f"{digest}.png"
    if message.get("image") != place.name or place.parent != folder:
        raise _Trouble(f"named an image {message.get('image')!r}, not by its digest")
    try:
        data = place.read_bytes()
        place.unlink()
    except OSError:
        raise _Trouble(f"named an image {place.name} that is not there") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise _Trouble(f"gave another image than the one it named ({place.name})")
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        if image.width * image.height > MAX_PIXELS:
            raise _Trouble(f"drew {image.width} x {image.height} pixels, which is too many")
        picture = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _Trouble(f"drew what is no image ({error})") from error
    if not isinstance(message.get("prompt"), str) or type(logprob) not in (int, float, type(None)):
        raise _Trouble("gave no effective prompt, or a log-probability that is no number")
    try:
        ids = None if tokens is None else np.array(tokens, np.int32)
    except (ValueError, TypeError, OverflowError):
        raise _Trouble("gave tokens that are no whole numbers") from None
    if ids is not None and (ids.ndim != 1 or ids.tolist() != tokens):
        raise _Trouble("gave tokens that are no whole numbers")
    return Drawing(picture, ids, message["prompt"], logprob)


def _reason(message: dict[str, Any], _folder: Path) -> str | None:
    reason = message.get("reason")
    return None if reason is None else _line(reason)


def _text(message: dict[str, Any], _folder: Path) -> str:
    text = message.get("text")
    if not isinstance(text, str):
        raise _Trouble(f"replied {text!r}, no text")
    return text


def _line(text: Any) -> str:
    """One line of at most 300 characters."""
    return " ".join(str(text).split())[:300]
