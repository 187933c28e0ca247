"""A worker that speaks the protocol by itself, wrongly: `python raw.py KIND`."""

import hashlib
import io
import json
import os
import sys

from PIL import Image

KIND = sys.argv[1]


def say(**message):
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def drawn(place, item, folder):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (item["seed"] % 256, 0, 0)).save(buffer, "PNG")
    data = b"no picture" if KIND == "no image" else buffer.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    if KIND == "digest":
        data += b" "
    name = digest + ".png"
    with open(os.path.join(folder, name), "wb") as file:
        file.write(data)
    answer = {"item": place, "image": name, "sha256": digest, "tokens": None, "logprob": None}
    if KIND == "elsewhere":
        answer["image"], answer["sha256"] = "passwd.png", "../../etc/passwd"
    if KIND == "tokens":
        answer["tokens"] = [1.5, "2"]
    return {**answer, "prompt": item["prompt"]}


if KIND == "silent":
    sys.stdin.read()
if KIND == "leaves":
    sys.exit("Traceback\nImportError: no module named torch")
if KIND == "greeting":
    say(protocol=1, capabilities=["flies"], versions={})
say(protocol=2 if KIND == "version" else 1, capabilities=["generate"], versions={"python": "3"})
for line in sys.stdin:
    request = json.loads(line)
    number, items = request["id"], request.get("items", [])
    if request["op"] == "refuse":
        say(id=number, item=0, reason=None)
    if request["op"] == "score":
        say(id=number, item=0, logprob="-1", likeliest=True)
    if request["op"] == "draw":
        if KIND == "rubbish":
            print("100%|#####| 50/50")
        places = range(len(items))
        for place in reversed(places) if KIND == "order" else places:
            answer = drawn(place, items[place], request["folder"])
            if KIND == "stranger":
                answer["item"] = len(items)
            if KIND == "twice":
                say(id=number, **answer)
            if KIND == "lacks" and place == 0:
                continue
            say(id=number - 1 if KIND == "stale" else number, **answer)
    say(id=number, done=True)
