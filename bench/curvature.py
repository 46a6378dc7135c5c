"""Time, products and memory to the top eigenvalue, for trebuchet and its peers.

Run it from the project root, with the peers importable where they are wanted:

    OMP_NUM_THREADS=1 python bench/curvature.py --data ../shared/data

Every tool runs in a process of its own, on the same problem, and its value is held against a dense
truth made another way: Jacobian rows by plain autograd in float64, S J Jᵀ S, LAPACK; for Hessians,
scipy's eigsh in float64 on plain double backward passes. Times are in
gradient evaluations of the same process (CPU time, the minimum of several), because seconds depend
on what else the machine does. Peak memory is what the process grew by after the problem was built.

`--before ../old/src` measures another version's sources in the same run.
`python bench/curvature.py --problem gpt2` is the 100M-parameter run.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

RTOL = 1e-3

PROBLEMS = ("mlp", "resnet", "resnet10", "transformer", "gpt2")


class Block(nn.Module):
    """Two 3 × 3 convolutions with BatchNorm and a skip."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        same = stride == 1 and n_in == n_out
        self.skip: nn.Module = nn.Identity()
        if not same:
            conv = nn.Conv2d(n_in, n_out, 1, stride, bias=False)
            self.skip = nn.Sequential(conv, nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """(D, n_in, H, W) -> (D, n_out, H / stride, W / stride)."""
        h = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(h)) + self.skip(x))


