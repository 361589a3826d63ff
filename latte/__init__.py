"""Latte, a latent diffusion transformer for video, on MindSpore: the steps from raw videos to a scored model."""

__version__ = "0.1.0"
