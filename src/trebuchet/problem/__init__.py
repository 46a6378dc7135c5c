"""What is trained and how: batches, losses, optimizers, the risk on batches, and holding still."""