class ResNet(nn.Module):
    """A ResNet-8 of width 16 with BatchNorm."""

    def __init__(self, width: int = 16, outputs: int = 2) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(
            nn.Conv2d(3, w, 3, 1, 1, bias=False), nn.BatchNorm2d(w), nn.ReLU()
        )
        self.body = nn.Sequential(Block(w, w, 1), Block(w, 2 * w, 2), Block(2 * w, 4 * w, 2))
        self.head = nn.Linear(4 * w, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(D, 3, 32, 32) -> (D, outputs)."""
        out: Tensor = self.head(self.body(self.stem(x)).mean((2, 3)))
        return out


class Layer(nn.Module):
    """A pre-norm transformer layer, causal."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        """(D, T, d) -> (D, T, d)."""
        n, t, d = x.shape
        q, k, v = (
            y.view(n, t, self.heads, -1).transpose(1, 2)
            for y in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(a.transpose(1, 2).reshape(n, t, d))
        out: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return out


class Transformer(nn.Module):
    """GPT-2's shape; a classifier of the last token, or a language model with tied weights."""

    def __init__(
        self, d: int, layers: int, heads: int, vocabulary: int, length: int, classes: int | None
    ) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, d), nn.Embedding(length, d)
        self.layers = nn.Sequential(*(Layer(d, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(d)
        self.classes = classes
        self.head = nn.Linear(d, classes or vocabulary, bias=False)
        if classes is None:
            self.head.weight = self.tokens.weight
        for name, p in self.named_parameters():
            if p.ndim > 1:
                nn.init.normal_(
                    p, std=0.02 / (2 * layers) ** (0.5 * ("proj" in name or "down" in name))
                )

    def forward(self, i: Tensor) -> Tensor:
        """(D, T) token ids -> (D, classes), or (D, vocabulary, T) as the loss wants it."""
        places = torch.arange(i.shape[1], device=i.device).expand_as(i)
        h = self.norm(self.layers(self.tokens(i) + self.places(places)))
        out: Tensor = self.head(h[:, -1] if self.classes else h)
        return out if self.classes else out.transpose(1, 2)


Problem = tuple[nn.Module, nn.Module, Tensor, Tensor]


def images(folder: Path, name: str, n: int) -> tuple[Tensor, Tensor]:
    """Real images of two classes, standardised, and their class 0 or 1."""
    with np.load(folder / name) as file:
        x = np.concatenate([file["x_train"], file["x_test"]])[:n]
        y = np.concatenate([file["y_train"], file["y_test"]])[:n]
    pixels = torch.from_numpy(x).float() / 255
    pixels = (pixels - pixels.mean()) / pixels.std()
    return pixels, torch.from_numpy((y > 0).astype(np.int64))


def build(problem: str, folder: Path) -> Problem:
    """Return model, loss, inputs, targets."""
    torch.manual_seed(0)
    if problem == "mlp":
        x, y = images(folder, "mnist01.npz", 128)
        net: nn.Module = nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1))
        return net, nn.MSELoss(), x.flatten(1), 2.0 * y[:, None] - 1
    if problem in ("resnet", "resnet10"):
        x, y = images(folder, "cifar01.npz", 512)
        net = ResNet(outputs=2 if problem == "resnet" else 10)
        if problem == "resnet10":  # the images have two classes; Gauss–Newton asks for no target
            y = torch.randint(0, 10, y.shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():  # running statistics as after some training
            for _ in range(20):
                net(x[:256])
        return net.eval(), nn.CrossEntropyLoss(), x, y
    if problem == "transformer":
        net = Transformer(384, 6, 6, 128, 32, classes=4)
        return (
            net,
            nn.CrossEntropyLoss(),
            torch.randint(0, 128, (16, 32)),
            torch.randint(0, 4, (16,)),
        )
    if problem == "gpt2":
        net = Transformer(768, 12, 12, 50257, 1024, classes=None)
        i = torch.randint(0, 50257, (2, 33))
        return net, nn.CrossEntropyLoss(), i[:, :-1], i[:, 1:]
    msg = f"problem: expected one of {PROBLEMS}, got {problem!r}"
    raise SystemExit(msg)


def truth(net: nn.Module, loss: nn.Module, x: Tensor, y: Tensor) -> float:
    """λ_max of S J Jᵀ S, J row by row, one sample at a time, by plain autograd in float64."""
    net = net.double()
    x = x.double() if x.is_floating_point() else x
    y = y.double() if y.is_floating_point() else y
    params = list(net.parameters())
    rows, outputs = [], []
    wide = sum(p.numel() for p in params) < 2_000_000  # else rows are kept in float32
    for a in range(len(x)):
        z = net(x[a : a + 1])
        outputs.append(z.detach())
        for entry in z.reshape(-1):
            g = torch.autograd.grad(entry, params, retain_graph=True, materialize_grads=True)
            row = torch.cat([t.reshape(-1) for t in g])
            rows.append(row if wide else row.float())
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for at in range(0, len(rows[0]), 1 << 18):
        part = torch.stack([r[at : at + (1 << 18)] for r in rows]).double()
        gram += part @ part.T
    z = torch.cat(outputs)
    h: Any = torch.autograd.functional.hessian(  # type: ignore[no-untyped-call]
        lambda u: loss(u.view_as(z), y), z.reshape(-1)
    )
    values, vectors = torch.linalg.eigh(h)
    s = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return float(torch.linalg.eigvalsh(s @ gram @ s)[-1])


def hessian_truth(net: nn.Module, loss: nn.Module, x: Tensor, y: Tensor) -> float:
    """λ_max of ∂²L/∂θ² by scipy's eigsh on plain double backward passes in float64."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    net = net.double()
    x = x.double() if x.is_floating_point() else x
    y = y.double() if y.is_floating_point() else y
    params = list(net.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        gradient = torch.autograd.grad(loss(net(x), y), params, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradient])

    def product(v: Any) -> Any:
        v = torch.from_numpy(np.asarray(v, dtype=np.float64)).reshape(-1)
        parts = torch.autograd.grad(flat, params, v, retain_graph=True, materialize_grads=True)
        return torch.cat([t.reshape(-1) for t in parts]).numpy()

    n = len(flat)
    start = np.random.default_rng(1).normal(size=n)
    op = LinearOperator((n, n), matvec=product, dtype=np.float64)
    return float(eigsh(op, k=1, which="LA", tol=1e-6, v0=start, return_eigenvectors=False)[0])


def measured(f: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Run `f`, if it is short again since the first runs load things; the least CPU time counts."""
    seen: list[dict[str, float]] = []
    while len(seen) < 6 and sum(u["cpu_s"] for u in seen) < 9:
        meter = Meter()
        answer = f()
        seen.append(meter.read())
    used = min(seen, key=lambda u: u["cpu_s"])
    return answer, {**used, "peak_mb": seen[0]["peak_mb"]}


class Meter:
    """CPU and wall seconds, and growth of the peak resident set."""

    def __init__(self) -> None:
        self.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def read(self) -> dict[str, float]:
        """What was used since."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "cpu_s": time.process_time() - self.cpu,
            "wall_s": time.perf_counter() - self.wall,
            "peak_mb": (peak - self.before) / 1024,
        }


def gradient_seconds(net: nn.Module, loss: nn.Module, x: Tensor, y: Tensor) -> float:
    """CPU seconds of one gradient evaluation, minimum of several."""
    params = list(net.parameters())
    times: list[float] = []
    while len(times) < 6 or (len(times) < 60 and sum(times) < 1):
        start = time.process_time()
        torch.autograd.grad(loss(net(x), y), params)
        times.append(time.process_time() - start)
    return min(times)


def descend(net: nn.Module, loss: nn.Module, x: Tensor, y: Tensor, lr: float) -> None:
    """One step of gradient descent."""
    params = list(net.parameters())
    grads = torch.autograd.grad(loss(net(x), y), params)
    with torch.no_grad():
        for p, g in zip(params, grads, strict=True):
            p.sub_(g, alpha=lr)


Answer = dict[str, Any]
Tool = Callable[[nn.Module, nn.Module, Tensor, Tensor, str], Answer]


def trebuchet(net: nn.Module, loss: nn.Module, x: Tensor, y: Tensor, op: str) -> Answer:
    """The default; then tracking ten steps of gradient descent, warm, at 1e-2."""
    return _trebuchet(net, loss, x, y, op, method="auto")


def trebuchet_lanczos(net: nn.Module, loss: nn.Module, x: Tensor, y: Tensor, op: str) -> Answer:
    """Matrix-free whatever the size."""
    return _trebuchet(net, loss, x, y, op, method="lanczos")


def _trebuchet(
    net: nn.Module, loss: nn.Module, x: Tensor, y: Tensor, op: str, method: str
) -> Answer:
    from trebuchet.curvature import top_eigen

    top, used = measured(
        lambda: top_eigen(net, loss, (x, y), op, rtol=RTOL, method=method, mode="eval")  # type: ignore[arg-type]
    )
    answer: Answer = {
        **used, "value": top.value, "products": top.products, "claims": top.converged,
        "method": top.method, "upper": top.upper, "residual": top.residual,
    }  # fmt: skip
    warm = top
    cpu = products = 0.0
    steps = 5 if used["cpu_s"] < 1 else 1
    for _ in range(steps):
        descend(net, loss, x, y, 0.5 * top.lr_crit)
        meter = Meter()
        warm = top_eigen(net, loss, (x, y), op, rtol=1e-2, method=method, warm=warm, mode="eval")  # type: ignore[arg-type]
        cpu += meter.read()["cpu_s"] / steps
        products += warm.products / steps
    return {**answer, "warm_cpu_s": cpu, "warm_products": products}


def curvlinops_eigsh(net: nn.Module, loss: nn.Module, x: Tensor, y: Tensor, op: str) -> Answer:
    """curvlinops with scipy's eigsh at tol = 1e-3, largest algebraic."""
    import curvlinops
    from scipy.sparse.linalg import LinearOperator, eigsh

    kind = curvlinops.GGNLinearOperator if op == "ggn" else curvlinops.HessianLinearOperator
    params = [p for p in net.parameters() if p.requires_grad]
    count = 0

    def run(v0: Any, tol: float) -> Any:
        nonlocal count
        count = 0
        inner = kind(net, loss, params, [(x, y)], check_deterministic=False).to_scipy()

        def matvec(v: Any) -> Any:
            nonlocal count
            count += 1
            return inner @ v

        counted = LinearOperator(inner.shape, matvec=matvec, dtype=np.float32)
        return eigsh(counted, k=1, which="LA", tol=tol, v0=v0)

    n = sum(p.numel() for p in params)
    start = np.random.default_rng(0).normal(size=n).astype(np.float32)
    (value, vector), used = measured(lambda: run(start, RTOL))
    answer = {**used, "value": float(value[0]), "products": count, "claims": True}
    descend(net, loss, x, y, 1.0 / float(value[0]))
    _, used = measured(lambda: run(vector[:, 0], 1e-2))
    return {**answer, "warm_cpu_s": used["cpu_s"], "warm_products": count}


def _eigenthings(net: nn.Module, loss: nn.Module, x: Tensor, y: Tensor, op: str) -> Any:
    import hessian_eigenthings as he

    if op == "ggn":
        loss_of = he.supervised_loss_of_output(loss)
        return he.GGNOperator(net, [(x, y)], he.supervised_forward, loss_of)
    return he.HessianOperator(net, [(x, y)], he.supervised_loss(loss))


def eigenthings_power(net: nn.Module, loss: nn.Module, x: Tensor, y: Tensor, op: str) -> Answer:
    """hessian-eigenthings, power iteration to its own tol = 1e-3."""
    import hessian_eigenthings as he

    def run(**options: Any) -> Any:
        operator = _eigenthings(net, loss, x, y, op)
        return he.power_iteration_one(operator, max_iter=500, **options)

    (value, vector, _, count, claims), used = measured(lambda: run(tol=RTOL, seed=0))
    answer = {**used, "value": value, "products": count, "claims": claims}
    descend(net, loss, x, y, 1.0 / abs(value))
    (_, _, _, count, _), used = measured(lambda: run(tol=1e-2, init=vector))
    return {**answer, "warm_cpu_s": used["cpu_s"], "warm_products": count}


def eigenthings_lanczos(net: nn.Module, loss: nn.Module, x: Tensor, y: Tensor, op: str) -> Answer:
    """hessian-eigenthings, Lanczos of 5, 10, 20 … steps until it says converged; all are paid."""
    import hessian_eigenthings as he

    def run() -> tuple[float, int, bool]:
        steps, spent = 5, 0
        operator = _eigenthings(net, loss, x, y, op)
        while True:
            result = he.lanczos(operator, k=1, max_iter=steps, tol=RTOL, which="LA", seed=0)
            spent += steps
            claims = bool(torch.as_tensor(result.converged).all())
            if claims or steps > 200:
                return float(result.eigenvalues[0]), spent, claims
            steps *= 2

    (value, spent, claims), used = measured(run)
    return {**used, "value": value, "products": spent, "claims": claims}


def pyhessian(net: nn.Module, loss: nn.Module, x: Tensor, y: Tensor, op: str) -> Answer:
    """PyHessian's power iteration; Hessian only."""
    if op != "hessian":
        return {"skipped": "has no Gauss–Newton"}
    from pyhessian import hessian

    def run() -> float:
        torch.manual_seed(0)
        tool: Any = hessian(net, loss, data=(x, y), cuda=False)
        values, _ = tool.eigenvalues(tol=RTOL, maxIter=500)
        return float(values[0])

    value, used = measured(run)
    return {**used, "value": value, "claims": True}


TOOLS: dict[str, Tool] = {
    "trebuchet": trebuchet,
    "trebuchet lanczos": trebuchet_lanczos,
    "curvlinops + eigsh": curvlinops_eigsh,
    "hessian-eigenthings power": eigenthings_power,
    "hessian-eigenthings lanczos": eigenthings_lanczos,
    "pyhessian": pyhessian,
}


def gpt2(folder: Path) -> Answer:
    """The 100M-parameter run: peak memory against parameters and one batch's activations."""
    from trebuchet.curvature import top_eigen

    net, loss, x, y = build("gpt2", folder)
    seen: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return t

    net.eval()
    with sdpa_kernel(SDPBackend.MATH), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        kept = loss(net(x), y)
    activations = sum(seen.values())
    del kept
    size = sum(p.numel() * p.element_size() for p in net.parameters())
    import_time = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    meter = Meter()
    top = top_eigen(net, loss, (x, y), "ggn", rtol=RTOL, on_step=_say)
    used = meter.read()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        **used, "n_parameters": top.n_parameters, "value": top.value, "upper": top.upper,
        "residual": top.residual, "converged": top.converged, "products": top.products,
        "side": top.side, "parameters_mb": size / 2**20, "activations_mb": activations / 2**20,
        "peak_rss_mb": peak / 2**20, "rss_before_mb": import_time / 1024,
        "peak_over_parameters": (peak - activations) / size,
        "tokens": x.numel(),
    }  # fmt: skip


def _say(products: int, value: float, residual: float, miss: float) -> None:
    print(f"  {products} products, {value:.6g} ± {residual:.1e}, miss {miss:.0e}", file=sys.stderr)


def child(problem: str, tool: str, op: str, folder: Path) -> Answer:
    """Measure one tool in this process."""
    warnings.simplefilter("ignore")
    net, loss, x, y = build(problem, folder)
    if tool == "truth":
        net.eval()
        return {"value": (truth if op == "ggn" else hessian_truth)(net, loss, x, y)}
    seconds = gradient_seconds(net, loss, x, y)
    with sdpa_kernel(SDPBackend.MATH):  # the peers need it; trebuchet does it itself
        try:
            answer = TOOLS[tool](net, loss, x, y, op)
        except ImportError as error:
            return {"skipped": f"not installed ({error})"}
        except (RuntimeError, NotImplementedError, AssertionError, ValueError) as error:
            return {"failed": f"{type(error).__name__}: {str(error)[:200]}"}
    return {**answer, "gradient_s": seconds}


def spawn(*arguments: str, source: str | None = None) -> Answer:
    """Run this file in a process of its own and read the JSON it prints last."""
    path = os.environ.get("PYTHONPATH", "")
    env = os.environ if source is None else {**os.environ, "PYTHONPATH": f"{source}:{path}"}
    run = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, check=False, env=env
    )
    if run.returncode:
        return {"failed": run.stderr.strip().splitlines()[-1] if run.stderr else "crashed"}
    answer: Answer = json.loads(run.stdout.strip().splitlines()[-1])
    return answer


