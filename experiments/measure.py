"""What is measured of a network, by which attack, under which name.

A record names a column by what it holds: `adv_test_acc` under the attack that
the record names, `eq3_lipschitz` by the paper's Eq. (3), `released_lipschitz`
by the procedure of the authors' code, with which alone the published column can
be compared. Both are means over test examples.
"""

import functools
import pathlib
import time
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from absl import flags, logging

from experiments import common
from experiments.config import Config, read
from robustlip import (
  attacks,
  checkpoints,
  evaluation,
  lipschitz,
  models,
  released,
)
from robustlip.datasets import Dataset, Split

FLAGS = flags.FLAGS
LIPSCHITZ = {
  'eq3': lipschitz.estimate,
  'released': released.lipschitz_estimate,
}


def define() -> None:
  """The flag of everything that measures."""
  flags.DEFINE_integer(
    'eval_batch_size',
    100,
    'Examples to a dispatch when measuring; but for rounding no result depends '
    'on it.',
    1,
  )


class Attack(NamedTuple):
  """An attack by name, with what the record states of it."""

  name: str = 'pgd'  # or several: a cascade, see `attacks.cascade`
  num_steps: int | None = None  # None: the attack's own
  num_restarts: int = 1
  epsilon: float | None = None  # None: the radius trained with


PGD = Attack()  # ten steps, as the paper measures


def network(config: Config, dataset: Dataset) -> nn.Module:
  """The Linen module that `config` names, for the classes of the data."""
  return models.build(
    config.arch,
    len(dataset.class_names),
    dropout_rate=config.dropout,
    dtype=config.precision,
    remat=config.remat,
  )


def evaluator(
  config: Config, dataset: Dataset, attack: Attack
) -> evaluation.Evaluator:
  """Compiled measurements for networks trained with `config`."""
  epsilon = config.epsilon if attack.epsilon is None else attack.epsilon
  return _evaluator(
    network(config, dataset),
    len(dataset.class_names),
    attack._replace(epsilon=epsilon),
    FLAGS.eval_batch_size,
  )


@functools.lru_cache(maxsize=4)
def _evaluator(module, num_classes, attack, batch_size):
  def ratios(estimate, *args):
    return estimate(*args, epsilon=attack.epsilon).ratios

  return evaluation.Evaluator(
    partial(models.logits_fn, module),
    cascade=attacks.cascade(
      attack.name,
      epsilon=attack.epsilon,
      num_classes=num_classes,
      num_steps=attack.num_steps,
      num_restarts=attack.num_restarts,
    ),
    ratios={name: partial(ratios, how) for name, how in LIPSCHITZ.items()},
    batch_size=batch_size,
  )


def key(config: Config) -> jax.Array:
  """The key of all measurements of a run, apart from those of training."""
  return jax.random.fold_in(jax.random.key(config.seed), 2**31)


def take(split: Split, chosen: np.ndarray) -> Split:
  """The examples at sorted indices."""
  chosen = np.sort(chosen)
  return Split(split.images[chosen], split.labels[chosen])


def subset(split: Split, count: int) -> Split:
  """`count` examples drawn without replacement; all if `count` is 0."""
  if not 0 < count < len(split.labels):
    return split
  order = np.random.default_rng(0).permutation(len(split.labels))
  return take(split, order[:count])


def training_split(config: Config, dataset: Dataset) -> tuple[Split, Split]:
  """What is trained on, and the held-out part, which is empty without one.

  The draw is the same for every seed.

  Raises:
    ValueError: if the classes do not have such equal shares.
  """
  split = dataset.train if config.train_on == 'train' else dataset.both
  if config.train_examples:
    share, rest = divmod(config.train_examples, len(dataset.class_names))
    classes = range(len(dataset.class_names))
    firsts = [np.flatnonzero(split.labels == c)[:share] for c in classes]
    if rest or min(map(len, firsts)) < share:
      raise ValueError(
        f'--train_examples={config.train_examples} are no equal shares of '
        f'{len(classes)} classes that {dataset.name} has'
      )
    split = take(split, np.concatenate(firsts))
  if config.holdout == 0:
    return split, take(split, np.arange(0))
  order = np.random.default_rng([0, 1]).permutation(len(split.labels))
  held = order[: config.holdout]
  return take(split, order[config.holdout :]), take(split, held)


