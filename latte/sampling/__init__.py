"""Parts of the sample step: which weights, what they show, the denoising, and how a set looks."""
