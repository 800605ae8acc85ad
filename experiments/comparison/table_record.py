"""From records of runs to the record of a table: ours, paper, difference."""

import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from experiments import paper, paper_tables
from experiments.comparison import findings
from experiments.comparison.table_rows import (
  OWN_COLUMNS,
  ROWS,
  TABLE_COLUMNS,
  Target,
  published_row,
)
from experiments.networks import config, remeasure
from experiments.networks.config import Config
from robustlip.methods import WEIGHTS

_SCHEDULE = (
  'epochs',
  'batch_size',
  'optimizer',
  'momentum',
  'milestones',
  'augment',
)
_SHARED = (
  'epsilon',
  *_SCHEDULE,
  'precision',
  'holdout',
  'measured_train',
  'measured_test',
  'device',
)
_PROVENANCE = ('command', 'commit', 'date', 'machine')
# Of the network within the training attack, in the released code.
_ATTACK_MODES = {
  'at': 'train',
  'rst': 'train',
  'gr': 'train',
  'trades': 'eval',
  'llr': 'eval',
}


def folder(
  root: pathlib.Path, target: Target, row: str, seed: int
) -> pathlib.Path:
  """Where a run of a table lives; tables share networks."""
  return root / target.name / row / f'seed{seed}'


def cell(values: list[float], published: float | None) -> dict[str, Any]:
  """Values over seeds beside the published one; `std` of two or more."""
  mean = float(np.mean(values))
  return {
    'ours': mean,
    'std': float(np.std(values, ddof=1)) if len(values) > 1 else None,
    'values': values,
    'published': published,
    'difference': None if published is None else mean - published,
  }


def provenance(run: dict[str, Any]) -> dict[str, Any]:
  """Where the numbers of a run come from, in short."""
  return {key: run.get(key) for key in _PROVENANCE}


def _published(target: Target, row: str) -> dict[str, float]:
  panel, name = target.published, published_row(row)
  if panel is None or name not in panel.rows:
    return {}
  return dict(zip(panel.columns, panel.rows[name], strict=True))


def _row(
  target: Target, name: str, columns: Iterable[str], runs: list[dict]
) -> dict[str, Any]:
  published = _published(target, name)
  return {
    'label': ROWS[name].label,
    'seeds': [run['seed'] for run in runs],
    'learning_rate': runs[0]['learning_rate'],
    'provenance': [provenance(run) for run in runs],
    'columns': {
      column: cell([run[column] for run in runs], published.get(column))
      for column in columns
      if all(run.get(column) is not None for run in runs)  # null: not finite
    },
  }


def _departures(
  target: Target, settings: dict, runs: dict[str, dict]
) -> list[str]:
  """How the runs, one of each row, differ from those behind the paper's."""
  theirs = target.published
  if theirs is None:
    return []
  setup = paper.SETUPS[theirs.dataset]
  schedule = {key: getattr(setup, key) for key in _SCHEDULE}
  if theirs.augment:
    schedule['augment'] = theirs.augment
  pairs = {
    'data set': (target.dataset, theirs.dataset),
    'network': (target.arch, theirs.arch),
    'radius': (settings['epsilon'], paper_tables.SEPARATION[theirs.dataset][0]),
    **{k: (settings[k], value) for k, value in schedule.items()},
    'precision': (settings['precision'], 'float32'),
    'examples held out': (settings['holdout'], 0),
  }
  pairs['milestones'] = tuple(map(tuple, pairs['milestones']))
  found = [f'{k} {a}, not {b}' for k, (a, b) in pairs.items() if a != b]
  found += _of_rows(runs, setup, theirs)
  return found + [theirs.note] if theirs.note else found


def _of_rows(
  runs: dict[str, dict], setup: paper.Setup, theirs: paper_tables.Panel
) -> list[str]:
  """The departures of single rows, with the rows unless it is all of them."""
  rows: dict[str, list[str]] = {}
  for name, run in runs.items():
    for text in _of_row(name, run, setup, theirs):
      rows.setdefault(text, []).append(ROWS[name].label)
  return [
    text if len(labels) == len(runs) else f'{text} ({", ".join(labels)})'
    for text, labels in rows.items()
  ]


