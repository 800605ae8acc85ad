"""The staircase tables: every method fitted and measured, beside the paper.

A table is a dict from method to its measurements, see `COLUMNS`.
"""

import functools
import time
from collections.abc import Callable

import numpy as np

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
# The authors' notebook; RST: their code run once more, by an inexact solver.
PUBLISHED = {
  40: {
    'Natural': (0.0059, 0.0192, 0.1926, 1.2872, 0.0133, 0.0326),
    'GR (reference)': (0.0059, 0.2186, 0.4119, 1.4519, 0.2127, 0.2453),
    'LLR (reference)': (0.0059, 0.2235, 0.3693, 1.2712, 0.2175, 0.2521),
    'AT': (0.0064, 0.3360, 0.3720, 0.5396, 0.3296, 0.3653),
    'RST(.5)': (0.0060, 0.2469, 0.2669, 0.5104, 0.2409, 0.2589),
    'RST(1)': (0.0060, 0.1954, 0.2057, 0.4633, 0.1894, 0.1991),
    'RST(2)': (0.0060, 0.1463, 0.1525, 0.4303, 0.1403, 0.1463),
    'TRADES(1)': (0.0060, 0.1571, 0.1679, 0.5148, 0.1511, 0.1569),
    'TRADES(3)': (0.0060, 0.0786, 0.0968, 0.4193, 0.0725, 0.0892),
    'TRADES(6)': (0.0061, 0.0554, 0.0748, 0.3870, 0.0493, 0.0680),
  },
  30000: {
    'Natural': (0.010, 0.010, 0.027, 0.341),
    'GR (reference)': (0.010, 0.010, 0.050, 0.377),
    'LLR (reference)': (0.010, 0.010, 0.015, 0.272),
    'AT': (0.010, 0.010, 0.014, 0.251),
    'RST(.5)': (None, None, 0.014, 0.251),
    'RST(1)': (None, None, 0.014, 0.251),
    'RST(2)': (None, None, 0.014, 0.251),
    'TRADES(1)': (0.010, 0.010, 0.015, 0.277),
    'TRADES(3)': (0.010, 0.010, 0.015, 0.279),
    'TRADES(6)': (0.011, 0.011, 0.016, 0.284),
  },
}


def methods() -> dict[str, Callable]:
  """Name of each method -> function from `splines.Data` to a fit."""
  partial = functools.partial
  robust, trades = convex_fits.robust, convex_fits.trades
  return {
    'Natural': convex_fits.natural,
    'GR': partial(gradient_fits.gr, beta=1.0),
    'LLR': partial(gradient_fits.llr, linearity=4.0, gradient=3.0),
    'GR (reference)': partial(gradient_fits.gr_reference, beta=1e-4),
    'LLR (reference)': partial(gradient_fits.llr_reference, beta=0.01),
    'AT': partial(robust, clean=0.0, attacked=1.0),
    'RST(.5)': partial(robust, clean=1.0, attacked=0.5),
    'RST(1)': partial(robust, clean=1.0, attacked=1.0),
    'RST(2)': partial(robust, clean=1.0, attacked=2.0),
    'TRADES(1)': partial(trades, beta=1.0),
    'TRADES(3)': partial(trades, beta=3.0),
    'TRADES(6)': partial(trades, beta=6.0),
  }


def draw(num_examples: int, seed: int) -> tuple:
  """Train and test sets as the authors draw them, one after the other."""
  random = np.random.RandomState(seed)
  train = synthetic.staircase(num_examples, random)
  test = synthetic.staircase(NUM_TEST[num_examples], random)
  return splines.observe(*train), splines.observe(*test)


def measure(fit, train, test) -> dict[str, float]:
  """The columns of the published table, and the true Lipschitz ratio."""
  trained = splines.evaluate(fit.coefficients, train)
  tested = splines.evaluate(fit.coefficients, test)
  return {
    'train': trained.error,
    'test': tested.error,
    'attacked_test': tested.attacked_error,
    'label_ratio': tested.label_ratio,
    'gap': tested.error - trained.error,
    'attacked_gap': tested.attacked_error - trained.attacked_error,
    'lipschitz': tested.lipschitz,
  }


def table(num_examples: int, seed: int) -> tuple[dict, dict, splines.Data]:
  """Fits every method: measurements and coefficients by name, and the data."""
  train, test = draw(num_examples, seed)
  rows, coefficients = {}, {}
  for name, method in methods().items():
    start = time.monotonic()
    fit = method(train)
    seconds = time.monotonic() - start
    rows[name] = measure(fit, train, test) | {
      'optimality_gap': fit.optimality_gap,
      'seconds': seconds,
    }
    coefficients[name] = fit.coefficients
  return rows, coefficients, train


def agreements(rows: dict, published: dict, digits: int) -> dict[str, bool]:
  """Whether every published number of a row is ours, rounded as printed."""
  return {
    name: all(
      theirs is None or round(rows[name][column], digits) == theirs
      for column, theirs in zip(COLUMNS, numbers, strict=False)
    )
    for name, numbers in published.items()
  }


def spread(num_examples: int, seeds: range) -> dict[str, dict]:
  """Mean and standard deviation of each measurement over `seeds`."""
  tables = [table(num_examples, seed)[0] for seed in seeds]
  result = {}
  for name in tables[0]:
    values = {c: [t[name][c] for t in tables] for c in (*COLUMNS, 'lipschitz')}
    result[name] = {
      column: {'mean': np.mean(v), 'std': np.std(v, ddof=1)}
      for column, v in values.items()
    }
  return result


def show(num_examples: int, rows: dict, average: dict | None) -> None:
  """Prints the table, measured above published above the mean over seeds."""
  print(f'\nn = {num_examples:<9}' + ''.join(f'{c:>15}' for c in COLUMNS))
  for name, row in rows.items():
    print(f'{name:16}' + ''.join(f'{row[c]:15.4f}' for c in COLUMNS))
    published = PUBLISHED[num_examples].get(name, ())
    if published:
      cells = ('-' if v is None else f'{v:g}' for v in published)
      label = "  authors' code" if name.startswith('RST') else '  published'
      print(f'{label:16}' + ''.join(f'{v:>15}' for v in cells))
    if average:
      cells = (average[name][c] for c in COLUMNS)
      print(
        f'{"  over seeds":16}'
        + ''.join(f'{v["mean"]:8.4f}+-{v["std"]:.3f}' for v in cells)
      )
