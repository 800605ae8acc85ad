r"""The paper's tables: trains what is missing, compares it with the paper.

  python -m experiments.tables --table=2 --preset=quick

trains the twelve rows of Table 2 on the embedded mnist5k (GR and LLR both as
the text defines and as the released code computes them) for three epochs of
cnn1, measures them on 1,000 examples of each split and prints ours / paper /
difference. `--rows` limits what is trained; rows that the record has already
stay in it. `--preset=paper` is the published schedule, `--preset=short` one
that trains a network in a fraction of it:

  python -m experiments.tables --table=2 --preset=paper --arch=cnn2 --seeds=3

Finished runs are reused and a stopped one is resumed. The record, its Markdown
and its picture are `<workdir>/table_<table>-<preset>.*`, with the data set and
the network in the name where the flags give them; `--render_only` makes them
again from the record. CIFAR-10 with `--augment=none` is compared with the
appendix. Table 1 is made from the records of `experiments.separation`; `sizes`,
accuracy and gap against the number of training examples, from the tables with
`--train_examples` and the same `--preset` in `--workdir`.
"""

import dataclasses
import pathlib
from typing import Any

import jax
from absl import flags, logging

from experiments import (
  common,
  config,
  evaluate,
  findings,
  measure,
  paper,
  report,
  runs,
  table_figures,
  table_rows,
)
from experiments.table_rows import ROWS
from robustlip.datasets import Dataset
from robustlip.datasets.catalogue import FACTS

FLAGS = flags.FLAGS
CAPTION = (  # of Table 5
  'Of each method, first come the rows whose test accuracies, clean and under '
  f'attack, are at most {findings.SLACK} points below those of the method '
  'alone, then the others; in either part the smaller gap under attack goes '
  'first. All are trained without the same held-out examples; early stopping '
  'takes the network of the run without it that is best on them under attack.'
)
ATTACKS = {'5': ['strong'], 'mt': ['multi_targeted_released', 'multi_targeted']}
# Columns of further attacks, and of bounds: their name is put before these.
UNDER_ATTACK = ('adv_test_acc', 'adv_gap')
CERTIFIED = ('certified_test_acc', 'upper_lipschitz')
# Settings that may change with the number of training examples.
WITH_SIZE = {'train_examples', 'epochs', 'milestones', 'measured_train'}


def define() -> None:
  """The flags of this script."""
  common.define_dataset(
    "Default with --preset=paper or short: the paper's sets."
  )
  config.define(without=('method', *config.WEIGHTS))
  runs.define()
  flags.DEFINE_enum(
    'table',
    '2',
    report.TITLES,
    '1 to 4 of the paper; of its appendix `mt`, the multi-targeted attack, and '
    '`svhn`; 5, generalisation tools, and `sizes`, which joins tables with '
    '--train_examples, are ours.',
  )
  flags.DEFINE_list(
    'rows',
    None,
    f"Rows to run, of {', '.join(ROWS)}. Default: the paper's. In Table 5 a "
    f'method with tools, such as at-ema-awp: {", ".join(table_rows.TOOLS)}; a '
    'flag of its name sets the strength of a tool.',
  )
  flags.DEFINE_list(
    'attacks',
    None,
    'Further attacks, a column for each: strong, autoattack, multi_targeted, '
    'multi_targeted_released. Default: the last two for `mt`, strong for 5; '
    '`--attacks=`: none.',
  )
  measure.define_certify()
  flags.DEFINE_string(
    'workdir',
    None,
    'Folder of runs and tables; tables share their runs. Default: '
    'runs/<preset>; the searches of Table 1 are then the published ones.',
  )
  flags.DEFINE_bool(
    'render_only', False, 'Train and measure nothing; render the record.'
  )


def further_attacks() -> list[measure.Attack]:
  """What is measured of a run besides its own result."""
  names = FLAGS.attacks
  if names is None:
    names = ATTACKS.get(FLAGS.table, [])
  found = [measure.Attack(name) for name in names]
  if FLAGS.certify:
    found.append(measure.PGD._replace(certify=FLAGS.certify))
  return found


