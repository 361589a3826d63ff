"""The kinds of models, one module each; `KINDS` is the one table of them.

Converting, loading, the settings of pipelines and the names of scores are all made from it. docs/architecture.md says
how a kind is added.
"""

from typing import Annotated

from pydantic import AfterValidator

from latte.kinds import clip, i3d, inception, latte, latte_t2v, t5, vae, videomae
from latte.kinds.kind import ModelKind

_MODULES = (latte, vae, i3d, clip, latte_t2v, t5, inception, videomae)
# kind: everything about it
KINDS: dict[str, ModelKind] = {each.KIND.name: each.KIND for each in _MODULES}


def detectors() -> tuple[str, ...]:
    """Names of the kinds whose features of clips are compared."""
    return tuple(name for name, kind in KINDS.items() if kind.scoring is not None)


def _known(name: str) -> str:
    if name not in KINDS:
        *others, last = map(repr, KINDS)
        raise ValueError(f"Input should be {', '.join(others)} or {last}")
    return name


KindName = Annotated[str, AfterValidator(_known)]
