"""The stages of a run: draw images, and ask a judge about them, batch by batch, keeping each."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Final, Literal

from gapbench.engines.base import BatchSize, Done, Engine, Job, Source, single
from gapbench.engines.keep import kept
from gapbench.engines.local import Local
from gapbench.engines.rows import HOPELESS, Rows
from gapbench.files import on_all_cores
from gapbench.judges.base import Judge, check_answer
from gapbench.judges.own import Mode, OwnJudge
from gapbench.judges.parts import PartsJudge
from gapbench.models.base import Drawing, Model, check_drawing
from gapbench.runs.away import Away
from gapbench.runs.drawn import Stored, Written
from gapbench.runs.folder import RunFolder
from gapbench.runs.plan import Item, Prepared
from gapbench.runs.settings import Progress
from gapbench.types import Answer, GapbenchError, Generation, Prompt, Refusal, Verdict, counted

LOG: Final = logging.getLogger("gapbench")
SEEDS: Final = "the model's seeds"
KEPT: Final = "the rest is kept, run the same command again to try what is left"


class Stage:
    """Counts what fails while a stage goes on, and ends it where nothing else comes any more.

    One that goes on with what another `begun` has few rows, of which each may well fail.
    """

    def __init__(self, name: str, begun: bool = False) -> None:
        self.name = name
        self.reasons: Counter[str] = Counter()
        self._in_a_row, self._some = 0, begun
        self._rows, self._seconds = 0, 0.0

    def note_speed(self, folder: RunFolder, fingerprint: str) -> None:
        if self._rows:
            folder.note_speed(fingerprint, self._rows, self._seconds)

    def count(self, rows: Rows[Any], size: int, seconds: float) -> None:
        """Note the rows of a batch of so many. Raises GapbenchError to end the stage."""
        self._rows, self._seconds = self._rows + size, self._seconds + seconds
        for place in range(size):
            failure = rows.failed.get(place)
            if failure is None or failure.final:
                self._in_a_row, self._some = 0, True
            else:
                self._in_a_row += 1
                self.reasons[failure.reason] += 1
                last = failure.reason
            if self._in_a_row == HOPELESS:
                self._give_up(last)
        if rows.stop is not None:
            raise GapbenchError(f"{rows.stop}; {KEPT}") from rows.stop

    def end(self) -> Counter[str]:
        """How often what made a row fail. Raises GapbenchError where nothing else came."""
        if self.reasons and not self._some:
            self._give_up(next(iter(self.reasons)))
        return self.reasons

    def _give_up(self, last: str) -> None:
        failures = counted(self._in_a_row, "failure")
        raise GapbenchError(f"{self.name}: {failures} in a row, the last: {last}; {KEPT}")


def draw_images(
    made: Prepared,
    folder: RunFolder,
    missing: Sequence[Item],
    note: Callable[[Sequence[Generation]], None],
    again: str = "",
) -> Counter[str]:
    """Draw what is missing, keep it, and tell `note` of what is kept. `again` names a stage that
    goes on with what another began. Gives how often what made an image fail. A judge that can read
    no image of the first batch is told then."""
    model, settings = made.model, made.settings
    who = f"model {model.name}"
    if missing and not again:
        first = (missing[0].prompt.text, missing[0].seed)
        check: Job[tuple[str, int], str | None] = Job(who, _check_seeds)
        note_check(folder, SEEDS, single(made.engine, made.source, check, first))
    stage = Stage(again or "images", begun=bool(again))
    total = len(missing) if again else made.plan.n_images()
    advance = settings.progress(stage.name, total - len(missing), total)
    looked = set[str]()  # the judges that had an image

    def look(batch: Sequence[Item], rows: Rows[Drawing | Written]) -> None:
        for judge in made.judges:
            drawn = [d for place, d in rows.done.items() if judge.name in batch[place].asks]
            why = [judge.unread(_size(drawing)) for drawing in drawn]
            if drawn and judge.name not in looked and all(why):
                LOG.warning(
                    "WARNING: %s, and none of the first %d that %s drew is, so its figures may "
                    "stay empty; --judge takes another judge, --tasks another task",
                    why[0], len(drawn), model.name,
                )  # fmt: skip
            looked.update([judge.name] * bool(drawn))

    def keep(batch: Sequence[Item], made: Done[Drawing | Written]) -> None:
        rows = made.rows
        look(batch, rows)
        files = folder.add([*rows.done.values()])
        there = [
            Generation(
                prompt=item.prompt.text,
                sample=item.sample,
                seed=item.seed,
                effective_prompt=(
                    item.prompt.text
                    if drawing.effective_prompt is None
                    else drawing.effective_prompt
                ),
                logprob=drawing.logprob,
                seconds=made.seconds / len(batch),
                **kept._asdict(),
            )
            for item, drawing, kept in zip(
                (batch[place] for place in rows.done), rows.done.values(), files, strict=True
            )
        ]
        folder.append(there)
        folder.append(
            Refusal(prompt=batch[place].prompt.text, seed=batch[place].seed, reason=failure.reason)
            for place, failure in rows.failed.items()
            if failure.final
        )
        note(there)
        stage.count(rows, len(batch), made.seconds)

    job = Job(who, _drawings, _check_drawing, _drawing_of, Away.of(folder))
    results = partial(made.engine.results, made.source, job, missing, settings.batch_size)
    kept(results, keep, advance)
    stage.note_speed(folder, model.fingerprint)
    return stage.end()


# What workers are asked: functions of a module, since they are sent to other processes.


def _check_seeds(model: Model, rows: Sequence[tuple[str, int]]) -> list[str | None]:
    return [model.check_seeds(prompt, seed) for prompt, seed in rows]


def _check_picture(judge: Judge, rows: Sequence[None]) -> list[str | None]:
    return [judge.check_picture() for _ in rows]


def _drawings(model: Model, batch: Sequence[Item]) -> Sequence[Drawing | Written]:
    return model.generate([i.prompt.text for i in batch], [i.seed for i in batch])


def _check_drawing(row: Drawing | Written) -> None:
    if not isinstance(row, Written):
        check_drawing(row)


def _size(row: Drawing | Written) -> tuple[int, int]:
    return row.size if isinstance(row, Written) else row.image.size


def _drawing_of(item: Item) -> str:
    return f"image {item.sample} of {item.prompt.text!r}"


def _answers(
    mode: Mode | Literal["parts"] | None, worker: Any, batch: Sequence[tuple[Prompt, Stored]]
) -> Sequence[Answer]:
    """The answers of a judge, by parts of the requirement or, in another mode, of a model."""
    judge: Judge = worker
    if mode is not None:
        judge = PartsJudge(worker) if mode == "parts" else OwnJudge(worker, mode)
    prompts, images = [prompt for prompt, _ in batch], [image for _, image in batch]
    known = judge.judge_digests([image.sha256 for image in images], prompts)
    return judge.judge(on_all_cores(Stored.open, images), prompts) if known is None else known


def _answer_of(pair: tuple[Prompt, Stored]) -> str:
    return f"the verdict on {pair[1].place.name} for {pair[0].text!r}"


def judge_images(
    stage: str,
    judge: Judge,
    folder: RunFolder,
    asked: Iterable[tuple[Prompt, str]],
    batch_size: BatchSize,
    progress: Progress,
    retry: bool = False,
    where: tuple[Engine, Source] | None = None,
    stop: list[object] | None = None,
    begun: bool = False,
) -> Counter[str]:
    """Let a judge judge images (by sha256) of a run folder that is locked, each against its prompt,
    and keep the verdicts there; those that it has are not made again, but for abstentions where
    `retry` is set. `where` is the engine, and the judge for it or the model that is one; this
    process by default. In another thread than the main one, what is in hand is ended once `stop`
    is not empty; `begun` is as in `Stage`. Gives how often what made a verdict fail."""
    mode: Mode | Literal["parts"] | None = None
    worker: Model | Judge = judge
    if isinstance(judge, OwnJudge):
        mode, worker = judge.mode, judge.model
    elif isinstance(judge, PartsJudge):
        mode, worker = "parts", judge.whole
    engine, source = where or (Local(), Source(worker))
    wanted = {(image, judge.question(p), judge.fingerprint): (p, image) for p, image in asked}
    there = folder.verdicts()
    missing = [
        pair
        for key, pair in wanted.items()
        if key not in there or (retry and there[key].verdict is None)
    ]
    # Side by side, since questions about one image share most of their work.
    place = {image: number for number, (_, image) in enumerate(reversed(missing))}
    missing.sort(key=lambda pair: -place[pair[1]])
    who = f"judge {judge.name}"
    if missing:
        judge.check_ready()
        if mode is None:
            check: Job[None, str | None] = Job(who, _check_picture)
            note_check(folder, who, single(engine, source, check, None))
    advance = progress(stage, len(wanted) - len(missing), len(wanted))
    counts = Stage(stage, begun)

    def keep(batch: Sequence[tuple[Prompt, Stored]], made: Done[Answer]) -> None:
        rows = made.rows
        # What no further try would answer is an abstention.
        final = {
            p: Answer(verdict=None, reason=f.reason) for p, f in rows.failed.items() if f.final
        }
        folder.append(
            Verdict(
                image=image.sha256,
                question=judge.question(prompt),
                judge=judge.name,
                fingerprint=judge.fingerprint,
                **asdict(answer),
            )
            for (prompt, image), answer in (
                (batch[place], answer) for place, answer in sorted((rows.done | final).items())
            )
        )
        counts.count(rows, len(batch), made.seconds)

    job = Job(who, partial(_answers, mode), check_answer, _answer_of)
    pairs = [(prompt, folder.stored(image)) for prompt, image in missing]
    kept(partial(engine.results, source, job, pairs, batch_size), keep, advance, stop)
    counts.note_speed(folder, judge.fingerprint)
    return counts.end()


def note_served(folder: RunFolder, who: str, asked: Model | Judge) -> None:
    """Keep what a server calls its model, and mark a name that is not the one asked for."""
    if (said := asked.served()) is None:
        return
    said = str(said)
    folder.update("served.json", lambda known: {**known, who: said})
    name, mine = said.rpartition("/")[2].lower(), asked.name.removeprefix("server-").lower()
    other = mine not in name and name not in mine
    note_check(folder, who, f"the server says that it is {said}" if other else None)


def note_check(folder: RunFolder, what: str, warning: str | None) -> None:
    """Mark in the run what a check found; an earlier mark goes when all is right."""

    def marked(checks: dict[str, Any]) -> dict[str, Any]:
        others = {key: value for key, value in checks.items() if key != what}
        return others | ({what: warning} if warning else {})

    folder.update("checks.json", marked)
