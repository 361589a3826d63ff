"""How often a randomised test repeats: all of it with LATTE_SOAK=1, a tenth of it otherwise."""

import os

FULL = os.environ.get("LATTE_SOAK") == "1"


def scaled(repeats: int) -> int:
    """The repeats of a full run with LATTE_SOAK=1, a tenth of them (at least one) otherwise."""
    return repeats if FULL else max(1, repeats // 10)
