"""The estimates that docs/scaling.md shows are those that its command computes."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scaling() -> Any:
    spec = importlib.util.spec_from_file_location("scaling", REPOSITORY / "benchmarks" / "scaling.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module
    spec.loader.exec_module(module)
    return module


def test_tables_of_the_page_are_current(scaling: Any) -> None:
    assert scaling.report(scaling.Device()) in (REPOSITORY / "docs" / "scaling.md").read_text()


def test_twice_the_peak_halves_what_products_take_and_leaves_the_published_steps(scaling: Any) -> None:
    slow, fast = scaling.Device(peak_tflops=300), scaling.Device(peak_tflops=600)
    assert scaling.share_of_peak(fast) == pytest.approx(scaling.share_of_peak(slow) / 2)


def test_nodes_add_to_an_exchange_and_one_npu_has_none(scaling: Any) -> None:
    seconds = [scaling._all_reduce_seconds(10**9, count, scaling.Device()) for count in (1, 8, 64, 512)]
    assert seconds[0] == 0
    assert seconds == sorted(seconds)
