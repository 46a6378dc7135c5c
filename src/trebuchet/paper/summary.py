"""A figure in a few lines of text."""

from trebuchet._types import Phase
from trebuchet.paper.figures import Figure


def headline(result: Figure) -> list[str]:
    """λ₀, the edges, and how many runs fell into which phase, up to which rate.

    Args:
        result: The figure.

    Returns:
        Lines for a terminal.
    """
    runs = result.runs
    edges = ", ".join(
        f"{name} {edge.lr_ratio:.4f}{'' if edge.proven or name == 'critical' else ' (as coded)'}"
        for name, edge in result.edges.items()
    )
    lines = [f"λ₀ = {float(runs.top_eigenvalue_init[0]):.6g}; edges in ηλ₀: {edges}"]
    spans = []
    for phase in Phase:
        rates = runs.lr.values[(runs.phase == str(phase)).any("seed").values]
        if rates.size:
            span = f"{rates[0]:g}" if rates.size == 1 else f"{rates[0]:g}–{rates[-1]:g}"
            spans.append(f"{phase} {span}")
    lines.append("phases by ηλ₀: " + ", ".join(spans))
    return lines
