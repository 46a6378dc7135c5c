"""Whether two tensors hold the same, of whatever layout."""

import torch
from torch import Tensor

_PARTS = {
    torch.sparse_coo: ("indices", "values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same shape and entries; ``torch.equal`` knows dense ones only.

    Args:
        a: One, such as a buffer that a forward pass may have moved.
        b: The other, of the same device and dtype.

    Returns:
        True if they do; of sparse tensors, if they also store the same entries.

    Example:
        >>> graph = torch.eye(2).to_sparse()
        >>> same(graph, graph.clone()), same(graph, 2 * graph)
        (True, False)
    """
    if a.layout is not b.layout or a.shape != b.shape:
        return False
    parts = _PARTS.get(a.layout)
    if parts is None:
        return torch.equal(a, b)
    if a.layout is torch.sparse_coo:  # the same place may be stored several times
        a, b = a.coalesce(), b.coalesce()
    return all(torch.equal(getattr(a, part)(), getattr(b, part)()) for part in parts)
