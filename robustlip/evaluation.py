"""Measurements of a network on every example of a data set.

`per_example` runs a measure over a set in batches and returns one value per
example; the last batch is padded and the padding cut off. The key of an
example is `fold_in(key, its index)`: but for rounding no result depends on the
batch size, on the number of devices or on which other examples are measured.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from robustlip import progress
from robustlip.datasets import Split
from robustlip.images import from_bytes
from robustlip.types import DEVICES, Batch, LogitsFn, Maximizer

# (variables, batch, keys [B]) -> [B], and attempts [B] where there are several
Measure = Callable[..., chex.Array]
# (logits_fn, inputs, keys [B]) -> [B]
Ratios = Callable[[LogitsFn, chex.Array, chex.PRNGKey], chex.Array]

CPU_CACHE_BYTES = 2**24  # half of what the cores of a processor may share
GRADIENT_OVERHEAD = 8  # times the features: room left for their gradients
MIN_BATCH_SIZE = 4  # below which the fixed cost of an operation shows
MAX_BATCH_SIZE = 1000  # beyond which no device gains


def over_devices(measure: Measure) -> Callable[..., chex.Array]:
  """`measure` on uint8 images, compiled; local devices share a batch."""
  devices = jax.local_devices()
  mesh = jax.sharding.Mesh(np.array(devices), (DEVICES,))
  everywhere = NamedSharding(mesh, PartitionSpec())
  shared = NamedSharding(mesh, PartitionSpec(DEVICES))

  def on_images(variables, images, labels, indices, key, attempts):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
    batch = Batch(from_bytes(images), labels)
    return measure(variables, batch, keys, *attempts)

  return jax.jit(
    on_images,
    in_shardings=(everywhere, shared, shared, shared, everywhere, shared),
    out_shardings=shared,
  )


def per_example(
  program: Callable[..., chex.Array],
  variables: Any,
  split: Split,
  key: chex.PRNGKey,
  *,
  batch_size: int,
  indices: np.ndarray | None = None,
  attempts: np.ndarray | None = None,
  description: str = 'evaluation',
) -> np.ndarray:
  """Values of `program` for the examples at `indices`, in order.

  Args:
    program: what `over_devices` returned.
    split: `images` uint8 [N, H, W, C] and `labels` int32 [N].
    batch_size: examples to a dispatch of this process, rounded up so that its
      devices share them evenly; all of a smaller split, whatever the indices,
      so that one program serves any of them.
    indices: examples, any number of times each; None is all of them.
    attempts: which attempt at each of these the program makes, if it makes
      several.
    description: what the progress bar says.

  Raises:
    ValueError: if there are no examples, not one label for each, or
      `batch_size` is not positive.
  """
  _check(split, batch_size)
  indices = np.arange(len(split.labels)) if indices is None else indices
  if not len(indices):
    raise ValueError('there are no examples to measure.')
  rows = [indices] if attempts is None else [indices, attempts]
  share = _share(np.stack(rows, axis=1).astype(np.uint32))
  size = _dispatch_size(len(split.labels), batch_size)
  values = []
  with progress.bar(len(share), description, unit='img') as bar:
    for first in range(0, len(share), size):
      part = share[first : first + size]
      chosen, *attempt = np.resize(part, (size, part.shape[1])).T
      images, labels = split.images[chosen], split.labels[chosen]
      value = program(variables, images, labels, chosen, key, tuple(attempt))
      values.append(np.asarray(value)[: len(part)])
      bar.update(len(part))
  values = np.concatenate(values)
  if jax.process_count() > 1:
    values = multihost_utils.process_allgather(values, tiled=True)
  return values[: len(indices)]


def _check(split: Split, batch_size: int) -> None:
  if split.labels.shape != (len(split.images),):
    raise ValueError(
      f'{len(split.images)} images need as many labels, got '
      f'{split.labels.shape}.'
    )
  if batch_size < 1:
    raise ValueError(f'batch_size must be at least 1, got {batch_size}.')


def _share(rows: np.ndarray) -> np.ndarray:
  """The rows of this process: as many for each, the last repeat the first."""
  processes = jax.process_count()
  count = -(-len(rows) // processes)
  shares = np.resize(rows, (processes, count, rows.shape[1]))
  return shares[jax.process_index()]


def _dispatch_size(num_examples: int, batch_size: int) -> int:
  """Examples to a dispatch: a multiple of the devices, no more than needed."""
  devices = jax.local_device_count()
  most = -(-num_examples // jax.process_count())
  return devices * -(-min(batch_size, most) // devices)


def feature_bytes(module: nn.Module, image_shape: tuple[int, ...]) -> int:
  """Memory of all that the layers of a network return for one image."""

  def features(key, inputs):
    variables = module.init(key, inputs)
    _, state = module.apply(
      variables, inputs, capture_intermediates=True, mutable='intermediates'
    )
    return state

  shapes = jax.eval_shape(
    features, jax.random.key(0), jnp.zeros((1, *image_shape))
  )
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))


def fitting_batch_size(
  module: nn.Module, image_shape: tuple[int, ...], *, copies: int = 1
) -> int:
  """Examples whose features fit the memory of this process's devices.

  On a CPU it is the cache that they should fit, where more gain nothing.

  Args:
    copies: points of each example that are computed at once.
  """
  devices = jax.local_devices()
  limit = (devices[0].memory_stats() or {}).get('bytes_limit')
  room = limit / GRADIENT_OVERHEAD if limit else CPU_CACHE_BYTES
  fitting = int(room / (copies * feature_bytes(module, image_shape)))
  return len(devices) * min(max(fitting, MIN_BATCH_SIZE), MAX_BATCH_SIZE)


class Outcome(NamedTuple):
  """What was measured, per example of a split."""

  correct: np.ndarray  # bool [N]
  robust: np.ndarray  # bool [N], correct before and after the attack
  ratios: np.ndarray  # float32 [N], local Lipschitz estimates


class Evaluator:
  """Clean and attacked accuracy and Lipschitz ratios of a network.

  Its programs are compiled once and serve any variables and split. Examples
  that are misclassified are not attacked, nor attacked again once fooled: their
  ball holds a mistake already. Logits that are not finite classify nothing.

  Args:
    network: from variables to the network in inference mode, such as
      `partial(models.logits_fn, module)`.
    attack: finds points in the ball.
    ratios: local Lipschitz estimates, [B]: the `ratios` of
      `lipschitz.estimate`.
    batch_size: examples to a dispatch, see `per_example`.
    attempts: restarts or targets of the attack, the first made before the
      others; if more than one, it takes their numbers [B] as `attempt`, as
      those in `attacks` do. An example that withstands all of them is robust.
  """

  def __init__(
    self,
    network: Callable[[Any], LogitsFn],
    *,
    attack: Maximizer,
    ratios: Ratios,
    batch_size: int,
    attempts: int = 1,
  ):
    def correct(variables, batch, keys):
      del keys
      return _right(network(variables)(batch.inputs), batch.labels)

    def withstands(variables, batch, keys, attempt):
      chosen = {'attempt': attempt} if attempts > 1 else {}
      points = attack(network(variables), batch, keys, **chosen)
      return _right(network(variables)(points), batch.labels)

    def lipschitz(variables, batch, keys):
      return ratios(network(variables), batch.inputs, keys)

    self._correct = over_devices(correct)
    self._withstands = over_devices(withstands)
    self._ratios = over_devices(lipschitz)
    self._batch_size = batch_size
    self._attempts = attempts

  def accuracies(
    self, variables: Any, split: Split, key: chex.PRNGKey, *, name: str = ''
  ) -> tuple[np.ndarray, np.ndarray]:
    """Who is classified correctly, and who still is under attack: bool [N]."""
    correct = per_example(
      self._correct,
      variables,
      split,
      key,
      batch_size=self._batch_size,
      description=f'{name} accuracy'.strip(),
    )
    robust = correct.copy()
    for numbers in ([0], range(1, self._attempts)):
      standing = np.flatnonzero(robust)
      if not len(standing) or not len(numbers):
        break
      withstood = per_example(
        self._withstands,
        variables,
        split,
        key,
        batch_size=self._batch_size,
        indices=np.repeat(standing, len(numbers)),
        attempts=np.tile(numbers, len(standing)),
        description=f'{name} attack'.strip(),
      )
      robust[standing] = withstood.reshape(len(standing), -1).all(axis=1)
    return correct, robust

  def lipschitz(
    self, variables: Any, split: Split, key: chex.PRNGKey, *, name: str = ''
  ) -> np.ndarray:
    """Local Lipschitz estimates, float32 [N]."""
    return per_example(
      self._ratios,
      variables,
      split,
      key,
      batch_size=self._batch_size,
      description=f'{name} Lipschitz'.strip(),
    )

  def __call__(
    self, variables: Any, split: Split, key: chex.PRNGKey, *, name: str = ''
  ) -> Outcome:
    """Everything, on every example of the split."""
    ratios = self.lipschitz(variables, split, key, name=name)
    return Outcome(*self.accuracies(variables, split, key, name=name), ratios)


def _right(logits, labels):
  finite = jnp.isfinite(logits).all(axis=-1)
  return finite & (logits.argmax(axis=-1) == labels)


def percent(hits: np.ndarray) -> float:
  """Share of True, in percent."""
  return 100.0 * float(np.mean(hits))


def summary(train: Outcome, test: Outcome) -> dict[str, float]:
  """Means over both splits and their gaps, as the paper's tables have them."""
  record = {}
  for name, outcome in (('train', train), ('test', test)):
    record[f'{name}_acc'] = percent(outcome.correct)
    record[f'adv_{name}_acc'] = percent(outcome.robust)
    record[f'{name}_lipschitz'] = float(outcome.ratios.mean(dtype=np.float64))
  record['gap'] = record['train_acc'] - record['test_acc']
  record['adv_gap'] = record['adv_train_acc'] - record['adv_test_acc']
  return record
