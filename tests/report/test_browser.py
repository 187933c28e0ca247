"""The pages in a browser: what a person clicks and types. Runs where Playwright and Chromium are
installed: `pip install -c constraints.txt ".[browser]"` and Debian's chromium."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gapbench import open_run
from gapbench.report.page import write_report
from gapbench.report.view import Album, serve

from .conftest import ATTACK, CLI, ENV, ODD, Make, Said

api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
WIDTHS = {"desk": (1440, 900), "phone": (390, 740)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that may neither complain nor ask the network."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    heard: list[str] = []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("requestfailed", lambda request: heard.append(f"failed: {request.url[:200]}"))
    page.on("dialog", lambda dialog: (heard.append(dialog.message), dialog.dismiss()))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    yield page
    assert heard == []
    ours = ("file:", "data:", "http://127.0.0.1:")
    assert [url for url in asked if not url.startswith(ours)] == []
    context.close()


@pytest.fixture(scope="module")
def both(said_by: Said, pair: tuple[Path, Path]) -> str:
    file = pair[0].parent / "both.html"
    said_by("report", *pair, "--out", file)
    return file.as_uri()


def data(page: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page.locator("#data").text_content())
    return found


def faults(page: Any) -> list[str]:
    """Serious faults that axe-core finds in a page, dark and light."""
    found = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        result = axe.Axe().run(page).response
        found += [
            f"{scheme} {fault['id']}: {fault['nodes'][0]['html'][:200]}"
            for fault in result["violations"]
            if fault["impact"] in ("serious", "critical")
        ]
    return found


def visit(page: Any, address: str) -> None:
    page.goto(address)
    page.locator("#filters").scroll_into_view_if_needed()
    page.locator("[data-place='0']").wait_for()


def until(page: Any, condition: str) -> None:
    """Wait for an expression to hold; the page's policy forbids Playwright's own way."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(25)
    raise AssertionError(condition)


def shown(page: Any) -> int:
    return int(page.locator("#count").text_content().split(" of ")[0].replace(",", ""))


def test_filters(page: Any, both: str) -> None:
    visit(page, both)
    found = data(page)
    total = len(found["entries"]["prompt"])
    assert shown(page) == total
    prompts = [
        {name: values[place] for name, values in found["prompts"].items()}
        for place in found["entries"]["prompt"]
    ]
    run = found["runs"][1]
    page.select_option("#category", "shapes/colors")
    assert shown(page) == sum(p["category"] == "colors" for p in prompts)
    page.select_option("#category", "")
    page.select_option("#tier", "medium")
    assert shown(page) == sum(p["tier"] == "medium" for p in prompts)
    page.select_option("#run", "1")
    for code in ("10", "01", "00", "11"):
        page.select_option("#quadrant", code)
        wanted = [
            p["tier"] == "medium" and f"{own}{other}" == code
            for p, own, other in zip(prompts, run["own"], run["outside"][0], strict=True)
        ]
        assert shown(page) == sum(wanted)
    page.get_by_role("button", name="Clear").click()
    until(page, f"document.querySelector('#count').textContent.startsWith('{total} of')")
    page.select_option("#group", "010")
    assert shown(page) == found["groups"].count("010")
    page.select_option("#group", "")
    page.fill("#q", "RED circle")
    assert shown(page) == sum("red" in p["text"] and "circle" in p["text"] for p in prompts)
    page.fill("#q", "no such words")
    assert shown(page) == 0
    assert page.locator(".card").count() == 0


def test_order_by_confidence(page: Any, both: str) -> None:
    visit(page, both)
    first = sorted(data(page)["runs"][0]["p"])
    for order, wanted in (("yes", first[-1]), ("no", first[0])):
        page.select_option("#sort", order)
        assert f"{wanted:.2f}" in page.locator("[data-place='0'] .picture").first.text_content()


