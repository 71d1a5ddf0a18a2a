"""The page on the real server: what it shows is what the models wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("uvicorn", reason="the serve extra is not installed")
from browsing import Watch, browser
from crossroads.serving.app import Safety
from crossroads.serving.safety import LOOPBACK_HOSTS
from laws.pairs import scripted_pair
from serving.live_server import KEY, Live, endless, live
from serving.test_page import ask, open_page, wait_for_tokens

if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = ["browser"]

CONTENT = ".answer > .tokens > .token"


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live() as found:
        yield found


@pytest.fixture
def page(browser: Any, server: Live) -> Iterator[Page]:
    watch = Watch(server.url)
    found = open_page(browser, watch)
    yield found
    found.context.close()
    assert not watch.problems
    server.wait_until_idle()


def exported(page: Page, folder: Path) -> Any:
    with page.expect_download() as download:
        page.click("#export")
    path = folder / "trace.json"
    download.value.save_as(path)
    return json.loads(path.read_text())


def test_tokens_are_those_of_the_reply_and_counted_as_the_server_counts(
    page: Page, tmp_path: Path
) -> None:
    ask(page, "HELLO")
    writers = page.eval_on_selector_all(CONTENT, "found => found.map((e) => e.dataset.writer)")
    assert {"small", "large"} == set(writers)
    text = json.dumps(exported(page, tmp_path))
    (routing,) = _find(json.loads(text), "routing")
    assert routing["large_tokens"] == writers.count("large")
    assert routing["small_tokens"] + routing["large_tokens"] >= len(writers)
    share = page.inner_text(".answer") + page.inner_text(".turn:last-child")
    assert f"{100 * routing['large_fraction']:.1f} %" in share


def _find(value: Any, key: str) -> list[Any]:
    """Return every value of a key that is an object with counts, wherever it is."""
    if isinstance(value, dict):
        own = (
            [value[key]]
            if isinstance(value.get(key), dict) and "large_tokens" in value[key]
            else []
        )
        return own + [found for part in value.values() for found in _find(part, key)]
    if isinstance(value, list):
        return [found for part in value for found in _find(part, key)]
    return []


def test_all_three_side_by_side_are_the_three_models(page: Page) -> None:
    page.click("button[data-view=compare]")
    ask(page, "HELLO")
    writers = [
        set(
            page.eval_on_selector_all(
                f".conversation:not([hidden]) .answer >> nth={i} >> .token",
                "found => found.map((e) => e.dataset.writer)",
            )
        )
        for i in range(3)
    ]
    assert writers == [{"small"}, {"small", "large"}, {"large"}]


def test_stop_frees_the_rows_at_once(browser: Any) -> None:
    pair = endless(scripted_pair())
    with live(pair, seconds_per_token=0.02) as server:
        watch = Watch(server.url)
        page = open_page(browser, watch)
        ask(page, "HELLO", wait=False)
        wait_for_tokens(page, 5)
        page.keyboard.press("Escape")
        server.wait_until_idle()
        page.context.close()
        assert not watch.problems


def test_with_a_key_the_page_opens_and_the_models_do_not(browser: Any) -> None:
    with live(safety=Safety(key=KEY, hosts=LOOPBACK_HOSTS)) as server:
        watch = Watch(server.url, expected="401")
        page = open_page(browser, watch, ready=False)
        page.wait_for_selector("dialog[open] input")
        page.fill("dialog[open] input", KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector("#chip:not(:empty)", state="attached")
        ask(page, "HELLO")
        assert page.locator(CONTENT).count() > 0
        page.context.close()
        assert not watch.problems
