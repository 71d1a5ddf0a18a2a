import sys
import threading

import pytest

from crossroads.errors import EngineError
from crossroads.grading import grade, last_boxed, mathematics

pytest.importorskip("math_verify")


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"so \boxed{12}.", "12"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\fboxed{3} \boxed {4}", "4"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{6} cut off \boxed{7", "6"),
        (r"\boxed{7", None),
        ("the answer is 12", None),
        ("", None),
        (r"\boxed{}", ""),
    ],
)
def test_the_last_complete_box_counts(text, boxed):
    assert last_boxed(text) == boxed


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("288", "288"),
        ("288.0", "288"),
        ("1,234", "1234"),
        ("1{,}234", "1234"),
        (r"\$12.50", "12.5"),
        ("\u221212", "-12"),
        ("-12", "- 12"),
        (r"\frac{138}{583}", "138/583"),
        (r"-\frac{1}{2}", "-0.5"),
        ("Friday", "friday"),
        (r"\text{Friday}.", "Friday"),
        ("00:34:28", "00:34:28"),
        # compared as mathematics:
        (r"288\text{ items}", "288"),
        ("x = 5", "5"),
        (r"3 \times 4", "12"),
        ("1 + x", "x + 1"),
        ("0, -3.625", "-3.625, 0.0"),
    ],
)
def test_right_answers(answer, gold):
    found = grade(f"\\boxed{{{answer}}}", gold)
    assert found.correct
    assert found.parsed == answer
    assert not found.unparsed


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("287", "288"),
        ("-12", "12"),
        ("1/3", "0.333333"),
        (r"288\text{ items}", "289"),
        ("Monday", "Friday"),
        ("12, 13", "12"),
        ("1/0", "12"),
        # equal if one reads text as arithmetic:
        ("00:34:27", "00:34:28"),
        ("2022-11-27", "2022-10-28"),
        ("0x5b994", "0x5b993"),
        ("00:34:28", "0"),
    ],
)
def test_wrong_answers_are_wrong_and_not_unparsed(answer, gold):
    found = grade(f"\\boxed{{{answer}}}", gold)
    assert not found.correct
    assert not found.unparsed


@pytest.mark.parametrize(
    "text",
    [
        "12",
        "",
        r"\boxed{}",
        r"\boxed{12",
        r"\boxed{2*3+}",
        r"\boxed{?}",
        f"\\boxed{{{'1+' * 200}}}",
    ],
)
def test_what_cannot_be_read_is_unparsed_with_a_reason(text):
    found = grade(text, "12")
    assert found.unparsed
    assert not found.correct
    assert found.reason


def test_an_answer_that_takes_forever_is_unparsed(monkeypatch):
    monkeypatch.setattr(mathematics, "_COMPARISON_SECONDS", 1)
    found = grade(r"\boxed{9^{9^{9}}}", "3")
    assert found.unparsed
    assert "too long" in found.reason


def in_thread(call):
    results = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join()
    return results[0]


def test_other_threads_grade_alike():
    assert in_thread(lambda: grade(r"\boxed{7}", "7")).correct
    assert in_thread(lambda: grade(r"\boxed{\sqrt{4}}", "2")) == grade(r"\boxed{\sqrt{4}}", "2")


def test_a_process_that_hangs_or_dies_leaves_an_unparsed_answer(monkeypatch):
    def unreadable():
        return grade(r"\boxed{\sqrt{4}}", "2")

    with monkeypatch.context() as patch:
        patch.setattr(mathematics, "_PROCESS_SECONDS", 0.01)
        assert in_thread(unreadable).reason == "comparing took too long"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "false")
        assert in_thread(unreadable).unparsed


def test_plain_numbers_need_no_package_and_the_rest_tells_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    assert grade(r"\boxed{7}", "7").correct
    with pytest.raises(EngineError, match="pip install"):
        grade(r"\boxed{\sqrt{4}}", "2")
