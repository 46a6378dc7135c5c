"""Labelled results: what a dataset holds, how it is stored and summed up. Never sees a model."""

from trebuchet.results.schema import make_dataset, validate
from trebuchet.results.store import check_writable, load, save
from trebuchet.results.summary import summarise, table

__all__ = ["check_writable", "load", "make_dataset", "save", "summarise", "table", "validate"]
