import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from robustlip import attacks, bounds, lipschitz, losses, models
from robustlip.models import layers
from robustlip.types import Batch

KEY = jax.random.key(0)
SHAPE = (6, 6, 2)
EPSILONS = (0.0, 1e-6, 1e-3, 0.03, 0.3, 1.0)


class Small(nn.Module):
  """Every kind of layer that a classifier of images is made of, but tiny."""

  kind: str

  @nn.compact
  def __call__(self, x):
    match self.kind:
      case 'dense':
        x = nn.relu(nn.Dense(9)(x.reshape(len(x), -1)))
        x = nn.relu(nn.Dense(7)(x))
      case 'conv':
        x = nn.relu(layers.Conv(8, padding=((1, 1), (1, 1)))(x))
        x = layers.max_pool(nn.relu(layers.Conv(9)(x)))
      case 'flax':
        x = nn.relu(nn.Conv(5, (3, 3), strides=2)(x))
        x = nn.avg_pool(nn.max_pool(x, (2, 2), padding='SAME'), (2, 2))
      case 'residual':
        x = layers.Conv(8, padding=((1, 1), (1, 1)))(x)
        x = x + nn.relu(layers.batch_norm(x, train=False))
        x = layers.max_pool(x, size=3, strides=2, padding=1)
        x = jnp.concatenate([x, -x[:, ::-1]], axis=-1).mean((1, 2))
      case 'smooth':
        x = nn.gelu(nn.Dense(6)(x.reshape(len(x), -1)), approximate=False)
        x = nn.tanh(nn.Dense(6)(x)) * nn.sigmoid(nn.Dense(6)(x))
        x = nn.softplus(x) + nn.silu(jnp.clip(x, -0.5, 0.5)) - jnp.abs(x)
    return nn.Dense(4)(x.reshape(len(x), -1))


KINDS = ('dense', 'conv', 'flax', 'residual', 'smooth')


def network(kind):
  """The function of variables and inputs, and variables for a key."""
  module = Small(kind)

  def draw(key):
    variables = module.init(key, jnp.zeros((1, *SHAPE)))
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(key, len(leaves))
    return tree.unflatten(
      leaf + 0.3 * jnp.abs(jax.random.normal(key, leaf.shape))
      for key, leaf in zip(keys, leaves, strict=True)
    )

  return module.apply, draw


@jax.jit(static_argnames='kind')
def everything(variables, inputs, labels, key, epsilon, *, kind):
  """Bounds on both sides of one network."""
  apply, _ = network(kind)

  def logits_fn(x):
    return apply(variables, x)

  batch = Batch(inputs, labels)
  box = bounds.ball(inputs, epsilon=epsilon)
  ratios = lipschitz.estimate(logits_fn, inputs, key, epsilon=epsilon)
  found = [attacks.pgd(logits_fn, batch, key, epsilon=epsilon), ratios.points]
  noise = jax.random.uniform(key, (3, *inputs.shape), minval=-1.0)
  for direction in (*noise, *jnp.sign(noise)):
    found.append(jnp.clip(inputs + epsilon * direction, 0.0, 1.0))
  return {
    'outputs': jnp.stack([logits_fn(x) for x in (inputs, *found)]),
    'interval': bounds.interval(logits_fn, *box),
    'linear': bounds.linear(logits_fn, *box),
    'tight': bounds.linear(logits_fn, *box, tighten=10),
    'alpha': bounds.linear(logits_fn, *box, num_steps=3),
    'certified': jnp.stack(
      [
        bounds.certified(logits_fn, batch, epsilon=epsilon, method=method)
        for method in ('interval', 'linear')
      ]
    ),
    'entropy': bounds.cross_entropy(
      logits_fn, batch, epsilon=epsilon, lines=0.5
    ),
    'upper': lipschitz.upper_bound(logits_fn, inputs, epsilon=epsilon),
    'lower': ratios.ratios,
  }
