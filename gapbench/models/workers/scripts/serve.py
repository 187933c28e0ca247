"""The worker's side of the worker protocol: `python serve.py WORKER_FILE SETTINGS`.

Runs in the environment of the model it serves: standard library and Pillow, Python 3.8 and later.
WORKER_FILE holds a class `Worker(settings)` (see bagel.py), SETTINGS is a JSON object of `repo`
(upstream's source), `checkpoints` (name -> folder), `recipe`, `device` and `dtype`. One JSON object
a line: requests on stdin, messages on what was stdout; upstream's own prints go to stderr.

| says | message |
|---|---|
| worker, at start | {"protocol": 1, "capabilities": [...], "versions": {package: version}} |
| gapbench | {"id": 1, "op": "load"} |
|          | {"id": 2, "op": "refuse", "items": [{"prompt"}]} |
|          | {"id": 3, "op": "draw", "folder", "items": [{"prompt", "seed"}]} |
|          | {"id": 4, "op": "judge", "answers", "items": [{"image", "sha256", "question"}]} |
|          | {"id": 5, "op": "reply", "items": [{"image", "sha256", "question"}]} |
|          | {"id": 6, "op": "complete", "tokens", "until", "items": [{"turns", "begun"}]} |
|          | {"id": 7, "op": "score", "items": [{"turns", "begun", "ending"}]} |
| worker, per item | {"id", "item": 0, "reason"} (refuse), "logprobs" (judge), |
|          | "text" (reply, complete), "logprob", "likeliest" (score), |
|          | "image", "sha256", "tokens", "prompt", "logprob" (draw; a PNG file in `folder`), |
|          | or {"id", "item", "error"} where that item alone failed |
| worker, last | {"id", "done": true}, or {"id", "error", "memory": bool} for all the rest |

`turns` are [{"role", "parts": [{"text"} or {"image", "sha256"}]}], the last one the user's; the
answer that is asked for goes on with `begun`, which is empty or has a blank before its first word,
as `ending` has. Text behind the first of the words in `until` is cut off by gapbench.

Items may be answered in any order. The worker leaves when stdin ends.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

PROTOCOL = 1


def main(worker_file, settings):
    # Descriptors first: whatever a model prints or reads must not touch the protocol.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    asked = os.fdopen(os.dup(0), "r", encoding="utf-8")
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    sys.stdout = sys.stderr

    def say(**message):
        out.write(json.dumps(message) + "\n")
        out.flush()

    del sys.path[0]  # this folder, whose files are called like the models' own packages
    spec = importlib.util.spec_from_file_location("gapbench_worker", worker_file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    worker = module.Worker(json.loads(settings))
    versions = {"python": platform.python_version()}
    for package in worker.packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "missing"
    say(protocol=PROTOCOL, capabilities=sorted(worker.capabilities), versions=versions)
    for line in asked:
        request = json.loads(line)
        number = request["id"]
        try:
            if request["op"] == "load":
                worker.load()
            else:
                work(worker, request, say)
        except Exception as error:
            say(id=number, error=in_words(error), memory=no_memory(error))
        else:
            say(id=number, done=True)


def work(worker, request, say):
    """Answer the items of a request, together where that goes well, else one by one."""
    items, left = request["items"], list(range(len(request["items"])))

    def answer(indices):
        results = OPERATIONS[request["op"]](worker, request, [items[i] for i in indices])
        for index, result in zip(indices, results):
            say(id=request["id"], item=index, **result)
            left.remove(index)

    try:
        answer(list(left))
        return
    except Exception as error:
        if no_memory(error):
            raise
        trouble = in_words(error)
    several = len(left) > 1
    for index in list(left):
        if several:  # who is to blame shows when each is alone
            try:
                answer([index])
                continue
            except Exception as error:
                if no_memory(error):
                    raise
                trouble = in_words(error)
        say(id=request["id"], item=index, error=trouble)


def draw(worker, request, items):
    drawn = worker.draw([item["prompt"] for item in items], [item["seed"] for item in items])
    for image, tokens, effective, logprob in drawn:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        name = digest + ".png"
        with open(os.path.join(request["folder"], name), "wb") as file:
            file.write(buffer.getvalue())
        yield {
            "image": name,
            "sha256": digest,
            "tokens": tokens,
            "prompt": effective,
            "logprob": logprob,
        }


def refuse(worker, _request, items):
    for item in items:
        yield {"reason": worker.refuses(item["prompt"])}


def judge(worker, request, items):
    questions = [item["question"] for item in items]
    for logprobs in worker.judge([opened(i) for i in items], questions, request["answers"]):
        yield {"logprobs": [float(value) for value in logprobs]}


def reply(worker, _request, items):
    for text in worker.reply([opened(i) for i in items], [item["question"] for item in items]):
        yield {"text": text}


def complete(worker, request, items):
    talks = [talk(item) for item in items]
    for text in worker.complete(talks, request["tokens"], request["until"]):
        yield {"text": text}


def score(worker, _request, items):
    endings = [item["ending"] for item in items]
    for logprob, likeliest in worker.score([talk(item) for item in items], endings):
        yield {"logprob": float(logprob), "likeliest": bool(likeliest)}


OPERATIONS = {
    "draw": draw,
    "refuse": refuse,
    "judge": judge,
    "reply": reply,
    "complete": complete,
    "score": score,
}


def talk(item):
    """A chat's turns, (role, texts and pictures), and how its answer begins."""
    turns = [
        (turn["role"], [opened(p) if "image" in p else p["text"] for p in turn["parts"]])
        for turn in item["turns"]
    ]
    return turns, item["begun"]


def opened(item):
    """The picture of an item, RGB."""
    from PIL import Image

    with open(item["image"], "rb") as file:
        data = file.read()
    if hashlib.sha256(data).hexdigest() != item["sha256"]:
        raise ValueError(item["image"] + " was altered on its way")
    return Image.open(io.BytesIO(data)).convert("RGB")


def no_memory(error):
    """Whether it is memory that lacked: torch's own error, CUDA's or the system's."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "out of memory" in str(error)
    )


def in_words(error):
    text = " ".join(str(error).split())[:500]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
