"""`trebuchet curvature` from the command line."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner, Result

from tests.curvature.reference import close
from trebuchet.cli.curvature import curvature
from trebuchet.curvature import half_mse, top_eigen
from trebuchet.errors import InputError

MODULE = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()

def classes():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))

number = 3

def nothing():
    return None

def wide(width):
    return nn.Linear(3, width)

def broken():
    raise OSError("weights are missing\\nin two lines")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "some_nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    g = np.random.default_rng(0)
    np.savez("reals.npz", x=g.normal(size=(9, 3)), y=g.normal(size=9))
    np.savez(
        "pixels.npz",
        x_train=g.integers(0, 256, (9, 2, 2), dtype=np.uint8),
        y_train=np.arange(9) % 3,
    )
    np.savez("blind.npz", x=g.normal(size=(9, 3)))
    np.savez("odd.npz", z=g.normal(size=9))
    np.savez("objects.npz", x=np.array([[1.0], "a"], dtype=object), y=np.ones(2))
    np.savez("words.npz", x=np.array(["a", "b"]), y=np.ones(2))
    np.savez("scalar.npz", x=np.array(1.0), y=np.ones(2))
    Path("junk.npz").write_bytes(b"junk")
    Path("empty.npz").write_bytes(b"")
    Path("cut.npz").write_bytes(Path("reals.npz").read_bytes()[:-30])
    with Path("array.npz").open("wb") as file:
        np.save(file, np.ones(3))
    Path("raises_net.py").write_text("import torch\n\nwidth = 1 / 0\n")
    return tmp_path


def run(*arguments: str) -> Result:
    app = typer.Typer()
    app.command("curvature")(curvature)
    return CliRunner().invoke(app, list(arguments))


def test_the_numbers_are_top_eigens(folder: Path) -> None:
    result = run(
        "--model", "some_nets:make", "--data", "reals.npz", "--loss", "half_mse",
        "--operator", "hessian", "-k", "2", "--optimizer", "momentum", "--out", "top.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    got = json.loads((folder / "top.json").read_text())
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    with np.load("reals.npz") as file:
        x, y = torch.from_numpy(file["x"]), torch.from_numpy(file["y"])
    want = top_eigen(net, half_mse, (x, y[:, None]), "hessian", k=2, optimizer="momentum")
    assert got["values"] == pytest.approx(want.values.tolist())
    assert close(got["lr_crit"], want.lr_crit, 1e-9)
    assert f"{want.value:.6g}" in result.output
    assert f"critical rate {want.lr_crit:.6g}" in result.output
    again = run(
        "--model",
        "some_nets:make",
        "--data",
        "reals.npz",
        "--loss",
        "half_mse",
        "--out",
        "top.json",
    )
    assert isinstance(again.exception, InputError)
    assert "--overwrite" in str(again.exception)


def test_pixels_classes_samples_and_weights(folder: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    torch.save(net.state_dict(), "weights.pt")
    result = run(
        "--model", "some_nets:classes", "--data", "pixels.npz", "--loss", "cross_entropy",
        "--samples", "6", "--weights", "weights.pt", "--out", "top.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    with np.load("pixels.npz") as file:
        x, y = torch.from_numpy(file["x_train"][:6]), torch.from_numpy(file["y_train"][:6])
    want = top_eigen(net, "cross_entropy", (x.float() / 255, y))
    assert close(json.loads((folder / "top.json").read_text())["values"][0], want.value, 1e-6)


@pytest.mark.usefixtures("folder")
def test_ntk_without_targets() -> None:
    result = run(
        "--model", "some_nets:make", "--data", "blind.npz", "--loss", "mse", "--operator", "ntk"
    )
    assert result.exit_code == 0, result.output
    assert "NTK" in result.output


@pytest.mark.usefixtures("folder")
def test_not_converged_is_said_and_exits_with_one() -> None:
    result = run(
        "--model", "some_nets:classes", "--data", "pixels.npz", "--loss", "cross_entropy",
        "--operator", "hessian", "--rtol", "1e-9",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "not converged" in result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "some_nets"], "package.module:factory"),
        (["--model", "no_such_module:x"], "cannot import"),
        (["--model", "some_nets:absent"], "has no 'absent'"),
        (["--model", "some_nets:number"], "is a int"),
        (["--model", "some_nets:nothing"], "returned a NoneType"),
        (["--model", "some_nets:wide"], "takes no argument.*width"),
        (
            ["--model", "some_nets:broken"],
            "failed: OSError at .*some_nets.py:\\d+ .weights are miss",
        ),
        (["--model", "raises_net:make"], "ZeroDivisionError at .*raises_net.py:3 .division"),
        (["--data", "junk.npz"], "cannot read junk.npz"),
        (["--data", "empty.npz"], "cannot read empty.npz"),
        (["--data", "cut.npz"], "cannot read cut.npz"),
        (["--data", "array.npz"], "no .npz file"),
        (["--data", "objects.npz"], "cannot read objects.npz.*objects"),
        (["--data", "words.npz"], "x of words.npz .*numbers"),
        (["--data", "scalar.npz"], "samples first"),
        (["--data", "none.npz"], "no file"),
        (["--data", "some_nets.py"], "expected a .npz"),
        (["--data", "odd.npz"], "holds z"),
        (["--data", "blind.npz"], "has no targets"),
        (["--loss", "hinge"], "expected one of"),
        (["--operator", "fisher"], "expected one of"),
        (["--rtol", "3"], "rtol"),
        (["--data", "pixels.npz"], "cannot take this data"),
        (["--weights", "none.pt"], "no file"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_mistakes_get_one_sentence(arguments: list[str], says: str) -> None:
    options = {"--model": "some_nets:make", "--data": "reals.npz", "--loss": "mse"}
    options.update(dict([arguments]))
    result = run(*[word for pair in options.items() for word in pair])
    assert isinstance(result.exception, InputError)
    assert re.search(says, str(result.exception))
    assert "\n" not in str(result.exception)


@pytest.mark.usefixtures("folder")
def test_an_array_of_objects_beside_the_data_and_big_endian_numbers_do_no_harm() -> None:
    with np.load("reals.npz") as file:
        x, y = file["x"].astype(">f8"), file["y"]
    np.savez("more.npz", x=x, y=y, names=np.array([None] * 9, dtype=object))
    shown = [
        run("--model", "some_nets:make", "--data", data, "--loss", "mse").output
        for data in ("reals.npz", "more.npz")
    ]
    assert shown[0] == shown[1]
    assert "critical rate" in shown[0]


def test_help_teaches() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for word in ("critical", "catapult", "Gauss", "momentum"):
        assert word in result.output


@pytest.mark.parametrize(
    ("optimizer", "says"),
    [
        ("sgd", "above it the loss first grows"),
        ("momentum", "the loss may first grow from 0.3 of this rate on"),  # 1.13 of 3.8
        ("nesterov", "the loss may first grow from 0.78 of this rate on"),  # 2/1.9 of 3.8/2.8
        ("adam", "where the loss first grows is not known"),
        ("rmsprop", "where the loss first grows is not known"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_the_critical_rate_says_is_so_of_this_optimizer(optimizer: str, says: str) -> None:
    result = run(
        "--model", "some_nets:make", "--data", "reals.npz", "--loss", "half_mse",
        "--optimizer", optimizer,
    )  # fmt: skip
    assert says in result.output
    assert ("coordinates" in result.output) == (optimizer in ("adam", "rmsprop"))
    assert ("starts smoothly" in result.output) == (optimizer == "sgd")
