"""The docs' site in Chromium: complete, quiet, and nothing asked of another host. Runs where the
extras `browser` and `docs` and Debian's chromium are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("mkdocs")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
ROOT = Path(__file__).parent.parent
PAGES = sorted(page.stem for page in (ROOT / "docs").glob("*.md"))


class Quiet(SimpleHTTPRequestHandler):
    """A server that does not tell every request."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the built site."""
    place = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "--site-dir", str(place)],
        cwd=ROOT, check=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(place)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_every_page_is_quiet_and_fits(browser: Any, site: str, width: int, scheme: str) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce"
    )
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    opened = {}
    for name in PAGES:
        # A page of its own each, all at once: what leaving one cuts off is no fault of it, and
        # they grow quiet side by side.
        page, heard = context.new_page(), []
        page.on("console", lambda message, heard=heard: heard.append(message.text))
        page.on("pageerror", lambda error, heard=heard: heard.append(str(error)))
        page.on("requestfailed", lambda request, heard=heard: heard.append(request.url))
        page.goto(f"{site}/{name}.html")
        opened[name] = page, heard
    for name, (page, heard) in opened.items():
        page.wait_for_load_state("networkidle")
        assert page.locator("h1").count() == 1, name
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        formulas = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8").count("```math")
        assert page.locator("math").count() == formulas, name
        assert not page.get_by_text("\\text{").count(), name
        assert heard == [], name
    context.close()
    assert [url for url in asked if not url.startswith((site, "data:", "blob:"))] == []


def test_the_reference_is_made_from_the_code_and_can_be_searched(browser: Any, site: str) -> None:
    page = browser.new_page()
    page.goto(f"{site}/api.html")
    signature = page.locator("[id='gapbench.types.Rates'] ~ .doc-signature").first
    assert "n_prompts: int" in signature.inner_text()
    page.locator(".md-search__input").fill("kappa")
    found = page.locator(".md-search-result__item a").first
    found.wait_for()
    assert "concepts.html" in (found.get_attribute("href") or "")
    page.close()
