r"""Draws attacked and certified results of several networks over the radius.

  python -m experiments.evaluate --workdir=runs/NAME --certify=linear \
    --epsilon=.025,.05,.075,.1,.15
  python -m experiments.curves --records=runs/*/evaluations/*-linear-newest.json

The first, for each network, measures accuracy (clean, attacked, certified) and
the local Lipschitz constant (attacked from below, bounded from above); the
second draws what it wrote. Beside the networks stands the paper's g, the
distance classifier whose certificate is exact, from a record of
`experiments.theory`.
"""

import dataclasses
import glob
import pathlib
from typing import Any

from absl import flags

from experiments import common, config, plots

FLAGS = flags.FLAGS
COLUMNS = (*plots.ACCURACIES, *plots.CONSTANTS)
# What no label says, and so has to be the same for all networks.
SHARED = (
  'measured_test',
  'attack',
  'attack_steps',
  'attack_restarts',
  'bounds',
)


def define() -> None:
  """The flags of this script."""
  flags.DEFINE_list(
    'records', None, 'Evaluations with --certify of several radii, or patterns.'
  )
  flags.DEFINE_string(
    'theory', None, 'Record of g. Default: the published one of the data set.'
  )
  flags.DEFINE_string(
    'output', None, 'The record. Default: runs/curves_<dataset>.json.'
  )


def label(run: dict[str, Any]) -> str:
  """A method and its weights, for the legend."""
  weights = config.from_json(run).weights.values()
  name = {'natural': 'Natural', 'crown_ibp': 'CROWN-IBP'}.get(
    run['method'], run['method'].upper()
  )
  weights = [f'{w:g}' for w in weights]
  if run['method'].endswith('ibp'):  # often trained at a larger radius
    weights.append(f'at {run["epsilon"]:g}')
  return f'{name}({", ".join(weights)})' if weights else name


def told_apart(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """The runs, with the settings that differ in a label that several have."""
  settings, found = [x.name for x in dataclasses.fields(config.Config)], []
  settings.append('checkpoint')  # the best and the newest are of one run
  for run in runs:
    same = [other for other in runs if other['label'] == run['label']]
    differing = [
      f', {name} {run.get(name)}'
      for name in settings
      if any(other.get(name) != run.get(name) for other in same)
    ]
    found.append(run | {'label': run['label'] + ''.join(differing)})
  return found


def joined(paths: list[str]) -> dict[str, Any]:
  """One record of several evaluations on one data set.

  Raises:
    ValueError: if one of them has no bounds at several radii, or they are of
      several data sets, or differ in `SHARED`.
  """
  names, runs = set(), []
  for path in paths:
    run = common.read_json(path)
    if missing := [x for x in COLUMNS if f'{x}_at' not in run]:
      raise ValueError(
        f'{path} has no {missing[0]} at several radii: evaluate --certify '
        '--epsilon=.05,.1 writes them'
      )
    with common.reading(path):
      names.add(run['fingerprint'] or run['dataset'])
      bounds = next(reversed(run.get('certified_by', {})), None)
      runs.append({'label': label(run), 'bounds': bounds} | run)
  if len(names) != 1:
    raise ValueError(f'--records are of {len(names)} data sets, not of one')
  for path, run in zip(paths, runs, strict=True):
    if name := common.difference(run, {k: runs[0].get(k) for k in SHARED}):
      raise ValueError(
        f'{path} has {name}={run.get(name)}, {paths[0]} '
        f'{name}={runs[0].get(name)}: evaluate all networks alike'
      )
  data = {key: runs[0][key] for key in ('dataset', 'fingerprint')}
  return data | {'runs': told_apart(runs)}


def named() -> list[str]:
  """The files that the flag names, each once.

  Raises:
    ValueError: if there is none, or a pattern matches none.
  """
  found = {
    pattern: [pattern] if pathlib.Path(pattern).exists() else glob.glob(pattern)
    for pattern in FLAGS.records or ()
  }
  for pattern, paths in found.items():
    if not paths:
      raise ValueError(f'--records: there is no {pattern}')
  if not found:
    raise ValueError('--records names no file')
  return sorted(set().union(*found.values()))


def main() -> None:
  """Joins the records, writes and draws."""
  record = joined(named())
  name = pathlib.Path(record['dataset']).stem
  published = f'theory_{record["dataset"]}.json'  # none of a file of one's own
  theory = pathlib.Path(FLAGS.theory or common.RESULTS / published)
  record['g'] = None
  if FLAGS.theory or theory.exists():
    with common.reading(theory):
      found = common.read_json(theory)
      of = found.get('dataset') or found['data']['name']  # the older ones
      data = record['fingerprint'] or record['dataset']
      if (found.get('fingerprint') or of) == data:
        record['g'] = found['data']['test']['curve']
      elif FLAGS.theory:
        raise ValueError(f'{theory} is of {of}, not of {name}: of other data')
  output = common.output_file(FLAGS.output or f'runs/curves_{name}.json')
  common.finish(record | common.provenance(), output)
  drawn = list(record['runs'])
  if record['g']:
    largest = max(float(x) for run in drawn for x in run['adv_test_acc_at'])
    g = plots.of_g(record['g'], largest)
    drawn.append({'label': 'g of the paper'} | g)
  common.draw(plots.both_sides, drawn, output.with_suffix(''))


if __name__ == '__main__':
  common.run(main, define)
