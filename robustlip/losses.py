"""The paper's training losses and the objectives of their inner problems.

A robust loss is a function of given points, `loss(logits_fn, batch, points) ->
[B]`, one value per example in nats; the points come from an ascent on an inner
objective, or from one gradient. `methods` pairs the two; `training` runs the
loss in training mode and, by default, the inner problem in inference mode.

Shared arguments: `logits_fn` maps [B, H, W, C] to logits; `batch` is a
`types.Batch`; `points` are [B, H, W, C], one for each input. Weights may be
traced and are not checked.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import optax

from robustlip import images, projections
from robustlip.types import Batch, LogitsFn, Objective


def check_logits(logits: chex.Array, *, fewest: int = 2) -> None:
  """Raises ValueError unless logits are [B, C], C at least `fewest`."""
  shape = getattr(logits, 'shape', None)
  if shape is None:
    raise ValueError(
      'the network must return logits [B, classes] alone, got a '
      f'{type(logits).__name__}; wrap it: lambda images: network(images)[...].'
    )
  if len(shape) != 2 or shape[1] < fewest:
    raise ValueError(
      f'logits must be [B, classes], {fewest} classes at least, got {shape}.'
    )


def check_classes(
  logits_fn: LogitsFn, shape: tuple[int, ...], labels: chex.Array
) -> int:
  """How many classes a network has, from its output shape for images `shape`.

  Raises:
    ValueError: for labels that are not among them, see `check_labels`.
  """
  logits = jax.eval_shape(logits_fn, jax.ShapeDtypeStruct(shape, jnp.float32))
  check_labels(logits, labels)
  return logits.shape[1]


def check_labels(logits: chex.Array, labels: chex.Array) -> chex.Array:
  """Which labels are classes of the logits, bool [B]: `images.check_labels`.

  Raises:
    ValueError: unless logits are [B, C] and labels integers [B] below C.
  """
  check_logits(logits)
  return images.check_labels(labels, *logits.shape)


def is_class(labels: chex.Array, num_classes: int) -> chex.Array:
  """One-hot labels, [B] -> bool [B, C].

  `jax.nn.one_hot` counts classes in the labels' dtype: uint8 wraps at 256.
  """
  return jnp.asarray(labels)[:, None] == jnp.arange(num_classes)[None]


def shares_of_classes(
  labels: chex.Array,
  num_classes: int,
  *,
  others: chex.Array | None = None,
  own: chex.Array | None = None,
  smoothing: chex.Numeric | None = None,
) -> chex.Array:
  """Soft labels: a distribution over the classes, [B] -> float32 [B, C].

  NaN for a label that is no class.

  Args:
    others: labels [B] of the second image, where two are mixed.
    own: weight [B] of the first labels, in [0, 1].
    smoothing: weight in [0, 1] of the uniform distribution.

  Raises:
    ValueError: if `smoothing` is out of range.

  Source: Szegedy et al. 2016, arXiv:1512.00567, Section 7.
  """

  def one_hot(labels):
    hot = is_class(labels, num_classes)
    valid = hot.any(axis=1, keepdims=True)
    return jnp.where(valid, hot.astype(jnp.float32), jnp.nan)

  shares = one_hot(labels)
  if others is not None:
    shares = own[:, None] * shares + (1 - own[:, None]) * one_hot(others)
  if smoothing is not None:
    smoothing = projections.check_numbers(
      smoothing, shares, name='label_smoothing', highest=1.0
    )
    shares = optax.smooth_labels(shares, smoothing)
  return shares


def cross_entropy(logits: chex.Array, labels: chex.Array) -> chex.Array:
  """-log softmax(logits)[label], [B, C] and [B] -> [B].

  `labels` may be soft: float [B, C], see `shares_of_classes`.

  Raises:
    ValueError: for labels that do not fit the logits, see `check_labels`.
  """
  check_logits(logits)
  shape = getattr(labels, 'shape', None)  # a list has none
  if shape == logits.shape and jnp.issubdtype(labels.dtype, jnp.floating):
    return optax.losses.safe_softmax_cross_entropy(logits, labels)
  valid = check_labels(logits, labels)
  values = optax.losses.softmax_cross_entropy_with_integer_labels(
    logits, jnp.where(valid, jnp.asarray(labels), 0)
  )
  return jnp.where(valid, values, jnp.nan)


def log_odds(logits: chex.Array, labels: chex.Array) -> chex.Array:
  """log((1 - p) / p) of the label's probability p: [B, C], [B] -> [B].

  Cross entropy is its softplus, so both gradients have the same direction. That
  of cross entropy vanishes where the network is confident, which stops attacks
  and looks like robustness; this one does not.
  """
  right, wrong = right_and_wrong(logits, labels)
  return jax.nn.logsumexp(wrong, axis=-1) - right


def right_and_wrong(
  logits: chex.Array, labels: chex.Array
) -> tuple[chex.Array, chex.Array]:
  """The label's logit [B], and the logits with -inf in its place [B, C].

  Raises:
    ValueError: for labels that do not fit the logits, see `check_labels`.
  """
  valid = check_labels(logits, labels)
  is_label = is_class(labels, logits.shape[-1])
  right = jnp.where(is_label, logits, 0.0).sum(axis=-1)
  right = jnp.where(valid, right, jnp.nan)
  return right, jnp.where(is_label, -jnp.inf, logits)


def margins(logits: chex.Array, labels: chex.Array) -> chex.Array:
  """Best wrong logit minus the label's: [B, C], [B] -> [B]; > 0 is an error."""
  right, wrong = right_and_wrong(logits, labels)
  return wrong.max(axis=-1) - right


