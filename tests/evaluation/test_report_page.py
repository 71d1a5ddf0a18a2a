"""The evaluation's report in a real browser: what it shows is what is stored.

Of every test: no error in the console, nothing loaded, nothing that a model wrote is run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from browsing import PHONE, Watch, browser, open_page
from crossroads.evaluation import report
from crossroads.evaluation.folder import RunFolder
from crossroads.evaluation.report import write_report
from crossroads.evaluation.stored import StoredAnswer
from crossroads.evaluation.summary import summarise
from crossroads.types import Role
from evaluation.test_report import PROBLEMS, SYSTEMS, make_folder

if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = ["browser"]

TASKS = ("gsm", "other")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Return the folder of a run with hostile texts everywhere, and its report."""
    found = make_folder(tmp_path_factory.mktemp("run") / "run", tasks=TASKS)
    with pytest.MonkeyPatch.context() as patch:  # without the pictures, which take their time
        patch.setattr(report, "write_files", lambda folder, drawing: None)
        write_report(found, summarise(found))
    return found


@pytest.fixture
def watch(folder: RunFolder) -> Iterator[Watch]:
    found = Watch((folder.path / "report.html").as_uri())
    yield found
    assert not found.problems


@pytest.fixture
def page(browser: Any, watch: Watch) -> Iterator[Page]:
    found = open_page(browser, watch)
    yield found
    found.context.close()


def answers_of(folder: RunFolder, task: str) -> dict[str, list[StoredAnswer]]:
    """Return each problem's answers, in the order of the systems."""
    found: dict[str, list[StoredAnswer]] = {}
    for system in SYSTEMS:
        for answer in folder.answers(task, system.name):
            found.setdefault(answer.problem_id, []).append(answer)
    return found


def verdict_of(answer: StoredAnswer) -> str:
    if answer.grade.correct:
        return "correct"
    return "unparsed" if answer.grade.parsed is None else "wrong"


def shown(page: Page, task: int = 0) -> Any:
    return page.locator(f"#task-{task} .problem:visible")


def open_problem(page: Page, number: int) -> Any:
    problem = shown(page).nth(number)
    problem.locator("summary").click()
    problem.locator(".answer").nth(len(SYSTEMS) - 1).wait_for()
    return problem


def test_an_open_problem_shows_every_answer_token_by_token(folder: RunFolder, page: Page) -> None:
    stored = answers_of(folder, "gsm")
    problem = open_problem(page, 0)
    answers = stored[problem.get_attribute("data-id")]
    sections = problem.locator(".answer")
    assert sections.count() == len(SYSTEMS)
    for i, answer in enumerate(answers):
        section, records = sections.nth(i), answer.trace.records
        head = section.locator("h4").inner_text()
        assert head.startswith(SYSTEMS[i].name)
        assert head.endswith("correct") == answer.grade.correct
        spans = section.locator(".trace > span")
        assert spans.count() == len(records)
        texts = spans.evaluate_all(
            "all => all.map(s => s.classList.contains('special') ? '' : s.textContent)"
        )
        assert "".join(texts) == answer.trace.text
        large = spans.evaluate_all("all => all.map(s => /[kca]/.test(s.classList[0]))")
        assert large == [record.writer is Role.LARGE for record in records]


def test_keys_go_from_token_to_token_and_each_tells_what_is_known(page: Page) -> None:
    section = open_problem(page, 0).locator(".answer").nth(2)
    trace, about = section.locator(".trace"), section.locator(".about")
    trace.focus()
    for key, place in (("ArrowRight", 1), ("ArrowRight", 2), ("End", 40), ("ArrowRight", 40),
                       ("ArrowLeft", 39), ("Home", 1)):  # fmt: skip
        page.keyboard.press(key)
        assert f"token {place} of 40" in about.inner_text()
        assert "score" in about.inner_text()
        assert "nats" in about.inner_text()
    assert trace.locator(".here").count() == 1
    trace.locator("span").nth(6).click()
    assert "token 7 of 40" in about.inner_text()


def test_filters_leave_the_problems_that_were_asked_for(folder: RunFolder, page: Page) -> None:
    stored = answers_of(folder, "gsm")
    form = page.locator("#task-0 .filter")
    count = form.locator("output")

    def expect(ids: set[str]) -> None:
        assert count.inner_text() == f"{len(ids)} of {PROBLEMS} problems"
        found = shown(page).evaluate_all("all => all.map(problem => problem.dataset.id)")
        assert set(found) == ids

    expect(set(stored))
    for verdict in ("wrong", "unparsed"):
        form.locator(f"[name={verdict}]").check()
        form.locator("[name=system]").select_option(label="any system")
        expect({i for i, found in stored.items() if verdict in map(verdict_of, found)})
        for number, system in enumerate(SYSTEMS):
            form.locator("[name=system]").select_option(label=system.name)
            expect({i for i, found in stored.items() if verdict_of(found[number]) == verdict})
        form.locator(f"[name={verdict}]").uncheck()
    form.locator("[name=disputed]").check()
    expect({i for i, found in stored.items() if len({a.grade.correct for a in found}) > 1})
    form.locator("[name=disputed]").uncheck()
    form.locator("[name=id]").fill("GSM/1")
    expect({i for i in stored if i.startswith("gsm/1")})


def test_tasks_are_shown_one_at_a_time_and_a_link_opens_its_problem(
    browser: Any, watch: Watch, page: Page
) -> None:
    tasks = page.locator(".task:visible")
    assert tasks.count() == 1
    page.locator(".tasks a").nth(1).click()
    page.wait_for_selector("#task-1:visible")
    assert tasks.count() == 1
    anchor = page.locator("#task-1 .problem").nth(3).get_attribute("id")
    other = open_page(browser, watch)
    other.goto(f"{watch.url}#{anchor}")
    other.reload()  # so that the page begins with the link
    other.locator(f"#{anchor} .answer").first.wait_for()
    assert other.locator("#task-1").is_visible()
    assert not other.locator("#task-0").is_visible()
    other.context.close()


def test_replaced_proposals_are_shown_on_demand(page: Page) -> None:
    token = open_problem(page, 0).locator(".trace > span.c").first
    was = token.get_attribute("data-was")
    assert was
    content = "token => getComputedStyle(token, '::before').content"
    before = token.evaluate(content)
    page.locator("#task-0 .filter [name=proposals]").check()
    assert token.evaluate(content) != before


def test_a_phone_never_scrolls_sideways(browser: Any, watch: Watch) -> None:
    page = open_page(browser, watch, viewport=PHONE, has_touch=True, is_mobile=True)
    open_problem(page, 0)
    width = page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1]
    page.context.close()
