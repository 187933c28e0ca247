"""Which of a folder's files are the model: weights by the index, settings and no logs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gapbench import GapbenchError, load_model


def shards(folder: Path, tensors: Mapping[str, Tensor], count: int) -> None:
    """Write `count` shards and their index, over those that are there."""
    names, named = list(tensors), {}
    for number in range(count):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        own = {name: tensors[name].contiguous() for name in names[number::count]}
        save_file(own, folder / file, metadata={"format": "pt"})
        named |= dict.fromkeys(own, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": named})
    )


@pytest.fixture(params=["tiny_janus", "tiny_original"])
def weights(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A folder without its weights, in either layout, and the weights."""
    folder = Path(shutil.copytree(request.getfixturevalue(request.param), tmp_path / "checkpoint"))
    tensors: dict[str, Tensor] = {}
    for file in [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        whole = file.suffix == ".safetensors"
        tensors |= load_file(file) if whole else torch.load(file, weights_only=True)
        file.unlink()
    return folder, tensors


def test_the_index_decides_and_what_lies_beside_its_files_is_not_read(
    weights: tuple[Path, dict[str, Tensor]],
) -> None:
    folder, new = weights
    old = {name: 2 * tensor if "head" in name else tensor for name, tensor in new.items()}
    shards(folder, new, 3)
    alone = load_model(str(folder))
    drawn = alone.generate(["a red circle"], [1])[0].image
    shards(folder, old, 4)
    other = load_model(str(folder))
    assert other.generate(["a red circle"], [1])[0].image != drawn
    assert other.fingerprint != alone.fingerprint
    shards(folder, new, 3)
    mixed = load_model(str(folder))
    assert mixed.generate(["a red circle"], [1])[0].image == drawn
    assert mixed.fingerprint == alone.fingerprint


def test_a_shard_that_the_index_names_and_the_folder_lacks_is_named(
    weights: tuple[Path, dict[str, Tensor]],
) -> None:
    folder, tensors = weights
    shards(folder, tensors, 3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(GapbenchError, match=r"lacks 1 of the 3 files .*model-00002-of-00003") as e:
        load_model(str(folder))
    assert "\n" not in str(e.value)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(GapbenchError, match="has no weight_map"):
        load_model(str(folder))


@pytest.mark.parametrize(
    "log", ["trainer_state.json", "all_results.json", "metrics.json", "fix.json"]
)
def test_what_a_trainer_leaves_beside_the_weights_changes_no_fingerprint(
    tiny_janus: Path, tmp_path: Path, log: str
) -> None:
    folder = Path(shutil.copytree(tiny_janus, tmp_path / "copy"))
    before = load_model(str(folder)).fingerprint
    (folder / log).write_text('{"train_loss": 1.2}')
    assert load_model(str(folder)).fingerprint == before
