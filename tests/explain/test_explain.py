"""`gapbench explain` on a true pair of tiny models."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gapbench
from gapbench import GapbenchError
from gapbench.explain import words
from gapbench.explain.page import write_page
from gapbench.explain.run import explain
from gapbench.files import without_checksum

from .conftest import Pair, plant

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def found(made: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an explanation with a correction group: BEFORE accepts every second image, as
    planted, and AFTER rejects all."""
    folder = tmp_path_factory.mktemp("planted")
    for run, accepted in ((made.before, lambda number: number % 2 == 0), (made.after, bool)):
        shutil.copytree(run, folder / run.name)
        plant(folder / run.name, accepted)
    done = explain(folder / made.before.name, folder / made.after.name, pairs=3, out=folder / "out")
    write_page(done)
    return folder


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out" / "explain.json").read_text())
    return found


def test_every_figure_is_there(found: Path) -> None:
    told = read(found)
    assert sum(told["groups"].values()) == len(told["images"]) == 12
    assert (told["members"], told["controls"], told["others"]) == (3, 3, 0)
    assert told["fix"]["trained"] == "LoRA of rank 4, language-model"
    assert told["fix"]["dtype"] == "float64"
    assert told["fix"]["encoder"] == "the model's own towers, centred"
    members = {t["key"]: t for t in told["tested"] if t["matched"] is None}
    groups = {image["key"]: image["group"] for image in told["images"]}
    for t in told["tested"]:
        assert groups[t["key"]] == t["group"]
        assert (t["group"] == "010") is (t["matched"] is None)
        if t["matched"]:
            member = members[t["matched"]]
            assert t["category"] == member["category"]
            assert t["text"] != member["text"]
        assert t["text"] not in t["alternatives"]
        assert len(t["norms"]) == len(t["random_norms"]) == 1 + len(t["alternatives"]) == 5
    # Forward and backward mode agree on what they both compute.
    assert told["kernel"]["forward_against_backward"] < 1e-9
    for row in told["first_order"]:
        if row["share"] == 1e-7:
            assert row["ratio"] == pytest.approx(1, abs=1e-3)
    # The fix changed the model, and its adapter is what AFTER was run with.
    assert any(abs(image["likelihood"]) > 1e-3 for image in told["images"])
    assert told["alignment"]["before"] != told["alignment"]["after"]


def test_the_values_are_the_models_own(found: Path, made: Pair) -> None:
    from gapbench import load_model, open_run
    from gapbench.verdict import ANSWERS

    told, before = read(found), open_run(found / made.before.name)
    drawn = {g.image: g for g in before.folder.generations().values()}
    rows = before.frame().to_dict("records")[:3]
    questions = {p.id: p.question for p in before.plan.prompts}
    for place, when in ((str(made.fix), "after"), (told["fix"]["base"], "before")):
        model: Any = load_model(place, device="cpu")
        for row in rows:
            key = f"{row['task']}/{row['prompt']}/{row['sample']}"
            [mine] = [image for image in told["images"] if image["key"] == key]
            tokens = before.folder.tokens(str(drawn[row["image"]].tokens))
            likelihood = -model.generation_loss([row["text"]], tokens[None], [0]).item()
            picture = before.folder.image(row["image"])
            no, yes = model.judge([picture], [questions[row["prompt"]]], ANSWERS)[0]
            # Up to float32, in which transformers' norms and the saved checkpoint round.
            assert mine[f"likelihood_{when}"] == pytest.approx(likelihood, rel=1e-4)
            assert mine[f"verdict_{when}"] == pytest.approx(yes - no, abs=1e-3)


