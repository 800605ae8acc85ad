r"""Renders records as pages, and publishes a record in `results/`.

  python -m experiments.report
  python -m experiments.report --check
  python -m experiments.report --publish=runs/NAME

The first renders the tables of README.md and of the pages of
experiments/results anew, and draws the speeds. Each table stands between
`<!-- results: BLOCK -->` and `<!-- end -->`, where BLOCK is one of `BLOCKS`,
followed by a record in brackets if the table shows only one:
`run(train_NAME)`. `--check` writes nothing and fails if a table differs from
its records. `--publish` first copies into experiments/results the record of a
finished run, or any record that a script has written, with the Markdown and
picture beside it (not those of an evaluation). It replaces a different record
only with `--overwrite`.

`markdown` renders the record of a table of the paper (`experiments.tables`).
"""

import contextlib
import itertools
import pathlib
import re
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from absl import flags

from experiments import common, paper, plots

FLAGS = flags.FLAGS
ROOT = pathlib.Path(__file__).parents[1]
PAGES = (
  ROOT / 'README.md',
  common.RESULTS / 'README.md',
  common.RESULTS / 'training.md',
  common.RESULTS / 'certified.md',
  common.RESULTS / 'speed.md',
)
BEGIN, END = r'(<!-- results: (\w+)(?:\((\S+)\))? -->\n)', '(<!-- end -->)'
DATASETS = {
  'mnist5k': 'mnist5k',
  'mnist': 'MNIST',
  'fashion_mnist': 'Fashion-MNIST',
  'cifar10': 'CIFAR-10',
  'svhn': 'SVHN',
  'restricted_imagenet': 'Restricted ImageNet',
}
TITLES = {  # of the tables, with the data sets that were used
  '1': 'Table 1: separation',
  '2': 'Table 2: {data}',
  '3': 'Table 3: {data}',
  '4': 'Table 4: dropout',
  '5': 'Table 5: tools of generalisation, not in the paper',
  'mt': 'Appendix: multi-targeted attack',
  'svhn': 'Appendix: {data}',
  'sizes': 'More training examples, not in the paper',
}
# Columns of a table of the paper in their order. Those that begin with the name
# of an attack or of bounds, such as `strong_adv_test_acc`, follow the others.
HEADINGS = {
  'epsilon': 'radius',
  'train_train_min': 'train-train separation',
  'test_train_min': 'test-train separation',
  'train_acc': 'train acc.',
  'test_acc': 'test acc.',
  'adv_test_acc': 'adv. test acc.',
  'certified_test_acc': 'certified test acc.',
  'released_lipschitz': 'test Lipschitz, released procedure',
  'eq3_lipschitz': 'test Lipschitz, Eq. (3)',
  'upper_lipschitz': 'test Lipschitz, upper bound',
  'gap': 'gap',
  'adv_gap': 'adv. gap',
  'train_seconds': 'seconds of training',
}
FINDINGS = {
  'separated': 'classes are more than two radii apart',
  'smoother_eq3': 'robust methods are smoother, Eq. (3)',
  'smoother_released': 'robust methods are smoother, released procedure',
  'smoother_with_beta_eq3': 'smoother as beta grows, Eq. (3)',
  'smoother_with_beta_released': 'smoother as beta grows, released procedure',
  'gap_widens': 'the gap is wider under attack',
  'dropout_narrows_gap': 'dropout narrows the gap',
  'dropout_narrows_adv_gap': 'dropout narrows the gap under attack',
  'examples_narrow_gap': 'more training examples narrow the gap',
  'examples_narrow_adv_gap': (
    'more training examples narrow the gap under attack'
  ),
  'a_tool_halves_adv_gap': (
    'a tool halves the gap under attack at no loss of test accuracy'
  ),
}


def define() -> None:
  """The flags of this script."""
  flags.DEFINE_bool('check', False, 'Compare instead of writing.')
  flags.DEFINE_string(
    'publish', None, 'Folder of a finished run, or a JSON record.'
  )
  flags.DEFINE_bool(
    'overwrite', False, 'Replace a published record that differs.'
  )


def grid(rows: Iterable[dict[str, str]]) -> str:
  """A Markdown table of rows, heading -> cell, without empty columns."""
  rows = list(rows)
  every = dict.fromkeys(heading for row in rows for heading in row)
  header = [h for h in every if any(row.get(h) for row in rows)]
  lines = [[h.strip() for h in header], ['---'] + ['---:'] * (len(header) - 1)]
  lines += [[row.get(heading, '') for heading in header] for row in rows]
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def in_words(dataset: str, fingerprint: str | None) -> str:
  """The name of a data set, or of a user's file, and whether it is a part."""
  path = pathlib.Path(dataset)
  own = path.name if path.stem in DATASETS else path.stem
  part = ', a part' if dataset in DATASETS and fingerprint else ''
  return DATASETS.get(dataset, own) + part


