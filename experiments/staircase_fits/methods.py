"""The methods by name, measurements of their fits, and the paper's numbers.

Rows are a dict from the name of a method to its measurements, see `COLUMNS`.
"""

import time
from functools import partial

import numpy as np

from experiments import paper
from experiments.staircase_fits import convex_fits, gradient_fits, splines
from robustlip.datasets import synthetic

NUM_TEST = {40: 10000, 30000: 15000}
COLUMNS = (
  'train',
  'test',
  'attacked_test',
  'label_ratio',
  'gap',
  'attacked_gap',
)
# As published; RST is from a run of the authors' code, with an inexact solver.
PUBLISHED = {
  count: paper.panels('staircase')[f'{count}', ''] for count in NUM_TEST
}


METHODS = {  # name -> function from `splines.Data` to a fit
  'Natural': convex_fits.natural,
  'GR': partial(gradient_fits.gr, beta=1.0),
  'LLR': partial(gradient_fits.llr, linearity=4.0, gradient=3.0),
  'GR (released)': partial(gradient_fits.gr_released, beta=1e-4),
  'LLR (released)': partial(gradient_fits.llr_released, beta=0.01),
  'AT': partial(convex_fits.robust, clean=0.0, attacked=1.0),
  'RST(.5)': partial(convex_fits.robust, clean=1.0, attacked=0.5),
  'RST(1)': partial(convex_fits.robust, clean=1.0, attacked=1.0),
  'RST(2)': partial(convex_fits.robust, clean=1.0, attacked=2.0),
  'TRADES(1)': partial(convex_fits.trades, beta=1.0),
  'TRADES(3)': partial(convex_fits.trades, beta=3.0),
  'TRADES(6)': partial(convex_fits.trades, beta=6.0),
}


def samples(num_examples: int, seed: int) -> tuple[splines.Data, splines.Data]:
  """Train and test sets as the authors draw them, one after the other."""
  random = np.random.RandomState(seed)
  train = synthetic.staircase(num_examples, random)
  test = synthetic.staircase(NUM_TEST[num_examples], random)
  return splines.observe(*train), splines.observe(*test)


def measured(fit, train, test) -> dict[str, float]:
  """The columns of the published table, and the true Lipschitz ratio."""
  on_train = splines.evaluate(fit.coefficients, train)
  on_test = splines.evaluate(fit.coefficients, test)
  return {
    'train': on_train.error,
    'test': on_test.error,
    'attacked_test': on_test.attacked_error,
    'label_ratio': on_test.label_ratio,
    'gap': on_test.error - on_train.error,
    'attacked_gap': on_test.attacked_error - on_train.attacked_error,
    'lipschitz': on_test.lipschitz,
  }


def fit_all(num_examples: int, seed: int) -> tuple[dict, dict, splines.Data]:
  """Fits every method: rows, coefficients by name, and the training set."""
  train, test = samples(num_examples, seed)
  rows, coefficients = {}, {}
  for name, method in METHODS.items():
    start = time.monotonic()
    fit = method(train)
    seconds = time.monotonic() - start
    rows[name] = measured(fit, train, test) | {
      'optimality_gap': fit.optimality_gap,
      'seconds': seconds,
    }
    coefficients[name] = fit.coefficients
  return rows, coefficients, train


def agreements(rows: dict, published: dict, digits: int) -> dict[str, bool]:
  """Whether each row's published numbers are ours rounded to `digits`."""
  return {
    name: all(round(rows[name][c], digits) == x for c, x in numbers.items())
    for name, numbers in published.items()
  }


def over_seeds(num_examples: int, seeds: range) -> dict[str, dict]:
  """Mean and standard deviation of each measurement over `seeds`."""
  draws = [fit_all(num_examples, seed)[0] for seed in seeds]
  result = {}
  for name in METHODS:
    values = {c: [d[name][c] for d in draws] for c in (*COLUMNS, 'lipschitz')}
    result[name] = {
      column: {'mean': np.mean(v), 'std': np.std(v, ddof=1)}
      for column, v in values.items()
    }
  return result
