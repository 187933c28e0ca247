"""A run as it stands in its folder: its frame of verdicts, its rates, what was wrong with it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from gapbench.files import read_object
from gapbench.judges.lists import asked
from gapbench.judges.own import MODES, Mode
from gapbench.judges.parts import questions
from gapbench.models.base import PAIR
from gapbench.runs.folder import RunFolder
from gapbench.runs.frame import ByJudge, majority, majority_of, row
from gapbench.runs.listing import find_run
from gapbench.runs.plan import Item, Plan
from gapbench.runs.references import wanted_of
from gapbench.runs.reflect import figures, tried
from gapbench.runs.settings import Part
from gapbench.runs.whole import stored_plan, whole
from gapbench.tasks.content import cluster
from gapbench.types import SHARE, Answer, GapbenchError, Rates, Verdict, counted

if TYPE_CHECKING:
    import pandas as pd

    from gapbench.judges.human import HumanJudge
    from gapbench.metrics.agreement import Agreement
    from gapbench.metrics.corrected import Corrected
    from gapbench.metrics.reflection import Reflection
    from gapbench.metrics.verification import Verification

HUMAN: Final = "human"
LABELS: Final = "labels.jsonl"
"""The judge that people are, and the file in a run folder where `gapbench label` keeps what they
say."""
FAILURES: Final = "failures.json"
IMAGE: Final = ["task", "category", "tier", "prompt", "sample"]


class Run:
    """A run folder with a plan: its frame and its rates."""

    def __init__(self, folder: RunFolder, plan: Plan) -> None:
        self.folder, self.plan = folder, plan

    @property
    def path(self) -> Path:
        return self.folder.path

    @cached_property
    def items(self) -> list[Item]:
        """Every planned image."""
        return self.plan.items()

    @property
    def name(self) -> str:
        """The model, with what the command changed of it and own verdicts that are no logits:
        "janus-mini (guidance=4, seed=1, verdict=text)"; with * where there is a footnote."""
        meta, usual = self.folder.meta, {("seed", 0), ("verdict", "logits"), ("verdict", "none")}
        changed = {**meta.get("model_about", {}).get("changed", {}), "seed": self.plan.seed}
        changed["verdict"] = self.mode
        changed |= {"shard": self.plan.shard} if self.plan.shard else {}
        told = [f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
                for key, value in changed.items() if (key, value) not in usual]  # fmt: skip
        brackets = f" ({', '.join(told)})" if told else ""
        return f"{meta['model']}{'*' * bool(self.footnote)}{brackets}"

    @cached_property
    def mode(self) -> Literal["logits", "text", "questions", "none"]:
        """How the own verdicts were made: text, too, where logits were asked for and a server sent
        no log-probabilities with most of its replies."""
        if not self.plan.own:
            return "none"
        mode, made = MODES[self.plan.own], self.own_verdicts()
        return "text" if mode == "logits" and 2 * self.in_words() > len(made) else mode

    def own_verdicts(self) -> list[Verdict]:
        """The model's own verdicts on planned images that are there."""
        fingerprint, drawn = self.plan.own_fingerprint, self.folder.generations()
        found = (drawn.get((item.prompt.text, item.seed)) for item in self.items)
        images = {generation.image for generation in found if generation}
        verdicts = self.folder.verdicts().values()
        return [v for v in verdicts if v.fingerprint == fingerprint and v.image in images]

    def in_words(self) -> int:
        """How many of the own verdicts were read from the words of a reply."""
        return sum(v.verdict is not None and v.p_yes is None for v in self.own_verdicts())

    @property
    def footnote(self) -> str:
        """What every table of the run has to say about its model, if anything."""
        return f"* {pairing}" if (pairing := self.pairing) else ""

    @property
    def pairing(self) -> str | None:
        """Of a pair: what its two have to do with each other, in words."""
        about = self.folder.meta.get("model_about", {})
        return about.get("pairing", PAIR) if about.get("pair") else None

    def judges(self) -> list[str]:
        """Names of the outside judges, in order of first use; last, where people labelled images,
        "human"."""
        return [*self.plan.judges, *([HUMAN] if (self.path / LABELS).exists() else [])]

    def people_judges(self) -> list[str]:
        """Those of the outside judges that are people: first who labelled images on the page, then
        the files of `human:FILE`."""
        names = [name for name in self.plan.judges if name.startswith(f"{HUMAN}-")]
        return [name for name in self.judges() if name == HUMAN] + names

    def people(self) -> HumanJudge | None:
        """The labels that `gapbench label` gathered, if any."""
        from gapbench.judges.human import HumanJudge

        file = self.path / LABELS
        return HumanJudge(str(file)) if file.exists() else None

    def checks(self) -> dict[str, str]:
        """What was tried -> what was wrong with it: a judge's answers about a picture of known
        truth ("judge NAME"), or a model's seeds; empty if nothing was."""
        file = self.path / "checks.json"
        return {str(k): str(v) for k, v in read_object(file).items()} if file.exists() else {}

    def failures(self) -> dict[str, dict[str, int]]:
        """Stage of the latest command ("images", "own verdicts", ...) -> reason -> how many rows
        failed for it; the same command again tries them again."""
        file = self.path / FAILURES
        return read_object(file) if file.exists() else {}

    def stages(self) -> dict[str, tuple[int, int]]:
        """Stage ("images", "own verdicts", ...) -> how many of its images or verdicts are there,
        and how many are planned. Images that the model refused are not planned, and verdicts are
        those on images that are there; "reflections" are the prompts that are drawn again until
        that ends."""
        plan, drawn, verdicts = self.plan, self.folder.generations(), self.folder.verdicts()
        refused, items = self.folder.refusals(), self.items
        keys = [(item.prompt.text, item.seed) for item in items]
        images = [drawn[key].image if key in drawn else None for key in keys]
        planned = sum(key in drawn or key not in refused for key in keys)
        stages = {"images": (len(items) - images.count(None), planned)}
        wanted: dict[str, set[tuple[str, str, str]]] = {}
        for item, image in zip(items, images, strict=True):
            if image is None:
                continue
            if item.own:
                mine = wanted.setdefault("own verdicts", set())
                for prompt in filter(None, (item.prompt, item.partner)):
                    mine.add((image, plan.own_question(prompt), plan.own_fingerprint))
            for judge, question in (*item.asks.items(), *item.partner_asks.items()):
                theirs = wanted.setdefault(f"verdicts of {judge}", set())
                theirs.add((image, question, plan.judges[judge]))
            for judge in item.answers:
                answers = wanted.setdefault(f"answers of {judge}", set())
                answers.add((image, asked(questions(item.prompt)), plan.judges[judge]))
        for stage, about in wanted_of(plan, items).items():
            wanted.setdefault(stage, set()).update(about)
        if chains := tried(plan, self.folder):
            stages["reflections"] = (sum(chain.ended for chain in chains), len(chains))
        for chain in chains:
            for judge, question in chain.chain.asks.items() if chain.ended else ():
                theirs = wanted.setdefault(f"verdicts of {judge}", set())
                theirs.add((chain.kept.image, question, plan.judges[judge]))
        return stages | {
            stage: (sum(key in verdicts for key in keys), len(keys))
            for stage, keys in wanted.items()
        }

    @cached_property
    def unfinished(self) -> str:
        """What is missing of an unfinished run, in one line; empty where it is finished."""
        return _lacking(self.stages())

    def unfinished_for(self, judges: Sequence[str] = ()) -> str:
        """As `unfinished`, of what figures against these outside judges need, by default against
        each task's first: another judge may still be at work."""
        first = {next(iter(item.asks), "") for item in self.items}
        kinds = ("verdicts", "answers")
        concerned = {f"{kind} of {name}" for kind in kinds for name in judges or first}
        others = {f"{kind} of {name}" for kind in kinds for name in self.plan.judges} - concerned
        return _lacking({name: of for name, of in self.stages().items() if name not in others})

    def refused(self) -> dict[str, int]:
        """Reason -> how many of the planned images the model refused to draw for it."""
        drawn, refusals = self.folder.generations(), self.folder.refusals()
        if not refusals:
            return {}
        planned = {(item.prompt.text, item.seed) for item in self.items}
        keys = [key for key in refusals if key in planned and key not in drawn]
        reasons = [refusals[key].reason for key in sorted(keys)]
        return dict(Counter(reasons))

    def notes(self) -> list[str]:
        """What a reader of the run's figures has to know of its plan and of what is missing."""
        notes, refused = self.plan.notes(), self.refused()
        if refused:
            notes.append(
                f"WARNING: {counted(sum(refused.values()), 'image')} of {len(self.items)} "
                f"refused by the model are left out: {_by_reason(refused)}; --retry-refused asks "
                "again."
            )
        return notes + [
            f"WARNING: {stage}: {sum(reasons.values())} missing: {_by_reason(reasons)}; run the "
            "same command again."
            for stage, reasons in self.failures().items()
        ]

    def agreements(self, panel: tuple[str, ...] = ()) -> list[tuple[str, str, Agreement]]:
        """Agreement of each two outside judges, of the majority of a `panel` of them with people,
        and of each two people ("human:NAME"), on the images that both were asked about."""
        from gapbench.metrics.agreement import agreement

        people = self.people()
        raters = [f"{HUMAN}:{rater}" for rater in people.raters()] if people else []
        pairs: list[tuple[ByJudge, ByJudge]] = [*combinations(self.judges(), 2)]
        if len(panel) > 1:
            pairs += [(panel, name) for name in self.people_judges() if name not in panel]
        pairs += combinations(raters, 2)
        frames = {name: self.frame(name) for name in {name for pair in pairs for name in pair}}
        frames = {name: each[each["outside_asked"]] for name, each in frames.items() if len(each)}
        agreements = []
        for first, second in pairs:
            if first not in frames or second not in frames:
                continue
            both = frames[first].merge(
                frames[second][[*IMAGE, "outside"]], on=IMAGE, suffixes=("_first", "_second")
            )
            if len(both):
                measured = agreement(both, "outside_first", "outside_second")
                agreements.append((self.called(first), self.called(second), measured))
        return agreements

    def called(self, judge: ByJudge) -> str:
        """An outside judge, a majority, or the tasks' own judges in words."""
        if judge is None:
            return ", ".join(self.plan.judges) or "none"
        return judge if isinstance(judge, str) else majority_of(judge)

    def corrected(self, judge: ByJudge = None) -> list[Corrected]:
        """The rates by an outside judge (each task's first, by default) as people's labels correct
        them, those of the first of `people_judges`; empty without labels and for people."""
        from gapbench.metrics.corrected import corrected

        people = self.people_judges()
        if not people or set((judge,) if isinstance(judge, str) else judge or ()) & set(people):
            return []
        frame, labelled = self.frame(judge), self.frame(people[0])
        if not len(labelled) or not len(frame) or frame["judge"].isin(people).any():
            return []
        labels = labelled[[*IMAGE, "outside"]].rename(columns={"outside": HUMAN})
        return corrected(frame.merge(labels, on=IMAGE, how="left"))

    def verification(self, judge: ByJudge = None) -> Verification | None:
        """What the own verdicts are worth; None where no image has both verdicts."""
        from gapbench.metrics.verification import verification

        frame = self.frame(judge)
        return verification(frame) if len(frame) else None

    def reflection(self, judge: ByJudge = None) -> Reflection | None:
        """What drawing again (`--reflect`) brings; None where nobody asked for it, or not of this
        judge. People's labels on the run's page are of its samples, and say nothing of it."""
        return figures(self.plan, self.folder, judge)

    def frame(self, judge: ByJudge = None) -> pd.DataFrame:
        """One row for each planned image that was drawn.

        Columns: task, category, tier, prompt (id), cluster (`gapbench.tasks.content.cluster`),
        text, sample, seed, image (sha256), own, own_asked, p_yes, own_reason, outside,
        outside_asked, score, scale, geometric (`gapbench.judges.lists.geometric`), outside_reason,
        judge, mismatched, mismatched_asked. Verdicts
        are 1.0, 0.0 or NaN: abstained, or missing where "asked" is false, which it also is where
        the judge accepts the mismatched pair. `judge` picks an outside judge, and with it the
        images it was asked about; by default each task's first. "human" is the people who labelled
        the run, "human:NAME" one of them. Several names are the majority of these judges
        (`gapbench.runs.frame.majority`), over all images that one of them was asked about; it has
        no scores.
        """
        import pandas as pd

        named = (judge,) if isinstance(judge, str) else judge
        people = self.people() if any(_of(name) == HUMAN for name in named or ()) else None
        raters = [f"{HUMAN}:{name}" for name in people.raters()] if people else []
        if HUMAN in (named or ()) and (double := set(raters) & set(named or ())):
            raise GapbenchError(
                f"--judge: {HUMAN} is what all raters say, {min(double)} among them; leave one out"
            )
        for name in named or ():
            if name not in [*self.judges(), *raters]:
                there = ", ".join(self.judges())
                raise GapbenchError(
                    f"{self.path} has no verdicts of judge {name!r}; it has {there}"
                )
        drawn, verdicts = self.folder.generations(), self.folder.verdicts()
        fingerprint = self.plan.own_fingerprint
        who: str | None
        columns, of = defaultdict[str, list[object]](list), None
        for item in self.items:
            if item.prompt is not of:  # its images stand side by side
                of, named_after = item.prompt, cluster(item.prompt)
            generation = drawn.get((item.prompt.text, item.seed))
            if generation is None:
                continue
            image = generation.image
            answers: dict[str, Answer | None] = {}
            for name in named if named is not None else [*item.asks][:1]:
                if people is not None and _of(name) == HUMAN:
                    rater = name.partition(":")[2] if ":" in name else None
                    if (label := people.answer(image, item.prompt.text, rater)) is not None:
                        answers[name] = label
                elif name in item.asks:
                    answers[name] = verdicts.get((image, item.asks[name], self.plan.judges[name]))
            if named is not None and not answers:
                continue
            own = verdicts.get((image, self.plan.own_question(item.prompt), fingerprint))
            mismatched, partners = None, list[Answer | None]()
            if item.partner is not None:
                crossed = self.plan.own_question(item.partner)
                mismatched = verdicts.get((image, crossed, fingerprint))
                partners = [
                    verdicts.get((image, item.partner_asks[name], self.plan.judges[name]))
                    for name in answers
                    if name in item.partner_asks
                ]
            if isinstance(judge, tuple):
                who, scale = majority_of(judge), SHARE
                outside, partner = majority(answers.values()), majority(partners)
            else:
                who = next(iter(answers), None)
                outside, partner = next(iter(answers.values()), None), next(iter(partners), None)
                scale = SHARE if who is None else self.plan.scales.get(who, SHARE)
            made = row(item, named_after, image, own, outside, mismatched, who, scale, partner)
            for column, value in made.items():
                columns[column].append(value)
        return pd.DataFrame(columns)

    def rates(self, judge: ByJudge = None) -> list[Rates]:
        """The figures of METRICS, per category, task, tier and overall, then the overall figures as
        the tasks' authors and the paper form them."""
        from gapbench.metrics.metric import METRICS
        from gapbench.metrics.rates import overalls, rates

        frame = self.frame(judge)
        made = [*rates(frame), *overalls(frame, self.plan.overalls)]
        return [rate for rate in made if self.plan.own or not METRICS[rate.metric].needs_own]


