"""FAB: walks along the decision boundary towards the image."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from robustlip import losses, projections
from robustlip.attacks.gradient import toward
from robustlip.images import check_images
from robustlip.types import Batch, LogitsFn

OVERSHOOT = 1.05  # of the step to the boundary, eta in the source
BACKWARD = 0.9  # share of the way from the image that is kept, beta
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
  num_steps: int = 100,
  norm: str = 'linf',
  start: chex.Array | None = None,
) -> chex.Array:
  """Points of the ball that FAB finds, [B, H, W, C].

  For each example the first point within `epsilon` that fools the network;
  where none does, the nearest one that does, cut to the ball. It ends when
  every example is fooled within its ball. Nothing is drawn.

  Args:
    targets: a wrong class for each example, [B], whose boundary is searched.
    start: explicit first point; None is the input.

  Raises:
    ValueError: if a number or a target is out of range.

  Source: Croce and Hein 2020, arXiv:1907.02044, as in AutoAttack.
  """
  del key
  inputs = check_images(batch.inputs)
  radius = projections.check_radius(epsilon, inputs, norm=norm)
  found = _search(
    logits_fn,
    batch._replace(inputs=inputs),
    targets,
    radius=jnp.broadcast_to(radius.reshape(-1), len(inputs)),
    num_steps=num_steps,
    norm=norm,
    start=inputs if start is None else start,
  )
  return projections.ball(found.points, inputs, epsilon=epsilon, norm=norm)


def nearest_error(
  logits_fn: LogitsFn,
  batch: Batch,
  *,
  targets: chex.Array,
  num_steps: int = 100,
  norm: str = 'linf',
) -> Nearest:
  """The nearest points that FAB finds to fool the network, and how far.

  Args and source as those of `fab`; exact where the network is affine.
  """
  inputs = check_images(batch.inputs)
  return _search(
    logits_fn,
    batch._replace(inputs=inputs),
    targets,
    radius=jnp.full(len(inputs), -1.0, inputs.dtype),
    num_steps=num_steps,
    norm=norm,
    start=inputs,
  )


def _search(
  logits_fn, batch, targets, *, radius, num_steps, norm, start
) -> Nearest:
  """Searches until a point within the radius [B] fools the network."""
  inputs, labels = batch

  def slopes(points):
    def margins(points):
      return toward(logits_fn(points), labels, targets)

    values, pullback = jax.vjp(margins, points)
    (gradients,) = pullback(jnp.ones_like(values))
    return values, jnp.where(jnp.isfinite(gradients), gradients, 0.0)

  def step(state):
    count, points, best = state
    values, gradients = slopes(points)
    along = (gradients * (inputs - points)).reshape(len(inputs), -1).sum(axis=1)
    onward = to_hyperplane(points, gradients, -values, norm=norm)
    direct = to_hyperplane(inputs, gradients, -values - along, norm=norm)
    lengths = [projections.norms(x, norm=norm) for x in (onward, direct)]
    lengths = [jnp.maximum(x, 1e-8) for x in lengths]
    bias = jnp.minimum(lengths[0] / (lengths[0] + lengths[1]), MOST_BIAS)
    bias = projections.per_example(bias, points)
    points = (1 - bias) * (points + OVERSHOOT * onward)
    points += bias * (inputs + OVERSHOOT * direct)
    points = jnp.clip(points, 0.0, 1.0)

    fooled = ~losses.correct(logits_fn(points), labels)
    distances = projections.norms(points - inputs, norm=norm)
    nearer = fooled & (distances < best.distances) & (best.distances > radius)
    best = Nearest(
      projections.choose(nearer, points, best.points),
      jnp.where(nearer, distances, best.distances),
    )
    back = inputs + BACKWARD * (points - inputs)
    return count + 1, projections.choose(fooled, back, points), best

  def unfinished(state):
    count, _, best = state
    return (count < num_steps) & (best.distances > radius).any()

  best = Nearest(inputs, jnp.full(len(inputs), jnp.inf, inputs.dtype))
  state = jnp.zeros((), jnp.int32), jnp.clip(start, 0.0, 1.0), best
  return jax.lax.stop_gradient(jax.lax.while_loop(unfinished, step, state)[2])


def to_hyperplane(
  points: chex.Array,
  normals: chex.Array,
  rises: chex.Array,
  *,
  norm: str = 'linf',
) -> chex.Array:
  """The shortest step in the box along which normal . step = rise, [B, ...].

  As far as the box allows where the rise is out of reach; 0 where the normal
  is 0.

  Args:
    points: where the step starts, in the box.
    normals: [B, ...].
    rises: [B], of either sign.
  """
  projections.check_norm(norm)
  largest = projections.norms(normals)
  scale = jnp.where(largest > 0, largest, 1.0)
  normals = normals / projections.per_example(scale, normals)
  rises = rises / scale
  normals *= projections.per_example(jnp.sign(rises), normals)
  direction = jnp.sign(normals) if norm == 'linf' else normals

  def move(lengths):
    moved = points + projections.per_example(lengths, points) * direction
    return jnp.clip(moved, 0.0, 1.0) - points

  def below(lengths):
    reached = (normals * move(lengths)).reshape(len(points), -1).sum(axis=1)
    return reached <= jnp.abs(rises)

  # No distance in the box is above 1; a component of an l2 step of length s
  # is s times that of the normal, of which the small ones count for nothing.
  least = jnp.full_like(rises, 1e-9)
  most = jnp.full_like(rises, 1.0 if norm == 'linf' else 1e9)
  return move(projections.bisect(below, least, most))
