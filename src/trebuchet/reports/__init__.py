"""Results as one file for a colleague: a page that needs no network and no trebuchet to be read."""

from trebuchet.reports.door import report

__all__ = ["report"]
