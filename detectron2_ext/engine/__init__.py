"""The training of one round: loop, optimiser, average weights, checkpoints, feedback."""
