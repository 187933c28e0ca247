"""Drawing with the Show-o adapter against upstream's own loop, on the same random weights.

    git clone https://github.com/showlab/Show-o && git -C Show-o checkout 45a5a2d
    python benchmarks/bench_showo.py Show-o [--batch 1 16] [--steps 18] [--rounds 3]

The reference is `t2i_generate` of the clone's models/modeling_showo.py with its prompts and masks,
run over the same network of transformers (its own copy of Phi needs another transformers), one
prompt at a time as its inference_t2i.py does by default. Both decode by the same picture tokenizer,
in float32, with guidance. The checkpoint is the small one of the tests. Measured in turns; the
median counts.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from gapbench import load_model
from gapbench.models.showo.layout import MARKS, ROOM

sys.path.append(str(Path(__file__).parents[1] / "tests"))


class Called:
    """What upstream's loop takes for its model: `self(ids, attention_mask=...)` gives logits."""

    def __init__(self, network: Any, mask: int) -> None:
        self.network, self.config = network, SimpleNamespace(mask_token_id=mask)

    def __call__(self, ids: Any, attention_mask: Any) -> Any:
        hidden = attention_mask.to(next(self.network.parameters()).dtype)
        return self.network(input_ids=ids, attention_mask=hidden, use_cache=False).logits


def upstream(clone: Path, model: Any, steps: int, guidance: float) -> Callable[[list[str]], object]:
    """Draw prompts one at a time by upstream's functions."""
    stubs: dict[str, Any] = {
        "upstream.modeling_utils": {"ConfigMixin": object, "ModelMixin": torch.nn.Module,
                                    "register_to_config": lambda function: function},
        "upstream.phi": {"PhiForCausalLM": object},
    }  # fmt: skip
    for name in ("upstream", "upstream_training"):
        sys.modules[name] = ModuleType(name)
    sys.modules["upstream"].__path__ = [str(clone / "models")]
    sys.modules["upstream_training"].__path__ = [str(clone / "training")]
    for name, members in stubs.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(members)
    loop = import_module("upstream.modeling_showo").Showo.t2i_generate
    prompting = import_module("upstream_training.prompting_utils")
    layout = model.layout
    tokenizer = type(layout)(model.folders["text"]).tokenizer
    written = prompting.UniversalPrompting(tokenizer, MARKS, ROOM - 1)
    mask, places = layout.first + model.magvit.codes, model._places
    showo = SimpleNamespace(
        num_vq_tokens=places, num_new_special_tokens=0, llm_vocab_size=layout.first
    )
    config = SimpleNamespace(
        model=SimpleNamespace(showo=showo),
        dataset=SimpleNamespace(preprocessing=SimpleNamespace(max_seq_length=ROOM - 1)),
    )
    called = Called(model.network, mask)

    @torch.no_grad()
    def draw(prompts: list[str]) -> object:
        pictures = []
        for prompt in prompts:
            blank = torch.full((1, places), mask)
            ids, _ = written(([prompt], blank), "t2i_gen")
            without, _ = written(([""], blank), "t2i_gen")
            seen = prompting.create_attention_mask_predict_next(
                torch.cat([ids, without]), layout.pad, layout.soi, layout.eoi, rm_pad_in_image=True
            )
            codes = loop(called, ids, without, seen, 1.0, steps, guidance, config=config)
            pictures.append(model.magvit.decode(codes))
        return pictures

    return draw


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("clone", type=Path)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--steps", type=int, default=18)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        import_module("checkpoints").showo(Path(place))
        recipe = {"steps": given.steps, "guidance": 5.0}
        model: Any = load_model(place, "cpu", "float32", recipe)
        theirs = upstream(given.clone, model, given.steps, 5.0)
        print("| images at once | upstream, images/s | gapbench, images/s | ratio |")
        print("|---|---|---|---|")
        for batch in given.batch:
            block = load_model(place, "cpu", "float32", {**recipe, "block": batch})
            prompts = [f"a red circle and {number} squares" for number in range(batch)]
            ways: tuple[Callable[[], object], ...] = (
                partial(theirs, prompts),
                partial(block.generate, prompts, range(batch)),
            )
            times: list[list[float]] = [[], []]
            for turn in range(given.rounds + 1):
                for way, taken in zip(ways, times, strict=True):
                    start = time.perf_counter()
                    way()
                    if turn:  # the first is to warm up
                        taken.append(time.perf_counter() - start)
            rates = [batch / median(taken) for taken in times]
            print(f"| {batch} | {rates[0]:.2f} | {rates[1]:.2f} | {rates[1] / rates[0]:.2f} |")


if __name__ == "__main__":
    main()
