"""The parts of gpu.py: each gives the lines of its section, as they are measured."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import bench_detector
import bench_generate
import bench_vlm
import numpy as np
import torch
from bench_generate import REPLY, judging, prompts_of, upstream
from floors import PROMPT, Geometry
from PIL import Image
from torch import Tensor

from gapbench.models.autoregressive import noise, plain
from gapbench.models.janus.adapter import JanusModel
from gapbench.runs.folder import RunFolder
from gapbench.runs.plan import prepare
from gapbench.runs.settings import RunSettings

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


def ceilings(bench: Bench) -> Iterator[str]:
    bandwidth, flops = bench.ceilings
    yield from table(
        ["ceiling", "measured"],
        [
            ["copy, read and written", f"{bandwidth / 1e12:.3f} TB/s"],
            [f"matmul, {bench.dtype}", f"{flops / 1e12:.1f} TFLOP/s"],
        ],
    )


@torch.inference_mode()
def kernels(bench: Bench) -> Iterator[str]:
    """The kernels against the same functions in torch, and the noise against the CPU's."""
    from gapbench.models.autoregressive import kernels as fast

    heads = ("kernel", "dtype", "largest difference", "of at most", "repeats", "µs", "in torch, µs")
    yield from table(heads)
    for dtype in (torch.float32, torch.bfloat16):
        for name, call in cases(bench, dtype).items():
            mine, theirs = call(fast), call(plain)
            yield row(
                name, str(dtype).removeprefix("torch."),
                f"{float((mine.double() - theirs.double()).abs().max()):.2g}",
                f"{float(theirs.double().abs().max()):.2g}",
                "yes" if torch.equal(mine, call(fast)) else "no",
                f"{1e6 * bench.seconds(partial(call, fast), 1 if bench.tiny else 50):.1f}",
                f"{1e6 * bench.seconds(partial(call, plain), 1 if bench.tiny else 50):.1f}",
            )  # fmt: skip
    seeds, step, codes = [0, 2**40 + 5, 2**63 - 1], torch.tensor([7]), 130 if bench.tiny else 16384
    known = noise.gumbel(noise.keys(seeds), step, codes, 1)
    keys = noise.keys(seeds, bench.device)
    yield ""
    yield from table(["noise, against the CPU's", "largest difference", "words that differ"])
    for name, ops in (("torch", plain), ("Triton", fast)):
        values = ops.gumbel(keys, step.to(bench.device), codes, 1).cpu()
        differ = int((words(values) != words(known)).sum())
        yield row(
            name, f"{float((values - known).abs().max()):.2g}", f"{differ} of {known.numel()}"
        )


def words(gumbel: Tensor) -> Tensor:
    """The 32 bits that each value was made of."""
    return ((-(-gumbel).exp()).exp() * 2**32 - 0.5).round()


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
        return torch.cat([turned.flatten(), held[:, :, :, :8].flatten()])

    return {
        "add_norm": lambda ops: torch.cat(ops.add_norm(*hidden, weight, 1e-6)),
        "rotate_and_keep": rotated,
        "attend": lambda ops: ops.attend(query, *held, places, width**-0.5, room),
        "swiglu": lambda ops: ops.swiglu(gates),
    }


def drawing(bench: Bench) -> Iterator[str]:
    """Whole images: ours, and transformers' generate."""
    start = time.perf_counter()
    model = bench.model
    built = time.perf_counter() - start
    batches = (1, 2, 4, 8) if bench.tiny else (1, 16, 64, 128)
    prompts, seeds = prompts_of(batches[-1]), list(range(batches[-1]))
    first = bench.seconds(partial(begun, model, prompts[:1]), warm=0)
    yield f"Random weights made and saved in {built:.1f} s; the first block's buffers, kernels and "
    yield f"graph in {first:.1f} s. {way(model)}"
    yield ""
    alone = bench.seconds(partial(upstream, model, prompts[:1]), warm=0)
    heads = (
        "batch",
        "images/s",
        "of its limit",
        "transformers, images/s",
        "ratio",
        "one at a time",
    )
    yield from table(heads)
    for batch in batches:
        some = prompts[:batch]
        mine = bench.seconds(partial(model.generate, some, seeds[:batch]), warm=int(batch == 1))
        bench.figures[f"drawing_{batch}"] = batch / mine
        share = batch / mine / bench.limit(bench.block)
        theirs, compared = alone, batch <= bench.block
        if 1 < batch <= bench.block:
            theirs = bench.seconds(partial(upstream, model, some), warm=0)
        said = [f"{batch / theirs:.3f}", f"{theirs / mine:.2f} x"] if compared else ["", ""]
        times = f"{alone * batch / mine:.1f} x"
        yield row(batch, f"{batch / mine:.3f}", f"{share:.0%}", *said, times)
        if batch == bench.block:
            bench.figures |= {"ratio_64": theirs / mine, "share_64": share}
            bench.figures["drawing_64"] = batch / mine
    lone = bench.around(model.network, bench.checkpoint, 1)
    mine = bench.seconds(partial(lone.generate, prompts[:1], [0]), warm=1)
    share, times = 1 / mine / bench.limit(1), f"{alone / mine:.1f} x"
    yield row(
        "1, block of one", f"{1 / mine:.3f}", f"{share:.0%}", f"{1 / alone:.3f}", times, times
    )
    bench.figures |= {"block_of_one": 1 / mine, "ratio_of_one": alone / mine}
    lone.release()


