"""The paper's qualitative findings as sentences with numbers, true or false.

`rows` is a dict from row to its dict from column to value, see `table_rows`;
what was not measured is left out of the sentence, and a sentence with nothing
left to compare is left out altogether.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.comparison.table_rows import ROWS

Rows = dict[str, dict[str, float]]

NAMES = {
  'released_lipschitz': 'local Lipschitz constant by the released procedure',
  'eq3_lipschitz': 'local Lipschitz constant of Eq. (3)',
  'gap': 'gap between training and test accuracy',
  'adv_gap': 'gap between training and test accuracy under attack',
}
_ROBUST = ('at', 'rst0.5', 'rst1', 'rst2', 'trades1', 'trades3', 'trades6')
_TRADES = ('trades1', 'trades3', 'trades6')


class Finding(NamedTuple):
  """A claim of the paper and whether the numbers bear it out."""

  sentence: str
  holds: bool


def findings(rows: Rows) -> list[Finding]:
  """All that `rows` has the numbers for."""
  found = []
  for column, regularized in (
    ('eq3_lipschitz', ('gr', 'llr')),
    ('released_lipschitz', ('gr_reference', 'llr_reference')),
  ):
    found += [
      _order(rows, column, 'falls', [('natural', *regularized), _ROBUST]),
      _order(
        rows, column, 'falls as beta grows', [(name,) for name in _TRADES]
      ),
    ]
  found.append(_under_attack(rows))
  found += [_dropout(rows, column) for column in ('gap', 'adv_gap')]
  return [finding for finding in found if finding]


def _order(
  rows: Rows, column: str, claim: str, groups: list[tuple[str, ...]]
) -> Finding | None:
  """Whether every value of a group is above every value of the next."""
  measured = [
    [
      (ROWS[name].label, rows[name][column])
      for name in group
      if column in rows.get(name, {})
    ]
    for group in groups
    if any(column in rows.get(name, {}) for name in group)
  ]
  if len(measured) < 2:
    return None
  text = ' > '.join(
    ', '.join(f'{label} {value:.2f}' for label, value in group)
    for group in measured
  )
  exceptions = [
    f'{label} is not above {other}'
    for group, following in zip(measured, measured[1:], strict=False)
    for label, value in group
    for other, bound in following
    if not value > bound
  ]
  return _finding(f'The {NAMES[column]} {claim}: {text}', exceptions)


def _under_attack(rows: Rows) -> Finding | None:
  """Whether the gap of every robust method is wider under attack."""
  pairs = {
    ROWS[name].label: (rows[name]['gap'], rows[name]['adv_gap'])
    for name in _ROBUST
    if {'gap', 'adv_gap'} <= rows.get(name, {}).keys()
  }
  claim = f'Under attack the {NAMES["gap"]} widens'
  return _changes(claim, pairs, lambda gap, attacked: attacked > gap)


def _dropout(rows: Rows, column: str) -> Finding | None:
  """Whether dropout brings a gap of every method with both rows nearer to 0."""
  pairs = {
    ROWS[name].label: (rows[name][column], rows[f'{name}_dropout'][column])
    for name in rows
    if f'{name}_dropout' in rows
  }
  claim = f'Dropout narrows the {NAMES[column]}'
  return _changes(
    claim, pairs, lambda without, with_: abs(with_) < abs(without)
  )


def _changes(
  claim: str,
  pairs: dict[str, tuple[float, float]],
  holds: Callable[[float, float], bool],
) -> Finding | None:
  """Whether every method's two numbers are as claimed."""
  if not pairs:
    return None
  text = ', '.join(f'{x} {a:.2f} to {b:.2f}' for x, (a, b) in pairs.items())
  exceptions = [f'not of {x}' for x, ab in pairs.items() if not holds(*ab)]
  return _finding(f'{claim}: {text}', exceptions)


def _finding(sentence: str, exceptions: list[str]) -> Finding:
  if exceptions:
    sentence += f' ({"; ".join(exceptions)})'
  return Finding(f'{sentence}.', not exceptions)


def of_panel(panel: dict[str, Any]) -> list[dict[str, Any]]:
  """The findings in a panel of a table record."""
  rows = {
    name: {column: cell['ours'] for column, cell in row['columns'].items()}
    for name, row in panel['rows'].items()
  }
  if panel['arch'] is None:
    return []
  where = f'{panel["arch"]} on {panel["dataset"]}'
  return [{'where': where, **finding._asdict()} for finding in findings(rows)]
