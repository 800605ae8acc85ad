r"""The tables of the pages, rendered from the records in experiments/results.

  python -m experiments.readme
  python -m experiments.readme --check

The pages are README.md and experiments/results/README.md. A table stands
between `<!-- results: NAME -->` and `<!-- end -->`, where NAME is one of
`TABLES`. `--check` writes nothing and fails if a table differs from its
records.
"""

import pathlib
import re
from collections.abc import Iterable
from typing import Any

from absl import flags

from experiments import common, paper_tables, provenance

CHECK = flags.DEFINE_bool('check', False, 'Compare instead of writing.')
PAGES = (
  pathlib.Path(__file__).parents[1] / 'README.md',
  provenance.RESULTS / 'README.md',
)
BLOCK = re.compile(r'(<!-- results: (\w+) -->\n)(.*?)(<!-- end -->)', re.S)

DATASETS = {
  'mnist5k': 'mnist5k',
  'mnist': 'MNIST',
  'fashion_mnist': 'Fashion-MNIST',
  'cifar10': 'CIFAR-10',
  'svhn': 'SVHN',
  'restricted_imagenet': 'Restricted ImageNet, a part',
}


def record(name: str) -> dict[str, Any] | None:
  """The published record of that name, or None."""
  path = provenance.RESULTS / f'{name}.json'
  return common.read_json(path) if path.exists() else None


def recorded(prefix: str) -> Iterable[tuple[str, dict[str, Any]]]:
  """(data set, its record `<prefix>_<data set>`) of those that there are."""
  for name in DATASETS:
    if found := record(f'{prefix}_{name}'):
      yield name, found


def markdown(header: list[str], rows: Iterable[list[str]]) -> str:
  """A table whose first column is text and whose others are numbers."""
  rule = ['---'] + ['---:'] * (len(header) - 1)
  lines = [header, rule, *rows]
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def percent(fraction: float) -> str:
  """0.123 -> '12.3'."""
  return f'{100 * fraction:.1f}'


def rounded(number: float) -> str:
  """Three figures at most, thousands apart."""
  return f'{number:,.0f}' if number >= 100 else f'{number:.3g}'


def default_run() -> str:
  """The README's first command."""
  found = record('train_default')
  header = 'split accuracy PGD-10 Lipschitz'.split()
  rows = [
    [
      split,
      f'{found[f"{split}_acc"]:.1f}',
      f'{found[f"adv_{split}_acc"]:.1f}',
      f'{found[f"{split}_lipschitz"]:.0f}',
    ]
    for split in ('train', 'test')
  ]
  return markdown(header, rows) + (
    f'\n{found["seconds"]:.0f} seconds of training and measuring on '
    f'{found["machine"]}, {found["date"]}.\n'
  )


def separation() -> str:
  """Table 1 of the paper, ours beside theirs."""
  header = ['data set', 'epsilon', 'train-train', 'paper', 'test-train']
  rows = []
  for name, found in recorded('separation'):
    published = paper_tables.SEPARATION.get(name)
    theirs = [f'{x:.3f}' for x in published[1:]] if published else ['', '']
    ours = [found['train_train_min'], found['test_train_min']]
    pairs = zip(ours, theirs, strict=True)
    cells = [cell for ours, paper in pairs for cell in (f'{ours:.3f}', paper)]
    rows.append([DATASETS[name], f'{found["epsilon"]:g}', *cells])
  return markdown([*header, 'paper'], rows)


def training() -> str:
  """Runs on real data sets, measured on the examples that the record names."""
  header = [
    *('data set', 'network', 'method', 'epochs', 'measured'),
    *('train', 'test', 'PGD-10, train', 'PGD-10, test', 'Lipschitz, Eq. (3)'),
  ]
  columns = ('train_acc', 'test_acc', 'adv_train_acc', 'adv_test_acc')
  rows = []
  for path in sorted(provenance.RESULTS.glob('train_*.json')):
    found = common.read_json(path)
    if path.stem == 'train_default':
      continue
    rows.append(
      [
        DATASETS[found['dataset']],
        found['arch'],
        found['method'],
        str(found['epochs']),
        f'{found["measured_train"]:,} + {found["measured_test"]:,}',
        *(f'{found[column]:.1f}' for column in columns),
        f'{found["test_lipschitz"]:.0f}',
      ]
    )
  return markdown(header, rows)


