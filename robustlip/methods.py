"""The training methods of the paper: an inner problem paired with a loss.

`METHODS[name](settings)` is a `Method`. A new method is one loss in `losses`
and one entry here. `reference` has those that the authors' released code
computes differently.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import chex
import jax

from robustlip import attacks, losses, projections
from robustlip.types import Batch, LogitsFn, Loss, Maximizer

START_SCALE = 1e-3  # of the Gaussian start of TRADES, pixel units
GR_STEP = 1.0  # l2 length of the finite difference, the authors' setting


class Settings(NamedTuple):
  """The numbers by which runs of one program may differ; all may be traced."""

  seed: chex.Numeric
  learning_rate: chex.Numeric
  epsilon: chex.Numeric
  lam: chex.Numeric  # weight in rst, gr and llr
  beta: chex.Numeric  # weight in trades
  mu: chex.Numeric  # second weight in llr


class Method(NamedTuple):
  """`maximize` is given the network in inference mode, `loss` in training."""

  maximize: Maximizer
  loss: Loss


def stay(logits_fn: LogitsFn, batch: Batch, key: chex.PRNGKey) -> chex.Array:
  """The inner problem of a method that has none: the inputs themselves."""
  del logits_fn, key
  return batch.inputs


def pgd(settings: Settings) -> Maximizer:
  """PGD as the paper trains and evaluates with it."""
  return partial(attacks.pgd, epsilon=settings.epsilon)


def near(inputs: chex.Array, key: chex.PRNGKey) -> chex.Array:
  """Gaussian points around the inputs, where TRADES starts."""
  keys = projections.example_keys(key, len(inputs))
  draw = jax.vmap(lambda k: jax.random.normal(k, inputs.shape[1:]))
  return inputs + START_SCALE * draw(keys)


def trades(settings: Settings) -> Method:
  """Ten steps of epsilon / 5 on the divergence, then CE + beta KL."""

  def maximize(logits_fn, batch, key):
    return attacks.ascend(
      losses.divergence(logits_fn, batch),
      batch.inputs,
      key,
      epsilon=settings.epsilon,
      step_size=settings.epsilon / 5,
      num_steps=10,
      start=near(batch.inputs, key),
    )

  return Method(maximize, partial(losses.trades, beta=settings.beta))


def llr(settings: Settings) -> Method:
  """Two steps of epsilon / 2 on the nonlinearity, then CE + its two terms.

  The start is drawn from the whole ball: next to the input, the nonlinearity
  is of second order and lost in float32's rounding.
  """

  def maximize(logits_fn, batch, key):
    return attacks.ascend(
      losses.nonlinearity(logits_fn, batch),
      batch.inputs,
      key,
      epsilon=settings.epsilon,
      step_size=settings.epsilon / 2,
      num_steps=2,
    )

  return Method(maximize, partial(losses.llr, lam=settings.lam, mu=settings.mu))


def gr(settings: Settings) -> Method:
  """One gradient of l2 length `GR_STEP`, then CE + the squared slope."""
  return Method(
    lambda logits_fn, batch, key: losses.gradient_step(
      logits_fn, batch, step_size=GR_STEP
    ),
    partial(losses.gr, lam=settings.lam, step_size=GR_STEP),
  )


METHODS: dict[str, Callable[[Settings], Method]] = {
  'natural': lambda settings: Method(stay, losses.natural),
  'gr': gr,
  'llr': llr,
  'at': lambda settings: Method(pgd(settings), losses.at),
  'rst': lambda settings: Method(
    pgd(settings), partial(losses.rst, lam=settings.lam)
  ),
  'trades': trades,
}

# The settings that a method reads, with the paper's value or its middle one.
WEIGHTS: dict[str, dict[str, float]] = {
  'natural': {},
  'gr': {'lam': 1.0},
  'llr': {'lam': 4.0, 'mu': 3.0},
  'at': {},
  'rst': {'lam': 1.0},
  'trades': {'beta': 3.0},
}
