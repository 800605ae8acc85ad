"""Auto-PGD: projected gradient ascent with momentum that sets its own steps."""

from __future__ import annotations

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from robustlip import losses, projections
from robustlip.attacks.gradient import check_targets, mask_wrong_targets, toward
from robustlip.images import check_images, check_least
from robustlip.types import Batch, LogitsFn

MOMENTUM = 0.75  # weight of the new step, the rest is momentum; alpha
RISING = 0.75  # fraction of steps that must raise the objective; rho
OBJECTIVES = ('ce', 'dlr')
DLR_CLASSES = 3, 4  # fewest classes for DLR without and with targets


class _State(NamedTuple):
  """State of the ascent: arrays [B, ...] or [B], and the scalar `step`."""

  step: chex.Array
  points: chex.Array
  previous: chex.Array
  gradients: chex.Array
  values: chex.Array  # objective at the points
  best_points: chex.Array
  best_gradients: chex.Array
  best_values: chex.Array
  step_sizes: chex.Array
  rises: chex.Array  # steps since the last checkpoint that raised the objective
  checked_values: chex.Array  # best values at the last checkpoint
  halved: chex.Array  # whether the last checkpoint halved the step
  fooled: chex.Array
  adversarial: chex.Array  # the first point that fooled the network


def apgd(
  logits_fn: LogitsFn,
  batch: Batch,
  key: chex.PRNGKey,
  *,
  epsilon: chex.Numeric,
  objective: str = 'ce',
  targets: chex.Array | None = None,
  num_steps: int = 100,
  norm: str = 'linf',
) -> chex.Array:
  """Auto-PGD: points of the ball that fool the network or come close.

  Returns for each example the first point that fools the network or, if none
  does, the point with the highest objective. Stops once all are fooled.

  Args:
    objective: 'ce' ascends the log odds of the label (those of cross entropy,
      without its vanishing gradients), 'dlr' the difference of logits ratio.
    targets: a wrong class for each example, [B]; None accepts any wrong class.
      'dlr' needs three classes, four with targets; with fewer it is the plain
      margin (`dlr`).

  Raises:
    ValueError: for an unknown objective, or a number or target out of range.

  Source: Croce and Hein 2020, arXiv:2003.01690, Algorithm 1.
  """
  if objective not in OBJECTIVES:
    raise ValueError(
      f'objective must be one of {OBJECTIVES}, got {objective!r}.'
    )
  check_least(1, num_steps=num_steps)
  inputs, shape = check_images(batch.inputs), batch.inputs.shape
  start = projections.random_start(inputs, key, epsilon=epsilon, norm=norm)
  inputs, start = projections.flat(inputs), projections.flat(start)
  intervals = jnp.asarray(_intervals(num_steps))

  def project(points):
    return projections.ball(points, inputs, epsilon=epsilon, norm=norm)

  def measure(points):
    """Objective [B], its gradient, and whether each example is fooled [B]."""

    def values(points):
      logits = logits_fn(points.reshape(shape))
      losses.check_labels(logits, batch.labels)
      return _objective(logits, batch.labels, targets, objective), logits

    values, pullback, logits = jax.vjp(values, points, has_aux=True)
    (gradients,) = pullback(jnp.ones_like(values))
    fooled = ~losses.correct(logits, batch.labels)
    return values.astype(inputs.dtype), gradients, fooled

  def step(state):
    """Evaluates the points (the start at step 0), then moves them."""
    state = _record(state, *measure(state.points))
    state = _checkpoint(state, intervals[state.step])
    sizes = projections.per_example(state.step_sizes, inputs)
    direction = projections.normalize_direction(state.gradients, norm=norm)
    moved = project(state.points + sizes * direction) - state.points
    drift = state.points - state.previous
    share = jnp.where(state.step > 0, MOMENTUM, 1.0).astype(inputs.dtype)
    points = project(state.points + share * moved + (1 - share) * drift)
    return state._replace(
      step=state.step + 1, points=points, previous=state.points
    )

  def unfinished(state):
    return (state.step <= num_steps) & ~state.fooled.all()

  steps = 2 * projections.check_radius(epsilon, inputs, norm=norm)
  state = jax.lax.while_loop(unfinished, step, _first(project(start), steps))
  points = projections.choose(
    state.fooled, state.adversarial, state.best_points
  )
  points = jax.lax.stop_gradient(points.reshape(shape))
  if targets is None:
    return points
  return mask_wrong_targets(logits_fn, batch, targets, points)


