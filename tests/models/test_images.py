"""Images drawn elsewhere as a model."""

from __future__ import annotations

import json
import os
import random
import struct
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gapbench.models.images import ImagesModel
from gapbench.types import GapbenchError

PROMPTS = ("a photo of a bench", "a green bench and a blue_ish bowl.")
Write = Callable[[Path], Path]


def color(prompt: str, sample: int) -> tuple[int, int, int]:
    return (PROMPTS.index(prompt) * 50, sample * 10, 7)


def save(file: Path, prompt: str, sample: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), color(prompt, sample)).save(file)


def geneval(root: Path) -> Path:
    """The second prompt's samples start at 1 and have one more digit."""
    for index, prompt in enumerate(PROMPTS):
        folder = root / f"{index:05d}"
        for sample in range(11):
            save(folder / f"samples/{sample + index:0{4 + index}d}.png", prompt, sample)
        (folder / "metadata.jsonl").write_text(json.dumps({"tag": "x", "prompt": prompt}))
        (folder / "samples/grid.png").write_bytes(b"")
        (folder / "grid.png").write_bytes(b"")
    (root / "notes").mkdir()
    return root


def compbench(root: Path) -> Path:
    """Eleven images a prompt, numbered on and on."""
    for index, prompt in enumerate(PROMPTS):
        for sample in range(11):
            save(root / f"samples/{prompt}_{index * 11 + sample:06d}.png", prompt, sample)
    (root / "samples/README.txt").write_text("")
    return root


def flat(root: Path) -> Path:
    compbench(root / "inner")
    return root / "inner/samples"


def manifest(root: Path) -> Path:
    lines = []
    for prompt in PROMPTS:
        for sample in range(11):
            path = f"{PROMPTS.index(prompt)}/any name {sample}.png"
            save(root / path, prompt, sample)
            lines.append({"prompt": prompt, "sample": sample, "image": path, "seed": 5})
    random.Random(0).shuffle(lines)
    (root / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return root


def bound(root: Path, samples: int = 11) -> ImagesModel:
    model = ImagesModel(root)
    model.bind({(p, 1000 + s): s for p in PROMPTS for s in range(samples)})
    return model


@pytest.mark.parametrize("write", [geneval, compbench, flat, manifest])
def test_each_prompt_and_sample_gets_its_image(write: Write, tmp_path: Path) -> None:
    model = bound(write(tmp_path))
    assert model.capabilities == {"generate"}
    model.load()
    asked = [(p, s) for s in (10, 0, 9, 2) for p in PROMPTS[::-1]]
    drawings = model.generate([p for p, _ in asked], [1000 + s for _, s in asked])
    for (prompt, sample), drawing in zip(asked, drawings, strict=True):
        assert drawing.image.mode == "RGB"
        assert drawing.image.getpixel((3, 3)) == color(prompt, sample)
        assert (drawing.effective_prompt, drawing.tokens, drawing.logprob) == (prompt, None, None)
    model.release()


def test_the_fingerprint_is_of_contents_and_names(tmp_path: Path) -> None:
    first, second = geneval(tmp_path / "a"), geneval(tmp_path / "b")
    (first / "notes/more.txt").write_text("not read")
    made = ImagesModel(first)
    assert made.name == "images-a"
    assert made.recipe == {"layout": "geneval"}
    assert made.fingerprint == ImagesModel(second).fingerprint
    save(second / "00000/samples/0003.png", PROMPTS[1], 1)
    changed = ImagesModel(second).fingerprint
    (first / "00000/metadata.jsonl").write_text('{"prompt": "another"}')
    assert len({made.fingerprint, changed, ImagesModel(first).fingerprint}) == 3


def test_what_is_missing_is_counted_and_named(tmp_path: Path) -> None:
    model = ImagesModel(geneval(tmp_path))
    wanted = {(p, s): s for p in (*PROMPTS, "a cat") for s in range(13)}
    with pytest.raises(GapbenchError, match="17 of 39 images are missing") as error:
        model.bind(wanted)
    assert f"first sample 11 of {PROMPTS[0]!r}" in str(error.value)
    with pytest.raises(GapbenchError, match="call bind first"):
        model.generate([PROMPTS[0]], [0])


def test_it_neither_judges_nor_replies(tmp_path: Path) -> None:
    model = ImagesModel(geneval(tmp_path))
    assert model.refuses("anything") is None
    with pytest.raises(GapbenchError, match="lacks judge_logits"):
        model.judge([], [], [])
    with pytest.raises(GapbenchError, match="lacks judge_text"):
        model.reply([], [])


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(GapbenchError, match="is not a folder"):
        ImagesModel(tmp_path / "nowhere")
    with pytest.raises(GapbenchError, match="no images in a known layout"):
        ImagesModel(tmp_path)


# -- what a manifest may not say ----------------------------------------------------------------


def one(root: Path, **row: object) -> Path:
    root.mkdir(exist_ok=True)
    save(root / "a.png", PROMPTS[0], 0)
    line = json.dumps({"prompt": PROMPTS[0], "sample": 0, "image": "a.png", **row})
    (root / "manifest.jsonl").write_text(line + "\n")
    return root


@pytest.mark.parametrize(
    "path", ["../secret.png", "x/../../secret.png", "/etc/passwd", "", "..", "a\0b", "link.png",
             "folder/secret.png"],
)  # fmt: skip
def test_paths_stay_in_the_folder(tmp_path: Path, path: str) -> None:
    save(tmp_path / "secret.png", PROMPTS[0], 0)
    root = one(tmp_path / "in", image=path)
    (root / "x").mkdir()
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "folder").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(GapbenchError, match=r"manifest.jsonl:1: .* must be a path inside"):
        ImagesModel(root)


