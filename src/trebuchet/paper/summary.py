"""A figure in a few lines of text."""

from rich.text import Text

from trebuchet._types import Phase
from trebuchet.paper.figures import Figure
from trebuchet.show.marks import coloured, marked


def headline(result: Figure) -> list[Text]:
    """λ₀, the edges, and how many runs fell into which phase, up to which rate.

    Args:
        result: The figure.

    Returns:
        Lines for a terminal, each phase with its mark and in its colour.
    """
    runs = result.runs
    edges = ", ".join(
        f"{name} {edge.lr_ratio:.4f}{'' if edge.proven or name == 'critical' else ' (as coded)'}"
        for name, edge in result.edges.items()
    )
    first = Text(f"λ₀ = {float(runs.top_eigenvalue_init[0]):.6g}; edges in ηλ₀: {edges}")
    spans = []
    for phase in Phase:
        rates = runs.lr.values[(runs.phase == str(phase)).any("seed").values]
        if rates.size:
            span = f"{rates[0]:g}" if rates.size == 1 else f"{rates[0]:g}–{rates[-1]:g}"
            spans.append(Text.assemble(coloured(phase, marked(phase)), f" {span}"))
    return [first, Text("phases by ηλ₀: ").append_text(Text(", ").join(spans))]
