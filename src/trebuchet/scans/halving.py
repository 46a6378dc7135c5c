"""Successive halving: short runs at many rates, longer ones at few; from coarse to fine.

Jamieson & Talwalkar (arXiv 1502.07943), over learning rates, with what a catapult needs. Rates are
counted in half octaves, rate = scale · 2^(i/2), from a scale that one gradient and a dozen forward
passes give (``phases.forward_rate``); whole octaves apart at first, unless the user names them. A
set of rates goes from rung to rung; a rung is a number of steps. The numbers below were found by
replaying the recorded loss curves of development problems (``bench/suggest_replay.py``), none of
them in the lists that ``bench/suggest.py`` reports on; the result is flat around them.

**The rule by which a run is dropped.** At the end of a rung rates are ranked by the *softened* loss
y = log(L/L₀ + 0.02), by a line through the last 30 % of the steps (``level``): below 2 % of the
start, noise decides. The next rung is for at most so many of the best, and only for those within a
tolerance of the best.

**What protects a catapult from it.** A run in a catapult looks like a bad one until it lands, and
for some time after: its loss rose first. It is *in flight* from its rise on, if it has landed, or
will before the horizon when it falls on as it has fallen since its peak. The three that land first
enter the rungs beyond the number allowed. The first to land is often not the lowest: where the loss
grows like the error and not like its square, weights shrink by as much a step as the rate is large.
A run that came back to just below its start and stays there has collapsed, and is not waited for.

**Where the search looks next.** After every rung but the last, the best rate must have a neighbour
on both sides that has come as far, an octave away and at last half an octave; missing ones are
started. So a search whose best rate is the largest or the smallest tried extends itself. What is
left of the budget goes to whole runs: next to the choice, once at the choice from another seed, at
rates left behind that would catch up if they went on as they did, and next to the choice again from
other seeds. And if at the horizon
nobody is below the start, the next best of those left behind are taken there, as far as the budget
goes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from trebuchet.scans.choice import shortfalls


class BudgetSpentError(Exception):
    """The next step would pass the budget. Caught inside a scan, never shown."""


SOFT = 0.02
"""Losses below this fraction of the start count as equal."""
FEWEST = 3
"""Rates that start, at least."""
NEAR = 0.5
"""Half octaves within which a rate counts as a neighbour: rates need not be on the grid."""
EARLIER = 0.6
"""What a run gained since this fraction of its steps tells how it goes on …"""
ENOUGH = 0.25
"""… once it has made this fraction of the furthest run's …"""
BEHIND = 0.1
"""… and so far behind the best, at the end, it is still worth the steps."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One stage of the search.

    Attributes:
        fraction: Its end, as a fraction of the horizon.
        keep: How many of the best enter it.
        tolerance: How far behind the best a rate may be and still enter, in softened log loss.
        reach: Half octaves to the neighbours that the best must have at its end; 0 for none.
    """

    fraction: float
    keep: int
    tolerance: float
    reach: int


@dataclass(frozen=True, slots=True)
class Plan:
    """All of its rungs.

    Attributes:
        first: Rates that start, in half octaves from the scale.
        opening: The first rung's end, as a fraction of the horizon.
        rungs: The others.
        smoothing: The last fraction of the steps that a score is taken from.
        flights: So many runs in flight are protected, in all rungs but the last.
        at_most: Neighbours started in one rung, at most.
    """

    first: tuple[float, ...] = tuple(range(-14, 7, 2))
    opening: float = 0.05
    rungs: tuple[Rung, ...] = (
        Rung(0.125, 4, 1.0, 2),
        Rung(0.30, 3, 0.5, 2),
        Rung(0.65, 4, 0.4, 1),
        Rung(1.0, 1, 0.0, 0),
    )
    smoothing: float = 0.3
    flights: int = 3
    at_most: int = 16

    def within(self, budget: float, horizon: int) -> "Plan":
        """Start fewer rates, wider apart, where so many would leave nothing for a whole run.

        Args:
            budget: Gradients.
            horizon: Steps of a whole run.

        Returns:
            The plan, or another.
        """
        first, steps = self.first, max(1, round(self.opening * horizon))
        while len(first) > FEWEST and len(first) * steps + horizon > budget:
            first = first[::2]
        return self if first == self.first else replace(self, first=first)


