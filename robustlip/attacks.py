"""Attacks: one projected ascent inside a small ball, and what it climbs.

Shared arguments: `logits_fn` maps [B, H, W, C] float32 images in [0, 1] to
logits [B, classes] and should be in inference mode; `batch` is a
`types.Batch`; `key` is one PRNG key or one per example ([B]), see
`projections`; `epsilon` and `step_size` are in units of the pixel range and
may be traced. No gradient flows through an attack.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from robustlip import losses, projections
from robustlip.images import check_images
from robustlip.types import Batch, LogitsFn, Objective

KEEP = ('last', 'best')


def ascend(
  objective: Objective,
  inputs: chex.Array,
  key: chex.PRNGKey,
  *,
  epsilon: chex.Numeric,
  step_size: chex.Numeric,
  num_steps: int,
  norm: str = 'linf',
  start: chex.Array | None = None,
  keep: str = 'last',
) -> chex.Array:
  """Points of the ball around `inputs` that climb `objective`, [B, ...].

  Each step follows the sign of the gradient (l-inf) or the normalised gradient
  (l2) and is projected back. The objective must not mix examples.

  Args:
    objective: [B, ...] -> [B], differentiable.
    num_steps: number of gradient steps, at least 0.
    start: explicit first point; None draws it uniformly from the ball.
    keep: 'last' returns the last iterate, 'best' for each example the iterate
      (the start and the end included) with the highest objective.

  Raises:
    ValueError: if `norm` or `keep` is unknown, or a number is out of range.

  Source: Madry et al. 2018, arXiv:1706.06083.
  """
  _check(epsilon=epsilon, step_size=step_size, num_steps=num_steps)
  check_images(inputs)
  if keep not in KEEP:
    raise ValueError(f'keep must be one of {KEEP}, got {keep!r}.')
  if start is None:
    start = projections.random_start(inputs, key, epsilon=epsilon, norm=norm)
  points = projections.ball(start, inputs, epsilon=epsilon, norm=norm)

  def climb(_, state):
    points, best = state
    values, pullback = jax.vjp(objective, points)
    (gradients,) = pullback(jnp.ones_like(values))
    best = _better(best, values, points)
    moved = points + step_size * projections.normalize_direction(
      gradients, norm=norm
    )
    return projections.ball(moved, inputs, epsilon=epsilon, norm=norm), best

  best = None
  if keep == 'best':
    dtype = jax.eval_shape(objective, points).dtype
    best = jnp.full(len(inputs), -jnp.inf, dtype), points
  points, best = jax.lax.fori_loop(0, num_steps, climb, (points, best))
  if best is not None:
    points = _better(best, objective(points), points)[1]
  return jax.lax.stop_gradient(points)


def _better(best, values, points):
  """Keeps, per example, the higher of the value and point seen so far."""
  if best is None:
    return None
  improved = values > best[0]
  where = projections.per_example(improved, points)
  return (
    jnp.where(improved, values, best[0]),
    jnp.where(where, points, best[1]),
  )


def _check(**numbers: chex.Numeric) -> None:
  for name, value in numbers.items():
    if not isinstance(value, jax.core.Tracer) and not np.all(
      np.asarray(value) >= 0
    ):
      raise ValueError(f'{name} must be at least 0, got {value}.')


def _check_attempt(attempt: chex.Numeric | None, count: int) -> None:
  if attempt is None or isinstance(attempt, jax.core.Tracer):
    return
  if not np.all((np.asarray(attempt) >= 0) & (np.asarray(attempt) < count)):
    raise ValueError(f'attempt must be from 0 to {count - 1}, got {attempt}.')


def class_logits(
  logits_fn: LogitsFn, inputs: chex.Array, num_classes: int
) -> chex.Array:
  """The logits of `inputs`, [B, num_classes].

  Raises:
    ValueError: if the network has another number of classes.
  """
  logits = logits_fn(inputs)
  if logits.shape[-1] != num_classes:
    raise ValueError(
      f'num_classes is {num_classes}, the network has {logits.shape[-1]}.'
    )
  return logits


def margins(logits: chex.Array, labels: chex.Array) -> chex.Array:
  """Best wrong logit minus the label's: [B, C], [B] -> [B]; > 0 is an error."""
  right, wrong = losses.right_and_wrong(logits, labels)
  return wrong.max(axis=-1) - right


def _worst(
  logits_fn: LogitsFn, batch: Batch, candidates: chex.Array
) -> chex.Array:
  """Of [K, B, ...] candidates the one with the largest margin, [B, ...]."""
  logits = jax.vmap(logits_fn)(candidates)
  scores = jax.vmap(margins, (0, None))(logits, batch.labels)
  return highest(candidates, scores)


def highest(candidates: chex.Array, scores: chex.Array) -> chex.Array:
  """Of [K, B, ...] candidates those of the highest [K, B] scores, [B, ...]."""
  chosen = scores.argmax(axis=0)
  return jax.vmap(lambda c, k: c[k], (1, 0))(candidates, chosen)


def _fold_in(
  key: chex.PRNGKey, num_examples: int, numbers: chex.Array
) -> chex.PRNGKey:
  """Keys [B] of an attempt; an example's depends on its own key alone."""
  keys = projections.example_keys(key, num_examples)
  numbers = jnp.broadcast_to(numbers, num_examples)
  return jax.vmap(jax.random.fold_in)(keys, numbers)


