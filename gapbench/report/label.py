"""A local page on which people say whether images show their prompts, blind to all verdicts."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from filelock import FileLock

from gapbench.files import append_lines, drop_torn_line
from gapbench.pages.assets import asset, policy, template
from gapbench.pages.server import LocalHandler, local
from gapbench.runs.run import LABELS, Run
from gapbench.types import GapbenchError

LARGEST_BODY: Final = 1000
QUESTION: Final = "Does the image show this?"
WORDS: Final = ("yes", "no", "unsure")
"""The answers: a button each, whose key is the first letter."""


def items_of(run: Run) -> list[tuple[str, str]]:
    """(sha256 of the image's file, prompt text) of what is labelled, each once, in an order that is
    random but the same for every rater and session: wherever people stop, what is labelled is a
    random sample of the images, and raters meet on the same ones.

    Raises GapbenchError where the run holds no image.
    """
    frame = run.frame()
    if not len(frame):
        raise GapbenchError(f"{run.path} holds no image of its plan; run it again to finish it")
    pairs = set(zip(frame["image"], frame["text"], strict=True))
    return sorted(pairs, key=lambda pair: hashlib.sha256("\n".join(pair).encode()).digest())


class Labels:
    """The labels that one rater gives the images of a run, each on disk when `add` returns; items
    are those of `items_of`."""

    def __init__(self, run: Run, rater: str) -> None:
        if not rater.strip() or len(rater) > 100 or not rater.isprintable() or "," in rater:
            raise GapbenchError(
                f"--rater {rater!r}: give a name of 1 to 100 printed characters, without a comma"
            )
        self.run, self.rater = run, rater
        self.file = run.path / LABELS
        self.items = items_of(run)
        self.images = {image for image, _ in self.items}

    def given(self) -> list[str | None]:
        """What the rater said so far, item by item."""
        people = self.run.people()
        if people is None:
            return [None] * len(self.items)
        word = {1: "yes", 0: "no", None: "unsure"}
        answers = (people.answer(image, text, self.rater) for image, text in self.items)
        return [None if answer is None else word[answer.verdict] for answer in answers]

    def there(self) -> int:
        """How many items the rater has labelled."""
        return len(self.items) - self.given().count(None)

    def add(self, item: int, label: str) -> None:
        """Append a label, which replaces an earlier one of this rater's for that item."""
        image, text = self.items[item]
        row = {
            "image": image,
            "prompt": text,
            "label": label,
            "rater": self.rater,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        # Other raters' servers append to the same file.
        with FileLock(self.run.path / ".labels.lock"):
            drop_torn_line(self.file)
            append_lines(self.file, [json.dumps(row)])


def serve(labels: Labels, port: int = 0) -> AbstractContextManager[tuple[str, Callable[[], None]]]:
    """The page's address and what serves it, as `gapbench.pages.server.local` gives them."""
    script, style = asset("report/label.js"), asset("report/label.css")
    page = template("report/label.html").render(
        script=script, style=style, rater=labels.rater, question=QUESTION, words=WORDS,
        policy=policy(script, style, "connect-src 'self'", "img-src 'self' data:"),
    ).encode()  # fmt: skip

    class Handler(_Handler):
        served, html = labels, page

    return local(Handler, port)


class _Handler(LocalHandler):
    served: Labels
    html: bytes

    def get(self, path: str) -> None:
        kind, _, name = path.partition("/")
        if path == "":
            self.send(200, "text/html; charset=utf-8", self.html)
        elif path == "items":
            given = self.served.given()
            texts = [text for _, text in self.served.items]
            images = [image for image, _ in self.served.items]
            self.json(200, {"texts": texts, "images": images, "given": given})
        elif kind == "image" and name in self.served.images:
            self.send(200, "image/png", self.served.run.folder.image_bytes(name))
        else:
            super().get(path)

    def post(self, path: str) -> None:
        length = self.headers.get("Content-Length", "")
        if path != "label":
            super().post(path)
        elif not length.isascii() or not length.isdigit():
            self.json(411, {"error": "the request does not say how long it is"})
        elif len(length) > 9 or int(length) > LARGEST_BODY:
            self.json(413, {"error": f"a label takes at most {LARGEST_BODY} bytes"})
        else:
            self._label(self.rfile.read(int(length)))

    def _label(self, body: bytes) -> None:
        try:
            said = json.loads(body)
            item, label = said["item"], said["label"]
            if type(item) is not int or not 0 <= item < len(self.served.items):
                raise ValueError(f"there is no item {item!r}")
            if label not in WORDS:
                raise ValueError(f"label {label!r} is not one of {', '.join(WORDS)}")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            self.json(400, {"error": f"not a label: {error}"})
            return
        try:
            self.served.add(item, label)
        except OSError as error:
            self.json(500, {"error": f"not saved: {error}"})
        else:
            self.json(200, {"saved": item})
