"""gapbench's models on the tasks of lmms-eval (EvolvingLMMs-Lab/lmms-eval 0.7).

lmms-eval finds the model by the entry point `lmms_eval.models`, so that its own command line takes
`--model gapbench --model_args model=janus-pro`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NoReturn

from PIL import Image
from tenacity import RetryError

from gapbench.files import first_line
from gapbench.lmeval.answers import Answers
from gapbench.lmeval.greedy import decoding
from gapbench.models import as_model, torchvision_shim
from gapbench.models.base import Model, require
from gapbench.types import GapbenchError

if find_spec("lmms_eval") is None:
    raise GapbenchError(
        'lmms-eval is not installed; pip install "gapbench[lmms-eval]" (with -c constraints.txt, '
        "which keeps torch as it is)"
    )
else:
    torchvision_shim.ensure()

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from tqdm import tqdm

BATCH: Final = 8
TOKENS: Final = 1024
"""Of an answer, at most, where a task does not say (as in lmms-eval's own models)."""


def manifest() -> ModelManifest:
    """What the entry point gives to lmms-eval."""
    return ModelManifest("gapbench", simple_class_path=f"{__name__}.{GapbenchLmms.__name__}")


class GapbenchLmms(lmms):  # type: ignore[misc]
    """A model of gapbench's, greedily decoded, each question in its own chat format after its
    images.

    `model` is a name, folder or import path as --model takes it, or a model; further arguments are
    keys of its recipe. An answer does not depend on `batch_size`.
    """

    def __init__(
        self,
        model: str | Model,
        batch_size: int | str | None = BATCH,
        device: str | None = "auto",
        dtype: str = "auto",
        max_batch_size: object = None,  # noqa: ARG002 (lmms-eval gives it to every model)
        **recipe: object,
    ) -> None:
        super().__init__()
        if not str(batch_size or BATCH).isdecimal() or (size := int(batch_size or BATCH)) < 1:
            raise GapbenchError(f"batch_size {batch_size}: give a number, 1 or more")
        self.batch_size = size
        self.model = as_model(model, device or "auto", dtype, recipe)
        require(self.model, ["text"], "lmms-eval cannot ask it")
        self.answers = Answers(self.model)

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        replies: dict[int, str] = {}
        wanted = [
            decoding("lmms-eval", request.args[1], "max_new_tokens", TOKENS) for request in requests
        ]
        for how in dict.fromkeys(wanted):
            for places in self._batches([n for n, w in enumerate(wanted) if w == how]):
                asked = [self._asked(requests[place]) for place in places]
                images, texts = [a[0] for a in asked], [a[1] for a in asked]
                said = self.answers.complete(images, texts, *how)
                replies |= {p: text.strip() for p, text in zip(places, said, strict=True)}
        return [replies[place] for place in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Negative log-likelihoods in nats: lmms-eval takes the smallest for the answer."""
        answers: dict[int, tuple[float, bool]] = {}
        for places in self._batches(range(len(requests))):
            images, texts, endings = [], [], []
            for place in places:
                own, text = self._asked(requests[place])
                ending = requests[place].args[1]
                ending = ending(self._doc(requests[place])) if callable(ending) else ending
                images.append(own)
                texts.append(text)
                endings.append(ending if ending[:1].isspace() else f" {ending}")
            scored = self.answers.score(images, texts, endings)
            answers |= {p: (-total, best) for p, (total, best) in zip(places, scored, strict=True)}
        return [answers[place] for place in range(len(requests))]

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> NoReturn:  # noqa: ARG002
        raise GapbenchError(
            f"model {self.model.name}: tasks of several rounds are not supported; choose tasks "
            "that ask once"
        )

    def _doc(self, request: Instance) -> Any:
        number, task, split = request.args[3:6]
        return self.task_dict[task][split][number]

    def _asked(self, request: Instance) -> tuple[list[Image.Image], str]:
        """A question's images, and its text in the model's chat format."""
        images = list(request.args[2](self._doc(request)) or ())
        if not all(isinstance(image, Image.Image) for image in images):
            raise GapbenchError(
                "lmms-eval: a task has videos or sounds, which no model of gapbench's takes"
            )
        content = "<image>" * len(images) + request.args[0].replace("<image>", "")
        return images, self.model.chat([{"role": "user", "content": content}])

    def _batches(self, places: Sequence[int]) -> Iterator[Sequence[int]]:
        for start in tqdm(range(0, len(places), self.batch_size), "batches", disable=None):
            yield places[start : start + self.batch_size]


def evaluate(
    model: Model,
    tasks: Sequence[str],
    out: Path,
    limit: int | None = None,
    include: Path | None = None,
) -> None:
    """lmms-eval's own evaluation of a model, in files of lm-eval's form in a folder of `out`.

    `limit` is questions a task; `include` is a folder of further tasks. Raises GapbenchError where
    a task is not there or cannot be loaded, or where the model cannot do it. The answers that were
    given by then are kept in `out`, and not asked for again.
    """
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager
    from loguru import logger

    logger.disable("lmms_eval")
    lm = GapbenchLmms(model)
    lm.answers = Answers(model, out, tasks)
    if include is not None and not include.is_dir():
        raise GapbenchError(f"--include-path {include}: no such folder")
    manager = TaskManager("ERROR", include_path=str(include) if include else None)
    for task in tasks:
        if task not in manager.all_tasks:
            raise GapbenchError(
                f"lmms-eval has no task {task!r}. Its package from PyPI comes without tasks: "
                "install it from its repository, or give a folder of tasks with --include-path"
            )
    try:
        told = simple_evaluate(
            model=lm, tasks=list(tasks), limit=limit, task_manager=manager, bootstrap_iters=0
        )
    except GapbenchError:
        raise
    except Exception as error:  # data sets, hubs and tasks' own code raise many kinds
        last = error.last_attempt.exception() if isinstance(error, RetryError) else None
        cause = last or error
        raise GapbenchError(
            f"lmms-eval {','.join(tasks)}: {type(cause).__name__}: {first_line(cause)}"
        ) from error
    finally:
        model.release()
    folder = out / "lmms-eval"
    folder.mkdir(parents=True, exist_ok=True)
    kept = {key: told.get(key, {}) for key in ("configs", "higher_is_better")}
    for kind in {"results", "groups"} & told.keys():
        kept[kind] = {name: _figures(figures) for name, figures in told[kind].items()}
    for task, samples in told["samples"].items():
        lines = [json.dumps(_sample(sample, kept["results"][task])) for sample in samples]
        (folder / f"samples_{task}_0.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "results_0.json").write_text(json.dumps(kept, default=str), encoding="utf-8")
    lm.answers.drop()


def _figures(told: Mapping[str, Any]) -> dict[str, float]:
    """A task's figures ("metric,filter") without their errors, of which there are three kinds."""
    return {
        key: value
        for key, value in told.items()
        if "," in key and "_stderr" not in key and isinstance(value, (int, float))
    }


def _sample(sample: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, Any]:
    """A question as lm-eval logs it. Many tasks give a metric as a dict with its `score`."""
    names = dict.fromkeys(key.partition(",")[0] for key in figures)
    metrics = {name: sample[name] for name in names if name in sample}
    return {
        "doc_id": sample["doc_id"],
        "doc": json.loads(json.dumps(sample["doc"], default=str)),
        "target": str(sample["target"]),
        "resps": json.loads(json.dumps(sample["resps"], default=str)),
        "filter": "none",
        "metrics": list(metrics),
        **{
            name: value.get("score") if isinstance(value, Mapping) else value
            for name, value in metrics.items()
        },
    }
