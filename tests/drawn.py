"""What a test draws anew each time, and how to draw it again."""

import os
import random
import secrets
import sys
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")
SEED = "MINPRUNE_TEST_SEED"


def seed() -> int:
    """A new number each time, told on stderr, or the one that is in the environment."""
    number = int(os.environ.get(SEED) or secrets.randbits(32))
    print(f"to repeat this: {SEED}={number}", file=sys.stderr)
    return number


def drawn(items: Sequence[Item]) -> Item:
    """One of the items, by a `seed`."""
    item = random.Random(seed()).choice(items)
    print(f"drawn: {str(item)[:300]}", file=sys.stderr)
    return item