def test_links_are_refused_in_every_layout_and_after_the_check(tmp_path: Path) -> None:
    save(tmp_path / "secret.png", PROMPTS[0], 0)
    root = geneval(tmp_path / "in")
    model = bound(root)
    file = root / "00000/samples/0000.png"
    file.unlink()
    file.symlink_to(tmp_path / "secret.png")
    with pytest.raises(GapbenchError, match="must be a path inside"):
        model.generate([PROMPTS[0]], [1000])
    with pytest.raises(GapbenchError, match="must be a path inside"):
        ImagesModel(root)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"sample": "0"}, "sample is '0', not int"),
        ({"sample": True}, "sample is True, not int"),
        ({"sample": -1}, "is negative"),
        ({"prompt": None}, "prompt is None"),
        ({"image": 3}, "image is 3"),
        ({"image": "b.png"}, "b.png is missing"),
        ({"image": "pipe"}, "pipe is missing or is not a file"),
        ({"path": "a.png"}, "unknown key 'path'"),
    ],
)
def test_broken_manifest_lines(tmp_path: Path, row: dict[str, object], why: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(GapbenchError, match=f"manifest.jsonl:1: .*{why}"):
        ImagesModel(one(tmp_path, **row))


def test_broken_manifests(tmp_path: Path) -> None:
    root = one(tmp_path)
    line = (root / "manifest.jsonl").read_text()
    for text, why in (("{\n", "not JSON"), ("[]\n", "not a JSON object"), (line, "given twice")):
        (root / "manifest.jsonl").write_text(line + "\n" + text)
        with pytest.raises(GapbenchError, match=f"manifest.jsonl:3: .*{why}"):
            ImagesModel(root)


def test_metadata_without_a_prompt(tmp_path: Path) -> None:
    root = geneval(tmp_path)
    (root / "00001/metadata.jsonl").write_text('{"tag": "x"}')
    with pytest.raises(GapbenchError, match=r"00001/metadata.jsonl: no text 'prompt'"):
        ImagesModel(root)


# -- what an image may not be -------------------------------------------------------------------


def bomb(width: int, height: int) -> bytes:
    """A small valid PNG of that size, one bit a pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = zlib.compress(bytes(1 + (width + 7) // 8) * height, 9)
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(20_000, 20_000), (9_500, 9_500), (8_193, 8_192)])
def test_bombs_are_refused_before_they_unpack(tmp_path: Path, size: tuple[int, int]) -> None:
    root = one(tmp_path)
    (root / "a.png").write_bytes(bomb(*size))
    with pytest.raises(GapbenchError, match=r"a.png: the image has more than 67,108,864 pixels"):
        ImagesModel(root)


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"<svg/>", b"%!PS-Adobe-3.0 EPSF"]
)
def test_files_that_are_no_images_are_named(tmp_path: Path, data: bytes) -> None:
    root = one(tmp_path)
    (root / "a.png").write_bytes(data)
    with pytest.raises(GapbenchError, match=r"a.png: broken image"):
        ImagesModel(root)


def test_truncated_pixels_are_named(tmp_path: Path) -> None:
    root = one(tmp_path)
    Image.effect_noise((64, 64), 90).save(root / "a.png")
    data = (root / "a.png").read_bytes()
    (root / "a.png").write_bytes(data[: len(data) // 2])
    model = ImagesModel(root)
    model.bind({(PROMPTS[0], 1): 0})
    with pytest.raises(GapbenchError, match=r"a.png: broken image"):
        model.generate([PROMPTS[0]], [1])


BENCH = PROMPTS[0]


def first(root: Path, prompt: str = BENCH) -> Image.Image:
    """The first image of a prompt, as the model hands it out."""
    model = ImagesModel(root)
    model.bind({(prompt, 1): 0})
    return model.generate([prompt], [1])[0].image


@pytest.mark.parametrize("name", ["00000.jpg", "0.JPEG", "00000.PNG", "00000.webp"])
def test_pictures_of_other_endings_count(tmp_path: Path, name: str) -> None:
    save(tmp_path / "00000/samples" / name, BENCH, 3)
    (tmp_path / "00000/metadata.jsonl").write_text(json.dumps({"prompt": BENCH}))
    assert first(tmp_path).size == (6, 5)


def test_two_files_of_one_number_are_told(tmp_path: Path) -> None:
    for name in ("00000.png", "00000.jpg"):
        save(tmp_path / "00000/samples" / name, BENCH, 0)
    (tmp_path / "00000/metadata.jsonl").write_text(json.dumps({"prompt": BENCH}))
    with pytest.raises(GapbenchError, match=r"00000\.(jpg|png) and .* are image 0 of one prompt"):
        ImagesModel(tmp_path)


def test_a_rewritten_prompt_is_known_by_what_it_requires(tmp_path: Path) -> None:
    record = {"tag": "single_object", "include": [{"class": "bench", "count": 1}]}
    save(tmp_path / "00000/samples/00000.png", BENCH, 4)
    text = "a photo of a bench. It stands in soft light."
    (tmp_path / "00000/metadata.jsonl").write_text(json.dumps({**record, "prompt": text}))
    model = ImagesModel(tmp_path)
    model.bind({(BENCH, 1): 0, (text, 2): 0})
    drawings = model.generate([BENCH, text], [1, 2])
    assert [drawing.effective_prompt for drawing in drawings] == [text, text]
    assert drawings[0].image.getpixel((0, 0)) == color(BENCH, 4)


def test_names_as_macos_writes_them(tmp_path: Path) -> None:
    prompt = "a café with a green door"
    name = unicodedata.normalize("NFD", prompt)
    Image.new("RGB", (3, 3), "red").save(tmp_path / f"{name}_000000.png")
    (tmp_path / f"._{name}_000000.png").write_bytes(b"\0\5\26\7Mac")
    assert first(tmp_path, prompt).getpixel((0, 0)) == (255, 0, 0)


def test_links_lead_into_the_hub_cache_s_own_blobs_alfirst(tmp_path: Path) -> None:
    blobs, shot = tmp_path / "repo/blobs", tmp_path / "repo/snapshots/abc"
    blobs.mkdir(parents=True)
    shot.mkdir(parents=True)
    Image.new("RGB", (3, 3), "red").save(blobs / "f00", "PNG")
    (shot / f"{BENCH}_0.png").symlink_to("../../blobs/f00")
    assert first(shot).getpixel((0, 0)) == (255, 0, 0)
    (shot / f"{BENCH}_0.png").unlink()
    (tmp_path / "secret.png").write_bytes((blobs / "f00").read_bytes())
    (shot / f"{BENCH}_0.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(GapbenchError, match="through no link"):
        ImagesModel(shot)


def picture(kind: str, file: Path) -> None:
    """A picture that a viewer shows red on the left and blue on the right, or grey 128."""
    both = np.zeros((4, 8, 3), np.uint8)
    both[:, :4], both[:, 4:] = (255, 0, 0), (0, 0, 255)
    image = Image.fromarray(both)
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6  # stored on its side: to be turned clockwise
        image.transpose(Image.Transpose.ROTATE_90).save(file, exif=exif)
    elif kind == "16 bit":
        Image.fromarray(np.full((4, 8), 0x8080, np.uint16)).save(file)
    elif kind == "transparent":
        clear = np.dstack([both, np.full((4, 8), 255, np.uint8)])
        clear[0] = (9, 9, 9, 0)
        Image.fromarray(clear).save(file)
    elif kind == "palette":
        flat = image.quantize(2)
        flat.save(file, transparency=flat.getpixel((0, 0)))
    else:
        image.convert(kind).save(file, quality=100)


@pytest.mark.parametrize("kind", ["turned", "16 bit", "transparent", "palette", "CMYK"])
def test_pictures_are_as_viewers_show_them(tmp_path: Path, kind: str) -> None:
    picture(kind, tmp_path / f"{BENCH}_0.{'jpg' if kind == 'CMYK' else 'png'}")
    image = first(tmp_path)
    assert image.size == (8, 4)
    left, right, top = (image.getpixel(place) for place in ((1, 3), (6, 3), (1, 0)))
    if kind == "16 bit":
        assert left == right == (128, 128, 128)
    elif kind == "palette":
        assert (left, right) == ((255, 255, 255), (0, 0, 255))
    else:
        assert left[0] > 240
        assert right[2] > 240
        assert max(left[1:]) < 15
    if kind == "transparent":
        assert top == (255, 255, 255)
