"""The parts of gpu.py: each gives the lines of its section, as they are measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import bench_detector
import bench_generate
import bench_vlm
import numpy as np
import torch
from bench_generate import REPLY, judging, prompts_of, upstream
from floors import PROMPT, QUESTION, Geometry
from PIL import Image
from torch import Tensor

from gapbench import load_task
from gapbench.models.autoregressive import noise, plain
from gapbench.models.autoregressive.attention import repeatable
from gapbench.runs.plan import prepare
from gapbench.runs.settings import Advance, RunSettings

if TYPE_CHECKING:
    from gpu import Bench

KINDS = {
    "matmul": ("gemm", "cutlass", "nvjet", "xmma", "gemv", "splitk", "aten::mm", "aten::addmm"),
    "attention": ("_attend", "fmha", "flash", "scaled_dot_product"),
    "norm, rotary, SwiGLU": ("_add_norm", "_rotate_and_keep", "_swiglu"),
    "noise": ("_gumbel",),
    "softmax and argmax": ("softmax", "argmax", "reduce"),
}
"""What names of GPU kernels, or of a CPU's operators, hold."""


def table(heads: Sequence[str], rows: Sequence[Sequence[object]] = ()) -> list[str]:
    """A table in Markdown; further rows may follow it."""
    return [row(*heads), "|" + "---|" * len(heads), *(row(*cells) for cells in rows)]


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


@torch.inference_mode()
def kernels(bench: Bench) -> Iterator[str]:
    """The kernels against the same functions in torch, and the noise against the CPU's."""
    from gapbench.models.autoregressive import kernels as fast

    yield from table(
        ["kernel", "dtype", "largest difference", "of at most", "repeats", "µs", "in torch, µs"]
    )
    times = 1 if bench.tiny else 50
    for dtype in (torch.float32, torch.bfloat16):
        for name, call in cases(bench, dtype).items():
            with repeatable():
                mine, again, theirs = call(fast), call(fast), call(plain)
                taken = [1e6 * bench.seconds(partial(call, ops), times) for ops in (fast, plain)]
            far, most = (mine.double() - theirs.double()).abs().max(), theirs.double().abs().max()
            repeats = "yes" if torch.equal(mine, again) else "no"
            said = [name, str(dtype).removeprefix("torch."), f"{far:.2g}", f"{most:.2g}", repeats]
            yield row(*said, *(f"{each:.1f}" for each in taken))
    seeds, step, codes = [0, 2**40 + 5, 2**63 - 1], torch.tensor([7]), 130 if bench.tiny else 16384
    known = noise.gumbel(noise.keys(seeds), step, codes, 1)
    keys = noise.keys(seeds, bench.device)
    yield ""
    yield from table(["noise, against the CPU's", "largest difference", "words that differ"])
    for name, ops in (("torch", plain), ("Triton", fast)):
        values = ops.gumbel(keys, step.to(bench.device), codes, 1).cpu()
        words = [((-(-each).exp()).exp() * 2**32 - 0.5).round() for each in (values, known)]
        differ, far = (words[0] != words[1]).sum(), (values - known).abs().max()
        yield row(name, f"{far:.2g}", f"{differ} of {known.numel()}")


def cases(bench: Bench, dtype: torch.dtype) -> dict[str, Callable[[Any], Tensor]]:
    rows, groups, width, room = (4, 2, 16, 80) if bench.tiny else (128, 16, 128, 640)
    torch.manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=bench.device).to(dtype)

    hidden, weight = random(2, rows, groups * width), random(groups * width)
    joined, (cos, sin) = random(rows, 3 * groups * width), random(2, room, width)
    query, held = random(rows, groups, width), random(2, rows, groups, room, width)
    places = torch.arange(rows, device=bench.device) * 5 % room
    gates = random(rows, 2 * (64 if bench.tiny else 5632))

    def rotated(ops: Any) -> Tensor:
        turned: Tensor = ops.rotate_and_keep(joined, cos, sin, places, *held)
        kept = held[:, torch.arange(rows, device=bench.device), :, places]
        return torch.cat([turned.flatten(), kept.flatten()])

    return {
        "add_norm": lambda ops: torch.cat(ops.add_norm(*hidden, weight, 1e-6)),
        "rotate_and_keep": rotated,
        "attend": lambda ops: ops.attend(query, *held, places, width**-0.5, room),
        "swiglu": lambda ops: ops.swiglu(gates),
    }


