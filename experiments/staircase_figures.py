"""The figure of all staircase fits over the data."""

import pathlib

import numpy as np

from experiments import plots
from experiments.staircase_fits import splines

FAMILIES = {
  'Gradients': ('Natural', 'GR', 'LLR', 'GR (released)', 'LLR (released)'),
  'AT and RST': ('AT', 'RST(.5)', 'RST(1)', 'RST(2)'),
  'TRADES': ('TRADES(1)', 'TRADES(3)', 'TRADES(6)'),
}
STYLES = ('-', '--', '-.', ':', (0, (5, 1, 1, 1, 1, 1)))


def draw(panels: dict[int, tuple], path: pathlib.Path) -> None:
  """Writes `path`.png, one row per training set.

  Args:
    panels: number of examples -> (coefficients by method, `splines.Data`).
  """
  grid = np.linspace(-splines.SHIFT, 9 + splines.SHIFT, 600)
  features = splines.BASIS(grid)
  figure = plots.figure(12, 7)
  axes = figure.subplots(len(panels), len(FAMILIES), sharex=True, sharey=True)
  for row, (num_examples, (coefficients, data)) in zip(
    axes, panels.items(), strict=True
  ):
    for axis, (family, names) in zip(row, FAMILIES.items(), strict=True):
      axis.plot(data.inputs, data.targets, 'o', color='0.6', ms=3, zorder=0)
      for name, style in zip(names, STYLES, strict=False):
        axis.plot(grid, features @ coefficients[name], ls=style, label=name)
      axis.set_title(f'{family}, n = {num_examples:,}')
      axis.set_ylim(-1, 10)
      axis.legend(loc='upper left', frameon=False)
    row[0].set_ylabel('target y')
  for axis in axes[-1]:
    axis.set_xlabel('input x')
    axis.set_xticks(range(10))
  plots.save(figure, path)
