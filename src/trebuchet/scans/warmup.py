"""Whether warm-up is needed, and from where."""

import math

from trebuchet.errors import InputError
from trebuchet.phases.forward_rate import along_first_step
from trebuchet.phases.interval import Interval
from trebuchet.scans.result import Warmup
from trebuchet.scans.setup import Setup
from trebuchet.scans.suggest import Suggestion


def warmup(setup: Setup, suggestion: Suggestion, lr_max: Interval) -> Warmup:
    """Compare the forward-only rate at the initialisation with the one after training.

    Args:
        setup: The scan, its runs made.
        suggestion: The rate to use.
        lr_max: Where training ends.

    Returns:
        The advice.
    """
    forward = setup.forward.value
    # Where curvature was measured it is the stricter of the two: the gradient of the first step
    # need not point along the top eigenvector.
    measured = setup.critical.lr_catapult
    start = forward if math.isnan(measured) else min(measured, forward)
    runs = [r for r in setup.rates.own_runs() if r.kernel is not None and not r.dead and r.steps]
    later = math.nan
    if runs:
        furthest = max(r.steps for r in runs)
        run = min(
            (r for r in runs if r.steps == furthest),
            key=lambda r: abs(math.log(r.rate / suggestion.rate)),
        )
        gradients = setup.objective.cost.gradients
        if setup.asked.limit_with_edges - gradients >= setup.first_cost:
            setup.engine.load(run)
            try:
                bracket = along_first_step(setup.objective, setup.factory, setup.first)
                later = bracket.value
            except InputError:  # the gradient vanished, or every step rises: there is no such rate
                setup.objective.cost.gradients = gradients + setup.first_cost
    rate = suggestion.rate
    name = "forward-only rate" if start == forward else "critical rate"
    if later > max(lr_max.high, 1.5 * forward):
        reason = (
            f"needed for rates above {lr_max.low:.3g}, which fail from the initialisation though "
            f"after training steps up to {later:.3g} still help; not for the suggested {rate:.3g}"
        )
        return Warmup(True, start, later, reason)
    if rate <= start:
        reason = (
            f"not needed: the suggested {rate:.3g} is below the {name} at the "
            f"initialisation, {start:.3g}"
        )
    else:
        reason = (
            f"not needed, but smoother: the suggested {rate:.3g} is above the {name} at the "
            f"initialisation, {start:.3g}, from which to warm up; runs survive without"
        )
    return Warmup(False, start, later, reason)
