"""A worker whose pictures are patterns of a few colours; `recipe` says what goes wrong, and when.

`break` is one of the words below; `until` is how many processes break before one is sound, counted
by the files in `count`, a folder.
"""

import hashlib
import os
import random
import sys
import time


class Worker:
    capabilities = ("generate", "judge_logits", "judge_text", "image_tokens", "text")
    packages = ("pillow", "no-such-package")

    def __init__(self, settings):
        self.recipe = settings["recipe"]
        self.broken = self.recipe.get("break")
        count = self.recipe.get("count")
        if count:
            starts = len(os.listdir(count))
            open(os.path.join(count, str(os.getpid())), "w").close()
            if starts >= self.recipe.get("until", 10**9):
                self.broken = None
        print("a banner of the model's, before anything else")

    def load(self):
        os.system("echo loading, said by a child")
        if self.broken == "load":
            raise RuntimeError("no weights\nanywhere")
        if self.broken == "die loading":
            sys.exit("the driver is too old")

    def refuses(self, prompt):
        return "it is too long" if len(prompt) > 300 else None

    def draw(self, prompts, seeds):
        from PIL import Image

        if self.broken == "memory" and len(prompts) > self.recipe["room"]:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        for place, (prompt, seed) in enumerate(zip(prompts, seeds)):
            print("drawing", prompt)
            if self.broken == "die" and place == self.recipe.get("at", 1):
                os.write(2, b"Segmentation fault, or some such\n\n")
                os._exit(13)
            if self.broken == "hang" and place == self.recipe.get("at", 1):
                time.sleep(600)
            if self.broken == "one" and self.recipe["word"] in prompt:
                raise ValueError("cannot draw\nit")
            stream = random.Random(hashlib.sha256(f"{prompt}\n{seed}".encode()).digest())
            tokens = [stream.randrange(4) for _ in range(16)]
            image = Image.new("RGB", (4, 4))
            image.putdata([(t * 60, 255 - t * 60, seed % 251) for t in tokens])
            yield image.resize((32, 32), 0), tokens, f"<{prompt}>", -1.5

    def judge(self, images, questions, answers):
        for image, question in zip(images, questions):
            if self.broken == "die judging" and "green" in question:
                os._exit(13)
            yield [-len(answer) - image.getpixel((0, 0))[0] / 255 for answer in answers]

    def reply(self, images, questions):
        for image, _ in zip(images, questions):
            yield f"The score is {int(image.getpixel((0, 0))[0] > 100)}"

    def complete(self, talks, tokens, until):
        for turns, begun in talks:
            said = " ".join(f"{role}:{''.join(map(shown, parts))}" for role, parts in turns)
            if self.broken == "one" and self.recipe["word"] in said:
                raise ValueError("cannot say it")
            yield f"{said}{begun}|{tokens}"

    def score(self, talks, endings):
        for (turns, begun), ending in zip(talks, endings):
            yield -len(begun + ending) - len(turns[-1][1]) / 8, ending == " yes"


def shown(part):
    return part if isinstance(part, str) else f"[{part.getpixel((0, 0))[0]}]"
