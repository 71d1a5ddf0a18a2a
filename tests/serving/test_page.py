"""The page in a real browser, on a server that is told what to say.

Of every test: no error in the console, nothing asked of another server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="the serve extra is not installed")
import browsing
from browsing import PHONE, Watch, browser
from serving.page_stand_in import ANSWER, PAGE, QUANTILES, THRESHOLD, StandIn, standing_in

if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = ["browser"]

RLO, ZWSP = "\u202e", "\u200b"
HOSTILE = (
    f"a <img src=x onerror=alert(1)> </script><script>alert(2)</script> {RLO}abc def{ZWSP} end"
)


@pytest.fixture(scope="module")
def stand_in() -> Iterator[StandIn]:
    with standing_in() as running:
        yield running


def open_page(browser: Any, watch: Watch, ready: bool = True, **options: Any) -> Page:
    page = browsing.open_page(browser, watch, **options)
    if ready:
        page.wait_for_selector("#chip:not(:empty)", state="attached")
    return page


@pytest.fixture(scope="module")
def shared(browser: Any, stand_in: StandIn) -> Iterator[tuple[Page, Watch]]:
    watch = Watch(stand_in.url)
    page = open_page(browser, watch)
    yield page, watch
    page.context.close()


FRESH = """() => {
  for (const view of ["compare", "chat"]) {
    document.querySelector(`button[data-view=${view}]`).click();
    document.getElementById("new").click();
  }
  document.getElementById("own").click();
  document.getElementById("settings-form").reset();
  for (const details of document.querySelectorAll(".panel details")) details.open = false;
  for (const error of document.querySelectorAll(".panel .wrong, #notice")) error.hidden = true;
  document.getElementById("prompt").value = "";
  document.getElementById("prompt").focus();
}"""


@pytest.fixture
def watch(shared: tuple[Page, Watch], stand_in: StandIn) -> Iterator[Watch]:
    stand_in.begin()
    found = shared[1]
    found.expected, found.problems = "\0", []
    yield found
    assert not found.problems


@pytest.fixture
def page(shared: tuple[Page, Watch], watch: Watch) -> Page:
    """Return the desktop's page as it is after loading; loading it again takes longer."""
    found: Page = shared[0]
    found.mouse.move(2, 2)
    found.evaluate(FRESH)
    return found


LAST = ".conversation:not([hidden]) .turn:last-child"


def ask(page: Page, text: str = "What is 17 * 23?", wait: bool = True) -> None:
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")
    page.wait_for_selector(f"{LAST} .answer")
    if wait:
        wait_for_end(page)


def wait_for_end(page: Page) -> None:
    page.wait_for_selector(f"{LAST}:not(:has([aria-busy=true]))")


def wait_for_tokens(page: Page, count: int) -> None:
    page.wait_for_function(
        "([css, count]) => document.querySelectorAll(css).length >= count",
        arg=[f"{LAST} .token", count],
    )


def answer_text(page: Page) -> str:
    return page.text_content(f"{LAST} .answer > .tokens") or ""


def span(page: Page, at: int) -> Any:
    return page.locator(f"{LAST} .answer > .tokens > .token").nth(at)


def place_of(tokens: list[dict[str, Any]], **want: Any) -> int:
    return next(i for i, t in enumerate(tokens) if all(t[k] == v for k, v in want.items()))


def test_files_have_no_inline_script_or_style_and_no_html_from_strings() -> None:
    html = (PAGE / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\bsrc=)|https?://", html)
    for path in PAGE.glob("*.js"):
        code = path.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", code)
        for name in re.findall(r'from "\./([\w.]+)"', code):
            assert (PAGE / name).exists(), f"{path.name} imports {name}"
    assert all(len(path.read_text().splitlines()) < 400 for path in PAGE.iterdir())


