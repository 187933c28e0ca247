"""Fixtures: a tiny random Janus in the hub's layout, and the command line as a process."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import bagels
import pytest
import torch
from hypothesis import settings
from processes import Start, finish
from processes import end as end
from processes import start as start
from processes import wait_until as wait_until

from gapbench.models.torchvision_shim import ensure

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read as triton is imported
ensure()  # before transformers, which imports torchvision where it is installed

# A shell's background job ignores Ctrl-C, and so would every process that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Threads that wait must not take the cores from the tests beside them; read as torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.pop("COLUMNS", None)  # tables of commands would be as narrow as the tests' terminal
os.unsetenv("COLUMNS")  # readline, which pytest imports, sets it where os.environ does not show it
CLI = [sys.executable, "-c", "from gapbench.cli.main import main; main()"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz", type=int, default=50, help="generated cases that each test of such cases tries"
    )


def pytest_configure(config: pytest.Config) -> None:
    # The same examples in every run.
    tried = config.getoption("--fuzz")
    settings.register_profile("same", derandomize=True, deadline=None, max_examples=tried)
    settings.load_profile("same")


@pytest.fixture
def cases(request: pytest.FixtureRequest) -> int:
    """How many broken folders a test tries."""
    count: int = request.config.getoption("--fuzz")
    return count


def _is_here(address: str) -> bool:
    """Whether an address is one of this machine's, by which the nodes of a Ray cluster talk."""
    if not re.fullmatch(r"[\d.]+", address):
        return False  # a name, which would be looked up
    with socket.socket() as own, suppress(OSError):
        own.bind((address, 0))
        return True
    return False


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """A test that asks for another machine fails at once, instead of waiting for it."""
    asks = socket.getaddrinfo

    def local(host: str | bytes | None, *more: Any, **words: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in (None, "", "localhost", "127.0.0.1", "::1") and not _is_here(name):
            raise AssertionError(f"a test asks for {name}")
        return asks(host, *more, **words)

    socket.getaddrinfo = local
    yield
    socket.getaddrinfo = asks


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models are several times faster on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_janus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Janus checkpoint of 0.5 M parameters: 32 x 32 pixels, 16 image tokens, 128 codes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import (
        GenerationConfig,
        JanusConfig,
        JanusForConditionalGeneration,
        JanusImageProcessorPil,
        JanusProcessor,
        JanusVisionConfig,
        JanusVQVAEConfig,
        LlamaConfig,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(0)
    special = ["<|pad|>", "<|bos|>", "<|eos|>", "<image_placeholder>", "<boi>", "<eoi>"]
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    words = ["a red circle and a blue square", " The score is 0", " The score is 1", "describe"]
    base.train_from_iterator(
        words * 20,
        trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    base.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        extra_special_tokens={
            "image_token": "<image_placeholder>",
            "boi_token": "<boi>",
            "eoi_token": "<eoi>",
        },
    )
    template = (
        "{% for message in messages %}{{ 'User: ' if message.role == 'user' else 'Assistant: ' }}"
        "{% for part in message.content %}{{ '<image_placeholder>\n' if part.type == 'image' else "
        "part.text }}{% endfor %}{{ '\n\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    )
    processor = JanusProcessor(
        JanusImageProcessorPil(
            size={"height": 32, "width": 32},
            min_size=8,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer,
        chat_template=template,
        num_image_tokens=16,
        use_default_system_prompt=True,
    )
    config = JanusConfig(
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=1024,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        vision_config=JanusVisionConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            projection_dim=64,
            depth=2,
            num_image_tokens=16,
        ),
        vq_config=JanusVQVAEConfig(
            embed_dim=8,
            num_embeddings=128,
            latent_channels=32,
            num_patches=4,
            base_channels=32,
            channel_multiplier=[1, 1, 1, 1],
            num_res_blocks=1,
            projection_dim=64,
            image_token_embed_dim=64,
            num_hidden_layers=2,
        ),
        image_token_id=3,
        tie_word_embeddings=False,
    )
    model = JanusForConditionalGeneration(config)
    # Random heads are nearly uniform; scaled ones make greedy and guided choices differ.
    with torch.no_grad():
        for weight in (
            model.model.generation_head.vision_head.weight,
            model.model.generation_embeddings.weight,
            model.model.language_model.embed_tokens.weight,
            model.lm_head.weight,
        ):
            weight.mul_(20)
    model.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=2, pad_token_id=0, generation_kwargs={"boi_token_id": 4}
    )
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-janus"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_sciscore(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIPModel of 32 pixels with a tokenizer of letters, in the hub's layout."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-sciscore"
    small = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
    }
    letters = [chr(c) for c in range(97, 123)]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    end = len(words) - 1
    config = CLIPConfig(
        text_config={
            **small,
            "vocab_size": len(words),
            "bos_token_id": end - 1,
            "eos_token_id": end,
            "pad_token_id": end,
        },
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    model = CLIPModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(50))
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "unk_token": "<|endoftext|>"})
    )
    return folder


