"""What the processes of a benchmark's two sides are started with."""

import os

import latte


def environment(side: str) -> dict[str, str]:
    """The variables for one side: "ours" may have what `latte` sets for MindSpore, a peer must not."""
    variables = {**os.environ, "GLOG_v": "3", "PYTHONWARNINGS": "ignore"}
    return variables if side == "ours" else {key: variables[key] for key in variables.keys() - latte.ENVIRONMENT.keys()}
