"""The command `gapbench serve-judge`."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Annotated

import typer

from gapbench.fetch.libraries import go_offline, quiet
from gapbench.runs.settings import Offline, device_name


def serve_judge(
    judge: Annotated[str, typer.Argument(help="The judge, as `gapbench run --judge` takes it; or own:MODEL, whose own verdicts are the rewards.", metavar="JUDGE")],
    task: Annotated[str, typer.Option(help="The task whose prompts, question and requirements are judged.")],
    port: Annotated[int, typer.Option(help="Port of the server; 0 takes a free one.")] = 0,
    host: Annotated[str, typer.Option(help="Address to listen at. Another than this machine's own needs a token in GAPBENCH_REWARD_TOKEN.")] = "127.0.0.1",
    accept_pickle: Annotated[bool, typer.Option("--accept-pickle", help="Also take requests of flow_grpo's and verl-omni's form. Only plain values are read from them; nothing is unpickled.")] = False,
    device: Annotated[str, typer.Option(parser=device_name, help="Where the judge runs: auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    offline: Offline = False,
) -> None:  # fmt: skip
    """Serve a judge as a reward for trainers, until Ctrl-C."""
    go_offline(offline)
    quiet()
    from gapbench.cli.progress import bars

    with bars(f"loading {judge}"):
        from gapbench.rewards.reward import reward
        from gapbench.rewards.service import TOKEN, serving

        made = reward(judge, task, device)
    token = os.environ.get(TOKEN, "")
    with serving(made, port, host, token, accept_pickle) as (address, server):
        typer.echo(f"{made.judge.name} judges images of {made.task.name} until Ctrl-C at {address}")
        with suppress(KeyboardInterrupt):
            server.serve_forever()
