"""A model that runs as a process in an environment of its own (see scripts/serve.py).

What a worker has answered is kept whatever happens to it next. A crash, a hang, a lack of memory or
an answer of another form ends the process; a new one gets what is left, half as much at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gapbench.models.base import CAPABILITIES, Drawing, Model
from gapbench.models.image_folder import MAX_PIXELS
from gapbench.models.turns import cut, talk, written
from gapbench.models.workers.process import Process, Trouble, one_line
from gapbench.types import Failure, GapbenchError, Unfinished

ADAPTER: Final = "worker-1"
PROTOCOL: Final = 1


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
        self._process: Process | None = None
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

    def _started(self) -> Process:
        if self._process is None:
            try:
                self._process = Process(self._command)
            except (OSError, Trouble) as error:
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
                raise Trouble(f"said {message!r} where it should only load")
        except Trouble as trouble:
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
                        raise Trouble(f"answered item {place!r} of {len(batch)}")
                    index = batch[place]
                    if index in done or index in failed:
                        raise Trouble(f"answered item {place} twice")
                    if "error" in message:
                        failed[index] = one_line(message["error"])
                    else:
                        done[index] = read(message, process.folder)
                if missing := [i for i in batch if i not in done and i not in failed]:
                    raise Trouble(f"left out {len(missing)} of {len(batch)} items")
            except Trouble as trouble:
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
            about = items[first]
            subject = about.get("prompt", about.get("question", about.get("turns")))
            raise Unfinished(
                f"model {self.name}: its worker failed at {len(failed)} of {len(items)} items, "
                f"first {subject!r:.300}: {failed[first]}",
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
                raise Trouble(f"gave {logprobs!r} for log-probabilities of {len(answers)} answers")
            return [float(value) for value in logprobs]

        with _sent(images, questions) as items:
            return np.array(self._work("judge", items, read, answers=list(answers)), np.float64)

    def reply(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        with _sent(images, questions) as items:
            return self._work("reply", items, _text)

    # The worker knows its chat format: a text is of turns, which it is sent.

    def chat(self, turns: Sequence[Mapping[str, str]]) -> str:
        return written(turns)

    def complete(
        self,
        images: Sequence[Sequence[Image.Image]],
        texts: Sequence[str],
        tokens: int,
        until: Sequence[str] = (),
    ) -> list[str]:
        def read(message: dict[str, Any], folder: Path) -> str:
            return cut(_text(message, folder), until)

        with _talks(self.name, images, texts) as items:
            return self._work("complete", items, read, tokens=tokens, until=list(until))

    def score(
        self,
        images: Sequence[Sequence[Image.Image]],
        texts: Sequence[str],
        endings: Sequence[str],
    ) -> list[tuple[float, bool]]:
        with _talks(self.name, images, texts) as items:
            asked = [item | {"ending": end} for item, end in zip(items, endings, strict=True)]
            return self._work("score", asked, _scored)


@contextlib.contextmanager
def _files() -> Iterator[Callable[[Image.Image], dict[str, str]]]:
    """Puts an image into a file, where it is as long as it is worked on."""
    with tempfile.TemporaryDirectory(prefix="gapbench-images-") as folder:

        def put(image: Image.Image) -> dict[str, str]:
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            digest = hashlib.sha256(buffer.getvalue()).hexdigest()
            place = Path(folder) / f"{digest}.png"
            place.write_bytes(buffer.getvalue())
            return {"image": str(place), "sha256": digest}

        yield put


@contextlib.contextmanager
def _sent(
    images: Sequence[Image.Image], questions: Sequence[str]
) -> Iterator[list[dict[str, str]]]:
    """Items about images."""
    with _files() as put:
        yield [put(i) | {"question": q} for i, q in zip(images, questions, strict=True)]


@contextlib.contextmanager
def _talks(
    name: str, images: Sequence[Sequence[Image.Image]], texts: Sequence[str]
) -> Iterator[list[dict[str, Any]]]:
    """Items about chats."""
    with _files() as put:
        items = []
        for own, text in zip(images, texts, strict=True):
            turns, begun = talk(f"model {name}", text, own)
            said = [
                {
                    "role": role,
                    "parts": [{"text": p} if isinstance(p, str) else put(p) for p in parts],
                }
                for role, parts in turns
            ]
            items.append({"turns": said, "begun": begun})
        yield items


def _drawing(message: dict[str, Any], folder: Path) -> Drawing:
    digest, tokens, logprob = (message.get(key) for key in ("sha256", "tokens", "logprob"))
    place = folder / f"{digest}.png"
    if message.get("image") != place.name or place.parent != folder:
        raise Trouble(f"named an image {message.get('image')!r}, not by its digest")
    try:
        data = place.read_bytes()
        place.unlink()
    except OSError:
        raise Trouble(f"named an image {place.name} that is not there") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise Trouble(f"gave another image than the one it named ({place.name})")
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        if image.width * image.height > MAX_PIXELS:
            raise Trouble(f"drew {image.width} x {image.height} pixels, which is too many")
        picture = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Trouble(f"drew what is no image ({error})") from error
    if not isinstance(message.get("prompt"), str) or type(logprob) not in (int, float, type(None)):
        raise Trouble("gave no effective prompt, or a log-probability that is no number")
    try:
        ids = None if tokens is None else np.array(tokens, np.int32)
    except (ValueError, TypeError, OverflowError):
        raise Trouble("gave tokens that are no whole numbers") from None
    if ids is not None and (ids.ndim != 1 or ids.tolist() != tokens):
        raise Trouble("gave tokens that are no whole numbers")
    return Drawing(picture, ids, message["prompt"], logprob)


def _scored(message: dict[str, Any], _folder: Path) -> tuple[float, bool]:
    logprob, likeliest = message.get("logprob"), message.get("likeliest")
    if not isinstance(logprob, int | float) or not isinstance(likeliest, bool):
        raise Trouble(f"gave {logprob!r} for a log-probability, likeliest {likeliest!r}")
    return float(logprob), likeliest


def _reason(message: dict[str, Any], _folder: Path) -> str | None:
    reason = message.get("reason")
    return None if reason is None else one_line(reason)


def _text(message: dict[str, Any], _folder: Path) -> str:
    text = message.get("text")
    if not isinstance(text, str):
        raise Trouble(f"replied {text!r}, no text")
    return text
