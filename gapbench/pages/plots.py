"""matplotlib's SVG, drawn once for light and once for dark pages."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SERIES: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
"""Okabe and Ito's colours, which colour-blind people can tell apart."""
INK: Final = {"light": "#1a1a1a", "dark": "#ececec"}
GRID: Final = {"light": "#d0d0d0", "dark": "#4a4d52"}
_SETTINGS: Final[dict[Any, Any]] = {
    "font.size": 9,
    "svg.hashsalt": "gapbench",  # equal plots are equal bytes
    "text.parse_math": False,  # a name with two dollars is a name
}


def data_address(kind: str, data: bytes) -> str:
    """A picture's file ("png", ...) as the address of an image in a page."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@dataclass(frozen=True, slots=True)
class Plot:
    """One drawing in two colourings, as data addresses; width and height in CSS pixels."""

    light: str
    dark: str
    width: int
    height: int


def legend(axes: Axes, theme: str) -> None:
    """A legend above the axes."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), frameon=False, labelcolor=INK[theme], ncols=1
    )


def drawn(draw: Callable[[Any, str], None], wide: float, tall: float) -> Plot:
    """What `draw` draws onto axes, for "light" and for "dark"; inches."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    made: dict[str, str] = {}
    for theme in ("light", "dark"):
        with rc_context(_SETTINGS), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")  # drawn as a box
            figure = Figure((wide, tall), layout="constrained")
            axes = figure.subplots()
            axes.set_axisbelow(True)
            axes.tick_params(colors=INK[theme])
            for spine in axes.spines.values():
                spine.set_color(GRID[theme])
            draw(axes, theme)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
            made[theme] = data_address("svg+xml", buffer.getvalue())
    return Plot(made["light"], made["dark"], round(96 * wide), round(96 * tall))
