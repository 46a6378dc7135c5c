"""Bad command lines: one sentence, exit code 2, nothing written, and no title before it."""

import io
import os
import re
import stat
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from trebuchet.cli import main

MODULE = """
import sys
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Linear(3, 1)

def other():
    return nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))

def half():
    return nn.Linear(3, 1).half()

class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 1)
    def forward(self, x):
        return self.blow(self.inner(x))
    def blow(self, x):
        raise KeyError("depth")

class Quits(Deep):
    def blow(self, x):
        sys.exit("enough")

class Odd(Deep):
    def blow(self, x):
        return {"logits": x}

def raises(): raise ValueError("no luck\\nin two lines")
def marked(): raise ValueError("[/red] [bold]x")
def quits(): sys.exit(3)
def quits_quietly(): raise SystemExit
def stops(): raise KeyboardInterrupt
def odd(): raise type("OddError", (BaseException,), {})("odd")
def empty_error(): raise RuntimeError
def deep(): return nn.Linear(-1, 2)
def nothing(): return None
def text(): return "nn.Linear(3, 1)"
def kind(): return nn.Linear
def needs(width): return nn.Linear(3, width)
def recurses(): return recurses()
async def later(): return nn.Linear(3, 1)
def no_weights(): return nn.Identity()
number = 3
[bold] = [nn.Identity]
"""
BASE = {
    "scan": {"--model": "nets:make", "--data": "d.npz", "--loss": "mse", "--out": "out"},
    "curvature": {"--model": "nets:make", "--data": "d.npz", "--loss": "mse", "--out": "top.json"},
}
HUGE = "1" + "0" * 300


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every kind of file."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "nets.py").write_text(MODULE)
    (folder / "syntax.py").write_text("def make(:\n")
    (folder / "exits.py").write_text("import sys\nsys.exit(0)\n")
    (folder / "imports.py").write_text("import no_such_thing_at_all\n")
    (folder / "fails.py").write_text("from torch import nn\n\nwidth = 1 / 0\n")
    (folder / "folder.npz").mkdir()
    (folder / "kept").mkdir()
    (folder / "kept" / "scan.csv").write_text("mine")
    (folder / "empty.npz").write_bytes(b"")
    (folder / "text.npz").write_text("x, y\n1, 2\n")
    (folder / "gone.npz").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.npz")
    x, y = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32), np.ones(9, np.float32)

    def keep(name: str, **arrays: object) -> None:
        np.savez(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]

    keep("d", x=x, y=y)
    keep("names", a=x, b=y)
    keep("many", **{f"array_{i}": y for i in range(9)})
    keep("blind", x=x)
    keep("objects", x=np.array([[1.0], "a"], dtype=object), y=y[:2])
    keep("object_y", x=x, y=np.array([None] * 9, dtype=object))
    keep("words", x=np.array(["a"] * 9), y=y)
    keep("complex", x=x + 1j, y=y)
    keep("dates", x=np.zeros(9, "datetime64[s]"), y=y)
    keep("scalar", x=np.array(1.0), y=y)
    keep("short", x=x, y=y[:4])
    keep("none", x=x[:0], y=y[:0])
    keep("flat", x=x[:, 0], y=y)
    keep("wide", x=np.ones((9, 5), np.float32), y=y)
    keep("whole", x=np.ones((9, 3), np.int64), y=y)
    keep("nan", x=np.where(np.arange(27).reshape(9, 3) == 7, np.nan, 1.0), y=y)
    keep("inf_y", x=x, y=np.where(np.arange(9) == 4, np.inf, 1.0))
    keep("large", x=np.full((9, 3), 1e300), y=y)
    keep("two", x=x, y=np.ones((9, 2), np.float32))
    keep("labels", x=x, y=np.arange(9))
    raw = (folder / "d.npz").read_bytes()
    (folder / "cut.npz").write_bytes(raw[:-40])
    (folder / "half.npz").write_bytes(raw[: len(raw) // 2])
    (folder / "bit.npz").write_bytes(raw[:200] + bytes([raw[200] ^ 255]) + raw[201:])
    with zipfile.ZipFile(folder / "plain.npz", "w") as archive:
        archive.writestr("x", "not an array")
    with zipfile.ZipFile(folder / "bomb.npz", "w") as archive:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            head, {"descr": "<f8", "fortran_order": False, "shape": (10**13, 3)}
        )
        archive.writestr("x.npy", head.getvalue())
    with (folder / "array.npz").open("wb") as file:
        np.save(file, y)
    (folder / "d.txt").write_bytes(raw)

    good = nn.Linear(3, 1).state_dict()
    torch.save(good, folder / "good.pt")
    torch.save({"model": good, "step": 3}, folder / "checkpoint.pt")
    torch.save(nn.Linear(3, 1), folder / "module.pt")
    torch.save(nn.Linear(4, 1).state_dict(), folder / "wide.pt")
    torch.save({"weight": good["weight"]}, folder / "lacks.pt")
    torch.save({**good, "more": good["bias"], "and": good["bias"]}, folder / "more.pt")
    torch.save({f"net.{k}": v for k, v in good.items()}, folder / "prefixed.pt")
    torch.save({**good, "bias": torch.tensor([float("nan")])}, folder / "nan.pt")
    torch.save({**good, "bias": torch.tensor([1e300], dtype=torch.float64)}, folder / "large.pt")
    torch.save({**good, "bias": torch.tensor([1j])}, folder / "complex.pt")
    torch.save({**good, "weight": torch.ones(1, 3, dtype=torch.int64)}, folder / "int.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is on its way out
        torch.jit.save(torch.jit.script(nn.Linear(3, 1)), folder / "script.pt")
    torch.save([1, 2], folder / "list.pt")
    torch.save(good["bias"], folder / "tensor.pt")
    (folder / "empty.pt").write_bytes(b"")
    (folder / "text.pt").write_text("weights")
    (folder / "cut.pt").write_bytes((folder / "good.pt").read_bytes()[:-99])
    (folder / "folder.pt").mkdir()
    (folder / "evil.pt").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    (folder / "evil.npz").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    return folder


@pytest.fixture
def here(filled: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(filled)
    monkeypatch.syspath_prepend(filled)
    for name in ("nets", "syntax", "exits", "imports", "fails", "talks"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return filled


def words(command: str, changes: dict[str, str | None], *more: str) -> list[str]:
    options = {**BASE[command], **changes}
    pairs = [(name, value) for name, value in options.items() if value is not None]
    return [command, *(word for pair in pairs for word in pair), *more]


def at(command: str, option: str, values: dict[str, str]) -> list[tuple[list[str], str]]:
    return [(words(command, {option: value}), says) for value, says in values.items()]


WHOLE = dict.fromkeys(
    ["0", "-1", "nan", "inf", "1e3", "1.5", "two", "", "²", "٣", "1_0", HUGE, "-" + HUGE, "1 2"],
    "expected a whole number from",
)
MODELS = {
    "": "expected package.module:factory",
    "nets": "expected package.module:factory",
    ":make": "expected package.module:factory",
    "nets:": "expected package.module:factory",
    "nets:make:twice": "expected package.module:factory",
    "nets.py:make": "cannot import 'nets.py'",
    "./nets:make": "expected package.module:factory",
    "..nets:make": "expected package.module:factory",
    "no_such_net:make": "cannot import 'no_such_net'",
    "nets:mak": "has no 'mak'; did you mean make",
    "nets:number": "is a int, no factory",
    "imports:make": "no_such_thing_at_all",
    "syntax:make": "importing syntax failed: SyntaxError",
    "fails:make": r"importing fails failed: ZeroDivisionError at .*fails.py:3 .division",
    "exits:make": "importing exits failed: SystemExit at .*exits.py:2 .*sys.exit",
    "nets:raises": r"failed: ValueError at .*nets.py:\d+ .no luck.",
    "nets:quits": r"failed: SystemExit at .*nets.py:\d+ .*sys.exit",
    "nets:quits_quietly": "failed: SystemExit",
    "nets:odd": "failed: OddError",
    "nets:empty_error": "failed: RuntimeError at .*no message",
    "nets:deep": r"failed: RuntimeError at .*nets.py:\d+",
    "nets:nothing": "returned a NoneType",
    "nets:text": "returned a str",
    "nets:kind": "returned a type",
    "nets:needs": "takes no argument.*width",
    "nets:recurses": "failed: RecursionError",
    "nets:later": "returned a coroutine",
    "os:getcwd": "returned a str",
}
DATA = {
    "missing.npz": "there is no file missing.npz",
    "gone.npz": "there is no file gone.npz",
    "folder.npz": "folder.npz is a folder",
    "pipe.npz": "pipe.npz is no regular file",
    "d.npz/x": "there is no file",
    "a" * 300 + ".npz": "is no path",
    "d.txt": "expected a .npz file",
    "empty.npz": "cannot read empty.npz",
    "text.npz": "cannot read text.npz",
    "cut.npz": "cannot read cut.npz",
    "half.npz": "cannot read half.npz",
    "bit.npz": "cannot read bit.npz",
    "bomb.npz": "cannot read bomb.npz",
    "evil.npz": "cannot read evil.npz",
    "plain.npz": "x of plain.npz is no array",
    "array.npz": "is no .npz file",
    "names.npz": "holds a, b; expected an array called x",
    "many.npz": "array_2 and 6 more; expected an array called x",
    "blind.npz": "has no targets",
    "objects.npz": "cannot read objects.npz.*objects",
    "object_y.npz": "cannot read object_y.npz.*objects",
    "words.npz": "x of words.npz .*numbers",
    "complex.npz": "x of complex.npz .*numbers",
    "dates.npz": "x of dates.npz .*numbers",
    "scalar.npz": "samples first",
    "short.npz": "as many targets as inputs.*9 in x and 4 in y",
    "none.npz": r"x of none.npz has no samples, shape \(0, 3\)",
    "nan.npz": "x of nan.npz has NaN or infinity in 1 of 9 samples, the first is sample 2",
    "inf_y.npz": "y of inf_y.npz has NaN or infinity in 1 of 9 samples, the first is sample 4",
    "large.npz": "x of large.npz has numbers that float32 cannot hold",
    "wide.npz": "--model: .*(5|mat1)",
    "flat.npz": "--model",
    "whole.npz": "--model",
}
WEIGHTS = {
    "missing.pt": "there is no file missing.pt",
    "folder.pt": "is a folder",
    "empty.pt": "cannot read empty.pt as a state dict",
    "text.pt": "cannot read text.pt as a state dict",
    "cut.pt": "cannot read cut.pt as a state dict",
    "d.npz": "cannot read d.npz as a state dict",
    "evil.pt": "cannot read evil.pt as a state dict",
    "module.pt": "cannot read module.pt as a state dict",
    "checkpoint.pt": "got model, step, which are not all tensors",
    "list.pt": "got a list",
    "tensor.pt": "got a Tensor",
    "wide.pt": r"does not fit the model: weight has shape \(1, 4\), the model's has \(1, 3\)",
    "lacks.pt": "does not fit the model: it lacks bias",
    "more.pt": "the model has no more, and",
    "prefixed.pt": "it lacks weight, bias, and 1 more",
    "nan.pt": "bias holds NaN",
    "large.pt": "bias holds numbers that float32 does not",
    "complex.pt": "bias is complex64",
    "int.pt": "weight is int64",
    "script.pt": "cannot read script.pt as a state dict .*TorchScript",
    "/dev/zero": "is no regular file",
}
OUTS = {  # of curvature, which writes a file
    "d.npz": "is what --data is read from",
    "./kept/../d.npz": "is what --data is read from",
    "nets.py": "exists already; add --overwrite",
    "folder.npz": "is a folder",
    ".": "is a folder",
    "gone.npz": "is a link to nothing",
    "pipe.npz": "is no file",
    "none/top.json": "none does not exist",
    "nets.py/top.json": "nets.py is a file",
    "a" * 300: "is no path",
}
FOLDERS = {  # of scan, which writes a folder
    "nets.py": "nets.py is a file",
    "nets.py/deep/out": "nets.py is a file",
    "gone.npz": "gone.npz is a link to nothing",
    "kept": "scan.csv exists already; add --overwrite",
    "a" * 300: "is no path",
}
RATES = {
    "0.5:1e9:1e-9": r"1e\+18 rates, expected at most 10000",
    "1:10002:1": "10002 rates, expected at most 10000",
    "1:2:1e-300": "rates, expected at most",
    "1:1e300:1e-300": "inf rates, expected at most",
    "1:1.0000000001:1e-13": "too small to tell rates apart",
    **dict.fromkeys(
        ["", ",", "fast", "0", "-1", "1,-2", "nan", "inf", "1e400", "²", "1:2", "2:1:0.5", "1:2:0",
         "1:2:-1", "0:1:0.5", "1:2:3:4", "::", "nan:1:1", "1:inf:1", "0x1", "1_0", "٣"],
        "--rates: expected positive numbers",
    ),
    ",".join(str(i) for i in range(1, 10_003)): "10002 rates, expected at most",
}  # fmt: skip
FIGURES = {
    "0": "figures 1 to 16, got '0'",
    "17": "figures 1 to 16, got '17'",
    "1-99999999": "figures 1 to 16, got '1-99999999'",
    "5-4": "figures 1 to 16, got '5-4'",
    HUGE: "figures: expected a number",
    f"1-{HUGE}": "figures: expected a number",
    **dict.fromkeys(["²", "٣", "１", "two", "1-", "1-2-3", "1.5", "1,2", "", "nan"],
                    "figures: expected a number"),
    "al": "did you mean all",
}  # fmt: skip
OTHERS: list[tuple[list[str], str]] = [
    (["scn"], "no such command 'scn'; did you mean scan"),
    (["draw"], "no such command 'draw'; there are scan, sweep, paper, beyond, curvature, show"),
    (["plot"], "no such command 'plot'; did you mean report"),
    ([""], "no such command ''"),
    (["--foo"], "--foo: no such option"),
    (["scan"], "--model: is needed"),
    (["scan", "--sedes", "3"], "--sedes: no such option; did you mean --seeds"),
    (["scan", "digits", "extra"], "extra"),
    (["scan", "digits", "--seeds"], "--seeds.*requires an argument"),
    (["scan", "digit"], "got 'digit'; did you mean digits"),
    (["scan", "imagenet"], "expected 'digits', got 'imagenet'"),
    (["scan", "[bold]"], r"got '\[bold\]'"),
    (["scan", "[/bold]"], r"got '\[/bold\]'"),
    (["scan", "a\nb"], r"got 'a\\nb'"),
    (["scan", "digits", "--model", "nets:make"], "--model: goes with a model of your own"),
    (words("scan", {}, "--rates", "1"), "--rates: .*`trebuchet sweep digits --rates"),
    (["scan", "digits", "--rates", "1,2"], "--rates: .*`trebuchet sweep digits --rates"),
    (["sweep", "digits", "--seeds", "9999", "--out", "out"], "--seeds: 9999 seeds at 28 rates"),
    (["sweep"], "what: is needed; see trebuchet sweep --help"),
    (["sweep", "digit"], "got 'digit'; did you mean digits"),
    (["sweep", "imagenet"], "expected FILE.toml or 'digits', got 'imagenet'"),
    (["sweep", "[/bold]"], r"got '\[/bold\]'"),
    (["sweep", "digits", "extra"], "extra"),
    (["sweep", "digits", "--horizon", "9"], "--horizon: no such option"),
    (["paper"], "figures: is needed"),
    (["paper", "6", "--dtype", "float16"], "--dtype: expected float32 or float64, got 'float16'"),
    (["paper", "6", "--dtype", "float46"], "did you mean float64"),
    (["paper", "6", "--out", "nets.py"], "nets.py is a file"),
    (
        ["paper", "6", "3", "--data-root", "nowhere", "--out", "o"],
        "--data-root: .*nothing at nowhe",
    ),
    (["paper", "6", "3", "--data-root", "nets.py", "--out", "o"], "--data-root: .*a file at nets"),
    (["paper", "6", "3", "--data-root", ".", "--out", "o"], "--data-root: .*mnist01.npz"),
    (["curvature"], "--model: is needed"),
    (["curvature", "--model", "nets:make", "--data", "d.npz"], "--loss: is needed"),
    (words("curvature", {"--data": "two.npz"}), "mode"),
    (words("curvature", {"-k": "99"}), "-k: "),
    (words("curvature", {"--model": "nets:marked"}), r"\[/red\] \[bold\]x"),
    (["scan", "digits", "--seeds=-1"], "--seeds: expected"),
    (["paper", "all", "17"], "figures 1 to 16"),
    (
        words("curvature", {"--out": "good.pt", "--weights": "good.pt"}, "--overwrite"),
        "--weights is",
    ),
    (words("curvature", {"--out": "folder.npz"}, "--overwrite"), "is a folder"),
    (words("curvature", {"--out": "/dev/full"}, "--overwrite"), "is no file"),
    (words("scan", {"--budget": "10"}), "--budget: expected at least two horizons, 400"),
    (words("scan", {"--horizon": "9"}), "--horizon: expected a whole number from 10"),
    (words("scan", {"--model": "nets:no_weights"}), "--model"),
    (words("scan", {"--data": "labels.npz", "--loss": "cross_entropy"}), "--(model|data|loss)"),
    (words("scan", {"--data": "d.npz", "--loss": "cross_entropy"}), "--(model|data|loss)"),
    *[
        (words(command, {"--model": f"nets:{name}"}), f"--model.*{says}")
        for command in BASE
        for name, says in {"Deep": "KeyError", "Quits": "sys.exit", "Odd": "dict"}.items()
    ],
    (words("curvature", {"--model": "nets:no_weights"}), "--model"),
]
NAMES = {
    "--loss": {"hinge": "expected one of", "MSE ": "mse", "cross-entropy": "did you mean cross_ent",
               "": "expected"},
    "--optimizer": {"sdg": "did you mean sgd", "lion": "expected one of", "": "expected"},
    "--operator": {"hesian": "did you mean hessian", "fisher": "expected one of ggn, hessian, ntk"},
    "--mode": {"trian": "did you mean train", "as_is": "expected train or eval"},
    "--rtol": dict.fromkeys(["0", "1", "-1", "nan", "inf", "1e400", HUGE, "small", "²", ""],
                            "expected a number above 0 and below 1"),
}  # fmt: skip
CASES: list[tuple[list[str], str]] = [
    *[case for name in ("--horizon", "--batch-size", "--seeds", "--budget")
      for case in at("scan", name, WHOLE)],
    *[case for name in ("-k", "--samples", "--micro-batch")
      for case in at("curvature", name, WHOLE)],
    *[(["scan", "digits", "--seeds", n, "--out", "out"], s) for n, s in WHOLE.items()],
    *[(["sweep", "digits", name, n, "--out", "out"], s)
      for name in ("--seeds", "--steps") for n, s in WHOLE.items()],
    *[(["paper", "6", "--seeds", n, "--out", "out"], s) for n, s in WHOLE.items()],
    *[case for name in ("--loss", "--optimizer") for case in at("scan", name, NAMES[name])
      if name != "--loss" or "MSE " not in case[0]],
    *[case for name in ("--operator", "--mode", "--rtol")
      for case in at("curvature", name, NAMES[name])],
    *at("curvature", "--model", MODELS),
    *at("scan", "--model", {k: v for k, v in MODELS.items() if k in ("nets", "nets:quits", "a:b")}),
    *at("curvature", "--data", DATA),
    *at("scan", "--data", DATA),
    *at("curvature", "--weights", WEIGHTS),
    *at("curvature", "--out", OUTS),
    *at("scan", "--out", FOLDERS),
    *[(["sweep", "digits", "--rates", rates, "--out", "out"], s) for rates, s in RATES.items()],
    *[(["paper", figure, "--out", "out"], s) for figure, s in FIGURES.items()],
    *OTHERS,
]  # fmt: skip


def _name(case: tuple[list[str], str]) -> str:
    return " ".join(word if len(word) < 30 else f"{word[:20]}…" for word in case[0])


@pytest.mark.parametrize(("arguments", "says"), CASES, ids=map(_name, CASES))
def test_a_bad_command_line(
    arguments: list[str], says: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.lstat().st_mtime_ns for p in here.rglob("*") if "__pycache__" not in p.parts}
    with pytest.raises(SystemExit) as end:
        main(arguments)
    out, error = capsys.readouterr()
    assert end.value.code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(says, error), error
    assert out == ""  # no title, no half of a result
    after = {p: p.lstat().st_mtime_ns for p in here.rglob("*") if "__pycache__" not in p.parts}
    assert set(after) == set(before)
    assert {
        p for p in after if after[p] != before[p] and not stat.S_ISDIR(p.lstat().st_mode)
    } == set()


def test_there_are_many() -> None:
    assert len(CASES) >= 150


def test_a_factory_that_prints_and_one_that_is_a_class_do_no_harm(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "talks.py").write_text(
        "from torch import nn\n\nclass Net(nn.Linear):\n    def __init__(self):\n"
        "        print('hello')\n        super().__init__(3, 1)\n"
    )
    with pytest.raises(SystemExit) as end:
        main(words("curvature", {"--model": "talks:Net", "--out": None}))
    assert end.value.code == 0
    assert "hello" in capsys.readouterr().out