def finished(
  dataset: Dataset, arch: str | None, row: str, root: pathlib.Path
) -> dict[str, Any]:
  """Trains and measures what is missing of a row; returns its record.

  Raises:
    ValueError: if a run fails.
  """
  base = table_rows.settings(dataset, arch, row)
  panel, found = '-'.join([dataset.name, base.arch, *_subset_suffix()]), []
  for seed in config.seeds():
    path = root / panel / table_rows.folder(row) / f'seed{seed}'
    checkpoint = 'newest'
    run = runs.train(dataclasses.replace(base, seed=seed), dataset, path)
    if row.endswith('-early'):
      run, checkpoint = run | run['best'] | {'seconds': 0.0}, 'best'
    measured = []
    for attack in further_attacks():
      more = evaluate.evaluate(
        path, dataset, attack, checkpoint=checkpoint, only_step=run['step']
      )
      how, own = attack.name, UNDER_ATTACK
      if attack.certify:
        how, own = attack.certify, CERTIFIED
        if how != 'crown':  # the other methods share one bound on the constant
          own = CERTIFIED[:1]
      run |= {f'{how}_{column}': more.pop(column) for column in own}
      run['seconds'] += more['seconds']
      run = more | run  # adds the columns that only the evaluation has
      measured.append({key: more[key] for key in common.ORIGIN})
    found.append(run | {'measured': measured})
  return row_record(dataset, base, row, found)


def row_record(
  dataset: Dataset, base: config.Config, row: str, found: list[dict[str, Any]]
) -> dict[str, Any]:
  """The record of a row: its runs, one per seed, and the paper's numbers."""
  left_out = {'epsilon'} if FLAGS.table == '5' else {'epsilon', 'train_seconds'}
  headings = report.HEADINGS.keys() - left_out
  columns = [
    column
    for column in found[0]
    if (column in headings or column.endswith(UNDER_ATTACK + CERTIFIED))
    and all(run.get(column) is not None for run in found)  # null: not finite
  ]
  measured = {k: found[0][k] for k in ('measured_train', 'measured_test')}
  theirs = table_rows.published(dataset.name, base.arch)[1].get(row, {})
  return {
    'dataset': dataset.name,
    'arch': base.arch,
    'row': row,
    'label': table_rows.label(row),
    'seeds': [run['seed'] for run in found],
    'settings': table_rows.settings_of(base) | measured,
    'paper_settings': table_rows.paper_settings(base, dataset, row),
    'ours': {c: [run[c] for run in found] for c in columns},
    'paper': {c: x for c, x in theirs.items() if c in columns},
    'seconds': sum(run['seconds'] for run in found),
    'runs': [{key: run[key] for key in common.ORIGIN} for run in found],
    'measured': [made for run in found for made in run['measured']],
  }


def table(rows: list[dict[str, Any]]) -> dict[str, Any]:
  """The record of a table: sorts the rows and decides the findings anew."""
  ordered, decided = [], {}
  rows = sorted(rows, key=lambda row: (row['dataset'], row['arch']))
  panels = report.panels(rows)
  for title, panel in panels.items():
    means = {
      row['row']: {c: sum(x) / len(x) for c, x in row['ours'].items()}
      for row in panel
    }
    ordered += sorted(
      panel, key=lambda row, means=means: _sort_key(row['row'], means)
    )
    if found := findings.decided(means):
      decided[title] = found
  record = titled(ordered, decided)
  if FLAGS.table == '5':
    correlations = {k: findings.rank_correlations(x) for k, x in panels.items()}
    record |= {'caption': CAPTION, 'correlations': correlations}
  return record


def titled(
  rows: list[dict[str, Any]], decided: dict[str, dict[str, Any]]
) -> dict[str, Any]:
  """The record of the table that the flags name."""
  return {
    'table': FLAGS.table,
    'rows': rows,
    'findings': decided,
    'seconds': sum(row['seconds'] for row in rows),
  }


def _sort_key(row: str, means: dict[str, dict[str, float]]) -> tuple[Any, ...]:
  place = (table_rows.ORDER.index(row.split('-')[0]),)
  return place + (findings.place(row, means) if FLAGS.table == '5' else ())


