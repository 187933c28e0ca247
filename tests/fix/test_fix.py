"""`gapbench fix` from outside, on tiny checkpoints of the real classes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import load_from_disk
from PIL import Image
from safetensors.torch import load_file

from gapbench import load_model, open_run

Fix = Callable[..., int | None]
# The tiny model's own verdicts lie closely around this; none would be accepted at a half.
COMMON = [
    "--prompts", "shapes:train/colors", "--limit", "6", "--samples", "4", "--check", "4",
    "--despite-check", "--accept", "above:0.4675", "--batch-size", "4", "--save-steps", "2",
    "--device", "cpu",
]  # fmt: skip
REPLAYED = [
    "c-sft", *COMMON, "--epochs", "4", "--replay-at", "2", "--lora", "0",
    "--out", "fixed",
]  # fmt: skip


def err(folder: Path) -> str:
    return (folder / "err").read_text()


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "fix.json").read_text())
    return found


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def candidates(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("candidates/*") if (path / "run.json").exists())


@pytest.fixture(scope="module")
def fixed(fix: Fix, tiny_janus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished, undisturbed c-sft in `fixed`."""
    folder = tmp_path_factory.mktemp("fixed")
    assert fix(folder, *REPLAYED, "--model", tiny_janus) == 0, err(folder)
    return folder


def test_the_result_is_a_model_like_any_other(fixed: Path, tiny_janus: Path) -> None:
    model, base = load_model(str(fixed / "fixed")), load_model(str(tiny_janus))
    assert model.fingerprint != base.fingerprint
    assert model.generate(["a red circle"], [1])[0].tokens is not None
    before, after = weights(tiny_janus), weights(fixed / "fixed")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("model.language_model.") for name in changed)
    # The record is no part of the model.
    (fixed / "fixed" / "fix.json").rename(fixed / "aside.json")
    assert load_model(str(fixed / "fixed")).fingerprint == model.fingerprint
    (fixed / "aside.json").rename(fixed / "fixed" / "fix.json")


def test_the_training_set_holds_what_was_drawn(fixed: Path) -> None:
    rows, found = load_from_disk(fixed / "fixed" / "data"), record(fixed / "fixed")
    assert len(rows) == found["data"]["rows"] == sum(found["data"]["by_origin"].values())
    assert set(rows["origin"]) == set(found["data"]["by_origin"])
    drawn = {}
    for path in candidates(fixed):
        run = open_run(path).folder
        for (text, seed), generation in run.generations().items():
            assert generation.tokens is not None
            drawn.setdefault((text, seed), []).append(
                (run.tokens(generation.tokens).tolist(), run.image(generation.image).tobytes())
            )
    for row in rows:
        mine = (row["tokens"], row["image"].convert("RGB").tobytes())
        assert mine in drawn[row["prompt"], row["seed"]]
        assert row["p_yes"] > 0.4675
    card = (fixed / "fixed" / "data" / "README.md").read_text()
    assert found["data"]["digest"] in card
    assert "| tokens | the ids that were drawn" in card


def test_the_record_says_what_was_done(fixed: Path, tiny_janus: Path) -> None:
    found = record(fixed / "fixed")
    assert found["done"]
    assert found["settings"]["method"] == "c-sft"
    assert found["leaks"] == {
        "test_splits": [],
        "same": 0,
        "reordered": 0,
        "near": 1,
        "reworded": 0,
    }
    assert found["base"]["fingerprint"] == load_model(str(tiny_janus)).fingerprint
    assert {"torch", "transformers", "peft", "accelerate", "datasets"} <= set(found["versions"])
    assert {row["rule"] for row in found["counts"]} >= {"all", "mixed", "best:1", "above:0.4675"}
    epochs = [point["epoch"] for point in found["curves"]]
    assert epochs == sorted(epochs)
    assert epochs[-1] == pytest.approx(4, abs=0.5)
    assert all(np.isfinite(point["loss"]) for point in found["curves"])
    [replay] = found["replays"]
    first = next(row for row in found["counts"] if row["rule"] == "above:0.4675")
    assert replay["pool"] == first["pool"] > 0
    assert 0 <= replay["left"] == found["pool"] <= replay["pool"]
    assert found["data"]["by_origin"].get("epoch 2", 0) == replay["joined"]
    assert f"{replay['pool']} prompts in the discard pool" in (fixed / "out").read_text()
    said = (fixed / "out").read_text().splitlines()
    [head] = [n for n, line in enumerate(said) if line.split()[:2] == ["rule", "images"]]
    assert said[head].split() == ["rule", "images", "prompts", "pairs", "pool"]
    assert said[head + 1].split()[-5] == "all"
    card = (fixed / "fixed" / "README.md").read_text()
    for told in (found["data"]["digest"], "| method | c-sft |", "| epochs | 4 |", "tiny-janus"):
        assert told in card
    assert str(tiny_janus.parent) not in card
    assert "## Before and after\n\nNot compared yet" in card
    with Image.open(fixed / "fixed" / "curves.png") as picture:
        assert picture.width > 800
    assert not (fixed / "fixed" / "work").exists()


