"""Table 1: the records of `experiments.separation` beside the paper."""

import pathlib
from typing import Any

from experiments import common, paper_tables
from experiments.comparison.table_record import cell, plain_panel
from robustlip.datasets.catalogue import FACTS

COLUMNS = ('epsilon', 'train_train_min', 'test_train_min')
SEARCH = {'norm': 'linf', 'random_labels': False}
NOTE = (
  'Smallest distance between two classes among the images at hand; a part '
  'of a data set can only be farther apart.'
)


def published(record: dict[str, Any]) -> tuple[float, ...] | None:
  """What the paper has for the columns, if it searched the same examples.

  Where the paper left out some, records with and without any stand beside it.
  """
  name = record['dataset']
  if common.difference(record, SEARCH):
    return None
  if record['dropped'] and name not in paper_tables.SEPARATION_LEFT_OUT:
    return None
  return paper_tables.SEPARATION.get(name)


def panel(root: pathlib.Path) -> dict[str, Any]:
  """The table from the records `separation_<dataset>.json` in `root`.

  Where the paper left out examples, a record with `--drop` goes first.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: for one of other labels, another norm or a part of the set.
  """
  rows, notes, seconds = {}, [NOTE], 0.0
  for name in paper_tables.SEPARATION:
    paths = [root / f'separation_{name}.json']
    if name in paper_tables.SEPARATION_LEFT_OUT:
      paths = [*sorted(root.glob(f'separation_{name}-without_*.json')), *paths]
    path = next((path for path in paths if path.exists()), None)
    if path:
      record = _read(path, name)
      seconds += record['seconds']
      notes += _examples(record)
      pairs = zip(COLUMNS, published(record), strict=True)
      columns = {column: cell([record[column]], x) for column, x in pairs}
      rows[name] = {'label': name, 'columns': columns}
  if not rows:
    raise FileNotFoundError(
      f'{root} has no separation_<dataset>.json; run python -m '
      f'experiments.separation --dataset=NAME --workdir={root}'
    )
  return plain_panel(rows, seconds=seconds, notes=notes)


def _read(path: pathlib.Path, name: str) -> dict[str, Any]:
  record = common.read_json(path)
  needed = {'seconds', 'dropped', 'num_train', 'num_test', *COLUMNS}
  if missing := needed - set(record):
    raise ValueError(f'{path} has no {", ".join(sorted(missing))}')
  if record.get('dataset') != name or published(record) is None:
    raise ValueError(
      f'{path} is not of Table 1: l-inf distances of all examples of {name} '
      'under their own labels'
    )
  return record


def _examples(record: dict[str, Any]) -> list[str]:
  """Notes of what was not searched: by the paper, and of the whole set."""
  name, notes = record['dataset'], []
  if left_out := paper_tables.SEPARATION_LEFT_OUT.get(name):
    notes.append(
      f'The paper left out of {name} {left_out}; this row '
      f'{len(record["dropped"])} training examples.'
    )
  facts, found = FACTS[name], (record['num_train'], record['num_test'])
  found = found[0] + len(record['dropped']), found[1]
  if found != (facts.num_train, facts.num_test):
    notes.append(
      f'Of {name} {found[0]:,} of {facts.num_train:,} training and '
      f'{found[1]:,} of {facts.num_test:,} test images.'
    )
  return notes
