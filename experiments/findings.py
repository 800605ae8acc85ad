"""Decides the paper's claims, and ours, from the numbers of a table."""

import itertools
import statistics
from typing import Any

ROBUST = ('at', 'rst0.5', 'rst1', 'rst2', 'trades1', 'trades3', 'trades6')
DROPOUT = ('natural', 'at', 'rst2', 'trades3', 'trades6')  # rows of Table 4
SLACK = 0.5  # test accuracies that differ by fewer points count as equal
DIGITS = 9  # of differences; in floats 50 - 48.4 exceeds 98 - 96.4 by 7e-15


def finding(pairs: list[tuple[str, float, float]]) -> dict[str, Any]:
  """Whether the first number of each pair is larger, and the closest pair."""
  name, *numbers = min(pairs, key=lambda pair: pair[1] - pair[2])
  failing = [
    pair[0] for pair in pairs if not round(pair[1] - pair[2], DIGITS) > 0
  ]
  return {
    'holds': not failing,
    'pairs': len(pairs),
    'failing': failing,
    'closest': name,
    'numbers': numbers,
  }


def place(row: str, rows: dict[str, dict[str, float]]) -> tuple[bool, float]:
  """Sort key of a method with tools, such as `at-ema-awp`, among the others.

  First come those whose test accuracies, clean and under attack, are at most
  `SLACK` below those of the method alone, then the others; in either part, the
  smaller gap under attack goes first.
  """
  alone = rows.get(row.split('-')[0], rows[row])
  columns = ('test_acc', 'adv_test_acc')
  lost = max(round(alone[c] - rows[row][c], DIGITS) for c in columns)
  return lost > SLACK, abs(rows[row]['adv_gap'])


def runs(
  rows: list[dict[str, Any]], columns: tuple[str, ...]
) -> list[tuple[float, ...]]:
  """These columns of every run, of the rows that have all of them.

  (`tables` leaves out a column with a value that is not finite.)
  """
  return [
    tuple(round(value, DIGITS) for value in run)
    for row in rows
    if set(columns) <= set(row['ours'])
    for run in zip(*(row['ours'][c] for c in columns), strict=True)
  ]


def rank_correlations(rows: list[dict[str, Any]]) -> dict[str, float]:
  """Spearman's, between the constant of Eq. (3) and each gap, over robust runs.

  Other methods are left out: a network that is never robust has no gap under
  attack, however rough it is. Needs three runs and numbers that differ. A
  network that is in two rows, as the best and the last of a run, counts once.
  """
  from scipy import stats

  columns = ('eq3_lipschitz', 'gap', 'adv_gap')
  robust = [row for row in rows if row['row'].split('-')[0] in ROBUST]
  known = list(dict.fromkeys(runs(robust, columns)))
  if len(known) < 3:
    return {}
  constants, *gaps = zip(*known, strict=True)
  return {
    column: float(stats.spearmanr(constants, values).statistic)
    for column, values in zip(columns[1:], gaps, strict=True)
    if len(set(values)) > 1 and len(set(constants)) > 1
  }


def by_size(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
  """Whether more training examples narrow each gap, row for row.

  Args:
    rows: of one network, by method and then by number of training examples.
  """
  claims: dict[str, list] = {}
  for fewer, more in itertools.pairwise(rows):
    if fewer['row'] != more['row']:
      continue
    sizes = [x['settings']['train_examples'] for x in (fewer, more)]
    name = f'{fewer["row"]} of {sizes[0]} and of {sizes[1]}'
    for column in ('gap', 'adv_gap'):
      means = [statistics.mean(x['ours'][column]) for x in (fewer, more)]
      pairs = claims.setdefault(f'examples_narrow_{column}', [])
      pairs.append((name, *means))
  return {claim: finding(pairs) for claim, pairs in claims.items()}


def decided(rows: dict[str, dict[str, float]]) -> dict[str, dict[str, Any]]:
  """The claims that rows -> column -> value can decide."""
  claims: dict[str, list] = {}

  def compare(claim, larger, smaller, size=float):
    (row, column), (other, other_column) = larger, smaller
    if column in rows.get(row, {}) and other_column in rows.get(other, {}):
      a, b = size(rows[row][column]), size(rows[other][other_column])
      name = row if row == other else f'{row} and {other}'
      claims.setdefault(claim, []).append((name, a, b))

  for kind, end in (('eq3', ''), ('released', '_released')):
    column, rough = f'{kind}_lipschitz', ('natural', f'gr{end}', f'llr{end}')
    for row, other in itertools.product(rough, ROBUST):
      compare(f'smoother_{kind}', (row, column), (other, column))
    for row, other in itertools.combinations(
      ('trades1', 'trades3', 'trades6'), 2
    ):
      compare(f'smoother_with_beta_{kind}', (row, column), (other, column))
  for row in ROBUST:
    compare('gap_widens', (row, 'adv_gap'), (row, 'gap'))
  ends = '_dropout', '-dropout'  # of rows of Table 4 and of Table 5
  for row, column, end in itertools.product(DROPOUT, ('gap', 'adv_gap'), ends):
    larger, smaller = (row, column), (row + end, column)
    compare(f'dropout_narrows_{column}', larger, smaller, abs)
  for alone in ROBUST:
    tooled = [row for row in rows if row.split('-')[0] == alone]
    if alone in rows and len(tooled) > 1:
      best = min(tooled, key=lambda row: place(row, rows))
      gaps = [abs(rows[row]['adv_gap']) for row in (alone, best)]
      name = alone if best == alone else f'{alone} and {best}'
      pairs = claims.setdefault('a_tool_halves_adv_gap', [])
      pairs.append((name, gaps[0] / 2, gaps[1]))
  return {claim: finding(pairs) for claim, pairs in claims.items()}
