"""FAB: walks along the decision boundary towards the image."""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from robustlip import losses, projections
from robustlip.attacks.gradient import mask_wrong_targets, toward
from robustlip.images import check_images, check_least
from robustlip.types import Batch, LogitsFn

OVERSHOOT = 1.05  # of the step to the boundary, eta in the source
BACKWARD = 0.9  # fraction of the distance left after a step back, beta
MOST_BIAS = 0.1  # largest weight of the step from the image, alpha_max


class Nearest(NamedTuple):
  """The nearest points found that fool the network."""

  points: chex.Array  # [B, ...]; the input where none was found
  distances: chex.Array  # [B]; infinite where none was found


def fab(
  logits_fn: LogitsFn,
  batch: Batch,
  key: chex.PRNGKey,
  *,
  epsilon: chex.Numeric,
  targets: chex.Array,
  norm: str = 'linf',
  **settings,
) -> chex.Array:
  """Points of the ball that FAB finds, [B, H, W, C].

  Returns for each example the first point within `epsilon` that fools the
  network or, if there is none, the nearest one outside, projected onto the
  ball. Stops once all are fooled within `epsilon`. Draws nothing from `key`.

  Args:
    targets: a wrong class for each example, [B], whose boundary is searched.
    **settings: `num_steps` of `nearest_error`.

  Raises:
    ValueError: if a number or a target is out of range; the points are NaN
      where a traced target is.

  Source: Croce and Hein 2020, arXiv:1907.02044, as in AutoAttack.
  """
  del key
  inputs = check_images(batch.inputs)
  enough = projections.check_radius(epsilon, inputs, norm=norm).reshape(-1)
  settings |= dict(targets=targets, enough=enough, norm=norm)
  found = nearest_error(logits_fn, batch._replace(inputs=inputs), **settings)
  return projections.ball(found.points, inputs, epsilon=epsilon, norm=norm)


def nearest_error(
  logits_fn: LogitsFn,
  batch: Batch,
  *,
  targets: chex.Array,
  num_steps: int = 100,
  norm: str = 'linf',
  enough: chex.Numeric = -1.0,
) -> Nearest:
  """The nearest points that FAB finds to fool the network, and their distances.

  For an affine network the distance is within 1 % of the least; a misclassified
  image is its own nearest point. Source and `targets` are those of `fab`; both
  results are NaN for a traced target that is not a wrong class.

  Args:
    num_steps: at least 1.
    enough: distance, [B] or one number, at which the search for an example
      stops; the default never stops it.
  """
  check_least(1, num_steps=num_steps)
  (inputs, labels), shape = batch, batch.inputs.shape
  inputs = projections.flat(check_images(inputs))

  def network(points):
    return logits_fn(points.reshape(shape))

  def slopes(points):
    def margins(points):
      return toward(network(points), labels, targets)

    values, pullback = jax.vjp(margins, points)
    (gradients,) = pullback(jnp.ones_like(values))
    return values, jnp.where(jnp.isfinite(gradients), gradients, 0.0)

  def step(state):
    count, points, best = state
    values, gradients = slopes(points)
    along = (gradients * (inputs - points)).sum(axis=1)
    onward = to_hyperplane(points, gradients, -values, norm=norm)
    direct = to_hyperplane(inputs, gradients, -values - along, norm=norm)
    lengths = [projections.norms(x, norm=norm) for x in (onward, direct)]
    lengths = [jnp.maximum(x, 1e-8) for x in lengths]
    bias = jnp.minimum(lengths[0] / (lengths[0] + lengths[1]), MOST_BIAS)
    bias = projections.per_example(bias, points)
    points = (1 - bias) * (points + OVERSHOOT * onward)
    points += bias * (inputs + OVERSHOOT * direct)
    points = jnp.clip(points, 0.0, 1.0)

    fooled = ~losses.correct(network(points), labels)
    distances = projections.norms(points - inputs, norm=norm)
    nearer = fooled & (distances < best.distances) & (best.distances > enough)
    best = Nearest(
      projections.choose(nearer, points, best.points),
      jnp.where(nearer, distances, best.distances),
    )
    back = inputs + BACKWARD * (points - inputs)
    return count + 1, projections.choose(fooled, back, points), best

  def unfinished(state):
    count, _, best = state
    return (count < num_steps) & (best.distances > enough).any()

  right = losses.correct(network(inputs), labels)
  best = Nearest(inputs, jnp.where(right, jnp.inf, 0.0).astype(inputs.dtype))
  state = jnp.zeros((), jnp.int32), inputs, best
  points, distances = jax.lax.while_loop(unfinished, step, state)[2]
  # XLA may have rounded differently when it measured inside the loop.
  exact = projections.norms(points - inputs, norm=norm)
  distances = jnp.where(jnp.isfinite(distances), exact, distances)
  found = jax.lax.stop_gradient(Nearest(points.reshape(shape), distances))
  return mask_wrong_targets(logits_fn, batch, targets, found)


def to_hyperplane(
  points: chex.Array,
  normals: chex.Array,
  rises: chex.Array,
  *,
  norm: str = 'linf',
) -> chex.Array:
  """The shortest step within the box with normal . step = rise, [B, ...].

  If no such step stays in the box, the one that gets closest to the rise; 0
  where the normal is 0.

  Args:
    points: [B, ...] in the box, where the steps start.
    normals: [B, ...].
    rises: [B], of either sign.
  """
  projections.check_norm(norm)
  shape = points.shape
  points, normals = projections.flat(points), projections.flat(normals)
  largest = projections.norms(normals)
  scale = jnp.where(largest > 0, largest, 1.0)
  normals = normals / projections.per_example(scale, normals)
  rises = rises / scale
  normals *= projections.per_example(jnp.sign(rises), normals)
  weights = jnp.abs(normals)
  rooms = jnp.where(normals > 0, 1.0 - points, points)
  rates = jnp.ones_like(weights) if norm == 'linf' else weights

  def move(lengths):
    return projections.per_example(lengths, points) * rates

  # The rise is concave and piecewise linear in the step's length, so Newton's
  # method from 0 never overshoots and ends on the linear piece of the solution.
  def newton(state):
    lengths, _ = state
    moves = move(lengths)
    missing = jnp.abs(rises) - (weights * jnp.minimum(moves, rooms)).sum(axis=1)
    slopes = jnp.where(moves < rooms, weights * rates, 0.0).sum(axis=1)
    missing = jnp.maximum(missing, 0)  # else rounding may make it oscillate
    gains = jnp.where(slopes > 0, missing / jnp.where(slopes > 0, slopes, 1), 0)
    return lengths + gains, gains

  def unfinished(state):
    lengths, gains = state
    return (gains > 1e-6 * lengths).any()

  lengths = jnp.zeros_like(rises)
  lengths, _ = jax.lax.while_loop(
    unfinished, newton, newton((lengths, lengths))
  )
  steps = jnp.sign(normals) * jnp.minimum(move(lengths), rooms)
  return steps.reshape(shape)
