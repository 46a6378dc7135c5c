"""What the user's model or loss raised, in one sentence that names the layer."""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import ParamSpec

from torch import nn

from trebuchet._checks import one_line
from trebuchet.errors import InputError
from trebuchet.problem.risk import out_of_memory

_FEW = "Expected more than 1"
_REENTRANT = "use_reentrant"
_OWN = "raised_by_a_callback"

P = ParamSpec("P")


class NoDerivativeError(InputError):
    """A derivative that automatic differentiation does not have; there may be another route."""


@contextlib.contextmanager
def explained(model: nn.Module, what: str, advice: str) -> Iterator[None]:
    """Turn whatever is raised inside into an InputError; memory running out passes as it is.

    Args:
        model: Whose layers are looked for in the traceback.
        what: Whose fault it is: ``"model"`` or ``"loss"``.
        advice: What to check.

    Yields:
        Nothing.

    Raises:
        InputError: In the place of any other exception.
    """
    try:
        yield
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        _pass_on(error)
        where = layer_of(error, model)
        if _FEW in str(error):
            msg = (
                f"data: a batch is too small for the batch statistics of {where or 'the model'} "
                f"({one_line(error)}); give every batch at least two samples, or mode='eval' for "
                "the running statistics"
            )
        elif _REENTRANT in str(error):
            msg = reentrant()
        else:
            place = f", in {where}" if where else ""
            msg = f"{what}: it cannot take this data ({one_line(error)}{place}); {advice}"
        raise InputError(msg) from error


def _pass_on(error: BaseException) -> None:
    """Raise again what is no fault of the arguments, and what somebody made a type of their own."""
    known = type(error).__module__.partition(".")[0] in ("builtins", "torch")
    passes = isinstance(error, (InputError, Warning)) or hasattr(error, _OWN)
    if passes or out_of_memory(error) or not known:
        raise error


def callers_own(callback: Callable[P, None]) -> Callable[P, None]:
    """Mark what a callback raises: it is no fault of the model's, and comes out as it is.

    Args:
        callback: Called in the middle of the work.

    Returns:
        The same, its exceptions marked.
    """

    def called(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            callback(*args, **kwargs)
        except Exception as error:  # whatever it is, it is the caller's
            setattr(error, _OWN, True)
            raise

    return called


def missing(error: BaseException, model: nn.Module) -> str:
    """Say which derivative is missing; memory running out, which is no such thing, passes as it is.

    Args:
        error: What autograd raised.
        model: The model.

    Returns:
        A few words.
    """
    _pass_on(error)
    return operation_of(error, model)


def reentrant() -> str:
    """Return what to do about reentrant checkpointing."""
    return (
        "model: uses reentrant checkpointing, through which no second derivative can be taken; "
        "pass use_reentrant=False to torch.utils.checkpoint"
    )


def layer_of(error: BaseException, model: nn.Module) -> str:
    """Name the innermost layer of the model that an exception came through.

    Args:
        error: With its traceback.
        model: The model.

    Returns:
        Such as ``"Linear 'head.2'"``; empty if no layer is in the traceback.
    """
    names = {id(m): name for name, m in model.named_modules()}
    found, trace = "", error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and names.get(id(owner)):
            found = f"{type(owner).__name__} {names[id(owner)]!r}"
        trace = trace.tb_next
    return found


def operation_of(error: BaseException, model: nn.Module) -> str:
    """Name the operation whose derivative is missing, and the layers that are made of it.

    Args:
        error: What autograd raised.
        model: The model.

    Returns:
        Such as ``"_embedding_bag_backward (EmbeddingBag '0')"``, or the error itself in one line.
    """
    text = str(error)
    if "once_differentiable" in text:
        return "a function marked @once_differentiable"
    match = re.search(r"derivative for '?(?:aten::)?(\w+)'? is not implemented", text)
    if match is None:
        return one_line(error)
    plain = match[1].replace("_", "")
    layers = [
        f"{type(m).__name__} {name!r}"
        for name, m in model.named_modules()
        if len(type(m).__name__) > 4 and type(m).__name__.lower() in plain
    ]
    return match[1] + (f" ({', '.join(layers)})" if layers else "")
