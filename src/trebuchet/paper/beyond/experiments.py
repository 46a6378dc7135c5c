"""The table of experiments beyond the paper: one row a question."""

from trebuchet.paper.beyond import pictures, second, taylor
from trebuchet.paper.beyond.bifurcation import cycles_and_chaos, draw_cycles, tell_cycles
from trebuchet.paper.beyond.ceiling import norm_ceiling
from trebuchet.paper.beyond.early import draw_early, early_diagram, tell_early
from trebuchet.paper.beyond.edge import divergence_edge
from trebuchet.paper.beyond.first_rise import draw_first_rise, first_rise, tell_first_rise
from trebuchet.paper.beyond.held_out import draw_test_loss, held_out_over_rates, tell_test_loss
from trebuchet.paper.beyond.sparsity import sparsity_over_widths
from trebuchet.paper.beyond.stability import (
    draw_edge_of_stability,
    edge_of_stability,
    tell_edge_of_stability,
)
from trebuchet.paper.beyond.width import critical_over_width, draw_width, tell_width
from trebuchet.paper.experiment import Experiment

PAPER = "Meltzer & Liu, arXiv 2301.07737"
EARLY = "Kalra & Barkeshli, arXiv 2302.12250"
ZHU = "Zhu, Liu, Radhakrishnan & Belkin, arXiv 2205.11787"
COHEN = "Cohen et al., arXiv 2103.00065"
PHASES = "Lewkowycz et al., arXiv 2003.02218"

