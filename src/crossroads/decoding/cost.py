"""What a generation cost, in active parameters and in words."""

from __future__ import annotations

from crossroads.types import Usage


def active_parameters(
    usage: Usage, small: int, large: int, router: int, *, mixed: bool = True
) -> float:
    """Return active parameters per generated token.

    `small + large_fraction * large + router` (R2R, arXiv 2505.21600, section 4): the small model
    proposes every token, the large one writes its share. With `mixed` False one model worked
    alone and no router. The tokens of a lag ride along in the call that writes one token, as a
    prompt's do; they are reported as `lag_tokens`, not here.
    """
    if not mixed:
        return usage.large_fraction * large + (1 - usage.large_fraction) * small
    return small + router + usage.large_fraction * large
