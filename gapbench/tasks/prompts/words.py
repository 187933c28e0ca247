"""The words of the shapes prompts: wordings, numbers, and facts that stand for a plain word."""

from __future__ import annotations

from typing import Final

WORDINGS: Final = (
    "{}", "a picture of {}", "an image of {}", "a drawing of {}", "a photo of {}", "a card with {}",
    "a tile with {}", "a view of {}", "a painting of {}", "a sketch of {}", "a print of {}",
    "a scene with {}",
)  # fmt: skip
NUMBERS: Final = {2: "two", 3: "three", 4: "four", 5: "five"}

COLOR_FACTS: Final = {
    "red": ("blood", "a ripe strawberry", "a fire engine", "a ladybird"),
    "green": ("grass", "a spring leaf", "a cucumber", "an emerald"),
    "blue": ("a clear sky", "the deep sea", "a sapphire", "a cornflower"),
    "yellow": ("a lemon", "a ripe banana", "a sunflower", "an egg yolk"),
    "purple": ("an aubergine", "lavender", "an amethyst", "a ripe plum"),
    "orange": ("a carrot", "a pumpkin", "a tangerine", "a fox"),
}
SHAPE_FACTS: Final = {
    "circle": ("shape of a wheel", "shape without corners", "outline of the full moon"),
    "square": ("shape with four equal sides", "shape of a chessboard", "face of a cube"),
    "triangle": ("shape with three sides", "shape of a pyramid", "shape with three corners"),
    "heart": ("sign of love", "suit beside spades in a deck", "symbol on a valentine"),
    "cross": ("letter after w", "mark of a wrong answer", "sign of multiplication"),
}
COUNT_FACTS: Final = {
    2: ("wheels on a bicycle", "eyes on a face", "wings on a bird", "poles on a magnet"),
    3: ("sides on a triangle", "wheels on a tricycle", "lights on a traffic light",
        "primary colours"),
    4: ("legs on a dog", "seasons in a year", "suits in a deck", "wheels on a car"),
    5: ("fingers on a hand", "arms on a starfish", "toes on a foot", "sides on a pentagon"),
}  # fmt: skip


def article(words: str) -> str:
    """The words with "a" or "an" before them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural(shape: str) -> str:
    """The name of a shape for several of them."""
    return shape + ("es" if shape.endswith("s") else "s")
