"""The steps of the pipeline: each a config class and `run(config) -> Manifest`."""