def _first(start, steps):
  # Made of `start`, so that within `jax.shard_map` they vary as the state does.
  lowest = jnp.full_like(start[:, 0], -jnp.inf)
  never = jnp.zeros_like(lowest, bool)
  return _State(
    step=jnp.zeros((), jnp.int32),
    points=start,
    previous=start,
    gradients=jnp.zeros_like(start),
    values=-lowest,
    best_points=start,
    best_gradients=jnp.zeros_like(start),
    best_values=lowest,
    step_sizes=jnp.zeros_like(lowest) + steps.reshape(-1),
    rises=jnp.zeros_like(lowest, jnp.int32),
    checked_values=-lowest,
    halved=never,
    fooled=never,
    adversarial=start,
  )


def _record(state, values, gradients, fooled):
  """Records the values, gradients and successes found at the current points."""
  better = jnp.isfinite(values) & (values > state.best_values)
  first = fooled & ~state.fooled
  choose = projections.choose
  return state._replace(
    gradients=gradients,
    values=values,
    best_points=choose(better, state.points, state.best_points),
    best_gradients=choose(better, gradients, state.best_gradients),
    best_values=jnp.where(better, values, state.best_values),
    rises=state.rises + (values > state.values),
    fooled=state.fooled | fooled,
    adversarial=choose(first, state.points, state.adversarial),
  )


def _checkpoint(state, interval):
  """At a checkpoint, halves step sizes that stall and restarts from the best.

  Args:
    interval: steps since the last checkpoint; -1 between checkpoints.
  """
  due = interval >= 0
  few = state.rises < RISING * interval
  stuck = ~state.halved & (state.best_values == state.checked_values)
  halve = due & (few | stuck)
  choose = projections.choose
  return state._replace(
    points=choose(halve, state.best_points, state.points),
    gradients=choose(halve, state.best_gradients, state.gradients),
    values=jnp.where(halve, state.best_values, state.values),
    step_sizes=jnp.where(halve, state.step_sizes / 2, state.step_sizes),
    rises=jnp.where(due, 0, state.rises),
    checked_values=jnp.where(due, state.best_values, state.checked_values),
    halved=jnp.where(due, halve, state.halved),
  )


def _intervals(num_steps: int) -> np.ndarray:
  """For each step, how long ago the last checkpoint was; -1: no checkpoint.

  int32 [num_steps + 1]; the checkpoint before the first step has interval 0.
  Checkpoints are at fractions 0, .22, ... of the steps; the gap between two
  shrinks by .03 each time, down to .06.
  """
  shares = [0.0, 0.22]
  while shares[-1] < 1:
    gap = max(shares[-1] - shares[-2] - 0.03, 0.06)
    shares.append(shares[-1] + gap)
  # Shares are multiples of .01: keep rounding errors from raising the ceiling.
  ends = sorted({math.ceil(round(s * num_steps, 6)) for s in shares})
  intervals = np.full(num_steps + 1, -1, np.int32)
  intervals[0] = 0
  for first, last in zip(ends, ends[1:], strict=False):
    if last <= num_steps:
      intervals[last] = last - first
  return intervals


def _objective(logits, labels, targets, objective):
  if objective == 'dlr':
    return dlr(logits, labels, targets)
  if targets is None:
    return losses.log_odds(logits, labels)
  check_targets(logits, labels, targets)
  return -losses.log_odds(logits, targets)


def dlr(
  logits: chex.Array, labels: chex.Array, targets: chex.Array | None = None
) -> chex.Array:
  """Difference of logits ratio: the margin over the spread of top logits, [B].

  Without targets (z_w - z_y) / (z_1 - z_3), w the best wrong class and z_i the
  i-th highest logit; with targets (z_t - z_y) / (z_1 - (z_3 + z_4) / 2). Its
  gradient does not depend on the scale of the logits. If there are too few
  classes, or one of these logits is -inf, it is the numerator alone.

  Source: Croce and Hein 2020, arXiv:2003.01690, Eqs. (6) and (7).
  """
  if targets is None:
    margin, last = losses.margins(logits, labels), [2]
  else:
    margin, last = toward(logits, labels, targets), [2, 3]
  if logits.shape[-1] < DLR_CLASSES[targets is not None]:
    return margin
  top = jax.lax.top_k(logits, last[-1] + 1)[0]
  rest = top[:, last]
  usable = jnp.isfinite(rest).all(axis=-1)
  rest = jnp.where(usable[:, None], rest, 0.0).mean(axis=-1)
  first = jnp.where(usable, top[:, 0], 1.0)
  return margin / (first - rest + 1e-12)