def test_the_scale_is_that_of_the_quantiles(page: Page) -> None:
    """What calibration promises falls from 1 to 0 and is exact at every quantile."""
    found = page.evaluate(
        """async (quantiles) => {
          const { Scale, STEPS } = await import("/page/scale.js");
          const scale = new Scale(quantiles);
          const steps = Array.from({ length: STEPS + 1 }, (_, i) => scale.threshold(i));
          return { steps, back: steps.map((t) => scale.step(t)), floor: scale.floor,
            promised: steps.map((t) => scale.promised(t)),
            exact: quantiles.map((q) => scale.promised(q)),
            none: new Scale(null).promised(0.5), tied: new Scale([0, 0, 0, 0.5, 1]).promised(0.5) };
        }""",
        QUANTILES,
    )
    assert found["steps"][0] == 0
    assert found["steps"][-1] > 1
    assert found["back"] == list(range(len(found["steps"])))
    assert (np.diff(found["steps"]) > 0).all()
    assert (np.diff(found["promised"]) <= 0).all()
    assert (found["promised"][0], found["promised"][-1]) == (1, 0)
    np.testing.assert_allclose(found["exact"], 1 - np.arange(101) / 100, atol=1e-9)
    assert found["none"] is None
    assert found["tied"] == pytest.approx(0.25)


def test_an_answer_appears_token_by_token(page: Page, stand_in: StandIn) -> None:
    stand_in.begin(hold_at=5)
    ask(page, wait=False)
    wait_for_tokens(page, 5)
    assert page.locator(f"{LAST} .token").count() == 5
    sent = stand_in.sent["mixed"]
    assert answer_text(page) == "".join(token["text"] for token in sent)
    assert page.get_attribute(f"{LAST} .answer", "aria-busy") == "true"
    assert page.is_visible("#stop")
    assert not page.is_visible("#send")
    large = sum(token["writer"] == "large" for token in sent)
    page.wait_for_function(
        "([css, text]) => document.querySelector(css).innerText.includes(text)",
        arg=[f"{LAST} .facts", f"{large} large, {5 - large} small"],
    )
    stand_in.plan.go.set()
    wait_for_end(page)
    assert answer_text(page) == ANSWER
    facts = page.inner_text(f"{LAST} .facts")
    large = sum(token["writer"] == "large" for token in sent)
    assert f"{100 * large / len(sent):.1f} % large_fraction" in facts
    assert f"{large} large, {len(sent) - large} small" in facts
    assert re.search(r"\d+ tokens/s.*to first token", facts, re.S)


def test_every_token_shows_who_wrote_it_and_not_by_colour_alone(
    page: Page, stand_in: StandIn
) -> None:
    ask(page)
    sent = stand_in.sent["mixed"]
    shown = page.evaluate(
        """(css) => [...document.querySelectorAll(css)].map((e) => [e.dataset.writer,
          "kept" in e.dataset, getComputedStyle(e).boxShadow !== "none"
          || getComputedStyle(e).borderBottomStyle === "dotted" && e.textContent !== ""])""",
        f"{LAST} .token",
    )
    assert len(shown) == len(sent)
    for token, (writer, kept, marked) in zip(sent, shown, strict=True):
        assert writer == token["writer"]
        assert kept == (writer == "large" and token["proposed"]["id"] == token["token_id"])
        assert marked == (writer == "large") or token["text"] == ""
    assert {token["writer"] for token in sent} == {"small", "large"}


def test_scores_are_a_layer_that_can_be_had(page: Page, stand_in: StandIn) -> None:
    ask(page)
    sent = [t for t in stand_in.sent["mixed"] if t["writer"] == "small" and t["text"].strip()]
    order = sorted(range(len(sent)), key=lambda i: float(sent[i]["score"]))

    def strengths() -> list[float]:
        colours = page.locator(f"{LAST} .token[data-writer=small]").evaluate_all(
            "(all) => all.filter((e) => e.textContent.trim())"
            ".map((e) => getComputedStyle(e).backgroundColor)"
        )
        alpha = [re.search(r"/ ([\d.]+)\)$|, ([\d.]+)\)$", colour) for colour in colours]
        return [float(found[1] or found[2]) if found else 1.0 for found in alpha]

    assert set(strengths()) == {0.0}
    page.check("#scores")
    shown = strengths()
    page.uncheck("#scores")
    assert [shown[i] for i in order] == sorted(shown)
    assert shown[order[-1]] > shown[order[0]] + 0.1


