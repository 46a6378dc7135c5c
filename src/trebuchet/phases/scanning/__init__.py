"""The parts of a scan: batches, runs, the race between rates, the edges, the suggestion."""
