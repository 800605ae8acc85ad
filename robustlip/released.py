"""What the authors' released code computes where it departs from their text.

The published numbers come from that code, so only these functions are
comparable with them; everywhere else robustlip follows the text. The methods
here draw a dropout mask for each call, as that code does. Source of every line:
the released code of the paper (github.com/yangarbiter/robust-local-lipschitz),
read and partly run; see BUILD_NOTES.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import chex
import jax
import jax.numpy as jnp

from robustlip import attacks, lipschitz, losses, methods, projections
from robustlip.images import check_images
from robustlip.methods import Method
from robustlip.types import Batch, LogitsFn

LIPSCHITZ_STEP = 0.003  # fixed, whatever the radius
LLR_STEPS = 2
OFFSET = 1e-6  # added to every pixel of x - x' in the ratio


def _released_ascent(
  direction: Callable[[chex.Array], chex.Array],
  inputs: chex.Array,
  key: chex.PRNGKey,
  *,
  step_size: chex.Numeric,
  num_steps: int,
  project: Callable[[chex.Array, chex.Array], chex.Array],
) -> chex.Array:
  """The released ascent, [B, ...], whose start may be outside the box.

  `attacks.ascend` projects its start, which on MNIST's black background removes
  half of the Gaussian noise before the first gradient is taken.

  Args:
    direction: of each step, [B, ...] -> [B, ...].
    project: (points, inputs) -> points, after each step.

  Raises:
    ValueError: if images or a number are out of range.
  """
  inputs = check_images(inputs)
  step_size = projections.check_numbers(step_size, inputs, name='step_size')

  def move(_, points):
    return project(points + step_size * direction(points), inputs)

  start = methods.gaussian_start(inputs, key)
  points = jax.lax.fori_loop(0, num_steps, move, start)
  return jax.lax.stop_gradient(points)


def _sign_of(objective):
  """The direction in which `objective`, [B, ...] -> [B], rises."""
  gradient = jax.grad(lambda points: objective(points).sum())
  return lambda points: projections.normalize_direction(gradient(points))


def _clip_then_scale(points, inputs, *, epsilon):
  """Clips to the box, then scales each perturbation down to the radius."""
  radius = projections.check_radius(epsilon, inputs)
  deltas = jnp.clip(points, 0.0, 1.0) - inputs
  sizes = jnp.maximum(projections.norms(deltas), 1e-30)
  shares = jnp.minimum(1.0, radius / projections.per_example(sizes, deltas))
  return inputs + shares * deltas


def gr(*, epsilon: chex.Numeric = 0.0, lam: chex.Numeric = 1.0) -> Method:
  """Gradient regularization with the clean loss counted twice.

  The clean loss is differentiated once for the direction and its parameter
  gradients are not cleared before the penalised loss adds its own.
  """

  def loss(logits_fn, batch, points):
    clean = losses.natural(logits_fn, batch, points)
    slope = (losses.at(logits_fn, batch, points) - clean) / methods.GR_STEP
    return 2 * clean + lam / 2 * slope**2

  maximize = methods.gr(epsilon=epsilon, lam=lam).maximize
  return Method(maximize, loss, fresh_masks=True)


def llr(*, epsilon: chex.Numeric, lam: chex.Numeric = 4.0) -> Method:
  """CE(x) + lam CE(x'): the gradient terms of LLR are zeroed by aliasing.

  x' takes two steps of epsilon / 2 along g / max|g| from a Gaussian start; a
  perturbation that leaves the ball is scaled down, not clipped.
  """

  def maximize(logits_fn: LogitsFn, batch: Batch, key: chex.PRNGKey):
    @jax.grad
    def gradient(points):
      return losses.cross_entropy(logits_fn(points), batch.labels).sum()

    def direction(points):
      slope = gradient(points)
      largest = jnp.maximum(projections.norms(slope), 1e-30)
      return slope / projections.per_example(largest, slope)

    return _released_ascent(
      direction,
      batch.inputs,
      key,
      step_size=epsilon / LLR_STEPS,
      num_steps=LLR_STEPS,
      project=partial(_clip_then_scale, epsilon=epsilon),
    )

  def loss(logits_fn, batch, points):
    return losses.rst(logits_fn, batch, points, lam=lam)

  return Method(maximize, loss, fresh_masks=True)


def trades(*, epsilon: chex.Numeric, beta: chex.Numeric = 3.0) -> Method:
  """CE(x) + beta KL(p(x) || p(x')), the network called on x for each term.

  In training mode the three calls move the statistics of BatchNorm and may
  have three dropout masks. The inner problem differs in its start alone.
  """

  def maximize(logits_fn: LogitsFn, batch: Batch, key: chex.PRNGKey):
    return _released_ascent(
      _sign_of(losses.divergence(logits_fn, batch)),
      batch.inputs,
      key,
      step_size=epsilon / 5,
      num_steps=10,
      project=partial(projections.ball, epsilon=epsilon),
    )

  def loss(logits_fn, batch, points):
    clean = losses.natural(logits_fn, batch, points)
    moved, target = logits_fn(points), logits_fn(batch.inputs)
    return clean + beta * losses.kl_divergence(target, moved)

  return Method(maximize, loss, fresh_masks=True)


METHODS = methods.METHODS | {
  'gr_released': gr,
  'llr_released': llr,
  'trades_released': trades,
}


def lipschitz_estimate(
  logits_fn: LogitsFn,
  inputs: chex.Array,
  key: chex.PRNGKey,
  *,
  epsilon: chex.Numeric,
) -> lipschitz.Estimate:
  """The ratio after steps that descend it, a sign error of the released code.

  Ten sign steps of 0.003 from a Gaussian start, the last iterate: the
  released procedure negates the ratio and then adds the sign of the gradient.
  The ratio is ||f(x) - f(x')||_1 / ||x - x' + 1e-6||_inf.

  Raises:
    ValueError: unless the images are floats in [0, 1].
  """
  inputs = check_images(inputs)
  clean = logits_fn(inputs)

  def ratio(points):
    return lipschitz.slope(clean, logits_fn(points), inputs - points + OFFSET)

  points = _released_ascent(
    _sign_of(lambda points: -ratio(points)),
    inputs,
    key,
    step_size=LIPSCHITZ_STEP,
    num_steps=10,
    project=partial(projections.ball, epsilon=epsilon),
  )
  return lipschitz.Estimate(ratio(points), points)


def multi_targeted(
  logits_fn: LogitsFn,
  batch: Batch,
  key: chex.PRNGKey,
  *,
  epsilon: chex.Numeric,
  num_classes: int,
  num_steps: int = 20,
) -> chex.Array:
  """The point of the target with the highest softmax, [B, H, W, C].

  For each wrong class t, 20 steps of epsilon / 10 descend CE(x', t); the point
  with the largest softmax_t(x') is returned, even if that of another target
  fools the network and this one does not. (The released score subtracts the
  label's probability at x, which is the same for every target.)
  """

  def attack(targets):
    return attacks.ascend(
      lambda points: -losses.cross_entropy(logits_fn(points), targets),
      batch.inputs,
      projections.other_keys(key, len(batch.inputs), targets),
      epsilon=epsilon,
      step_size=epsilon / 10,
      num_steps=num_steps,
    )

  attacks.gradient.check_num_classes(logits_fn, batch, num_classes)
  targets = attacks.gradient.wrong_classes(batch.labels, num_classes)
  candidates = jax.vmap(attack)(targets)
  probabilities = jax.nn.softmax(jax.vmap(logits_fn)(candidates))
  scores = jnp.take_along_axis(probabilities, targets[..., None], axis=-1)
  return attacks.gradient.highest(candidates, scores[..., 0])


def _multi_targeted_attack(num_classes, norm, num_steps=20) -> attacks.Attack:
  if norm != 'linf':
    raise ValueError(f"the released attack is of the norm 'linf', not {norm!r}")
  attack = partial(multi_targeted, num_classes=num_classes, num_steps=num_steps)
  return attacks.Attack(attack, 2 * num_steps * (num_classes - 1))


attacks.ATTACKS['multi_targeted_released'] = _multi_targeted_attack
