"""explain.html: an explanation as one page that needs no network."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pandas as pd

from gapbench.explain import plots
from gapbench.explain.groups import CORRECTED
from gapbench.explain.run import Explanation
from gapbench.explain.words import correlation, interval, number, summary
from gapbench.files import write_atomic
from gapbench.pages.assets import asset, policy, template
from gapbench.pages.parts import thumbnail
from gapbench.pages.plots import Plot
from gapbench.types import GapbenchError

SHOWN: Final = 12
"""Tested pairs that are shown with their pictures."""
HEADS: Final = {"likelihood": "log p(image | prompt)", "verdict": "verdict logit"}
Row = list[Any]
Figure = dict[str, Any]


def write_page(explanation: Explanation) -> Path:
    """Write explain.html into the explanation's folder; its path."""
    results, style = explanation.results, asset("pages/page.css")
    file = explanation.folder / "explain.html"
    fix = results["fix"]
    facts = {
        "before": results["before"],
        "after": results["after"],
        "fix": f"{fix['folder']}: {fix['method']} of {fix['base']}, {fix['trained']}",
        "training set": f"{fix['rows']} rows",
        "kernel over": f"{fix['parameters']:,} parameters",
        "estimator": f"projection, rank {fix['projection']}"
        if fix["projection"]
        else "none: exact",
        "computed in": fix["dtype"],
        "encoder": fix["encoder"],
        "outside judge": ", ".join(results["judges"]),
        "tested": f"{results['members']} corrected images, {results['controls']} controls, "
        f"{results['others']} others",
        "seed": str(results["seed"]),
    }
    page = template("explain/page.html").render(
        title=f"{results['before']} and {results['after']}",
        style=style,
        policy=policy("", style, "img-src data:"),
        facts=facts,
        summary=summary(results),
        pieces=_pieces(results),
        fix=fix,
        own=number(results["kernel"]["own"]),
        alternatives=number(results["kernel"]["alternatives"]),
        figures=_figures(results),
        pictures=_pictures(explanation),
    )
    try:
        write_atomic(file, page.encode("utf-8", "backslashreplace"))
    except OSError as problem:
        raise GapbenchError(f"{file} cannot be written: {problem}") from problem
    return file


def _pieces(results: Mapping[str, Any]) -> tuple[list[str], list[Row]]:
    rows = [
        [piece["says"], piece["verdict"], _p(piece["p_holm"])]
        for piece in results["evidence"].values()
    ]
    return ["the theory expects that", "verdict", "Holm p"], rows


def _figures(results: Mapping[str, Any]) -> dict[str, Figure]:
    """The table of each figure of the page, and its plot if it has one."""
    images = pd.DataFrame(results["images"])
    return {
        "groups": _groups(results), "similarity": _similarity(results),
        "kernel": _kernel(results), "entries": _entries(results),
        "first_order": _first_order(results), "likelihood": _densities(images, "likelihood"),
        "verdict": _densities(images, "verdict"), "together": _together(results, images),
        "alignment": _alignment(results), "norms": _norms(results), "rank": _rank(results),
    }  # fmt: skip


def _figure(heads: list[str], rows: list[Row], plot: Plot | None = None) -> Figure:
    return {"table": (heads, rows), "plot": plot}


def _groups(results: Mapping[str, Any]) -> Figure:
    rows = []
    for code, count in results["groups"].items():
        shift = results["shift"]["groups"].get(code)
        cells = [interval(shift[head]) if shift else "n/a" for head in HEADS]
        rows.append([f"({', '.join(code)})", str(count), *cells])
    return _figure(["group", "images", *(f"change of {name}" for name in HEADS.values())], rows)


def _similarity(results: Mapping[str, Any]) -> Figure:
    rows = [
        [kind, *(interval(cell[name]) for name in ("corrected", "control", "difference")),
         _p(cell["difference"]["p"])]
        for kind, cell in results["similarity"].items()
    ]  # fmt: skip
    return _figure(["cosine of", "corrected", "controls", "difference", "p"], rows)


def _kernel(results: Mapping[str, Any]) -> Figure:
    kernel, names = results["kernel"], results["layers"]
    by_layer = kernel["log_ratio_by_layer"]
    whole = {
        "all": "log_ratio",
        "all, of corrected images": "log_ratio_corrected",
        "all, for a random training pair": "log_ratio_random",
    }
    rows = [[name, interval(kernel[k]), _p(kernel[k]["p"])] for name, k in whole.items()]
    rows += [[name, interval(by_layer[name]), _p(by_layer[name]["p"])] for name in names]
    ratios = {"log ratio": [kernel["log_ratio"], *by_layer.values()]}
    plot = plots.layers(["all", *names], ratios, "log ratio")
    return _figure(["layer", "log ratio", "p"], rows, plot)


