"""A local page with all runs of a folder: what each measured, and their images of one prompt side
by side. It only reads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from gapbench.metrics.metric import METRICS
from gapbench.pages.assets import asset, policy, template
from gapbench.pages.server import LocalHandler, local
from gapbench.report.tables import cell
from gapbench.runs.run import Run, open_run
from gapbench.types import GapbenchError, Prompt

SMALL: Final = 100
"""Pixels below which an image is shown as pixels, without smoothing."""
FIGURES: Final = ("generation", "non_unification")


class Picture(NamedTuple):
    """An image of a run with its verdicts in words; `code` is the page's class for the two."""

    sample: int
    image: str
    own: str
    outside: str
    code: str


class Shown:
    """A run. Its images are read when a page first needs them."""

    def __init__(self, run: Run) -> None:
        self.run, self.folder = run, run.path.name

    @cached_property
    def pictures(self) -> dict[tuple[str, str], list[Picture]]:
        """(task, prompt's text) -> its images."""
        pictures: dict[tuple[str, str], list[Picture]] = {}
        frame = self.run.frame()
        if not len(frame):
            return pictures
        names = ("task", "text", "sample", "image", "own", "p_yes", "outside")
        for task, text, sample, image, own, p, outside in zip(
            *(frame[name] for name in names), strict=True
        ):
            both = "none" if own != own or outside != outside else f"{own:.0f}{outside:.0f}"
            said = _word(own) + ("" if p != p else f" {p:.2f}")
            picture = Picture(int(sample), image, said, _word(outside), f"s{both}")
            pictures.setdefault((task, text), []).append(picture)
        return pictures

    @cached_property
    def images(self) -> frozenset[str]:
        """The digests of its images, which are all that is served of the folder."""
        return frozenset(p.image for mine in self.pictures.values() for p in mine)

    @cached_property
    def small(self) -> bool:
        """Whether its images are drawn pixel by pixel."""
        for image in sorted(self.images)[:1]:
            with suppress(GapbenchError):  # the others may be whole
                return max(self.run.folder.image(image).size) < SMALL
        return False

    @cached_property
    def row(self) -> list[Any]:
        """The run's line in the table of runs."""
        plan = self.run.plan
        rates = {r.metric: r for r in self.run.rates() if r.level == "overall"}
        drawn = sum(map(len, self.pictures.values()))
        figures = [cell(rates[m]) if m in rates else "n/a" for m in FIGURES]
        started = str(self.run.folder.meta.get("started", ""))[:10]
        images = f"{drawn:,} of {len(plan.items()):,}"
        return [self.folder, self.run.name, ", ".join(plan.tasks), images, *figures, started]


class Album:
    """The runs in a folder (or of a folder that is one), and the prompts of all of them."""

    def __init__(self, folder: Path) -> None:
        plans = [*folder.glob("plan.json"), *sorted(folder.glob("*/plan.json"))]
        self.runs: list[Shown] = []
        self.broken: list[str] = []
        for plan in plans:
            try:
                shown = Shown(open_run(plan.parent))
                _ = shown.row  # every page needs it, and a broken run is to cost no other
                self.runs.append(shown)
            except GapbenchError as error:
                self.broken.append(str(error))
        if not self.runs:
            why = f" ({self.broken[0]})" if self.broken else ""
            raise GapbenchError(f"{folder} holds no run folder that can be read{why}")
        prompts = {(p.task, p.text): p for shown in self.runs for p in shown.run.plan.prompts}
        by_category: dict[tuple[str, str], list[Prompt]] = {}
        for prompt in prompts.values():
            by_category.setdefault((prompt.task, prompt.category), []).append(prompt)
        self.prompts = [prompt for mine in by_category.values() for prompt in mine]
        places = iter(range(len(self.prompts)))
        self.categories = [
            (f"{task}/{name}", [*islice(places, len(mine))])
            for (task, name), mine in by_category.items()
        ]

    def images(self, number: int) -> list[list[Picture]]:
        """Every run's images of a prompt."""
        prompt = self.prompts[number]
        return [shown.pictures.get((prompt.task, prompt.text), []) for shown in self.runs]


def serve(album: Album, port: int = 0) -> AbstractContextManager[tuple[str, Callable[[], None]]]:
    """The page's address and what serves it, as `gapbench.pages.server.local` gives them."""

    class Handler(_Handler):
        served = album

    return local(Handler, port)


class _Handler(LocalHandler):
    served: Album

    def get(self, path: str) -> None:
        kind, _, rest = path.partition("/")
        place, _, digest = rest.partition("/")
        number = int(place) if place.isascii() and place.isdigit() and len(place) < 9 else -1
        album = self.served
        if path == "":
            self._page("")
        elif kind == "category" and 0 <= number < len(album.categories):
            name, prompts = album.categories[number]
            self._page("../", category=name, prompts=prompts)
        elif kind == "prompt" and 0 <= number < len(album.prompts):
            self._page("../", number=number)
        elif (
            kind == "image"
            and 0 <= number < len(album.runs)
            and digest in album.runs[number].images
        ):
            data = album.runs[number].run.folder.image_bytes(digest)
            self.send(200, "image/png", data)
        else:
            super().get(path)

    def _page(self, up: str, **about: Any) -> None:
        style = asset("pages/page.css", "report/view.css")
        heads = ["folder", "model", "tasks", "images", *(METRICS[m].heading for m in FIGURES)]
        page = template("report/view.html").render(
            style=style, policy=policy("", style, "img-src 'self' data:"), album=self.served,
            up=up, columns=[*heads, "date"],
            **{"category": None, "prompts": (), "number": None, **about},
        )  # fmt: skip
        self.send(200, "text/html; charset=utf-8", page.encode("utf-8", "backslashreplace"))


def _word(verdict: float) -> str:
    return "no verdict" if verdict != verdict else "yes" if verdict else "no"
