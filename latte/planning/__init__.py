"""What a training run will need on Ascend, planned by MindSpore before it starts."""