def test_the_fall_is_that_of_the_corrected_images_over_prompts(found: Path) -> None:
    told = read(found)
    fell: dict[str, list[float]] = {}
    for image in told["images"]:
        if image["group"] == "010":
            fall = image["likelihood_before"] - image["likelihood_after"]
            fell.setdefault(image["text"], []).append(fall)
    expected = np.mean([np.mean(falls) for falls in fell.values()])
    assert len(fell) > 1
    assert told["shift"]["fall"]["value"] == pytest.approx(expected, abs=1e-9)
    assert told["shift"]["fall"]["prompts"] == len(fell)


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_stands_alone(found: Path) -> None:
    text = (found / "out" / "explain.html").read_text("utf-8")
    tags = Tags(text).tags
    [policy] = [a["content"] for t, a in tags if t == "meta" and "http-equiv" in a]
    assert str(policy).startswith("default-src 'none'")
    for _, attributes in tags:
        for name in ("src", "srcset", "href"):
            assert str(attributes.get(name, "data:")).startswith(("data:", "#"))
    assert not any(tag == "script" for tag, _ in tags)
    for title in ("nearer to the", "nearest training pair", "a step?", "Do the two heads pull"):
        assert title in text
    assert len([1 for tag, a in tags if tag == "img" and a.get("class") == "small"]) == 6


