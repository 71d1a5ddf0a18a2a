"""The process that compares as mathematics for threads that cannot: two texts in, a word out."""

from __future__ import annotations

import json
import sys

from crossroads.grading.mathematics import compare

if __name__ == "__main__":
    sys.stdout.write(compare(*json.load(sys.stdin)))
