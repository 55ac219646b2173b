"""The training layer: configuration, loop, checkpoints, run folder. Each file has one subject; import from there."""