def test_only_the_pool_is_drawn_again(fixed: Path) -> None:
    runs = [open_run(path) for path in candidates(fixed)]
    first, again = sorted(runs, key=lambda run: -len(run.plan.prompts))
    assert len(again.plan.prompts) == record(fixed / "fixed")["replays"][0]["pool"]
    assert again.folder.meta["identity"]["model"] != first.folder.meta["identity"]["model"]


def test_the_same_command_again_does_nothing(fixed: Path, fix: Fix, tiny_janus: Path) -> None:
    before = (fixed / "fixed" / "model.safetensors").stat().st_mtime_ns
    assert fix(fixed, *REPLAYED, "--model", tiny_janus) == 0
    assert (fixed / "fixed" / "model.safetensors").stat().st_mtime_ns == before
    assert "Next: gapbench run --model fixed\n" in (fixed / "out").read_text()


def _drawn(folder: Path) -> int:
    return sum(p.read_bytes().count(b"\n") for p in folder.glob("candidates/*/generations.jsonl"))


MOMENTS: dict[str, Callable[[Path], object]] = {
    "candidates": lambda folder: _drawn(folder) >= 8,
    "training": lambda folder: (
        folder / "fixed/work/phase-0/checkpoint-2/trainer_state.json"
    ).exists(),
    "the replay": lambda folder: len(candidates(folder)) == 2 and _drawn(folder) > 24,
    "training after the replay": lambda folder: (
        folder / "fixed/work/phase-1/checkpoint-2/trainer_state.json"
    ).exists(),
}  # fmt: skip


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_fixes_end_in_the_same_weights(
    moment: str, fixed: Path, start: Any, end: Any, wait_until: Any, fix: Fix, tiny_janus: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    command = [*REPLAYED, "--model", str(tiny_janus), "--draw-batch", "2"]
    process: BaseProcess = start(tmp_path, "fix", *command)
    wait_until(lambda: MOMENTS[moment](tmp_path), process)
    process.kill()
    assert end(process) == -signal.SIGKILL
    there = {file: file.read_bytes() for file in tmp_path.glob("candidates/*/*.jsonl")}
    spread = ["--workers", "2"] * (moment == "candidates")
    assert fix(tmp_path, *command, *spread) == 0, err(tmp_path)
    for file, lines in there.items():
        whole = lines[: lines.rfind(b"\n") + 1]
        assert file.read_bytes().startswith(whole)
    for path in candidates(tmp_path):
        lines = (path / "generations.jsonl").read_text().splitlines()
        keys = [(line["prompt"], line["seed"]) for line in map(json.loads, lines)]
        assert len(set(keys)) == len(keys)  # nothing drawn twice
    one, other = weights(tmp_path / "fixed"), weights(fixed / "fixed")
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert record(tmp_path / "fixed")["data"] == record(fixed / "fixed")["data"]
    assert record(tmp_path / "fixed")["replays"] == record(fixed / "fixed")["replays"]


def test_ctrl_c_keeps_the_step_in_hand(
    start: Any, end: Any, wait_until: Any, tiny_janus: Path, tmp_path: Path
) -> None:
    command = ["sft", *COMMON, "--epochs", "5000", "--lora", "0", "--model", str(tiny_janus)]
    process = start(tmp_path, "fix", *command, "--out", "fixed")
    wait_until(lambda: MOMENTS["training"](tmp_path), process)
    os.kill(process.pid, signal.SIGINT)
    assert end(process) == 130
    assert "run the same command again to go on" in err(tmp_path)
    assert "Traceback" not in err(tmp_path)
    steps = [int(p.name[11:]) for p in tmp_path.glob("fixed/work/phase-0/checkpoint-*")]
    assert max(steps) < 5000


def test_a_torn_checkpoint_is_passed_over(
    fixed: Path, start: Any, end: Any, wait_until: Any, fix: Fix, tiny_janus: Path, tmp_path: Path
) -> None:
    command = [*REPLAYED, "--model", str(tiny_janus)]
    process = start(tmp_path, "fix", *command)
    wait_until(lambda: MOMENTS["training"](tmp_path), process)
    process.kill()
    end(process)
    torn = tmp_path / "fixed/work/phase-0/checkpoint-999"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"x")
    (torn / "trainer_state.json").write_text("{")
    assert fix(tmp_path, *command) == 0, err(tmp_path)
    one, other = weights(tmp_path / "fixed"), weights(fixed / "fixed")
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_of_a_pair_the_half_that_draws_is_trained(
    fix: Fix, tiny_emu3: Path, tmp_path: Path
) -> None:
    more = ["--accept", "above:0", "--epochs", "4", "--lora", "2", "--set", "image_area=1024"]
    code = fix(tmp_path, "sft", *COMMON, *more, "--model", tiny_emu3, "--out", "pair")
    assert code == 0, err(tmp_path)
    assert "is a pair: only the weights that draw are trained" in (tmp_path / "out").read_text()
    sha = [
        hashlib.sha256((folder / "und" / "model.safetensors").read_bytes()).hexdigest()
        for folder in (tiny_emu3, tmp_path / "pair")
    ]
    assert sha[0] == sha[1]
    before, after = weights(tiny_emu3 / "gen"), weights(tmp_path / "pair" / "gen")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("text_model.model.layers.") for name in changed)
    found = load_model(str(tmp_path / "pair"), recipe={"image_area": 1024})
    assert found.generate(["a red circle"], [1])[0].tokens is not None


