"""What janus-mini's language model is taught, in which order."""

from __future__ import annotations

from typing import NamedTuple


class Mix(NamedTuple):
    """What a step is made of."""

    drawings: int
    pairs: int
    quizzes: int = 0
    lists: int = 0
    verdicts: int = 0
    """Dialogues of TURNS verdicts on one picture."""
    interviews: int = 0
    """Dialogues of TURNS short questions."""
    weight: float = 1.0
    """Of the drawing loss beside the others."""
    sprites: float = 1.0
    """Of tokens that are not the plain background; other than 1 it bends the probabilities."""
    category: str | None = None
    """Of the drawings."""
    pairs_of: str | None = None
    verdicts_of: tuple[str | None, ...] = ()
    """Categories that each picture asked about is of at random; none means all."""


class Phase(NamedTuple):
    """A part of the training with an optimizer of its own: `mixes` take turns of `turn` steps each,
    every fifth step draws all categories where `mixed`; verdicts take turns through `reads`; `fall`
    is when the rate begins to fall."""

    name: str
    steps: int
    mixes: tuple[Mix, ...]
    lr: float = 1e-3
    turn: int = 1
    mixed: bool = False
    fall: float = 1.0
    reads: tuple[str | None, ...] = ()


# First mostly how to read a picture, before pairs can be judged at all; then judging. By then
# drawing has settled the empty cells, shapes and counts, but does not hear the colours: their few
# tokens drown in the mean over 36. So colours are taught alone, then with everything else, and last
# without the weight on sprites, which draws too many of them.
READING, READING_STEPS = Mix(28, 12, 28, 20), 700
JUDGING = Mix(28, 44, 16, 8)
COLORING, COLORING_STEPS = Mix(48, 12, sprites=10.0, category="colors"), 250
DRAWING = Mix(48, 24, sprites=10.0)
SETTLING = Mix(40, 36, weight=8.0)
JUDGING_AGAIN = Mix(24, 60, weight=8.0)

# What has been learned so far tells shapes apart and hardly anything else: of the words that the
# aligner makes, 96 % of the variance is shape and 1.5 % colour. So they are made anew (see
# train.balance), and reading is learned once more, by dialogues, which ask more of a picture at the
# same cost. Then the drawings that bind are taught one kind at a time, and last everything at once.
BINDING = ("color_attr", "texture", "position")


def _each(mix: Mix, *categories: str | None) -> tuple[Mix, ...]:
    return tuple(mix._replace(category=category) for category in categories)


_ASK = Mix(20, 2, lists=2, verdicts=12, interviews=8, weight=4.0)
_BIND = Mix(40, 2, verdicts=4, weight=8.0)
_FINISH = Mix(30, 2, lists=1, verdicts=12, interviews=2, weight=6.0)
_READ = (
    *("position", "shape_fact", "color_fact", "compound_fact", "counting", "count_fact"),
    *("position", "shape_fact"),
)
_PLACED = (
    *("position", "position", "position", "shape_fact", "shape_fact", "shape_fact"),
    *("counting", "counting", "count_fact", "count_fact", "color_fact", "compound_fact", None),
)
PHASES = (
    Phase("relearn", 150, _each(Mix(12, 2, 0, 12, 6, 6), "color_attr"), lr=2e-3),
    Phase("reread", 400, _each(Mix(16, 2, 0, 14, 4, 8, weight=2.0), "color_attr", None)),
    Phase("ask", 1250, _each(_ASK, *BINDING), turn=250, mixed=True),
    Phase("bind", 900, _each(_BIND, *BINDING), turn=300, mixed=True),
    Phase("bind-again", 900, _each(_BIND, *BINDING), turn=300, mixed=True),
    Phase(
        "finish",
        1000,
        _each(_FINISH, None, "color_attr", None, "texture", None, "position"),
        fall=0.15,
        reads=(
            None,
            "position",
            "counting",
            None,
            "count_fact",
            "texture",
            "color_attr",
            None,
            "position",
            "counting",
        ),
    ),
    # The hard tier's prompts of two things came last.
    Phase(
        "hard",
        550,
        _each(
            Mix(28, 2, lists=1, verdicts=12, interviews=2, weight=6.0),
            *(None, "color_fact", None, "shape_fact", None, "compound_fact", None, "position"),
        ),
        fall=0.15,
        reads=(
            *(None, "position", "shape_fact", None, "color_fact", "position", "shape_fact"),
            *("compound_fact", "counting"),
        ),
    ),
    # Verdicts on two facts, relations and counts only came with what a word should look at and
    # say (see clue_loss), of near misses, at a rate that does not fall; "facts" was not asked for
    # places yet. Last the drawings that bind, and all verdicts in their own shares.
    Phase(
        "facts",
        1000,
        (Mix(10, 2, lists=1, verdicts=14, interviews=3, weight=4.0, verdicts_of=(*_READ, None)),),
    ),
    Phase(
        "places",
        950,
        (Mix(8, 2, lists=1, verdicts=14, interviews=2, weight=3.0, verdicts_of=_PLACED),),
    ),
    Phase(
        "sharpen",
        800,
        _each(
            Mix(40, 2, lists=1, verdicts=4, interviews=1, weight=6.0),
            *(None, "color_attr", None, "texture", None, "position"),
        ),
        fall=0.05,
    ),
)
