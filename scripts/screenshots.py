"""The pictures of docs/: the report of two runs, and the label page, in Debian's chromium.

python scripts/screenshots.py runs/BEFORE runs/AFTER
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
import threading
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from gapbench import open_run
from gapbench.report.label import Labels, serve
from gapbench.report.page import write_report

DOCS = Path(__file__).parent.parent / "docs"


def save(page: Page, name: str) -> None:
    """A screenshot in 256 colours: a third of the size."""
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    shot.quantize(256, dither=Image.Dither.NONE).save(DOCS / name, optimize=True)


def main(before: str, after: str) -> None:
    runs = [open_run(before), open_run(after)]
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        file = Path(place) / "report.html"
        write_report(runs, file)
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = chromium.new_page(viewport={"width": 1200, "height": 760})
        page.goto(file.as_uri())
        page.select_option("#tier", "medium")
        for name, part in (("figures", "#difficulty"), ("gallery", "#filters")):
            page.evaluate(f"document.querySelector('{part}').scrollIntoView()")
            page.wait_for_timeout(500)
            save(page, f"report-{name}.png")
        page.locator(".card button").first.click()
        page.wait_for_timeout(500)
        save(page, "report-image.png")
        phone = chromium.new_page(viewport={"width": 360, "height": 740}, color_scheme="dark")
        phone.goto(file.as_uri() + "#tier=medium")
        phone.evaluate("document.querySelector('#count').scrollIntoView()")
        phone.wait_for_timeout(500)
        save(phone, "report-phone.png")
        with serve(Labels(runs[0], "nobody")) as (address, forever):
            threading.Thread(target=forever, daemon=True).start()
            phone.goto(address)
            phone.wait_for_timeout(500)
            save(phone, "label.png")
        chromium.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
