"""Batched runs: problems, kernels, optimizers, stopping, recording, checkpoints, the self-check."""
