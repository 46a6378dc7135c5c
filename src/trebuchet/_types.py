"""The two vocabularies every layer shares: why a run stopped, and what it was."""

from enum import StrEnum


class Status(StrEnum):
    """Why a run stopped."""

    CONVERGED = "converged"  # the loss changed by less than the tolerance
    MAX_STEPS = "max_steps"  # the budget ended
    NON_FINITE = "non_finite"  # the loss is NaN or infinite
    BLEW_UP = "blew_up"  # the loss passed `blowup` times its start
    GRADIENT_ZERO = "gradient_zero"  # every gradient entry is exactly zero
    INTERRUPTED = "interrupted"  # Ctrl-C came first
    DROPPED = "dropped"  # a scan had better rates to spend its budget on
    NOT_RUN = "not_run"  # of a grid, but never begun


class Phase(StrEnum):
    """What a learning rate did to a run."""

    LAZY = "lazy"  # the loss never rose above its start, and ended below it
    CATAPULT = "catapult"  # it rose above its start, and came back below it
    DIVERGENT = "divergent"  # it became non-finite, or blew up
    COLLAPSED = "collapsed"  # the output no longer depends on the input
    PERIODIC = "periodic"  # the loss settled on a cycle of two steps or more
    CHAOTIC = "chaotic"  # it stays bounded and settles on no cycle, and nearby runs part
    UNSETTLED = "unsettled"  # none of these when the budget ended