def test_without_a_trace_there_is_text_without_writers(page: Page, stand_in: StandIn) -> None:
    stand_in.begin(traces=False)
    ask(page)
    assert answer_text(page) == ANSWER
    assert page.locator(f"{LAST} .token[data-writer]").count() == 0
    assert "large_fraction" not in page.inner_text(f"{LAST} .facts")
    span(page, 0).click()
    assert "did not say who wrote it" in page.inner_text("#card")


def test_the_card_says_who_and_why_and_what_the_small_model_had_in_mind(
    page: Page, stand_in: StandIn
) -> None:
    ask(page)
    sent = stand_in.sent["mixed"]
    at = next(
        i for i, t in enumerate(sent)
        if t["writer"] == "large" and t["proposed"]["id"] != t["token_id"] and t["text"].strip()
    )  # fmt: skip
    span(page, at).hover()
    card = page.locator("#card")
    card.wait_for()
    token, text = sent[at], card.inner_text()
    assert f"{at + 1} of {len(sent)}" in text
    assert "The large model wrote it" in text
    assert "asked because its score reached the threshold" in text
    assert re.search(rf"{token['score']:#.3g} ≥ 0.0105", text)
    assert f"entropy {token['entropy']:.2f} nats" in text
    rows = card.locator(".proposals li")
    assert rows.count() == len(token["proposals"]) == 5
    for i, proposal in enumerate(token["proposals"]):
        assert f"{100 * proposal['probability']:.1f} %" in rows.nth(i).inner_text()
        chosen = proposal["id"] == token["proposed"]["id"]
        assert (rows.nth(i).get_attribute("class") == "chosen") == chosen
    page.mouse.move(2, 2)
    card.wait_for(state="hidden")


def test_the_card_makes_white_space_visible_and_a_click_pins_it(
    page: Page, stand_in: StandIn
) -> None:
    ask(page)
    sent = stand_in.sent["mixed"]
    at = place_of(sent, text="\n\n")
    span(page, place_of(sent, text=" multiply")).click()
    assert page.inner_text("#card .text") == "␣multiply"
    page.mouse.move(2, 2)
    page.wait_for_timeout(300)
    assert page.is_visible("#card")
    page.keyboard.press("Home")
    for _ in range(at):
        page.keyboard.press("ArrowRight")
    assert page.inner_text("#card .text") == "↵↵"


def test_the_slider_is_for_the_next_message_not_for_the_running_one(
    page: Page, stand_in: StandIn
) -> None:
    stand_in.begin(hold_at=3)
    ask(page, wait=False)
    wait_for_tokens(page, 3)
    page.focus("#threshold")
    page.keyboard.press("Home")
    assert page.input_value("#threshold-value") == "0"
    assert "large model writes every token" in page.inner_text("#promise")
    stand_in.plan.go.set()
    wait_for_end(page)
    assert "0.0105 threshold" in page.inner_text(f"{LAST} .facts")
    ask(page)
    page.focus("#threshold")
    page.keyboard.press("End")
    assert "small model writes every token" in page.inner_text("#promise")
    ask(page)
    page.fill("#threshold-value", "0.1")
    page.press("#threshold-value", "Enter")
    share = re.search(r"positive_rate ([\d.]+) %", page.inner_text("#promise"))
    assert share is not None
    assert float(share[1]) == pytest.approx(100 * np.mean(np.array(QUANTILES) >= 0.1), abs=1)
    ask(page)
    page.click("#own")
    assert "positive_rate 22.2 %" in page.inner_text("#promise")
    ask(page)
    sent = [body["routing"]["threshold"] for body in stand_in.bodies]
    assert sent[0] == sent[4] == THRESHOLD
    assert sent[1] == 0
    assert 1 < sent[2] < 1.1
    assert sent[3] == 0.1
    assert all(body["routing"]["trace"] is True for body in stand_in.bodies)


def test_a_threshold_that_is_none_is_refused_and_the_old_one_stays(page: Page) -> None:
    page.fill("#threshold-value", "-1")
    page.press("#threshold-value", "Enter")
    assert "from 0 (large alone) to above 1 (small alone), not “-1”" in page.inner_text(
        "#threshold-error"
    )
    assert page.input_value("#threshold-value") == "0.0105"