class Arms(Protocol):
    """What is halved: rates, and what advances them."""

    horizon: int

    def advance(self, places: Sequence[float], steps: int) -> None:
        """Train rates up to `steps`; BudgetSpentError at the first that is not affordable."""

    def again(self, i: float, steps: int) -> None:
        """Train rate `i` once more, from the next seed, up to `steps`."""

    def repeats(self, i: float) -> tuple[int, int]:
        """How often rate `i` was trained again, and how often it still can be."""

    def score(self, i: float) -> float:
        """Softened log loss of rate `i`, a mean over its seeds, infinite if one diverged."""

    def score_at(self, i: float, steps: int) -> float:
        """The score that rate `i` had at `steps`."""

    def landing(self, i: float) -> float:
        """The step at which rate `i`, above its start now, comes back below it; or infinite."""

    def below_start(self, i: float) -> bool:
        """Whether rate `i` is below its start now."""

    def left(self) -> float:
        """Gradient evaluations that may still be spent."""


@dataclass(slots=True)
class Course:
    """What happened in a search.

    Attributes:
        steps: Rate → steps it was taken to.
        log: One sentence a decision.
        finished: Whether the budget sufficed for the last rung.
        extended: −1 or +1 if the best rate lay below or above all that started, else 0.
    """

    steps: dict[float, int] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    finished: bool = False
    extended: int = 0


def successive_halving(
    arms: Arms, plan: Plan | None = None, course: Course | None = None
) -> Course:
    """Run it.

    Args:
        arms: The rates, and what advances them.
        plan: Its stages.
        course: What to write down the course in; a new one unless given.

    Returns:
        The course of it; the arms hold the losses.
    """
    plan = plan or Plan()
    course = Course() if course is None else course
    try:
        _stages(arms, plan, course)
        course.finished = True
    except BudgetSpentError:
        course.log.append("the budget ended the search")
    return course


def _stages(arms: Arms, plan: Plan, course: Course) -> None:
    steps = max(1, round(plan.opening * arms.horizon))
    active = list(plan.first)
    # From the top: what diverges costs little, and shows where the edge is.
    _go(arms, course, sorted(active, reverse=True), steps)
    for rung in plan.rungs:
        active = _alive(arms, course, active, steps)
        before = list(active)
        active = promoted(arms, active, rung, protect=plan.flights if rung.fraction < 1 else 0)
        for i in before:
            if i not in active:
                course.log.append(f"{i:+g}: dropped at step {steps}")
        steps = max(steps, round(rung.fraction * arms.horizon))
        active = _affordable(arms, course, active, steps)
        _go(arms, course, active, steps)
        if rung.reach:
            _surround(arms, course, active, rung, steps, plan.at_most)
    _fill(arms, course)
    best = min(course.steps, key=arms.score)
    course.extended = (best > max(plan.first)) - (best < min(plan.first))


def rescue(arms: Arms, course: Course) -> None:
    """Take others to the horizon while no rate that got there ended below its start.

    A favourite may fail late. Before the scan calls every rate bad, the next best go the whole way,
    as far as the budget allows.

    Args:
        arms: The rates, after successive halving.
        course: The course of it; what is done here is added.
    """
    while True:
        whole = [i for i, steps in course.steps.items() if steps >= arms.horizon]
        if any(arms.below_start(i) for i in whole):
            return
        others = [i for i in course.steps if i not in whole and arms.score(i) < math.inf]
        if not others:
            return
        best = min(others, key=arms.score)
        if arms.horizon - course.steps[best] > arms.left():
            return
        course.log.append(f"{best:+g}: taken to the horizon, where none is below its start")
        _go(arms, course, [best], arms.horizon)


def finish(arms: Arms, course: Course) -> None:
    """Take the rate that is chosen to the horizon, where it was left close to it.

    Args:
        arms: The rates, after successive halving.
        course: The course of it; what is done here is added.
    """
    found = shortfalls(arms, course.steps)
    if found is None:
        return
    middle = found.choice()
    chosen = min(found.far, key=lambda i: (round(abs(i - middle), 6), i))
    if 0 < arms.horizon - course.steps[chosen] <= arms.left():
        _go(arms, course, [chosen], arms.horizon)


def promoted(arms: Arms, active: Sequence[float], rung: Rung, *, protect: int) -> list[float]:
    """Choose who is promoted to a rung: the rule in this module's docstring.

    Args:
        arms: The rates.
        active: Those that finished the rung before.
        rung: The rung.
        protect: So many runs in flight are protected.

    Returns:
        Those promoted, best first.
    """
    cost = {i: arms.score(i) for i in active}
    order = sorted((i for i in active if cost[i] < float("inf")), key=cost.__getitem__)
    if not order:
        return []
    kept = [i for i in order[: rung.keep] if cost[i] <= cost[order[0]] + rung.tolerance]
    flying = [i for i in active if i not in kept and arms.landing(i) <= arms.horizon]
    return kept + sorted(flying, key=lambda i: (arms.landing(i), i))[:protect]