def test_dpo_with_a_curriculum(fix: Fix, tiny_janus: Path, tmp_path: Path) -> None:
    more = [
        "--margin",
        "0",
        "--epochs",
        "2",
        "--replay-at",
        "1",
        "--lora",
        "4",
        "--save-steps",
        "1",
    ]
    code = fix(tmp_path, "c-dpo", *COMMON, *more, "--model", tiny_janus, "--out", "one")
    assert code == 0, err(tmp_path)
    found = record(tmp_path / "one")
    first = found["curves"][0]
    assert first["dpo"] == pytest.approx(np.log(2), abs=1e-4)  # the policy is the reference yet
    assert first["loss"] == pytest.approx(first["dpo"] + first["nll"], abs=1e-4)
    assert [replay["epoch"] for replay in found["replays"]] == [1]
    rows = load_from_disk(tmp_path / "one" / "data")
    assert len(rows) == len(set(rows["prompt"]))
    assert all(row["p_yes_chosen"] > row["p_yes_rejected"] for row in rows)
    assert load_model(str(tmp_path / "one" / "adapter")).fingerprint


def test_processes_train_the_same_batches(
    fix: Fix, group: Callable[..., list[int | None]], tiny_janus: Path, tmp_path: Path
) -> None:
    given = ["sft", *COMMON, "--epochs", "2", "--model", tiny_janus, "--accept", "above:0.466"]
    assert fix(tmp_path, *given, "--lora", "0", "--out", "one") == 0, err(tmp_path)
    assert group(tmp_path, "fix", *given, "--lora", "0", "--out", "two") == [0, 0]
    assert fix(tmp_path, *given, "--lora", "0", "--out", "parts", "--micro-batch", "1") == 0
    one = record(tmp_path / "one")
    for name in ("two", "parts"):
        other = record(tmp_path / name)
        assert [p["step"] for p in other["curves"]] == [p["step"] for p in one["curves"]]
        for mine, theirs in zip(other["curves"], one["curves"], strict=True):
            assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
        start, first, second = (weights(f) for f in (tiny_janus, tmp_path / "one", tmp_path / name))
        for key in first:
            step = float((first[key] - start[key]).abs().max())
            assert float((first[key] - second[key]).abs().max()) <= 0.02 * step
    assert record(tmp_path / "two")["processes"] == 2
    losses = [[p["loss"] for p in record(tmp_path / name)["curves"]] for name in ("one", "parts")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


FSDP = """
import json, sys
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from pathlib import Path
from gapbench.fix.losses import ImageLoss
from gapbench.fix.network import prepare
from gapbench.fix.settings import FixSettings
from gapbench.models import load_model

folder, shard = arguments
prompts = ["a red circle", "two green stars", "a heart", "a blue square and a star"]
model = load_model(folder, "cpu", "float32")
tokens = torch.arange(4 * 16).reshape(4, 16).numpy() * 7 % 128
network = prepare(model, FixSettings(method="sft", out=Path("x"), lora=0))
loss = ImageLoss(model, network)
mine = slice(None)
if shard == "yes":
    dist.init_process_group("gloo")
    mine = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
    for layer in network.model.language_model.layers:
        fully_shard(layer)
    fully_shard(loss)
dropped = torch.tensor([False, True, False, False])  # one process withholds a prompt, one does not
value = loss(prompts[mine], tokens[mine], dropped[mine], torch.arange(4)[mine])["loss"]
value.backward()
found = {}
for name, parameter in loss.named_parameters():
    if parameter.requires_grad:
        grad = parameter.grad.full_tensor() if shard == "yes" else parameter.grad
        found[name] = [float(grad.norm()), float(grad.flatten()[::7].sum())]
if shard != "yes" or dist.get_rank() == 0:
    print(json.dumps(found))
"""


def test_shards_give_the_gradients_of_one_process(
    start: Any, end: Any, group: Callable[..., list[int | None]], tiny_janus: Path, tmp_path: Path
) -> None:
    assert end(start(tmp_path, tiny_janus, "no", code=FSDP)) == 0, err(tmp_path)
    assert group(tmp_path, tiny_janus, "yes", code=FSDP) == [0, 0], (tmp_path / "err0").read_text()
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("out", "out0"))
    assert one.keys() == two.keys()
    for name in one:
        assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-6), name