def kept(
  output: pathlib.Path, asked: list[tuple[Dataset, str, str]]
) -> dict[tuple[str, str, str], dict[str, Any]]:
  """Rows that the record has already, by data set, network and name.

  Raises:
    ValueError: if some have other settings than those asked for, or seeds that
      would be lost.
  """
  loaded = {dataset.name: dataset for dataset, *_ in asked}
  with common.reading(output):
    rows = common.read_json(output)['rows'] if output.exists() else []
    for row in (row for row in rows if row['dataset'] in loaded):
      dataset, arch, name = loaded[row['dataset']], row['arch'], row['row']
      wanted = table_rows.settings_of(table_rows.settings(dataset, arch, name))
      found = table_rows.settings_of(config.from_json(row['settings']))
      other = common.difference(found, wanted)
      if any((x.name, *of) == (dataset.name, arch, name) for x, *of in asked):
        if not set(row['seeds']) <= set(config.seeds()):
          other = other or 'seeds'
      if other:
        raise ValueError(
          f'{output} has a row {name} of other settings ({other}); name '
          'another --workdir'
        )
    return {(row['dataset'], row['arch'], row['row']): row for row in rows}


def joined(
  before: dict[str, Any] | None, row: dict[str, Any]
) -> dict[str, Any]:
  """A row, with the columns of other attacks on the same runs added."""
  if before is None:
    return row
  if before['runs'] != row['runs']:
    if lost := before['ours'].keys() - row['ours'].keys():
      logging.warning(
        'The table loses %s, which are of other runs; name the --attacks or '
        '--certify again to measure these',
        ', '.join(sorted(lost)),
      )
    return row
  measured = before.get('measured', [])  # older tables lack it
  new = [made for made in row['measured'] if made not in measured]
  both = {part: before[part] | row[part] for part in ('ours', 'paper')}
  return row | both | {'measured': measured + new}


def networks(output: pathlib.Path) -> dict[str, Any]:
  """The record of a table of networks, written whenever a row is finished.

  Raises:
    ValueError: at the end, if rows failed; the others are in the record.
  """
  asked, failures = [], []
  for name, arch in table_rows.panels():
    dataset = common.load_dataset(name)
    arch = table_rows.settings(dataset, arch, 'natural').arch
    known = table_rows.published(dataset.name, arch)[1]
    for row in table_rows.row_names(known):
      settings = table_rows.settings(dataset, arch, row)
      runs.check(settings, dataset)
      for attack in further_attacks():  # before any training, too
        measure.evaluator(settings, dataset, attack)
      asked.append((dataset, arch, row))
  kept(output, asked)  # raises before any training if rows cannot be joined
  common.output_folder(output.parent)
  for dataset, arch, row in asked:
    logging.info('%s on %s: %s', arch, dataset.name, row)
    try:
      found = finished(dataset, arch, row, output.parent)
    except (ValueError, FileNotFoundError) as error:
      # The loss of one run, or of its checkpoints, need not stop others.
      logging.error('%s', error)
      failures.append(str(error))
      continue
    rows = kept(output, asked)  # another process may have added some
    key = found['dataset'], found['arch'], row
    rows[key] = joined(rows.get(key), found)
    record = table(list(rows.values())) | common.provenance()
    write(record, output)
  if failures:
    raise ValueError(f'{len(failures)} rows failed: {"; ".join(failures)}')
  return record


def separations(root: pathlib.Path) -> dict[str, Any]:
  """The record of Table 1, from the searches `separation_*.json` in `root`.

  Where the paper left out examples, a search with `--drop` is preferred.

  Raises:
    FileNotFoundError: if there is none.
  """
  rows = {}
  for path in sorted(root.glob('separation_*.json')):
    record = common.read_json(path)
    with common.reading(path):
      name, theirs = record['dataset'], paper.separation(record)
      if not theirs or (name in rows and not record['dropped']):
        continue
      whole = {
        'num_train': sum(FACTS[name].train_counts) - len(record['dropped']),
        'num_test': sum(FACTS[name].test_counts),
      }
      rows[name] = {
        'dataset': name,
        'arch': '',
        'label': name,
        'settings': {k: record[k] for k in whole},
        'paper_settings': {k: v for k, v in whole.items() if record[k] != v},
        'ours': {column: [float(record[column])] for column in theirs},
        'paper': theirs,
        'seconds': float(record['seconds']),
        'runs': [{key: record.get(key) for key in common.ORIGIN}],
      }
  if not rows:
    raise FileNotFoundError(
      f'{root} has no search of Table 1; run python -m experiments.separation '
      f'--dataset=NAME --workdir={root}'
    )
  found = [rows[name] for name, _ in paper.panels('1') if name in rows]
  distances = []
  for row in found:
    ours = {column: value for column, (value,) in row['ours'].items()}
    for part in ('train_train_min', 'test_train_min'):
      name = f'{row["label"]} {part}'
      distances.append((name, ours[part], 2 * ours['epsilon']))
  return titled(found, {'': {'separated': findings.finding(distances)}})


