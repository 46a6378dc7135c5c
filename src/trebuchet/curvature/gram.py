"""The dense Gram matrix of the NTK by automatic differentiation: the reference."""

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev


def gram(model: nn.Module, x: Tensor, *, chunk: int | None = None) -> Tensor:
    """H = JJᵀ/D from the Jacobian of every output with respect to every trainable parameter.

    Exact, and quadratic in samples × outputs: for small problems, and for checking everything
    else against.

    Args:
        model: Any module that ``torch.func`` can differentiate.
        x: Inputs, D rows.
        chunk: How many rows of the Jacobian are formed at a time; all unless given.

    Returns:
        H, shape ``(D·K, D·K)``, in the model's dtype; sample a and output k stand in row a·K + k.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(3, 1, bias=False).double()
        >>> x = torch.tensor([[1.0, 2.0, 2.0]]).double()
        >>> gram(net, x)
        tensor([[9.]], dtype=torch.float64)
    """
    parameters = {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}
    fixed = {k: v.detach() for k, v in [*model.named_parameters(), *model.named_buffers()]}

    def outputs(trainable: dict[str, Tensor]) -> Tensor:
        out: Tensor = functional_call(model, {**fixed, **trainable}, (x,))
        return out.reshape(-1)  # (D·K,)

    rows: dict[str, Tensor] = jacrev(outputs, chunk_size=chunk)(parameters)
    jacobian = torch.cat([j.flatten(1) for j in rows.values()], dim=1)  # (D·K, P)
    return jacobian @ jacobian.T / x.shape[0]


def top_of_gram(matrices: Tensor) -> Tensor:
    """Largest eigenvalue of each symmetric matrix in a stack.

    Computed in float64 whatever the dtype: a dead ReLU network has a Gram matrix of low rank with
    many zero rows, and on these LAPACK's float32 solver squares rounding errors until they
    underflow. It then fails, or returns a wrong number and says nothing.

    Args:
        matrices: Shape ``(…, m, m)``.

    Returns:
        Shape ``(…)``, in the dtype of `matrices`, float32 for half precision; NaN where a matrix
        holds a non-finite entry, as after a divergence, or where LAPACK finds no eigenvalues.
    """
    dtype = matrices.dtype
    if dtype in (torch.float16, torch.bfloat16):
        dtype = torch.float32
    if matrices.shape[-1] == 1:
        only = matrices[..., 0, 0].to(dtype)
        return torch.where(only.isfinite(), only, torch.nan)
    finite = torch.isfinite(matrices).all(-1).all(-1)
    whole = bool(finite.all())
    safe = matrices if whole else torch.where(finite[..., None, None], matrices, 0)
    top = _largest(safe.double()).to(dtype)
    return top if whole else torch.where(finite, top, torch.nan)


def eigen_of_gram(matrices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues of each matrix of a stack, descending, and their eigenvectors.

    Args:
        matrices: Shape ``(R, m, m)``.
        k: How many; missing ones are NaN.

    Returns:
        Shapes ``(R, k)`` and ``(R, m, k)``, float64.
    """
    runs, m = matrices.shape[0], matrices.shape[-1]
    values = torch.full((runs, k), torch.nan, dtype=torch.float64)
    vectors = torch.full((runs, m, k), torch.nan, dtype=torch.float64)
    found = min(k, m)
    for run, matrix in enumerate(matrices.double().cpu()):
        if bool(torch.isfinite(matrix).all()):
            each, their = torch.linalg.eigh(matrix)
            values[run, :found] = each.flip(0)[:found]
            vectors[run, :, :found] = their.flip(1)[:, :found]
    return values, vectors


def curved(gram: Tensor, curvature: Tensor) -> Tensor:
    """H^½ C H^½, whose spectrum is that of JᵀCJ/D but for zeros.

    Args:
        gram: H = JJᵀ/D, ``(R, m, m)``.
        curvature: C = ∂²L/∂z², ``(R, m, m)``; it need not be positive.

    Returns:
        Float64, ``(R, m, m)``; NaN where an entry is not finite.
    """
    h, c = gram.double(), curvature.double()
    finite = (torch.isfinite(h) & torch.isfinite(c)).all(-1).all(-1)[:, None, None]
    values, vectors = torch.linalg.eigh(torch.where(finite, h, 0.0))
    root = vectors * values.clamp_min(0).sqrt().unsqueeze(-2) @ vectors.mT
    return torch.where(finite, root @ torch.where(finite, c, 0.0) @ root, torch.nan)


def _largest(matrices: Tensor) -> Tensor:
    """Largest eigenvalues; a matrix that fails does not take the rest of the stack with it."""
    try:
        top: Tensor = torch.linalg.eigvalsh(matrices)[..., -1]
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # not in torch's stubs
        if matrices.ndim == 2:
            return matrices.new_full((), torch.nan)
        top = torch.stack([_largest(matrix) for matrix in matrices])
    return top
