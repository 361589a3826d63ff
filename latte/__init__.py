"""Latte, a latent diffusion transformer for video, on MindSpore: the steps from raw videos to a scored model."""

import os

__version__ = "0.1.0"

# The messages inside MindSpore 2.9 need the Python implementation of protobuf, which it asks for too late where KFP or
# TensorBoard were imported before it.
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
