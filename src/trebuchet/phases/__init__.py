"""Verdicts, edges, and the scan: which learning rates do what, and which one to use."""