def test_stop_ends_the_request_at_the_server_and_keeps_the_text(
    page: Page, stand_in: StandIn
) -> None:
    stand_in.begin(hold_at=4)
    ask(page, wait=False)
    wait_for_tokens(page, 4)
    page.click("#stop")
    wait_for_end(page)
    assert stand_in.hung_up.wait(30)
    kept = answer_text(page)
    assert kept == "".join(token["text"] for token in stand_in.sent["mixed"])
    assert "you stopped it" in page.inner_text(f"{LAST} .facts")
    stand_in.plan.hold_at = None
    ask(page, "Go on.")
    assert stand_in.bodies[-1]["messages"][1] == {"role": "assistant", "content": kept}


def test_a_chat_remembers_retries_and_begins_anew(page: Page, stand_in: StandIn) -> None:
    page.click("#settings summary")
    page.fill("[name=system]", "Be brief.")
    ask(page, "One?")
    stand_in.plan.text = "Two."
    ask(page, "Two?")
    user, system = {"role": "user"}, {"role": "system", "content": "Be brief."}
    both = [system, user | {"content": "One?"}, {"role": "assistant", "content": ANSWER},
            user | {"content": "Two?"}]  # fmt: skip
    assert stand_in.bodies[1]["messages"] == both
    page.click("#retry")
    page.wait_for_function("() => document.querySelectorAll('#chat .turn').length === 2")
    wait_for_end(page)
    assert stand_in.bodies[2]["messages"] == both
    page.click("#new")
    assert page.locator(".turn").count() == 0
    ask(page, "Three?")
    assert stand_in.bodies[3]["messages"] == [system, user | {"content": "Three?"}]


def test_settings_are_sent_when_filled_in_and_a_wrong_one_is_named(
    page: Page, stand_in: StandIn
) -> None:
    page.click("#settings summary")
    page.fill("[name=temperature]", "warm")
    page.fill("#prompt", "Hello?")
    page.press("#prompt", "Enter")
    sentence = "Temperature must be a number from 0 to 2, not “warm”; or leave it empty."
    assert page.inner_text("#temperature-error") == sentence
    assert page.inner_text("#notice") == sentence
    assert page.input_value("#prompt") == "Hello?"
    assert page.evaluate("document.activeElement.name") == "temperature"
    assert stand_in.bodies == []
    page.fill("[name=temperature]", "0.7")
    page.fill("[name=max_tokens]", "7")
    page.fill("[name=max_large_fraction]", "0.25")
    ask(page)
    body = stand_in.bodies[0]
    assert (body["temperature"], body["max_tokens"]) == (0.7, 7)
    assert body["routing"] == {"threshold": THRESHOLD, "max_large_fraction": 0.25, "trace": True}
    assert not {"seed", "system"} & set(body)
    assert page.locator(f"{LAST} .token").count() == 7


def test_side_by_side_asks_all_three_the_same_at_once(page: Page, stand_in: StandIn) -> None:
    stand_in.begin(hold_at=2)
    page.click("button[data-view=compare]")
    ask(page, "First?", wait=False)
    wait_for_tokens(page, 6)  # two of each: none waits for another
    stand_in.plan.go.set()
    wait_for_end(page)
    ask(page, "Second?")
    for model in ("small", "mixed", "large"):
        column = page.locator(f"{LAST} [data-model={model}]")
        assert column.locator(".tokens").text_content() == ANSWER
        facts = column.locator(".facts").inner_text()
        assert re.search(r"tokens/s.*to first token.*in all", facts, re.S)
        assert model in column.locator("h3").inner_text()
    asked = {body["model"]: body for body in stand_in.bodies[3:]}
    assert {json.dumps(body["messages"]) for body in asked.values()} == {
        json.dumps([{"role": "user", "content": "Second?"}])
    }
    assert asked["mixed"]["routing"] == {"threshold": THRESHOLD, "trace": True}
    assert asked["small"]["routing"] == asked["large"]["routing"] == {"trace": True}
    lefts = page.evaluate(
        "(css) => [...document.querySelectorAll(css)].map((e) => e.getBoundingClientRect().top)",
        f"{LAST} .answer",
    )
    assert len(set(lefts)) == 1


