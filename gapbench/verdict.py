"""The verdict question, its two answers, and what a reply says (paper, section 1)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from statistics import median
from typing import Final

from gapbench.types import Answer

QUESTION: Final = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language. Does this original image describe {prompt}? If it describes the scene, score 1; if "
    "it does not fully describe, score 0. Please answer in the following format: The score is "
    "{your score}."
)
"""The paper's verdict question (section 1), word for word; "{your score}" is literal."""
ANSWERS: Final = (" The score is 0", " The score is 1")
"""What the verdict question asks for (paper section 1), up to the digit that decides."""
LEAST_MASS: Final = 0.1
"""Where the median `mass` is less, the model would mostly have said something else."""
RULES: Final = 3
"""The version of the rules of `parse`, part of the fingerprint of a judge that answers in words."""
READ: Final = 4000
"""Characters at a reply's end that are read, a run of blanks counted as one."""


def weigh(no: float, yes: float) -> Answer:
    """An answer from the log-probabilities of "The score is 0" and "... 1"; a tie is a 0."""
    if math.isnan(no + yes) or math.isinf(max(no, yes)):
        return Answer(verdict=None, reason=f"log-probabilities of the answers are {no} and {yes}")
    p_yes = 1 / (1 + math.exp(min(no - yes, 700.0)))
    return Answer(verdict=int(p_yes > 0.5), p_yes=p_yes, mass=math.exp(no) + math.exp(yes))


def mass_note(masses: Iterable[float | None]) -> str | None:
    """The median `mass` of verdicts in words, with a warning where it is less than LEAST_MASS.

    None and NaN stand for a verdict without one; the note is None if no verdict has one.
    """
    known = [mass for mass in masses if mass is not None and not math.isnan(mass)]
    if not known:
        return None
    note = f"the median probability of the two answers together (mass) is {median(known):.2g}"
    if median(known) >= LEAST_MASS:
        return f"Own verdicts: {note}."
    return f"WARNING: the model was not answering the question: {note}, less than {LEAST_MASS:g}."


def parse(text: str, *, cut: bool = False) -> Answer:
    """An answer from words: the last score that the reply states.

    Reasoning in tags, conditions ("score 1 if"), denials and choices ("1 or 0") state no score. An
    abstention, with its reason, where the last score is neither 0 nor 1, where the reasoning does
    not end, and where the reply was `cut` at a limit of tokens. Takes time linear in the text.
    """
    said = None if cut else _spoken(text)
    # What stands in brackets is read only where nothing else states a score.
    score = said and (_last_score(_ASIDE.sub(" ", said)) or _last_score(said))
    if said is None:
        reason = f"the reply was cut {'at the limit of tokens' if cut else 'inside its reasoning'}"
    elif not score:
        reason = "the reply names no score of 0 or 1"
    elif digit := _DIGIT.fullmatch(score):
        return Answer(verdict=int(digit[1]), text=text)
    else:
        reason = f"the reply's score is {score[:20]}, not 0 or 1"
    return Answer(verdict=None, text=text, reason=reason)


# -- from a reply to plain sentences -----------------------------------------------------------

_THINKING: Final = re.compile(
    r"</?(?:seed:)?(?:think|thinking|thought|reasoning)>|\[/?think\]|◁/?think▷"
    r"|<\|(?:begin|end)_of_thought\|>|<\|channel\|>(?:analysis|final)<\|message\|>",
    re.IGNORECASE,
)
_CLOSES: Final = re.compile(r"/|end_|final", re.IGNORECASE)
_MARKUP: Final = re.compile(
    r"<(?!(?:final )?(?:answer|score|verdict|rating)>)[/|]?[a-z][^<>]{0,30}>|\\(?:text|math)[a-z]*"
)
_PLAIN: Final = str.maketrans(
    {chr(0xFEE0 + code): chr(code) for code in range(0x21, 0x7F)}  # full width
    | dict.fromkeys("*`~$#\u200b\u200c\u200d\u2060\ufe0f\ufeff\u20e3")
    | dict.fromkeys("“”「」『』【】《》", '"')
    | {"_": " ", "。": ". ", "、": ",", "’": "'", "−": "-", "–": "-", "—": "-", "→": ":"}
)
_ENGLISH: Final = {  # in this order: the longer words of Chinese first
    r"(?:[得给給打]出?|(?<=[,\s]))(?=\s?[0-9.]{1,9}\s?分)": "score",
    "得分|评分|評分|分数|分數|打分|分值|答案": "score",
    "如果|假如|若": "if",
    "否则|否則": "otherwise",
    "因为|因為|所以|因此": "so",
    "(?:不|并非|无法|無法)[能应應会會是]?": "not",
    "还是|還是|或者|或|から|または|에서|또는": "or",
    "应该|應該|应|應|给出|給出|认为|認為": "",
    "满分|滿分": "out of",
    "スコア|得点|点数|점수": "score",
    r"(?:は|는|은)(?=\s?[01])": "is",
    "是|为|為": "is",
    "分": "points",
    r"(?<=is )zero(?: \(0\))?(?=[.,;!])": "0",
    r"(?<=is )one(?: \(1\))?(?=[.,;!])": "1",
}
_ASIDE: Final = re.compile(r"[(\[](?!\s?(?:/|out\b|of\b|on\b|[0-9.]+\s?[)\]]))[^()\[\]]*[)\]]")
_SENTENCE: Final = re.compile(
    r"[.!][\"')\]}]*+\s|[;!]|(?<=\?)|(?<![,:=])(?<! is)\n|,\s?(?=\")|(?=<[a-z])"
)
_TOKEN: Final = re.compile(
    r"(?:(?<![\w)\]])[-+])?[0-9]++(?:[.,:][0-9]++)*+[a-z%]*+"  # a number
    r"|[^\W\d]++(?:'[a-z]++)?|[^\w\s\"'()\[\]{}<>\\.]"  # a word, a sign; quotes and brackets go
)


