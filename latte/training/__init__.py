"""The training loop behind the train step: its settings, start, batches, optimizer, log, checkpoints and processes."""
