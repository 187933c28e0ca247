"""GapCallback in transformers' own Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gapbench import GapbenchError, GapCallback
from gapbench.models import load_model

TASK = ["shapes/attributes", "shapes/colors"]


def trained(folder: Path, out: Path, callback: bool) -> Any:
    """A few steps of a Janus on text, as a user's own script would train it."""
    from transformers import Trainer, TrainingArguments

    network: Any = load_model(str(folder), "cpu", "float32")
    network = network.network
    rows = [
        {"input_ids": [1, 30 + i, 40, 50, 60], "labels": [1, 30 + i, 40, 50, 60]} for i in range(8)
    ]
    args = TrainingArguments(
        output_dir=str(out), max_steps=4, per_device_train_batch_size=2, use_cpu=True,
        report_to="none", disable_tqdm=True, save_strategy="no", learning_rate=1e-2,
        dataloader_pin_memory=False, logging_steps=4, seed=1,
    )  # fmt: skip
    trainer = Trainer(network, args, train_dataset=rows)  # type: ignore[arg-type]
    if callback:
        trainer.add_callback(GapCallback(trainer, str(folder), tasks=TASK, every=2, limit=6))
    torch.manual_seed(3)
    trainer.train()
    return trainer


def test_the_gap_is_in_the_log_and_leaves_the_training_alone(
    tiny_janus: Path, tmp_path: Path
) -> None:
    watched, alone = (trained(tiny_janus, tmp_path, each) for each in (True, False))
    found = [e for e in watched.state.log_history if "gap/non_unification" in e]
    assert [entry["step"] for entry in found] == [0, 2, 4]
    assert found[0]["gap/non_unification"] == 1.0  # the tiny model rejects whatever it sees
    for entry in found[1:]:
        change = entry["gap/non_unification"] - found[0]["gap/non_unification"]
        assert entry["gap/non_unification_change"] == pytest.approx(change)
    assert "gap/mismatch_acceptance" in found[0]
    for one, two in zip(watched.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert watched.model.training


def test_it_measures_what_gapbench_run_measures(tiny_janus: Path, tmp_path: Path) -> None:
    import gapbench

    trainer = trained(tiny_janus, tmp_path, callback=False)
    callback = GapCallback(trainer, str(tiny_janus), tasks=TASK, limit=6, samples=2)
    now = callback._measure()
    model = load_model(str(tiny_janus), "cpu", "float32")
    model.use(trainer.model)  # type: ignore[attr-defined]
    run = gapbench.run(model, TASK, limit=6, samples=2, out=tmp_path / "runs")
    wanted = {r.metric: r.value for r in run.rates() if r.level == "overall"}
    assert {key: wanted[key.removeprefix("gap/")] for key in now} == now


def test_what_is_not_finite_is_called_so(tiny_janus: Path, tmp_path: Path) -> None:
    trainer = trained(tiny_janus, tmp_path, callback=False)
    callback = GapCallback(trainer, str(tiny_janus), tasks=TASK, limit=2)
    with torch.no_grad():
        trainer.model.model.language_model.norm.weight.fill_(float("nan"))
    told = "GapCallback at step 4: .* its language model gives NaN or infinite values"
    with pytest.raises(GapbenchError, match=told):
        callback._measure()


def test_a_pair_is_refused(tiny_emu3: Path, tiny_janus: Path, tmp_path: Path) -> None:
    trainer = trained(tiny_janus, tmp_path, callback=False)
    with pytest.raises(GapbenchError, match="a pair"):
        GapCallback(trainer, str(tiny_emu3))
    with pytest.raises(GapbenchError, match="at least 1"):
        GapCallback(trainer, str(tiny_janus), every=0)
