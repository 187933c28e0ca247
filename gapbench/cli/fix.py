"""The command `gapbench fix`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gapbench.cli.terminal import console, names, pairs
from gapbench.fetch.libraries import go_offline, quiet


def fix(
    method: Annotated[str, typer.Argument(help="sft, dpo, or with replay of the discard pool c-sft, c-dpo.")],
    out: Annotated[Path, typer.Option(help="Folder for the fixed model, its training set and its record.")],
    model: Annotated[str | None, typer.Option(help="As for run. [janus-mini]")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="As for run.", metavar="KEY=VALUE")] = None,
    prompts: Annotated[str | None, typer.Option(help="TASK:SPLIT, also TASK:SPLIT/CATEGORY or a folder; several with commas. [shapes:train]")] = None,
    limit: Annotated[int | None, typer.Option(help="Prompts a task, taken from its categories in turn.")] = None,
    samples: Annotated[int | None, typer.Option(help="Candidates a prompt. [10]")] = None,
    draw_seed: Annotated[int | None, typer.Option(help="Seed of the candidates. [0]")] = None,
    accept: Annotated[str | None, typer.Option(help="all, mixed (of prompts with both verdicts), best:K a prompt, above:P. [all]")] = None,
    margin: Annotated[float | None, typer.Option(help="DPO: the least difference in probability of a pair. [0.1]")] = None,
    judge: Annotated[str | None, typer.Option(help="Outside judges for the data check, with commas, or none. [each task's own, if at hand]")] = None,
    check: Annotated[int | None, typer.Option(help="Prompts that the data check looks at. [200]")] = None,
    despite_check: Annotated[bool, typer.Option("--despite-check", help="Train even where the data check says stop.")] = False,
    epochs: Annotated[int | None, typer.Option(help="[20, DPO 30]")] = None,
    replay_at: Annotated[str | None, typer.Option(help="Epochs after which the discard pool is drawn again, with commas. [10]")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="[1e-4, DPO 1e-5]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images (or pairs) a step, over all processes. [32]")] = None,
    micro_batch: Annotated[int | None, typer.Option(help="Of these, how many at a time in a process. [all]")] = None,
    lora: Annotated[int | None, typer.Option(help="Rank of LoRA adapters; 0 trains the weights themselves. [32]")] = None,
    train: Annotated[str | None, typer.Option(help="language-model, or generation for all that drawing runs through. [language-model]")] = None,
    prompt_dropout: Annotated[float | None, typer.Option(help="Share of images trained without their prompt, for guidance. [0.1]")] = None,
    beta: Annotated[float | None, typer.Option(help="DPO: weight of the log-ratios. [0.1]")] = None,
    logprobs: Annotated[str | None, typer.Option(help="DPO: sum over an image's tokens, or their mean. [sum]")] = None,
    nll_weight: Annotated[float | None, typer.Option(help="DPO: weight of the chosen images' cross-entropy. [1]")] = None,
    bf16: Annotated[bool | None, typer.Option(help="Compute in bfloat16. [on a GPU]")] = None,
    gradient_checkpointing: Annotated[bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.")] = False,
    fsdp: Annotated[bool, typer.Option("--fsdp", help="Under torchrun, shard the weights instead of copying them.")] = False,
    save_steps: Annotated[int | None, typer.Option(help="Steps between checkpoints to resume from. [an epoch]")] = None,
    report_to: Annotated[str | None, typer.Option(help="tensorboard, trackio, wandb, ..., handed to Trainer. [none]")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the training. [0]")] = None,
    draw_batch: Annotated[int | None, typer.Option(help="Candidates drawn at a time; never changes a result. [64]")] = None,
    device: Annotated[str | None, typer.Option(help="As for run. [auto]")] = None,
    dtype: Annotated[str | None, typer.Option(help="As for run, for drawing and judging. [auto]")] = None,
    candidates: Annotated[Path | None, typer.Option(help="Folder for the candidates' run folders, which fixes share. [candidates]")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never touch the network.")] = False,
) -> None:  # fmt: skip
    """Post-train a model on the candidates that it accepts itself; the same command again goes on."""
    import os

    go_offline(offline)
    from gapbench.fix.settings import read_fix_settings

    settings = read_fix_settings(
        {
            "method": method, "out": out, "model": model, "set": pairs(set_),
            "prompts": names(prompts), "limit": limit, "samples": samples, "draw_seed": draw_seed,
            "accept": accept, "margin": margin, "judge": names(judge), "check": check,
            "despite_check": despite_check, "epochs": epochs, "replay_at": names(replay_at),
            "learning_rate": learning_rate, "batch_size": batch_size, "micro_batch": micro_batch,
            "lora": lora, "train": train, "prompt_dropout": prompt_dropout, "beta": beta,
            "logprobs": logprobs, "nll_weight": nll_weight, "bf16": bf16,
            "gradient_checkpointing": gradient_checkpointing, "fsdp": fsdp,
            "save_steps": save_steps, "report_to": names(report_to), "seed": seed,
            "draw_batch": draw_batch, "device": device, "dtype": dtype, "candidates": candidates,
        }
    )  # fmt: skip
    quiet()
    from gapbench.cli.progress import bars
    from gapbench.fix.run import fix as run_fix

    screen, first = console(), int(os.environ.get("RANK", "0")) == 0

    def say(line: str) -> None:
        screen.print(line, soft_wrap=True)

    with bars() as progress:
        done = run_fix(settings, progress if first else lambda *_: lambda _count: None, say)
    if first:
        for replay in done.record["replays"]:
            say(
                f"pool at epoch {replay['epoch']}: {replay['pool']} prompts before the replay, "
                f"{replay['left']} after it; {replay['joined']} joined"
            )
        say(
            f"Fixed on {done.record['data']['rows']} rows: gapbench run --model {done.folder}. "
            f"Curves: {done.folder / 'curves.png'}; training set: {done.folder / 'data'}"
        )
