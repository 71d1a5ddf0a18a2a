"""When a verdict is `found` and when `ruled out`: the numbers that decide it, all in one place.

A diagnosis asks many questions of one dataset, so a 95 % interval would cry wolf. A cause is found
only where the evidence is many standard errors strong AND large enough to matter; it is ruled out
only where the data could have shown it. Between the two the verdict is `cannot tell`.
"""

from __future__ import annotations

STRONG = 5.0
"""Standard errors, clustered by problem, from which an effect counts as seen.

Far beyond 1.96: with few problems a bootstrapped error is itself uncertain, and a dozen causes are
tested at once. At 10 problems a t of 5 has probability 0.0007, at 30 problems 0.00003.
"""

MATERIAL = 0.01
"""Points of positive_rate below which a cause explains nothing worth a name: one."""

GAP = 0.02
"""Difference between two positive_rates below which there is nothing to explain: two points."""

FEWEST_PROBLEMS = 8
"""Problems below which no interval over problems is believed."""

FEWEST_POSITIVES = 20
"""Positives below which no curve is read."""

RELATIVE_RATE = 0.2
"""Relative difference from which two base rates are different things."""

REPEATED = 0.01
"""Share of positions from which repeats are found rather than an accident of boilerplate."""
