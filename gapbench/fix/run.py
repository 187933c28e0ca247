"""The whole fix: check -> candidates -> training set -> train, replay, train ... -> a model.

Everything is found again on disk: candidates and replays are run folders, a phase is its
checkpoints and, when it is done, phase.json. A fix that was stopped anywhere goes on from there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import pandas as pd
import torch
from filelock import FileLock, Timeout

from gapbench.files import read_object, write_atomic, write_json
from gapbench.fix import candidates, card, check, data, leaks
from gapbench.fix.claim import claim, require_model
from gapbench.fix.settings import FixSettings
from gapbench.models import load_saved, saved_name, torchvision_shim
from gapbench.models.checkpoint import FIX_RECORD
from gapbench.runs import flow
from gapbench.runs.run import Run
from gapbench.runs.settings import Progress, RunSettings
from gapbench.types import GapbenchError

PACKAGES: Final = (
    "gapbench", "torch", "transformers", "accelerate", "peft", "datasets", "numpy",
)  # fmt: skip
WEEK: Final = timedelta(days=7)
"""How long other processes wait for the one that draws."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Fixed:
    """A finished fix: the model's folder and its record (fix.json)."""

    folder: Path
    record: dict[str, Any]

    def words(self) -> list[str]:
        """What was done and what comes next, in lines to print."""
        tasks = dict.fromkeys(name.partition(":")[0] for name in self.record["settings"]["prompts"])
        named = "" if list(tasks) == ["shapes"] else f" --tasks {','.join(tasks)}"
        model = str(self.record["settings"]["model"])
        after = saved_name(model, self.folder)
        own = after != str(self.folder)  # a class of one's own, which names its runs
        runs = "BEFORE AFTER" if own else f"{Path(model).name} {self.folder.name}"
        return [
            f"Trained on {self.record['data']['rows']} rows. "
            f"Model card: {self.folder / card.CARD}; curves: {self.folder / 'curves.png'}; "
            f"training set: {self.folder / 'data'}",
            f"Next: gapbench run --model {after}{named}",
            f"Then: gapbench compare {runs}, the runs of the model before and after",
        ]


def fix(settings: FixSettings, progress: Progress, say: Say) -> Fixed:
    """Post-train a model on its own verdicts; the same call again goes on where it stopped.

    Under torchrun every process calls this; the first one draws, the others wait for it and train
    with it. Raises GapbenchError for input that cannot be used, before anything is drawn.
    """
    torchvision_shim.ensure()
    from accelerate import PartialState

    from gapbench.fix.network import base_model

    rule = candidates.parse(settings.accept)
    if settings.report_to:
        _require_reports(settings.report_to)
    model = base_model(settings, settings.device, settings.dtype)
    leaked, texts = leaks.find(settings.prompts, settings.despite_leak)
    record: dict[str, Any] = {
        "settings": settings.identity(),
        "base": {
            "name": settings.model,
            "fingerprint": model.fingerprint,
            "dtype": model.dtype or "auto",
        },
        "leaks": asdict(leaked),
    }
    file = settings.out / FIX_RECORD
    on_cpu = settings.device == "cpu" or not torch.accelerator.is_available()
    if settings.fsdp and (on_cpu or "LOCAL_RANK" not in os.environ):
        raise GapbenchError(
            "--fsdp: accelerate shards on accelerators under torchrun only, and would copy the "
            "weights to every process here; leave it out"
        )
    state = PartialState(cpu=on_cpu, timeout=WEEK)
    lock = FileLock(settings.out / ".lock")
    if state.is_main_process:
        claim(file, record)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise GapbenchError(
                f"{settings.out} is being written by another gapbench fix"
            ) from error
    state.wait_for_everyone()
    try:
        written = read_object(file)
        if written.get("done"):
            require_model(settings, model.recipe)
            return Fixed(settings.out, written)
        if model.pair and state.is_main_process:
            say(
                f"{model.name} is a pair: only the weights that draw are trained, those that judge "
                "stay as they are"
            )
        for line in leaked.words() if state.is_main_process else ():
            say(line)
        fixing = _Fixing(settings, rule, record, dict(model.recipe), texts, state, progress, say)
        return fixing.run()
    finally:
        lock.release()


def _require_reports(names: Sequence[str]) -> None:
    """Raises GapbenchError for a place that Trainer cannot report to."""
    from transformers.integrations import get_available_reporting_integrations

    there = ["all", "none", *get_available_reporting_integrations()]
    if wrong := [name for name in names if name not in there]:
        raise GapbenchError(
            f"--report-to {wrong[0]}: not installed, or unknown to Trainer; there are "
            f"{', '.join(there)}"
        )