def test_the_export_is_what_was_streamed(page: Page, stand_in: StandIn, tmp_path: Path) -> None:
    ask(page, "Once?")
    first = list(stand_in.sent["mixed"])
    ask(page, "Again?")
    with page.expect_download() as caught:
        page.click("#export")
    caught.value.save_as(tmp_path / "export.json")
    found = json.loads((tmp_path / "export.json").read_text())
    answers = [turn["answers"][0] for turn in found["turns"]]
    assert [turn["prompt"] for turn in found["turns"]] == ["Once?", "Again?"]
    assert [answer["trace"] for answer in answers] == [first, stand_in.sent["mixed"]]
    assert [answer["request"] for answer in answers] == stand_in.bodies
    large = sum(token["writer"] == "large" for token in first)
    for answer in answers:
        assert answer["content"] == ANSWER
        assert answer["finish_reason"] == "stop"
        assert answer["routing"]["large_tokens"] == large
    assert found["server"]["router"] == "mlp"


def test_text_is_selected_heard_and_copied_as_plain_text(page: Page) -> None:
    ask(page)
    selected = page.evaluate(
        """(css) => {
          getSelection().selectAllChildren(document.querySelector(css));
          const text = getSelection().toString();
          getSelection().removeAllRanges();
          return text;
        }""",
        f"{LAST} .answer",
    )
    assert selected.startswith(ANSWER)
    assert selected.count("The answer is") == 1
    assert page.text_content(f"{LAST} .heard") == ANSWER
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#copy")
    page.wait_for_function("() => document.getElementById('copy').textContent === 'Copied'")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == f"> What is 17 * 23?\n\n{ANSWER}\n"


def test_the_keyboard_alone_is_enough(page: Page, stand_in: StandIn) -> None:
    sent_text = "Line one\nline two"
    page.keyboard.type("Line one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("line two")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{LAST} .answer")
    wait_for_end(page)
    assert stand_in.bodies[0]["messages"] == [{"role": "user", "content": sent_text}]
    sent = stand_in.sent["mixed"]
    stops = 0
    while not page.evaluate("document.activeElement.classList.contains('tokens')"):
        page.keyboard.press("Shift+Tab")
        stops += 1
        assert stops < 12
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#card .text") == sent[2]["text"].replace(" ", "␣")
    large = [i for i, token in enumerate(sent) if token["writer"] == "large"]
    page.keyboard.press("End")
    page.keyboard.press("ArrowUp")
    value = page.locator(f"{LAST} .tokens").get_attribute("aria-valuetext") or ""
    assert f"token {large[-1] + 1} of {len(sent)}; The large model wrote" in value
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Escape")
    assert not page.is_visible("#card")
    stand_in.begin(hold_at=2)
    page.focus("#prompt")
    page.keyboard.type("Again?")
    page.keyboard.press("Enter")
    wait_for_tokens(page, 2)
    page.keyboard.press("Escape")
    assert stand_in.hung_up.wait(30)
    wait_for_end(page)
    assert page.evaluate("document.activeElement.id") == "prompt"


def test_an_answer_is_one_text_and_one_control(page: Page) -> None:
    ask(page)
    reachable = page.locator(f"{LAST} .answer [tabindex='0'], {LAST} .answer button")
    assert reachable.count() == 1
    assert reachable.get_attribute("role") == "slider"
    tree = page.locator(f"{LAST} .answer").aria_snapshot()
    assert tree.count("slider") == 1
    assert len(tree.splitlines()) < 40


def test_hostile_text_is_text_and_changes_nothing_beside_it(page: Page, stand_in: StandIn) -> None:
    stand_in.begin(text=HOSTILE)
    ask(page, HOSTILE)
    assert answer_text(page) == HOSTILE
    assert page.text_content(f"{LAST} .asked") == HOSTILE
    tags = page.evaluate(
        "(css) => [...document.querySelectorAll(css)].map((e) => e.tagName)", f"{LAST} .tokens *"
    )
    assert set(tags) == {"SPAN"}
    codes = page.locator(f"{LAST} .hidden-character").evaluate_all(
        "(all) => all.map((e) => e.dataset.code)"
    )
    assert codes[-2:] == ["U+202E", "U+200B"]
    sent = stand_in.sent["mixed"]
    at = next(i for i, token in enumerate(sent) if token["text"] == "abc")
    assert span(page, at).bounding_box()["x"] < span(page, at + 1).bounding_box()["x"]
    span(page, next(i for i, token in enumerate(sent) if RLO in token["text"])).click()
    assert "⟨U+202E⟩" in page.inner_text("#card .text")


