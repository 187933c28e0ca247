from __future__ import annotations

import builtins
import gzip
import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gapbench import run
from gapbench.judges.parses import parses, rules
from gapbench.judges.parses.parses import OBJECTS
from gapbench.judges.parses.rules import Token
from gapbench.types import GapbenchError


def tokens(tagged: str) -> tuple[str, list[Token]]:
    """A text and its tokens from words like rug/NOUN; `_` glues a token to the one before."""
    text, made = "", []
    for word in tagged.split():
        body, _, pos = word.rpartition("/")
        glue = body.startswith("_")
        body = body.removeprefix("_")
        text += "" if glue or not text else " "
        made.append(Token(body, pos, len(text)))
        text += body
    return text, made


def words(text: str, marked: list[rules.Span]) -> list[str]:
    return [text[a:b] for a, b in marked]


def test_the_shipped_file_is_small_whole_and_without_text() -> None:
    file = Path(parses.__file__).parent / parses.FILE
    assert file.stat().st_size < 400_000
    content = gzip.decompress(file.read_bytes())
    assert hashlib.sha256(content).hexdigest() == parses.SHA256
    loaded = parses._file()
    assert len(loaded["prompts"]) == 1800
    for name, entry in loaded["prompts"].items():
        assert len(name) == 64
        assert set(entry) <= {"c", "n", "k", "o", "kind"}
        numbers = [n for key in "cnko" for n in entry.get(key, [])]
        assert all(type(n) is int for n in numbers)


def test_the_file_has_what_each_category_needs() -> None:
    entries = parses._file()["prompts"].values()
    assert sum("c" in e for e in entries) == 1200
    assert sum("n" in e for e in entries) == 600
    kinds = [e["kind"] for e in entries if "kind" in e]
    assert [kinds.count(k) for k in ("spatial", "action", "spatialaction")] == [58, 212, 30]
    assert OBJECTS()["knife"] == "knives"


def test_a_changed_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    parses._file.cache_clear()
    monkeypatch.setattr(parses, "SHA256", "0" * 64)
    with pytest.raises(GapbenchError, match="install gapbench again"):
        OBJECTS()
    monkeypatch.undo()
    parses._file.cache_clear()


@pytest.fixture
def no_spacy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "spacy", None)
    parses._language.cache_clear()
    yield
    parses._language.cache_clear()


@pytest.mark.usefixtures("no_spacy")
def test_a_new_prompt_without_spacy_says_what_to_install() -> None:
    with pytest.raises(GapbenchError, match="pip install spacy"):
        parses.parse("a walrus in a hat", "chunks")


@pytest.mark.usefixtures("no_spacy")
def test_a_run_with_a_prompt_that_has_no_parse_writes_nothing(
    user_task: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").touch()
    task = user_task([{"text": "a walrus on the left of a hat"}])
    for judge in ("vqa", "spatial-native"):
        with pytest.raises(GapbenchError, match="not among the shipped parses; install spaCy"):
            run(tasks=str(task), judges=[f"{judge}:{tmp_path / 'weights'}"], out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_stop_chunks_are_dropped_and_others_kept() -> None:
    text = "a kite on the left near top"
    marked = [(0, 6), (10, 18), (24, 27)]
    assert words(text, rules.chunks(text, marked)) == ["a kite"]


@pytest.mark.parametrize(
    ("tagged", "expected"),
    [
        ("a/DET rug/NOUN by/ADP a/DET tall/ADJ lamp/NOUN", ["rug", "lamp"]),
        ("one/NUM lonely/ADJ rug/NOUN", ["rug", "rug"]),
        ("running/VERB fast/ADV", []),
    ],
)
def test_ends_are_the_first_and_the_last_noun(tagged: str, expected: list[str]) -> None:
    text, made = tokens(tagged)
    assert words(text, rules.ends(made)) == expected


def test_kept_leaves_adjectives_out_and_punctuation_in() -> None:
    text, made = tokens("the/DET old/ADJ rug/NOUN burns/VERB _./PUNCT")
    assert text == "the old rug burns."
    assert words(text, rules.kept(made)) == ["the", "rug", "burns", "."]


@pytest.mark.parametrize(
    ("tagged", "expected"),
    [
        ("a/DET mug/NOUN on/ADP top/NOUN of/ADP a/DET red/ADJ shelf/NOUN", ["mug", "shelf"]),
        ("a/DET mug/NOUN next/ADV to/ADP Big/PROPN Ben/PROPN ./PUNCT", ["mug", "Ben"]),
        ("a/DET mug/NOUN near/ADP Big/PROPN Ben/PROPN", []),  # the run ends the prompt
        ("near/ADP a/DET mug/NOUN", []),  # nothing before
        ("a/DET mug/NOUN near/ADP", []),  # nothing after
        ("a/DET mug/NOUN beside/ADP a/DET jar/NOUN", []),  # no such preposition
        ("cup/NOUN near/ADP jar/NOUN near/ADP pan/NOUN", []),  # four
    ],
)
def test_objects_stand_around_one_preposition(tagged: str, expected: list[str]) -> None:
    text, made = tokens(tagged)
    assert words(text, rules.objects(text, made)) == expected


def test_parse_needs_no_spacy_for_shipped_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries are made under the digest of a text of our own, as the maker does."""
    text = "A small blue fox sat on a stool."
    entry: dict[str, Any] = {"c": [0, 16, 24, 7], "k": [0, 1, 13, 3], "o": [], "kind": "action"}
    content = {"prompts": {hashlib.sha256(text.encode()).hexdigest(): entry}}
    monkeypatch.setattr(parses, "_file", lambda: content)
    monkeypatch.setattr(builtins, "open", None)
    found = parses.parse(text, "chunks", "kept", "objects")
    assert found.chunks == ("A small blue fox", "a stool")
    assert found.without_adjectives == "A fox"
    assert found.objects == ()
    assert found.kind == "action"
