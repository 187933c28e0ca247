"""Make gapbench/judges/parses/*.json.gz: character spans of the T2I-CompBench++ prompts' parses.

    python scripts/make_parses.py T2I-COMPBENCH-FOLDER/derived/parses.en_core_web_sm-3.8.0.jsonl

The lines hold a prompt with its noun chunks, nouns, adjective-free text and spatial objects, as
spaCy gives them; the folder above holds complex_val_spatial.txt, complex_val_action.txt and
new_objects.txt as T2I-CompBench ships them. The file written has no prompt text in it: prompts are
named by their sha256. Prints its digest, which gapbench/judges/parses/parses.py checks.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gapbench.judges.parses import parses

OUT = Path(parses.__file__).parent / parses.FILE


def locate(text: str, words: Iterable[str]) -> list[int]:
    """Start and length of each word in turn, where it stands alone if it does anywhere."""
    flat, at = [], 0
    for word in words:
        alone = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)").search(text, at)
        start = alone.start() if alone else text.index(word, at)
        flat += [start, len(word)]
        at = start + len(word)
    return flat


def key(line: str) -> str:
    """What the official 3-in-1 script compares prompts by."""
    return line.strip("\r\n").split(".")[0].lower()


def entry(record: dict[str, Any], kinds: dict[str, parses.Kind]) -> dict[str, Any]:
    """One prompt's spans under one letter each (parses.LETTERS)."""
    text, made = record["prompt"], dict[str, Any]()
    if "noun_chunks" in record:
        made["c"] = locate(text, record["noun_chunks"])
    if "first_noun" in record:
        # Apart, because they may be one and the same noun.
        made["n"] = locate(text, [record["first_noun"]]) + locate(text, [record["last_noun"]])
    if "prompt_without_adj" in record:
        made["k"] = locate(text, record["prompt_without_adj"].split())
        made["o"] = [n for word in record["spatial_objects"] or [] for n in locate(text, [word])]
        made["kind"] = kinds.get(key(text), "spatialaction")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parses", type=Path)
    source: Path = parser.parse_args().parses
    folder = source.parent.parent

    def lines(name: str) -> list[str]:
        return (folder / name).read_text(encoding="utf-8").splitlines()

    # An action line never overrides a spatial one: the official script asks for spatial first.
    kinds: dict[str, parses.Kind] = {
        key(line): "action" for line in lines("complex_val_action.txt")
    }
    kinds |= {key(line): "spatial" for line in lines("complex_val_spatial.txt")}
    prompts: dict[str, dict[str, Any]] = {}
    for line in source.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        digest = hashlib.sha256(record["prompt"].encode()).hexdigest()
        made = prompts.setdefault(digest, {})
        for letter, flat in entry(record, kinds).items():
            if made.setdefault(letter, flat) != flat:
                raise SystemExit(f"two parses of one prompt: {record['prompt']!r}")
    pairs = [line.lower().split(" - ") for line in lines("new_objects.txt") if line]
    content = {
        "model": f"{parses.MODEL} {parses.MODEL_VERSION}",
        "source": hashlib.sha256(source.read_bytes()).hexdigest(),
        "objects": [[one.strip(), many.strip()] for one, many in pairs],
        "prompts": dict(sorted(prompts.items())),
    }
    packed = json.dumps(content, separators=(",", ":")).encode()
    OUT.write_bytes(gzip.compress(packed, 9, mtime=0))
    print(f"{OUT.name}: {len(prompts)} prompts, {OUT.stat().st_size} bytes")
    print(f"sha256 of the content: {hashlib.sha256(packed).hexdigest()}")


if __name__ == "__main__":
    main()
