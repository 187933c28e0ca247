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
from gapbench.pages.parts import figure, thumbnail
from gapbench.types import GapbenchError

SHOWN: Final = 12
"""Tested pairs that are shown with their pictures."""
HEADS: Final = {"likelihood": "log p(image | prompt)", "verdict": "verdict logit"}
Row = list[Any]


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


def _figures(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    images = pd.DataFrame(results["images"])
    return [
        _groups(results), _similarity(results), _kernel(results), _entries(results),
        _first_order(results), _densities(images, "likelihood"), _densities(images, "verdict"),
        _together(results, images), _alignment(results), _norms(results),
    ]  # fmt: skip


def _groups(results: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for code, count in results["groups"].items():
        shift = results["shift"]["groups"].get(code)
        cells = [interval(shift[head]) if shift else "n/a" for head in HEADS]
        rows.append([f"({', '.join(code)})", str(count), *cells])
    return figure(
        "groups",
        "Groups",
        "Images of BEFORE by (outside judge, own verdict before, AFTER's verdict on them), with "
        "the changes, in nats, of the log-likelihood of their tokens and of the verdict logit; 95 "
        "% intervals over prompts. False positives corrected are (0, 1, 0).",
        None,
        (["group", "images", *(f"change of {name}" for name in HEADS.values())], rows),
    )


def _similarity(results: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        [kind, *(interval(cell[name]) for name in ("corrected", "control", "difference")),
         _p(cell["difference"]["p"])]
        for kind, cell in results["similarity"].items()
    ]  # fmt: skip
    return figure(
        "similarity",
        "(a) Nearness to the training set",
        f"Largest cosine with the training set, by {results['fix']['encoder']}; each image's "
        "control is a random image of another prompt of its category that is not in the group.",
        None,
        (["cosine of", "corrected", "controls", "difference", "p"], rows),
    )


def _kernel(results: Mapping[str, Any]) -> dict[str, Any]:
    kernel, names = results["kernel"], results["layers"]
    by_layer = kernel["log_ratio_by_layer"]
    whole = {"all": "log_ratio", "all, of corrected images": "log_ratio_corrected"}
    rows = [[name, interval(kernel[k]), _p(kernel[k]["p"])] for name, k in whole.items()]
    rows += [[name, interval(by_layer[name]), _p(by_layer[name]["p"])] for name in names]
    return figure(
        "kernel",
        "(b) The kernel with the nearest training pair",
        "Yu is the training pair nearest to Y0 = (y0, x0); Yi = (yi, x0) are other prompts of its "
        "category. |K(Y, Yu)| is the Frobenius norm of K(Y, Yu) r_u: how far a step on Yu moves "
        "the image-token logits of Y, to first order, exactly. Shown is log(|K(Y0, Yu)| / mean of "
        f"|K(Yi, Yu)|), 0 for no preference; in all {number(kernel['own'])} against "
        f"{number(kernel['alternatives'])}.",
        plots.layers(["all", *names], {"log ratio": [kernel["log_ratio"], *by_layer.values()]},
                     "log ratio"),
        (["layer", "log ratio", "p"], rows),
    )  # fmt: skip


def _entries(results: Mapping[str, Any]) -> dict[str, Any]:
    kernel = results["kernel"]
    titles = {"nearest": "the nearest training pair", "random": "a random training pair",
              "mean": "the mean over random training pairs"}  # fmt: skip
    rows = []
    for other, title in titles.items():
        for head, name in HEADS.items():
            cell = kernel[f"{other}_{head}"]
            share = "n/a" if cell["raised"] is None else f"{100 * cell['raised']:.0f} %"
            rows.append([title, name, interval(cell["cosine"]), share])
    return figure(
        "entries",
        "What a step on the training set does to the tested images",
        "Contracted kernel entries as cosines: the gradient of a tested image's log-likelihood, or "
        "of its verdict logit, with the gradient of a training pair's log-likelihood. Above 0, a "
        "small step on the training pair raises it.",
        None,
        (["a step on", "head", "cosine", "raised"], rows),
    )


def _first_order(results: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        [f"{row['share']:g}", HEADS[row["head"]],
         "n/a" if row["ratio"] is None else f"{row['ratio']:.6f}",
         "n/a" if row["farthest"] is None else f"{row['farthest']:.6f}", str(len(row["steps"]))]
        for row in results["first_order"]
    ]  # fmt: skip
    return figure(
        "first-order",
        "Does the kernel predict a step",
        "Single steps of SGD on the nearest training pair, of a length given as a share of the "
        "parameters' norm: actual over predicted change, by least squares through 0 over the "
        "tested pairs, and the pair farthest from 1. As the step shrinks the ratio must tend to 1"
        + (
            "."
            if results["fix"]["dtype"] == "float64"
            else ", up to rounding, which is large here."
        ),
        None,
        (["step", "head", "actual / predicted", "farthest", "pairs"], rows),
    )


def _densities(images: pd.DataFrame, head: str) -> dict[str, Any]:
    groups = {
        f"({', '.join(str(code))})": rows[head].tolist()
        for code, rows in images[images["group"].notna()].groupby("group")
    }
    ends = [0, 0.25, 0.5, 0.75, 1]
    rows = [
        [name, str(len(values)), *(f"{q:+.3g}" for q in pd.Series(values).quantile(ends))]
        for name, values in groups.items()
    ]
    piece = "(c) " if head == "likelihood" else ""
    return figure(
        f"shift-{head}",
        f"{piece}Change of {HEADS[head]}",
        "After less before, in nats, of the same images; densities by group. Images are those that "
        "BEFORE drew, so that all of them tend to become less likely as the model moves on.",
        plots.densities(groups, f"change of {HEADS[head]} (nats)"),
        (["group", "images", "least", "quarter", "median", "three quarters", "most"], rows),
    )


def _together(results: Mapping[str, Any], images: pd.DataFrame) -> dict[str, Any]:
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
    return figure(
        "together",
        "Do the two changes go together",
        "A dot for each prompt (and group): the mean change of the log-likelihood and of the "
        "verdict logit of its images. Pearson's rho over prompts with Fisher's 95 % interval, and "
        "Spearman's.",
        plots.points(groups, "change of log p (nats)", "change of verdict logit (nats)"),
        (["images", "correlation"], rows),
    )


def _alignment(results: Mapping[str, Any]) -> dict[str, Any]:
    names = results["layers"]
    series = {
        when: [cells["all"]["cosine"], *(cells["by_layer"][name]["cosine"] for name in names)]
        for when, cells in results["alignment"].items()
    }
    rows = [
        [name, *(interval(series[when][place]) for when in series)]
        for place, name in enumerate(["all", *names])
    ]
    return figure(
        "alignment",
        "Do the two heads pull the same way",
        "Cosine of grad log p(image | prompt) and grad of the verdict logit of the same tested "
        "image, by layer, over the parameters that the fix trained. 1 is one direction, 0 none "
        "shared.",
        plots.layers(["all", *names], series, "cosine"),
        (["layer", *series], rows),
    )


def _norms(results: Mapping[str, Any]) -> dict[str, Any]:
    heads = {"drawing": "generation", "judging": "verdict"}
    titles = [f"{name} {when}" for when in results["alignment"] for name in heads.values()]
    rows = []
    for layer in ("all", *results["layers"]):
        cells = []
        for sides in results["alignment"].values():
            part = sides["all"] if layer == "all" else sides["by_layer"][layer]
            cells += [interval(part[head]) for head in heads]
        rows.append([layer, *cells])
    return figure(
        "norms",
        "How large the two gradients are",
        "Norms of the gradients of log p(image | prompt) and of the verdict logit, in nats per "
        "unit of the parameters.",
        None,
        (["layer", *titles], rows),
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
