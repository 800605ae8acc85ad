r"""The paper's tables: trains what is missing, holds it against the paper.

  python -m experiments.tables --table=2 --preset=quick

trains the ten methods of Table 2 on the embedded mnist5k (GR and LLR both as
the text defines and as the released code computes them) for two epochs of
cnn1, measures them on 500 examples of each split and prints ours / paper /
difference. `--rows` limits what is trained, not what is shown of what is
finished; a record of networks is never replaced by one with fewer runs.
`--preset=paper` is the published schedule:

  python -m experiments.tables --table=2 --preset=paper --arch=cnn2 --seeds=3

Finished runs are reused and a stopped one goes on where it was. The record,
Markdown, CSV and picture are `<workdir>/table_<table>-<preset>.*`, with the
data set and the network in the name where the flags give them;
`--render_only` makes them again from the record alone. A published record is
rendered with `--render_only --workdir=experiments/results`. CIFAR-10 with
`--augment=none` is held against the appendix. Table 1 is made of
the records of `python -m experiments.separation`.
"""

import dataclasses
import pathlib
import sys
from typing import Any

from absl import flags, logging

from experiments import common, paper_tables, provenance
from experiments.comparison import (
  render,
  separation_table,
  table_record,
  table_rows,
)
from experiments.comparison.table_rows import ROWS, Target
from experiments.networks import measure, remeasure, runs, train_flags
from experiments.networks.config import Config
from robustlip import datasets

flags.adopt_module_key_flags(train_flags)
flags.adopt_module_key_flags(runs)
flags.declare_key_flag(common.DATASET)
flags.declare_key_flag(common.DATA_DIR)
TABLE = flags.DEFINE_enum(
  'table',
  '2',
  ['1', *paper_tables.TABLES],
  '1 to 4 of the paper; of its appendix `mt`, the multi-targeted attack, and '
  '`svhn`.',
)
CHOSEN = flags.DEFINE_list(
  'rows', None, f'Rows to run, of {", ".join(ROWS)}. Default: all of the table.'
)
WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Folder of runs and tables; tables share their runs. Default: runs/<preset>, '
  'of Table 1 the published separation records.',
)
RENDER_ONLY = flags.DEFINE_bool(
  'render_only', False, 'Train and measure nothing; render the record.'
)
# All rows on two cores in under half an hour.
QUICK = train_flags.QUICK._replace(epochs=2, milestones=(), batch_size=32)
QUICK_EVAL_EXAMPLES = 500
TITLES = {
  '1': 'Table 1: separation',
  '2': 'Table 2: MNIST',
  '3': 'Table 3: CIFAR-10 and Restricted ImageNet',
  '4': 'Table 4: dropout',
  'mt': 'Appendix: multi-targeted attack',
  'svhn': 'Appendix: SVHN',
}


def config(dataset: datasets.Dataset, target: Target, name: str) -> Config:
  """The settings of a row with seed 0.

  Raises:
    ValueError: if dropout is asked for and no rate is known.
  """
  row = ROWS[name]
  quick = train_flags.PRESET.value == 'quick'
  setup = QUICK if quick else train_flags.setup(dataset.name)
  fields = train_flags.fields(dataset, row.method, setup)
  if quick and not measure.EVAL_EXAMPLES.present:
    fields['eval_examples'] = QUICK_EVAL_EXAMPLES
  fields |= row.settings | {'protocol': row.protocol, 'arch': target.arch}
  if TABLE.value == '4':
    rate = setup.dropout if fields['dropout'] is None else fields['dropout']
    if rate is None:
      raise ValueError(f'--dropout is needed: none is known for {dataset.name}')
    fields['dropout'] = rate if row.dropout else None
  return Config(**fields, seed=0)


def seeded(
  dataset: datasets.Dataset, target: Target, name: str
) -> list[Config]:
  """The settings of a row, one for each seed."""
  row = config(dataset, target, name)
  return [dataclasses.replace(row, seed=seed) for seed in train_flags.seeds()]


def together(names: list[str]) -> list[list[str]]:
  """Rows by program: those that differ in numbers alone train at once."""
  groups: dict[Any, list[str]] = {}
  for name in names:
    row = ROWS[name]
    key = row.method, row.protocol, row.dropout
    groups.setdefault(key, []).append(name)
  return list(groups.values())


def train(
  dataset: datasets.Dataset,
  target: Target,
  names: list[str],
  root: pathlib.Path,
) -> None:
  """Trains and measures what is missing of rows of one program."""
  configs, paths = [], []
  for name in names:
    for run in seeded(dataset, target, name):
      configs.append(run)
      paths.append(table_record.folder(root, target, name, run.seed))
  measured = {'mt': remeasure.multi_targeted}.get(
    TABLE.value, remeasure.lipschitz
  )
  try:
    runs.train(configs, dataset, paths)
  except ValueError:  # a run that diverges takes nothing from the others
    measured(configs, dataset, paths)
    raise
  measured(configs, dataset, paths)


