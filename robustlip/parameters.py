"""Averages of parameters over the steps, and their adversarial perturbation.

The optimizer keeps the average, as the last part of its chain:

    optimizer = optax.chain(optax.sgd(0.05), parameters.ema(0.999))

This does not change the updates; `training.averaged` gives the network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from robustlip import projections


class Averaged(NamedTuple):
  """What the optimizer keeps of the parameters."""

  count: chex.Array  # int32, updates so far
  average: Any  # like the parameters


def ema(decay: chex.Numeric) -> optax.GradientTransformation:
  """Keeps the exponential moving average of the parameters.

  Update t multiplies the old average by min(decay, (1 + t) / (10 + t)), so that
  a short run forgets the initial parameters too.

  Args:
    decay: in [0, 1), largest weight of the old average.

  Raises:
    ValueError: for a decay out of range, unless it is traced.

  Source: Rebuffi et al. 2021, arXiv:2103.01946; the warm-up is TensorFlow's.
  """
  if not isinstance(decay, jax.core.Tracer) and not 0 <= decay < 1:
    raise ValueError(f'decay must be at least 0 and below 1, got {decay}.')
  return _averaging(lambda t: 1 - jnp.minimum(decay, (1 + t) / (10 + t)))


def swa(first: int, *, every: int = 1) -> optax.GradientTransformation:
  """Keeps the mean of parameters sampled at regular updates (SWA).

  Args:
    first: updates before sampling starts; until then the average is the
      parameters themselves.
    every: updates from one sample to the next; an epoch in the source.

  Raises:
    ValueError: unless `first` is at least 0 and `every` at least 1.

  Source: Izmailov et al. 2018, arXiv:1803.05407.
  """
  if every < 1 or first < 0:
    raise ValueError(
      f'first must be at least 0 and every at least 1, got {first}, {every}.'
    )

  def share(t):
    taken = t // every - first // every
    return jnp.where(taken < 1, 1.0, (t % every == 0) / jnp.maximum(taken, 1))

  return _averaging(share)


def _averaging(
  share: Callable[[chex.Array], chex.Numeric],
) -> optax.GradientTransformation:
  """Keeps an average that gives the parameters after t updates weight share(t).

  In float32 or wider: half precision would lose small weights.
  """

  def init(params):
    average = jax.tree.map(
      lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), params
    )
    return Averaged(jnp.zeros((), jnp.int32), average)

  def update(updates, state, params):
    count = state.count + 1
    average = optax.incremental_update(
      optax.apply_updates(params, updates), state.average, share(count)
    )
    average = optax.tree.cast_like(average, state.average)
    return updates, Averaged(count, average)

  return optax.GradientTransformation(init, update)


def average(opt_state: Any) -> Any | None:
  """The average that the optimizer keeps, None if it keeps none.

  Raises:
    ValueError: if it is not the last part of a chain: later parts would change
      the updates, so that the parameters were other ones than those averaged.
  """

  def is_average(node):
    if type(node) is tuple and any(isinstance(x, Averaged) for x in node[:-1]):
      raise ValueError(
        'an average must be the last part of its optax.chain: '
        'optax.chain(optax.sgd(0.05), parameters.ema(0.999)).'
      )
    return isinstance(node, Averaged)

  nodes = jax.tree.leaves(opt_state, is_leaf=is_average)
  return next((x.average for x in nodes if isinstance(x, Averaged)), None)


def perturbation(params: Any, gradients: Any, *, gamma: chex.Numeric) -> Any:
  """Adversarial weight perturbation (AWP): gamma ||w|| g / ||g|| per kernel.

  0 for parameters with one axis: biases and the scales of BatchNorm.

  Args:
    params: parameters w.
    gradients: of the loss with respect to them.
    gamma: l2 length relative to that of each kernel; 0.01 for AT and 0.005 for
      TRADES in the source.

  Raises:
    ValueError: if gamma is out of range; the moves are NaN where a traced one
      is.

  Source: Wu et al. 2020, arXiv:2004.05884, Eq. (10), one step.
  """
  gamma = projections.check_numbers(gamma, name='awp')

  def one(kernel, gradient):
    if kernel.ndim < 2:
      return jnp.zeros_like(kernel)
    row = gradient.reshape(1, -1)
    direction = projections.normalize_direction(row, norm='l2')
    length = gamma * jnp.linalg.norm(kernel.ravel())
    return length * direction.reshape(kernel.shape)

  return jax.tree.map(one, params, gradients)