def test_an_adapter_knows_the_base_it_was_trained_on(
    fix: Fix, tiny_janus: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_janus, base)
    command = ["sft", *COMMON, "--epochs", "1", "--lora", "4", "--model", base, "--out", "one"]
    assert fix(tmp_path, *command) == 0, err(tmp_path)
    merged, adapter = load_model(str(tmp_path / "one")), load_model(str(tmp_path / "one/adapter"))
    same = [m.generate(["a red circle"], [3])[0].tokens for m in (merged, adapter)]
    assert np.array_equal(*same)
    # Another base under the same path: the shapes fit, the weights do not.
    config = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps({**config, "guidance_scale": 2.0}))
    assert fix(tmp_path, *command[:-4], "--model", "one/adapter", "--out", "two") == 2
    assert "was trained on other weights" in err(tmp_path)


def test_what_is_not_finite_stops_the_training(fix: Fix, tiny_janus: Path, tmp_path: Path) -> None:
    command = [
        "sft",
        *COMMON,
        "--epochs",
        "6",
        "--lora",
        "0",
        "--model",
        tiny_janus,
        "--out",
        "one",
    ]
    assert fix(tmp_path, *command, "--learning-rate", "1e37", "--save-steps", "1") == 2
    [line] = [each for each in err(tmp_path).splitlines() if each.startswith("gapbench: ")]
    assert "training stopped: the " in line
    assert " at step 2 (epoch " in line
    assert "last good checkpoint is one/work/phase-0/checkpoint-1" in line
    assert "smaller --learning-rate" in line
    assert (tmp_path / "one/work/phase-0/checkpoint-1/model.safetensors").exists()
    assert not (tmp_path / "one/config.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sft", "--prompts", "shapes"], "for testing; train on shapes:train"),
        (["sft", "--prompts", "geneval/colors"], "94 prompts are for testing; add --despite-leak"),
        (["sft", "--prompts", "shapes:dev"], "no split 'dev'"),
        (["rlhf"], "METHOD must be"),
        (["dpo", "--samples", "1"], "compares two candidates"),
        (["dpo", "--margin", "1"], "--margin must be less than 1, not 1"),
        (["dpo", "--beta", "0"], "--beta must be more than 0, not 0"),
        (["sft", "--accept", "most"], "best:K"),
        (["c-sft", "--replay-at", "20"], "less than 20 epochs"),
        (["sft", "--model", "images:."], "images"),
        (["sft", "--train", "everything"], "--train must be"),
        (["sft", "--accept", "above:.99"], "nothing to train on"),
        (["dpo", "--margin", "0.9", "--accept", "all"], "at --margin 0.9"),
        (["sft", "--fsdp"], "accelerators"),
        (["sft", "--micro-batch", "3"], "--micro-batch 3"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], said: str, fixed: Path, fix: Fix, tiny_janus: Path, tmp_path: Path
) -> None:
    shutil.copytree(fixed / "candidates", tmp_path / "candidates")
    Image.new("RGB", (8, 8)).save(tmp_path / "00000.png")
    given = ["--model", tiny_janus] if "--model" not in arguments else []
    method, *rest = arguments
    assert fix(tmp_path, method, *COMMON, "--out", "new", *given, *rest) == 2
    lines = err(tmp_path).splitlines()
    assert said in lines[-1]
    assert lines[-1].startswith("gapbench: ")
    assert "Traceback" not in err(tmp_path)


def test_a_folder_of_another_fix_is_left_alone(fixed: Path, fix: Fix, tiny_janus: Path) -> None:
    before = record(fixed / "fixed")
    assert fix(fixed, *REPLAYED, "--model", tiny_janus, "--learning-rate", "0.5") == 2
    assert "holds a fix with --learning-rate 0.0001, not 0.5" in err(fixed)
    assert record(fixed / "fixed") == before


def test_the_data_check_stops_a_judge_that_says_nothing(
    fix: Fix, tiny_janus: Path, tmp_path: Path
) -> None:
    given = [each for each in COMMON if each != "--despite-check"]
    assert fix(tmp_path, "sft", *given, "--model", tiny_janus, "--out", "one") == 2
    assert "accepts nearly nothing" in err(tmp_path)
    assert "--despite-check trains all the same" in err(tmp_path)
    assert _drawn(tmp_path) == 4  # the check's own: stopped before the candidates were paid for
