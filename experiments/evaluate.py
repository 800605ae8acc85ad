r"""Measures a trained network again, under any attack.

  python -m experiments.evaluate --workdir=runs/NAME --attack=autoattack

The record goes to `<workdir>/evaluations/`; the run's own result is kept.
The same command again prints it, unless the run has been trained further since.
Several processes (`--coordinator`) that see one folder share the examples.
"""

import dataclasses
import pathlib
import time
from typing import Any

import jax
import numpy as np
from absl import flags, logging

from experiments import common, config, measure, plots
from experiments.config import Config
from robustlip import attacks, checkpoints
from robustlip.datasets import Dataset
from robustlip.datasets.splits import fingerprint

FLAGS = flags.FLAGS


def define() -> None:
  """The flags of this script."""
  common.define_data_dir()
  common.define_processes()
  measure.define()
  flags.DEFINE_string('workdir', None, 'Folder of the run.')
  flags.DEFINE_string(
    'dataset', None, 'Path of its data, if they have been moved since.'
  )
  flags.DEFINE_string(
    'attack',
    'pgd',
    f'One of {", ".join([*attacks.SEQUENCES, *attacks.ATTACKS])}, or several '
    'in turn, separated by commas.',
  )
  flags.DEFINE_integer('num_steps', None, "Default: the attack's own.", 1)
  flags.DEFINE_integer(
    'num_restarts', 1, 'Starts of each random attack; the worst counts.', 1
  )
  flags.DEFINE_enum(
    'checkpoint',
    'newest',
    ['newest', 'best'],
    'The newest, or the best on the held-out examples.',
  )
  flags.DEFINE_list(
    'epsilon',
    None,
    'Radius, or several, such as 2/255,4/255; default: that of training.',
  )
  flags.DEFINE_enum(
    'norm', 'linf', ['linf', 'l2'], 'Of the ball; l2 needs its own --epsilon.'
  )
  measure.define_certify()
  flags.DEFINE_bool(
    'save_examples', False, 'Write the adversarial test images too.'
  )
  flags.DEFINE_integer(
    'eval_examples',
    None,
    'Examples of each split, drawn at random; 0 for all. Default: as many as '
    'were measured after training.',
    0,
  )


def label(settings: Config, attack: measure.Attack, checkpoint: str) -> str:
  """The file name of a measurement inside the folder of its run."""
  parts = [attack.name.replace(',', '_')]
  if attack.num_steps:
    parts.append(f'{attack.num_steps}steps')
  if attack.num_restarts > 1:
    parts.append(f'{attack.num_restarts}restarts')
  if attack.epsilons:
    parts.append('eps' + '_'.join(f'{x:g}' for x in attack.radii(settings)))
  if settings.eval_examples:
    parts.append(f'{settings.eval_examples}examples')
  parts += [x for x in (attack.certify, attack.norm) if x not in ('', 'linf')]
  return '-'.join([*parts, checkpoint])