def measured(config: Config, dataset: Dataset) -> dict[str, Split]:
  """The examples that the columns `train` and `test` are measured on."""
  train = dataset.train
  if config.train_on == 'train':
    train, _ = training_split(config, dataset)
  return {
    'train': subset(train, config.eval_examples),
    'test': subset(dataset.test, config.eval_examples),
  }


def record(
  config: Config, dataset: Dataset, variables: Any, attack: Attack = PGD
) -> dict[str, Any]:
  """Everything measured of a network, with the settings behind it."""
  measures = evaluator(config, dataset, attack)
  splits, found, broken = measured(config, dataset), {}, {}
  for name, split in splits.items():
    outcome = measures.accuracies(variables, split, key(config), name=name)
    found[f'{name}_acc'] = evaluation.percent(outcome.correct)
    found[f'adv_{name}_acc'] = evaluation.percent(outcome.robust)
    stages = [stage.name for stage in measures.cascade]
    counts = [int((outcome.broken_by == i).sum()) for i in range(len(stages))]
    broken[name] = dict(zip(stages, counts, strict=True))
  found['gap'] = found['train_acc'] - found['test_acc']
  found['adv_gap'] = found['adv_train_acc'] - found['adv_test_acc']
  ratios = measures.lipschitz(
    variables, splits['test'], key(config), name='test'
  )
  for name, values in ratios.items():
    found[f'{name}_lipschitz'] = float(values.mean(dtype=np.float64))
  epsilon = config.epsilon if attack.epsilon is None else attack.epsilon
  return {
    **config.to_json(),
    **found,
    'measured_train': len(splits['train'].labels),
    'measured_test': len(splits['test'].labels),
    'attack': attack.name,
    'attack_steps': attack.num_steps,
    'attack_restarts': attack.num_restarts,
    'attack_epsilon': epsilon,
    'broken_by': broken,
    **common.provenance(),
  }


def label(config: Config, attack: Attack, checkpoint: str) -> str:
  """The file name of a measurement inside the folder of its run."""
  parts = [attack.name.replace(',', '_')]
  if attack.num_steps:
    parts.append(f'{attack.num_steps}steps')
  if attack.num_restarts > 1:
    parts.append(f'{attack.num_restarts}restarts')
  if attack.epsilon is not None:
    parts.append(f'eps{attack.epsilon:g}')
  if config.eval_examples:
    parts.append(f'{config.eval_examples}examples')
  return '-'.join([*parts, checkpoint])


def evaluate(
  path: pathlib.Path,
  dataset: Dataset,
  attack: Attack,
  *,
  checkpoint: str = 'newest',
  eval_examples: int | None = None,
) -> dict[str, Any]:
  """The record of a saved run under an attack, measured once.

  It is kept in `evaluations/` of the run, whose own result stays, and measured
  again if the run has gone on since.

  Args:
    path: folder of the run.
    checkpoint: 'newest', or 'best' on the held-out examples.
    eval_examples: of each split, 0 for all; None as many as after training.

  Raises:
    ValueError: if it is no run, or the data have changed.
  """
  began, config = time.monotonic(), read(path)
  if config.fingerprint not in (None, dataset.fingerprint):
    raise ValueError(f'{path} was trained on other arrays than {dataset.name}')
  if eval_examples is not None:
    fields = config.to_json() | {'eval_examples': eval_examples}
    config = Config(**fields | {'milestones': config.milestones})
  folder = {'newest': 'checkpoints', 'best': 'best'}[checkpoint]
  step, variables = checkpoints.newest_variables(path / folder)
  state = {'checkpoint': checkpoint, 'step': step, 'finished': False}
  if (path / 'result.json').exists():
    last = common.read_json(path / 'result.json').get('step', step)
    state['finished'] = last == step or checkpoint == 'best'
  if not state['finished']:
    logging.warning('%s: this is its step %d, not its last', path, step)
  output = path / 'evaluations' / f'{label(config, attack, checkpoint)}.json'
  if output.exists():
    found = common.read_json(output)
    if common.difference(found, state) is None:
      logging.info('%s was measured before', output)
      return found
  common.output_folder(output.parent)
  found = record(config, dataset, variables, attack) | state
  found['seconds'] = time.monotonic() - began
  common.write_json(found, output)
  return found
