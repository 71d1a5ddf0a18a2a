"""A picture of the page on a running server: an answer with the card of a token open.

    crossroads serve &
    python benchmarks/page_screenshot.py http://127.0.0.1:8000 docs/page.png
    python benchmarks/page_screenshot.py http://127.0.0.1:8000 phone.png --phone --dark

The Chromium is /usr/bin/chromium, or the one that CHROMIUM names.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from playwright.sync_api import Page, ViewportSize, sync_playwright

PROMPT = "Tom has 3 boxes of 12 eggs and drops 7 of them. How many are whole? Explain briefly."
SECONDS = 300
DESKTOP: ViewportSize = {"width": 1280, "height": 860}
PHONE: ViewportSize = {"width": 390, "height": 844}

# A token that the large model wrote instead of another, near the middle of the answer.
TELLING = """() => {
  const all = [...document.querySelectorAll(".answer > .tokens > .token")];
  const changed = all.filter((e) => e.dataset.writer === "large" && !("kept" in e.dataset));
  const found = changed[Math.floor(changed.length / 3)] ?? all[Math.floor(all.length / 3)];
  found.scrollIntoView({ block: "center" });
  return all.indexOf(found);
}"""


def main() -> None:
    """Ask, wait for the end of the answer, open a card, take the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--phone", action="store_true")
    arguments = parser.parse_args()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"),
            args=["--no-sandbox", "--disable-gpu"],
        )
        page = browser.new_page(
            viewport=PHONE if arguments.phone else DESKTOP,
            color_scheme="dark" if arguments.dark else "light",
        )
        page.set_default_timeout(1000 * SECONDS)
        take(page, arguments.url, arguments.prompt, arguments.out)
        browser.close()


def take(page: Page, url: str, prompt: str, out: Path) -> None:
    """Write the picture."""
    page.goto(url)
    page.wait_for_selector("#chip:not(:empty)", state="attached")
    page.fill("#prompt", prompt)
    page.press("#prompt", "Enter")
    page.wait_for_selector(".answer[aria-busy=false]")
    failed = page.inner_text(".failed") if page.is_visible(".failed") else ""
    if failed:
        raise SystemExit(f"the page got no answer: {failed}")
    page.locator(".answer > .tokens > .token").nth(page.evaluate(TELLING)).click()
    page.wait_for_timeout(300)
    page.screenshot(path=out)
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
