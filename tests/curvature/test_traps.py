"""The eleven traps that other tools fall into, each reproduced, each a test."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from tests.curvature.nets import Attention, Recurrent, conv, draw
from tests.curvature.reference import close, spectrum
from trebuchet.curvature import TopEigen, half_mse, top_eigen
from trebuchet.curvature.result import WarmState

TOP, SECOND = 1.9314, 1.9092


def close_pair(
    dtype: torch.dtype = torch.float32,
) -> tuple[nn.Module, tuple[Tensor, Tensor], Tensor]:
    """A linear model whose NTK has the top pair 1.9314 and 1.9092 over a bulk below 1.5.

    z = x·θ has the NTK XXᵀ/D, so its spectrum is chosen through X = Q √(D Λ) Uᵀ.
    """
    d, n = 120, 150
    g = torch.Generator().manual_seed(7)
    q = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64)).Q
    u = torch.linalg.qr(torch.randn(n, d, generator=g, dtype=torch.float64)).Q
    pair = torch.tensor([TOP, SECOND], dtype=torch.float64)
    values = torch.cat([pair, torch.linspace(0.01, 1.5, d - 2, dtype=torch.float64)])
    x = (q * (d * values).sqrt()) @ u.T
    net = nn.Linear(n, 1, bias=False).to(dtype)
    return net, (x.to(dtype), torch.zeros(d, 1, dtype=dtype)), u.T


def wrong(top: TopEigen) -> bool:
    return top.converged and not close(top.value, TOP, 1e-3)


@pytest.mark.many_seeds
def test_trap_01_close_pair_is_never_mistaken_over_300_seeds() -> None:
    net, data, _ = close_pair()
    runs = [top_eigen(net, half_mse, data, method="lanczos", seed=s) for s in range(300)]
    assert not [s for s, top in enumerate(runs) if wrong(top)]
    assert all(top.converged for top in runs)
    # The certificate is what does it: the residual alone would have stopped earlier, sometimes on
    # the wrong one. And it is never far beyond need: fewer products than `eigsh` takes at ncv = 20
    # restarts, on a problem this hard.
    assert max(top.products for top in runs) < 60


def test_trap_01_tanh_net_in_float32_over_300_seeds() -> None:
    torch.manual_seed(4)
    net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1))
    x = torch.randn(24, 6)
    truth = spectrum(net.double(), None, x.double(), x, "ntk")[0]
    net = net.float()
    for seed in range(300):
        top = top_eigen(net, None, x, "ntk", method="lanczos", seed=seed)
        assert top.converged
        assert close(top.value, truth, 1e-3)


@pytest.mark.many_seeds
def test_trap_02_stale_warm_starts_300_of_them() -> None:
    net, data, eigenvectors = close_pair()
    first = top_eigen(net, half_mse, data, method="lanczos", micro_batch=60)
    assert first.side == "parameters"
    for seed in range(300):
        g = torch.Generator().manual_seed(seed)
        noise = torch.randn(150, generator=g, dtype=torch.float64)
        # The second eigenvector, alone or with others, plus 1e-4 noise; some exactly, without.
        stale = eigenvectors[1] + 1e-4 * noise / noise.norm() * (seed % 3 > 0)
        if seed % 2:
            stale = stale + eigenvectors[2 + seed % 50]
        warm = replace(first, warm=WarmState("parameters", stale.float()[None]))
        top = top_eigen(net, half_mse, data, micro_batch=60, warm=warm, seed=seed)
        assert not wrong(top)
        assert top.converged


def test_trap_02_a_good_warm_start_is_used() -> None:
    net, data, _ = close_pair(torch.float64)
    cold = top_eigen(net, half_mse, data, method="lanczos", rtol=1e-2)
    warm = top_eigen(net, half_mse, data, method="lanczos", rtol=1e-2, warm=cold, seed=1)
    assert warm.converged
    assert close(warm.value, TOP, 1e-2)


def test_trap_03_largest_algebraic_of_an_indefinite_hessian() -> None:
    theta = nn.Linear(40, 1, bias=False).double()
    d = torch.cat([torch.tensor([3.0, -5.0]).double(), torch.linspace(-2, 2, 38).double()])

    def loss(model: nn.Linear, scales: Tensor) -> Tensor:
        return (scales * model.weight.square()).sum() / 2

    top = top_eigen(theta, loss, d, "hessian")
    assert top.converged
    assert close(top.value, 3.0, 1e-3)
    assert close(top.lr_crit, 2 / 3, 1e-3)


def test_trap_04_ragged_batches_are_weighted_by_samples() -> None:
    model, x = draw("mlp")
    x = torch.cat([x, x * 2, 3 * x[:3]])  # 23 samples
    y = torch.arange(23) % 3
    whole = top_eigen(model, nn.CrossEntropyLoss(), (x, y), "hessian", rtol=1e-8)
    truth = spectrum(model, nn.CrossEntropyLoss(), x, y, "hessian")[0]
    assert close(whole.value, truth, 1e-7)
    loader = DataLoader(TensorDataset(x, y), batch_size=20)  # 20 + 3
    for operator in ("ggn", "hessian", "ntk"):
        one = top_eigen(model, nn.CrossEntropyLoss(), (x, y), operator, rtol=1e-8)
        two = top_eigen(model, nn.CrossEntropyLoss(), loader, operator, rtol=1e-8)
        assert close(two.value, one.value, 1e-7)


def test_trap_04_ignored_targets_are_not_counted() -> None:
    model, x = draw("mlp")
    y = torch.tensor([0, 1, -100, -100, -100, -100, -100, 2, 2, 1])
    loss = nn.CrossEntropyLoss()
    one = top_eigen(model, loss, (x, y), rtol=1e-8)
    two = top_eigen(model, loss, (x, y), rtol=1e-8, micro_batch=4)  # a piece with one target
    assert close(two.value, one.value, 1e-7)
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([0.2, 3.0, 1.0]).double())
    one = top_eigen(model, weighted, (x, y), rtol=1e-8)
    two = top_eigen(model, weighted, (x, y), rtol=1e-8, micro_batch=4)
    assert close(two.value, one.value, 1e-7)


def test_trap_05_outputs_are_not_averaged() -> None:
    model, x = draw("mlp")
    j = spectrum(model, half_mse, x, torch.zeros(10, 3).double(), "ggn")
    top = top_eigen(model, None, x, "ntk")
    assert close(top.value, j[0], 1e-3)
    assert close(top.lr_crit, 2 / j[0], 1e-3)


def test_trap_06_the_losses_own_convention() -> None:
    net = nn.Linear(2, 3, bias=False).double()
    x, y = torch.randn(8, 2).double(), torch.randn(8, 3).double()
    k = 3
    half = top_eigen(net, half_mse, (x, y))
    mean = top_eigen(net, nn.MSELoss(), (x, y))
    total = top_eigen(net, nn.MSELoss(reduction="sum"), (x, y))
    assert close(mean.lr_crit, half.lr_crit * k / 2, 1e-9)
    assert close(total.lr_crit, half.lr_crit / (2 * 8), 1e-9)
    # The NTK is the same for all of them, the learning rate is not.
    ntk = top_eigen(net, nn.MSELoss(), (x, y), "ntk")
    assert close(ntk.value, half.value, 1e-9)
    assert close(ntk.lr_crit, mean.lr_crit, 1e-6)
    # A truth of its own: gradient descent on a quadratic shrinks just below 2/λ, grows above.
    for factor, shrinks in ((0.99, True), (1.01, False)):
        w = nn.Linear(2, 3, bias=False).double()
        start, end = descend(w, nn.MSELoss(), x, y, factor * mean.lr_crit)
        assert (end < start) == shrinks


def descend(w: nn.Linear, loss: nn.Module, x: Tensor, y: Tensor, lr: float) -> tuple[float, float]:
    """Distance to the optimum before and after 1,000 steps."""
    best = torch.linalg.lstsq(x, y).solution.T
    start = float((w.weight.detach() - best).norm())
    for _ in range(1000):
        (g,) = torch.autograd.grad(loss(w(x), y), w.weight)
        with torch.no_grad():
            w.weight -= lr * g
    return start, float((w.weight.detach() - best).norm())


@pytest.mark.parametrize("mode", ["eval", "train", "as_is"])
def test_trap_07_batch_norm_statistics_and_dropout(mode: str) -> None:
    torch.manual_seed(0)
    model = conv().double().train()
    x, y = torch.randn(10, 2, 6, 6).double(), torch.arange(10) % 3
    before = {n: b.clone() for n, b in model.named_buffers()}
    first = top_eigen(model, nn.CrossEntropyLoss(), (x, y), mode=mode)  # type: ignore[arg-type]
    again = top_eigen(model, nn.CrossEntropyLoss(), (x, y), mode=mode)  # type: ignore[arg-type]
    assert first.value == again.value
    assert first.mode == mode
    assert first.converged  # a random operator would not
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])
    assert all(m.training for m in model.modules())
    if mode != "as_is":
        model[6].p = 0.0  # type: ignore[index]  # what both modes promise to do
        model.train(mode == "train")
        truth = spectrum(model, nn.CrossEntropyLoss(), x, y, "ggn")[0]
        assert close(first.value, truth, 1e-3)


def test_trap_07_dropout_as_is_is_one_fixed_mask_even_uncached() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 30), nn.Dropout(0.5), nn.Linear(30, 3)).double().train()
    x, y = torch.randn(12, 5).double(), torch.arange(12) % 3
    import trebuchet.curvature.measurement as module

    values = []
    for keep in (0, 2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "how_many_fit", lambda _, keep=keep: keep)
            top = top_eigen(model, nn.CrossEntropyLoss(), (x, y), mode="as_is", micro_batch=6)
            assert top.converged
            values.append(top.value)
    assert close(values[0], values[1], 1e-12)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.TransformerEncoderLayer])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_trap_08_attention_and_recurrent_kernels(kind: type[nn.Module], mode: str) -> None:
    torch.manual_seed(0)
    attention = kind is nn.TransformerEncoderLayer
    model = (Attention() if attention else Recurrent(kind)).double().train()  # type: ignore[arg-type]
    x, y = torch.randn(6, 4, 8 if attention else 4).double(), torch.arange(6) % 3
    kernels = (
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cudnn.enabled,
        torch._C._get_mkldnn_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),  # type: ignore[no-untyped-call]
    )
    for operator in ("ggn", "ntk", "hessian"):
        top = top_eigen(model, nn.CrossEntropyLoss(), (x, y), operator, mode=mode)  # type: ignore[arg-type]
        assert top.converged
    assert kernels == (
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cudnn.enabled,
        torch._C._get_mkldnn_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),  # type: ignore[no-untyped-call]
    )


@pytest.mark.parametrize("method", ["auto", "lanczos", "dense"])
def test_trap_09_one_by_one(method: str) -> None:
    net = nn.Linear(1, 1, bias=False).double()
    x = torch.tensor([[3.0]]).double()
    for operator in ("ntk", "ggn", "hessian"):
        top = top_eigen(net, half_mse, (x, x), operator, method=method)  # type: ignore[arg-type]
        assert close(top.value, 9.0, 1e-12)
        assert top.converged
        assert np.isnan(top.gap)


def test_trap_10_a_shuffled_loader_is_one_data_set() -> None:
    model, x = draw("mlp")
    y = torch.arange(10) % 3
    g = torch.Generator().manual_seed(5)
    state = g.get_state()
    loader = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True, generator=g)
    shuffled = top_eigen(model, nn.CrossEntropyLoss(), loader, rtol=1e-8)
    whole = top_eigen(model, nn.CrossEntropyLoss(), (x, y), rtol=1e-8)
    assert close(shuffled.value, whole.value, 1e-7)
    assert torch.equal(g.get_state(), state)
    order = [b[1].tolist() for b in loader]
    g.set_state(state)
    assert order == [b[1].tolist() for b in loader]


class Stop(Exception):
    """Something that goes wrong in the middle."""


@pytest.mark.parametrize("accident", [None, Stop, KeyboardInterrupt])
def test_trap_11_everything_is_restored(accident: type[BaseException] | None) -> None:
    torch.manual_seed(0)
    model = conv().double().train()
    model[0].eval()  # type: ignore[index]  # a mixed set of flags must survive
    model[1].weight.grad = torch.ones(4).double()  # type: ignore[index]
    x, y = torch.randn(10, 2, 6, 6).double(), torch.arange(10) % 3
    optimizer = torch.optim.Adam(model.parameters())
    loader = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True)
    before = snapshot(model, optimizer)
    count = 0

    def hook(*_: object) -> None:
        nonlocal count
        count += 1
        if accident is not None and count > 4:
            raise accident

    handle = model[7].register_forward_hook(hook)  # type: ignore[index]

    def on_step(products: int, *_: float) -> None:
        if accident is not None and products > 2:
            raise accident

    for mode in ("eval", "train", "as_is"):
        for operator in ("ggn", "hessian"):
            count = 0
            try:
                top_eigen(
                    model, nn.CrossEntropyLoss(), loader, operator, mode=mode,
                    optimizer=optimizer, on_step=on_step,
                )  # fmt: skip
            except (Stop, KeyboardInterrupt):
                assert accident is not None
            else:
                assert accident is None
            assert_same(before, snapshot(model, optimizer))
    handle.remove()


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, object]:
    return {
        "parameters": [p.detach().clone() for p in model.parameters()],
        "ids": [id(p) for p in [*model.parameters(), *model.buffers()]],
        "buffers": [b.clone() for b in model.buffers()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "flags": [m.training for m in model.modules()],
        "wants": [p.requires_grad for p in model.parameters()],
        "torch": torch.get_rng_state(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002
        "python": random.getstate(),
        "optimizer": str(optimizer.state_dict()),
        "grad mode": torch.is_grad_enabled(),
    }


def assert_same(a: dict[str, object], b: dict[str, object]) -> None:
    for key, value in a.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, b[key]), key  # type: ignore[arg-type]
        elif isinstance(value, list):
            for one, two in zip(value, b[key], strict=True):  # type: ignore[call-overload]
                same = torch.equal(one, two) if isinstance(one, Tensor) else one == two
                assert same, key
        else:
            assert value == b[key], key


def test_a_closure_that_calls_backward_leaves_grad_alone() -> None:
    model, x = draw("mlp")
    p = next(model.parameters())
    p.grad = torch.ones_like(p)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        F.mse_loss(model(batch), torch.zeros(10, 3).double()).backward()  # type: ignore[no-untyped-call]
        return F.mse_loss(model(batch), torch.zeros(10, 3).double())

    top = top_eigen(model, loss, x, "hessian")
    assert top.converged
    assert torch.equal(p.grad, torch.ones_like(p))