def environment() -> dict[str, object]:
    """Where the numbers were measured."""
    versions = {}
    for name in (
        "torch",
        "numpy",
        "scipy",
        "curvlinops-for-pytorch",
        "hessian-eigenthings",
        "pyhessian",
    ):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return {
        "python": platform.python_version(), "machine": platform.machine(),
        "threads": torch.get_num_threads(), "load": os.getloadavg()[0], "versions": versions,
    }  # fmt: skip


def main() -> None:
    """Measure everything, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("bench/results/curvature.json"))
    parser.add_argument("--problem", choices=PROBLEMS)
    parser.add_argument("--tool")
    parser.add_argument("--operator", default="ggn")
    parser.add_argument("--before", help="sources of another version, to measure beside this one")
    args = parser.parse_args()
    if args.tool:
        print(json.dumps(child(args.problem, args.tool, args.operator, args.data)))
        return
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    problems = [args.problem] if args.problem else list(PROBLEMS)
    for problem in problems:
        if problem == "gpt2":
            results["gpt2"] = gpt2(args.data)
            print(json.dumps(results["gpt2"], indent=1))
        else:
            common = ["--data", str(args.data), "--problem", problem]
            results[problem] = table(common, problem, args.before)
        results["environment"] = environment()
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n")


def table(common: list[str], problem: str, before: str | None) -> Answer:
    """All tools on one problem."""
    rows: Answer = {}
    for op in ("ggn", "hessian"):
        right = spawn(*common, "--tool", "truth", "--operator", op)["value"]
        print(f"{problem}, {op}: truth {right:.6g}", flush=True)
        rows["truth" if op == "ggn" else "truth, hessian"] = right
        runs: list[tuple[str, str, str | None]] = [(tool, tool, None) for tool in TOOLS]
        if before:
            runs += [(f"{t} before", t, before) for t in TOOLS if t.startswith("trebuchet")]
        for name, tool, source in runs:
            row = spawn(*common, "--tool", tool, "--operator", op, source=source)
            if "value" in row:
                row["gradients"] = row["cpu_s"] / row["gradient_s"]
                if "warm_cpu_s" in row:
                    row["warm_gradients"] = row["warm_cpu_s"] / row["gradient_s"]
                row["error"] = abs(row["value"] - right) / right
            rows[f"{name}, {op}"] = row
            told = "  ".join(f"{k}={_short(v)}" for k, v in row.items())
            print(f"  {name + ', ' + op:45s} {told}", flush=True)
    return rows


def _short(v: object) -> str:
    return f"{v:.4g}" if isinstance(v, float) else str(v)


if __name__ == "__main__":
    main()