def collect(
  path: pathlib.Path,
  targets: list[Target],
  loaded: list[datasets.Dataset],
) -> dict[str, Any]:
  """The record of every finished row of these settings."""
  panels = []
  for target, dataset in zip(targets, loaded, strict=True):
    names = table_rows.rows(TABLE.value, target.dataset, None)
    wanted = {name: seeded(dataset, target, name) for name in names}
    panels.append(table_record.panel(TABLE.value, target, wanted, path.parent))
  record = table_record.table(TABLE.value, TITLES[TABLE.value], panels)
  return record | provenance.record()


def check_kept(output: pathlib.Path, record: dict[str, Any]) -> None:
  """Raises a ValueError if `output` has rows that `record` would drop."""
  if not output.exists():
    return
  lost = table_record.row_names(published(output))
  lost -= table_record.row_names(record)
  if lost:
    names = ', '.join(sorted({name for _, _, name, _ in lost}))
    raise ValueError(
      f'{output} has rows or seeds of other settings, or of runs that are '
      f'gone: {names}; name another --workdir'
    )


def published(output: pathlib.Path) -> dict[str, Any]:
  """The record in `output`, its findings drawn anew.

  Raises:
    ValueError: if it is no record of a table.
  """
  record = common.read_json(output)
  try:
    parts = (record[key] for key in ('table', 'title', 'panels'))
    return record | table_record.table(*parts)
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(f'{output} is no record of a table: {error!r}') from None


def networks(path: pathlib.Path) -> dict[str, Any]:
  """The record of a table of networks, written whenever rows are finished.

  Raises:
    ValueError: at the end, if rows failed; the others are in the record.
  """
  targets = table_rows.targets(TABLE.value)
  wanted = [
    table_rows.rows(TABLE.value, target.dataset, CHOSEN.value)
    for target in targets
  ]
  loaded = [
    datasets.load(target.dataset, data_dir=common.DATA_DIR.value)
    for target in targets
  ]

  output, failures = path.with_name(f'{path.name}.json'), []
  check_kept(output, collect(path, targets, loaded))
  common.output_folder(path.parent)
  for target, dataset, names in zip(targets, loaded, wanted, strict=True):
    for group in together(names):
      logging.info('%s: %s', target.name, ', '.join(group))
      try:
        train(dataset, target, group, path.parent)
      except ValueError as error:  # the loss of one run need not stop others
        logging.error('%s', error)
        failures.append(str(error))
      record = collect(path, targets, loaded)
      if render.filled(record):
        common.write_json(record, output)
  if failures:
    if render.filled(record):
      render.write(record, path)
    raise ValueError(f'{len(failures)} groups failed: {"; ".join(failures)}')
  return record


def separations(path: pathlib.Path) -> dict[str, Any]:
  """The record of Table 1, from the published searches.

  Raises:
    ValueError: for flags that say how networks are trained.
  """
  for flag in flags.FLAGS.get_key_flags_for_module(sys.modules[__name__]):
    if flag.present and flag.name not in ('table', 'workdir'):
      raise ValueError(f'--{flag.name} means nothing to --table=1')
  panel = separation_table.panel(path.parent)
  return table_record.table('1', TITLES['1'], [panel]) | provenance.record()


def location() -> pathlib.Path:
  """The table's files, without their suffixes; Table 1 trains nothing."""
  preset = train_flags.PRESET.value
  if TABLE.value == '1':
    return pathlib.Path(WORKDIR.value or provenance.RESULTS) / 'table_1'
  parts = [f'table_{TABLE.value}', preset]
  if common.DATASET.present:
    parts.append(pathlib.Path(common.DATASET.value).stem)
  if train_flags.ARCH.present:
    parts.append(train_flags.ARCH.value)
  return pathlib.Path(WORKDIR.value or f'runs/{preset}') / '-'.join(parts)


def main() -> None:
  """The table as Markdown, then its record on one line."""
  path = location()
  output = path.with_name(f'{path.name}.json')
  if RENDER_ONLY.value and not output.exists():
    raise FileNotFoundError(
      f'there is no {output} to render; the same command without '
      '--render_only makes it'
    )
  if RENDER_ONLY.value:
    record = published(output)
  else:
    record = (separations if TABLE.value == '1' else networks)(path)
  print(render.write(record, path))
  common.finish(record, output)


if __name__ == '__main__':
  common.run(main)
