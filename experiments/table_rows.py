"""Rows of the paper's tables: their settings, and the paper's numbers for them.

The flags ask for panels (a network on a data set each) and for rows. A row of
Table 5, which is ours, is a method with tools: `at-ema-awp`.
"""

import dataclasses
from typing import Any

from absl import flags

from experiments import config, paper
from experiments.findings import DROPOUT
from robustlip import methods, models, released
from robustlip.augmentations import AUGMENTATIONS
from robustlip.datasets import Dataset
from robustlip.datasets.catalogue import FACTS

FLAGS = flags.FLAGS
# Row -> its label, and the settings that make it.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
  'natural': ('Natural', dict(method='natural')),
  'gr': ('GR', dict(method='gr')),
  'gr_released': ('GR, released code', dict(method='gr_released')),
  'llr': ('LLR', dict(method='llr')),
  'llr_released': ('LLR, released code', dict(method='llr_released')),
  'at': ('AT', dict(method='at')),
  'at_fast': ('AT, tenfold rate', dict(method='at', learning_rate=64 * 1e-2)),
  'rst0.5': ('RST(.5)', dict(method='rst', lam=0.5)),
  'rst1': ('RST(1)', dict(method='rst', lam=1.0)),
  'rst2': ('RST(2)', dict(method='rst', lam=2.0)),
  'trades1': ('TRADES(1)', dict(method='trades', beta=1.0)),
  'trades3': ('TRADES(3)', dict(method='trades', beta=3.0)),
  'trades6': ('TRADES(6)', dict(method='trades', beta=6.0)),
}
# Tools of Table 5 -> their labels; each key of STRENGTHS is also a setting.
TOOLS = {
  'dropout': 'dropout',
  'ema': 'EMA',
  'swa': 'SWA',
  'awp': 'AWP',
  'weight_decay': 'weight decay',
  'cutout': 'cutout',
  'crop_shift': 'crop-shift',
  'cutmix': 'CutMix',
  'label_smoothing': 'label smoothing',
  'silu': 'SiLU',
  'early': 'early stopping',  # the best checkpoint of the run without it
}
STRENGTHS = dict(
  ema=0.999,
  swa=0.75,
  awp=0.005,
  weight_decay=5e-4,
  cutmix=0.5,
  label_smoothing=0.1,
)
TOOLED = ('at', 'rst2', 'trades6')
ORDER = [name + end for name in ROWS for end in ('', '_dropout')]
STANDS_FOR = {'mnist5k': 'mnist'}  # is compared with the numbers of MNIST


def panels() -> list[tuple[str, str | None]]:
  """Data sets with the network that the flags or the paper name, if any."""
  arch, dataset = FLAGS.arch, FLAGS.dataset
  if FLAGS.preset == 'quick':
    return [(dataset, arch or ('wrn_10_1' if FLAGS.table == '4' else None))]
  asked = dataset if FLAGS['dataset'].present else None
  published = paper.panels(FLAGS.table)
  found = [(d, arch or a) for d, a in published if asked in (d, None)]
  return list(dict.fromkeys(found)) or [(asked, arch)]


def row_names(published: dict[str, Any]) -> list[str]:
  """The rows that `--rows` asks for, in the order of the table.

  Raises:
    ValueError: if it asks for others.
  """
  if FLAGS.rows == []:
    raise ValueError('--rows names none')
  if FLAGS.table == '5':
    return _tooled_names()
  names = [n for n in ROWS if n != 'at_fast' or n in published]
  if FLAGS.table == '4':
    names = [name + end for name in DROPOUT for end in ('', '_dropout')]
  if FLAGS.rows is None:
    return names
  if unknown := set(FLAGS.rows) - set(names):
    raise ValueError(
      f'--table={FLAGS.table} has no rows {", ".join(sorted(unknown))}; it has '
      f'{", ".join(names)}'
    )
  return [name for name in names if name in FLAGS.rows]


def _tooled_names() -> list[str]:
  """Rows of Table 5, with any combination of tools, in the order of `TOOLS`."""
  if FLAGS.rows is None:
    ends = ['', *(f'-{tool}' for tool in TOOLS)]
    return [method + end for method in TOOLED for end in ends]
  names = []
  for row in FLAGS.rows:
    method, *tools = row.split('-')
    if method not in ROWS or set(tools) - set(TOOLS):
      raise ValueError(
        f'--table=5 has no row {row!r}; its rows are a method, such as '
        f'{", ".join(TOOLED)}, with -tool after it, once or more often: '
        f'{", ".join(TOOLS)}'
      )
    names.append('-'.join([method, *(tool for tool in TOOLS if tool in tools)]))
  return names


def label(row: str) -> str:
  """The label of a row: its method and tools in words."""
  method, *tools = row.split('-')
  parts = [ROWS[method.removesuffix('_dropout')][0]]
  parts += ['dropout'] * method.endswith('_dropout')
  return ' + '.join(parts + [TOOLS[tool] for tool in tools])


def folder(row: str) -> str:
  """Folder of a row's runs; early stopping shares those of the row without."""
  trained = row.removesuffix('-early')
  alone = FLAGS.table == '5' and trained in ROWS
  return f'{trained}-alone' if alone else trained


