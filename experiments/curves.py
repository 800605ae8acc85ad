r"""Several networks from both sides against the radius, in one picture.

  python -m experiments.evaluate --workdir=runs/NAME --certify=linear \
    --epsilon=.025,.05,.075,.1,.15
  python -m experiments.curves --records=runs/*/evaluations/*-linear-newest.json

The first, for each network, measures accuracy (clean, attacked, certified) and
the local Lipschitz constant (attacked from below, bounded from above); the
second draws what it wrote. Beside the networks stands the paper's g, the
distance classifier whose certificate is exact, from a record of
`experiments.theory`.
"""

import glob
import pathlib
from typing import Any

from absl import flags

from experiments import common, config, plots

FLAGS = flags.FLAGS
CURVES = ('adv_test_acc', 'certified_test_acc')
BRACKET = ('eq3_lipschitz', 'upper_lipschitz')


def define() -> None:
  """The flags of this script."""
  flags.DEFINE_list(
    'records',
    None,
    'Evaluations with --certify of several radii, or patterns.',
  )
  flags.DEFINE_string(
    'theory', None, 'Record of g. Default: the published one of the data set.'
  )
  flags.DEFINE_string(
    'output', None, 'The record. Default: runs/curves_<dataset>.json.'
  )


def label(run: dict[str, Any]) -> str:
  """A method and its weights, as the legend has them."""
  weights = config.from_json(run).weights.values()
  name = {'natural': 'Natural', 'crown_ibp': 'CROWN-IBP'}.get(
    run['method'], run['method'].upper()
  )
  return f'{name}({", ".join(f"{w:g}" for w in weights)})' if weights else name


def joined(paths: list[str]) -> dict[str, Any]:
  """One record of several evaluations on one data set.

  Raises:
    ValueError: if one of them has no bounds at several radii, or they are of
      several data sets.
  """
  runs = [common.read_json(path) for path in paths]
  for path, run in zip(paths, runs, strict=True):
    if missing := [x for x in (*CURVES, *BRACKET) if f'{x}_at' not in run]:
      raise ValueError(
        f'{path} has no {missing[0]} at several radii: evaluate --certify '
        '--epsilon=.05,.1 writes them'
      )
  names = {run['dataset'] for run in runs}
  if len(names) != 1:
    raise ValueError(f'--records are of {len(names)} data sets, not of one')
  runs = [{'label': label(run)} | run for run in runs]
  return {'dataset': names.pop(), 'runs': runs}


def draw(record: dict[str, Any], path: pathlib.Path) -> None:
  """Accuracies on the left, brackets of the Lipschitz constant on the right."""
  figure = plots.figure(9, 4.2)
  left, right = figure.subplots(1, 2)
  for index, run in enumerate(record['runs']):
    color = f'C{index}'
    left.plot([], [], color=color, label=run['label'])
    for axes, names in ((left, CURVES), (right, BRACKET)):
      start = {0.0: run['test_acc']} if axes is left else {}
      for name, line in zip(names, ('--', '-'), strict=True):
        curve = {float(x): y for x, y in run[f'{name}_at'].items()}
        points = zip(*(start | curve).items(), strict=True)
        axes.plot(*points, line, color=color, marker='.')
  if g := record['g']:
    curve = zip(g['epsilons'], g['certified'], strict=True)
    curve = [(x, 100 * y) for x, y in curve if x <= left.get_xlim()[1]]
    left.plot(*zip(*curve, strict=True), 'k-', label='g of the paper')
  left.set(xlabel='radius', ylabel='test accuracy (%)', ylim=(0, 101))
  left.set_title('dashed: under attack; full: certified')
  right.set(xlabel='radius', ylabel='local Lipschitz constant', yscale='log')
  right.set_title('dashed: found; full: upper bound')
  figure.legend(loc='outside lower center', ncols=6, frameon=False)
  for axes in (left, right):
    axes.spines[['top', 'right']].set_visible(False)
  plots.save(figure, path)


def main() -> None:
  """Joins the records, writes and draws."""
  paths = sorted(p for x in FLAGS.records or () for p in glob.glob(x))
  if not paths:
    raise ValueError('--records names no file')
  record = joined(paths)
  name = pathlib.Path(record['dataset']).stem
  theory = pathlib.Path(FLAGS.theory or common.RESULTS / f'theory_{name}.json')
  record['g'] = None
  if FLAGS.theory or theory.exists():
    record['g'] = common.read_json(theory)['data']['test']['curve']
  output = common.output_file(FLAGS.output or f'runs/curves_{name}.json')
  common.finish(record | common.provenance(), output)
  common.draw(draw, record, output.with_suffix(''))


if __name__ == '__main__':
  common.run(main, define)
