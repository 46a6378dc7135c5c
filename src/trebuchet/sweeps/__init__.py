"""Many runs of a problem, over learning rates and seeds."""
