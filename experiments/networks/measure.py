"""What is measured of a trained network, by which attack, under which name."""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from absl import flags

from experiments import provenance
from experiments.networks.config import Config
from robustlip import attacks, evaluation, lipschitz, models, released
from robustlip.datasets import Dataset, Split

EVAL_BATCH_SIZE = flags.DEFINE_integer(
  'eval_batch_size',
  None,
  'Examples to a dispatch when measuring; but for rounding no result depends '
  'on it. Default: as many as have features that fit the memory of the device, '
  'or the cache of a CPU.',
  lower_bound=1,
)
EVAL_EXAMPLES = flags.DEFINE_integer(
  'eval_examples',
  None,
  'Examples of each split measured at the end, drawn at random; 0 for all. '
  'Default: all; 500 in `tables --preset=quick`; in `evaluate` as many as were '
  'after training.',
  lower_bound=0,
)
ATTACKS = ('pgd', 'multi_targeted')
LIPSCHITZ = {
  'text': 'Eq. (3): best of 10 ascending sign steps of epsilon / 5',
  'reference': 'released procedure: last of 10 descending sign steps of 0.003, '
  'comparable with the published column',
}


class Attack(NamedTuple):
  """An attack by name, with the numbers that the record states."""

  name: str = 'pgd'
  num_steps: int = 10
  num_restarts: int = 1
  epsilon: float | None = None  # None: the radius trained with
  protocol: str | None = None  # None: that of training

  def radius(self, config: Config) -> float:
    """Radius of the attack."""
    return config.epsilon if self.epsilon is None else self.epsilon

  def definitions(self, config: Config) -> str:
    """Whose attack and Lipschitz procedure: `text` or `reference`."""
    return self.protocol or config.protocol

  def attempts(self, config: Config, num_classes: int) -> tuple[int, int]:
    """Restarts or targets of an example: (attempts apart, points at once).

    The released `multi_targeted` compares its targets and needs all of them.
    """
    if self.name == 'pgd':
      return self.num_restarts, 1
    if self.definitions(config) == 'reference':
      return 1, num_classes - 1
    return num_classes - 1, 1

  def maximizer(self, config: Config, num_classes: int):
    """The attack as a function of a network and a batch.

    Raises:
      ValueError: for restarts of an attack that has none.
    """
    epsilon = self.radius(config)
    if self.name != 'pgd' and self.num_restarts > 1:
      raise ValueError(f'--num_restarts means nothing to --attack={self.name}')
    if self.name == 'pgd':
      return partial(
        attacks.pgd,
        epsilon=epsilon,
        num_steps=self.num_steps,
        num_restarts=self.num_restarts,
      )
    sources = {'text': attacks, 'reference': released}
    source = sources[self.definitions(config)]
    return partial(
      source.multi_targeted,
      epsilon=epsilon,
      num_steps=self.num_steps,
      num_classes=num_classes,
    )


def evaluator(
  config: Config, dataset: Dataset, attack: Attack
) -> evaluation.Evaluator:
  """Compiled measurements for networks trained with `config`."""
  epsilon = attack.radius(config)
  source = {
    'text': lipschitz.estimate,
    'reference': released.lipschitz_estimate,
  }[attack.definitions(config)]
  module, num_classes = network(config, dataset), len(dataset.class_names)
  attempts, copies = attack.attempts(config, num_classes)
  shape = dataset.test.images.shape[1:]
  return evaluation.Evaluator(
    partial(models.logits_fn, module),
    attack=attack.maximizer(config, num_classes),
    attempts=attempts,
    ratios=lambda *args: source(*args, epsilon=epsilon).ratios,
    batch_size=EVAL_BATCH_SIZE.value
    or evaluation.fitting_batch_size(module, shape, copies=copies),
  )


def network(config: Config, dataset: Dataset) -> nn.Module:
  """The Linen module that `config` names, for the classes of the data."""
  return models.build(
    config.arch,
    len(dataset.class_names),
    dropout_rate=config.dropout,
    dtype=config.precision,
    remat=config.remat,
  )


def subset(split: Split, count: int) -> Split:
  """`count` examples drawn without replacement; all if `count` is 0."""
  if not 0 < count < len(split.labels):
    return split
  chosen = np.random.default_rng(0).permutation(len(split.labels))[:count]
  chosen = np.sort(chosen)
  return Split(split.images[chosen], split.labels[chosen])


def hold_out(split: Split, count: int) -> tuple[Split, Split]:
  """(the rest, `count` examples drawn without replacement); 0 is no split.

  The draw is the same for every run, since runs that train together share it.
  """
  if count == 0:
    return split, split
  order = np.random.default_rng([0, 1]).permutation(len(split.labels))
  held, rest = np.sort(order[:count]), np.sort(order[count:])
  return (
    Split(split.images[rest], split.labels[rest]),
    Split(split.images[held], split.labels[held]),
  )


def training_split(config: Config, dataset: Dataset) -> tuple[Split, Split]:
  """What is trained on, and the held-out part."""
  split = dataset.train
  if config.train_on == 'train+test':
    split = dataset.both
  return hold_out(split, config.holdout)


def measured(config: Config, dataset: Dataset) -> dict[str, Split]:
  """The examples that the columns `train` and `test` are measured on."""
  train, _ = hold_out(dataset.train, config.holdout)
  return {
    'train': subset(train, config.eval_examples),
    'test': subset(dataset.test, config.eval_examples),
  }


def key(config: Config) -> jax.Array:
  """The key of all measurements of a run, apart from those of training."""
  return jax.random.fold_in(jax.random.key(config.seed), 2**31)


def describe(config: Config, attack: Attack) -> dict[str, Any]:
  """What the numbers of a record mean."""
  return {
    'attack': attack.name,
    'attack_steps': attack.num_steps,
    'attack_restarts': attack.num_restarts,
    'attack_epsilon': attack.radius(config),
    'attack_protocol': attack.definitions(config),
    'lipschitz_definition': LIPSCHITZ[attack.definitions(config)],
  }


def record(
  config: Config,
  dataset: Dataset,
  variables: Any,
  evaluator: evaluation.Evaluator,
  attack: Attack,
) -> dict[str, Any]:
  """Everything measured of a network, with the settings behind it."""
  splits = measured(config, dataset)
  outcomes = {
    name: evaluator(variables, split, key(config), name=name)
    for name, split in splits.items()
  }
  return {
    **config.to_json(),
    **evaluation.summary(**outcomes),
    'measured_train': len(splits['train'].labels),
    'measured_test': len(splits['test'].labels),
    **describe(config, attack),
    **provenance.record(),
  }
