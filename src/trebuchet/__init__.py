"""Learning-rate phases of neural networks: lazy, catapult, divergent."""