# Tables of the paper.


def panels(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
  """Rows of a table, grouped by network and data set: title -> rows."""
  found: dict[str, list[dict[str, Any]]] = {}
  for row in rows:
    title = f'{row["arch"]} on {row["dataset"]}' if row['arch'] else ''
    found.setdefault(title, []).append(row)
  return found


def columns(rows: list[dict[str, Any]]) -> list[str]:
  """All columns that some row has, in the order of `HEADINGS`."""

  def place(column):
    name, what = split(column)
    return list(HEADINGS).index(what), name

  return sorted({column for row in rows for column in row['ours']}, key=place)


def split(column: str) -> tuple[str, str]:
  """The attack or bounds of a column, '' for PGD, and its key in `HEADINGS`."""
  what = sorted(filter(column.endswith, HEADINGS), key=len)[-1]
  return column.removesuffix(what).rstrip('_'), what


def heading(column: str) -> str:
  """A column in words, then how it was measured unless by PGD."""
  name, what = split(column)
  name = name.replace('multi_targeted', 'multi-targeted').replace('_', ', ')
  return f'{HEADINGS[what]}, {name}' if name else HEADINGS[what]


def cell(row: dict[str, Any], column: str, beside: bool) -> str:
  """Mean and deviation over seeds; `beside` the paper's, and the difference."""
  if column not in row['ours']:
    return ''
  values, theirs = row['ours'][column], row['paper'].get(column)
  mean = float(np.mean(values))
  digits = 3 if column == 'epsilon' or column.endswith('_min') else 2
  text = f'{mean:.{digits}f}'
  if len(values) > 1:
    text += f' ± {np.std(values, ddof=1):.{digits}f}'
  if theirs is None:
    return f'{text} / – / –' if beside else text
  return f'{text} / {theirs:.{digits}f} / {mean - theirs:+.{digits}f}'


def departures(rows: list[dict[str, Any]]) -> Iterator[str]:
  """Settings that are not the paper's, with their rows unless all differ."""
  found: dict[str, list[str]] = {}
  for row in rows:
    for name, theirs in row['paper_settings'].items():
      ours = (row['settings'] | row)[name]
      text = f'{name} {ours} instead of {theirs}'
      found.setdefault(text, []).append(row['label'])
  compared = {row['label'] for row in rows if row['paper']}
  for text, labels in found.items():
    every = compared and compared <= set(labels)
    yield text if every else f'{text} ({", ".join(labels)})'


def markdown(record: dict[str, Any]) -> str:
  """The record of a table of the paper: its panels, each with its findings."""
  data = dict.fromkeys(
    in_words(row['dataset'], row['settings'].get('fingerprint'))
    for row in record['rows']
  )
  lines = [f'## {TITLES[record["table"]].format(data=" and ".join(data))}']
  lines += filter(None, [record.get('caption')])
  for title, rows in panels(record['rows']).items():
    names = columns(rows)
    beside = {c: any(c in row['paper'] for row in rows) for c in names}
    lines += [f'### {title}'] if title else []
    if any(beside.values()):
      lines.append('Cells are ours / paper / difference.')
    if found := '; '.join(departures(rows)):
      lines.append(f'Not the published setting: {found}.')
    if 'measured_test' in rows[0]['settings']:
      every = [row['settings'] for row in rows]
      radius, train, test = (
        ' or '.join(dict.fromkeys(text.format(**x) for x in every))
        for text in ('{epsilon:g}', '{measured_train}', '{measured_test}')
      )
      lines.append(
        f'Radius {radius}; {train} training and {test} test examples measured.'
      )
    first = 'method' if title else 'data set'
    lines.append(
      grid(
        {first: row['label']}
        | {heading(c): cell(row, c, beside[c]) for c in names}
        for row in rows
      ).rstrip()
    )
    if found := record['findings'].get(title, {}):
      lines.append(grid(verdict(*item) for item in found.items()).rstrip())
    if found := record.get('correlations', {}).get(title):
      texts = (f'{x:.2f} with the {HEADINGS[c]}' for c, x in found.items())
      lines.append(
        f'Rank correlation of the {HEADINGS["eq3_lipschitz"]} over these runs '
        f'of robust methods: {", ".join(texts)}.'
      )
  lines += dict.fromkeys(
    'Made by `{command}` at {commit} on {date}, {machine}.'.format(**made)
    for row in record['rows']
    for made in row.get('runs', [record]) + row.get('measured', [])
    if 'command' in made
  )
  return '\n\n'.join(lines) + '\n'


def verdict(name: str, found: dict[str, Any]) -> dict[str, str]:
  """A finding as a row: whether it holds, and where that was closest."""
  larger, smaller = found['numbers']
  return {
    'finding': FINDINGS[name],
    'holds': str(found['holds']).lower(),
    'comparisons that fail': f'{len(found["failing"])} of {found["pairs"]}',
    'decided by': f'{found["closest"]}: {larger:.2f} and {smaller:.2f}',
  }


# Blocks of the pages: pattern of the records, and heading -> format of a cell.
# `SPLIT` is train, then test; a cell is empty where the record lacks a value.
BLOCKS: dict[str, tuple[str, dict[str, str]]] = {
  'run': (
    '{of}.json',
    {
      'split': 'SPLIT',
      'accuracy': '{SPLIT_acc:.1f}',
      'PGD-10': '{adv_SPLIT_acc:.1f}',
      'Lipschitz': '{SPLIT_eq3_lipschitz:.0f}',
    },
  ),
  'training': (
    'train_*.json',
    {
      'data set': '{name}',
      'network': '{arch}',
      'method': '{method}',
      'epochs': '{epochs}',
      'radius': '{epsilon:.3g}',
      'measured': '{measured_train:,} + {measured_test:,}',
      'train': '{train_acc:.1f}',
      'test': '{test_acc:.1f}',
      'PGD-10, train': '{adv_train_acc:.1f}',
      'PGD-10, test': '{adv_test_acc:.1f}',
      'Lipschitz, Eq. (3)': '{eq3_lipschitz:.0f}',
      'Lipschitz, released': '{released_lipschitz:.1f}',
    },
  ),
  'certified': (
    'evaluation_*.json',  # with bounds, see `block`
    {
      'data set': '{name}',
      'network': '{arch}',
      'method': '{method}',
      'epochs': '{epochs}',
      'batch size': '{batch_size}',
      'trained at': '{epsilon:.3g}',
      'measured at': '{attack_epsilon:.3g}',
      'test images': '{measured_test:,}',
      'clean': '{test_acc:.1f}',
      'attacked': '{adv_test_acc:.1f}',
      'certified': '{certified_test_acc:.1f}',
      'Lipschitz, found': '{eq3_lipschitz:.0f}',
      'Lipschitz, at most': '{upper_lipschitz:,.0f}',
    },
  ),
  'existence': (
    'proof_of_concept*.json',
    {
      'data set': '{name}',
      'network': '{arch}',
      'epochs': '{epochs}',
      'split': 'SPLIT',
      'accuracy': '{SPLIT_acc:.1f}',
      'PGD-10': '{adv_SPLIT_acc:.1f}',
      'multi-targeted': '{multi_targeted_adv_SPLIT_acc:.1f}',
      'distance classifier, certified': '{certified_SPLIT:.1f}',
    },
  ),
  'separation': (
    'separation_*.json',
    {
      'data set': '{name}',
      'epsilon': '{epsilon:g}',
      'train-train': '{train_train_min:.3f}',
      'paper': '{paper[train_train_min]:.3f}',
      'test-train': '{test_train_min:.3f}',
      'paper ': '{paper[test_train_min]:.3f}',
    },
  ),
  'theory': (
    'theory_*.json',
    {
      'data set': '{name}',
      'r': '{data[train][r]:.3f}',
      'train: right and certified in the open r-ball': (
        '{data[train][astute_in_open_ball]:.1%}'
      ),
      'test images': '{data[test][num_test]:,}',
      'accuracy': '{data[test][accuracy]:.1%}',
      'certified at the epsilon above': '{data[test][certified]:.1%}',
      'attacked images': '{data[test][attacked_subset][num_attacked]}',
      'their accuracy': '{data[test][attacked_subset][accuracy]:.1%}',
      'attacked': '{data[test][attacked_subset][attacked]:.1%}',
      'certified': '{data[test][attacked_subset][certified]:.1%}',
    },
  ),
  'findings': (
    'table_*.json',
    {'finding': '{finding}', 'true': '{true}', 'false': '{false}'},
  ),
  'speed': (
    'benchmark_*.json',
    {
      'work': '{suite}, {case}',
      'jax': '{jax_version}',
      'ours': '{rate} {unit}/s',
      'times the rate of': '{peers}',
      'memory of the program': '{memory}',
    },
  ),
}
RUN = (  # below README's table
  '{seconds:.0f} seconds of training and measuring on {machine}, {date}. '
  '[Record](experiments/results/{stem}.json).\n'
)


def block(name: str, of: str) -> str:
  """A block of a page.

  Raises:
    ValueError: for one that is not in `BLOCKS`.
  """
  if name not in BLOCKS:
    raise ValueError(f'there is no block {name}; {", ".join(BLOCKS)}')
  lines = published(name, of)
  text = shown(name, lines)
  return text + ''.join('\n' + RUN.format(**line) for line in lines if of)


def published(name: str, of: str = '') -> list[dict[str, Any]]:
  """The lines of a block in order: what `described` returns of its records."""
  lines = []
  for path in common.RESULTS.glob(BLOCKS[name][0].format(of=of)):
    found = common.read_json(path)
    if name != 'certified' or 'certified_test_acc' in found:
      lines += described(found, path.stem)
  lines = sorted(lines, key=lambda line: line['place'])
  return list(_joined(lines)) if name == 'findings' else lines


def _joined(lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
  """One line for each finding, of all tables that decide it."""
  for finding, group in itertools.groupby(lines, lambda x: x['finding']):
    group = list(group)
    yield {'finding': finding} | {
      holds: ', '.join(x['where'] for x in group if x['holds'] == holds)
      for holds in ('true', 'false')
    }


def shown(name: str, lines: list[dict[str, Any]]) -> str:
  """The table of a block from records that are `described`."""
  formats = BLOCKS[name][1]
  if name != 'run':  # of one record, which the page names
    formats = formats | {'record': '[JSON]({stem}.json)'}
  splits = ('train', 'test') if 'SPLIT' in formats.values() else ('',)
  return grid(
    {h: filled(x.replace('SPLIT', split), line) for h, x in formats.items()}
    for line in lines
    for split in splits
  )


def described(found: dict[str, Any], stem: str) -> list[dict[str, Any]]:
  """A record and further fields for its block.

  Of a benchmark one for each case, of a table one for each finding.

  Raises:
    ValueError: if it is not of the kind that its name says.
  """
  found = found | {'stem': stem}
  with common.reading(f'{stem}.json'):
    if stem.startswith('benchmark_'):
      return [_timed(found, *case) for case in enumerate(found['cases'])]
    if stem.startswith('table_'):
      return list(_decided(found))
    dataset = found.get('dataset') or found['data']['name']
    place = [*DATASETS, dataset].index(dataset), stem
    name = in_words(dataset, found.get('fingerprint'))
    more = {'name': name, 'place': place}
    more['test_eq3_lipschitz'] = found.get('eq3_lipschitz')
    if 'train_train_min' in found:
      more['name'] += stem.removeprefix(f'separation_{dataset}')
      more['paper'] = paper.separation(found)
    return [found | more]


def _decided(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
  """The findings of a table, each with a link to its page."""
  for title, decided in found.get('findings', {}).items():
    parts = found['stem'].split('-')  # the second is the preset
    part = [x for x in parts[2:] if x.endswith('examples')]
    table = '-'.join(parts[:2] + part)
    text = f'{title}, {table}' if title else table
    for name, finding in decided.items():
      yield {
        'finding': FINDINGS[name],
        'holds': str(finding['holds']).lower(),
        'where': f'[{text}]({found["stem"]}.md)',
        'place': ([*FINDINGS].index(name), text),
      }


def _timed(
  found: dict[str, Any], place: int, case: dict[str, Any]
) -> dict[str, Any]:
  """A case of a benchmark, named with the device unless it is a CPU."""
  more = _rates(*case['candidates']) | {'place': (found['stem'], place)}
  if not found['device'].endswith('x cpu'):
    more['case'] = f'{case["case"]}, {found["device"]}'
  return found | case | more


def _rates(ours: dict[str, Any], *peers: dict[str, Any]) -> dict[str, str]:
  def rounded(x):
    if x is None:  # nothing was left to measure
      return '–'
    return f'{x:,.0f}' if x >= 100 else f'{x:.3g}'

  ratios = (f'{x["candidate"]} {rounded(x["ratio_of_ours"])}' for x in peers)
  found = {'rate': rounded(ours['per_second']), 'peers': '; '.join(ratios)}
  if memory := ours.get('program_mib'):
    found['memory'] = f'{memory:,.0f} MiB'
  return found


# Candidates of a benchmark that are ours and so no peers.
OURSELVES = ('cold', 'robustlip strong')


def speeds() -> dict[str, tuple[str, float]]:
  """Case of a benchmark -> (its fastest peer, our rate over that peer's)."""
  found = {}
  for case in published('speed'):
    peers = [
      (x['ratio_of_ours'], x['candidate'])
      for x in case['candidates'][1:]
      if x['candidate'] not in OURSELVES and x['ratio_of_ours'] is not None
    ]
    if peers:
      ratio, fastest = min(peers)
      title = '{suite}, {case}, jax {jax_version}'.format(**case)
      if title in found:  # measured on another machine
        title += f', {case["stem"].removeprefix("benchmark_")}'
      found[title] = fastest, ratio
  return found


def filled(text: str, found: dict[str, Any]) -> str:
  """A format filled from a record, without % signs; '' if it lacks a value."""
  with contextlib.suppress(KeyError, TypeError):  # missing, or null
    return text.format(**found).replace('%', '')
  return ''


def rendered(text: str) -> str:
  """A page with every block rendered anew."""
  return re.sub(
    f'{BEGIN}.*?{END}',
    lambda match: f'{match[1]}\n{block(match[2], match[3])}\n{match[4]}',
    text,
    flags=re.DOTALL,
  )


def run_name(path: pathlib.Path) -> str:
  """NAME of runs/NAME; of a table's run data set, network, row and seed."""
  folders = path.resolve().parts
  return '-'.join(folders[-3 if re.fullmatch(r'seed\d+', path.name) else -1 :])


def publish(path: pathlib.Path, *, overwrite: bool) -> pathlib.Path:
  """Copies a record, its Markdown and its picture into the results.

  A run is published as `train_<run>`, where <run> is the name of its folder (of
  its last three in a table of the paper); an evaluation of it as
  `evaluation_<run>_<evaluation>`; everything else under its own name, which
  begins with its kind.

  Raises:
    ValueError: if it lacks a field of `ORIGIN`, or another record has its name.
  """
  source, name = path, path.stem
  if path.name == 'result.json':
    path = path.parent
  if path.is_dir():
    source, name = path / 'result.json', f'train_{run_name(path)}'
  elif path.parent.name == 'evaluations':
    name = f'evaluation_{run_name(path.parents[1])}_{path.stem}'
  if not source.exists():
    raise ValueError(
      f'there is no {source} to publish: expected the folder of a finished run '
      'or a JSON record'
    )
  found, target = common.read_json(source), common.RESULTS / f'{name}.json'
  if missing := sorted({*common.ORIGIN} - found.keys()):
    raise ValueError(
      f'{source} does not say where it comes from: no {", ".join(missing)}'
    )
  if any(target.match(glob) for glob, _ in BLOCKS.values()):
    described(found, name)  # raises for a record that a page cannot show
  elif not name.startswith(('curves_', 'staircase', 'table_')):
    raise ValueError(
      f'no page would show {target.name}: a name begins with what it is, such '
      'as benchmark_'
    )
  if target.exists() and not overwrite:
    if (other := common.read_json(target)) != found:
      raise ValueError(
        f'{target} has another record, of {other.get("date")}: '
        f'{other.get("command")}; --overwrite replaces it'
      )
  # No page shows the picture of one evaluation; `curves` joins several.
  suffixes = '.json', '.md', '.png'
  for suffix in suffixes[:1] if name.startswith('evaluation_') else suffixes:
    if (file := source.with_suffix(suffix)).exists():
      shutil.copyfile(file, target.with_suffix(suffix))
    else:  # removes that of the record it replaces
      target.with_suffix(suffix).unlink(missing_ok=True)
  return target


def main() -> None:
  """Publishes if asked to, then writes the pages, or compares them.

  Raises:
    ValueError: with --check, if a table is not what its records say; for flags
      that do not go together.
  """
  if FLAGS.check and FLAGS['publish'].present:
    raise ValueError('--check writes nothing: leave out --publish')
  if FLAGS['publish'].present != bool(FLAGS.publish):
    raise ValueError('--publish names nothing')
  if FLAGS.overwrite and not FLAGS.publish:
    raise ValueError('--overwrite needs --publish')
  report: dict[str, Any] = {'published': None, 'changed': []}
  if FLAGS.publish:
    path = pathlib.Path(FLAGS.publish).expanduser()
    report['published'] = publish(path, overwrite=FLAGS.overwrite).name
  for page in PAGES:
    text = page.read_text(encoding='utf-8')
    if (new := rendered(text)) == text:
      continue
    if FLAGS.check:
      raise ValueError(
        f'{page} differs from its records; run python -m experiments.report'
      )
    common.write_text(new, page)
    report['changed'].append(page.name)
  if not FLAGS.check:
    common.draw(plots.speeds, speeds(), common.RESULTS / 'speed')
  common.print_json(report)


if __name__ == '__main__':
  common.run(main, define)