def _emu3(folder: Path, seed: int) -> None:
    """Write a random Emu3 checkpoint: 32 x 32 pixels are 4 x 4 of 64 codes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        Emu3Config,
        Emu3ForConditionalGeneration,
        Emu3ImageProcessor,
        Emu3Processor,
        Emu3TextConfig,
        Emu3VQVAEConfig,
        PreTrainedTokenizerFast,
    )

    marks = {
        "image_token": "<image>",
        "boi_token": "<|image start|>",
        "eoi_token": "<|image end|>",
        "image_wrapper_token": "<|image token|>",
        "eof_token": "<|extra_201|>",
    }
    special = ["<|pad|>", "<|bos|>", "<|eos|>", *marks.values(), "<|extra_200|>"]
    special += [f"<|visual token {code:06d}|>" for code in range(64)]
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    base.train_from_iterator(["a red circle and a blue square", " The score is 0 1"] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        extra_special_tokens=marks,
    )
    processor = Emu3Processor(Emu3ImageProcessor(min_pixels=32 * 32, max_pixels=64 * 64), tokenizer)
    torch.manual_seed(seed)
    model = Emu3ForConditionalGeneration(
        Emu3Config(
            vq_config=Emu3VQVAEConfig(
                codebook_size=64,
                base_channels=32,
                channel_multiplier=[1, 1, 1, 1],
                num_res_blocks=1,
                hidden_size=32,
                attn_resolutions=[3],
                temporal_downsample_factor=1,
            ),
            text_config=Emu3TextConfig(
                vocab_size=len(tokenizer),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=1024,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
            ),
            vocabulary_map=tokenizer.get_vocab(),
        )
    )
    # As for Janus: random heads are nearly uniform, and greedy choices should differ.
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
        model.get_input_embeddings().weight.mul_(20)
        for layer in model.model.text_model.layers:  # else a choice follows from the last token
            layer.self_attn.q_proj.weight.mul_(60)
            layer.self_attn.o_proj.weight.mul_(60)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_emu3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random pair of Emu3 checkpoints, in gen/ and und/."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-emu3"
    for seed, role in enumerate(("gen", "und")):
        _emu3(folder / role, seed)
    return folder


@pytest.fixture(scope="session")
def tiny_showo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Show-o in its published layout, with its two tokenizers in vq/ and text/: 24 x 24
    pixels are 6 x 6 of 64 codes."""
    import checkpoints

    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-showo"
    checkpoints.showo(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bagel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BAGEL in the published layout: 16 x 16 pixels, 16 tokens an image."""
    return bagels.write(tmp_path_factory.mktemp("checkpoints") / "tiny-bagel")


@pytest.fixture(scope="session")
def fix(start: Start) -> Callable[..., int | None]:
    """Run `gapbench fix ARGUMENTS` in a folder to its end; gives the exit code."""

    def call(folder: Path, *arguments: object) -> int | None:
        return finish(start(folder, "fix", *map(str, arguments)))

    return call


@pytest.fixture
def cli(
    start: Start, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `gapbench ARGS` as a process in a folder of its own."""

    def call(*args: str, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        logs = tmp_path_factory.mktemp("said")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        code = finish(start(cwd, *args, environment=environment, logs=logs))
        out, err = ((logs / name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess(args, code if code is not None else -1, out, err)

    return call


@pytest.fixture
def fresh_cli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `cli`, by an interpreter that has imported nothing: what the libraries read from the
    environment as they are imported is that of the test."""

    def call(*args: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
        return subprocess.run(
            [*CLI, *args], capture_output=True, text=True, env=env, check=False, timeout=300,
            cwd=tmp_path,
        )  # fmt: skip

    return call


@pytest.fixture
def user_task(tmp_path: Path) -> Callable[..., Path]:
    """A user's task folder around prompt records, of the shapes world's rules."""

    def make(records: list[object], name: str = "mine", **spec: object) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
        (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
        settings = {
            "title": "mine",
            "version": "1",
            "file": "prompts.jsonl",
            "judge": "pixel",
            "samples": 2,
            "tiers": {"easy": ["only"]},
            "question": "Does this original image describe {prompt}? Answer: The score is {x}.",
            **spec,
        }
        (folder / "task.yaml").write_text(json.dumps(settings))
        return folder

    return make
