"""gapbench's models on the tasks of lm-eval (EleutherAI/lm-evaluation-harness 0.4.13).

lm-eval finds a model by a name in its own table or by an import that registers it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from PIL import Image

from gapbench.files import first_line
from gapbench.lmeval.answers import Answers
from gapbench.lmeval.greedy import decoding
from gapbench.models import as_model
from gapbench.models.base import Model, require
from gapbench.types import GapbenchError

if find_spec("lm_eval") is None:
    raise GapbenchError(
        'lm-eval is not installed; pip install "gapbench[lm-eval]" (with -c constraints.txt, which '
        "keeps torch as it is)"
    )

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.defaults import DEFAULT_MAX_GEN_TOKS
from tqdm import tqdm

TASKS: Final = Path(__file__).parent / "tasks"
"""Our own tasks, as lm-eval's --include_path takes them."""
BATCH: Final = 8
SCORED: Final = {"loglikelihood", "multiple_choice"}
"""Output types of tasks that ask for the log-probability of a given answer."""


@register_model("gapbench")
class GapbenchLM(LM):  # type: ignore[misc]
    """A model of gapbench's, greedily decoded; images are in its texts as "<image>".

    `model` is a name, folder or import path as --model takes it, or a model; further arguments are
    keys of its recipe. An answer does not depend on `batch_size`.
    """

    MULTIMODAL = True

    def __init__(
        self,
        model: str | Model,
        batch_size: int | str = BATCH,
        device: str = "auto",
        dtype: str = "auto",
        **recipe: object,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise GapbenchError(f"batch_size {batch_size}: give a number, 1 or more")
        self.batch_size = int(batch_size)
        device = "auto" if device == "cuda:0" else device  # lm-eval's own default, GPU or not
        self.model = as_model(model, device, dtype, recipe)
        require(self.model, ["text"], "lm-eval cannot ask it")
        self.answers = Answers(self.model)

    @property
    def tokenizer_name(self) -> str:
        return f"{self.model.name}-{self.model.fingerprint}".replace("/", "_")

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval keeps in its results file."""
        return {"model": "gapbench", "fingerprint": self.model.fingerprint}

    def apply_chat_template(
        self,
        chat_history: Sequence[Mapping[str, str]],
        add_generation_prompt: bool = True,  # noqa: ARG002 (an answer that is begun says it too)
    ) -> str:
        """The chat in the model's own format, with the blank that comes before an answer.

        What a system would say comes first in the user's turn: not every format has such a role.
        """
        turns: list[dict[str, str]] = []
        for turn in chat_history:
            if turns and turns[-1]["role"] in ("system", turn["role"]):
                before = turns.pop()["content"]
                turns.append({"role": turn["role"], "content": f"{before}\n\n{turn['content']}"})
            else:
                turns.append({"role": turn["role"], "content": turn["content"]})
        begun = turns.pop()["content"] if turns[-1]["role"] == "assistant" else ""
        text = self.model.chat(turns)
        return text + " " * (not text[-1:].isspace()) + begun

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        answers: dict[int, tuple[float, bool]] = {}
        for places in self._batches(requests, "scored"):
            images, texts, endings = [], [], []
            for place in places:
                context, ending = requests[place].args[:2]
                bare = context.rstrip()  # a blank before an answer belongs to the answer
                images.append(_images(requests[place]))
                texts.append(bare)
                endings.append(context[len(bare) :] + ending)
            answers |= dict(zip(places, self.answers.score(images, texts, endings), strict=True))
        return [answers[place] for place in range(len(requests))]

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        replies: dict[int, str] = {}
        wanted = [
            decoding("lm-eval", request.args[1], "max_gen_toks", DEFAULT_MAX_GEN_TOKS)
            for request in requests
        ]
        for how in dict.fromkeys(wanted):
            tokens, until = how
            for places in self._batches(requests, "completed", [w == how for w in wanted]):
                texts = [requests[place].args[0].removesuffix(" ") for place in places]
                images = [_images(requests[place]) for place in places]
                said = self.answers.complete(images, texts, tokens, until)
                replies |= {
                    place: text.removeprefix(" ") for place, text in zip(places, said, strict=True)
                }
        return [replies[place] for place in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:  # noqa: ARG002
        raise GapbenchError(
            f"model {self.model.name}: perplexities of whole documents (loglikelihood_rolling) are "
            "not computed; choose tasks that ask questions"
        )

    def _batches(
        self, requests: Sequence[Instance], what: str, these: Sequence[bool] | None = None
    ) -> Iterator[list[int]]:
        """Places of requests, the longest first: what is too long is told at once."""
        places = [place for place in range(len(requests)) if these is None or these[place]]
        places.sort(key=lambda p: (-len(_images(requests[p])), -len(requests[p].args[0])))
        for start in tqdm(range(0, len(places), self.batch_size), f"{what}, batches", disable=None):
            yield places[start : start + self.batch_size]


def _images(request: Instance) -> list[Image.Image]:
    more = request.args[2] if len(request.args) > 2 else {}
    if "audio" in more:
        raise GapbenchError("lm-eval: a task has sounds, which no model of gapbench's takes")
    return list(more.get("visual") or ())


def evaluate(
    model: Model,
    given: str,
    tasks: Sequence[str],
    out: Path,
    limit: int | None = None,
    batch_size: int = BATCH,
    include: Path | None = None,
) -> tuple[dict[str, Any], Path]:
    """lm-eval's own evaluation of a model on tasks, in the model's chat format.

    Writes lm-eval's usual files, results_*.json and samples_*.jsonl, into a folder of `out` named
    after `given`; returns the results and that folder. `limit` is questions a task; `include` is a
    folder of further tasks. Raises GapbenchError where a task is not there or cannot be loaded,
    where the model cannot do it, or where `out` cannot be written. The answers that were given by
    then are kept in `out`, and not asked for again.
    """
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker

    quiet()
    lm = GapbenchLM(model, batch_size)
    lm.answers = Answers(model, out, tasks)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GapbenchError(f"{out} cannot be written: {error.strerror}") from error
    manager, loaded, kinds = _load(tasks, include)
    if kinds & SCORED:  # not every server can: it is told of before the first question
        model.score([()], [model.chat([{"role": "user", "content": "yes?"}])], [" yes"])
    tracker = EvaluationTracker(output_path=str(out))
    results: dict[str, Any] = simple_evaluate(
        model=lm, model_args={"model": given}, tasks=loaded, limit=limit, batch_size=batch_size,
        evaluation_tracker=tracker, task_manager=manager, apply_chat_template=True,
    )  # fmt: skip
    model.release()
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in results["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])
    folder = out / tracker.general_config_tracker.model_name_sanitized
    # lm-eval's tracker logs a failure and goes on.
    wanted = [f"results_{tracker.date_id}.json"]
    wanted += [f"samples_{task}_{tracker.date_id}.jsonl" for task in results["configs"]]
    if missing := [name for name in wanted if not (folder / name).is_file()]:
        raise GapbenchError(f"{folder / missing[0]} could not be written")
    lm.answers.drop()
    return results, folder


def table(results: dict[str, Any]) -> str:
    """lm-eval's tables of its results, tasks and groups."""
    from lm_eval.utils import make_table

    kinds = ["results", *(["groups"] if "groups" in results else [])]
    return "\n".join(str(make_table(results, kind)) for kind in kinds)


def quiet() -> None:
    """Keep lm-eval's log to errors, unless LMEVAL_LOG_LEVEL says otherwise."""
    logging.getLogger("lm_eval").setLevel(os.environ.get("LMEVAL_LOG_LEVEL", "ERROR").upper())


def _load(names: Sequence[str], include: Path | None) -> tuple[Any, list[Any], set[str]]:
    """lm-eval's index of tasks, the tasks and groups by these names, and their output types."""
    from lm_eval.tasks import TaskManager

    if include is not None and not include.is_dir():
        raise GapbenchError(f"--include-path {include}: no such folder")
    folders = [TASKS, *([include] if include else [])]
    # lm-eval reads each of its 15,000 files for its index: only where they are asked for.
    manager = TaskManager(include_path=folders, include_defaults=False)
    if any(name not in manager.task_index for name in names):
        manager = TaskManager(include_path=folders)
    tasks: list[Any] = []
    kinds: set[str] = set()
    for name in names:
        if name not in manager.task_index:
            raise GapbenchError(
                f"lm-eval has no task {name!r}; `lm-eval ls tasks` lists its own, gapbench's is "
                "gapbench_shapes, and --include-path takes a folder of yours"
            )
        try:
            made = manager.load([name])
        except Exception as error:  # data sets, hubs and tasks' own code raise many kinds
            raise GapbenchError(
                f"lm-eval task {name} cannot be loaded: {type(error).__name__}: {first_line(error)}"
            ) from error
        groups, leaves = made.get("groups", {}), made["tasks"]
        for leaf, task in leaves.items():
            if getattr(task, "UNSAFE_CODE", False):
                raise GapbenchError(
                    f"lm-eval task {leaf} runs code that a model writes, which gapbench does not; "
                    "lm-eval's own command line does"
                )
            kinds.add(task.OUTPUT_TYPE)
        tasks += [groups[name]] if name in groups else leaves.values()
    return manager, tasks, kinds
