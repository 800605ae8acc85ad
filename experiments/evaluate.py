r"""Measures a trained network again, under any attack.

  python -m experiments.evaluate --workdir=runs/NAME --attack=autoattack

The record goes to `<workdir>/evaluations/`, so that the run's own result stays.
The same command again prints it, unless the run has gone on since.
"""

import pathlib

from absl import flags

from experiments import common, config, measure, plots

FLAGS = flags.FLAGS


def define() -> None:
  """The flags of this script."""
  common.define_data_dir()
  measure.define()
  flags.DEFINE_string('workdir', None, 'Folder of the run.')
  flags.DEFINE_string(
    'dataset', None, 'Where its data are now, if they have been moved.'
  )
  flags.DEFINE_string(
    'attack',
    'pgd',
    'One of pgd, multi_targeted, multi_targeted_released, strong, autoattack, '
    'or several attacks in turn, separated by commas.',
  )
  flags.DEFINE_integer('num_steps', None, "Default: the attack's own.", 1)
  flags.DEFINE_integer(
    'num_restarts', 1, 'Random starts of pgd, the worst counts.', 1
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
    'certify',
    '',
    ['', 'interval', 'linear', 'alpha'],
    'Bound what can happen in the ball too: certified accuracy, and an upper '
    'bound on the Lipschitz constant.',
  )
  flags.DEFINE_bool(
    'save_examples', False, 'Write the adversarial test images beside it.'
  )
  flags.DEFINE_integer(
    'eval_examples',
    None,
    'Examples of each split, drawn at random; 0 for all. Default: as many as '
    'were measured after training.',
    0,
  )


def epsilons() -> tuple[float, ...]:
  """The radii that the flag names.

  Raises:
    ValueError: unless they are in [0, 1] and no two are equal.
  """
  parse = common.Number(0.0, 1.0).parse
  return tuple(config.numbers('epsilon', parse) or ())


def main() -> None:
  """Loads the run, measures it, prints the record."""
  if not FLAGS.workdir:
    raise ValueError('--workdir is needed: the folder of a run')
  path = pathlib.Path(FLAGS.workdir)
  dataset = common.load_dataset(FLAGS.dataset or config.read(path).dataset)
  attack = measure.Attack(
    FLAGS.attack,
    FLAGS.num_steps,
    FLAGS.num_restarts,
    epsilons(),
    FLAGS.certify,
  )
  record = measure.evaluate(
    path,
    dataset,
    attack,
    checkpoint=FLAGS.checkpoint,
    eval_examples=FLAGS.eval_examples,
    save_examples=FLAGS.save_examples,
  )
  if len(attack.epsilons) > 1:
    name = measure.label(config.from_json(record), attack, FLAGS.checkpoint)
    common.draw(plots.accuracy_curve, record, path / 'evaluations' / name)
  common.print_json(record)


if __name__ == '__main__':
  common.run(main, define)