@torch.inference_mode()
def begun(model: JanusModel, prompts: list[str]) -> None:
    """A block's first tokens."""
    model._tokens(prompts, range(len(prompts)), steps=8)


def way(model: JanusModel) -> str:
    """How a block's steps are computed."""
    drawer = model.blocks._kept[0][1]
    graph = "a CUDA graph" if drawer._graph else "no CUDA graph"
    return (
        f"Steps: {graph}, {drawer._ops.__name__.rpartition('.')[2]}; {drawer.why or 'as wanted'}."
    )


@torch.inference_mode()
def step(bench: Bench) -> Iterator[str]:
    """A step in the middle of an image, and where its time goes."""
    model, prompts = bench.model, prompts_of(bench.block)
    begun(model, prompts)
    drawer = model.blocks._kept[0][1]
    middle, last = Geometry.of(bench.size).tokens // 2, Geometry.of(bench.size).tokens - 1

    def at(do: Callable[[], None]) -> Callable[[], None]:
        def put() -> None:
            drawer.decoder._places.fill_(PROMPT + middle)
            drawer.decoder._end = PROMPT + middle
            drawer._step.fill_(min(middle, last))
            do()

        return put

    floor, times = bench.floor(bench.block), 2 if bench.tiny else 50
    yield from table(["a step, batch 64", "ms", "limit, ms", "of its limit"])
    ways = {"by the graph": drawer._graph, "without the graph": drawer._one}
    for name, do in ways.items():
        if do is not None:
            taken = bench.seconds(at(do), times)
            yield row(name, f"{1e3 * taken:.3f}", f"{1e3 * floor:.3f}", f"{floor / taken:.0%}")
    yield ""
    yield from table(["of the time of a step's kernels", "share", "ms a step"])
    steps = 2 if bench.tiny else 8
    with torch.profiler.profile() as profile:
        for _ in range(steps):
            at(drawer._one)()
        bench.wait()
    spent: dict[str, float] = {}
    for event in profile.key_averages():
        if bench.device == "cpu":
            taken = event.self_cpu_time_total
        elif event.device_type.name == "CUDA":
            taken = event.self_device_time_total
        else:
            continue
        name = event.key.lower()
        kinds = (kind for kind, parts in KINDS.items() if any(part in name for part in parts))
        kind = next(kinds, "the rest")
        spent[kind] = spent.get(kind, 0.0) + taken
    for kind, taken in sorted(spent.items(), key=lambda pair: -pair[1]):
        share = taken / sum(spent.values())
        yield row(kind, f"{share:.0%}", f"{taken / 1e3 / steps:.3f}")
    yield ""
    yield from table(["a block besides its steps", "ms"])
    tokens = model._tokens(prompts, range(bench.block), steps=2)[1]
    tokens = np.resize(tokens, (bench.block, last + 1)).astype(np.int32)
    yield row("prefix and two tokens", f"{1e3 * bench.seconds(partial(begun, model, prompts)):.1f}")
    yield row("pictures decoded", f"{1e3 * bench.seconds(partial(model.decode, tokens)):.1f}")


def verdicts(bench: Bench) -> Iterator[str]:
    geometry = Geometry.of(bench.size)
    batch = 8 if bench.tiny else 64
    limit = bench.ceilings[1] / geometry.verdict()
    yield f"Limit of one question an image, without the vision tower: {limit:.0f}/s."
    yield ""
    yield from table(["questions an image", "verdicts/s", f"x a reply of {REPLY} tokens"])
    for each, mine, alone in judging(bench.model, bench.model, batch, 1 if bench.tiny else 3):
        yield row(each, f"{batch / mine:.1f}", f"{alone * batch / mine:.1f} x")
        bench.figures[f"verdicts_{each}"] = batch / mine


