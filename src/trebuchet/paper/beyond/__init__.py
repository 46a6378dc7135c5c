"""Beyond the paper: questions that its experiments raise, each a function to a labelled dataset.

- :func:`sparsity_over_widths`: do ReLU nets get sparser as the learning rate rises, whatever the
  seed and the width?
- :func:`norm_ceiling`: does the weight norm of a net of k layers fall up to ηλ = 2k, and no higher?
- :func:`divergence_edge`: where do ReLU and tanh nets stop training, and does it move with width
  and depth?
- :func:`critical_over_width`: does the critical rate move with width, and the best one?
- :func:`first_rise`: from which rate on does the loss rise in the first steps?
- :func:`early_diagram`: from which rates on do loss and sharpness rise early, over width and depth?
- :func:`cycles_and_chaos`: what becomes of training past the last stable minimum?
- :func:`taylor_models`: how do a net's linear and quadratic Taylor models train and generalise?
- :func:`second_catapults`: does each eigendirection catapult at its own 2/λᵢ?
- :func:`held_out_over_rates`: does the test loss fall past the critical rate, at equal training
  loss, and is it sparsity?
- :func:`edge_of_stability`: does the sharpness of a tanh net rise to 2/η, and does it stay there?

`EXPERIMENTS` is the table of them all, with the settings, a picture and a few sentences each:
``trebuchet beyond NAME``, or ``EXPERIMENTS["edge"].run(quick=True)``. Only
public names of trebuchet are used, so that this doubles as an example of the public API.
"""

from trebuchet.paper.beyond.bifurcation import cycles_and_chaos, map_runs
from trebuchet.paper.beyond.ceiling import norm_ceiling
from trebuchet.paper.beyond.early import early_diagram
from trebuchet.paper.beyond.edge import divergence_edge
from trebuchet.paper.beyond.experiments import EXPERIMENTS
from trebuchet.paper.beyond.first_rise import first_rise
from trebuchet.paper.beyond.held_out import held_out_over_rates
from trebuchet.paper.beyond.problems import relu_problem, tanh_problem
from trebuchet.paper.beyond.second import second_catapults
from trebuchet.paper.beyond.sparsity import sparsity_over_widths
from trebuchet.paper.beyond.stability import edge_of_stability
from trebuchet.paper.beyond.taylor import taylor_models
from trebuchet.paper.beyond.width import critical_over_width

__all__ = [
    "EXPERIMENTS",
    "critical_over_width",
    "cycles_and_chaos",
    "divergence_edge",
    "early_diagram",
    "edge_of_stability",
    "first_rise",
    "held_out_over_rates",
    "map_runs",
    "norm_ceiling",
    "relu_problem",
    "second_catapults",
    "sparsity_over_widths",
    "tanh_problem",
    "taylor_models",
]
