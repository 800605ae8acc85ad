r"""Measures a trained network again, under any attack.

  python -m experiments.evaluate --workdir=runs/NAME --attack=multi_targeted

The record goes to a folder of its own inside the run's, so that the run's own
result stays: `<workdir>/evaluations/<attack and its settings>/result.json`. The
same command again prints it, unless the run has gone on since.
"""

import dataclasses
import pathlib
import time

from absl import flags, logging

from experiments import common
from experiments.networks import config, folder, measure
from robustlip import datasets

flags.adopt_module_key_flags(measure)
flags.declare_key_flag(common.DATA_DIR)
flags.declare_key_flag(common.EPSILON)
flags.declare_key_flag(common.PROTOCOL)
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
ATTACK = flags.DEFINE_enum('attack', 'pgd', measure.ATTACKS, 'Attack.')
NUM_STEPS = flags.DEFINE_integer(
  'num_steps', None, 'Default: 10 for pgd, 20 for multi_targeted.', 1
)
NUM_RESTARTS = flags.DEFINE_integer(
  'num_restarts', 1, 'Random starts of pgd, the worst counts.', 1
)
CHECKPOINT = flags.DEFINE_enum(
  'checkpoint',
  'newest',
  ['newest', 'best'],
  'The newest, or the best on the held-out examples.',
)


def trained(root: pathlib.Path) -> tuple[config.Config, datasets.Dataset]:
  """The settings of the run, with as many examples as asked for, and its data.

  Raises:
    ValueError: if the folder is not that of a run, or the data have changed.
  """
  run = config.read(root)
  dataset = datasets.load(run.dataset, data_dir=common.DATA_DIR.value)
  if run.fingerprint not in (None, dataset.fingerprint):
    raise ValueError(f'{root} was trained on other arrays than {run.dataset}')
  if measure.EVAL_EXAMPLES.value is not None:
    run = dataclasses.replace(run, eval_examples=measure.EVAL_EXAMPLES.value)
  return run, dataset


def main() -> None:
  """Loads the run, measures it, writes one record."""
  if not WORKDIR.value:
    raise ValueError('--workdir is needed: the folder of a run')
  began = time.monotonic()
  root = pathlib.Path(WORKDIR.value)
  run, dataset = trained(root)
  attack = measure.Attack(
    ATTACK.value,
    NUM_STEPS.value or {'pgd': 10, 'multi_targeted': 20}[ATTACK.value],
    NUM_RESTARTS.value,
    common.EPSILON.value,
    common.PROTOCOL.value if common.PROTOCOL.present else None,
  )
  checkpoints = {'newest': 'checkpoints', 'best': 'best'}[CHECKPOINT.value]
  step, variables = folder.newest_variables(root / checkpoints)
  state = {'finished': (root / 'result.json').exists(), 'step': step}
  if not state['finished']:
    logging.warning('%s is not finished: this is its step %d', root, step)
  output = root / 'evaluations' / label(run, attack) / 'result.json'
  if output.exists():
    record = common.read_json(output)
    if common.difference(record, state) is None:
      logging.info('%s was measured before', output)
      return common.print_json(record)
  evaluator = measure.evaluator(run, dataset, attack)
  record = measure.record(run, dataset, variables, evaluator, attack)
  record |= {'checkpoint': CHECKPOINT.value, **state}
  record['seconds'] = time.monotonic() - began
  common.finish(record, output)


def label(run: config.Config, attack: measure.Attack) -> str:
  """The name of the folder of a measurement."""
  parts = [attack.name, attack.num_steps, attack.num_restarts]
  parts += [attack.definitions(run), f'eps{attack.radius(run):g}']
  parts += [CHECKPOINT.value]
  if measure.EVAL_EXAMPLES.value is not None:
    parts += [f'{run.eval_examples}examples']
  return '-'.join(map(str, parts))


if __name__ == '__main__':
  common.run(main)
