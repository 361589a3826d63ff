"""Tell: how a run has ended, to a webhook and under the root; the exit task of every pipeline."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def tell(root: str, name: str, pipeline: str, settings: dict, status: dsl.PipelineTaskFinalStatus) -> None:
    """Tell in one JSON line how the run has ended: run, step, error, report.

    Args:
        root: Where everything is kept, s3://bucket/prefix or file:///dir.
        name: Name of the run's settings.
        pipeline: Name of the pipeline.
        settings: Keys of latte.steps.tell.TellConfig: webhook, when, within_s.
        status: What KFP knows of all tasks before this one.
    """
    from components.tell.wiring import tell

    tell(root, name, pipeline, settings, status)
