"""Data, weights, parameter subsets, half precision, autocast, memory, the linear rule."""

import warnings
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from tests.curvature.nets import draw
from tests.curvature.reference import close, spectrum
from trebuchet.curvature import ModelLoss, TopEigen, half_mse, held_still, top_eigen
from trebuchet.errors import InputError

Y = torch.arange(10) % 3
CE = nn.CrossEntropyLoss()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_an_unknown_callables_reduction_is_found_out(reduction: str) -> None:
    model, x = draw("mlp")
    y = torch.randn(10, 3).double()

    def loss(z: Tensor, y: Tensor) -> Tensor:
        each = (z - y).abs().pow(3).sum(1)
        return each.mean() if reduction == "mean" else each.sum()

    whole = top_eigen(model, loss, (x, y), rtol=1e-8)
    pieces = top_eigen(model, loss, (x, y), rtol=1e-8, micro_batch=3)
    said = top_eigen(model, loss, (x, y), rtol=1e-8, micro_batch=3, reduction=reduction)  # type: ignore[arg-type]
    assert pieces.reduction == reduction
    assert close(pieces.value, whole.value, 1e-7)
    assert close(said.value, whole.value, 1e-7)


def test_partials_functions_and_modules_say_their_reduction() -> None:
    model, x = draw("mlp")
    y = torch.tensor([0, 1, -1, 0, 1, 2, -1, 2, 2, 1])
    losses = [
        (nn.CrossEntropyLoss(ignore_index=-1), "mean"),
        (partial(F.cross_entropy, ignore_index=-1), "mean"),
        (nn.CrossEntropyLoss(ignore_index=-1, reduction="sum"), "sum"),
        (partial(F.cross_entropy, ignore_index=-1, reduction="sum"), "sum"),
    ]
    for loss, reduction in losses:
        whole = top_eigen(model, loss, (x, y), rtol=1e-8)  # type: ignore[arg-type]
        pieces = top_eigen(model, loss, (x, y), rtol=1e-8, micro_batch=4)  # type: ignore[arg-type]
        assert pieces.reduction == reduction
        assert close(pieces.value, whole.value, 1e-7)


def test_all_targets_ignored() -> None:
    model, x = draw("mlp")
    with pytest.raises(InputError, match="no target counts"):
        top_eigen(model, CE, (x, torch.full((10,), -100)), micro_batch=5)


def test_loader_of_every_kind_gives_the_whole() -> None:
    model, x = draw("mlp")
    whole = top_eigen(model, CE, (x, Y), rtol=1e-8)
    batches = [(x[:7], Y[:7]), (x[7:], Y[7:])]
    loaders: list[object] = [
        batches,
        [list(b) for b in batches],
        [{"input": x[:7], "y": Y[:7]}, {"input": x[7:], "y": Y[7:]}],
        DataLoader(TensorDataset(x, Y), batch_size=3),
        DataLoader(TensorDataset(x, Y), batch_size=1),
    ]
    for loader in loaders:
        assert close(top_eigen(model, CE, loader, rtol=1e-8).value, whole.value, 1e-7)
    first = top_eigen(model, CE, batches, rtol=1e-8, max_batches=1)
    assert first.n_samples == 7
    assert close(first.value, top_eigen(model, CE, batches[0], rtol=1e-8).value, 1e-7)