def pgd(
  logits_fn: LogitsFn,
  batch: Batch,
  key: chex.PRNGKey,
  *,
  epsilon: chex.Numeric,
  step_size: chex.Numeric | None = None,
  num_steps: int = 10,
  num_restarts: int = 1,
  norm: str = 'linf',
  start: chex.Array | None = None,
  attempt: chex.Numeric | None = None,
) -> chex.Array:
  """Inputs of high cross entropy inside the ball, [B, H, W, C] in [0, 1].

  It climbs `losses.log_odds`, which takes the steps of cross entropy in exact
  arithmetic, and goes on where those of float32 would be zero.

  Args:
    step_size: None is the paper's epsilon / 5.
    num_restarts: independent random starts, run at once; for each example
      the one with the largest margin is kept, so that it counts as robust
      only if every restart fails.
    start: explicit first point, with a single restart.
    attempt: the number of the one restart to make, below `num_restarts`, or
      one for each example, [B]; None makes all.

  Raises:
    ValueError: if a number is out of range or `start` comes with restarts.

  Source: Madry et al. 2018, arXiv:1706.06083; the paper's Section 5.1.
  """
  if num_restarts < 1:
    raise ValueError(f'num_restarts must be at least 1, got {num_restarts}.')
  _check_attempt(attempt, num_restarts)
  if start is not None and num_restarts > 1:
    raise ValueError('an explicit start leaves nothing to restart from.')

  def objective(points):
    return losses.log_odds(logits_fn(points), batch.labels)

  def attack(key):
    return ascend(
      objective,
      batch.inputs,
      key,
      epsilon=epsilon,
      step_size=epsilon / 5 if step_size is None else step_size,
      num_steps=num_steps,
      norm=norm,
      start=start,
    )

  def restart(number):
    return attack(_fold_in(key, len(batch.inputs), number))

  if num_restarts == 1:
    return attack(key)
  if attempt is not None:
    return restart(attempt)
  candidates = jax.vmap(restart)(jnp.arange(num_restarts))
  return _worst(logits_fn, batch, candidates)


def toward(
  objective: Callable[[chex.Array, chex.Array], chex.Array],
  batch: Batch,
  key: chex.PRNGKey,
  targets: chex.Array,
  *,
  epsilon: chex.Numeric,
  num_classes: int,
  num_steps: int = 20,
  step_size: chex.Numeric | None = None,
  start: chex.Array | None = None,
) -> chex.Array:
  """An ascent towards one class of each example, [B, ...].

  Args:
    objective: (points [B, ...], targets [B]) -> [B], to climb.
    targets: classes [B]; what is drawn for an example depends on its own.
    num_classes: number of logits C, at least 2.
    step_size: None is the paper's epsilon / 10.
    start: explicit first point; None draws one.

  Raises:
    ValueError: if a number is out of range.
  """
  if num_classes < 2:
    raise ValueError(f'num_classes must be at least 2, got {num_classes}.')
  losses.check_labels((len(batch.inputs), num_classes), batch.labels)
  places = (targets - batch.labels - 1) % num_classes
  return ascend(
    lambda points: objective(points, targets),
    batch.inputs,
    _fold_in(key, len(batch.inputs), places),
    epsilon=epsilon,
    step_size=epsilon / 10 if step_size is None else step_size,
    num_steps=num_steps,
    start=start,
  )


def wrong_classes(labels: chex.Array, num_classes: int) -> chex.Array:
  """All classes but an example's own: [B] -> [C - 1, B]."""
  shifts = jnp.arange(1, num_classes)
  return jax.vmap(lambda shift: (labels + shift) % num_classes)(shifts)


def multi_targeted(
  logits_fn: LogitsFn,
  batch: Batch,
  key: chex.PRNGKey,
  *,
  epsilon: chex.Numeric,
  num_classes: int,
  num_steps: int = 20,
  step_size: chex.Numeric | None = None,
  start: chex.Array | None = None,
  attempt: chex.Numeric | None = None,
) -> chex.Array:
  """The worst of one attack per wrong class, [B, H, W, C] in [0, 1].

  Every wrong class t climbs logit_t - logit_label, all at once; the point
  with the largest margin is kept, so that an example counts as robust only if
  no target fools it. Arguments and errors are those of `toward`.

  Args:
    num_classes: number of logits C, at least 2.
    attempt: from 0 to C - 2, or one for each example, [B], takes one target
      alone, the likelier the earlier; None takes all.

  Source: Gowal et al. 2019, arXiv:1910.09338; the paper's Appendix E.1.
  """

  def objective(points, targets):
    weights = jax.nn.one_hot(targets, num_classes)
    weights -= jax.nn.one_hot(batch.labels, num_classes)
    logits = class_logits(logits_fn, points, num_classes)
    return (weights * logits).sum(axis=-1)

  _check_attempt(attempt, num_classes - 1)

  def attack(targets):
    return toward(
      objective,
      batch,
      key,
      targets,
      epsilon=epsilon,
      num_classes=num_classes,
      num_steps=num_steps,
      step_size=step_size,
      start=start,
    )

  if attempt is not None:
    return attack(_likely_wrong(logits_fn(batch.inputs), batch.labels, attempt))
  candidates = jax.vmap(attack)(wrong_classes(batch.labels, num_classes))
  return _worst(logits_fn, batch, candidates)


def _likely_wrong(logits, labels, rank):
  """The wrong class of the given rank, 0 that of the highest logit: [B]."""
  _, wrong = losses.right_and_wrong(logits, labels)
  order = jnp.argsort(wrong, descending=True)
  ranks = jnp.broadcast_to(rank, len(labels))
  return jnp.take_along_axis(order, ranks[:, None], axis=1)[:, 0]
