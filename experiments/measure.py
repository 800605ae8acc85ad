"""What is measured of a network, by which attack, under which name.

A record names a column by what it holds: `adv_test_acc` under the attack that
the record names, `eq3_lipschitz` by the paper's Eq. (3), `released_lipschitz`
by the procedure of the authors' code, the only one that is comparable with the
published column. Both are means over test examples.
"""

import functools
import pathlib
import time
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags, logging

from experiments import common
from experiments.config import Config
from robustlip import (
  attacks,
  bounds,
  doubts,
  evaluation,
  lipschitz,
  models,
  projections,
  released,
)
from robustlip.datasets import Dataset, Split, files

FLAGS = flags.FLAGS


def define() -> None:
  """Defines the flag of all scripts that measure."""
  flags.DEFINE_integer(
    'eval_batch_size',
    100,
    'Examples per batch when measuring; results depend on it only by rounding.',
    1,
  )


def define_certify() -> None:
  """Defines `--certify`."""
  flags.DEFINE_enum(
    'certify',
    '',
    ['', *bounds.METHODS],
    'Also compute certified accuracy, and an upper bound on the Lipschitz '
    'constant, by this method. From left to right tighter and slower; crown '
    'takes seconds per image.',
  )


class Attack(NamedTuple):
  """The attack, and the bounds, to measure with; the record names them."""

  name: str = 'pgd'  # or a cascade of several, see `attacks.cascade`
  num_steps: int | None = None  # None: each attack's own
  num_restarts: int = 1
  epsilons: tuple[float, ...] = ()  # radii; none: the one trained with
  certify: str = ''  # method of `bounds.certified`; '': no bounds
  norm: str = 'linf'

  def radii(self, config: Config) -> tuple[float, ...]:
    """The radii, ascending; columns are of the last, the largest."""
    return tuple(sorted(self.epsilons or (config.epsilon,)))


PGD = Attack()  # ten steps, as the paper measures


class Outcome(NamedTuple):
  """The results of an attack on a split."""

  split: Split
  by_radius: dict[float, evaluation.Attacked]  # the smallest first


def evaluator(
  config: Config, dataset: Dataset, attack: Attack
) -> evaluation.Evaluator:
  """Compiled measurements for networks trained with `config`.

  Raises:
    ValueError: for an attack that is unknown, or of l2 with a radius or bounds
      that are of l-inf.
  """
  if attack.norm == 'l2' and (not attack.epsilons or attack.certify):
    raise ValueError('--norm=l2 needs --epsilon and has no --certify')
  num_classes = len(dataset.class_names)
  return _evaluator(
    config.network(num_classes),
    num_classes,
    attack._replace(epsilons=attack.radii(config)),
    FLAGS.eval_batch_size,
  )


@functools.lru_cache(maxsize=4)  # runs of one network share programs
def _evaluator(module, num_classes, attack, batch_size):
  epsilon = attack.epsilons[-1]
  estimates = {
    'eq3': lipschitz.estimate,
    'released': released.lipschitz_estimate,
  }
  if attack.norm != 'linf':  # the constants are defined in an l-inf ball
    estimates = {}
  if attack.certify:  # `certificates` has it at every radius
    del estimates['eq3']

  def ratios(estimate, *args):
    return estimate(*args, epsilon=epsilon).ratios

  return evaluation.Evaluator(
    partial(models.logits_fn, module),
    cascade=attacks.cascade(
      attack.name,
      epsilon=epsilon,
      num_classes=num_classes,
      norm=attack.norm,
      num_steps=attack.num_steps,
      num_restarts=attack.num_restarts,
    ),
    ratios={name: partial(ratios, how) for name, how in estimates.items()},
    batch_size=batch_size,
  )


def key(config: Config) -> jax.Array:
  """The key of all measurements of a run, apart from those of training."""
  key = projections.threefry(jax.random.key(config.seed))
  return jax.random.fold_in(key, 2**31)


def take(split: Split, chosen: np.ndarray) -> Split:
  """The examples at these indices, in the order of the split."""
  chosen = np.sort(chosen)
  return Split(split.images[chosen], split.labels[chosen])


def subset(split: Split, count: int) -> Split:
  """`count` examples drawn without replacement; all if `count` is 0."""
  if not 0 < count < len(split.labels):
    return split
  order = np.random.default_rng(0).permutation(len(split.labels))
  return take(split, order[:count])