def evaluate(
  path: pathlib.Path,
  dataset: Dataset,
  attack: measure.Attack,
  *,
  checkpoint: str = 'newest',
  eval_examples: int | None = None,
  save_examples: bool = False,
  only_step: int | None = None,
) -> dict[str, Any]:
  """The record of a saved run under an attack, measured once.

  It is kept in `evaluations/` of the run and measured again if the run has been
  trained further or anew since; its `run` says how the network was trained,
  where that is finished. An interrupted cascade is resumed.

  Args:
    path: folder of the run.
    checkpoint: 'newest', or 'best' on the held-out examples.
    eval_examples: of each split, 0 for all; None as many as after training.
    save_examples: whether to write the adversarial images too.
    only_step: of the network to measure, where the record is to be joined with
      another of it.

  Raises:
    ValueError: if it is no run, the data have changed, its network is not that
      of `only_step`, or the images cannot be written.
  """
  began, settings = time.monotonic(), config.read(path)
  config.check_data(path, settings, dataset)
  if eval_examples is not None:
    settings = dataclasses.replace(settings, eval_examples=eval_examples)
  measure.evaluator(settings, dataset, attack)  # refuses wrong attacks
  folder = {'newest': 'checkpoints', 'best': 'best'}[checkpoint]
  if checkpoint == 'best' and not settings.holdout:
    raise ValueError(f'{path} was trained without --holdout: it has no best')
  step, variables = checkpoints.newest_variables(path / folder)
  if only_step not in (None, step):
    raise ValueError(
      f'{path / folder} has lost step {only_step}, whose record is kept: '
      f'step {step} is another network; train it anew in another --workdir'
    )
  config.check_network(path, settings, dataset, variables)
  state = {'checkpoint': checkpoint, 'step': step, 'finished': False}
  weights = fingerprint(*jax.tree.leaves(variables))
  result = path / 'result.json'
  run = common.read_json(result) if result.exists() else {}
  if run:
    last = run.get('step', step)
    state['finished'] = last == step or checkpoint == 'best'
  if not state['finished']:
    logging.warning('%s: this is its step %d, not its last', path, step)
  name = label(settings, attack, checkpoint)
  output = path / 'evaluations' / f'{name}.json'
  examples = output.with_name(f'{name}-{weights[:12]}-examples.npz')
  if output.exists() and (examples.exists() or not save_examples):
    found = common.read_json(output)
    same = found.get('weights', weights) == weights  # older records lack them
    if same and common.difference(found, state) is None:
      logging.info('%s was measured before', output)
      return found
  scratch = output.with_name(f'{name}-{weights[:12]}-partial')
  try:
    common.output_folder(output.parent)
  except ValueError as error:
    if save_examples:
      raise
    logging.warning('%s; the record is printed alone', error)
    scratch = None
  else:
    began -= measure.seconds_before(scratch)
  outcomes = measure.under_attack(
    settings,
    dataset,
    variables,
    attack,
    began=began,
    partial_file=scratch,
    keep_points=save_examples,
  )
  found = measure.record(
    settings, dataset, variables, attack, outcomes=outcomes
  )
  found |= state | {'seconds': time.monotonic() - began, 'weights': weights}
  found['run'] = {key: run.get(key) for key in common.ORIGIN}
  found = common.plain(found)  # as it is read the next time
  if scratch and jax.process_index() == 0:
    common.write_json(found, output)
    if len(attack.epsilons) > 1:
      runs = [{'label': settings.method} | found]
      common.draw(plots.both_sides, runs, output.with_suffix(''))
    if save_examples:
      _write_examples(examples, attack.norm, outcomes['test'])
    for file in output.parent.glob(f'{scratch.name}*'):
      file.unlink()
  return found


def _write_examples(path, norm: str, outcome: measure.Outcome) -> None:
  """Adversarial images, as floats and as bytes inside the largest ball."""
  split, by_radius = outcome
  epsilon, attacked = max(by_radius.items())
  images = split.images.astype(np.float64)
  moved = 255 * attacked.points.astype(np.float64) - images
  if norm == 'linf':
    room = np.floor(255 * np.float64(epsilon) + 1e-6)  # whole bytes
    moved = np.clip(np.rint(moved), -room, room)
  else:
    moved = np.trunc(moved)  # towards the image, so that the norm cannot grow
  rounded = np.uint8(images + moved)
  with common.whole(path) as file:
    np.savez_compressed(
      file, bytes=rounded, labels=split.labels, **attacked._asdict()
    )


def main() -> None:
  """Loads the run, measures it, prints the record."""
  if not FLAGS.workdir:
    raise ValueError('--workdir is needed: the folder of a run')
  path = pathlib.Path(FLAGS.workdir)
  dataset = common.load_dataset(FLAGS.dataset or config.read(path).dataset)
  radius = common.Number(0.0, 1.0 if FLAGS.norm == 'linf' else None)
  if FLAGS.epsilon == []:
    raise ValueError('--epsilon names no radius')
  attack = measure.Attack(
    FLAGS.attack,
    FLAGS.num_steps,
    FLAGS.num_restarts,
    tuple(config.numbers('epsilon', radius.parse) or ()),
    FLAGS.certify,
    FLAGS.norm,
  )
  record = evaluate(
    path,
    dataset,
    attack,
    checkpoint=FLAGS.checkpoint,
    eval_examples=FLAGS.eval_examples,
    save_examples=FLAGS.save_examples,
  )
  common.print_json(record)


if __name__ == '__main__':
  common.run(main, define)
