"""The claims of the paper, true or false by the numbers of a table."""

import itertools
from typing import Any

ROBUST = ('at', 'rst0.5', 'rst1', 'rst2', 'trades1', 'trades3', 'trades6')
DROPOUT = ('natural', 'at', 'rst2', 'trades3', 'trades6')  # rows of Table 4


def finding(pairs: list[tuple[str, float, float]]) -> dict[str, Any]:
  """Whether the first number of each pair is larger, and the closest pair."""
  name, *numbers = min(pairs, key=lambda pair: pair[1] - pair[2])
  failing = [pair[0] for pair in pairs if not pair[1] > pair[2]]
  return {
    'holds': not failing,
    'pairs': len(pairs),
    'failing': failing,
    'closest': name,
    'numbers': numbers,
  }


def decided(rows: dict[str, dict[str, float]]) -> dict[str, dict[str, Any]]:
  """The claims of the paper that rows -> column -> value can decide."""
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
  for row, column in itertools.product(DROPOUT, ('gap', 'adv_gap')):
    larger, smaller = (row, column), (f'{row}_dropout', column)
    compare(f'dropout_narrows_{column}', larger, smaller, abs)
  return {claim: finding(pairs) for claim, pairs in claims.items()}