def drawing(bench: Bench) -> Iterator[str]:
    """Whole images."""
    built = bench.seconds(lambda: bench.model, warm=0)
    model, prompts = bench.model, prompts_of(2 * bench.block)
    first = bench.seconds(partial(bench.begin, model, prompts[:1]), warm=0)
    yield f"Random weights made, saved and loaded in {built:.1f} s; the first block's buffers, "
    yield f"kernels and graph in {first:.1f} s. {bench.way(model)}"
    yield ""
    yield from table(["batch", "images/s", "of its limit"])
    lone = bench.around(model.network, bench.checkpoint, 1)
    ways = {bench.figure(batch): (model, batch) for batch in (*bench.batches, 2 * bench.block)}
    for figure, (drawer, batch) in {**ways, "block_of_one": (lone, 1)}.items():
        draw = partial(drawer.generate, prompts[:batch], list(range(batch)))
        rate = batch / bench.seconds(draw, warm=int(batch == 1))
        share = rate / bench.limit(drawer.blocks.size)
        yield row(f"{batch}, in blocks of {drawer.blocks.size}", f"{rate:.3f}", f"{share:.0%}")
        bench.figures |= {figure: rate, f"share_{figure}": share}
    lone.release()


def transformers(bench: Bench) -> Iterator[str]:
    """The same by transformers' generate."""
    yield from table(["batch", "transformers, images/s", "ours", "ours in a block of one"])
    for batch in bench.batches:
        rate = batch / bench.seconds(partial(upstream, bench.model, prompts_of(batch)), warm=0)
        said = ["", ""]
        for place, figure in enumerate([bench.figure(batch), "block_of_one"][: 1 + (batch == 1)]):
            if ours := bench.figures.get(figure):
                bench.figures[f"ratio_{figure}"] = ours / rate
                said[place] = f"{ours / rate:.2f} x"
        yield row(batch, f"{rate:.3f}", *said)


@torch.inference_mode()
def step(bench: Bench) -> Iterator[str]:
    """A step in the middle of an image, and where its time goes."""
    model, prompts = bench.model, prompts_of(bench.block)
    bench.begin(model, prompts)
    drawer = model.blocks._kept[0][1]
    whole = Geometry.of(bench.size).tokens
    middle = whole // 2

    def at(do: Callable[[], None]) -> Callable[[], None]:
        def put() -> None:
            drawer.decoder._places.fill_(PROMPT + middle)
            drawer.decoder._end = PROMPT + middle
            drawer._step.fill_(middle)
            do()

        return put

    floor, times = bench.floor(bench.block), 2 if bench.tiny else 50
    yield from table(["a step, batch 64", "ms", "limit, ms", "of its limit"])
    ways = {"by the graph": drawer._graph, "without the graph": drawer._one}
    for name, do in ways.items():
        if do is not None:
            taken = bench.seconds(at(do), times)
            yield row(name, f"{1e3 * taken:.3f}", f"{1e3 * floor:.3f}", f"{floor / taken:.0%}")
    steps = 2 if bench.tiny else 8
    with torch.profiler.profile() as profile:
        for _ in range(steps):
            at(drawer._one)()
        bench.wait()
    spent: dict[str, float] = {}
    for event in profile.key_averages():
        if event.device_type.name != bench.device.upper():  # operators beside a GPU's kernels
            continue
        taken = event.self_cpu_time_total or event.self_device_time_total
        name = event.key.lower()
        kinds = (kind for kind, parts in KINDS.items() if any(part in name for part in parts))
        kind = next(kinds, "the rest")
        spent[kind] = spent.get(kind, 0.0) + taken
    if not spent:
        raise RuntimeError("torch's profiler saw no kernel")
    yield ""
    yield from table(["of the time of a step's kernels", "share", "ms a step"])
    for kind, taken in sorted(spent.items(), key=lambda pair: -pair[1]):
        share = taken / sum(spent.values())
        yield row(kind, f"{share:.0%}", f"{taken / 1e3 / steps:.3f}")
    yield ""
    tokens = np.random.default_rng(0).integers(0, model.codes, (bench.block, whole), np.int32)
    first = bench.seconds(partial(bench.begin, model, prompts, 1))
    decoded = bench.seconds(partial(model.decode, tokens))
    rows = {"prompts, prefix and first token": first, "pictures decoded": decoded}
    ms = [[what, f"{1e3 * taken:.1f}"] for what, taken in rows.items()]
    yield from table(["a block besides its steps", "ms"], ms)