@torch.inference_mode()
def invariance(bench: Bench) -> Iterator[str]:
    """The same (prompt, seed) again and again: how many come out the same, byte for byte."""
    model, count = bench.model, 4 if bench.tiny else 32
    told = RunSettings(model, "geneval", limit=count, samples=1, judges=[])
    items = prepare(told).plan.items()
    texts, seeds = [i.prompt.text for i in items], [i.seed for i in items]
    steps = 8 if bench.tiny else 96

    def same(one: Sequence[Any], two: Sequence[Any]) -> str:
        equal = [a.tobytes() == b.tobytes() for a, b in zip(one, two, strict=True)]
        shares.append(sum(equal) / len(equal))
        return f"{sum(equal)} of {len(equal)}"

    def begins(batch: int) -> list[Any]:
        made: list[Any] = []
        for first in range(0, count, batch):
            some = slice(first, first + batch)
            made += list(model._tokens(texts[some], seeds[some], steps)[1])
        return made

    def pictures(batch: int, most: int) -> list[Any]:
        firsts = range(0, most, batch)
        drawn = [
            d for f in firsts for d in model.generate(texts[f : f + batch], seeds[f : f + batch])
        ]
        return [drawing.image for drawing in drawn]

    shares: list[float] = []
    yield from table(["the same prompts and seeds", "equal"])
    whole = pictures(count, count)
    yield row("whole images, twice", same(pictures(count, count), whole))
    bench.figures["twice"] = shares[-1]
    known, shares = begins(count), []
    beside = [*prompts_of(count), *texts], [*range(count), *seeds]
    model.blocks.clear()
    yield row(f"first {steps} tokens, buffers and graph made anew", same(begins(count), known))
    yield row(f"first {steps} tokens, at batch 16", same(begins(max(1, count // 2)), known))
    for first in range(0, 2 * count, bench.block):
        some = slice(first, first + bench.block)
        last = model._tokens(beside[0][some], beside[1][some], steps)[1]
    yield row(f"first {steps} tokens, behind others", same(list(last[-1:]), known[-1:]))
    yield row(f"first {steps} tokens, at batch 1", same(begins(1), known))
    yield row("whole images, at batch 1", same(pictures(1, 4), whole[:4]))
    bench.figures["batches"] = min(shares)

    model.blocks.clear()
    bench.wait()
    command, environment = bench.command(
        bench.scratch / "killed", count, "--batch-size", str(count // 2)
    )
    records = partial((bench.scratch / "killed").glob, "*/generations.jsonl")
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not any(file.stat().st_size for file in records()):
        time.sleep(0.005)
    process.kill()
    process.wait()
    there = sum(len(file.read_bytes().splitlines()) for file in records())
    finished(command, environment)
    folder = RunFolder.open(next(records()).parent)
    drawn = folder.generations()
    images = [folder.image(drawn[key].image) for key in zip(texts, seeds, strict=True)]
    words = (
        f"whole images of `gapbench run`, killed after {there} and resumed, against this process"
    )
    yield row(words, same(images, whole))
    bench.figures["killed"] = shares[-1]


def finished(command: list[str], environment: dict[str, str]) -> str:
    """What a command says. Raises RuntimeError where it fails."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"gapbench run: {done.stderr[-2000:]}")
    return done.stdout


def run(bench: Bench) -> Iterator[str]:
    """The command that users type, by what its files say of its phases."""
    bench.model.blocks.clear()
    limit, out = 8 if bench.tiny else 320, bench.scratch / "whole"
    command, environment = bench.command(out, limit)
    start = time.time()
    finished(command, environment)
    whole = time.time() - start
    folder = RunFolder.open(next(out.glob("*/run.json")).parent)
    files = ("plan.json", "generations.jsonl", "verdicts.jsonl")
    loaded, drawn, judged = ((folder.path / name).stat().st_mtime - start for name in files)
    own = sum(record.seconds for record in folder.generations().values())
    answers = len(folder.verdicts())
    yield from table(
        [f"`gapbench run --tasks geneval --limit {limit} --samples 1`", "s"],
        [
            ["whole", f"{whole:.1f}"],
            ["imports and loading", f"{loaded:.1f}"],
            ["drawing", f"{drawn - loaded:.1f}"],
            ["… by the model itself", f"{own:.1f}"],
            [f"{answers} verdicts", f"{judged - drawn:.1f}"],
            ["the rest", f"{whole - judged:.1f}"],
        ],
    )
    bench.figures["run"] = whole
    if rate := bench.figures.get("verdicts_1"):
        ratio = (whole - loaded) / (own + answers / rate)
        yield row(f"without loading, against drawing and {answers / rate:.1f} s of verdicts",
                  f"{ratio:.2f} x")  # fmt: skip
        bench.figures["run_ratio"] = ratio
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
    tokens, codes = bench.model._lengths[0], bench.model.codes
    yield f"LoRA of rank 32, {batch} images or pairs a step, {micro} a forward pass."
    yield ""
    yield from table(["", "images trained/s", "peak memory, GiB"])
    methods: dict[Literal["sft", "dpo"], tuple[str, ...]]
    methods = {"sft": ("",), "dpo": ("_chosen", "_rejected")}
    for method, ends in methods.items():
        settings = FixSettings(
            method=method, out=bench.scratch / method, model=str(bench.checkpoint), epochs=1,
            batch_size=batch, micro_batch=micro,
        )  # fmt: skip
        random, count = np.random.default_rng(0), batch * steps
        drawn = {
            f"tokens{end}": random.integers(0, codes, (count, tokens)).tolist() for end in ends
        }
        rows = Dataset.from_dict({"prompt": prompts_of(count), **drawn})
        known = [[-10.0 * tokens] * 2] * count if method == "dpo" else []
        examples = data.Drawn(rows, known, (0, 1), batch, settings.prompt_dropout, settings.seed)
        if bench.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        model = network.base_model(settings, bench.device, network.train_dtype(settings))
        loss = ImageLoss(model, network.prepare(model, settings))
        times: list[float] = []

        def progress(*_stage: object, times: list[float] = times) -> Callable[[int], None]:
            return lambda _count: times.append(time.perf_counter())

        folder, mixed = bench.scratch / method / "phase", network.mixed(settings)
        train_phase(loss, examples, settings, folder, bench.device, mixed, progress)
        rate = len(ends) * batch * (len(times) - 1) / (times[-1] - times[0])
        yield row(f"fix {method}", f"{rate:.2f}", bench.peak())
        model.release()
        del loss, model


def judges(bench: Bench) -> Iterator[str]:
    """GenEval's detector with CLIP, and a VLM, with random weights."""
    from gapbench.judges.detector import DetectorJudge
    from gapbench.judges.vlm import VlmJudge

    bench.free()
    yield from table(["judge", "at a time", "/s", "one at a time, /s"])
    detector = DetectorJudge(device=bench.device)
    vars(detector)["loaded"] = bench_detector.loaded(bench.device, bench.tiny)
    random, count = np.random.default_rng(0), 1 if bench.tiny else 32
    pixels = list(random.integers(0, 256, (count, 384, 384, 3), np.uint8))
    crops = list(map(Image.fromarray, pixels * 2))

    def detect(batch: int) -> float:
        detector.batch = batch
        return count / bench.seconds(partial(detector.detect, pixels), warm=1)

    size = 1 if bench.tiny else 8
    yield row("detector, images", size, f"{detect(size):.2f}", f"{detect(1):.2f}")
    colors = bench.seconds(partial(detector.colors, crops, ["bench"] * len(crops)), warm=1)
    yield row("its CLIP, crops", len(crops), f"{len(crops) / colors:.1f}", "")
    detector.release()

    folder = bench.scratch / "vlm"
    words = bench_vlm.tokenizer()
    sizes = bench_vlm.small(words) if bench.tiny else bench_vlm.PUBLISHED
    config = bench_vlm.settings(folder, words, sizes)
    (folder / "model.safetensors").touch()
    judge = VlmJudge(str(folder), bench.device)
    with bench_generate.made_there(bench.device, bench.dtype):
        transformers = import_module("transformers")
        judge._model = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    batch = 2 if bench.tiny else 32
    asked = [crops[number % len(crops)] for number in range(batch)], bench_vlm.asked(batch)
    together = batch / bench.seconds(partial(judge.judge, *asked), warm=1)
    few = asked[0][:2], asked[1][:2]
    apart = 2 / bench.seconds(partial(bench_vlm.usual, judge, *few), warm=1)
    width, layers = config.text_config.hidden_size, config.text_config.num_hidden_layers
    yield row(f"Qwen2.5-VL, {layers} x {width}, verdicts", batch, f"{together:.2f}",
              f"{apart:.2f}, a reply")  # fmt: skip
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
    first = bench.seconds(partial(begun, model, prompts), warm=0)
    yield f"Blocks of {block}; the first block's buffers, kernels and graph in {first:.1f} s. "
    yield way(model)
    yield ""
    yield from table([f"Janus, {size}", "/s", "of its limit"])
    mine = bench.seconds(partial(model.generate, prompts, list(range(block))), warm=0)
    share = block / mine / bench.limit(block, size)
    yield row(f"drawing a block of {block}, images", f"{block / mine:.2f}", f"{share:.0%}")
    batch = 4 if bench.tiny else 64
    _, taken, _ = next(judging(model, model, batch, 1 if bench.tiny else 2))
    share = batch / taken * Geometry.of(size).verdict() / bench.ceilings[1]
    yield row(f"verdicts, {batch} at a time", f"{batch / taken:.1f}", f"{share:.0%}")
    yield row("peak memory, GiB", bench.peak(), "")
    model.release()


PARTS: dict[str, Callable[[Bench], Iterator[str]]] = {
    part.__name__: part
    for part in (ceilings, kernels, drawing, step, verdicts, invariance, run, fix, judges, large)
}
