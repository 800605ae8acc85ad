r"""The staircase regression: ten methods on 40 and on 30,000 examples.

  python -m experiments.staircase

Reproduces the paper's staircase tables: with the first draw (seed 1) the
natural, AT and TRADES rows at 40 examples are the published ones, for example
TRADES(6): train error .0061, test error .0554, attacked .0748. RST was not
published; beside it stands what the authors' code gives. GR and LLR are fitted
as their papers define them, with the gradient of the loss with respect to the
input, and ("reference") as the authors' code has them; that code's optimizer
stopped short, so its published rows are not comparable.

Writes staircase.json and staircase.png and .pdf. 40 s on 2 CPU cores.
"""

import time

from absl import flags

from experiments import common, provenance

flags.declare_key_flag(common.SEED)
WORKDIR = flags.DEFINE_string(
  'workdir', 'runs/staircase', 'Folder for the record and the figure.'
)
NUM_SEEDS = flags.DEFINE_integer(
  'num_seeds', 20, 'Draws of 40 examples to average over.', lower_bound=2
)


def main() -> None:
  """Both tables, the spread over seeds, the figure and the record."""
  from experiments import staircase_figures
  from experiments.staircase_fits import methods

  start = time.monotonic()
  seed, folder = common.SEED.value, common.output_folder(WORKDIR.value)
  seeds = range(seed, seed + NUM_SEEDS.value)
  average = methods.spread(40, seeds)
  tables, panels = {}, {}
  for num_examples, digits in ((40, 4), (30000, 3)):
    rows, coefficients, train = methods.table(num_examples, seed)
    panels[num_examples] = coefficients, train
    published = methods.PUBLISHED[num_examples]
    tables[f'n={num_examples}'] = {
      'rows': rows,
      'published': published,
      'equals_published': methods.agreements(rows, published, digits),
    }
    over_seeds = average if num_examples == 40 else None
    methods.show(num_examples, rows, over_seeds)
  staircase_figures.draw(panels, folder / 'staircase')
  record = {
    'job': 'staircase',
    'seed': seed,
    'columns': methods.COLUMNS,
    'tables': tables,
    'over_seeds': {'n=40': average, 'seeds': list(seeds)},
    'seconds': time.monotonic() - start,
    **provenance.record(),
  }
  common.finish(record, folder / 'staircase.json')


if __name__ == '__main__':
  flags.FLAGS.set_default('seed', 1)  # the published draw
  common.run(main)
