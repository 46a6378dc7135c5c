"""What can go wrong, by name. Divergence is not here: it is a result, not an exception."""


class TrebuchetError(Exception):
    """Base of every error trebuchet raises on purpose."""


class InputError(TrebuchetError, ValueError):
    """An argument is not what was expected; the message names it, and says what to do."""


class NotApplicableError(TrebuchetError):
    """A theorem was asked about a setting that its hypotheses exclude."""


class LawViolationError(TrebuchetError, ArithmeticError):
    """A run broke the weight-norm law by more than rounding: the engine is wrong, not the run."""


class MissingExtraError(TrebuchetError, ImportError):
    """An optional dependency is not installed; the message holds the command that installs it."""
