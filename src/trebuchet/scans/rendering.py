"""The table of a scan for terminals and notebooks, laid out as every table of rates is."""

import math
from typing import TYPE_CHECKING

from trebuchet.scans.tables import DROPPED
from trebuchet.show.rates import RateTable

if TYPE_CHECKING:
    from trebuchet.scans.result import Scan

COLUMNS: dict[str, str] = {
    "rate": "lr",
    "lr_ratio": "lr_ratio",
    "peak_ratio": "peak_ratio",
    "recovery_step": "recovery_step",
    "steps": "steps",
    "loss": "loss",
    "lr_ratio_final": "ratio_final",
    "sparsity": "sparsity",
}
"""What is shown of a scan's table, under the names that headings go by."""
OPTIONAL = ("lr_ratio", "lr_ratio_final", "sparsity")
"""Left out where nothing is known of them."""


def rate_table(scan: "Scan") -> RateTable:
    """Lay out the table of rates.

    Args:
        scan: The scan.

    Returns:
        For terminal and notebook; the row nearest to the suggestion is pointed out.
    """
    table = scan.table
    # ηλ₀ is read against 2: not where λ₀ is a bound only, or where the optimizer's edge is another.
    two = scan.critical.converged and math.isclose(scan.lr_crit * scan.top_eigenvalue, 2.0)
    top = scan.top_eigenvalue if two else math.nan
    numbers = table.assign(lr_ratio=table["rate"] * top)
    shown = [c for c in COLUMNS if c not in OPTIONAL or numbers[c].notna().any()]
    # Nearest of the rates that came furthest: a trial of a few steps says nothing of this one.
    furthest = table["steps"] == table["steps"].max()
    away = [
        abs(math.log(rate / scan.suggestion.rate)) if far else math.inf
        for rate, far in zip(table["rate"], furthest, strict=True)
    ]
    seeds = [name for name in table if str(name).startswith("phase_seed")]
    return RateTable(
        numbers[shown].rename(columns=COLUMNS),
        table[seeds].astype(str).to_numpy().tolist(),
        here=[distance == min(away) for distance in away],
        here_means="nearest to the suggestion, of the longest runs",
        faint=(table["status"] == DROPPED).tolist(),
    )
