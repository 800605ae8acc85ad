"""Type aliases and containers shared by all modules."""

from collections.abc import Callable
from typing import NamedTuple

import chex

LogitsFn = Callable[[chex.Array], chex.Array]  # [B, H, W, C] -> [B, classes]
Objective = Callable[[chex.Array], chex.Array]  # [B, ...] -> [B], to ascend

DEVICES = 'devices'  # name of the mapped axis over accelerators


class Batch(NamedTuple):
  """Examples that travel together through a loss or an attack."""

  inputs: chex.Array  # [B, H, W, C], float32 in [0, 1]
  labels: chex.Array  # [B], int32 in [0, classes); checked where known
  # (a loss may be given shares of the classes instead, float [B, classes])


# The inner problem of a robust loss: points of the ball around each input.
Maximizer = Callable[[LogitsFn, Batch, chex.PRNGKey], chex.Array]
# One value per example; the points are what its Maximizer found.
Loss = Callable[[LogitsFn, Batch, chex.Array], chex.Array]
