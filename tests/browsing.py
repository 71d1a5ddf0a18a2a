"""A real browser for the tests of pages, and what goes wrong on them: nothing may."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
TIMEOUT = 60_000  # ms; a busy machine makes a slow page, not a wrong one
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}


@dataclass
class Watch:
    """What went wrong on a page, of which everything has to come from the address `url`.

    expected: in the console errors that a test provokes.
    """

    url: str
    expected: str = "\0"
    problems: list[str] = field(default_factory=list)

    def attach(self, page: Page) -> None:
        page.on("console", self.console)
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("dialog", lambda dialog: self.problems.append(f"dialog: {dialog.message}"))
        page.on("request", self.request)

    def console(self, message: Any) -> None:
        if message.type in {"error", "warning"} and self.expected not in message.text:
            self.problems.append(f"console: {message.text}")

    def request(self, request: Any) -> None:
        if not request.url.startswith((self.url, "blob:")):
            self.problems.append(f"asked {request.url}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip(f"no Chromium at {CHROMIUM}; CHROMIUM=path names one")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield found
        found.close()


def open_page(browser: Any, watch: Watch, **options: Any) -> Page:
    """Return the page at the watch's address, in a context of its own."""
    context = browser.new_context(**({"viewport": DESKTOP, "accept_downloads": True} | options))
    context.set_default_timeout(TIMEOUT)
    page: Page = context.new_page()
    watch.attach(page)
    page.goto(watch.url)
    return page