_ROWS = (
    Experiment(
        name="sparsity",
        title="Sparser as the rate rises?",
        question="Do ReLU nets get sparser as the rate rises, whatever the seed and the width?",
        source=PAPER,
        function=sparsity_over_widths,
        draw=pictures.draw_sparsity,
        tell=pictures.tell_sparsity,
        quick={"widths": (64, 256), "lr_ratio": (0.5, 1, 2, 3, 5, 8, 12), "seeds": 2},
        minutes=3,
    ),
    Experiment(
        name="sparsity_mnist",
        title="Sparser as the rate rises? On MNIST",
        question="The same on MNIST 0/1, three widths.",
        source=PAPER,
        function=sparsity_over_widths,
        draw=pictures.draw_sparsity,
        tell=pictures.tell_sparsity,
        settings={"widths": (128, 512, 2048), "seeds": 3, "steps": 300, "data": "mnist"},
        quick={"widths": (128,), "lr_ratio": (0.5, 1, 2, 3, 5, 8, 12), "seeds": 2},
        minutes=5,
    ),
    Experiment(
        name="ceiling",
        title="The weight-norm ceiling 2k",
        question="Does the weight norm of a net of k layers fall up to ηλ = 2k, and no higher?",
        source=PAPER,
        function=norm_ceiling,
        draw=pictures.draw_ceiling,
        tell=pictures.tell_ceiling,
        quick={"width": 48, "seeds": 2, "steps": 25, "rate_step": 0.25, "samples": 8},
    ),
    Experiment(
        name="edge",
        title="Where training stops",
        question="Where do ReLU and tanh nets stop training? Does it move with width and depth?",
        source=PHASES,
        function=divergence_edge,
        draw=pictures.draw_edge,
        tell=pictures.tell_edge,
        quick={"hidden": (1,), "widths": (32, 128), "seeds": 2, "growth": 1.6, "precision": 0.1},
        minutes=2,
    ),
    Experiment(
        name="edge_wide",
        title="Where training stops, wide nets and more steps",
        question="Is ηλ₀ ≈ 12 the edge of wide ReLU nets of one hidden layer?",
        source=PHASES,
        function=divergence_edge,
        draw=pictures.draw_edge,
        tell=pictures.tell_edge,
        settings={
            "activations": ("relu",), "hidden": (1,), "widths": (128, 512, 2048, 4096),
            "steps": 500, "stop": 100.0,
        },
        quick={"widths": (128, 256), "seeds": 2, "growth": 1.6, "precision": 0.1},
        minutes=3,
    ),
    Experiment(
        name="early",
        title="Early training over width and depth",
        question="From which rates on do loss and sharpness rise early, and which train no more?",
        source=EARLY,
        function=early_diagram,
        draw=draw_early,
        tell=tell_early,
        settings={"data": "cifar10", "widths": (64, 256, 512), "depths": (2, 8)},
        quick={
            "widths": (8, 32), "depths": (2, 4), "seeds": 1, "steps": 5, "rtol": 0.2,
            "n_train": 32, "data": "digits",
        },
        minutes=20,
    ),
    Experiment(
        name="early_zero",
        title="Early training from a last layer of zeros",
        question="Is c_loss = 2 at any width and depth where the outputs start at zero?",
        source=EARLY,
        function=early_diagram,
        draw=draw_early,
        tell=tell_early,
        settings={"data": "cifar10", "zero_last": True, "depths": (2, 8), "widths": (64, 256)},
        quick={
            "widths": (8, 32), "depths": (2,), "seeds": 1, "rtol": 0.1, "n_train": 32,
            "data": "digits",
        },
        minutes=6,
    ),
    Experiment(
        name="width",
        title="The critical rate over width, standard and maximal-update parametrisation",
        question="Does the critical rate stay where it is as the net gets wider, and the best one?",
        source="Yang et al., arXiv 2203.03466",
        function=critical_over_width,
        draw=draw_width,
        tell=tell_width,
        quick={"widths": (16, 64, 256), "seeds": 1, "horizon": 10, "n_train": 32},
        minutes=3,
    ),
    Experiment(
        name="first_rise",
        title="Where the loss first rises, step by step",
        question="From which rate on does the loss rise in the first steps of momentum and Adam?",
        source="Cohen et al., arXiv 2207.14484",
        function=first_rise,
        draw=draw_first_rise,
        tell=tell_first_rise,
        quick={"width": 8, "steps": 10, "rates": 40, "seeds": 1, "n_train": 16},
        minutes=6,
    ),
    Experiment(
        name="bifurcation",
        title="Cycles and chaos past the last minimum",
        question="What becomes of training past the last stable minimum: does it follow the map?",
        source="Chen et al., arXiv 2310.01687",
        function=cycles_and_chaos,
        draw=draw_cycles,
        tell=tell_cycles,
        quick={
            "a": tuple(0.8 + 0.05 * k for k in range(25)), "seeds": 1, "steps": 1200,
            "exponent_steps": 128,
        },
        minutes=6,
    ),
    Experiment(
        name="taylor",
        title="A net beside its linear and quadratic Taylor models",
        question="Does the quadratic model train past 2/λ₀ as the net does, and generalise better?",
        source=ZHU,
        function=taylor.taylor_models,
        draw=taylor.draw,
        tell=taylor.tell,
        quick={
            "width": 256, "lr_ratio": (0.5, 1.5, 2.2, 3.0, 3.6, 4.4), "seeds": 1, "steps": 60,
            "n_train": 32,
        },
        minutes=3,
    ),
    Experiment(
        name="second_catapult",
        title="Second catapults",
        question="Does each eigendirection of the kernel catapult at its own rate 2/λᵢ?",
        source=ZHU,
        function=second.second_catapults,
        draw=second.draw,
        tell=second.tell,
        quick={"width": 400, "samples": 48, "seeds": (1,), "steps": 50},
        minutes=3,
    ),
    Experiment(
        name="test_loss",
        title="Lower test loss past the critical rate?",
        question="Does the test loss fall past the critical rate, and is it sparsity?",
        source=PAPER,
        function=held_out_over_rates,
        draw=draw_test_loss,
        tell=tell_test_loss,
        quick={
            "widths": (128,), "lr_ratio": (1, 1.5, 2.5, 4, 6, 8), "seeds": 3, "steps": 400,
            "target": 0.01,
        },
        minutes=3,
    ),
    Experiment(
        name="test_loss_images",
        title="Lower test loss past the critical rate? On images",
        question="The same on MNIST, Fashion-MNIST and CIFAR-10 0/1, one width.",
        source=PAPER,
        function=held_out_over_rates,
        draw=draw_test_loss,
        tell=tell_test_loss,
        settings={
            "data": ("mnist", "fashion_mnist", "cifar10"), "widths": (256,),
            "lr_ratio": (0.5, 1, 1.5, 2.5, 3.5, 5, 7, 9, 12),
            "target": (0.005, 0.02, 0.1),
        },
        quick={
            "data": ("mnist",), "target": 0.01, "lr_ratio": (1, 2.5, 5), "seeds": 2, "steps": 300,
        },
        minutes=6,
    ),
    Experiment(
        name="edge_of_stability",
        title="Edge of stability",
        question="Does the sharpness of a tanh net rise to 2/η, and does it stay there?",
        source=COHEN,
        function=edge_of_stability,
        draw=draw_edge_of_stability,
        tell=tell_edge_of_stability,
        settings={"data": "cifar10"},
        quick={
            "data": "digits", "n_train": 16, "width": 32, "lr_ratio": (1.0, 1.5, 1.9), "seeds": 1,
            "steps": 600, "every": 40,
        },
        minutes=5,
    ),
)  # fmt: skip

EXPERIMENTS: dict[str, Experiment] = {row.name: row for row in _ROWS}
"""By name."""
