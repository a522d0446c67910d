"""How fast the largest page opens and scrolls: 32 layers of 64 experts, in a headless Chromium.

Opening is until the load event's end, and until the page says that it is ready; scrolling is by mouse wheel from top to
bottom, the gaps between frames taken by requestAnimationFrame.

    PYTHONPATH=. python benchmarks/report_page.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright
from tests.diagnoses import certificate, diagnosis, run

from moesaic.report import write

LOADED = "performance.getEntriesByType('navigation')[0].loadEventEnd"
WATCH = """() => {
  window.gaps = [];
  let last = performance.now();
  const step = (now) => { window.gaps.push(now - last); last = now; requestAnimationFrame(step); };
  requestAnimationFrame(step);
}"""
STEP, PAUSE = 300, 50
"""Pixels and milliseconds of a turn of the wheel."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as driver:
        large = diagnosis(32, 64, texts=12, tokens=400, points=1000)
        file, _ = write(Path(temporary, "r.html"), large, certificate(), run(layers=32))
        print(f"{file.stat().st_size / 1e6:.2f} MB")
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for _ in range(given.rounds):
            page = browser.new_page(viewport={"width": 1200, "height": 900})
            page.goto(file.as_uri())
            page.wait_for_selector("html[data-ready]")
            loaded, ready = page.evaluate(LOADED), page.evaluate("performance.now()")
            gaps = scrolled(page)
            print(f"loaded in {loaded:.0f} ms, ready in {ready:.0f} ms; {len(gaps)} frames while scrolling, ", end="")
            print(f"median gap {statistics.median(gaps):.0f} ms, longest {max(gaps):.0f} ms", flush=True)
            page.close()
        browser.close()


def scrolled(page: Page) -> list[float]:
    """Scroll to the end; return the milliseconds between frames."""
    page.mouse.move(600, 450)
    page.evaluate(WATCH)
    at = 0
    while at < page.evaluate("document.documentElement.scrollHeight"):  # it grows as figures are drawn
        page.mouse.wheel(0, STEP)
        page.wait_for_timeout(PAUSE)
        at += STEP
    return list(page.evaluate("window.gaps"))


if __name__ == "__main__":
    main()
