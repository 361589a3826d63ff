"""The DAG of `latte-pipeline doctor --run`: a small task in a pod of its own, and one by Volcano where steps use it."""

from kfp import dsl

from components.hello.component import hello as hello_step
from pipelines import parts


@dsl.pipeline(name="latte-hello", description="Write, read and delete a small object, as the steps would.")
def hello(root: str) -> None:
    """One task for each way in which steps run on the cluster that it is compiled for.

    Args:
        root: Where everything is kept, s3://bucket/prefix.
    """
    first = parts.named(hello_step(root=root), "hello")
    step = parts.launched()
    if step:
        parts.named(hello_step(root=root), "hello by Volcano", step).after(first)
