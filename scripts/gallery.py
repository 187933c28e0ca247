"""The examples of docs/gallery.md: for each category of `shapes`, an image of janus-mini that is
right and one that is wrong.

gapbench run && python scripts/gallery.py runs/janus-mini-2a9d4538
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd
from PIL import Image

from gapbench import open_run

DOCS = Path(__file__).parent.parent / "docs"
TABLE = re.compile(r"(?<=<!-- shapes -->\n).*?(?=<!-- end -->)", re.DOTALL)
SCALE = 4
ASKS = {
    "colors": "one shape of one color",
    "attributes": "one shape of one color, solid or striped",
    "counting": "exactly so many equal shapes, of any or of one color",
    "two_object": "two different shapes, one of them perhaps of one color",
    "three_object": "three different shapes, one of them perhaps of one color",
    "color_attr": "two shapes, each of its own color",
    "position": "one shape left of, right of, above or below another",
    "texture": "two shapes, each solid or striped",
    "numeracy": "exactly so many of each of two shapes",
    "three_attr": "three shapes, each of its own color",
    "color_fact": "two shapes whose colors are told by things of that color",
    "shape_fact": "two shapes told by facts, and where one is from the other",
    "count_fact": "as many shapes as a fact says",
    "compound_fact": "two shapes told by facts and where one is, and a color by a thing",
}


def of_one_prompt(rows: pd.DataFrame) -> pd.DataFrame:
    """A category's images of one prompt, right and wrong ones if a prompt has both; a short one."""
    rows = rows.sort_values("text", key=lambda texts: texts.str.len(), kind="stable")
    both = rows[rows.groupby("prompt")["outside"].transform("nunique") == 2]
    return rows[rows["prompt"] == (rows if both.empty else both)["prompt"].iloc[0]]


def main(path: str) -> None:
    run = open_run(path)
    frame = run.frame()
    lines = ["| tier | category | what it asks | prompt | right | wrong |", "|---|" + "---|" * 5]
    for category, asks in ASKS.items():
        rows = frame[(frame["task"] == "shapes") & (frame["category"] == category)]
        images = of_one_prompt(rows)
        cells = [rows["tier"].iloc[0], f"`{category}`", asks, images["text"].iloc[0]]
        for word, verdict in (("right", 1), ("wrong", 0)):
            cells.append(f"{sum(rows['outside'] == verdict)} of its {len(rows)} images are {word}")
            for row in images[images["outside"] == verdict][:1].to_dict("records"):
                name = f"gallery/{category}-{word}.png"
                image = run.folder.image(row["image"])
                size = (SCALE * image.width, SCALE * image.height)
                image.resize(size, Image.Resampling.NEAREST).save(DOCS / name, optimize=True)
                own = "accepts" if row["own"] else "rejects"
                cells[-1] = f"![{category}, {word}]({name})<br>*{own}*"
        lines.append(f"| {' | '.join(cells)} |")
    page = DOCS / "gallery.md"
    page.write_text(TABLE.sub(lambda _: "\n".join(["", *lines, "", ""]), page.read_text()))


if __name__ == "__main__":
    main(*sys.argv[1:])
