"""From records of runs to the record of a table: ours, paper, difference."""

import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from experiments import common, paper, paper_tables
from experiments.comparison import findings
from experiments.comparison.table_rows import (
  ROWS,
  TABLE_COLUMNS,
  Target,
  published_row,
)
from experiments.networks import config, remeasure
from experiments.networks.config import Config

_SHARED = (
  'epsilon',
  'epochs',
  'batch_size',
  'optimizer',
  'momentum',
  'milestones',
  'augment',
  'attack_mode',
  'precision',
  'measured_train',
  'measured_test',
  'device',
)
_SCHEDULE = _SHARED[1:7]
_AS_PUBLISHED = {'norm': 'linf', 'random_labels': False, 'dropped': []}
_SEPARATION = ('epsilon', 'train_train_min', 'test_train_min')


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
    'columns': {
      column: cell([run[column] for run in runs], published.get(column))
      for column in columns
      if all(column in run for run in runs)
    },
  }


def _departures(target: Target, settings: dict, runs: list[dict]) -> list[str]:
  """How the runs differ from those behind the published numbers."""
  if target.published is None:
    return []
  theirs = target.published
  setup = paper.SETUPS[theirs.dataset]
  if theirs.augment:
    setup = setup._replace(augment=theirs.augment)
  pairs = {
    'data set': (target.dataset, theirs.dataset),
    'network': (target.arch, theirs.arch),
    **{k: (settings.get(k), getattr(setup, k)) for k in _SCHEDULE},
  }
  pairs['milestones'] = (
    tuple(settings.get('milestones') or ()),
    setup.milestones,
  )
  found = [f'{k} {a}, not {b}' for k, (a, b) in pairs.items() if a != b]
  rates = {run['learning_rate'] for run in runs}
  usual = {setup.learning_rate} | {
    own.get('learning_rate', setup.learning_rate)
    for own in setup.method_settings.values()
  }
  if target.dataset == 'svhn':
    usual |= set(ROWS['at_fast'].settings.values())
  if rates - usual:
    found.append(
      f'learning rate {_listed(rates)} for a mean loss, not {_listed(usual)}'
    )
  if settings.get('attack_mode') != 'train':
    found.append(
      'training attacks of AT and RST with the network in inference mode'
    )
  return found


def _listed(numbers: set[float]) -> str:
  return ' or '.join(f'{x:g}' for x in sorted(numbers))


def panel(
  table: str,
  target: Target,
  wanted: dict[str, list[Config]],
  root: pathlib.Path,
) -> dict[str, Any]:
  """A panel of what is finished of the rows, with exactly these settings."""
  rows, runs = {}, []
  for name, configs in wanted.items():
    found = []
    for settings in configs:
      path = folder(root, target, name, settings.seed)
      run = remeasure.merged(path)
      if run and config.read(path) == settings:
        found.append(run)
    if found:
      rows[name] = _row(target, name, TABLE_COLUMNS[table], found)
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
    'departures': _departures(target, settings, runs) if runs else [],
    'seconds': _seconds(runs),
    'rows': rows,
  }


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


def separation(root: pathlib.Path) -> dict[str, Any]:
  """Table 1 from the `separation_<dataset>.json` records in `root`.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: for one of other labels, another norm or a part of the set.
  """
  rows, seconds = {}, 0.0
  for name, published in paper_tables.SEPARATION.items():
    path = root / f'separation_{name}.json'
    if path.exists():
      record = common.read_json(path)
      for key, value in _AS_PUBLISHED.items():
        if record.get(key) != value:
          raise ValueError(
            f'{path} has {key} {record.get(key)}; Table 1 has {value}'
          )
      seconds += record['seconds']
      rows[name] = {
        'label': name,
        'columns': {
          column: cell([record[column]], value)
          for column, value in zip(_SEPARATION, published, strict=True)
        },
      }
  if not rows:
    raise FileNotFoundError(
      f'{root} has no separation_<dataset>.json; run python -m '
      f'experiments.separation --dataset=NAME --workdir={root}'
    )
  note = (
    'Smallest distance between two classes among the images at hand; a part '
    'of a data set can only be farther apart.'
  )
  return plain_panel(rows, seconds=seconds, notes=[note])


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