def test_the_page_is_accessible_and_fits_a_phone(found: Path) -> None:
    api = pytest.importorskip("playwright.sync_api")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    chromium = shutil.which("chromium") or pytest.skip("no chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.goto((found / "out" / "explain.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert axe.Axe().run(page).response["violations"] == []


def test_what_a_prompt_says_is_text(found: Path, made: Pair, tmp_path: Path) -> None:
    attack = "</style><script>alert(1)</script><img src=x onerror=alert(1)>"
    done = explain(found / made.before.name, found / made.after.name, pairs=3, out=found / "out")
    for t in done.results["tested"]:
        t["text"] = attack
    text = write_page(replace(done, folder=tmp_path)).read_text("utf-8")
    assert "&lt;script&gt;alert(1)" in text
    tags = Tags(text).tags
    assert not any(tag == "script" or "onerror" in attributes for tag, attributes in tags)


def test_the_summary_says_what_holds(found: Path) -> None:
    told = read(found)
    lines = words.summary(told)
    assert len(lines) <= 14
    few = "6 images in the correction group: too little to say; 10 or more can tell."
    told["groups"]["010"], told["members"] = 6, 4
    assert words.summary(told)[0] == few
    told["members"] = 10
    assert "too little" not in words.summary(told)[0]
    pieces = told["evidence"]
    assert set(pieces) == {"prompts", "images", "kernel", "likelihood", "together"}
    assert all(p["verdict"] in ("holds", "reversed", "not shown", "n/a") for p in pieces.values())
    # A word follows its own figure; what else is told has the p of its own test.
    c = next(line for line in lines if line.startswith("(c) "))
    fall = told["shift"]["fall"]
    assert f"{-fall['value']:+.3g} [" in c.partition(f"nats: {pieces['likelihood']['verdict']}")[0]
    apart = told["shift"]["fall_below_control"]
    assert c.endswith(f"Below their controls' by {words.tested(apart)}")
    b = next(line for line in lines if line.startswith("(b) "))
    assert f"{words.interval(told['kernel']['log_ratio'])}: {pieces['kernel']['verdict']}" in b
    assert b.endswith(
        f"random training pair as Yu {words.tested(told['kernel']['log_ratio_random'])}"
    )
    ranks = told["effective_rank"]
    assert 1 < ranks["before"] != ranks["after"] > 1
    assert any(f"before {ranks['before']:.4g}, after {ranks['after']:.4g}" in x for x in lines)
    assert "shared-kernel account" in lines[-1]
    for piece in pieces.values():
        assert piece["verdict"] in lines[-1]


def test_a_killed_command_goes_on(found: Path, made: Pair, tmp_path: Path) -> None:
    [journal] = (found / "out" / "work").glob("*.jsonl")
    lines = journal.read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"align/' not in line and '"about"' not in line]
    cut = tmp_path / "out" / "work"
    cut.mkdir(parents=True)
    (cut / journal.name).write_text("".join(kept[:-4]) + '["pair/torn')
    done = explain(found / made.before.name, found / made.after.name, pairs=3, out=tmp_path / "out")
    again, told = done.results, read(found)
    assert json.loads((tmp_path / "out" / "explain.json").read_text()) == again
    for name in ("evidence", "similarity", "shift", "alignment", "groups"):
        assert close(again[name], told[name]), name
    # The same command once more loads nothing.
    written = (cut / journal.name).read_bytes()
    explain(found / made.before.name, found / made.after.name, pairs=3, out=tmp_path / "out")
    assert (cut / journal.name).read_bytes() == written


def close(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(close(one[k], two[k]) for k in one)
    if isinstance(one, float):
        return math.isclose(one, two, rel_tol=1e-6, abs_tol=1e-9)
    return bool(one == two)


def test_an_empty_correction_group_is_said_and_the_rest_shown(pair: Pair, cli: Cli) -> None:
    done = cli("explain", str(pair.before), str(pair.after), "--pairs", "2", "--out", "out")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 15
    assert lines[0].startswith(
        "Too little to say: the false-positive correction group (0, 1, 0) is"
    )
    assert lines[-2].startswith("Nothing is concluded about the shared-kernel account.")
    assert re.search(r"^\(b\) \|K\(Y0, Yu\)\| [\d.]+", done.stdout, re.M)
    assert "n/a: (a) prompts, (a) images, (c)" in lines[-2]
    assert "Traceback" not in done.stderr
    folder = Path(lines[-1].split("every number: ")[1]).parent
    page = (pair.before.parent / folder / "explain.html").read_text("utf-8")
    assert "is empty" in page
    (pair.before.parent / "trackio.py").write_text(
        "def init(name, **given): print('init', name)\n"
        "def log(figures): print(sorted(figures))\n"
        "def finish(): print('finish')\n"
    )
    # The figures of the comparison go into the fixed model's card; once more, they are replaced.
    for _ in range(2):
        compared = cli("compare", str(pair.before), str(pair.after), "--report-to", "trackio")
        [named] = re.findall("These figures are now in (.*)", compared.stderr)
        assert not named.startswith("/")
        assert named.endswith(f"{pair.fix.name}/README.md")
    assert f"init {pair.before.name} to {pair.after.name}\n" in compared.stderr
    assert gapbench.compare(pair.before, [pair.after])[0].is_fix
    for end in ("before", "after", "change", "p_holm"):
        assert f"'gap/non_unification_{end}'" in compared.stderr
    card = (pair.fix / "README.md").read_text()
    assert card.count("## Before and after\n\ntiny-janus before, fixed after: 12 images") == 1
    assert "Not compared yet" not in card
    assert card.count("**Verdict: ") == 1
    assert "nan" not in (pair.before.parent / folder / "explain.json").read_text().lower()


def refused(*culprits: str) -> Any:
    return pytest.raises(GapbenchError, match=".*".join(map(re.escape, culprits)))


def test_bad_input_is_told_in_one_line(pair: Pair, tmp_path: Path, cli: Cli) -> None:
    with refused("is given as BEFORE and as AFTER"):
        explain(pair.before, pair.before)
    with refused("holds other weights than"):  # the fix is not what BEFORE was run with
        explain(pair.after, pair.before, fix=str(pair.fix))
    with refused("holds no fix.json", "give its folder with --fix"):
        explain(pair.before, pair.after, fix=str(tmp_path))
    with refused("--encoder magic", "model, clip"):
        explain(pair.before, pair.after, encoder="magic")
    with refused("--encoder clip:nowhere", "no folder"):
        explain(pair.before, pair.after, encoder="clip:nowhere")
    assert not (pair.after / "explain").exists()
    with refused("--projection 8", "trained LoRA"):
        explain(pair.before, pair.after, projection=8)
    plan = without_checksum(json.loads((pair.after / "plan.json").read_text()))
    plan["tasks"] = dict.fromkeys(plan["tasks"], "0.9")
    (pair.after / "plan.json").write_text(json.dumps(plan))
    with refused("differ", "of version 2.0 and 0.9", "share no image"):
        explain(pair.before, pair.after)
    done = cli("explain", str(pair.before), str(pair.after))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gapbench: ")
    assert len(done.stderr.splitlines()) == 1
    done = cli("explain", str(pair.before), str(pair.after), "--device", "abacus")
    assert done.returncode == 2
    assert "--device must be auto, cpu, cuda, cuda:1 or mps, not 'abacus'" in done.stderr


def moved(fix: Path, to: Path) -> tuple[Path, dict[str, Any]]:
    shutil.copytree(fix, to)
    return to, json.loads((to / "fix.json").read_text())


def test_a_fix_of_another_base_is_refused(pair: Pair, tmp_path: Path) -> None:
    folder, record = moved(pair.fix, tmp_path / "elsewhere")
    record["base"]["fingerprint"] = "0" * 64
    (folder / "fix.json").write_text(json.dumps(record))
    with refused("the model that it was trained on is not found", "has other weights"):
        explain(pair.before, pair.after, fix=str(folder))
    record["done"] = False
    (folder / "fix.json").write_text(json.dumps(record))
    with refused("the fix is not finished"):
        explain(pair.before, pair.after, fix=str(folder))
    meta = without_checksum(json.loads((pair.before / "run.json").read_text()))
    meta["identity"]["model"] = "1" * 64
    (pair.before / "run.json").write_text(json.dumps(meta))
    with refused("is a run of another model"):
        explain(pair.before, pair.after)


def test_whole_weights_and_dpo_pairs(found: Path, made: Pair, tmp_path: Path) -> None:
    """The same weights as if a DPO had trained them whole, exactly and projected."""
    from datasets import load_from_disk

    folder, record = moved(made.fix, tmp_path / "whole")
    record["settings"] |= {"lora": 0, "method": "dpo"}
    (folder / "fix.json").write_text(json.dumps(record))
    rows: Any = load_from_disk(folder / "data")
    names = {name: f"{name}_chosen" for name in ("image", "tokens", "seed", "p_yes")}
    rows.rename_columns(names).save_to_disk(tmp_path / "data")
    shutil.rmtree(folder / "data")
    (tmp_path / "data").rename(folder / "data")
    told = {image["key"]: image for image in read(found)["images"]}
    for rank in (None, 8):
        again = explain(
            found / made.before.name, found / made.after.name, pairs=1, fix=str(folder),
            projection=rank, out=tmp_path / "out",
        ).results  # fmt: skip
        assert again["fix"]["projection"] == rank
        assert again["fix"]["trained"] == "the weights themselves, language-model"
        layers = ["layer 0", "layer 1"]
        assert again["layers"] == (layers if rank else ["embeddings", *layers, "final norm"])
        for image in again["images"]:
            for value in ("likelihood_after", "verdict_after"):
                assert image[value] == pytest.approx(told[image["key"]][value], rel=1e-4, abs=1e-3)
        smallest = [row["ratio"] for row in again["first_order"] if row["share"] == 1e-7]
        assert smallest == pytest.approx([1, 1], abs=1e-3)


def test_a_pair_shares_no_parameters(tiny_emu3: Path, tmp_path: Path, cli: Cli) -> None:
    run = gapbench.run(
        gapbench.load_model(str(tiny_emu3), recipe={"image_area": 1024}), "shapes/colors",
        limit=1, samples=1, out=tmp_path,
    )  # fmt: skip
    shutil.copytree(run.path, tmp_path / "after")
    done = cli("explain", str(run.path), "after")
    assert (done.returncode, done.stdout) == (2, "")
    assert "parameters that drawing and judging share" in done.stderr
    assert "a pair: it draws with one set of weights and judges with another" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_models_without_gradients_are_refused(pair: Pair) -> None:
    file = pair.after / "run.json"
    meta = without_checksum(json.loads(file.read_text()))
    meta["model_about"]["given"] = "server:http://localhost:1/v1#some"
    file.write_text(json.dumps(meta))
    with refused("lacks", "train", "gradients of both heads"):
        explain(pair.before, pair.after)


def test_more_pairs_keep_those_there_are(found: Path, made: Pair, tmp_path: Path) -> None:
    shutil.copytree(found / "out", tmp_path / "out")
    told = read(found)
    more = explain(
        found / made.before.name, found / made.after.name, pairs=4, out=tmp_path / "out"
    ).results
    assert more["members"] == 4
    old = {t["key"]: t for t in told["tested"]}
    assert [t["key"] for t in more["tested"]][: len(old)] == list(old)
    assert np.isfinite([t["norms"][0] for t in more["tested"]]).all()