def test_a_closure_over_a_loader_is_weighted_by_samples() -> None:
    model, x = draw("mlp")
    truth = spectrum(model, CE, x, Y, "hessian")[0]

    def by_name(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    wrapped = ModelLoss(lambda m, batch: F.cross_entropy(m(batch[0]), batch[1]))
    loader = DataLoader(TensorDataset(x, Y), batch_size=4)  # 4, 4, 2
    for loss in (by_name, wrapped):
        for data in (loader, (x, Y)):
            top = top_eigen(model, loss, data, "hessian", rtol=1e-8)
            assert close(top.value, truth, 1e-7)


def test_a_stateful_loader_keeps_its_position() -> None:
    class Stateful:
        position = 3

        def state_dict(self) -> dict[str, int]:
            return {"position": self.position}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.position = state["position"]

        def __iter__(self):  # type: ignore[no-untyped-def]
            self.position += 1
            return iter([(x, Y)])

    model, x = draw("mlp")
    loader = Stateful()
    top_eigen(model, CE, loader)
    assert loader.position == 3


def test_persistent_workers_keep_their_iterator() -> None:
    model, x = draw("mlp")
    loader = DataLoader(TensorDataset(x, Y), batch_size=5)
    running = iter(loader)
    next(running)
    top_eigen(model, CE, loader)
    assert len(list(running)) == 1


@pytest.mark.parametrize("operator", ["ggn", "ntk", "hessian"])
def test_parameter_subsets(operator: str) -> None:
    model, x = draw("mlp")
    names = ["2.weight", "4.bias"]
    chosen = [p for n, p in model.named_parameters() if n in names]
    subset = [
        top_eigen(model, CE, (x, Y), operator, params=params, rtol=1e-8, method=method)  # type: ignore[arg-type]
        for params in (names, chosen, lambda n, p: n in names)
        for method in ("auto", "lanczos")
    ]
    for n, p in model.named_parameters():
        p.requires_grad_(n in names)
    truth = spectrum(model, CE, x, Y, operator)[0]
    for top in subset:
        assert close(top.value, truth, 1e-7)
        assert list(top.names) == names


@pytest.mark.parametrize("net", ["mlp", "conv", "attention", "tied"])
def test_bfloat16_weights_are_evaluated_in_float32(net: str) -> None:
    model, x = draw(net)
    model = model.bfloat16()
    weights = [p.clone() for p in model.parameters()]
    inputs = x.bfloat16() if x.is_floating_point() else x
    tops = [
        top_eigen(model, CE, (inputs, Y), operator, rtol=1e-4, mode="eval")
        for operator in ("ggn", "hessian")
    ]
    for p, w in zip(model.parameters(), weights, strict=True):
        assert torch.equal(p, w)
        assert p.dtype == torch.bfloat16
    closure = top_eigen(
        model,
        ModelLoss(lambda m, b: CE(m(b[0]), b[1])),
        (inputs, Y),
        "hessian",
        rtol=1e-4,
        mode="eval",
    )
    wide = model.double()
    x64 = inputs.double() if x.is_floating_point() else x
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        for top, operator in zip(tops, ("ggn", "hessian"), strict=True):
            assert top.converged
            assert close(top.value, spectrum(wide, CE, x64, Y, operator)[0], 1e-4)
    assert close(closure.value, tops[1].value, 1e-6)


def test_autocast_is_entered_for_the_model_only_and_its_rounding_is_admitted() -> None:
    model, x = draw("conv")
    model, x = model.float(), x.float()
    truth = top_eigen(model, CE, (x, Y), mode="eval").value
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loose = top_eigen(model, CE, (x, Y), rtol=0.1, mode="eval")
        tight = top_eigen(model, CE, (x, Y), rtol=1e-3, mode="eval")
    assert loose.converged
    assert close(loose.value, truth, 0.1)
    assert not tight.converged
    assert "rounding" in tight.note
    assert abs(tight.value - truth) <= tight.residual


def test_kept_and_remade_graphs_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    import trebuchet.curvature.memory as memory

    model, x = draw("conv")
    results: list[list[float]] = []
    for room in (0, 1 << 30):
        monkeypatch.setattr(memory, "KEEP_BYTES", room)
        results.append([
            top_eigen(model, CE, (x, Y), op, micro_batch=3, rtol=1e-8).value
            for op in ("ggn", "ntk", "hessian")
        ])  # fmt: skip
    assert results[0] == pytest.approx(results[1], rel=1e-12)


def rule(model: nn.Module, x: Tensor, y: Tensor, loss: object = half_mse) -> TopEigen:
    return top_eigen(model, loss, (x, y), rtol=1e-8)  # type: ignore[arg-type]


class Plain(nn.Module):
    """A module with a forward of its own; it mixes samples if asked to."""

    def __init__(self, mix: bool) -> None:
        super().__init__()
        self.a, self.b, self.mix = nn.Linear(50, 200), nn.Linear(200, 1), mix

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        if self.mix:
            h = h - h.mean(0)
        out: Tensor = self.b(h)
        return out


@pytest.mark.parametrize("loss", [half_mse, nn.MSELoss(), nn.BCEWithLogitsLoss()])
def test_layer_rule_is_taken_and_right(loss: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(50, 200), nn.ReLU(), nn.Linear(200, 1)).double()
    model[0].bias.requires_grad_(False)
    x, y = torch.randn(16, 50).double(), torch.rand(16, 1).double()
    top = rule(model, x, y, loss)
    assert top.method == "layer rule"
    other = top_eigen(model, loss, (x, y), method="lanczos", rtol=1e-8, vectors=True)
    assert other.method == "lanczos"
    assert close(top.value, other.value, 1e-9)
    vectors = top_eigen(model, loss, (x, y), vectors=True).vectors
    assert vectors is not None
    assert other.vectors is not None
    assert close(abs(float(vectors[0] @ other.vectors[0])), 1, 1e-6)


def test_layer_rule_is_verified_where_samples_may_mix() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(16, 50).double(), torch.randn(16, 1).double()
    for mix, method in ((False, "layer rule"), (True, "lanczos")):
        model = Plain(mix).double()
        top = rule(model, x, y)
        assert top.method == method
        assert close(top.value, top_eigen(model, half_mse, (x, y), method="lanczos").value, 1e-9)
        j = spectrum(Small(mix), None, x[:, :5], y, "ntk")
        assert close(top_eigen(Small(mix), None, x[:, :5], "ntk", rtol=1e-8).value, j[0], 1e-7)


class Small(Plain):
    """A `Plain` of a size for dense autograd."""

    def __init__(self, mix: bool) -> None:
        super().__init__(mix)
        torch.manual_seed(1)
        self.a, self.b = nn.Linear(5, 20).double(), nn.Linear(20, 1).double()


def test_tracking_with_warm_starts_follows_training() -> None:
    model, x = draw("conv")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    warm = None
    for _ in range(10):
        warm = top_eigen(model, CE, (x, Y), "hessian", rtol=1e-2, warm=warm, mode="eval")
        assert warm.converged
        assert close(warm.value, spectrum(model, CE, x, Y, "hessian")[0], 1e-2)
        optimizer.zero_grad()
        CE(model(x), Y).backward()
        optimizer.step()


def test_held_still_restores_what_a_scan_changes() -> None:
    model, x = draw("conv")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    CE(model(x), Y).backward()
    optimizer.step()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    moments = [s["exp_avg"].clone() for s in optimizer.state.values()]

    def interrupted_scan() -> None:
        with held_still(model, mode="train", optimizer=optimizer, parameters_too=True):
            for _ in range(3):
                optimizer.param_groups[0]["lr"] *= 10
                optimizer.zero_grad()
                CE(model(x), Y).backward()
                optimizer.step()
            assert not torch.equal(model.state_dict()["0.weight"], state["0.weight"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_scan()
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    for s, m in zip(optimizer.state.values(), moments, strict=True):
        assert torch.equal(s["exp_avg"], m)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_compiled_and_parallel_wrappers_are_taken_off() -> None:
    model, x = draw("mlp")
    plain = top_eigen(model, CE, (x, Y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = [torch.compile(model), nn.DataParallel(model)]
    for module in wrapped:
        assert top_eigen(module, CE, (x, Y)).value == plain.value  # type: ignore[arg-type]


def test_result_reads_as_a_paragraph() -> None:
    model, x = draw("mlp")
    top = top_eigen(model, CE, (x, Y), k=2)
    text = str(top)
    assert "Gauss–Newton" in text
    assert f"{top.lr_crit:.6g}" in text
    assert "converged" in text
    assert "train mode" in text


def test_a_loss_said_to_be_convex_is_worked_on_in_output_space() -> None:
    model, x = draw("conv")

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z.view(5, 2, 3).flatten(0, 1), y)

    unsaid = top_eigen(model, loss, (x, Y), rtol=1e-8, method="lanczos")
    said = top_eigen(model, loss, (x, Y), rtol=1e-8, method="lanczos", convex=True)
    assert (unsaid.side, said.side) == ("parameters", "outputs")
    assert close(said.value, unsaid.value, 1e-8)
