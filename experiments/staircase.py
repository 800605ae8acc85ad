r"""The staircase regression: twelve fits of 40 and of 30,000 examples.

  python -m experiments.staircase

Reproduces the paper's staircase tables: with the first draw (seed 1) the
natural, AT and TRADES rows at 40 examples are the published ones, for example
TRADES(6): train error .0061, test error .0554, attacked .0748. RST was not
published; it is compared with a run of the authors' code. GR and LLR are fitted
as their papers define them, with the gradient of the loss with respect to the
input, and ("released") as the authors' code has them; that code's optimizer
stopped before convergence, so the published rows are not comparable.

Writes staircase.json and staircase.png. 20 s on 2 CPU cores.
"""

import pathlib
import time

import numpy as np
from absl import flags

from experiments import common, plots, report
from experiments.staircase_fits import methods, splines
from robustlip import drawing

FLAGS = flags.FLAGS
FAMILIES = {  # methods that share axes
  'Gradients': ('Natural', 'GR', 'LLR', 'GR (released)', 'LLR (released)'),
  'AT and RST': ('AT', 'RST(.5)', 'RST(1)', 'RST(2)'),
  'TRADES': ('TRADES(1)', 'TRADES(3)', 'TRADES(6)'),
}
STYLES = ('-', '--', '-.', ':', (0, (5, 1, 1, 1, 1, 1)))


def define() -> None:
  """The flags of this script."""
  common.define_seed()
  FLAGS.set_default('seed', 1)  # the published draw
  flags.DEFINE_string(
    'workdir', 'runs/staircase', 'Folder for the record and the figure.'
  )
  flags.DEFINE_integer(
    'num_seeds', 20, 'Draws of 40 examples to average over.', 2
  )


def table(num_examples: int, rows: dict, average: dict | None) -> str:
  """Markdown: each row, the published one and the mean over seeds below it."""
  lines = []
  for name, row in rows.items():
    cells = {name: {c: f'{row[c]:.4f}' for c in methods.COLUMNS}}
    if published := methods.PUBLISHED[num_examples].get(name):
      source = "authors' code" if name.startswith('RST') else 'published'
      cells[source] = {c: f'{x:g}' for c, x in published.items()}
    if average:
      found = {c: average[name][c] for c in methods.COLUMNS}
      cells['over seeds'] = {
        c: f'{x["mean"]:.4f} ± {x["std"]:.3f}' for c, x in found.items()
      }
    first = f'n = {num_examples:,}'
    lines += [{first: source} | texts for source, texts in cells.items()]
  return report.grid(lines)


def draw(panels: dict[int, tuple], path: pathlib.Path) -> None:
  """Writes all fits over the data to `path`.png, one row per training set.

  Args:
    panels: number of examples -> (coefficients by method, `splines.Data`).
  """
  grid = np.linspace(-splines.SHIFT, 9 + splines.SHIFT, 600)
  features = splines.BASIS(grid)
  figure = drawing.figure(12, 7)
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
      axis.legend(loc='upper left')
    row[0].set_ylabel('target y')
  for axis in axes[-1]:
    axis.set_xlabel('input x')
    axis.set_xticks(range(10))
  plots.save(figure, path)


def main() -> None:
  """Both tables, the spread over seeds, the record and the figure."""
  start = time.monotonic()
  seed, folder = FLAGS.seed, common.output_folder(FLAGS.workdir)
  seeds = range(seed, seed + FLAGS.num_seeds)
  averages = {40: methods.over_seeds(40, seeds)}
  tables, panels = {}, {}
  for num_examples, digits in ((40, 4), (30000, 3)):
    rows, coefficients, train = methods.fit_all(num_examples, seed)
    panels[num_examples] = coefficients, train
    published = methods.PUBLISHED[num_examples]
    tables[f'n={num_examples}'] = {
      'rows': rows,
      'published': published,
      'equals_published': methods.agreements(rows, published, digits),
    }
    print(table(num_examples, rows, averages.get(num_examples)))
  record = {
    'seed': seed,
    'columns': methods.COLUMNS,
    'tables': tables,
    'over_seeds': {'n=40': averages[40], 'seeds': list(seeds)},
    'seconds': time.monotonic() - start,
    **common.provenance(),
  }
  common.finish(record, folder / 'staircase.json')
  common.draw(draw, panels, folder / 'staircase')


if __name__ == '__main__':
  common.run(main, define)
