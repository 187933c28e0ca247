"""A worker's process, and what it says (the protocol is in scripts/serve.py)."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

LARGEST: Final = 10_000_000
"""Characters of a message that are read."""
GREETING: Final = 120.0
"""Seconds until the greeting, which comes before any weights."""


class Trouble(Exception):  # noqa: N818
    """What a worker did that ends it, as a clause after "its worker"."""


class Process:
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
                raise Trouble(f"cannot be started: {command[0]}: {error.strerror}") from error
        self._lines: queue.Queue[bytes] = queue.Queue()
        # Threads hold no reference to this object, so that it ends when nobody uses it.
        reader = threading.Thread(target=_read, args=(self._popen, self._lines), daemon=True)
        reader.start()
        self.stop = weakref.finalize(self, _kill, self._popen, self._folder)
        self._number = 0
        try:
            self.greeting = self._message(GREETING)
        except Trouble:
            self.stop()
            raise

    def _message(self, timeout: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise Trouble(f"said nothing for {timeout:g} s") from None
        if not line:
            raise Trouble(self._last_words())
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise Trouble(f"said {one_line(line[:200].decode(errors='replace'))!r}, no message")
        return message

    def ask(self, request: dict[str, Any], timeout: float) -> Iterator[dict[str, Any]]:
        """The messages about a request's items, until the worker says that it is done.

        Raises Trouble where it dies, is silent for `timeout` seconds, lacks memory or talks
        nonsense; it is of no use then.
        """
        self._number += 1
        line = json.dumps({"id": self._number, **request}).encode() + b"\n"
        # In a thread: a worker that does not read must not hold gapbench up.
        threading.Thread(target=_write, args=(self._popen, line), daemon=True).start()
        while True:
            message = self._message(timeout)
            if message.get("id") != self._number:
                raise Trouble(f"answered request {message.get('id')!r}, not {self._number}")
            if "item" in message:
                yield message
            elif message.get("done") is True:
                return
            elif "error" in message:
                memory = "ran out of memory" if message.get("memory") else "failed"
                raise Trouble(f"{memory}: {one_line(message['error'])}")
            else:
                raise Trouble(f"said {one_line(json.dumps(message))!r}, no message")

    def _last_words(self) -> str:
        try:
            code = self._popen.wait(5)
        except subprocess.TimeoutExpired:
            return "closed its output and went on"
        ended = f"was killed by signal {-code}" if code < 0 else f"left with exit code {code}"
        said = self._log.read_bytes()[-4000:].decode(errors="replace").split("\n")
        last = next((line for line in reversed(said) if line.strip()), "")
        return f"{ended} ({one_line(last)})" if last else ended


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


def one_line(text: Any) -> str:
    """One line of at most 300 characters."""
    return " ".join(str(text).split())[:300]
