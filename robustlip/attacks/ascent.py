"""Projected gradient ascent on any objective, without labels or networks."""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from robustlip import projections
from robustlip.images import check_images, check_least
from robustlip.types import Objective

KEEP = ('last', 'best')


def ascend(
  objective: Objective,
  inputs: chex.Array,
  key: chex.PRNGKey,
  *,
  epsilon: chex.Numeric,
  step_size: chex.Numeric | Callable[[chex.Numeric], chex.Numeric],
  num_steps: int,
  norm: str = 'linf',
  start: chex.Array | None = None,
  keep: str = 'last',
  unroll: bool = False,
) -> chex.Array:
  """Points of the ball around `inputs` that ascend `objective`, [B, ...].

  Each step follows the sign of the gradient (l-inf) or the normalised gradient
  (l2) and is projected back. A component of the gradient that is NaN counts as
  zero, so that every point is finite if `inputs` and `start` are.

  Args:
    objective: [B, ...] -> [B], differentiable; it must not mix examples.
    epsilon: radius in units of the pixel range, a number or one per example.
    step_size: like `epsilon`, or a function of the step index (from 0).
    num_steps: number of gradient steps, at least 0.
    norm: 'linf' or 'l2'.
    start: explicit first point, of the shape of the inputs; None draws it
      uniformly from the ball.
    keep: 'last' returns the last iterate, 'best' for each example the iterate
      (the start and the end included) with the highest finite objective.
    unroll: whether to compile unrolled steps instead of a loop. On a CPU this
      is several times as fast for networks that use JAX's own convolutions,
      which those of `models` do not.

  Raises:
    ValueError: if images, `norm`, `keep` or a number are out of range, or the
      objective is not one number an example.

  Source: Madry et al. 2018, arXiv:1706.06083.
  """
  inputs, shape = check_images(inputs), inputs.shape
  check_least(0, num_steps=num_steps)
  if keep not in KEEP:
    raise ValueError(f'keep must be one of {KEEP}, got {keep!r}.')
  if start is None:
    start = projections.random_start(inputs, key, epsilon=epsilon, norm=norm)
  elif start.shape != shape or not jnp.issubdtype(start.dtype, jnp.floating):
    raise ValueError(
      f'start must be floats {shape}, got {start.dtype} {start.shape}.'
    )
  inputs, start = projections.flat(inputs), projections.flat(start)
  points = projections.ball(start, inputs, epsilon=epsilon, norm=norm)

  def length(index):
    size = step_size(index) if callable(step_size) else step_size
    return projections.check_numbers(size, inputs, name='step_size')

  length(0)  # raises an error where it is known to be wrong

  def values_of(points):
    values = objective(points.reshape(shape))
    if values.shape != shape[:1]:
      raise ValueError(f'objective must be {shape[:1]}, got {values.shape}.')
    return values

  def step(index, state):
    points, best = state
    values, pullback = jax.vjp(values_of, points)
    (gradients,) = pullback(jnp.ones_like(values))
    best = _better(best, values, points)
    direction = projections.normalize_direction(gradients, norm=norm)
    moved = points + length(index) * direction
    return projections.ball(moved, inputs, epsilon=epsilon, norm=norm), best

  best = None
  if keep == 'best':
    dtype = jax.eval_shape(values_of, points).dtype
    best = jnp.full_like(points[:, 0], -jnp.inf, dtype), points
  points, best = jax.lax.fori_loop(
    0, num_steps, step, (points, best), unroll=unroll
  )
  if best is not None:
    points = _better(best, values_of(points), points)[1]
  return jax.lax.stop_gradient(points.reshape(shape))


def _better(best, values, points):
  """Keeps, per example, the higher of the value and point seen so far."""
  if best is None:
    return None
  improved = jnp.isfinite(values) & (values > best[0])
  return (
    jnp.where(improved, values, best[0]),
    projections.choose(improved, points, best[1]),
  )