def test_what_cannot_be_seen_is_named_and_what_scripts_need_is_left(page: Page) -> None:
    hidden = "\0\b\x1b\x7f\x9b\xad\u200b\u200e\u2028\u2060\u2066\u2069\ufeff\U000e0041"
    left = "ab\u200c\u200d\u00e9\U0001f469\u200d\U0001f680"
    found = page.evaluate(
        """async (text) => (await import("/page/hidden.js")).visible(text)""", hidden + left
    )
    assert found == "".join(f"⟨U+{ord(c):04X}⟩" for c in hidden) + left


def test_errors_are_shown_as_the_sentence_they_carry(
    page: Page, stand_in: StandIn, watch: Watch
) -> None:
    watch.expected = "429"
    stand_in.begin(error=(429, "the queue is full; ask again later", {"Retry-After": "7"}))
    ask(page)
    failed = page.locator(f"{LAST} .failed")
    assert (
        failed.inner_text() == "the queue is full; ask again later (The server asks to wait 7 s.)"
    )
    stand_in.begin(error_at=3)
    page.click("#retry")
    page.wait_for_function(
        "(css) => document.querySelector(css)?.textContent.startsWith('the engine failed')",
        arg=f"{LAST} .failed",
    )
    assert failed.inner_text() == "the engine failed; start the server again"
    assert answer_text(page) == "".join(token["text"] for token in stand_in.sent["mixed"])
    stand_in.begin()
    page.click("#retry")
    page.wait_for_selector(f"{LAST} .answer:not(:has(.failed:not([hidden])))")
    wait_for_end(page)
    assert answer_text(page) == ANSWER


@pytest.mark.parametrize("how", ["break_at", "cut_at"])
def test_a_lost_connection_is_said_and_what_came_is_kept(
    page: Page, stand_in: StandIn, watch: Watch, how: str
) -> None:
    watch.expected = "net::ERR"
    stand_in.begin(hold_at=4, **{how: 4})
    ask(page, wait=False)
    wait_for_tokens(page, 4)
    stand_in.plan.go.set()
    wait_for_end(page)
    assert "connection broke before the answer had ended" in page.inner_text(f"{LAST} .failed")
    assert page.locator(f"{LAST} .token").count() == 4


def test_a_server_that_is_gone_is_said(page: Page, watch: Watch) -> None:
    watch.expected = "net::ERR"
    page.context.set_offline(True)
    try:
        ask(page, "Still there?")
    finally:
        page.context.set_offline(False)
    assert "cannot be reached" in page.inner_text(f"{LAST} .failed")


def test_thinking_is_folded_away_and_is_not_sent_back(browser: Any, stand_in: StandIn) -> None:
    stand_in.begin(thoughts="Twenty first, then three.", hold_at=4)
    watch = Watch(stand_in.url)
    page = open_page(browser, watch)
    ask(page, wait=False)
    wait_for_tokens(page, 4)
    assert page.locator(f"{LAST} .thinking[open]").count() == 1
    stand_in.plan.go.set()
    wait_for_end(page)
    assert page.locator(f"{LAST} .thinking[open]").count() == 0
    assert page.text_content(f"{LAST} .thinking .tokens") == "Twenty first, then three."
    assert answer_text(page) == ANSWER
    assert page.locator(f"{LAST} .token").count() == len(stand_in.sent["mixed"])
    ask(page)
    assert stand_in.bodies[1]["messages"][1] == {"role": "assistant", "content": ANSWER}
    assert not watch.problems
    page.context.close()