def _alive(arms: Arms, course: Course, active: list[float], steps: int) -> list[float]:
    """Who has not diverged; if all have, start ever lower ones, two octaves at a time."""
    alive = [i for i in active if arms.score(i) < float("inf")]
    lowest = min(course.steps)
    for _ in range(12):
        if alive:
            break
        lowest -= 4
        course.log.append(f"every rate diverged: started {lowest:+g}")
        _go(arms, course, [lowest], steps)
        alive = [lowest] if arms.score(lowest) < float("inf") else []
    return alive


def _surround(
    arms: Arms, course: Course, active: list[float], rung: Rung, steps: int, at_most: int
) -> None:
    """Start the best rate's missing neighbours until the best is inside."""
    for _ in range(at_most):
        if not active:
            return
        best = min(active, key=arms.score)
        wanted = (best + rung.reach, best - rung.reach)
        missing = [j for j in wanted if all(abs(j - i) > NEAR for i in active)]
        going = _affordable(arms, course, [best, *missing], steps)[1:]
        if not going:
            return
        active += going
        _go(arms, course, going, steps)


def _fill(arms: Arms, course: Course) -> None:
    """Spend what is left on whole runs, one by one; after every run the choice is another.

    Next to the choice; at the choice from another seed, once; at those that would catch up; and
    then next to the choice again, from other seeds.
    """
    while True:
        found = shortfalls(arms, course.steps)
        if found is None:
            return
        furthest, middle = course.steps[found.best], found.choice()
        around = {_tried(course, found.best + step) for step in (-2, -1, 0, 1, 2)}
        wanted = [
            i for i in sorted(around, key=lambda i: (round(abs(i - middle), 6), i))
            if abs(i - middle) < 2 and (i not in course.steps or math.isfinite(arms.score(i)))
        ]  # fmt: skip
        going = [i for i in wanted if 0 < furthest - course.steps.get(i, 0) <= arms.left()][:1]
        whole = [i for i in wanted if course.steps.get(i) == furthest and arms.repeats(i)[1]]
        again = whole if furthest <= arms.left() else []
        if not going and not (again and arms.repeats(again[0])[0] == 0):
            going = _catching_up(arms, course, found.best, furthest)
        if going:
            _go(arms, course, going, furthest)
        elif again:
            # The first of those that were repeated least: at first, that is the choice.
            arms.again(min(again, key=lambda i: arms.repeats(i)[0]), furthest)
        else:
            return


def _catching_up(arms: Arms, course: Course, best: float, furthest: int) -> list[float]:
    """The best of those left behind that would come up with the best, going on as they did."""
    ahead = []
    for i, steps in course.steps.items():
        if steps < ENOUGH * furthest or not 0 < furthest - steps <= arms.left():
            continue
        now, earlier = arms.score(i), max(1, round(EARLIER * steps))
        if now < math.inf:
            pace = (now - arms.score_at(i, earlier)) / max(1, steps - earlier)
            if now + pace * (furthest - steps) < arms.score(best) + BEHIND:
                ahead.append(i)
    return sorted(ahead, key=arms.score)[:1]


def _tried(course: Course, place: float) -> float:
    """The place itself, or one that was tried within `NEAR` of it."""
    near = min(course.steps, key=lambda i: abs(i - place))
    return near if abs(near - place) < NEAR else place


def _affordable(arms: Arms, course: Course, active: list[float], steps: int) -> list[float]:
    """The first of `active`, and those whose steps leave enough to take it to the horizon."""
    best, *others = active or [0]
    left = arms.left() - (arms.horizon - course.steps.get(best, 0))
    going = active[:1]
    for i in others:
        cost = max(0, steps - course.steps.get(i, 0))
        if cost > left:
            course.log.append(f"{i:+g}: not taken to step {steps}, to leave enough for {best:+g}")
            continue
        left -= cost
        going.append(i)
    return going


def _go(arms: Arms, course: Course, places: Sequence[float], steps: int) -> None:
    arms.advance(places, steps)
    for i in places:
        course.steps[i] = max(steps, course.steps.get(i, 0))
