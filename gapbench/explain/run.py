"""`gapbench explain`: what the gradients of a model say about a fix of it.

Two passes over weights that are loaded one after the other, before and after. Every image's values
and every tested pair's figures are kept as they are made, so that the same command goes on where it
stopped. At any time five gradients are held at most, whatever the size of the training set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from gapbench.comparison.compare import cross, pair_runs
from gapbench.engines.local import work
from gapbench.explain import evidence, similarity
from gapbench.explain.figures import effective_rank
from gapbench.explain.groups import Tested, choose, coded
from gapbench.explain.kernel import Gradient, Heads, Tokens, first_order
from gapbench.explain.sides import Side, find_fix, rank_for, summary, training_rows
from gapbench.files import Journal, write_json
from gapbench.models.base import Model, require
from gapbench.runs.run import Run, open_run
from gapbench.runs.settings import Progress, silent
from gapbench.types import GapbenchError

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

FORMAT: Final = 2
MEAN_OVER: Final = 128
"""Random training pairs that the mean training gradient is taken over."""
CHECKED: Final = 4
"""Tested pairs of the first-order check."""
RANKED: Final = 1024
"""Prompts, drawn at random, whose representations the effective rank is of."""
BATCH: Final = 16


@dataclass(frozen=True, slots=True)
class Explanation:
    """What was found, as explain.json holds it, the folder that it lies in, the run of BEFORE and
    the training set."""

    folder: Path
    results: dict[str, Any]
    before: Run
    rows: Dataset


def explain(
    before: str | Path,
    after: str | Path,
    *,
    fix: str | None = None,
    out: str | Path | None = None,
    pairs: int = 32,
    seed: int = 0,
    encoder: str | None = None,
    projection: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress = silent,
) -> Explanation:
    """Explain what a fix did from BEFORE to AFTER, run folders of the same prompts and seeds.

    `fix` is the fix's folder, by default where AFTER's run found its model; `out` the folder for
    explain.json, by default `explain` in AFTER's; `pairs` the members of the correction group that
    are looked at; `projection` estimates the kernel (see `Side`). The other options are the
    command's. Raises GapbenchError for input that cannot be explained, before weights are loaded.
    """
    similarity.check(encoder)
    runs = pair_runs(open_run(before), open_run(after), None)
    if runs.after.mode == "questions":
        raise GapbenchError(
            f"{runs.after.path}: its own verdicts are by questions, and gapbench explain takes "
            "those of one question; run both again with --verdict logits"
        )
    made = find_fix(runs.before, runs.after, fix)
    if similarity.own_towers(encoder):
        why = "give --encoder clip (`gapbench prepare --judge clip` fetches it) or clip:FOLDER"
        require(made.base, ["embeddings"], why)
    rank = rank_for(made, projection)
    rows = training_rows(made)
    drawn = runs.before.folder.generations()
    # By prompt and seed: other tokens may decode to the same picture.
    keys = zip(runs.old["text"], runs.old["seed"], strict=True)
    tokens: list[Any] = [drawn[text, seed].tokens for text, seed in keys]
    if None in tokens:
        raise GapbenchError(f"{runs.before.path} holds no image tokens, so they have no likelihood")
    crossed = cross(runs, [str(made.folder)], progress)
    if crossed is None:
        raise GapbenchError(
            f"{runs.before.path} lacks own or outside verdicts; gapbench explain starts from both"
        )
    prompts = runs.before.plan.prompts
    questions = {(p.task, p.id): p.question for p in prompts}
    question = [questions[key] for key in zip(runs.old["task"], runs.old["prompt"], strict=True)]
    frame = coded(runs.old.assign(tokens=tokens, question=question), crossed)
    tested = choose(frame, prompts, pairs, seed)
    folder = Path(out) if out else runs.after.path / "explain"
    if folder.exists() and not folder.is_dir():
        raise GapbenchError(f"--out {folder} is a file; give a folder")
    identity = {
        "format": FORMAT,
        "runs": [run.folder.meta["identity"] for run in (runs.before, runs.after)],
        "data": made.record["data"]["digest"],
        "options": [seed, encoder, rank, device, dtype],
    }
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    journal = Journal(folder / "work" / f"{name}.jsonl")
    explaining = _Explaining(runs.before, frame, tested, rows, journal, seed, progress)
    about = journal.there.get("about")
    if about is None or explaining.left("value-before", "pair", "step"):
        side = Side(made, False, device, dtype, rank, seed)
        about = {**summary(made, side.heads, rank), "dtype": side.dtype}
        about["encoder"] = explaining.before(side, encoder)
        about["layers"] = side.heads.layers
        journal.add({"about": about})
        side.release()
    if explaining.left("value-after", "align"):
        side = Side(made, True, device, dtype, rank, seed)
        explaining.after(side)
        side.release()
    results = {
        "before": str(runs.before.path),
        "after": str(runs.after.path),
        "fix": about,
        "seed": seed,
        "judges": sorted({str(name) for name in runs.old["judge"].dropna()}),
        "left_out": runs.left_out,
        **evidence.gather(frame, tested, journal.there, about["layers"]),
    }
    write_json(folder / "explain.json", results)
    return Explanation(folder, results, runs.before, rows)


class _Explaining:
    """An explanation under way. Records of the journal: rank/before and rank/after hold effective
    ranks, value-before/KEY and value-after/KEY (log-likelihood, verdict logit), pair/KEY a tested
    pair's figures, step/KEY its first-order check, align/KEY its gradients after."""

    def __init__(
        self, run: Run, frame: pd.DataFrame, tested: Sequence[Tested], rows: Dataset,
        journal: Journal, seed: int, progress: Progress,
    ) -> None:  # fmt: skip
        self.folder, self.rows, self.journal = run.folder, rows, journal
        self.seed, self.progress = seed, progress
        images = list(frame.itertuples())
        self.stages: dict[str, Sequence[Any]] = {
            "value-before": images, "pair": tested, "step": tested[:CHECKED],
            "value-after": images, "align": tested,
        }  # fmt: skip
        self._plain = rows.select_columns(["prompt", "tokens"])

    def left(self, *stages: str) -> list[Any]:
        """What is still to be computed of some stages: images or tested pairs."""
        return [
            each
            for stage in stages
            for each in self.stages[stage]
            if f"{stage}/{each.key}" not in self.journal.there
        ]

    def before(self, side: Side, asked: str | None) -> str:
        """All that is computed under the weights before; gives the encoder's name."""
        self._rank("before", side.model)
        self._values("value-before", side.heads)
        encoder = similarity.encoder(asked, side.model)
        if pairs := self.left("pair"):
            near = self._nearest(encoder, pairs)
            mean = self._mean_gradient(side.heads)
            self._each("pair", "kernel", lambda t: self._pair(side.heads, t, near[t.key], mean))
        self._each("step", "first-order check", lambda t: self._step(side.heads, t))
        return encoder.name

    def after(self, side: Side) -> None:
        """All that is computed under the weights after."""
        self._rank("after", side.model)
        self._values("value-after", side.heads)
        self._each("align", "gradients after", lambda t: self._align(side.heads, t))

    # -- stages ----------------------------------------------------------------------------

    def _rank(self, when: str, model: Model) -> None:
        if f"rank/{when}" in self.journal.there:
            return
        rank = None
        if "embeddings" in model.capabilities:
            texts = sorted({each.text for each in self.stages["value-before"]})
            order = np.random.default_rng([self.seed, 3]).permutation(len(texts))[:RANKED]
            advance = self.progress(f"representations {when}", 0, len(order))
            chosen = [texts[place] for place in order]
            rank = effective_rank(similarity.batched(model.embed_texts, chosen, advance))
        self.journal.add({f"rank/{when}": rank})

    def _values(self, stage: str, heads: Heads) -> None:
        missing, total = self.left(stage), len(self.stages[stage])
        title = stage.replace("value-", "likelihoods ")
        advance = self.progress(title, total - len(missing), total)

        @torch.no_grad()
        def do(batch: Sequence[Any]) -> tuple[list[float], list[float]]:
            tokens = np.stack([self.folder.tokens(each.tokens) for each in batch])
            pictures = [self.folder.image(each.image) for each in batch]
            return (
                heads.likelihoods([each.text for each in batch], tokens).tolist(),
                heads.verdicts(pictures, [each.question for each in batch]).tolist(),
            )

        def keep(batch: Sequence[Any], columns: tuple[list[float], list[float]]) -> None:
            values = zip(batch, *columns, strict=True)
            self.journal.add({f"{stage}/{each.key}": both for each, *both in values})

        work(missing, BATCH, do, keep, advance)

    def _each(self, stage: str, title: str, make: Callable[[Tested], Any]) -> None:
        missing, total = self.left(stage), len(self.stages[stage])
        if missing:
            work(
                missing,
                1,
                lambda batch: make(batch[0]),
                lambda batch, value: self.journal.add({f"{stage}/{batch[0].key}": value}),
                self.progress(title, total - len(missing), total),
            )

    def _nearest(
        self, encoder: similarity.Encoder, pairs: Sequence[Tested]
    ) -> dict[str, similarity.Nearest]:
        texts = list(self._plain["prompt"])
        distinct = list(dict.fromkeys(texts))
        total = len(distinct) + len(self.rows) + 2 * len(pairs)
        advance = self.progress("embeddings", 0, total)
        prompts = similarity.batched(encoder.texts, distinct, advance)
        place = {text: number for number, text in enumerate(distinct)}

        def pictures(numbers: Sequence[int]) -> similarity.Embeddings:
            return encoder.images([self.rows[n]["image"].convert("RGB") for n in numbers])

        known = similarity.TrainingSet(
            prompts[[place[text] for text in texts]],
            similarity.batched(pictures, range(len(self.rows)), advance),
            encoder.centred,
        )
        mine = similarity.batched(encoder.texts, [t.text for t in pairs], advance)
        seen = similarity.batched(
            lambda part: encoder.images([self.folder.image(t.image) for t in part]), pairs, advance
        )
        return {
            t.key: known.nearest(one, two) for t, one, two in zip(pairs, mine, seen, strict=True)
        }

    def _mean_gradient(self, heads: Heads) -> Gradient:
        stream = np.random.default_rng([self.seed, 1])
        chosen = stream.permutation(len(self.rows))[:MEAN_OVER]
        advance = self.progress("mean gradient", 0, len(chosen))
        total: Gradient = [None] * len(heads.moved)
        for number in chosen:
            part = heads.of_likelihood(*self._row(int(number)))
            total = [
                b if a is None else a if b is None else a.add_(b, alpha=1.0)
                for a, b in zip(total, part, strict=True)
            ]
            advance(1)
        return [None if part is None else part / len(chosen) for part in total]

    # -- one tested pair -------------------------------------------------------------------

    def _pair(
        self, heads: Heads, t: Tested, near: similarity.Nearest, mean: Gradient
    ) -> dict[str, Any]:
        tokens = self.folder.tokens(t.tokens)
        drawing = heads.of_likelihood(t.text, tokens)
        judging = heads.of_verdict(self.folder.image(t.image), t.question)
        step = heads.of_likelihood(*self._row(near.row))
        sequences = [t.text, *t.alternatives]
        pushed = heads.push(sequences, np.stack([tokens] * len(sequences)), step)

        def entries(other: Gradient) -> dict[str, Any]:
            return {
                "likelihood": heads.inner(drawing, other).tolist(),
                "verdict": heads.inner(judging, other).tolist(),
                "square": heads.inner(other, other).tolist(),
            }

        pair = {
            **_gradients(heads, drawing, judging),
            "similarity": asdict(near),
            "nearest": entries(step),
            "norms": pushed.norms.tolist(),
            "norms_by_layer": pushed.by_layer.T.tolist(),
            "likelihoods": pushed.likelihood.tolist(),
            "mean": entries(mean),
        }
        del step
        seed = int.from_bytes(hashlib.sha256(t.key.encode()).digest()[:8])
        other = int(np.random.default_rng([self.seed, 2, seed]).integers(len(self.rows)))
        step = heads.of_likelihood(*self._row(other))
        norms = heads.norms(sequences, np.stack([tokens] * len(sequences)), step)
        return {**pair, "random": entries(step), "random_norms": norms.tolist()}

    def _step(self, heads: Heads, t: Tested) -> list[dict[str, Any]]:
        row = self.journal.there[f"pair/{t.key}"]["similarity"]["row"]
        mine = (t.text, self.folder.tokens(t.tokens), self.folder.image(t.image), t.question)
        return [asdict(step) for step in first_order(heads, mine, self._row(row))]

    def _align(self, heads: Heads, t: Tested) -> dict[str, Any]:
        drawing = heads.of_likelihood(t.text, self.folder.tokens(t.tokens))
        judging = heads.of_verdict(self.folder.image(t.image), t.question)
        return _gradients(heads, drawing, judging)

    def _row(self, number: int) -> tuple[str, Tokens]:
        row = self._plain[number]
        return str(row["prompt"]), np.asarray(row["tokens"], dtype=np.int32)


def _gradients(heads: Heads, drawing: Gradient, judging: Gradient) -> dict[str, Any]:
    """Inner products by layer of a pair's generation and verdict gradients."""
    return {
        "both": heads.inner(drawing, judging).tolist(),
        "drawing": heads.inner(drawing, drawing).tolist(),
        "judging": heads.inner(judging, judging).tolist(),
    }
