"""PGD, untargeted and targeted: the objectives, and the choice of a restart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from robustlip import losses, projections
from robustlip.attacks.ascent import ascend
from robustlip.images import check_labels, check_least
from robustlip.types import Batch, LogitsFn

StepSize = chex.Numeric | Callable[[chex.Numeric], chex.Numeric]


def pgd(
  logits_fn: LogitsFn,
  batch: Batch,
  key: chex.PRNGKey,
  *,
  epsilon: chex.Numeric,
  step_size: StepSize | None = None,
  num_steps: int = 10,
  num_restarts: int = 1,
  norm: str = 'linf',
  start: chex.Array | None = None,
  unroll: bool = False,
) -> chex.Array:
  """Inputs of high cross entropy inside the ball, [B, H, W, C] in [0, 1].

  It ascends `losses.log_odds`: in exact arithmetic its steps are those of cross
  entropy, but in float32 they do not vanish where the network is confident.

  Args:
    step_size: None is the paper's epsilon / 5; see `ascend`.
    num_restarts: independent random starts, run at once; for each example
      the one with the largest margin is kept, so that it counts as robust
      only if every restart fails.
    start: explicit first point, with a single restart.
    unroll: see `ascend`.

  Raises:
    ValueError: if a number is out of range or `start` comes with restarts.

  Source: Madry et al. 2018, arXiv:1706.06083; the paper's Section 5.1.
  """
  check_least(1, num_restarts=num_restarts)
  if start is not None and num_restarts > 1:
    raise ValueError('an explicit start leaves nothing to restart from.')

  def attack(keys):
    return ascend(
      lambda points: losses.log_odds(logits_fn(points), batch.labels),
      batch.inputs,
      keys,
      epsilon=epsilon,
      step_size=epsilon / 5 if step_size is None else step_size,
      num_steps=num_steps,
      norm=norm,
      start=start,
      unroll=unroll,
    )

  if num_restarts == 1:
    return attack(key)

  def restart(number):
    return attack(projections.other_keys(key, len(batch.inputs), number))

  candidates = jax.vmap(restart)(jnp.arange(num_restarts))
  return worst(logits_fn, batch, candidates)


def expected(
  network: Callable[[chex.Array, chex.PRNGKey], chex.Array],
  key: chex.PRNGKey,
  *,
  num_samples: int,
) -> LogitsFn:
  """The mean logits of a randomised network over draws, to be attacked.

  Its gradient is the mean gradient over the draws (expectation over
  transformation). The draws are the same at every call, so that an attack
  ascends a fixed function: evaluate its points with draws from another key.

  Args:
    network: from [B, ...] images and one key to logits, such as one with
      dropout left on.
    key: split into one key per draw.
    num_samples: number of draws, at least 1.

  Source: Athalye et al. 2018, arXiv:1707.07397.
  """
  check_least(1, num_samples=num_samples)
  keys = jax.random.split(projections.threefry(key), num_samples)

  def logits_fn(inputs):
    return jax.vmap(network, (None, 0))(inputs, keys).mean(axis=0)

  return logits_fn


def multi_targeted(
  logits_fn: LogitsFn,
  batch: Batch,
  key: chex.PRNGKey,
  *,
  num_classes: int,
  **settings,
) -> chex.Array:
  """The worst of one `targeted` attack per wrong class, [B, H, W, C].

  The targets are attacked at once; the point with the largest margin is kept,
  so that an example counts as robust only if no target fools it.

  Args:
    num_classes: number of logits C, at least 2.
    **settings: those of `targeted`, its `epsilon` among them.

  Source: Gowal et al. 2019, arXiv:1910.09338; the paper's Appendix E.1.
  """

  def attack(targets):
    return targeted(logits_fn, batch, key, targets=targets, **settings)

  check_num_classes(logits_fn, batch, num_classes)
  candidates = jax.vmap(attack)(wrong_classes(batch.labels, num_classes))
  return worst(logits_fn, batch, candidates)


def targeted(
  logits_fn: LogitsFn,
  batch: Batch,
  key: chex.PRNGKey,
  *,
  targets: chex.Array,
  epsilon: chex.Numeric,
  step_size: StepSize | None = None,
  num_steps: int = 20,
  **settings,
) -> chex.Array:
  """Ascends logit_target - logit_label, [B, H, W, C] in [0, 1].

  Args:
    targets: a wrong class for each example, [B].
    step_size: None is the paper's epsilon / 10; `falling` is a schedule for it.
    **settings: `norm` and others of `ascend`.

  Raises:
    ValueError: if a number or a target is out of range; the points are NaN
      where a traced target is.
  """

  def objective(points):
    return toward(logits_fn(points), batch.labels, targets)

  points = ascend(
    objective,
    batch.inputs,
    projections.other_keys(key, len(batch.inputs), targets),
    epsilon=epsilon,
    step_size=epsilon / 10 if step_size is None else step_size,
    num_steps=num_steps,
    **settings,
  )
  return mask_wrong_targets(logits_fn, batch, targets, points)


def falling(
  epsilon: chex.Numeric, num_steps: int
) -> Callable[[chex.Numeric], chex.Numeric]:
  """Step sizes that fall from 2 epsilon to 0 along a cosine.

  Source: Gowal et al. 2019, arXiv:1910.09338.
  """
  return optax.cosine_decay_schedule(2 * epsilon, max(num_steps, 1))


def toward(
  logits: chex.Array, labels: chex.Array, targets: chex.Array
) -> chex.Array:
  """The target's logit minus the label's: [B, C], [B], [B] -> [B].

  Raises:
    ValueError: for a target that is not a wrong class, unless it is traced.
  """
  check_targets(logits, labels, targets)
  right, _ = losses.right_and_wrong(logits, labels)
  target, _ = losses.right_and_wrong(logits, targets)
  return target - right


def check_targets(
  logits: chex.Array, labels: chex.Array, targets: chex.Array
) -> chex.Array:
  """Which targets are classes other than the labels, bool [B].

  Raises:
    ValueError: if one is not, unless targets or labels are traced.
  """
  valid = check_labels(targets, *logits.shape, name='targets')
  traced = any(isinstance(x, jax.core.Tracer) for x in (labels, targets))
  if not traced and (np.asarray(labels) == np.asarray(targets)).any():
    raise ValueError('targets must differ from the labels.')
  return valid & (jnp.asarray(labels) != jnp.asarray(targets))


def mask_wrong_targets(
  logits_fn: LogitsFn, batch: Batch, targets: chex.Array, found: Any
) -> Any:
  """A tree of [B, ...], with NaN where a target is not a wrong class."""
  logits = jax.eval_shape(logits_fn, batch.inputs)
  valid = check_targets(logits, batch.labels, targets)
  return jax.tree.map(lambda x: projections.choose(valid, x, jnp.nan), found)


def wrong_classes(labels: chex.Array, num_classes: int) -> chex.Array:
  """All classes but an example's own: [B] -> [C - 1, B]."""
  labels, shifts = jnp.asarray(labels), jnp.arange(1, num_classes)
  return jax.vmap(lambda shift: (labels + shift) % num_classes)(shifts)


