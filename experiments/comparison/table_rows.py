"""Rows and panels of the tables: what each trains, and where it is kept."""

import pathlib
from typing import NamedTuple

from experiments import common
from experiments.networks import train_flags
from experiments.paper_tables import NO_AUGMENTATION, TABLES, Panel


class Row(NamedTuple):
  """One line of a table: a method with its weight."""

  label: str
  method: str
  settings: dict[str, float] = {}  # instead of those of the preset
  protocol: str = 'text'
  dropout: bool = False  # at the rate of the data set, as Table 4 adds it


class Target(NamedTuple):
  """One network on one data set, and the published numbers for it, if any."""

  dataset: str
  arch: str
  published: Panel | None

  @property
  def name(self) -> str:
    """A name for its folder."""
    return f'{pathlib.Path(self.dataset).stem}-{self.arch}'


ROWS = {
  'natural': Row('Natural', 'natural'),
  'gr': Row('GR', 'gr'),
  'gr_reference': Row('GR, released code', 'gr', protocol='reference'),
  'llr': Row('LLR', 'llr'),
  'llr_reference': Row('LLR, released code', 'llr', protocol='reference'),
  'at': Row('AT', 'at'),
  'at_fast': Row('AT, tenfold rate', 'at', {'learning_rate': 64 * 1e-2}),
  'rst0.5': Row('RST(.5)', 'rst', {'lam': 0.5}),
  'rst1': Row('RST(1)', 'rst', {'lam': 1.0}),
  'rst2': Row('RST(2)', 'rst', {'lam': 2.0}),
  'trades1': Row('TRADES(1)', 'trades', {'beta': 1.0}),
  'trades3': Row('TRADES(3)', 'trades', {'beta': 3.0}),
  'trades6': Row('TRADES(6)', 'trades', {'beta': 6.0}),
}
_STANDARD = tuple(name for name in ROWS if name != 'at_fast')
_DROPOUT = ('natural', 'at', 'rst2', 'trades3', 'trades6')
ROWS |= {
  f'{name}_dropout': ROWS[name]._replace(
    label=f'{ROWS[name].label} + dropout', dropout=True
  )
  for name in _DROPOUT
}
TABLE_ROWS = {
  '2': _STANDARD,
  '3': _STANDARD,
  '4': tuple(n + end for n in _DROPOUT for end in ('', '_dropout')),
  'mt': _STANDARD,
  'svhn': _STANDARD,
}
_MEASURED = (
  'train_acc',
  'test_acc',
  'adv_test_acc',
  'released_lipschitz',
  'eq3_lipschitz',
  'gap',
  'adv_gap',
)
_MULTI_TARGETED = (
  'released_mt_adv_test_acc',
  'released_mt_adv_gap',
  'mt_adv_test_acc',
  'mt_adv_gap',
)
TABLE_COLUMNS = dict.fromkeys(('2', '3', '4', 'svhn'), _MEASURED) | {
  'mt': ('test_acc', 'adv_test_acc', *_MULTI_TARGETED)
}
# What a row that another table has trained may lack: then it is left out.
OWN_COLUMNS = {'mt': set(_MULTI_TARGETED)}
STANDS_FOR = {'mnist5k': 'mnist'}  # whose published numbers are shown beside


def published_row(name: str) -> str | None:
  """The paper's row to compare `name` with; the text's GR and LLR have none."""
  row = ROWS[name]
  if row.method in ('gr', 'llr') and row.protocol == 'text':
    return None
  return name.removesuffix('_reference')


def rows(table: str, dataset: str, chosen: list[str] | None) -> list[str]:
  """Names of the rows of a table in the paper's order.

  Raises:
    ValueError: if `chosen` has others.
  """
  if chosen == []:
    raise ValueError('--rows names none')
  names = list(TABLE_ROWS[table])
  if dataset == 'svhn' and table in ('mt', 'svhn'):
    names.insert(names.index('at') + 1, 'at_fast')
  unknown = set(chosen or ()) - set(names)
  if unknown:
    raise ValueError(
      f'--table={table} of {dataset} has no rows {", ".join(sorted(unknown))}; '
      f'it has {", ".join(names)}'
    )
  return [name for name in names if chosen is None or name in chosen]


def targets(table: str) -> list[Target]:
  """What the flags ask for: the table's panels, or one data set of it.

  Raises:
    ValueError: for a data set without published settings, or a network in
      which Table 4 cannot switch dropout on.
  """
  panels, arch = TABLES[table], train_flags.ARCH.value
  if train_flags.PRESET.value == 'quick':
    default = 'wrn_10_1' if table == '4' else train_flags.QUICK.arch
    wanted = [(common.DATASET.value, arch or default)]
  else:
    asked = common.DATASET.value if common.DATASET.present else None
    wanted = [
      (panel.dataset, arch or panel.arch)
      for panel in panels
      if asked in (panel.dataset, None)
    ]
    if not wanted:
      wanted = [(asked, arch or train_flags.setup(asked).arch)]
  for _, name in wanted:
    if table == '4' and name.startswith('cnn'):
      raise ValueError(
        f'--table=4 adds dropout and {name} has it already; use a wrn or resnet'
      )
  return [
    Target(dataset, name, _published(panels, dataset, name))
    for dataset, name in dict.fromkeys(wanted)
  ]


def _published(
  panels: tuple[Panel, ...], dataset: str, arch: str
) -> Panel | None:
  """The panel of the same network if there is one, else of the data set.

  Without augmentation it is that of the appendix for CIFAR-10.
  """
  bare = NO_AUGMENTATION
  if (dataset, train_flags.AUGMENT.value) == (bare.dataset, bare.augment):
    return bare
  same = [p for p in panels if p.dataset == STANDS_FOR.get(dataset, dataset)]
  exact = [p for p in same if p.arch == arch]
  return next(iter(exact + same), None)