def training_split(config: Config, dataset: Dataset) -> tuple[Split, Split]:
  """The examples to train on, and the held-out ones (none without `holdout`).

  They are the same for every seed.

  Raises:
    ValueError: if `train_examples` cannot be equally many of each class.
  """
  split = dataset.train if config.train_on == 'train' else dataset.both
  if config.train_examples:
    share, rest = divmod(config.train_examples, len(dataset.class_names))
    classes = (split.labels == label for label in np.unique(split.labels))
    firsts = np.concatenate([np.flatnonzero(x)[:share] for x in classes])
    if rest or len(firsts) < config.train_examples:
      raise ValueError(
        f'--train_examples={config.train_examples} are no equal shares of '
        f'{len(dataset.class_names)} classes that {dataset.name} has: a '
        f'multiple of {len(dataset.class_names)} is, if every class has as many'
      )
    split = take(split, firsts)
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


def under_attack(
  config: Config,
  dataset: Dataset,
  variables: Any,
  attack: Attack,
  *,
  began: float = 0.0,
  partial_file: pathlib.Path | None = None,
  keep_points: bool = False,
) -> dict[str, Outcome]:
  """Attacks the measured examples of both splits, at each radius.

  Args:
    began: start by `time.monotonic`, less the time before an interruption.
    partial_file: beginning of the names of files that keep finished stages, so
      that an interrupted cascade is resumed; one network each.
    keep_points: whether to keep the adversarial images.
  """
  measures, outcomes = evaluator(config, dataset, attack), {}
  for name, split in measured(config, dataset).items():
    outcomes[name], done = Outcome(split, {}), None
    for epsilon in attack.radii(config):
      file = partial_file and partial_file.with_name(
        f'{partial_file.name}-{name}-{epsilon:g}.npz'
      )
      outcome = measures.accuracies(
        variables,
        split,
        key(config),
        name=name,
        epsilon=epsilon,
        keep_points=keep_points,
        done=_saved(file, keep_points) or done,
        save=file and partial(_save, file, began),
      )
      outcomes[name].by_radius[epsilon], done = outcome, (0, outcome)
  return outcomes


def _save(file: pathlib.Path, began: float, place: int, attacked) -> None:
  if jax.process_index():
    return  # process 0 has it all
  arrays = {k: v for k, v in attacked._asdict().items() if v is not None}
  arrays |= {'place': place, 'seconds': time.monotonic() - began}
  with common.whole(file) as opened:
    np.savez(opened, **arrays)


def seconds_before(partial_file: pathlib.Path) -> float:
  """Seconds spent on an interrupted cascade up to its last saved stage."""
  found = partial_file.parent.glob(f'{partial_file.name}-*.npz')
  spent = (_stages(file).get('seconds', 0.0) for file in found)
  return max(map(float, spent), default=0.0)


def _stages(file: pathlib.Path) -> dict[str, np.ndarray]:
  """What `_save` wrote."""
  with files.expect(file, 'stages of a cascade; delete it to begin anew'):
    return dict(np.load(file))


def _saved(file: pathlib.Path | None, keep_points: bool):
  """(number of stages done, their result), None if there is no usable file."""
  if file is None or not file.exists():
    return None
  arrays = _stages(file)
  place = int(arrays.pop('place'))
  arrays.pop('seconds', None)  # version 0.2 began to keep them
  if keep_points and 'points' not in arrays:
    return None
  logging.info('Going on after %d stages in %s', place, file)
  return place, evaluation.Attacked(**arrays)


def certificates(
  config: Config,
  dataset: Dataset,
  variables: Any,
  attack: Attack,
  outcome: Outcome,
) -> dict[str, Any]:
  """Bounds for a split that was attacked: accuracy and Lipschitz constant.

  Each method up to the one asked for is tried on the examples that those before
  it did not certify. Radii go from the largest down: an example certified there
  is certified in smaller balls too.

  Raises:
    ArithmeticError: if an example is certified and was broken, or a lower
      bound exceeds an upper one: one of the two is wrong.
  """
  module, split = config.network(len(dataset.class_names)), outcome.split

  def certified(method, variables, batch, keys, epsilon):
    del keys
    logits_fn = models.logits_fn(module, variables)
    return bounds.certified(logits_fn, batch, epsilon=epsilon, method=method)

  def slopes(variables, batch, keys, epsilon):
    given = models.logits_fn(module, variables), batch.inputs
    lower = lipschitz.estimate(*given, keys, epsilon=epsilon).ratios
    tighten = attack.certify == 'crown'
    upper = lipschitz.upper_bound(*given, epsilon=epsilon, tighten=tighten)
    return lower, upper

  names = bounds.METHODS[: bounds.METHODS.index(attack.certify) + 1]
  programs = {
    name: evaluation.over_devices(partial(certified, name)) for name in names
  }
  programs['Lipschitz'] = evaluation.over_devices(slopes)

  def bounded(name, epsilon, indices=None):
    # CROWN works example by example anyway: show progress after each.
    in_turn = attack.certify == 'crown' and name in ('crown', 'Lipschitz')
    return evaluation.per_example(
      programs[name],
      *(variables, split, key(config)),
      batch_size=1 if in_turn else FLAGS.eval_batch_size,
      indices=indices,
      settings={'epsilon': epsilon},
      description=f'{name} bounds at {epsilon:g}',
    )

  sure, taken, found = np.zeros(len(split.labels), bool), {}, {}
  for epsilon in reversed(attack.radii(config)):
    attacked = outcome.by_radius[epsilon]
    for name in names:
      slow = name in ('alpha', 'crown')  # what was broken is not tried
      candidates = attacked.robust if slow else attacked.correct
      rest = np.flatnonzero(candidates & ~sure)
      if len(rest):
        sure[rest] = bounded(name, epsilon, rest)
      taken.setdefault(name, int(sure[rest].sum()))  # at the largest radius
    lower, upper = bounded('Lipschitz', epsilon)
    _check_order(sure, attacked, lower, upper, epsilon)
    found[f'{epsilon:g}'] = {
      'certified_test_acc': evaluation.percent(sure),
      'eq3_lipschitz': float(lower.mean(dtype=np.float64)),
      'upper_lipschitz': float(upper.mean(dtype=np.float64)),
    }
  largest = next(iter(found.values()))
  if len(found) > 1:
    for name in tuple(largest):
      curve = {radius: x[name] for radius, x in reversed(found.items())}
      largest |= {f'{name}_at': curve}
  return largest | {'certified_by': taken}