def likely_wrong(
  logits: chex.Array, labels: chex.Array, rank: chex.Numeric
) -> chex.Array:
  """The wrong class with the `rank`-th highest logit, counted from 0: [B]."""
  is_label = losses.is_class(labels, logits.shape[-1])
  # The label sorts last whatever its logit: another logit may equal it.
  order = jnp.lexsort((-logits, is_label.astype(jnp.int32)))
  return jnp.take(order, rank, axis=1)


def check_num_classes(
  logits_fn: LogitsFn, batch: Batch, num_classes: int
) -> None:
  """Raises ValueError unless the network has `num_classes` classes, at least 2.

  Also raises it for labels that are not among them.
  """
  check_least(2, num_classes=num_classes)
  found = losses.check_classes(logits_fn, batch.inputs.shape, batch.labels)
  if found != num_classes:
    raise ValueError(f'num_classes is {num_classes}, the network has {found}.')


def worst(
  logits_fn: LogitsFn, batch: Batch, candidates: chex.Array
) -> chex.Array:
  """For each example the candidate of largest margin, [K, B, ...] -> [B, ...].

  A candidate that errs without a positive margin, as with NaN logits, wins.
  """
  logits = jax.vmap(logits_fn)(candidates)
  scores = jax.vmap(losses.margins, (0, None))(logits, batch.labels)
  right = jax.vmap(losses.correct, (0, None))(logits, batch.labels)
  scores = jnp.where(right | (scores > 0), scores, jnp.inf)
  return highest(candidates, scores)


def highest(candidates: chex.Array, scores: chex.Array) -> chex.Array:
  """For each example the candidate of highest score, [K, B, ...] -> [B, ...].

  `scores` are [K, B]; NaN counts as the lowest.
  """
  scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
  chosen = scores.argmax(axis=0)
  return candidates[chosen, jnp.arange(len(chosen))]
