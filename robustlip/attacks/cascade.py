"""Cascades: attacks in sequence, each on the examples not yet fooled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import chex
import numpy as np

from robustlip import projections
from robustlip.attacks import gradient
from robustlip.attacks.apgd import DLR_CLASSES, apgd
from robustlip.attacks.fab import fab
from robustlip.attacks.square import square
from robustlip.images import check_least

MOST_TARGETS = 9  # AutoAttack's limit: the nine likeliest wrong classes


class Stage(NamedTuple):
  """One attack of a cascade.

  Stages with the same `attack` share one compiled program, which takes their
  settings as arguments.
  """

  name: str
  attack: Callable[..., chex.Array]  # (logits_fn, batch, keys, **settings)
  settings: Mapping[str, chex.Numeric] = {}
  norm: str = 'linf'  # of the ball, if `settings` has its radius `epsilon`
  passes: int = 0  # through the network, for an example that is not fooled


class Attack(NamedTuple):
  """What an entry of `ATTACKS` makes for a number of classes and a norm."""

  attack: Callable[..., chex.Array]  # (logits_fn, batch, keys, *, epsilon)
  passes: int  # forward and backward, at most
  targets: int = 0  # wrong classes that it targets one by one, likeliest first
  draws: bool = True  # whether it is random, so that a restart can help
  ending: str = ''  # suffix of its stages' names


Factory = Callable[..., Attack]  # (num_classes, norm, **{num_steps: ...})


def _pgd(num_classes, norm, num_steps=10):
  del num_classes
  attack = partial(gradient.pgd, norm=norm, num_steps=num_steps)
  return Attack(attack, 2 * num_steps)


def _multi_targeted(num_classes, norm, num_steps=20):
  attack = partial(gradient.targeted, norm=norm, num_steps=num_steps)
  return Attack(attack, 2 * num_steps, num_classes - 1)


def _falling(num_classes, norm, num_steps=20):
  def attack(*arguments, epsilon, **settings):
    step_size = gradient.falling(epsilon, num_steps)
    settings |= dict(epsilon=epsilon, num_steps=num_steps, norm=norm)
    return gradient.targeted(*arguments, step_size=step_size, **settings)

  return Attack(attack, 2 * num_steps, min(MOST_TARGETS, num_classes - 1))


def _apgd(objective, targeted, num_classes, norm, num_steps=100):
  attack = partial(apgd, objective=objective, norm=norm, num_steps=num_steps)
  targets = min(MOST_TARGETS, num_classes - 1) if targeted else 0
  margin = objective == 'dlr' and num_classes < DLR_CLASSES[targeted]
  ending = '_margin' if margin else ''  # DLR is the margin then
  return Attack(attack, 2 * num_steps + 2, targets, ending=ending)


def _fab_targeted(num_classes, norm, num_steps=100):
  attack = partial(fab, norm=norm, num_steps=num_steps)
  targets = min(MOST_TARGETS, num_classes - 1)
  return Attack(attack, 3 * num_steps, targets, draws=False)


def _square(num_classes, norm, num_steps=5000):
  del num_classes
  attack = partial(square, norm=norm, num_queries=num_steps)
  return Attack(attack, num_steps + 1)


ATTACKS: dict[str, Factory] = {
  'pgd': _pgd,
  'multi_targeted': _multi_targeted,
  'targeted_falling': _falling,
  'apgd_ce': partial(_apgd, 'ce', False),
  'apgd_dlr': partial(_apgd, 'dlr', False),
  'apgd_targeted': partial(_apgd, 'dlr', True),
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

  A targeted attack becomes one stage per target, the likeliest first; restarts
  repeat the stages of a random attack. Where there are too few classes for DLR,
  the margin is used instead and the stage's name ends in `_margin`.

  Args:
    names: keys of `ATTACKS` or `SEQUENCES`: one, several, or several in one
      string with commas between them. 'autoattack' is the standard AutoAttack
      of arXiv:2003.01690, 9,721 forward and backward passes for an image of ten
      classes that withstands it all; 'strong' takes 380.
    num_steps: steps or queries of every attack; None is each attack's default.

  Raises:
    ValueError: for an unknown name, or a number out of range.
  """
  projections.check_radius(epsilon, np.zeros(1, np.float32), norm=norm)
  steps = {} if num_steps is None else {'num_steps': num_steps}
  check_least(2, num_classes=num_classes)
  check_least(1, num_restarts=num_restarts, **steps)
  names, stages = _expanded(names), []
  every = [ATTACKS[name](num_classes, norm, **steps) for name in names]
  if num_restarts > 1 and not any(found.draws for found in every):
    raise ValueError(f'{names[0]} draws nothing: it cannot have restarts.')
  for name, found in zip(names, every, strict=True):
    run = _stage_attack(found.attack, found.targets, num_classes)
    count = max(found.targets, 1) * (num_restarts if found.draws else 1)
    for number in range(count):
      settings = {'epsilon': epsilon, 'number': number}
      stage = Stage(name + found.ending, run, settings, norm, found.passes)
      stages.append(stage)
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


def _stage_attack(attack, num_targets, num_classes):
  """The attack of a stage; without targets, `num_targets` is 0."""

  def run(logits_fn, batch, keys, *, epsilon, number):
    gradient.check_num_classes(logits_fn, batch, num_classes)
    keys = projections.other_keys(keys, len(batch.inputs), number)
    settings = {'epsilon': epsilon}
    if num_targets:
      settings['targets'] = gradient.likely_wrong(
        logits_fn(batch.inputs), batch.labels, number % num_targets
      )
    return attack(logits_fn, batch, keys, **settings)

  return run
