"""A dataset: which videos it has, planning and writing its latents, reading clips of them."""