def _lacking(stages: dict[str, tuple[int, int]]) -> str:
    """What stages lack, in one line; empty where they are complete."""
    if all(there == planned for there, planned in stages.values()):
        return ""
    there, planned = stages.pop("images")
    lacking = [
        f"{planned - there:,} of {planned:,} {stage} missing"
        for stage, (there, planned) in stages.items()
        if there < planned
    ]
    said = ", ".join([f"{there:,} of {planned:,} images drawn", *lacking])
    return f"UNFINISHED: {said}; run the same command again."


def _of(name: str) -> str:
    """Of "human:NAME", "human"."""
    return name.partition(":")[0]


def _by_reason(reasons: Mapping[str, int]) -> str:
    """Reasons with their counts, the commonest first, a few of them."""
    first = Counter(reasons).most_common(3)
    told = "; ".join(f"{reason} ({count})" for reason, count in first)
    return told + (f"; and {len(reasons) - 3} other reasons" if len(reasons) > 3 else "")


def open_run(
    path: str | Path,
    tasks: str | Sequence[str] | None = None,
    samples: int | None = None,
    own: Mode | None = None,
) -> Run:
    """A run folder, or its name as `find_run` takes it, with all that was ever asked of it, or the
    part that `tasks` (as for `gapbench run`), `samples` (the first of each prompt) and `own` (the
    mode of the own verdicts) name. Raises GapbenchError where there is no run, or nobody asked for
    that part."""
    folder, part = RunFolder.open(find_run(path)), Part(tasks, samples, own)
    plan = stored_plan(folder)
    try:
        return Run(folder, whole(plan, part))
    except GapbenchError as error:
        raise GapbenchError(f"{folder.path}: {error}") from error