def existence() -> str:
  """Appendix C: one network for both sets, in percent."""
  header = [
    *('data set', 'network', 'epochs', 'split', 'accuracy', 'PGD-10'),
    *('multi-targeted', 'distance classifier, certified'),
  ]
  columns = ('{}_acc', 'adv_{}_acc', 'mt_adv_{}_acc', 'certified_{}')
  rows = []
  for path in sorted(provenance.RESULTS.glob('proof_of_concept-*.json')):
    found = common.read_json(path)
    name = [DATASETS[found['dataset']], found['arch'], str(found['epochs'])]
    for split in ('train', 'test'):
      numbers = [f'{found[x.format(split)]:.1f}' for x in columns]
      rows.append([*name, split, *numbers])
  return markdown(header, rows)


def theory() -> str:
  """The distance classifier on training and on test images, in percent."""
  header = [
    *('data set', 'r', 'train: right and certified in the open r-ball'),
    *('test images', 'accuracy', 'certified at epsilon'),
    'attacked images: accuracy, attacked, certified',
  ]
  rows = []
  for name, found in recorded('theory'):
    train, test = found['data'].get('train'), found['data']['test']
    some = test['attacked_subset']
    columns = [percent(some[k]) for k in ('accuracy', 'attacked', 'certified')]
    rows.append(
      [
        DATASETS[name],
        f'{train["r"]:.3f}' if train else '',
        percent(train['astute_in_open_ball']) if train else '',
        f'{test["num_test"]:,}',
        percent(test['accuracy']),
        percent(test['certified']),
        f'{some["num_attacked"]}: {", ".join(columns)}',
      ]
    )
  return markdown(header, rows)


def speed() -> str:
  """Our rates, and how many times those of the peers they are."""
  suites = {  # record of a benchmark -> what its cases are
    'train': 'RST step',
    'attack': 'PGD-10',
    'attack_jax_0_12': 'PGD-10',
    'attack_wrn': 'PGD-10',
    'lipschitz': 'Lipschitz estimate',
    'separation': 'train-train search',
  }
  rows = []
  for suite, work in suites.items():
    found = record(f'benchmark_{suite}') or {'cases': []}
    for case in found['cases']:
      ours, *peers = case['candidates']
      ratios = [
        f'{p["candidate"]} {rounded(p["ratio_of_ours"])}' for p in peers
      ]
      rate = f'{rounded(ours["per_second"])} {case["unit"]}/s'
      name = f'{work}, {case["case"]}'
      rows.append([name, found['jax_version'], rate, '; '.join(ratios)])
  return markdown(['work', 'jax', 'ours', 'times the rate of'], rows)


TABLES = {
  'default_run': default_run,
  'separation': separation,
  'theory': theory,
  'training': training,
  'existence': existence,
  'speed': speed,
}


def names(text: str) -> list[str]:
  """The tables that a page has."""
  return [match[1] for match in BLOCK.findall(text)]


def rendered(text: str) -> str:
  """A page with every table rendered anew.

  Raises:
    ValueError: for a table that is not one of `TABLES`.
  """

  def render(match):
    begin, name, _, end = match.groups()
    if name not in TABLES:
      raise ValueError(f'there is no table {name}; {", ".join(TABLES)}')
    return f'{begin}\n{TABLES[name]()}\n{end}'

  return BLOCK.sub(render, text)


def main() -> None:
  """Writes the pages, or compares them.

  Raises:
    ValueError: with --check, if a table is not what its records say.
  """
  tables, changed = [], []
  for page in PAGES:
    text = page.read_text()
    new = rendered(text)
    tables += names(text)
    if new == text:
      continue
    if CHECK.value:
      raise ValueError(
        f'{page} differs from its records; run python -m experiments.readme'
      )
    common.write_text(new, page)
    changed.append(str(page))
  common.print_json({'tables': tables, 'changed': changed})


if __name__ == '__main__':
  common.run(main)
