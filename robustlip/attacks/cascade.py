"""Cascades: attacks in turn, each given only the examples that still stand."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import chex
import numpy as np

from robustlip import projections
from robustlip.attacks import gradient
from robustlip.attacks.apgd import apgd
from robustlip.attacks.fab import fab
from robustlip.attacks.square import square

MOST_TARGETS = 9  # likeliest wrong classes, in AutoAttack


class Stage(NamedTuple):
  """One attack of a cascade.

  Stages with the same `attack` share one compiled program, to which their
  settings are arguments.
  """

  name: str
  attack: Callable[..., chex.Array]  # (logits_fn, batch, keys, **settings)
  settings: Mapping[str, chex.Numeric] = {}
  norm: str = 'linf'  # of the ball whose radius `settings` may have


class Attack(NamedTuple):
  """What a name of `ATTACKS` stands for."""

  attack: Callable[..., chex.Array]  # (logits_fn, batch, keys, *, epsilon)
  targets: int = 0  # likeliest wrong classes that it takes, in turn
  draws: bool = True  # whether a restart does anything new


# (num_classes, norm, steps), steps either {} or {num_steps: ...}.
Factory = Callable[[int, str, dict[str, int]], Attack]


def _multi_targeted(num_classes, norm, steps):
  return Attack(partial(gradient.targeted, norm=norm, **steps), num_classes - 1)


def _falling(num_classes, norm, steps):
  num_steps = steps.get('num_steps', 20)

  def attack(logits_fn, batch, keys, *, epsilon, targets):
    return gradient.targeted(
      logits_fn,
      batch,
      keys,
      targets=targets,
      epsilon=epsilon,
      num_steps=num_steps,
      step_size=gradient.falling(epsilon, num_steps),
      norm=norm,
    )

  return Attack(attack, min(MOST_TARGETS, num_classes - 1))


def _apgd_targeted(num_classes, norm, steps):
  attack = partial(apgd, objective='dlr', norm=norm, **steps)
  return Attack(attack, min(MOST_TARGETS, num_classes - 1))


def _fab_targeted(num_classes, norm, steps):
  attack = partial(fab, norm=norm, **steps)
  return Attack(attack, min(MOST_TARGETS, num_classes - 1), draws=False)


def _square(num_classes, norm, steps):
  queries = steps.get('num_steps', 5000)
  return Attack(partial(square, norm=norm, num_queries=queries))


ATTACKS: dict[str, Factory] = {
  'pgd': lambda _, norm, steps: Attack(
    partial(gradient.pgd, norm=norm, **steps)
  ),
  'multi_targeted': _multi_targeted,
  'targeted_falling': _falling,
  'apgd_ce': lambda _, norm, steps: Attack(partial(apgd, norm=norm, **steps)),
  'apgd_dlr': lambda _, norm, steps: Attack(
    partial(apgd, objective='dlr', norm=norm, **steps)
  ),
  'apgd_targeted': _apgd_targeted,
  'fab_targeted': _fab_targeted,
  'square': _square,
}
AUTOATTACK = ('apgd_ce', 'apgd_targeted', 'fab_targeted', 'square')
SEQUENCES: dict[str, tuple[str, ...]] = {
  'autoattack': AUTOATTACK,
  'strong': ('pgd', 'targeted_falling'),
}


def cascade(
  names: str | Sequence[str],
  *,
  epsilon: chex.Numeric,
  num_classes: int,
  norm: str = 'linf',
  num_steps: int | None = None,
  num_restarts: int = 1,
) -> tuple[Stage, ...]:
  """The stages of attacks in the order of their names.

  A targeted attack is one stage for each target, the likeliest first; an attack
  with restarts is one stage (or as many as it has targets) for each.

  Args:
    names: keys of `ATTACKS` or `SEQUENCES`: one, several, or several in one
      string with commas between them. 'autoattack' is the standard AutoAttack
      of arXiv:2003.01690, 1,900 gradients and 6,000 values of the network for
      an image of ten classes that withstands it all; 'strong' takes 190
      gradients.
    num_steps: steps or queries of every attack; None is each one's own.

  Raises:
    ValueError: for an unknown name, or a number out of range.
  """
  projections.check_radius(epsilon, np.zeros(1, np.float32), norm=norm)
  for name, value, least in (
    ('num_classes', num_classes, 2),
    ('num_restarts', num_restarts, 1),
    ('num_steps', 1 if num_steps is None else num_steps, 1),
  ):
    if value < least:
      raise ValueError(f'{name} must be at least {least}, got {value}.')
  steps = {} if num_steps is None else {'num_steps': num_steps}
  stages = []
  for name in _expanded(names):
    attack, targets, draws = ATTACKS[name](num_classes, norm, steps)
    run = _targeted(attack, targets) if targets else _untargeted(attack)
    count = max(targets, 1) * (num_restarts if draws else 1)
    stages += [
      Stage(name, run, {'epsilon': epsilon, 'number': number}, norm)
      for number in range(count)
    ]
  return tuple(stages)


def _expanded(names):
  if isinstance(names, str):
    names = names.split(',')
  expanded = []
  for name in map(str.strip, names):
    expanded += SEQUENCES.get(name, (name,))
  if not expanded:
    raise ValueError('no attack is named.')
  unknown = [name for name in expanded if name not in ATTACKS]
  if unknown:
    raise ValueError(
      f'unknown attack {", ".join(map(repr, unknown))}; there are '
      f'{", ".join([*ATTACKS, *SEQUENCES])}.'
    )
  return expanded


def _untargeted(attack):
  def run(logits_fn, batch, keys, *, epsilon, number):
    keys = gradient.restart_keys(keys, batch, number)
    return attack(logits_fn, batch, keys, epsilon=epsilon)

  return run


def _targeted(attack, num_targets):
  def run(logits_fn, batch, keys, *, epsilon, number):
    keys = gradient.restart_keys(keys, batch, number)
    targets = gradient.likely_wrong(
      logits_fn(batch.inputs), batch.labels, number % num_targets
    )
    return attack(logits_fn, batch, keys, epsilon=epsilon, targets=targets)

  return run