def test_keys(page: Any, both: str) -> None:
    visit(page, both)
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "q"
    page.locator("[data-place='0'] button").focus()
    place = "document.activeElement.closest('.card').dataset.place"
    page.keyboard.press("ArrowRight")
    assert page.evaluate(place) == "1"
    page.keyboard.press("ArrowDown")
    below = int(page.evaluate(place))
    assert below > 1
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(place) == "0"
    page.keyboard.press("End")
    last = len(data(page)["entries"]["prompt"]) - 1
    assert page.evaluate(place) == str(last)
    assert page.locator(f"[data-place='{last}']").is_visible()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    assert page.locator("#place").text_content().startswith("1 of ")
    page.keyboard.press("ArrowRight")
    assert page.locator("#place").text_content().startswith("2 of ")
    page.keyboard.press("Escape")
    # The dialog says that it has closed in a task of its own, after the key.
    until(page, f"!document.querySelector('#detail').open && {place} === '1'")


def test_before_and_after_side_by_side(page: Any, both: str, pair: tuple[Path, Path]) -> None:
    visit(page, both)
    assert page.locator("[data-place='0'] .picture img").count() == 2
    page.locator("[data-place='3'] button").click()
    images = page.locator("#detail-images img")
    assert images.count() == 2
    until(page, "[...document.querySelectorAll('#detail-images img')].every(i => i.naturalWidth)")
    for number, path in enumerate(pair):
        digest = open_run(path).frame()["image"][3]
        assert digest in images.nth(number).get_attribute("src")
    heads = page.locator("#detail-images h3").all_text_contents()
    assert [head.rpartition(" ")[2] for head in heads] == ["(before)", "(after)"]


def test_deep_links(page: Any, both: str) -> None:
    visit(page, both)
    page.fill("#q", "a")
    page.select_option("#tier", "easy")
    page.select_option("#sort", "unsure")
    count = shown(page)
    page.locator("[data-place='1'] button").click()
    title = page.locator("#detail-title").text_content()
    address = page.url
    page.goto("about:blank")
    page.goto(address)
    assert shown(page) == count
    assert page.input_value("#q") == "a"
    assert page.input_value("#sort") == "unsure"
    assert page.locator("#detail-title").text_content() == title
    assert page.locator("#place").text_content() == f"2 of {count}"
    page.goto(both + "#tier=nonsense&image=nowhere&quadrant=11")
    until(page, "document.querySelector('#quadrant').value === '11'")
    assert page.input_value("#tier") == ""
    assert not page.locator("#detail").is_visible()


@pytest.mark.parametrize("width", WIDTHS)
def test_layout_and_accessibility(page: Any, both: str, width: str, tmp_path: Path) -> None:
    wide, tall = WIDTHS[width]
    page.set_viewport_size({"width": wide, "height": tall})
    page.add_init_script(
        "window.shift = 0; new PerformanceObserver(list => { for (const e of list.getEntries()) "
        "window.shift += e.value; }).observe({type: 'layout-shift', buffered: true});"
    )
    visit(page, both)
    page.wait_for_timeout(300)
    assert page.evaluate("window.shift") < 0.01
    assert page.evaluate("document.documentElement.scrollWidth") <= wide
    tops = [page.locator(f"#{name}").bounding_box()["y"] for name in ("difficulty", "generation")]
    assert (tops[0] == tops[1]) == (width == "desk")
    hidden = "part => part.scrollWidth > part.clientWidth"
    assert page.locator("#changes details .scroll").evaluate(hidden) == (width == "phone")
    assert not page.locator("#difficulty .scroll").first.evaluate(hidden)
    page.set_viewport_size({"width": 1024, "height": tall})
    until(page, "document.documentElement.scrollWidth <= 1024")  # laid out anew in a moment
    page.set_viewport_size({"width": wide, "height": tall})
    page.locator("#gallery").scroll_into_view_if_needed()
    assert faults(page) == []
    page.locator(".card button").first.click()
    assert faults(page) == []
    page.screenshot(path=tmp_path / f"{width}.png")
    assert (tmp_path / f"{width}.png").stat().st_size > 5000


