"""A Ray cluster: joined or started, and what it has room for."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read as Ray starts

import ray
from ray.exceptions import RayError

from gapbench.engines.base import Source
from gapbench.files import first_line
from gapbench.types import GapbenchError, counted

ANSWERS: Final = 10.0
"""Seconds in which a cluster's head has to answer."""
Nodes = Sequence[Mapping[str, Any]]


def connect(address: str | None, workers: int) -> None:
    """Join the cluster at an address, or start one on this machine, which ends with this process.
    Raises GapbenchError where that is not possible."""
    given: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        cores = os.cpu_count() or 1
        if workers > (most := max(8, 4 * cores)):
            raise GapbenchError(
                f"--workers {workers}: this machine has {counted(cores, 'core')}; take {most} or "
                "fewer, or a cluster with --ray-address"
            )
        cores = max(workers, cores)
        given |= {"address": "local", "num_cpus": cores, "include_dashboard": False}
        # By default workers yield to all other processes of the machine.
        given |= {"_node_ip_address": "127.0.0.1", "_system_config": {"worker_niceness": 0}}
    else:
        given |= {"address": address}
        _knock(address)
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        with _deaf():
            ray.init(**given)
    except (RayError, RuntimeError, ValueError, OSError) as error:
        said = " ".join(str(error).split())
        if address is None:
            raise GapbenchError(
                f"Ray did not start: {said:.300}; its logs are in /tmp/ray"
            ) from error
        raise GapbenchError(
            f"--ray-address {address}: {said:.300}; start a cluster with `ray start --head`, with "
            "one Ray and one Python on all nodes, or leave out --ray-address"
        ) from error


def need(source: Source, nodes: Nodes) -> dict[str, float]:
    """What a copy takes of a node, in Ray's words. Raises GapbenchError for one GPU by its number,
    and where the nodes have GPUs and this process does not."""
    import torch

    if source.device.startswith("cuda:"):
        raise GapbenchError(
            f"--device {source.device}: Ray gives each worker GPUs of its own; take --device cuda"
        )
    gpus = source.here.gpus or 0
    if not gpus or source.device not in {"auto", "cuda"}:
        return {"CPU": 1}
    if torch.cuda.is_available():
        return {"CPU": 1, "GPU": gpus}
    if any(node["Resources"].get("GPU") for node in nodes if node["Alive"]):
        raise GapbenchError(
            "Ray has nodes with GPUs, and torch sees none here, so this process would take another "
            "dtype; start the command on such a node, or give --device cpu"
        )
    return {"CPU": 1}


def room(nodes: Nodes, needed: Mapping[str, float]) -> int:
    """How many copies fit on the nodes, as ray.nodes() gives them, if nothing else is there."""
    return sum(
        min(int(node["Resources"].get(key, 0) / each + 1e-9) for key, each in needed.items())
        for node in nodes
        if node["Alive"]
    )


def threads(nodes: Nodes, copies: int) -> int:
    """How many threads each of so many copies may use: cores are shared, and OMP_NUM_THREADS
    is the most."""
    cores = sum(node["Resources"].get("CPU", 0) for node in nodes if node["Alive"])
    shared = max(1, int(cores / copies))
    return min(shared, int(os.environ.get("OMP_NUM_THREADS") or shared))


def _knock(address: str) -> None:
    """Raises GapbenchError where nobody answers: Ray would wait for long."""
    host, _, port = address.rpartition(":")
    if not host:
        return  # auto
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWERS).close()
    except (OSError, OverflowError) as error:
        raise GapbenchError(
            f"--ray-address {address}: nobody answers there ({first_line(error)}); start Ray on "
            f"that node with `ray start --head --port {port}`, or leave out --ray-address"
        ) from error


@contextmanager
def _deaf() -> Iterator[None]:
    """What starts in it never hears Ctrl-C, or that the terminal was closed: the first process ends
    the batches in hand, then it. What Ray does to this process's signals is undone."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say so
        return
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)}
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