def sizes(root: pathlib.Path) -> dict[str, Any]:
  """The record of accuracy and gap over numbers of training examples.

  It joins the rows of the tables 2 to 4 with `--train_examples` and the same
  preset in `root`.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if the rows of a method differ in more than `WITH_SIZE`.
  """
  found, series = {}, {}  # by key: two tables may show the same runs
  for path in sorted(root.glob(f'table_[234]-{FLAGS.preset}-*examples.json')):
    with common.reading(path):
      for row in common.read_json(path)['rows']:
        size = row['settings']['train_examples']
        epochs = row['settings']['epochs']
        label = f'{row["label"]}, {size:,} examples, {epochs} epochs'
        place = row['dataset'], row['arch'], _sort_key(row['row'], {}), size
        first = series.setdefault(place[:-1], row)['settings']
        same = {k: v for k, v in first.items() if k not in WITH_SIZE}
        same = found.get(place, row)['settings'] | same
        # An older table lacks some settings.
        if other := common.difference(first | row['settings'], same):
          raise ValueError(
            f'{path} has other settings ({other}) than a table before it'
          )
        more = {'label': label, 'paper': {}, 'paper_settings': {}}
        found[place] = row | more
  if not found:
    raise FileNotFoundError(
      f'{root} has no table of a part of a training set by this --preset; run '
      'python -m experiments.tables --table=2 --train_examples=500 '
      f'--workdir={root} with it'
    )
  rows = [found[place] for place in sorted(found)]
  panels = report.panels(rows).items()
  return titled(rows, {title: findings.by_size(x) for title, x in panels})


# Tables that are made from the records of other commands.
JOINED = {'1': separations, 'sizes': sizes}


def location() -> pathlib.Path:
  """The record of the table; its Markdown and its picture are beside it."""
  root = pathlib.Path(FLAGS.workdir or f'runs/{FLAGS.preset}')
  if FLAGS.table == '1':
    return root / 'table_1.json'
  parts = [f'table_{FLAGS.table}', FLAGS.preset]
  if FLAGS['dataset'].present:
    parts.append(pathlib.Path(FLAGS.dataset).stem)
  if FLAGS.arch:
    parts.append(FLAGS.arch)
  return root / f'{"-".join(parts + _subset_suffix())}.json'


def _subset_suffix() -> list[str]:
  """The part of file names that `--train_examples` adds, [] if it is 0."""
  count = FLAGS.train_examples
  return [f'{count}examples'] if count else []


def write(record: dict[str, Any], output: pathlib.Path) -> str:
  """Writes the record, its Markdown and its picture; returns the Markdown.

  Raises:
    ValueError: if it is no record of a table.
  """
  with common.reading(output):
    text = report.markdown(record)
  if jax.process_index() == 0:
    common.write_json(record, output)
    common.write_text(text, output.with_suffix('.md'))
    common.draw(table_figures.draw, record, output.with_suffix(''))
  return text


def main() -> None:
  """The table as Markdown, then its record on one line."""
  output = location()
  if FLAGS.render_only:
    if not output.exists():
      raise FileNotFoundError(
        f'there is no {output} to render; the same command without '
        '--render_only makes it'
      )
    record = common.read_json(output)
  elif FLAGS.table in JOINED:
    given = [*config.given(), 'rows', 'attacks', 'certify', 'seeds']
    if given := [name for name in given if FLAGS[name].present]:
      raise ValueError(
        f'--{given[0]} means nothing to --table={FLAGS.table}, which '
        'is made of records'
      )
    root = output.parent
    if FLAGS.table == '1' and not FLAGS.workdir:
      root = common.RESULTS
    record = JOINED[FLAGS.table](root) | common.provenance()
  else:
    record = networks(output)
  print(write(record, output))
  common.print_json(record)


if __name__ == '__main__':
  common.run(main, define)
