"""Reasons to doubt an evaluation: facts about a network, and advice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from robustlip import attacks, losses, projections
from robustlip.attacks import Stage
from robustlip.datasets import Split
from robustlip.evaluation import Attacked, over_devices, per_example
from robustlip.types import LogitsFn

MANY_IMAGES = 0.05  # fraction from which `no_rise` and `more_steps` count
# Fact -> what it means and what to do, where it is not 0.
ADVICE = {
  'zero_gradients': 'share of images whose input gradient is exactly 0: '
  'gradient attacks do not move there; trust a gradient-free one (square), or '
  'wrap the step without a gradient in attacks.straight_through.',
  'nonfinite_gradients': 'share of images whose logits are finite and whose '
  'input gradient is not: fix the function (a jnp.where before the unsafe '
  'step); attacks use the rest of the gradient.',
  'probabilities': 'the outputs are probabilities: measure the logits, whose '
  'gradients do not vanish where the network is certain.',
  'randomness': 'largest change of a logit between two calls on the same '
  'images: fix the PRNG key, and attack the mean over other keys '
  '(attacks.expected).',
  'mixed_examples': 'largest change of a logit when other images of its batch '
  'change: put the network into inference mode (BatchNorm).',
  'half_precision': 'the logits are computed in half precision: ratios and '
  'margins are those of its rounding.',
  'gradient_free': 'share of images that only a gradient-free attack fooled: '
  'the gradients mislead the others; robust accuracy may be lower still.',
  'no_rise': 'share of images with gradients on which PGD ends no higher than '
  'its random start, after any number of steps: the gradients mislead; attack '
  'a smoother stand-in for the network, or without gradients (square).',
  'more_steps': 'share of images that 40 steps of PGD fool and 10 do not: 10 '
  'are too few here; attack with more steps, or with apgd_ce.',
}


def facts(
  network: Callable[[Any], LogitsFn],
  variables: Any,
  split: Split,
  key: chex.PRNGKey,
  *,
  attacked: Attacked | None = None,
  cascade: Sequence[Stage] = (),
  batch_size: int = 100,
) -> dict[str, float]:
  """Facts that make an evaluation doubtful; 0 if a fact gives no reason to.

  Args:
    network: as in an `Evaluator`.
    split: examples to look at; a hundred are enough.
    attacked: the result of the cascade, on any split.
    cascade: its stages.

  Returns:
    A number for each key of `ADVICE`, except for `gradient_free` unless
    `attacked` is given and the cascade begins with a gradient attack, and for
    `no_rise` and `more_steps` (0 below `MANY_IMAGES`), which take longer,
    unless the cascade has several stages and a radius.
  """
  measure = partial(
    per_example,
    variables=variables,
    split=split,
    key=key,
    batch_size=max(batch_size, 2),  # an example alone is mixed with no other
    description='doubts',
  )
  look = over_devices(partial(_example_facts, network))
  first, again = measure(look), measure(look)
  found = {
    name: float(first[name].mean())
    for name in ('zero_gradients', 'nonfinite_gradients')
  }
  found['probabilities'] = float(first['probabilities'].all())
  logits = first['logits']
  found['randomness'] = _change(logits, again['logits'])
  mixed = _change(logits, first['beside_others'])
  scale = np.abs(logits[np.isfinite(logits)]).max(initial=0)
  is_rounding = found['randomness'] or mixed <= 0.01 * scale
  found['mixed_examples'] = 0.0 if is_rounding else mixed
  found['half_precision'] = float(logits.dtype.itemsize < 4)
  if attacked is not None and cascade and cascade[0].name != 'square':
    last = max(i for i, stage in enumerate(cascade) if stage.name != 'square')
    found['gradient_free'] = float((attacked.broken_by > last).mean())
  radius = cascade[0].settings.get('epsilon', 0) if len(cascade) > 1 else 0
  if radius > 0:
    values, right = measure(
      over_devices(partial(_pgd_curves, network, cascade[0].norm)),
      settings={'epsilon': radius},
    )
    misled = (values[:, 1:].max(axis=1) <= values[:, 0]) & ~(
      first['zero_gradients'] | first['nonfinite_gradients']
    )
    late = right[:, :2].all(axis=1) & ~right.all(axis=1)
    shares = {'no_rise': misled.mean(), 'more_steps': late.mean()}
    found |= {k: float(v * (v >= MANY_IMAGES)) for k, v in shares.items()}
  return found


def _example_facts(network, variables, batch, keys):
  """For each example three facts, its logits, and those in another batch."""
  del keys

  def objective(inputs):
    logits = network(variables)(inputs)
    return losses.log_odds(logits, batch.labels).sum(), logits

  gradients, logits = jax.grad(objective, has_aux=True)(batch.inputs)
  flat = gradients.reshape(len(gradients), -1)
  sums = logits.astype(jnp.float32).sum(axis=-1)
  half = len(flat) // 2
  other_batch = batch.inputs.at[half:].set(1 - batch.inputs[half:])
  beside = network(variables)(other_batch)[:half]
  return {
    'zero_gradients': (flat == 0).all(axis=1),
    'nonfinite_gradients': ~jnp.isfinite(flat).all(axis=1)
    & ~jnp.isnan(logits).any(axis=-1)
    & (logits < jnp.inf).all(axis=-1),
    'probabilities': (logits >= 0).all(axis=-1) & (abs(sums - 1) < 1e-3),
    'logits': logits,
    'beside_others': logits.at[:half].set(beside),
  }


def _change(logits: np.ndarray, others: np.ndarray) -> float:
  """The largest difference; equal infinities and NaNs do not differ."""
  same = (logits == others) | (np.isnan(logits) & np.isnan(others))
  before, after = (np.where(same, 0, x) for x in (logits, others))
  return float(np.abs(before - after).max())


def _pgd_curves(network, norm, variables, batch, keys, *, epsilon):
  """Log odds and correctness after 0, 10, ... 40 steps of PGD, [B, 5] each."""
  logits_fn = network(variables)
  settings = dict(epsilon=epsilon, norm=norm)

  def ten_steps(points, _):
    logits = logits_fn(points)
    onward = attacks.pgd(logits_fn, batch, keys, start=points, **settings)
    return onward, (
      losses.log_odds(logits, batch.labels),
      losses.correct(logits, batch.labels),
    )

  start = projections.random_start(batch.inputs, keys, **settings)
  _, found = jax.lax.scan(ten_steps, start, length=5)
  return jax.tree.map(jnp.transpose, found)
