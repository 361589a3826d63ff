"""Plans of training runs for Ascend, made by MindSpore before they start."""
