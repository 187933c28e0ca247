"""Reference images: those of shapes show their prompts, and a folder's are checked."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gapbench import GapbenchError, load_task
from gapbench.judges.pixel import PixelJudge, read
from gapbench.tasks.references import made, scene
from gapbench.types import Prompt

UserTask = Callable[..., Path]
RED = {"text": "a plum", "id": "a", "reference": "images/red.png"}


@pytest.mark.parametrize(
    ("task", "split", "count"),
    [
        ("shapes", "test", 440), ("shapes", "validation", 220), ("shapes", "train", 2400),
        ("shapes@1.1", "test", 440),
    ],
)  # fmt: skip
def test_each_prompt_of_shapes_has_one_that_shows_it_and_nothing_else(
    task: str, split: str, count: int
) -> None:
    loaded = load_task(task)
    prompts = loaded.prompts(split)
    shown = loaded.references(prompts)
    images = [pixels(shown[prompt.id]) for prompt in prompts]
    answers = PixelJudge().judge([Image.fromarray(each) for each in images], prompts)
    assert [answer.verdict for answer in answers] == [1] * count
    for prompt, image in zip(prompts, images, strict=True):
        sprites, blobs = read(image)
        assert not blobs
        assert len(sprites) == sum(item["count"] for item in prompt.requirement["include"])


def test_it_depends_on_the_prompt_alone() -> None:
    loaded = load_task("shapes")
    prompts = loaded.prompts()[:40]
    both = loaded.references(prompts), loaded.references(prompts[::-1])
    for prompt in prompts:
        one, other = (pixels(each[prompt.id]) for each in both)
        assert np.array_equal(one, other)
    cells = {min(scene(prompt.requirement, prompt.text)) for prompt in prompts}
    assert len(cells) > 3


def test_what_no_scene_shows_is_told() -> None:
    crowd = {"include": [{"shape": "circle", "count": 10}]}
    against = {**crowd, "include": [{"shape": "circle", "count": 1}], "exclude": [{"count": 1}]}
    for requirement in (crowd, against):
        prompt = Prompt(
            id="a", task="t", category="c", tier="easy", text="x", question="q",
            requirement=requirement,
        )  # fmt: skip
        with pytest.raises(GapbenchError, match="no scene of the shapes world was found"):
            made(prompt)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/etc/hostname", "'/etc/hostname' must be a path inside"),
        ("../secret.png", "'../secret.png' must be a path inside"),
        ("link.png", "'link.png' must be a path inside"),
        ("", "'' must be a path inside"),
        ("a" * 5000, "File name too long"),
        ("images", "images is missing or is not a file"),
        ("images/gone.png", "gone.png is missing or is not a file"),
        (7, "the reference 7 is not a text"),
    ],
)
def test_a_file_has_to_be_there_and_inside(
    user_task: UserTask, tmp_path: Path, path: object, said: str
) -> None:
    folder = with_images(user_task, [{"id": "a", "text": "a plum", "reference": path}])
    (tmp_path / "secret.png").touch()
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(GapbenchError, match=r"prompts\.jsonl:1") as caught:
        load_task(str(folder)).prompts()
    assert said in str(caught.value)


def test_all_prompts_have_one_or_none(user_task: UserTask) -> None:
    folder = with_images(user_task, [RED, {"text": "a pear", "id": "b"}])
    with pytest.raises(GapbenchError, match=r"prompts.jsonl:2: no reference, and .*:1 has one"):
        load_task(str(folder)).prompts()


def test_a_split_is_pinned_with_its_images(user_task: UserTask) -> None:
    def digest() -> str:
        with pytest.raises(GapbenchError, match="changed prompts need a new version") as caught:
            load_task(str(folder)).prompts()
        return str(caught.value).split(" with sha256 ")[1][:64]

    folder = with_images(user_task, [RED], splits={"test": {"prompts": 1, "sha256": "0" * 64}})
    known = digest()
    Image.new("RGB", (8, 8), "blue").save(folder / "images" / "red.png")
    assert digest() != known


def test_what_is_no_image_is_told_before_anything_is_drawn(
    cli: Callable[..., subprocess.CompletedProcess[str]], user_task: UserTask, tmp_path: Path
) -> None:
    requirement = {"include": [{"shape": "circle", "count": 1}]}
    folder = with_images(user_task, [{**RED, "requirement": requirement}])
    (folder / "images" / "red.png").write_text("no image")
    done = cli("run", "--tasks", str(folder), "--own", "questions", "--out", str(tmp_path / "runs"))
    assert done.returncode == 2
    assert "red.png: broken image, no PNG, JPEG, WEBP" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def with_images(user_task: UserTask, records: Sequence[object], **spec: object) -> Path:
    """A task folder with a red picture."""
    folder = user_task(records, **spec)
    (folder / "images").mkdir()
    Image.new("RGB", (8, 8), "red").save(folder / "images" / "red.png")
    return folder


def pixels(reference: object) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    assert isinstance(reference, np.ndarray)
    return reference
