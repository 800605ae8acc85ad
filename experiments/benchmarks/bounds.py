"""Compares width and cost of our bounds and auto_LiRPA's, on the same weights.

Networks are cnn2 and `plain_<depth>_<width>`, equal convolutions and an affine
layer. On the latter all bounds must agree; on cnn2 only intervals, since the
peer relaxes max-pooling in another way.
"""

import re
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import chex
import flax.linen as nn
import jax
import numpy as np

from experiments.benchmarks import problem, timing
from experiments.benchmarks.timing import Candidate, Case
from robustlip import bounds, lipschitz, models
from robustlip.images import from_bytes
from robustlip.models import layers

EPSILON = 0.01
ARCHS = ('cnn2', 'plain_2_16', 'plain_4_16', 'plain_8_16', 'plain_4_32')
# Relative to the width: ours allow for rounding, theirs do not. The narrower
# the bounds, the more that matters; without it both agree, as checked by hand.
TOLERANCES = {'interval': 0.01, 'linear': 0.01, 'crown': 0.05}
# Most images at once by CROWN: on cnn2 a peer needs 0.4 GB for each. Networks
# that are not listed would take minutes.
CROWN = {'plain_2_16': 100, 'plain_4_16': 100, 'cnn2': 10}


def _steepness(logits_fn, lower, upper):
  return lipschitz.upper_bound(logits_fn, (lower + upper) / 2, epsilon=EPSILON)


OURS = {
  'interval': bounds.interval,
  'linear': bounds.linear,
  'alpha': partial(bounds.linear, num_steps=20),
  'crown': partial(bounds.linear, tighten=True),
  'lipschitz': _steepness,
}


class Plain(nn.Module):
  """Convolutions of one width with ReLU, the first of stride 2."""

  depth: int
  width: int

  @nn.compact
  def __call__(self, inputs: chex.Array) -> chex.Array:
    """Images [B, H, W, C] in [0, 1] -> logits [B, 10]."""
    for index in range(self.depth):
      inputs = layers.conv(
        inputs, self.width, strides=1 if index else 2, padding=1
      )
      inputs = nn.relu(inputs)
    return layers.dense(inputs.reshape(len(inputs), -1), 10)


@cache
def make(arch: str, num_images: int) -> tuple[problem.Problem, Any]:
  """A network (also `plain_<depth>_<width>`) with images, and weights."""
  plain = re.fullmatch(r'plain_([1-9]\d*)_([1-9]\d*)', arch)
  task = problem.make('cnn2' if plain else arch, num_images)
  if plain:
    depth, width = map(int, plain.groups())
    task = task._replace(arch=arch, module=Plain(depth, width))
  key = jax.random.key(1)  # so that no weight is 0, as in cnn2's last layer
  return task, jax.tree.map(
    lambda leaf: leaf + 0.02 * jax.random.normal(key, leaf.shape),
    task.variables(),
  )


def cases(
  *, arch: Sequence[str] = ARCHS, peers: bool, num_images: int = 100
) -> list[Case]:
  """Images a second of each bound, all images in one batch."""
  found = []
  for name in arch:
    for method in OURS:
      if method == 'crown' and name not in CROWN:
        continue
      most = CROWN[name] if method == 'crown' else num_images
      count = min(num_images, most)
      task, variables = make(name, count)
      kept: dict[str, Any] = {}
      candidates = {'robustlip': _ours(task, variables, method, kept)}
      if peers and method in TOLERANCES:
        same = method == 'interval' or name.startswith('plain_')
        candidates['auto_LiRPA'] = _theirs(
          task, variables, method, kept, TOLERANCES[method] if same else np.inf
        )
      title = f'{method}, {name}, {count} images'
      found.append(Case(title, 'images', candidates))
  return found


def _box(task):
  return bounds.ball(from_bytes(task.split.images), epsilon=EPSILON)


def _ours(task, variables, method, kept) -> Candidate:
  def bound(variables, lower, upper):
    logits_fn = models.logits_fn(task.module, variables)
    return OURS[method](logits_fn, lower, upper)

  lower, upper = _box(task)
  program = jax.jit(bound).lower(variables, lower, upper).compile()

  def run():
    kept['ours'] = jax.block_until_ready(program(variables, lower, upper))

  return Candidate(run, len(lower), timing.memory(program))


def _theirs(task, variables, method, kept, tolerance) -> Candidate:
  from experiments.benchmarks import lirpa_peer

  def found(theirs):
    ours = np.stack(kept['ours'])
    widths = [upper - lower for lower, upper in (ours, theirs)]
    apart = float(np.abs(ours - theirs).max() / widths[1].max())
    if not apart <= tolerance:
      raise ArithmeticError(f'{task.arch}, {method}: bounds are {apart} apart')
    return {
      'apart': apart,
      'width_ratio': float(np.mean(widths[1] / widths[0])),
    }

  run = lirpa_peer.bounding(task, variables, *_box(task), method=method)
  return Candidate(run, len(task.split.labels), found=found)