class _Fixing:
    """A fix under way."""

    def __init__(
        self, settings: FixSettings, rule: candidates.Rule, record: dict[str, Any],
        recipe: Mapping[str, object], texts: set[str] | None, state: Any, progress: Progress,
        say: Say,
    ) -> None:  # fmt: skip
        self.settings, self.rule, self.record, self.recipe = settings, rule, record, recipe
        self.texts = texts
        self.state, self.progress, self.say = state, progress, say
        self.work, self.data = settings.out / "work", settings.out / "data"
        self.rows: list[dict[str, Any]] = []
        self.pool: list[str] = []
        self.replays: list[dict[str, Any]] = []
        self.what = "pairs" if settings.loss == "dpo" else "images"
        here = "cpu" if state.device.type == "cpu" else str(state.device)
        self.device = here if settings.device == "auto" else settings.device

    def run(self) -> Fixed:
        from gapbench.fix import network

        # As training makes it: what its constructor does not take is told before it draws.
        network.base_model(self.settings, self.device, network.train_dtype(self.settings))
        main, curves = self.state.is_main_process, []
        phases = self.settings.phases()
        for number, (start, end) in enumerate(phases):
            folder = self.work / f"phase-{number}"
            if main:
                self._collect(number, start)
            self.state.wait_for_everyone()
            done = folder / "phase.json"
            if not done.exists():
                curve = self._train(number, (start, end), folder)
                if main:
                    write_json(done, {"curve": curve})
            self.state.wait_for_everyone()
            curves += [{"phase": number, **point} for point in read_object(done)["curve"]]
            if main:
                self._export(folder)
        if main:
            self._finish(folder / "model", curves)
        self.state.wait_for_everyone()
        return Fixed(self.settings.out, read_object(self.settings.out / FIX_RECORD))

    # -- data ------------------------------------------------------------------------------

    def _collect(self, number: int, epoch: int) -> None:
        """Candidates of a phase, and the training set as it is then."""
        if number == 0:
            self._join(self._first(), epoch)
        else:
            pool, run = len(self.pool), self._again(number) if self.pool else None
            joined = self._join(run, epoch) if run else 0
            left, share = len(self.pool), _acceptance(run.frame()) if run else None
            self.replays.append(
                {"epoch": epoch, "pool": pool, "left": left, "joined": joined, "acceptance": share}
            )
            self.say(
                f"replay at epoch {epoch}: {pool} prompts in the discard pool, {pool - left} "
                f"accepted and gone, {left} left; {joined} {self.what} join"
            )
        if not self.rows:
            raise GapbenchError(
                f"nothing to train on: --accept {self.settings.accept} leaves no {self.what}"
                f"{f' at --margin {self.settings.margin:g}' * (self.settings.loss == 'dpo')}; "
                "choose another, or raise --samples"
            )
        digest = data.digest(self.rows)
        mark = self.data / "digest.txt"
        if not mark.exists() or mark.read_text() != digest:
            facts = {
                "model": self.settings.model,
                "its fingerprint": self.record["base"]["fingerprint"],
                "prompts": ", ".join(self.settings.prompts),
                "candidates a prompt": self.settings.samples,
                "accepted": self.settings.accept,
                "rows": len(self.rows),
                "digest": digest,
            }
            title = f"Training set of gapbench fix {self.settings.method}"
            data.write(self.rows, self.data, data.card(title, facts, self.rows[0]))
            write_atomic(mark, digest.encode())

    def _join(self, run: Run, epoch: int) -> int:
        """Add a run's accepted candidates, or pairs; its discarded prompts are the pool then."""
        frame = run.frame()
        chosen = (
            candidates.pairs(frame, self.rule, self.settings.margin)
            if self.settings.loss == "dpo"
            else candidates.accepted(frame, self.rule)
        )
        self.rows += data.rows_of(chosen, run.folder, f"epoch {epoch}")
        self.pool = candidates.discarded(frame, self.rule)
        return len(chosen)

    def _draw(self, **more: Any) -> Run:
        settings = self.settings
        told = RunSettings(
            settings.model,
            settings.prompts,
            recipe=settings.set,
            samples=settings.samples,
            limit=settings.limit,
            judges=[],
            batch_size=settings.draw_batch,
            workers=settings.workers,
            ray_address=settings.ray_address,
            seed=settings.draw_seed,
            device=settings.device,
            dtype=settings.dtype,
            out=settings.candidates,
            only=self.texts,
            progress=self.progress,
        )
        run = flow.measure(replace(told, **more))
        if run.failures():
            raise GapbenchError(f"{run.path}: {' '.join(run.notes())}")
        if run.refused():
            self.say(" ".join(run.notes()))
        for drawn in run.folder.generations().values():
            data.kept(run.folder, drawn)  # or no more is drawn
        return run

    def _first(self) -> Run:
        file = self.work / "check.json"
        if not file.exists():
            self._check(file)
        if told := check.predicted(self.record["base"]["fingerprint"]):
            self.say(told)
        run = self._draw()
        frame = run.frame()
        table = candidates.counts(frame, self.settings.accept, self.settings.margin)
        self.say(
            f"{len(frame)} candidates of {frame['text'].nunique()} prompts; what each rule "
            "accepts, and how many prompts it leaves in the discard pool (* is used):"
        )
        self.say("   rule          images prompts   pairs    pool")
        for row in table.to_dict("records"):
            star = "*" if row["rule"] == self.settings.accept else " "
            self.say(
                f" {star} {row['rule']:<11} {row['images']:>7} {row['prompts']:>7} "
                f"{row['pairs']:>7} {row['pool']:>7}"
            )
        self.record["counts"] = table.to_dict("records")
        self.record["candidates"] = {
            "images": len(frame),
            "prompts": int(frame["text"].nunique()),
            "acceptance": _acceptance(frame),
            "tasks": run.plan.tasks,
        }
        return run

    def _check(self, file: Path) -> None:
        """The data check, on the first sample of some prompts."""
        limit = min(self.settings.check, self.settings.limit or self.settings.check)
        judges, note = check.at_hand(self.settings)
        if note:
            self.say(note)
        frame = self._draw(samples=1, limit=limit, judges=judges).frame()
        result = check.check(frame)
        self.say(f"Data check on the first images of {len(frame)} prompts; the model")
        for line in result.lines:
            self.say(f"   {line}")
        if result.stop and not self.settings.despite_check:
            raise GapbenchError(
                f"the data check stops the fix: of {self.settings.model} as a judge one has to say "
                f"that {result.stop}. --despite-check trains all the same"
            )
        if result.stop:
            self.say(f"   going on, as asked, although {result.stop}")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, asdict(result))

    def _again(self, number: int) -> Run:
        """The pool, drawn and judged by the weights of the phase before."""
        before = self.work / f"phase-{number - 1}" / "model"
        settings = self.settings
        model = load_saved(settings.model, before, settings.device, settings.dtype, self.recipe)
        model.name = f"{settings.out.resolve().name}-phase-{number - 1}"
        here = {"workers": 1, "ray_address": None}  # where the trained weights are
        return self._draw(model=model, recipe=None, only=self.pool, limit=None, **here)

    # -- training --------------------------------------------------------------------------

    def _train(self, number: int, epochs: tuple[int, int], folder: Path) -> list[dict[str, float]]:
        from gapbench.fix import network
        from gapbench.fix.losses import ImageLoss
        from gapbench.fix.reference import references
        from gapbench.fix.trainer import train_phase

        settings, device = self.settings, self.device
        rows = data.load(self.data)
        model = network.base_model(settings, device, network.train_dtype(settings))
        steps = data.Drawn(
            rows, epochs, settings.batch_size, settings.prompt_dropout, settings.seed
        )
        if settings.loss == "dpo":
            batch = settings.micro_batch or settings.batch_size
            given = self.work / "references.jsonl", settings.logprobs, batch, self.progress
            if self.state.is_main_process:
                references(model, steps, *given)
            self.state.wait_for_everyone()
            steps.reference = references(model, steps, *given)
        prepared = network.prepare(model, settings)
        if number:
            before = self.work / f"phase-{number - 1}" / "trained" / "model.safetensors"
            network.load_trained(prepared, before)
        loss = ImageLoss(model, prepared, settings.beta, settings.logprobs, settings.nll_weight)
        try:
            return train_phase(
                loss, steps, settings, folder, device, network.mixed(settings), self.progress
            )
        finally:
            model.release()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _export(self, folder: Path) -> None:
        """The phase's weights as a checkpoint; what was needed to resume it goes."""
        from gapbench.fix.network import export

        if not (folder / "model").exists():
            part = folder / "model.part"
            shutil.rmtree(part, ignore_errors=True)
            export(self.settings, folder / "trained" / "model.safetensors", part, self.device)
            part.rename(folder / "model")
        for old in folder.glob("checkpoint-*"):
            shutil.rmtree(old)

    def _finish(self, model: Path, curves: list[dict[str, Any]]) -> None:
        from gapbench.fix.plot import plot

        out, settings = self.settings.out, self.settings
        record = {
            **self.record,
            "check": read_object(self.work / "check.json"),
            "data": {
                "digest": data.digest(self.rows),
                "rows": len(self.rows),
                "by_origin": pd.Series([r["origin"] for r in self.rows]).value_counts().to_dict(),
            },
            "replays": self.replays,
            "pool": len(self.pool),
            "curves": curves,
            "processes": int(os.environ.get("WORLD_SIZE", "1")),
            "versions": {name: version(name) for name in PACKAGES},
        }
        plot(record, out / "curves.png")
        if settings.lora:
            write_json(model / "adapter" / FIX_RECORD, {**record, "done": True})
        for item in model.iterdir():
            target = out / item.name
            if target.is_dir():
                shutil.rmtree(target)
            item.replace(target)
        card.write(out, record)
        write_json(out / FIX_RECORD, {**record, "done": True})
        shutil.rmtree(self.work)


def _acceptance(frame: pd.DataFrame) -> float:
    return float((frame["own"] == 1).mean())