def verdicts(bench: Bench) -> Iterator[str]:
    model, batch = bench.model, 8 if bench.tiny else 64
    question = len(model._cut([model._chat(load_task("shapes").prompts()[0].question)])[0])
    geometry = replace(Geometry.of(bench.size), question=question)
    limit = bench.ceilings[1] / geometry.verdict()
    yield f"Limit of one question of {question} tokens an image, without the vision tower: "
    yield f"{limit:.0f}/s. With Janus-Pro's own tokenizer it has about {QUESTION['1b']} tokens."
    yield ""
    yield from table(["questions an image", "verdicts/s", f"x a reply of {REPLY} tokens"])
    for each, mine, alone in judging(model, batch, 1 if bench.tiny else 3):
        yield row(each, f"{batch / mine:.1f}", f"{alone * batch / mine:.1f} x")
        bench.figures[f"verdicts_{each}"] = batch / mine


@torch.inference_mode()
def invariance(bench: Bench) -> Iterator[str]:
    """The same (prompt, seed) again and again: how many come out the same, byte for byte."""
    model, steps, (texts, seeds) = bench.model, 8 if bench.tiny else 96, asked(bench)
    count = len(texts)

    def begins(batch: int) -> list[Any]:
        parts = [slice(first, first + batch) for first in range(0, count, batch)]
        return [r for part in parts for r in model._tokens(texts[part], seeds[part], steps)[1]]

    yield from table(["the same prompts and seeds", "equal"])
    whole = pictures(bench, count, count)
    yield equal(bench, "whole images, twice", "twice", pictures(bench, count, count), whole)
    known, tokens = begins(count), f"first {steps} tokens, "
    model.blocks.clear()
    yield equal(bench, f"{tokens}buffers and graph made anew", "twice", begins(count), known)
    yield equal(bench, f"{tokens}at batch {count // 2}", "batches", begins(count // 2), known)
    beside = [*prompts_of(count), *texts], [*range(count), *seeds]
    last = list(model._tokens(*beside, steps)[1][count:])
    yield equal(bench, f"{tokens}at batch {2 * count}, behind others", "batches", last, known)
    yield equal(bench, f"{tokens}at batch 1", "batches", begins(1), known)
    few = min(4, count)
    alone = pictures(bench, 1, few)
    yield equal(bench, "whole images, at batch 1", "batches", alone, whole[:few])


@torch.inference_mode()
def killed(bench: Bench) -> Iterator[str]:
    """A `gapbench run` that is killed and given again, against images drawn here."""
    texts, seeds = asked(bench)
    count = len(texts)
    whole = pictures(bench, count, count)
    bench.model.blocks.clear()
    out, half = bench.scratch / "killed", ("--batch-size", str(count // 2))
    process = bench.start(out, count, *half)
    there, limit = 0, time.monotonic() + 300
    while process.poll() is None and not there and time.monotonic() < limit:
        time.sleep(0.005)
        there = sum(file.read_bytes().count(b"\n") for file in out.glob("*/generations.jsonl"))
    process.kill()
    process.communicate()
    folder = bench.run(out, count, *half)
    drawn = folder.generations()
    images = [folder.image(drawn[key].image) for key in zip(texts, seeds, strict=True)]
    yield from table(["the same prompts and seeds", "equal"])
    yield equal(bench, f"killed after {there} images, and resumed", "killed", images, whole)


def asked(bench: Bench) -> tuple[list[str], list[int]]:
    """The prompts and seeds of a run of GenEval's first ones."""
    settings = RunSettings(bench.model, "geneval", limit=bench.few, samples=1, judges=[])
    items = prepare(settings).plan.items()
    return [item.prompt.text for item in items], [item.seed for item in items]


def pictures(bench: Bench, batch: int, most: int) -> list[Any]:
    """The first of these, drawn so many at a time."""
    texts, seeds = asked(bench)
    parts = [slice(first, first + batch) for first in range(0, most, batch)]
    return [d.image for part in parts for d in bench.model.generate(texts[part], seeds[part])]


def equal(bench: Bench, what: str, figure: str, one: Sequence[Any], two: Sequence[Any]) -> str:
    """How many pairs are equal, as a row and in the figures."""
    pairs = [a.tobytes() == b.tobytes() for a, b in zip(one, two, strict=True)]
    share = sum(pairs) / len(pairs)
    bench.figures[figure] = min(share, bench.figures.get(figure, 1.0))
    return row(what, f"{sum(pairs)} of {len(pairs)}")


def run(bench: Bench) -> Iterator[str]:
    """The command that users type, by what its files say of its phases."""
    bench.model.blocks.clear()
    limit = 8 if bench.tiny else 320
    start = time.time()
    folder = bench.run(bench.scratch / "whole", limit)
    whole = time.time() - start
    files = ("plan.json", "generations.jsonl", "verdicts.jsonl")
    loaded, drawn, judged = ((folder.path / name).stat().st_mtime - start for name in files)
    own = sum(record.seconds for record in folder.generations().values())
    answers = len(folder.verdicts())
    phases = {
        "whole": whole, "imports and loading": loaded, "drawing": drawn - loaded,
        "… by the model itself": own, f"{answers} verdicts": judged - drawn,
        "the rest": whole - judged,
    }  # fmt: skip
    yield from table([f"`gapbench run --tasks geneval --limit {limit} --samples 1`", "s"])
    for phase, taken in phases.items():
        yield row(phase, f"{taken:.1f}")
    bench.figures["run"] = whole
    if rate := bench.figures.get("verdicts_1"):
        own += answers / rate
        bench.figures["run_ratio"] = (whole - loaded) / own
        yield row("drawing and verdicts by the model itself", f"{own:.1f}")
    checks = folder.path / "checks.json"
    yield ""
    yield f"Its checks: {folder.read(checks.name) if checks.exists() else 'all right'}."


def fix(bench: Bench) -> Iterator[str]:
    """The trainer of `gapbench fix` on random candidates."""
    from datasets import Dataset

    from gapbench.fix import data, network
    from gapbench.fix.losses import ImageLoss
    from gapbench.fix.settings import FixSettings
    from gapbench.fix.trainer import train_phase

    bench.model.blocks.clear()
    batch, micro, steps = (2, 1, 3) if bench.tiny else (16, 8, 6)
    tokens, random = bench.model._lengths[0], np.random.default_rng(0)
    yield f"LoRA of rank 32, {batch} images or pairs a step, {micro} a forward pass."
    yield ""
    yield from table(["", "images trained/s", "peak memory, GiB"])
    times: list[float] = []

    def progress(*_stage: object) -> Advance:
        return lambda count, note="": times.append(time.perf_counter())  # noqa: ARG005

    for method, ends in {"sft": [""], "dpo": ["_chosen", "_rejected"]}.items():
        given: dict[str, Any] = {"method": method, "model": str(bench.checkpoint), "epochs": 1}
        given |= {"out": bench.scratch / method, "batch_size": batch, "micro_batch": micro}
        settings = FixSettings(**given)
        count = batch * steps
        codes = random.integers(0, bench.model.codes, (len(ends), count, tokens)).tolist()
        drawn = {f"drawing{end}": own for end, own in zip(ends, codes, strict=True)}
        rows = Dataset.from_dict({"prompt": prompts_of(count), **drawn})
        rows = rows.with_format("numpy", [*drawn], output_all_columns=True)  # as data.load gives it
        examples = data.Drawn(rows, (0, 1), batch, settings.prompt_dropout, settings.seed)
        if method == "dpo":
            examples.reference = {0: [[10.0 * tokens] * 2] * count}
        bench.reset_peak()
        model = network.base_model(settings, bench.device, network.train_dtype(settings))
        loss = ImageLoss(model, network.prepare(model, settings))
        times.clear()
        folder, mixed = bench.scratch / method / "phase", network.mixed(settings)
        train_phase(loss, examples, settings, folder, bench.device, mixed, progress)
        rate = len(ends) * batch * (len(times) - 1) / (times[-1] - times[0])
        yield row(f"fix {method}", f"{rate:.2f}", bench.peak())
        model.release()
        del loss, model


def detector(bench: Bench) -> Iterator[str]:
    """GenEval's detector and its CLIP, with random weights."""
    from gapbench.judges.detector import DetectorJudge

    bench.free()
    judge = DetectorJudge(device=bench.device)
    vars(judge)["loaded"] = bench_detector.loaded(bench.device, bench.tiny)
    count, sizes, warm = (1, (1,), 0) if bench.tiny else (32, (1, 8), 1)
    images = np.random.default_rng(0).integers(0, 256, (count, 384, 384, 3), np.uint8)
    yield from table(["detector", "at a time", "images/s"])
    for judge.batch in sizes:
        taken = bench.seconds(partial(judge.detect, list(images)), warm=warm)
        yield row("Mask2Former", judge.batch, f"{count / taken:.2f}")
    crops = list(map(Image.fromarray, images))
    taken = bench.seconds(partial(judge.colors, crops, ["bench"] * count), warm=warm)
    yield row("CLIP, a crop each", count, f"{count / taken:.1f}")
    judge.release()


def vlm(bench: Bench) -> Iterator[str]:
    """A VLM judge with random weights."""
    bench.free()
    sizes, batch = (None, 2) if bench.tiny else (bench_vlm.PUBLISHED, 32)
    judge = bench_vlm.random(bench.scratch / "vlm", bench.device, bench.dtype, sizes)
    pixels = np.random.default_rng(0).integers(0, 256, (batch, 384, 384, 3), np.uint8)
    images, prompts = list(map(Image.fromarray, pixels)), bench_vlm.asked(batch)
    yield from table(["Qwen2.5-VL", "at a time", "verdicts/s"])
    taken = bench.seconds(partial(judge.judge, images, prompts), warm=1)
    yield row("probabilities", batch, f"{batch / taken:.2f}")
    taken = bench.seconds(partial(bench_vlm.usual, judge, images[:2], prompts[:2]), warm=1)
    yield row("a reply of 8 tokens", 1, f"{2 / taken:.2f}")
    judge.release()


def large(bench: Bench) -> Iterator[str]:
    """Janus-Pro-7B: a block and a batch of verdicts."""
    bench.free()
    size = "tiny" if bench.tiny else "7b"
    network = bench_generate.network(size, bench.device, bench.dtype)
    folder = bench.scratch / "large"
    network.config.save_pretrained(folder)
    bench_generate.settings(folder, size)
    with (folder / "model.safetensors").open("wb") as file:  # of its bytes only the number counts
        file.truncate(sum(weight.nbytes for weight in network.parameters()))
    model = bench.around(network, folder, 0)
    block = model.blocks.size
    prompts = prompts_of(block)
    first = bench.seconds(partial(bench.begin, model, prompts), warm=0)
    yield f"Blocks of {block}; the first block's buffers, kernels and graph in {first:.1f} s. "
    yield bench.way(model)
    yield ""
    yield from table([f"Janus, {size}", "/s", "of its limit"])
    mine = bench.seconds(partial(model.generate, prompts, list(range(block))), warm=0)
    share = block / mine / bench.limit(block, size)
    yield row(f"drawing a block of {block}, images", f"{block / mine:.2f}", f"{share:.0%}")
    batch = 4 if bench.tiny else 64
    _, taken, _ = next(judging(model, batch, 1 if bench.tiny else 2))
    share = batch / taken * Geometry.of(size).verdict() / bench.ceilings[1]
    yield row(f"verdicts, {batch} at a time", f"{batch / taken:.1f}", f"{share:.0%}")
    yield row("peak memory, GiB", bench.peak(), "")
    model.release()


FIRST = (kernels, drawing, transformers, step, verdicts, invariance)
LAST = (run, killed, fix, detector, vlm, large)
PARTS: dict[str, Callable[[Bench], Iterator[str]]]
PARTS = {part.__name__: part for part in FIRST + LAST}
