"""The experiments of Meltzer & Liu, arXiv 2301.07737, at their own settings and seeds."""
