"""matplotlib's drawings, for light and for dark pages and for papers."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SERIES: Final = {
    "light": ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    "dark": ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#d55e00"),
}
"""Okabe and Ito's colours, which colour-blind people can tell apart."""
INK: Final = {"light": "#1a1a1a", "dark": "#ececec"}
GRID: Final = {"light": "#d0d0d0", "dark": "#4a4d52"}
_SETTINGS: Final[dict[Any, Any]] = {
    "font.size": 9,
    "pdf.fonttype": 42,  # journals refuse Type 3 fonts
    "svg.hashsalt": "gapbench",  # equal plots are equal bytes
    "text.parse_math": False,  # a name with two dollars is a name
}
_UNDATED: Final = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def data_address(kind: str, data: bytes) -> str:
    """A picture's file ("png", ...) as the address of an image in a page."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@dataclass(frozen=True, slots=True)
class Plot:
    """What `draw` draws onto axes, for "light" or "dark"; `wide` and `tall` in inches."""

    draw: Callable[[Axes, str], None]
    wide: float
    tall: float

    def file(self, form: Literal["svg", "pdf"], theme: Literal["light", "dark"] = "light") -> bytes:
        """The drawing on a transparent ground."""
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        with rc_context(_SETTINGS), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")  # drawn as a box
            figure = Figure((self.wide, self.tall), layout="constrained")
            axes = figure.subplots()
            axes.set_axisbelow(True)
            axes.tick_params(colors=INK[theme])
            for spine in axes.spines.values():
                spine.set_color(GRID[theme])
            self.draw(axes, theme)
            buffer = io.BytesIO()
            figure.savefig(buffer, format=form, transparent=True, metadata=_UNDATED[form])
        return buffer.getvalue()

    @property
    def light(self) -> str:
        """Its data address on light pages."""
        return data_address("svg+xml", self.file("svg"))

    @property
    def dark(self) -> str:
        """Its data address on dark pages."""
        return data_address("svg+xml", self.file("svg", "dark"))

    @property
    def width(self) -> int:
        """In CSS pixels."""
        return round(96 * self.wide)

    @property
    def height(self) -> int:
        """In CSS pixels."""
        return round(96 * self.tall)


def colour(index: int, theme: str) -> str:
    """The colour of a series."""
    return _SERIES[theme][index % len(_SERIES[theme])]


def legend(axes: Axes, theme: str) -> None:
    """A legend above the axes, where there is more than one series to tell apart."""
    if len(axes.get_legend_handles_labels()[1]) < 2:
        return
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), frameon=False, labelcolor=INK[theme], ncols=1
    )
