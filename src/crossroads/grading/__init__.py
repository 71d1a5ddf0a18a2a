"""Comparing answers with gold answers. A rule is one file and one row of `rules.RULES`."""

from crossroads.grading.base import Grade
from crossroads.grading.mathematics import grade, last_boxed

__all__ = ["Grade", "grade", "last_boxed"]