def _check_order(sure, attacked, lower, upper, epsilon) -> None:
  """Raises ArithmeticError where certified > robust or lower > upper."""
  # Rounding makes the ratio arbitrarily large as x' approaches x.
  slack = 1e-3 * upper + 1e-5 / max(epsilon, 1e-9)
  wrong = {
    'are certified and broken': sure & ~attacked.robust,
    'have a lower Lipschitz bound above the upper one': lower > upper + slack,
  }
  for what, examples in wrong.items():
    if examples.any():
      raise ArithmeticError(f'{examples.sum()} examples {what}')


def record(
  config: Config,
  dataset: Dataset,
  variables: Any,
  attack: Attack = PGD,
  *,
  outcomes: dict[str, Outcome] | None = None,
) -> dict[str, Any]:
  """Everything measured of a network, with the settings behind it.

  Args:
    outcomes: what `under_attack` gave, None to call it.
  """
  outcomes = outcomes or under_attack(config, dataset, variables, attack)
  measures = evaluator(config, dataset, attack)
  found: dict[str, Any] = {}
  for name, (split, by_radius) in outcomes.items():
    *_, last = by_radius.values()
    found[f'measured_{name}'] = len(split.labels)
    found[f'{name}_acc'] = evaluation.percent(last.correct)
    found[f'adv_{name}_acc'] = evaluation.percent(last.robust)
    if len(by_radius) > 1:
      found[f'adv_{name}_acc_at'] = {
        f'{epsilon:g}': evaluation.percent(outcome.robust)
        for epsilon, outcome in by_radius.items()
      }
    found[f'broken_{name}'] = evaluation.taken(last, measures.cascade)
    if len(by_radius) == 1:  # else `last` mixes the stages of several calls
      found[f'passes_{name}'] = evaluation.passes(last, measures.cascade)
  found['gap'] = found['train_acc'] - found['test_acc']
  found['adv_gap'] = found['adv_train_acc'] - found['adv_test_acc']
  test, radius = outcomes['test'], attack.radii(config)[-1]
  ratios = measures.lipschitz(variables, test.split, key(config), name='test')
  for name, values in ratios.items():
    found[f'{name}_lipschitz'] = float(values.mean(dtype=np.float64))
  if attack.certify:
    found |= certificates(config, dataset, variables, attack, test)
  return {
    **config.to_json(),
    **found,
    'attack': attack.name,
    'attack_steps': attack.num_steps,
    'attack_restarts': attack.num_restarts,
    'attack_norm': attack.norm,
    'attack_epsilon': radius,
    'doubts': doubted(
      config, dataset, variables, test.by_radius[radius], measures.cascade
    ),
    **common.provenance(),
  }


def doubted(
  config: Config,
  dataset: Dataset,
  variables: Any,
  attacked: evaluation.Attacked,
  cascade: tuple[attacks.Stage, ...],
) -> dict[str, float]:
  """Reasons to doubt these numbers, each logged as a warning; {} if none."""
  found = doubts.facts(
    partial(models.logits_fn, config.network(len(dataset.class_names))),
    variables,
    subset(dataset.test, 100),
    key(config),
    attacked=attacked,
    cascade=cascade,
    batch_size=FLAGS.eval_batch_size,
  )
  found = {name: share for name, share in found.items() if share}
  for name, share in found.items():
    logging.warning('%s %.4g: %s', name, share, doubts.ADVICE[name])
  return found