def test_a_key_is_asked_for_kept_in_the_tab_and_sent(browser: Any, stand_in: StandIn) -> None:
    stand_in.begin(key="open sesame"[5:])
    watch = Watch(stand_in.url, expected="401")
    page = open_page(browser, watch, ready=False)
    page.wait_for_selector("#key-dialog[open]")
    assert "the API key is missing or wrong" in page.inner_text("#key-reason")
    page.fill("#key", "wr\u00f6ng")
    page.press("#key", "Enter")
    assert "only ASCII characters" in page.inner_text("#key-error")
    for key in ("wrong", "sesame"):
        page.wait_for_selector("#key-dialog[open]")
        page.fill("#key", key)
        page.press("#key", "Enter")
    page.wait_for_selector("#chip:not(:empty)", state="attached")
    ask(page)
    assert answer_text(page) == ANSWER
    page.reload()
    page.wait_for_selector("#chip:not(:empty)", state="attached")
    assert not page.locator("#key-dialog[open]").count()
    assert page.evaluate("Object.keys(localStorage)") == []
    assert not watch.problems
    page.context.close()


def test_the_monitor_asks_only_while_it_is_open(page: Page, stand_in: StandIn) -> None:
    page.click("#monitor summary")
    page.wait_for_selector("#monitor-body .histogram")
    text = page.inner_text("#monitor-body")
    for part in ("As calibrated: 24.6 %", "promised positive_rate", "22.2 %", "18.7 %", "waiting"):
        assert part in text
    assert page.locator(".histogram rect").count() == 10
    assert "11 %" in (page.get_attribute(".histogram", "aria-label") or "")
    page.click("#monitor summary")
    polls = stand_in.polls
    page.wait_for_timeout(2200)
    assert stand_in.polls == polls >= 1


def test_a_phone_never_scrolls_sideways(browser: Any, stand_in: StandIn) -> None:
    stand_in.begin(text=f"{ANSWER}\n{'long' * 60} https://example.com/{'a-b/' * 40}")
    watch = Watch(stand_in.url)
    page = open_page(browser, watch, viewport=PHONE, has_touch=True, is_mobile=True)

    def fits() -> None:
        wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide == [360, 360]

    fits()
    ask(page, "w" * 90)
    fits()
    page.locator(f"{LAST} .token[data-writer=large]").first.tap()
    box = page.locator("#card").bounding_box()
    assert box is not None
    assert (round(box["x"]), round(box["width"])) == (0, 360)
    fits()
    page.tap("#card .close")
    page.tap("#chip")
    assert page.evaluate("document.activeElement.id") == "panel-close"
    page.locator("#monitor summary").tap()
    page.wait_for_selector("#monitor-body .histogram")
    fits()
    page.tap("#panel-close")
    assert not page.is_visible("#panel")
    page.tap("button[data-view=compare]")
    ask(page)
    fits()
    tops = page.locator(f"{LAST} .answer").evaluate_all(
        "(all) => all.map((e) => e.getBoundingClientRect().top)"
    )
    assert tops == sorted(set(tops))
    small = page.locator("button:visible, input:visible").evaluate_all(
        """(all) => all.filter((e) => e.type !== "checkbox"
          && e.getBoundingClientRect().height < 32).map((e) => e.outerHTML)"""
    )
    assert small == []
    assert not watch.problems
    page.context.close()


def test_colours_follow_the_system_and_the_toggle(browser: Any, stand_in: StandIn) -> None:
    stand_in.begin()
    watch = Watch(stand_in.url)
    page = open_page(browser, watch, color_scheme="dark", reduced_motion="reduce")

    def brightness() -> float:
        colours = page.evaluate(
            "['backgroundColor', 'color'].map((name) => getComputedStyle(document.body)[name])"
        )
        paper, ink = (np.mean([int(n) for n in re.findall(r"\d+", c)[:3]]) for c in colours)
        assert abs(paper - ink) > 150
        return float(paper)

    assert brightness() < 60
    page.click("#theme")
    assert brightness() > 200
    page.reload()
    assert brightness() > 200
    page.emulate_media(color_scheme="light")
    page.click("#theme")
    assert brightness() < 60
    moving = page.evaluate("document.getAnimations().length")
    assert moving == 0
    assert not watch.problems
    page.context.close()