def correct(logits: chex.Array, labels: chex.Array) -> chex.Array:
  """Which examples are classified correctly: [B, C], [B] -> [B] bool.

  Never an example with a logit of NaN or +inf; -inf is a class that is never
  predicted.
  """
  classified = jnp.isfinite(logits.max(axis=-1))
  return classified & (logits.argmax(axis=-1) == jnp.asarray(labels))


def kl_divergence(logits: chex.Array, other: chex.Array) -> chex.Array:
  """KL(softmax(logits) || softmax(other)), [B, C] twice -> [B].

  A class of probability 0 in the first (a logit of -inf) adds nothing.
  """
  never = logits == -jnp.inf
  log_p = jnp.where(never, 0.0, jax.nn.log_softmax(logits))
  log_q = jnp.where(never, 0.0, jax.nn.log_softmax(other))
  terms = jnp.exp(log_p) * (log_p - log_q)
  return jnp.where(never, 0.0, terms).sum(axis=-1)


def natural(
  logits_fn: LogitsFn, batch: Batch, points: chex.Array
) -> chex.Array:
  """CE(x)."""
  del points
  return cross_entropy(logits_fn(batch.inputs), batch.labels)


def at(logits_fn: LogitsFn, batch: Batch, points: chex.Array) -> chex.Array:
  """CE(x'): adversarial training, Madry et al. 2018, arXiv:1706.06083."""
  return cross_entropy(logits_fn(points), batch.labels)


def rst(
  logits_fn: LogitsFn, batch: Batch, points: chex.Array, *, lam: chex.Numeric
) -> chex.Array:
  """CE(x) + lam CE(x'): robust self-training on labelled data only.

  Source: Raghunathan et al. 2020, arXiv:2002.10716; the paper's Section 5.1.
  """
  # In the released order: the last call weighs most in BatchNorm's statistics.
  moved = cross_entropy(logits_fn(points), batch.labels)
  return cross_entropy(logits_fn(batch.inputs), batch.labels) + lam * moved


def trades(
  logits_fn: LogitsFn, batch: Batch, points: chex.Array, *, beta: chex.Numeric
) -> chex.Array:
  """CE(x) + beta KL(p(x) || p(x')), gradients through both distributions.

  Source: Zhang et al. 2019, arXiv:1901.08573, Eq. (5).
  """
  clean = logits_fn(batch.inputs)
  divergence = kl_divergence(clean, logits_fn(points))
  return cross_entropy(clean, batch.labels) + beta * divergence


def gr(
  logits_fn: LogitsFn,
  batch: Batch,
  points: chex.Array,
  *,
  lam: chex.Numeric,
  step_size: chex.Numeric,
) -> chex.Array:
  """CE(x) + lam/2 ((CE(x') - CE(x)) / step_size)^2: gradient regularization.

  The finite difference stands for the l2 norm of the input gradient; x' is
  `gradient_step` of the same size.

  Source: Finlay and Oberman 2019, arXiv:1905.11468.
  """
  clean = cross_entropy(logits_fn(batch.inputs), batch.labels)
  moved = cross_entropy(logits_fn(points), batch.labels)
  return clean + lam / 2 * ((moved - clean) / step_size) ** 2


def llr(
  logits_fn: LogitsFn,
  batch: Batch,
  points: chex.Array,
  *,
  lam: chex.Numeric,
  mu: chex.Numeric,
) -> chex.Array:
  """CE(x) + lam |CE(x') - CE(x) - d . grad CE(x)| + mu |d . grad CE(x)|.

  d = x' - x, and the gradient is with respect to the input.

  Source: Qin et al. 2019, arXiv:1907.02610, Eq. (8).
  """

  def losses(inputs):
    return cross_entropy(logits_fn(inputs), batch.labels)

  deltas = points - batch.inputs
  clean, slope = jax.jvp(losses, (batch.inputs,), (deltas,))
  moved = losses(points)
  return clean + lam * jnp.abs(moved - clean - slope) + mu * jnp.abs(slope)


def divergence(logits_fn: LogitsFn, batch: Batch) -> Objective:
  """The inner objective of TRADES: x' -> KL(p(x) || p(x')).

  Its gradient vanishes at x' = x, so the ascent has to start elsewhere.
  """
  clean = logits_fn(batch.inputs)
  return lambda points: kl_divergence(clean, logits_fn(points))


def nonlinearity(logits_fn: LogitsFn, batch: Batch) -> Objective:
  """The inner objective of LLR: x' -> |CE(x') - CE(x) - d . grad CE(x)|.

  Zero with a zero gradient at x' = x, so the ascent has to start elsewhere.
  """

  def losses(inputs):
    return cross_entropy(logits_fn(inputs), batch.labels)

  clean, pullback = jax.vjp(losses, batch.inputs)
  (gradients,) = pullback(jnp.ones_like(clean))

  def objective(points):
    deltas = projections.flat((points - batch.inputs) * gradients)
    return jnp.abs(losses(points) - clean - deltas.sum(axis=1))

  return objective


def gradient_step(
  logits_fn: LogitsFn, batch: Batch, *, step_size: chex.Numeric
) -> chex.Array:
  """Moves x by step_size g / ||g||_2, g = grad CE(x), maybe out of the box.

  Raises:
    ValueError: unless the images are floats in [0, 1].
  """
  inputs = images.check_images(batch.inputs)
  gradients = jax.grad(  # log odds have the same direction
    lambda inputs: log_odds(logits_fn(inputs), batch.labels).sum()
  )(inputs)
  return inputs + step_size * projections.normalize_direction(
    gradients, norm='l2'
  )
