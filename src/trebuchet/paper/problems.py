"""From a setting of the table to a problem that can be run: the paper's draws, in order."""

from pathlib import Path

import torch
from torch import Tensor, nn

from trebuchet._checks import instance, path as a_path, seed as one_seed
from trebuchet._doors import door, maybe, rule
from trebuchet._torch_checks import dtype as a_dtype
from trebuchet.errors import InputError
from trebuchet.models import MLP, Draws, biased_teacher_student, pure_teacher_student
from trebuchet.paper.settings import Images, Net, Point, Pure, Random, Setting
from trebuchet.problem.problem import Problem


@door(
    setting=rule(instance, Setting, "a Setting", "trebuchet.paper.FIGURES[1] is one"),
    seed=maybe(one_seed), dtype=a_dtype, data_root=maybe(a_path),
)  # fmt: skip
def paper_problem(
    setting: Setting,
    *,
    seed: int | None = None,
    dtype: torch.dtype = torch.float32,
    data_root: str | Path | None = None,
) -> Problem:
    """The problem of one figure, its model at the paper's own initialisation.

    Data are drawn from one seeding and the model from another with the same seed, as in the
    authors' notebook.

    Args:
        setting: A row of :data:`trebuchet.paper.settings.FIGURES`.
        seed: Seed of data and model; the paper's unless given.
        dtype: Of data and weights. The drawn numbers are float32 whatever it is.
        data_root: Folder of image files; scikit-learn's OpenML cache unless given.

    Returns:
        The problem, with test data where the figure has some.

    Raises:
        InputError: If an argument is not what was expected, or the model and the data do
            not go together.
    """
    seed = setting.seed if seed is None else seed
    data = setting.data
    if isinstance(data, Images):
        from trebuchet.data.images import load_images  # scikit-learn takes a second to import

        images = load_images(data.name, data_root=data_root)
        model = _student(setting, images.x_train.shape[1], seed, dtype)[1]
        arrays = (images.x_train, images.y_train, images.x_test, images.y_test)
        x, y, x_test, y_test = (torch.as_tensor(a).to(dtype) for a in arrays)
        facts = {"data_source": images.source, "data_sha256": images.sha256}
        return Problem(
            model, "half_mse", (x, y), test=(x_test, y_test), name=setting.title, facts=facts
        )
    if isinstance(data, Point):
        _, model = _student(setting, 1, seed, dtype)
        x = torch.full((1, 1), data.x, dtype=dtype)
        return Problem(
            model, "half_mse", (x, torch.full((1,), data.y, dtype=dtype)), name=setting.title
        )
    teacher, model = _student(setting, data.d, seed, dtype)
    x, y, test = _random(data, Draws(seed), teacher, dtype)
    return Problem(model, "half_mse", (x, y), test=test, name=setting.title)


def _student(
    setting: Setting, d: int, seed: int, dtype: torch.dtype
) -> tuple[nn.Module | None, nn.Module]:
    """(teacher or None, student) of a setting."""
    model = setting.model
    if isinstance(model, Net):
        net = MLP.draw(
            d, model.width, hidden=model.hidden, slopes=model.slopes, generator=seed, dtype=dtype
        )
        return None, net
    if isinstance(model, Pure):
        return pure_teacher_student(
            model.n,
            model.d,
            masked=model.masked,
            eigenvalues=model.eigenvalues,
            elementwise=model.elementwise,
            generator=seed,
            dtype=dtype,
        )
    return biased_teacher_student(
        model.n,
        model.p,
        masked=model.masked,
        masked_features=model.masked_features,
        elementwise=model.elementwise,
        generator=seed,
        dtype=dtype,
    )


def _random(
    data: Random, draws: Draws, teacher: nn.Module | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """Training inputs, then their labels, then test inputs and labels: the order of the draws."""

    def inputs(rows: int) -> Tensor:
        return (data.scale * (draws.uniform(rows, data.d) - 0.5)).to(dtype)

    def labels(x: Tensor) -> Tensor:
        if data.labels == "normal":
            return draws.normal(x.shape[0]).to(dtype)
        if teacher is None:
            msg = "labels: a net has no teacher to label its data"
            raise InputError(msg)
        with torch.no_grad():
            # In blocks: ψ of all test inputs at once would take gigabytes.
            return torch.cat([teacher(part) for part in torch.split(x, 32)])

    x = inputs(data.train)
    y = labels(x)
    if not data.test:
        return x, y, None
    x_test = inputs(data.test)
    return x, y, (x_test, labels(x_test))