def _spoken(text: str) -> str | None:
    """The end of the text without reasoning and markup; None where reasoning does not end."""
    said: list[str] = []
    start, thinking = 0, False
    for tag in _THINKING.finditer(text):
        closes = _CLOSES.search(tag[0]) is not None
        if not thinking:
            said.append(text[start : tag.start()])
            if closes:  # the prompt opened it
                said.clear()
        start, thinking = tag.end(), not closes
    if thinking:
        return None
    lines = "".join([*said, text[start:]]).translate(_PLAIN).lower().splitlines()
    plain = "\n".join(line for line in (" ".join(line.split()) for line in lines) if line)
    plain = plain if len(plain) <= READ else f"... {plain[-READ:]}"
    plain = _MARKUP.sub(" ", plain)
    for chinese, english in _ENGLISH.items():
        plain = re.sub(chinese, f" {english} ", plain)
    return plain.strip()


def _sentences(text: str) -> list[str]:
    """The words, numbers and signs of each sentence, with one blank after each of them."""
    parts = ("".join(f"{token} " for token in _TOKEN.findall(s)) for s in _SENTENCE.split(text))
    return [part for part in parts if part]


# -- from a sentence to a score ----------------------------------------------------------------


def _any(words: str) -> str:
    """A pattern for one of the words, and the blank after it."""
    return f"(?:(?:{'|'.join(map(re.escape, words.split()))}) )"


