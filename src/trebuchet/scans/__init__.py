"""The scan: which runs to take how far, and what comes of it; the engine does the rest."""