def _of_row(
  name: str, run: dict, setup: paper.Setup, theirs: paper_tables.Panel
) -> Iterator[str]:
  row = ROWS[name]
  published = {'learning_rate': setup.learning_rate} | WEIGHTS[row.method]
  published |= setup.method_settings.get(row.method, {}) | row.settings
  rate = theirs.rates.get(name, published.pop('learning_rate'))
  if run['learning_rate'] != rate:
    found = f'learning rate {run["learning_rate"]:g} for a mean loss'
    yield f'{found}, not {rate:g}'
  dropout = setup.dropout if row.dropout else None
  if run['dropout'] != dropout:
    yield f'dropout {_drop(run["dropout"])}, not {_drop(dropout)}'
  drops = run['arch'].startswith('cnn') or run['dropout']
  if row.method in ('rst', 'trades') and drops and run['protocol'] == 'text':
    yield 'one dropout mask for clean and attacked inputs'
  if row.method == 'trades' and run['protocol'] == 'text':
    yield 'training attacks that start within the pixel range'
  if run['attack_mode'] != _ATTACK_MODES.get(row.method, run['attack_mode']):
    mode = {'eval': 'inference', 'train': 'training'}[run['attack_mode']]
    yield f'training attacks with the network in {mode} mode'
  for weight, value in published.items():
    if run[weight] != value:
      yield f'{weight} {run[weight]:g}, not {value:g}'


def _drop(dropout: float | None) -> str:
  return "the network's own" if dropout is None else f'{dropout:g}'


def panel(
  table: str,
  target: Target,
  wanted: dict[str, list[Config]],
  root: pathlib.Path,
) -> dict[str, Any]:
  """A panel of what is finished of the rows, with exactly these settings."""
  rows, runs, firsts = {}, [], {}
  for name, configs in wanted.items():
    found = []
    for settings in configs:
      path = folder(root, target, name, settings.seed)
      run = remeasure.merged(path)
      measured = run and OWN_COLUMNS.get(table, set()) <= run.keys()
      if measured and config.read(path) == settings:
        found.append(run)
    if found:
      rows[name] = _row(target, name, TABLE_COLUMNS[table], found)
      firsts[name] = found[0]
      runs += found
  settings = {
    key: runs[0][key]
    for key in (_SHARED if runs else ())
    if all(run[key] == runs[0][key] for run in runs)
  }
  theirs = target.published
  return {
    'dataset': target.dataset,
    'arch': target.arch,
    'published': theirs and {'dataset': theirs.dataset, 'arch': theirs.arch},
    'settings': settings,
    'departures': _departures(target, settings, firsts) if runs else [],
    'seconds': _seconds(runs),
    'notes': _inconsistencies(table, theirs, rows),
    'rows': rows,
  }


def _inconsistencies(
  table: str, theirs: paper_tables.Panel | None, rows: dict[str, Any]
) -> list[str]:
  """Where the published text and the published numbers shown disagree."""
  if theirs is None:
    return []
  notes = []
  for known in paper_tables.INCONSISTENCIES:
    here = (known.table, known.dataset) == (table, theirs.dataset)
    if here and known.printed.keys() <= rows.keys():
      numbers = (f'{ROWS[n].label} {x:.2f}' for n, x in known.printed.items())
      notes.append(f'{known.text} Printed: {", ".join(numbers)}.')
  return notes


def _seconds(runs: list[dict]) -> float:
  """Training, counted once for runs that trained together, and measuring."""
  together = {run['train_seconds'] for run in runs}
  return sum(together) + sum(r['seconds'] - r['train_seconds'] for r in runs)


def plain_panel(
  rows: dict[str, dict[str, Any]], *, seconds: float, notes: list[str]
) -> dict[str, Any]:
  """A panel whose rows are data sets instead of methods."""
  return {
    'dataset': None,
    'arch': None,
    'settings': {},
    'departures': [],
    'seconds': seconds,
    'notes': notes,
    'rows': rows,
  }


def row_names(record: dict[str, Any]) -> set[tuple[str, str, str, int]]:
  """Data set, network, name and seed of each run in a table's record."""
  return {
    (panel['dataset'], panel['arch'], name, seed)
    for panel in record['panels']
    for name, row in panel['rows'].items()
    for seed in row['seeds']
  }


def table(
  name: str, title: str, panels: list[dict[str, Any]]
) -> dict[str, Any]:
  """The record of a whole table with what can be said of it."""
  return {
    'table': name,
    'title': title,
    'panels': panels,
    'findings': [x for panel in panels for x in findings.of_panel(panel)],
    'seconds': sum(panel['seconds'] for panel in panels),
  }
