"""The board's page in Chromium, where the extra `browser` is installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gapbench.leaderboard.board import page as written
from gapbench.leaderboard.submission import submissions

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
pytestmark = pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")


@pytest.fixture
def page(submitted: Path, tmp_path: Path) -> Iterator[Any]:
    """The page of a submission with answers to questions, opened from disk; at the end nothing was
    asked for or said."""
    file = tmp_path / "leaderboard.html"
    file.write_text(written(submissions(submitted.parent)), encoding="utf-8")
    said: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        opened = browser.new_page(viewport={"width": 390, "height": 800})
        opened.on("console", lambda message: said.append(message.text))
        opened.on("pageerror", lambda error: said.append(str(error)))
        opened.on("request", lambda request: said.append(request.url))
        opened.goto(file.as_uri())
        yield opened
        browser.close()
    assert [each for each in said if not each.startswith("data:")] == [file.as_uri()]


def models(page: Any, board: str) -> list[str]:
    rows = page.locator(f"section[data-board='{board}'] tbody tr:visible th").all()
    return [row.inner_text() for row in rows]


def test_it_filters_and_counts(page: Any) -> None:
    assert page.text_content("#count") == "28 of 28 rows"
    page.uncheck("#baselines")
    assert page.text_content("#count") == "16 of 28 rows"
    page.fill("#text", "Show-O")
    assert page.text_content("#count") == "5 of 28 rows"
    page.fill("#text", "")
    page.select_option("#board", "0")
    assert models(page, "0") == ["janus-mini"]
    assert models(page, "reported") == []


def test_it_sorts_both_ways_and_keeps_what_has_no_figure_last(page: Any) -> None:
    page.select_option("#board", "reported")
    head = page.locator("section[data-board=reported] thead th").nth(2)
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    first = models(page, "reported")
    assert first[0] == "show-o, c-sft"
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert models(page, "reported") == first[::-1]
    page.select_option("#board", "0")
    weak = page.locator("section[data-board='0'] thead th").nth(5)
    for _ in range(2):
        weak.locator("button").click()
        assert models(page, "0")[-1].startswith("accepts everything")


def test_it_fits_a_phone_and_is_accessible(page: Any) -> None:
    page.locator("summary").click()
    assert page.locator("details tbody th").first.inner_text() == "all questions"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    scrolling = page.locator(".scroll").first
    assert scrolling.evaluate("part => part.scrollWidth > part.clientWidth")
    assert "more" in scrolling.evaluate("part => getComputedStyle(part).backgroundImage")
    grounds = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert axe.Axe().run(page).response["violations"] == []
    assert len(grounds) == 2
