r"""The staircase regression: ten methods on 40 and on 30,000 examples.

  python -m experiments.staircase

Reproduces the paper's staircase tables: with the first draw (seed 1) the
natural, AT and TRADES rows at 40 examples are the published ones, for example
TRADES(6): train error .0061, test error .0554, attacked .0748. RST was not
published; beside it stands what the authors' code gives. GR and LLR are fitted
as their papers define them, with the gradient of the loss with respect to the
input, and ("released") as the authors' code has them; that code's optimizer
stopped short, so its published rows are not comparable.

Writes staircase.json and staircase.png. 40 s on 2 CPU cores.
"""

import time

from absl import flags

from experiments import common, staircase_figures
from experiments.staircase_fits import methods

FLAGS = flags.FLAGS


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


def show(num_examples: int, rows: dict, average: dict | None) -> None:
  """Prints the rows, measured above published above the mean over seeds."""
  columns = methods.COLUMNS
  print(f'\nn = {num_examples:<9}' + ''.join(f'{c:>15}' for c in columns))
  for name, row in rows.items():
    print(f'{name:16}' + ''.join(f'{row[c]:15.4f}' for c in columns))
    published = methods.PUBLISHED[num_examples].get(name, ())
    if published:
      cells = ('-' if v is None else f'{v:g}' for v in published)
      label = "  authors' code" if name.startswith('RST') else '  published'
      print(f'{label:16}' + ''.join(f'{v:>15}' for v in cells))
    if average:
      cells = (average[name][c] for c in columns)
      print(
        f'{"  over seeds":16}'
        + ''.join(f'{v["mean"]:8.4f}+-{v["std"]:.3f}' for v in cells)
      )


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
    show(num_examples, rows, averages.get(num_examples))
  record = {
    'seed': seed,
    'columns': methods.COLUMNS,
    'tables': tables,
    'over_seeds': {'n=40': averages[40], 'seeds': list(seeds)},
    'seconds': time.monotonic() - start,
    **common.provenance(),
  }
  common.finish(record, folder / 'staircase.json')
  common.draw(staircase_figures.draw, panels, folder / 'staircase')


if __name__ == '__main__':
  common.run(main, define)