_NAME: Final = _any(
    "score scores scored scoring rating rate rated grade verdict answer boxed"
    " punktzahl bewertung puntuación puntaje punteggio pontuação оценка"
)
_GIVE: Final = _any("give gives gave assign get gets got receives earns deserves merits warrants")
_LINK: Final = _any("is was be est es ist è é equals : = |")
_FILLER: Final = _any(
    "a the as to it this image picture clearly definitely therefore thus hence just only exactly"
    " still now equal perfect -"
)
_REASON: Final = _any("because since so therefore thus hence")
_END: Final = _any(", because since so there and but if not never cannot can could may might")
_BETWEEN: Final = rf"(?:(?!{_LINK}|{_END}|[0-9])[^ ]+(?<!n't) ){{1,12}}?{_LINK}"
# What the number is out of: 1 / 1, 1 out of 10, 1 on a scale of 0 to 5
_TOP: Final = (
    r"(?:points? )?(?:(?:/|(?:out )?of|on (?:a |the )?scale (?:of|from)) (?:a )?(?:possible )?"
    r"(?:[01] (?:to|-) )?(?P<top>[0-9][^ ]*+) )?"
)
# "score of 1", "score for this image is 1", "gets a 1"
_STATED: Final = re.compile(
    rf"(?<= )(?:{_NAME}(?P<link>(?:of )?(?:{_BETWEEN})?(?:{_FILLER}|{_LINK})*+)|{_GIVE}{_FILLER}*?"
    rf"(?:a |(?=[01] (?:$|points? |out |/ ))))(?P<number>[-+]?[0-9][^ ]*+) {_TOP}"
)
_ALONE: Final = re.compile(rf"(?P<number>[01](?:\.0+)?) {_TOP}")
_LEADING: Final = re.compile(r"(?P<number>[01](?:\.0+)?) (?:[-:,] )[^0-9]+")
_DIGIT: Final = re.compile(r"\+?([01])(?:\.0+)?")
# Before a score that is read only where nothing is stated plainly: "images that match get a score
# of 1", "confidence score: 1", "the maximum score is 1"; "a score of 1 needs a cat", if it is not
# what the image gets.
_OTHER: Final = re.compile(
    r"\b(?:(?:images|pictures|an? (?:[^ ]+ )?(?:image|picture|judge)) (?!(?:is|was|,|.*, )).*"
    r"|(?:confidence|certainty|max|maximum|min|minimum|highest|lowest|possible) "
    r"|(?:improve|increase|raise|bring) (?:[^ ]+ )?)$"
)
_MENTIONED: Final = re.compile(r"\b(?:an?|any|with) (?:[^ ,]+ )?$")
_GETS: Final = re.compile(rf"\b(?:{_GIVE}(?:[^ ,]+ ){{0,5}}|is an? (?:[^ ,]+ )?)$")
# Before a score: a condition that no "so" ends, or a denial just before it.
_CONDITION: Final = re.compile(
    r"(?:(?<!even )(?<!as )(?<!see )(?<!check )(?<!checked )(?<!determine )\bif |\bunless "
    rf"|(?:^|, )(?:otherwise|had|were) )(?!.*\b{_REASON})"
)
_NOT: Final = _any("not no never cannot without unable refuse instead than or could might")
_GIVING: Final = _any(
    "of that be given receive earn deserve merit warrant think believe say sure true enough for"
)
_DENIED: Final = re.compile(
    rf"(?:(?<!have )(?<!has )\bto (?=get |receive |earn |deserve |$)|^for |n't |\b{_NOT})"
    rf"(?:{_FILLER}|{_GIVE}|{_GIVING})*+$"
)
# After a score: another number, a denial, a definition, or a condition within a few words.
_DEFINES: Final = _any("would means indicates represents requires needs =")
_WEIGHED: Final = re.compile(
    r"(?:or (?:[^ ]+ ){0,4}?|to |- )?[-+]?[0-9]|, [0-9][^ ]* (?![a-z])"
    rf"|(?:[^ ]+ )?(?:[^ ]+n't |(?:not|cannot) (?![0-9]))|{_DEFINES}"
    rf"|(?:, )?(?:(?!{_REASON}|as |and |but |even )[^ ,]+ ){{0,6}}?(?:if|when|unless|otherwise) "
)


def _last_score(text: str) -> str | None:
    """The last score that a sentence states; the last sentence or the first line may be just it."""
    sentences, first = _sentences(text), _sentences(text.partition("\n")[0])
    if sentences and (alone := _ALONE.fullmatch(sentences[-1])):
        return _value(alone)
    mentioned = None
    for sentence in reversed(sentences):
        scores = [*_STATED.finditer(f" {sentence}")][-8:]  # a bound on the work
        meant = [score for score in scores if _is_meant(score)]
        stated = {_value(score) for score in meant if not _is_mentioned(score)}
        if len(stated) == 1:  # a sentence that states two scores weighs them
            return stated.pop()
        if not stated and mentioned is None and len(values := {*map(_value, meant)}) == 1:
            mentioned = values.pop()
    if first and (alone := _ALONE.fullmatch("".join(first))):
        return _value(alone)
    leading = _LEADING.fullmatch("".join(sentences))
    return mentioned or (leading and leading["number"])


def _value(score: re.Match[str]) -> str:
    """The number of a score, with what it is out of where that is not 1."""
    number, top = score["number"], score["top"]
    return number if top is None or re.fullmatch(r"1(?:\.0+)?", top) else f"{number}/{top}"


def _is_meant(score: re.Match[str]) -> bool:
    """Whether a sentence states the score rather than asks for it, defines, denies or weighs it."""
    sentence, end = score.string, score.end()
    # "score 1: it matches" and "score 1 for a match" define
    defined = score["link"] == "" and sentence.startswith((": ", "for "), end)
    if defined or sentence.endswith("? ") or _WEIGHED.match(sentence, end):
        return False
    before = _before(score)
    return not (_CONDITION.search(before) or _DENIED.search(before))


def _is_mentioned(score: re.Match[str]) -> bool:
    """Whether a score is spoken of rather than given."""
    before = _before(score)
    if _MENTIONED.search(before) and not _GETS.search(before):
        return True
    return _OTHER.search(before) is not None


def _before(score: re.Match[str]) -> str:
    """The sentence before a score, its last 300 characters."""
    return score.string[max(score.start() - 300, 1) : score.start()]