def settings(dataset: Dataset, arch: str | None, row: str) -> config.Config:
  """The settings of a row with seed 0.

  Raises:
    ValueError: if Table 4 is to add dropout to a network that has it.
  """
  method, *tools = row.split('-')
  chosen = dict(ROWS[method.removesuffix('_dropout')][1], seed=0)
  if arch:
    chosen['arch'] = arch
  factory = released.METHODS[chosen['method']]
  if not methods.accepts(factory, 'num_steps'):  # the flag is for other rows
    chosen['inner_steps'] = config.Config.inner_steps
  if not methods.has_radius(factory):
    chosen['epsilon_warmup'] = 0.0
  if FLAGS.table == '4':
    rate = _dropout_rate(dataset) if row.endswith('_dropout') else None
    chosen['dropout'] = rate
  if FLAGS.table == '5':  # the tools' flags set their strength, not their use
    chosen |= dict.fromkeys(STRENGTHS, 0.0)
  found = config.from_flags(dataset, **chosen)
  if FLAGS.table == '5':
    return _with_tools(found, tools, dataset)
  if FLAGS.table == '4' and found.arch in models.WITH_DROPOUT:
    raise ValueError(
      f'--table=4 adds dropout and {found.arch} has it already; use a wrn or '
      'resnet'
    )
  return found


def _dropout_rate(dataset: Dataset) -> float:
  if FLAGS.dropout is None:
    return paper.DROPOUT.get(dataset.name, 0.2)
  if not FLAGS.dropout:
    raise ValueError('--dropout=0 leaves nothing of a row with dropout')
  return FLAGS.dropout


def _with_tools(
  found: config.Config, tools: list[str], dataset: Dataset
) -> config.Config:
  """The settings with these tools and no others; all have the same holdout."""
  chosen: dict[str, Any] = {'dropout': 0.0}
  latest = max(1 - 1.5 / found.epochs, 0.0)  # leaves two epochs to average
  strengths = STRENGTHS | {'swa': min(STRENGTHS['swa'], latest)}
  for name in STRENGTHS.keys() & tools:
    chosen[name] = FLAGS[name].value if FLAGS[name].present else strengths[name]
    if not chosen[name]:
      raise ValueError(f'--{name}=0 leaves nothing of a row with {name}')
  if 'dropout' in tools:
    its_own = found.arch in models.WITH_DROPOUT and FLAGS.dropout is None
    chosen['dropout'] = None if its_own else _dropout_rate(dataset)
  more = [tool for tool in tools if tool in AUGMENTATIONS]
  names = [name for name in (found.augment, *more) if name != 'none']
  chosen['augment'] = ','.join(names) or 'none'
  if 'silu' in tools:
    chosen['activation'] = 'silu'
  count = found.train_examples or len(dataset.train.labels)
  if not FLAGS['holdout'].present:
    chosen['holdout'] = max(1, min(1000, count // 10))
  elif 'early' in tools and not found.holdout:
    raise ValueError('--holdout=0 leaves nothing to stop early by')
  return dataclasses.replace(found, **chosen)


def bare(dataset: str) -> bool:
  """Whether to compare with the appendix's numbers without augmentation."""
  plain = dataset == 'cifar10' and FLAGS.augment == 'none'
  return plain and FLAGS.table != '5'


def published(dataset: str, arch: str) -> tuple[tuple[str, str] | None, dict]:
  """Published (data set, network), and its numbers: row -> column -> value.

  The network is the same if the paper has it, else another on the data set.
  """
  table = 'no_augmentation' if bare(dataset) else FLAGS.table
  known = paper.panels(table)
  name = STANDS_FOR.get(dataset, dataset)
  same = sorted((x for x in known if x[0] == name), key=lambda x: x[1] != arch)
  return (same[0], known[same[0]]) if same else (None, {})


def paper_settings(
  found: config.Config, dataset: Dataset, row: str
) -> dict[str, Any]:
  """The settings in which the published row differs, with its values."""
  of, rows = published(dataset.name, found.arch)
  if row not in rows:
    return {}
  base = row.removesuffix('_dropout')
  theirs = config.preset('paper', dataset, found.method) | ROWS[base][1]
  theirs |= dict(zip(('dataset', 'arch'), of, strict=True))
  if dataset.fingerprint:  # ours has the same name
    theirs['dataset'] = f'the whole of {of[0]}'
  theirs['epsilon'] = FACTS[of[0]].epsilon
  if row != base:
    theirs['dropout'] = paper.DROPOUT[of[0]]
  if bare(dataset.name):
    rate = rows[row].get('learning_rate', theirs['learning_rate'])
    theirs |= dict(augment='none', learning_rate=rate)
  theirs = config.Config(**theirs).to_json()
  ours = found.to_json()
  unsaid = {'seed', 'fingerprint', 'eval_examples', 'accumulate', 'remat'}
  if ours['schedule'] != theirs['schedule']:
    unsaid.add('milestones')
  return {k: v for k, v in theirs.items() if ours[k] != v and k not in unsaid}


def settings_of(base: config.Config) -> dict[str, Any]:
  """The settings that all seeds of a row share."""
  fields = base.to_json()
  return {k: v for k, v in fields.items() if k not in ('dataset', 'seed')}
