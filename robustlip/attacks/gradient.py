"""PGD and its targeted kind: what they ascend, and which point they return."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from robustlip import losses, projections
from robustlip.attacks.ascent import ascend
from robustlip.images import check_labels
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

  It ascends `losses.log_odds`, which takes the steps of cross entropy in exact
  arithmetic, and goes on where those of float32 would be zero.

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
  if num_restarts < 1:
    raise ValueError(f'num_restarts must be at least 1, got {num_restarts}.')
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

  Its gradient is the mean of those of the draws (expectation over
  transformation). They are the same at every call, so that an attack ascends
  one function: judge its points by draws of another key.

  Args:
    network: from [B, ...] images and one key to logits, such as one with
      dropout left on.
    key: of all draws, each with its own.
    num_samples: number of draws, at least 1.

  Source: Athalye et al. 2018, arXiv:1707.07397.
  """
  if num_samples < 1:
    raise ValueError(f'num_samples must be at least 1, got {num_samples}.')
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
    step_size: None is the paper's epsilon / 10; `falling` makes it fall.
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
  return with_right_targets(logits_fn, batch, targets, points)


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
    ValueError: for targets that are no wrong classes, where they are known.
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
    ValueError: if one is none, where targets and labels are known.
  """
  valid = check_labels(targets, *logits.shape, name='targets')
  traced = any(isinstance(x, jax.core.Tracer) for x in (labels, targets))
  if not traced and (np.asarray(labels) == np.asarray(targets)).any():
    raise ValueError('targets must differ from the labels.')
  return valid & (jnp.asarray(labels) != jnp.asarray(targets))


def with_right_targets(
  logits_fn: LogitsFn, batch: Batch, targets: chex.Array, points: chex.Array
) -> chex.Array:
  """The points, NaN where a target is none: an attack on it reads as failed."""
  logits = jax.eval_shape(logits_fn, batch.inputs)
  valid = check_targets(logits, batch.labels, targets)
  return projections.choose(valid, points, jnp.nan)


def wrong_classes(labels: chex.Array, num_classes: int) -> chex.Array:
  """All classes but an example's own: [B] -> [C - 1, B]."""
  labels, shifts = jnp.asarray(labels), jnp.arange(1, num_classes)
  return jax.vmap(lambda shift: (labels + shift) % num_classes)(shifts)


def likely_wrong(
  logits: chex.Array, labels: chex.Array, rank: chex.Numeric
) -> chex.Array:
  """The wrong class of the given rank, 0 that of the highest logit: [B]."""
  is_label = losses.is_class(labels, logits.shape[-1])
  # The label is the last: its logit may be as low as that of another.
  order = jnp.lexsort((-logits, is_label.astype(jnp.int32)))
  return jnp.take(order, rank, axis=1)


def check_num_classes(
  logits_fn: LogitsFn, batch: Batch, num_classes: int
) -> None:
  """Raises ValueError unless the network has that many classes, two at least.

  Also for labels that do not fit them.
  """
  if num_classes < 2:
    raise ValueError(f'num_classes must be at least 2, got {num_classes}.')
  found = losses.check_classes(logits_fn, batch.inputs.shape, batch.labels)
  if found != num_classes:
    raise ValueError(f'num_classes is {num_classes}, the network has {found}.')


def worst(
  logits_fn: LogitsFn, batch: Batch, candidates: chex.Array
) -> chex.Array:
  """Of [K, B, ...] candidates one that errs, by the largest margin, [B, ...].

  Logits that are not finite err too, though they have no margin.
  """
  logits = jax.vmap(logits_fn)(candidates)
  scores = jax.vmap(losses.margins, (0, None))(logits, batch.labels)
  right = jax.vmap(losses.correct, (0, None))(logits, batch.labels)
  scores = jnp.where(right | (scores > 0), scores, jnp.inf)
  return highest(candidates, scores)


def highest(candidates: chex.Array, scores: chex.Array) -> chex.Array:
  """Of [K, B, ...] candidates those of the highest [K, B] scores, [B, ...].

  A score that is NaN never wins.
  """
  scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
  chosen = scores.argmax(axis=0)
  return candidates[chosen, jnp.arange(len(chosen))]
