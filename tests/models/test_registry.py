"""Names, recipes and --set; adapters on a named base; T2I-R1's plan."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gapbench import GapbenchError, load_model, open_run, run
from gapbench.fetch.hub import Checkpoint, cached
from gapbench.models.base import CAPABILITIES
from gapbench.models.janus.adapter import JanusModel
from gapbench.models.janus.t2i_r1 import Reasoning, T2IR1Model
from gapbench.models.registry import FAMILIES, MODELS

Cli = Callable[..., subprocess.CompletedProcess[str]]
PAPER = (
    "janus-pro", "janus-pro-1b", "janus-1.3b", "t2i-r1", "janus-pro-r1", "emu3", "show-o",
    "show-o-256", "hermesflow", "vila-u", "bagel", "blip3-o",
)  # fmt: skip
ONE = {"tasks": "shapes/colors", "limit": 1, "samples": 1}


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(GapbenchError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- names -------------------------------------------------------------------------------------


def test_every_model_of_the_paper_describes_itself(cli: Cli) -> None:
    listed = cli("models").stdout
    for name in PAPER:
        entry = MODELS[name]
        assert entry.family in FAMILIES
        assert entry.runs in ("native", "worker")
        assert entry.recipe
        assert entry.source
        assert entry.needs
        assert entry.capabilities <= set(CAPABILITIES)
        assert name in listed
    assert "emu3*" in listed
    assert "* a pair" in listed
    shown = cli("models", "janus-pro").stdout
    for words in ("recipe: guidance", "5.0", "generation_inference.py", "deepseek-community/Janus"):
        assert words in shown


@pytest.mark.parametrize("name", [name for name in PAPER if MODELS[name].runs == "native"])
def test_what_is_missing_is_told_in_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = refusal(lambda: load_model(name, device="cpu"))
    assert f"gapbench prepare --model {name}" in message
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    message = refusal(lambda: load_model(name))
    assert MODELS[name].memory in message
    assert "--device cpu" in message


def test_a_named_model_is_driven_from_the_hubs_cache(
    tiny_janus: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkpoint = MODELS["janus-pro"].needs["model"]
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / f"models--{checkpoint.repo.replace('/', '--')}"
    shutil.copytree(tiny_janus, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / checkpoint.revision).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = load_model("janus-pro", device="cpu")
    assert (model.name, model.recipe["guidance"]) == ("janus-pro", 5.0)
    assert model.generate(["a"], [1])[0].image.size == (32, 32)
    assert load_model("janus-pro", device="cpu", dtype="float32").fingerprint != model.fingerprint

    # A fetch that stopped between two shards is not there.
    index = {"weight_map": {"a": "model.safetensors", "b": "other.safetensors"}}
    (repo / "snapshots" / commit / "model.safetensors.index.json").write_text(json.dumps(index))
    assert cached(checkpoint) is None
    (repo / "snapshots" / commit / "other.safetensors").write_bytes(b"")
    assert cached(checkpoint) is not None
    # Weights in another format, which were not asked for, may be absent.
    index = {"weight_map": {"a": "pytorch_model.bin"}}
    (repo / "snapshots" / commit / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert cached(checkpoint) is not None


def test_prepare_lists_a_models_checkpoints(cli: Cli) -> None:
    done = cli("prepare", "--model", "emu3,t2i-r1", "--dry-run", "--offline")
    assert done.returncode == 0, done.stderr
    for words in ("BAAI/Emu3-Gen-hf", "BAAI/Emu3-Chat-hf", "CaraJ/T2I-R1", "model t2i-r1"):
        assert words in done.stdout
    assert "shapes" not in done.stdout
    wrong = cli("prepare", "--model", "gpt")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "--model gpt" in wrong.stderr


def test_patterns_of_files_must_be_met(tmp_path: Path) -> None:
    from gapbench.fetch.hub import verify

    files = {"*.json": None, "*.bin": None}
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(GapbenchError, match=r"\*\.bin is missing"):
        verify(tmp_path, files, "x")
    (tmp_path / "a.bin").write_bytes(b"")
    verify(tmp_path, files, "x")
    assert Checkpoint(repo="a/b", revision="main", license="", files=files).fingerprint


# -- --set -------------------------------------------------------------------------------------


def test_set_changes_the_recipe_and_so_the_run(cli: Cli, tmp_path: Path) -> None:
    run("janus-mini", out=tmp_path / "runs", **ONE)  # type: ignore[arg-type]
    small = ("--tasks", "shapes/colors", "--limit", "1", "--samples", "1")
    done = cli("run", *small, "--set", "guidance=3", "--set", "top_k=9")
    assert done.returncode == 0, done.stderr
    runs = [open_run(path).folder.meta for path in (tmp_path / "runs").iterdir()]
    own, changed = sorted(
        (meta["identity"]["recipe"] for meta in runs), key=lambda recipe: recipe["guidance"] == 3
    )
    assert changed == {**own, "guidance": 3.0, "top_k": 9}
    assert len({meta["identity"]["model"] for meta in runs}) == 1
    names = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "runs").iterdir())
    assert names == ["janus-mini", "janus-mini-guidance3-top_k9"]


def test_set_in_python_and_in_a_config_file(cli: Cli, tmp_path: Path) -> None:
    done = run("janus-mini", recipe={"temperature": 0}, out=tmp_path / "runs", **ONE)  # type: ignore[arg-type]
    assert done.folder.meta["identity"]["recipe"]["temperature"] == 0.0
    (tmp_path / "c.yaml").write_text(
        "set: {temperature: 0}\ntasks: shapes/colors\nlimit: 1\nsamples: 1\n"
    )
    again = cli("run", "--config", "c.yaml", "--dry-run")
    assert "Nothing is left to do" in again.stdout, again.stderr
    model = load_model("janus-mini")
    assert "give it to load_model" in refusal(lambda: run(model, recipe={"top_k": 3}))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("guidanc=4", "--set guidanc: janus-mini has no such sampling parameter, only guidance"),
        ("guidance=high", "--set guidance must be a number, not 'high'"),
        ("guidance=-1", "guidance is -1.0, must be a number, 0 or more"),
        ("top_k=2.5", "--set top_k must be a whole number, not '2.5'"),
        ("top_p=0", "top_p is 0.0, must be a number above 0"),
        ("guidance=true", "must be a number"),
    ],
)
def test_bad_settings_take_one_line(given: str, words: str) -> None:
    key, _, value = given.partition("=")
    assert words in refusal(lambda: load_model("janus-mini", recipe={key: value}))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("guidanc=4", "--set guidanc: janus-mini has no such sampling parameter, only guidance"),
        ("guidance", "must be KEY=VALUE"),
        ("guidance=", "must be KEY=VALUE"),
    ],
)
def test_bad_settings_on_the_command_line(cli: Cli, tmp_path: Path, given: str, words: str) -> None:
    done = cli("run", "--set", given)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert words in done.stderr
    assert not list(tmp_path.iterdir())


# -- LoRA --------------------------------------------------------------------------------------


@pytest.fixture
def lora(tiny_janus: Path, tmp_path: Path) -> Path:
    """A random adapter of rank 2 on all q and v projections of the language model."""
    folder, stream = tmp_path / "lora", torch.Generator().manual_seed(3)
    folder.mkdir()
    tensors = {}
    for layer in (0, 1):
        for part in ("q_proj", "v_proj"):
            name = f"base_model.model.model.language_model.layers.{layer}.self_attn.{part}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(2, 64, generator=stream)
            tensors[f"{name}.lora_B.weight"] = torch.randn(64, 2, generator=stream)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(tiny_janus),
        "r": 2,
        "lora_alpha": 6,
        "target_modules": r".+language_model.+(q_proj|v_proj)",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_an_adapter_is_merged_into_its_base(lora: Path, tiny_janus: Path) -> None:
    model, base = load_model(str(lora)), JanusModel("base", tiny_janus)
    assert isinstance(model, JanusModel)
    assert model.name == "lora"
    assert model.fingerprint != base.fingerprint
    tensors = load_file(lora / "adapter_model.safetensors")
    own, other = model.network.state_dict(), base.network.state_dict()
    changed = {name for name in own if not torch.equal(own[name], other[name])}
    assert changed == {
        f"model.language_model.layers.{layer}.self_attn.{part}.weight"
        for layer in (0, 1)
        for part in ("q_proj", "v_proj")
    }
    for name in changed:
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        up, down = (tensors[f"{stem}.lora_{part}.weight"].double() for part in "BA")
        torch.testing.assert_close(own[name], other[name] + 3 * up @ down, rtol=0, atol=1e-12)
    assert model.generate(["a"], [1])[0].image != base.generate(["a"], [1])[0].image


def test_the_fingerprint_covers_base_and_adapter(lora: Path, tiny_janus: Path) -> None:
    first = load_model(str(lora)).fingerprint
    tensors = load_file(lora / "adapter_model.safetensors")
    tensors[next(iter(tensors))] += 1
    save_file(tensors, lora / "adapter_model.safetensors")
    second = load_model(str(lora)).fingerprint
    other = Path(shutil.copytree(tiny_janus, lora.parent / "other"))
    weights = load_file(other / "model.safetensors")
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    edit(lora, base_model_name_or_path=str(other))
    assert len({first, second, load_model(str(lora)).fingerprint}) == 3


def test_the_base_may_be_a_name(lora: Path) -> None:
    edit(lora, base_model_name_or_path="janus-mini")
    with pytest.raises(GapbenchError, match="does not fit the base"):
        load_model(str(lora)).load()
    edit(lora, base_model_name_or_path="deepseek-community/Janus-Pro-1B")
    assert "model janus-pro-1b" in refusal(lambda: load_model(str(lora), device="cpu"))


def edit(folder: Path, **values: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda f: edit(f, base_model_name_or_path="/nowhere"),
            "no folder here and no known model",
        ),
        (lambda f: edit(f, base_model_name_or_path=None), "no folder here and no known model"),
        (lambda f: (f / "adapter_config.json").write_text("["), "not JSON"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"no"), "is a broken adapter"),
        (lambda f: edit(f, r="two"), "is a broken adapter"),
        (lambda f: edit(f, use_dora=True), "lora_magnitude_vector is missing"),
        (lambda f: edit(f, lora_bias=True), "lora_B.bias is missing"),
        (lambda f: edit(f, target_modules=["q_proj"]), "does not fit the base"),
        (lambda f: edit(f, target_modules=["no_proj"]), "is a broken adapter (Target modules"),
        (
            lambda f: save_file(
                {**load_file(f / "adapter_model.safetensors"), "extra": torch.zeros(1)},
                f / "adapter_model.safetensors",
            ),
            "(extra is unknown)",
        ),
        (lambda f: edit(f, peft_type="IA3"), "is a IA3 adapter, only LORA is known"),
        (
            lambda f: save_file(
                {"base_model.model.lm_heads.lora_A.weight": torch.zeros(2, 64)},
                f / "adapter_model.safetensors",
            ),
            "does not fit the base",
        ),
        (
            lambda f: save_file(
                {"base_model.model.lm_head.weight": torch.zeros(3, 3)},
                f / "adapter_model.safetensors",
            ),
            "does not fit the base",
        ),
    ],
)
def test_broken_adapters_are_refused(
    lora: Path, spoil: Callable[[Path], object], words: str
) -> None:
    spoil(lora)
    assert words in refusal(lambda: load_model(str(lora)).load())


# -- T2I-R1 ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planner(tiny_original: Path) -> T2IR1Model:
    return T2IR1Model("planner", tiny_original, reasoning=Reasoning(reasoning_tokens=12))


def test_the_plan_is_seeded_stored_and_drawn_from(planner: T2IR1Model, tiny_original: Path) -> None:
    prompts, seeds = ["a red circle", "a red circle", "a square"], [1, 2, 3]
    plans = planner.plan(prompts, seeds)
    assert len(set(plans)) == 3
    assert planner.plan(prompts[::-1], seeds[::-1]) == plans[::-1]
    torch.manual_seed(99)
    assert planner.plan(prompts[1:2], seeds[1:2]) == plans[1:2]
    drawings = planner.generate(prompts, seeds)
    plain = JanusModel("plain", tiny_original)
    for prompt, seed, plan, drawing in zip(prompts, seeds, plans, drawings, strict=True):
        words = f"{prompt}. {plan}"
        assert words.strip() in drawing.effective_prompt
        assert drawing.image == plain.generate([words], [seed])[0].image


def test_a_cold_plan_is_the_greedy_one(tiny_original: Path) -> None:
    cold = Reasoning(reasoning_tokens=8, reasoning_temperature=0.0)
    planner = T2IR1Model("cold", tiny_original, reasoning=cold)
    (asked,) = asked_of(planner, lambda: planner.plan(["a red circle"], [1]))
    ids = asked.clone()
    with torch.no_grad():
        for _ in range(8):
            core = planner.network.model.language_model
            hidden = core(input_ids=ids, use_cache=False).last_hidden_state[:, -1:]
            ids = torch.cat([ids, planner.network.lm_head(hidden).argmax(-1)], 1)
            if int(ids[0, -1]) == planner.processor().tokenizer.eos_token_id:
                break
    written = planner.processor().tokenizer.decode(
        ids[0, asked.shape[1] :], skip_special_tokens=True
    )
    assert planner.plan(["a red circle"], [1]) == [planner._plain(written)]
    text = planner.processor().tokenizer.decode(asked[0])
    assert text.startswith("<|bos|>You are a helpful assistant that receives an image prompt")
    assert 'based on this prompt: "a red circle"\nProvide a brief' in text
    assert text.endswith("without explanation:\n\n<|Assistant|>:")


def asked_of(model: JanusModel, call: Callable[[], object]) -> list[torch.Tensor]:
    """The first batch of text ids that a call embeds."""
    seen: list[torch.Tensor] = []
    embeddings: Any = model.network.get_input_embeddings()
    handle = embeddings.register_forward_hook(lambda _m, args, _out: seen.append(args[0].clone()))
    try:
        call()
    finally:
        handle.remove()
    return seen[:1]


def test_a_saved_planner_still_plans(planner: T2IR1Model, tmp_path: Path) -> None:
    planner.save(tmp_path / "saved")
    again = load_model(str(tmp_path / "saved"))
    assert isinstance(again, T2IR1Model)
    assert dict(again.recipe) == dict(planner.recipe)
    first, second = planner.generate(["a"], [4])[0], again.generate(["a"], [4])[0]
    assert first.image == second.image
    assert first.effective_prompt == second.effective_prompt


def test_the_judge_sees_the_prompt_and_the_run_the_plan(
    planner: T2IR1Model, tmp_path: Path
) -> None:
    asked: list[str] = []
    usual = planner._chat
    planner._chat = lambda question: asked.append(question) or usual(question)  # type: ignore[method-assign, func-returns-value]
    try:
        done = run(planner, out=tmp_path / "runs", **ONE)  # type: ignore[arg-type]
    finally:
        del planner._chat
    (generation,) = done.folder.generations().values()
    (plan,) = planner.plan([generation.prompt], [generation.seed])
    assert plan.strip() in generation.effective_prompt
    assert asked
    assert all(plan not in question for question in asked)
    assert np.isfinite(done.frame()["p_yes"]).all()


def test_what_is_left_of_a_plan_holds_no_special_token(planner: T2IR1Model) -> None:
    start = planner.processor().tokenizer.boi_token
    nested = start
    for _ in range(3):
        assert planner._plain(f"a {nested}disc") == "a disc"
        nested = start[:2] + nested + start[2:]
    assert planner._plain(start[:-1]) == start[:-1]


def test_a_plan_must_fit_too(planner: T2IR1Model, tiny_original: Path) -> None:
    assert planner.refuses("a red circle") is None
    long = T2IR1Model("long", tiny_original, reasoning=Reasoning(reasoning_tokens=2040))
    assert "room for 2048" in (long.refuses("a red circle") or "")
    assert "must be at least 1" in refusal(lambda: Reasoning(reasoning_tokens=0))
