"""Tables for papers: LaTeX with the package booktabs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from gapbench.types import printable

Cell = str | tuple[str, str]
"""A text, or a figure and the counts behind it."""
_ESCAPES: Final = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "\n": " ",
}


def booktabs(
    heads: Sequence[str], rows: Sequence[Sequence[Cell]], notes: Sequence[str] = ()
) -> str:
    """A tabular of figures without their counts, and notes under it, with all texts escaped."""
    texts = [[cell if isinstance(cell, str) else cell[0] for cell in row] for row in rows]
    # A row that begins with [ or * would be an option of the \\ before it.
    lines = ["{}" * line[0].startswith(("[", "*")) + " & ".join(map(escaped, line)) + r" \\"
             for line in (heads, *texts)]  # fmt: skip
    return "\n".join(
        [
            r"% \usepackage[T1]{fontenc}\usepackage{booktabs}",
            rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par {escaped(note)}" for note in notes if note),
        ]
    )


def escaped(text: str) -> str:
    """A text that LaTeX prints as it is; the hyphen before a number is a minus."""
    safe = "".join(_ESCAPES.get(char, char) for char in printable(text))
    return re.sub(r"(?<![\w.-])-(?=\d)", "$-$", safe)