def _entries(results: Mapping[str, Any]) -> Figure:
    kernel = results["kernel"]
    titles = {"nearest": "the nearest training pair", "random": "a random training pair",
              "mean": "the mean over random training pairs"}  # fmt: skip
    rows = []
    for other, title in titles.items():
        for head, name in HEADS.items():
            cell = kernel[f"{other}_{head}"]
            share = "n/a" if cell["raised"] is None else f"{100 * cell['raised']:.0f} %"
            rows.append([title, name, interval(cell["cosine"]), share])
    return _figure(["a step on", "head", "cosine", "raised"], rows)


def _first_order(results: Mapping[str, Any]) -> Figure:
    rows = [
        [f"{row['share']:g}", HEADS[row["head"]],
         "n/a" if row["ratio"] is None else f"{row['ratio']:.6f}",
         "n/a" if row["farthest"] is None else f"{row['farthest']:.6f}", str(len(row["steps"]))]
        for row in results["first_order"]
    ]  # fmt: skip
    return _figure(["step", "head", "actual / predicted", "farthest", "pairs"], rows)


def _densities(images: pd.DataFrame, head: str) -> Figure:
    groups = {
        f"({', '.join(str(code))})": rows[head].tolist()
        for code, rows in images[images["group"].notna()].groupby("group")
    }
    ends = [0, 0.25, 0.5, 0.75, 1]
    rows = [
        [name, str(len(values)), *(f"{q:+.3g}" for q in pd.Series(values).quantile(ends))]
        for name, values in groups.items()
    ]
    plot = plots.densities(groups, f"change of {HEADS[head]} (nats)")
    quantiles = ["least", "quarter", "median", "three quarters", "most"]
    return _figure(["group", "images", *quantiles], rows, plot)


def _together(results: Mapping[str, Any], images: pd.DataFrame) -> Figure:
    images = images.assign(
        mine=["corrected" if group == CORRECTED else "others" for group in images["group"]]
    )
    each = images.groupby(["mine", "text"])[["likelihood", "verdict"]].mean().reset_index()
    groups = {
        name: (mine["likelihood"].tolist(), mine["verdict"].tolist())
        for name in ("others", "corrected")  # the few on top of the many
        if len(mine := each[each["mine"] == name])
    }
    shift = results["shift"]
    rows = [["all", correlation(shift["correlation"])],
            ["corrected", correlation(shift["correlation_in_corrected"])]]  # fmt: skip
    plot = plots.points(groups, "change of log p (nats)", "change of verdict logit (nats)")
    return _figure(["images", "correlation"], rows, plot)


def _alignment(results: Mapping[str, Any]) -> Figure:
    names = results["layers"]
    series = {
        when: [cells["all"]["cosine"], *(cells["by_layer"][name]["cosine"] for name in names)]
        for when, cells in results["alignment"].items()
    }
    rows = [
        [name, *(interval(series[when][place]) for when in series)]
        for place, name in enumerate(["all", *names])
    ]
    return _figure(["layer", *series], rows, plots.layers(["all", *names], series, "cosine"))


def _norms(results: Mapping[str, Any]) -> Figure:
    heads = {"drawing": "generation", "judging": "verdict"}
    titles = [f"{name} {when}" for when in results["alignment"] for name in heads.values()]
    rows = []
    for layer in ("all", *results["layers"]):
        cells = []
        for sides in results["alignment"].values():
            part = sides["all"] if layer == "all" else sides["by_layer"][layer]
            cells += [interval(part[head]) for head in heads]
        rows.append([layer, *cells])
    return _figure(["layer", *titles], rows)


def _rank(results: Mapping[str, Any]) -> Figure:
    ranks = results["effective_rank"]
    return _figure(
        [*ranks], [["n/a" if rank is None else f"{rank:.4g}" for rank in ranks.values()]]
    )


def _pictures(explanation: Explanation) -> list[dict[str, str]]:
    members = [t for t in explanation.results["tested"] if t["matched"] is None][:SHOWN]
    shown = []
    for t in members:
        near = t["similarity"]
        row, buffer = explanation.rows[near["row"]], io.BytesIO()
        row["image"].convert("RGB").save(buffer, "PNG")
        drawn = explanation.before.folder.image_bytes(t["image"])
        shown.append(
            {
                "text": t["text"],
                "image": thumbnail(drawn, t["image"]),
                "near_text": row["prompt"],
                "near_image": thumbnail(
                    buffer.getvalue(), f"row {near['row']} of the training set"
                ),
                "cosines": f"{near['row_prompt']:.3f}, {near['row_image']:.3f}",
            }
        )
    return shown


def _p(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"
