"""Other initialisations of a given module: where its weights pass for a draw, and nowhere else."""

import copy

import pytest
import torch
from torch import nn

from trebuchet.problem.afresh import afresh


class Tokens(nn.Module):
    """Attention, embeddings, norms, a convolution: torch's own layers reset themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.mix = nn.Conv1d(16, 16, 3, padding=1)
        self.norm = nn.BatchNorm1d(16)
        self.read = nn.GRU(16, 12, batch_first=True)
        self.out = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, T) codes to (N, T, 3)."""
        z = self.norm(self.mix(self.block(self.embed(x)).transpose(1, 2))).transpose(1, 2)
        y: torch.Tensor = self.out(self.read(z)[0])
        return y


def test_a_fresh_module_is_drawn_like_a_new_one() -> None:
    torch.manual_seed(0)
    model = Tokens()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    one, other, again = (afresh(model, seed) for seed in (1, 2, 1))
    assert isinstance(one, Tokens)
    assert isinstance(other, Tokens)
    assert isinstance(again, Tokens)
    for name, drawn in one.named_parameters():
        p = drawn.detach()
        made = [m.get_parameter(name) for m in (model, other, again)]
        assert p.shape == made[0].shape
        assert torch.equal(p, made[2])
        if p.std() > 0:  # not ones or zeros
            assert not torch.equal(p, made[0])
            assert not torch.equal(p, made[1])
            assert 0.5 < float(p.std() / made[0].detach().std()) < 2
    # Nothing else has moved.
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


class Own(nn.Module):
    """Weights that no layer knows how to draw."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 2))


def _kaiming() -> nn.Module:
    net = nn.Linear(60, 40)
    nn.init.kaiming_normal_(net.weight)
    return net


def _frozen() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    net[0].requires_grad_(requires_grad=False)
    return net


def _trained() -> nn.Module:
    net = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 1))
    steps = torch.optim.Adam(net.parameters(), lr=0.02)
    x = torch.randn(64, 30)
    for _ in range(300):
        steps.zero_grad()
        torch.autograd.backward((net(x) - x[:, :1]).square().mean())
        steps.step()
    return net


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Own, "Own does not say how"),
        (_kaiming, "weight is not as its layer would initialise it"),
        (_frozen, "some parameters are not trained"),
        (_trained, "is not as its layer would initialise it"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), "does not say how"),
    ],
    ids=["own parameters", "own initialisation", "frozen", "trained", "parametrised"],
)
def test_what_is_no_draw_of_its_layers_is_left_alone(make, words: str) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(3)
    found = afresh(make(), seed=1)
    assert isinstance(found, str)
    assert words in found
