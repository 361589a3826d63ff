"""Names of tensors: from what published files use to the published architectures' current names."""

COUNTER_ENDING = ".num_batches_tracked"
