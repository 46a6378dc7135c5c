"""What losses are called, at every door: scan, sweep, top_eigen and the command line.

No torch here, so that the command line's help costs nothing; `losses.TABLE` has a row for each.
"""

NAMES: dict[str, str] = {
    "half_mse": "L = (1/2D) Σ (z − y)², the theory's",
    "mse": "",
    "cross_entropy": "",
    "bce": "of logits",
    "huber": "",
    "smooth_l1": "",
    "l1": "",
    "nll": "",
    "soft_margin": "",
    "poisson_nll": "",
    "kl_div": "",
}
"""Name → what to know of it; the others are torch's, with its means."""


def described() -> str:
    """The names in a sentence, for help texts.

    Returns:
        The sentence.
    """
    shown = [f"{name} ({note})" if note else name for name, note in NAMES.items()]
    return f"{', '.join(shown[:-1])} or {shown[-1]}; as in torch."
