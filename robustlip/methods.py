"""The training methods of the paper: an inner problem paired with a loss.

`METHODS[name](epsilon=..., **weights)` is a `Method`; the weights are keyword
arguments whose defaults are the paper's value or its middle one. A method of
your own is a `Method` of two functions and needs no entry here. `released` has
what the authors' code computes differently.

Shared arguments: `epsilon` is the radius of the ball in units of the pixel
range; it and the weights may be traced. `norm` is the ball's, 'linf' or 'l2'.
`num_steps` are those of the inner ascent, each of 2 epsilon / num_steps; the
paper takes ten.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from robustlip import attacks, bounds, losses, projections
from robustlip.images import check_least
from robustlip.types import Batch, LogitsFn, Loss, Maximizer

START_SCALE = 1e-3  # of the Gaussian start of TRADES, pixel units
GR_STEP = 1.0  # l2 length of the finite difference, the authors' setting


class Method(NamedTuple):
  """A training method: which points to find, and the loss there.

  `maximize` is given the network in inference mode, `loss` in training mode.
  """

  maximize: Maximizer
  loss: Loss
  fresh_masks: bool = False  # whether each call draws its own dropout mask
  # Initial variables of the module -> those that training starts from.
  prepare: Callable[[dict[str, Any]], dict[str, Any]] = lambda drawn: drawn


def unmoved(logits_fn: LogitsFn, batch: Batch, key: chex.PRNGKey) -> chex.Array:
  """The inner problem of a method that has none: the inputs themselves."""
  del logits_fn, key
  return batch.inputs


def gaussian_start(inputs: chex.Array, key: chex.PRNGKey) -> chex.Array:
  """Inputs with Gaussian noise, where the ascent of TRADES starts."""
  keys = projections.example_keys(key, len(inputs))
  shape, dtype = inputs.shape[1:], inputs.dtype
  draw = jax.vmap(lambda key: jax.random.normal(key, shape, dtype))
  return inputs + START_SCALE * draw(keys)


def natural(*, epsilon: chex.Numeric = 0.0) -> Method:
  """Cross entropy of the inputs; ignores the radius."""
  del epsilon
  return Method(unmoved, losses.natural)


def at(
  *, epsilon: chex.Numeric, norm: str = 'linf', num_steps: int = 10
) -> Method:
  """Adversarial training on the points of PGD."""
  return Method(_pgd(epsilon, norm, num_steps), losses.at)


def rst(
  *,
  epsilon: chex.Numeric,
  lam: chex.Numeric = 1.0,
  norm: str = 'linf',
  num_steps: int = 10,
) -> Method:
  """CE(x) + lam CE(x') at the points x' of PGD."""
  maximize = _pgd(epsilon, norm, num_steps)
  return Method(maximize, partial(losses.rst, lam=lam))


def _pgd(epsilon, norm, num_steps):
  return partial(
    attacks.pgd,
    epsilon=epsilon,
    step_size=_step_size(epsilon, num_steps),
    num_steps=num_steps,
    norm=norm,
  )


def _step_size(epsilon, num_steps):
  check_least(1, num_steps=num_steps)
  return 2 * epsilon / num_steps


def trades(
  *,
  epsilon: chex.Numeric,
  beta: chex.Numeric = 3.0,
  norm: str = 'linf',
  num_steps: int = 10,
) -> Method:
  """PGD on the divergence from a Gaussian start, then CE + beta KL."""
  step_size = _step_size(epsilon, num_steps)

  def maximize(logits_fn, batch, key):
    return attacks.ascend(
      losses.divergence(logits_fn, batch),
      batch.inputs,
      key,
      epsilon=epsilon,
      step_size=step_size,
      num_steps=num_steps,
      norm=norm,
      start=gaussian_start(batch.inputs, key),
    )

  return Method(maximize, partial(losses.trades, beta=beta))


def llr(
  *,
  epsilon: chex.Numeric,
  lam: chex.Numeric = 4.0,
  mu: chex.Numeric = 3.0,
  norm: str = 'linf',
) -> Method:
  """`losses.llr` after two steps of epsilon / 2 on `losses.nonlinearity`.

  The start is drawn from the whole ball: close to the input the nonlinearity is
  of second order, and lost in float32's rounding.
  """

  def maximize(logits_fn, batch, key):
    return attacks.ascend(
      losses.nonlinearity(logits_fn, batch),
      batch.inputs,
      key,
      epsilon=epsilon,
      step_size=epsilon / 2,
      num_steps=2,
      norm=norm,
    )

  return Method(maximize, partial(losses.llr, lam=lam, mu=mu))


def gr(*, epsilon: chex.Numeric = 0.0, lam: chex.Numeric = 1.0) -> Method:
  """`losses.gr` after a gradient step of `GR_STEP`, l2; ignores the radius."""
  del epsilon

  def maximize(logits_fn, batch, key):
    del key
    return losses.gradient_step(logits_fn, batch, step_size=GR_STEP)

  return Method(maximize, partial(losses.gr, lam=lam, step_size=GR_STEP))


def ibp(
  *,
  epsilon: chex.Numeric,
  kappa: chex.Numeric = 0.5,
  progress: chex.Numeric = 1.0,
) -> Method:
  """CE(x), and the upper bound of the cross entropy in the ball by intervals.

  The radius and the weight of the second term rise together from 0, between
  10 % and 60 % of the training, to `epsilon` and 1 - `kappa`. For networks
  without dropout, whose mask all examples would share, and without batch
  normalisation, whose statistics have no bounds. Starts from `narrow_kernels`:
  with the usual initial kernels a short run may end as a constant function.

  Args:
    kappa: final weight of CE(x), in [0, 1].
    progress: the fraction of the training that is done, in [0, 1].

  Source: Gowal et al. 2018, arXiv:1810.12715.
  """
  return _certified(epsilon, kappa, progress, with_lines=False)


def crown_ibp(
  *,
  epsilon: chex.Numeric,
  kappa: chex.Numeric = 0.5,
  progress: chex.Numeric = 1.0,
) -> Method:
  """As `ibp`, with linear bounds at first and interval bounds in the end.

  Source: Zhang et al. 2020, arXiv:1906.06316.
  """
  return _certified(epsilon, kappa, progress, with_lines=True)


def _certified(epsilon, kappa, progress, *, with_lines):
  kappa = projections.check_numbers(kappa, name='kappa', highest=1.0)
  ramp = jnp.clip(2 * (progress - 0.1), 0.0, 1.0)
  weight = ramp * (1 - kappa)

  def loss(logits_fn, batch, points):
    projections.check_radius(epsilon, batch.inputs)  # not only ramp * epsilon
    lines = jnp.where(ramp > 0, 1 - ramp, 0.0)  # saves time where `weight` is 0
    worst = bounds.cross_entropy(
      logits_fn,
      batch,
      epsilon=ramp * epsilon,
      lines=lines if with_lines else None,
    )
    clean = losses.natural(logits_fn, batch, points)
    return (1 - weight) * clean + weight * worst

  return Method(unmoved, loss, prepare=narrow_kernels)


def narrow_kernels(variables: dict[str, Any]) -> dict[str, Any]:
  """Scales each kernel so that intervals keep their width through the layers.

  The root mean square becomes sqrt(2 pi) / fan-in: the absolute values of
  Gaussian weights then sum to 2, and a ReLU halves the width. Biases and
  kernels of zeros stay.

  Raises:
    ValueError: for a network with batch normalisation.

  Source: Shi et al. 2021, arXiv:2103.17268, Section 4.1.
  """

  def one(leaf):
    if leaf.ndim < 2:
      return leaf
    fan_in = leaf.size / leaf.shape[-1]
    size = jnp.maximum(jnp.sqrt(jnp.mean(leaf**2)), 1e-30)
    return leaf * (math.sqrt(2 * math.pi) / fan_in / size)

  if variables.get('batch_stats'):
    raise ValueError(
      'certified training takes no network with batch normalisation: the '
      'statistics of a batch have no bounds.'
    )
  return variables | {'params': jax.tree.map(one, variables['params'])}


METHODS: dict[str, Callable[..., Method]] = {
  'natural': natural,
  'gr': gr,
  'llr': llr,
  'at': at,
  'rst': rst,
  'trades': trades,
  'ibp': ibp,
  'crown_ibp': crown_ibp,
}


def weights(method: Callable[..., Method]) -> dict[str, float]:
  """The weights that a factory of methods takes, with their defaults."""
  parameters = inspect.signature(method).parameters.values()
  others = ('epsilon', 'norm', 'num_steps', 'progress')
  return {p.name: p.default for p in parameters if p.name not in others}


def accepts(method: Callable[..., Method], name: str) -> bool:
  """Whether a factory of methods has an argument of that name."""
  return name in inspect.signature(method).parameters


def has_radius(method: Callable[..., Method]) -> bool:
  """Whether a factory of methods needs the radius, which the others ignore."""
  default = inspect.signature(method).parameters['epsilon'].default
  return default is inspect.Parameter.empty


def at_progress(
  method: Callable[..., Method], **numbers: chex.Numeric
) -> Callable[[chex.Numeric], Method]:
  """The method as a function of the fraction of the training that is done.

  Only a method with an argument `progress` changes.
  """
  if accepts(method, 'progress'):
    return lambda progress: method(**numbers, progress=progress)
  return lambda progress: method(**numbers)