def test_texts_stay_texts(page: Any, odd: Make, tmp_path: Path) -> None:
    write_report([odd()], tmp_path / "r.html")
    visit(page, (tmp_path / "r.html").as_uri())
    assert faults(page) == []
    assert "run" not in page.locator("thead th").all_text_contents()  # one run needs no name
    assert page.locator("[data-place='0'] .prompt").text_content() == ATTACK
    for place, text in enumerate(ODD):
        page.evaluate(f"location.hash = 'image=' + encodeURIComponent('odd/{place}/0')")
        api.expect(page.locator("#detail-title")).to_be_visible()
        until(page, f"document.querySelector('#detail-title').textContent === {json.dumps(text)}")
    assert page.locator("img[src='x']").count() == 0
    assert page.locator("i").count() == 0


def test_only_what_is_seen_is_there(page: Any, odd: Make, tmp_path: Path) -> None:
    write_report([odd(("a",), count=2100)], tmp_path / "r.html")
    visit(page, (tmp_path / "r.html").as_uri())
    assert 0 < page.locator(".card").count() < 200
    page.locator(".card button").first.focus()
    page.keyboard.press("End")
    last = page.locator("[data-place='2099']")
    assert last.is_visible()
    # Beyond the thumbnails, the image comes from the run's folder.
    until(page, "document.querySelector('[data-place=\"2099\"] img').naturalWidth > 0")
    assert last.locator("img").get_attribute("src").endswith(".png")


def test_view(page: Any, odd: Make, tmp_path: Path) -> None:
    odd()
    odd(ODD[:2], name="other")
    with serve(Album(tmp_path)) as (address, forever):
        threading.Thread(target=forever, daemon=True).start()
        page.set_viewport_size({"width": 390, "height": 740})
        page.goto(address)
        assert faults(page) == []
        page.locator("li a").first.click()
        page.locator("tbody th a").first.click()
        assert page.locator("h1").text_content() == ATTACK
        assert page.locator("td img").count() == 2
        until(page, "[...document.querySelectorAll('td img')].every(i => i.naturalWidth)")
        assert faults(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.get_by_role("link", name="Next").click()
        page.get_by_role("link", name="All runs").click()
        assert page.locator("h1").text_content() == "gapbench view"


def test_labelling(page: Any, odd: Make, tmp_path: Path) -> None:
    run = odd().path
    process = subprocess.Popen(
        [*CLI, "label", str(run), "--rater", "<b>Ada</b>"], env=ENV, text=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        process.stdout.readline()
        page.goto(process.stdout.readline().strip())
        page.wait_for_selector("#yes:enabled")
        page.evaluate("document.querySelector('#prompt').textContent = 'word '.repeat(300)")
        assert faults(page) == []  # with a prompt that has to be scrolled
        page.reload()
        page.wait_for_selector("#yes:enabled")
        seen = []
        for number, key in enumerate("yn?1u"):
            until(
                page, f"document.querySelector('#progress').textContent.startsWith('{number} of')"
            )
            seen.append(page.locator("#prompt").text_content())
            page.keyboard.press(key)
        until(page, "document.querySelector('#progress').textContent.startsWith('5 of')")
        assert set(seen) < set(ODD)
        page.keyboard.press("ArrowLeft")
        assert page.locator("#unsure").get_attribute("aria-pressed") == "true"
        page.locator("#no").click()
        until(page, "document.querySelector('#status').textContent === 'Saved: no.'")
        page.keyboard.press("y")
        until(page, "document.querySelector('#progress').textContent.startsWith('6 of')")
        assert "All are labelled" in page.locator("#status").text_content()
        page.set_viewport_size({"width": 360, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.screenshot(path=tmp_path / "label.png")
    finally:
        os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=30)
    rows = [json.loads(line) for line in (run / "labels.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == ["yes", "no", "unsure", "yes", "unsure", "no", "yes"]
    assert {row["rater"] for row in rows} == {"<b>Ada</b>"}
