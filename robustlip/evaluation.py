"""Measurements of a network on every example of a data set.

`per_example` runs a measure over a set in batches and returns one value per
example; the last batch is padded and the padding cut off. The key of an
example is `fold_in(key, its index)`: but for rounding no result depends on the
batch size, on the number of devices or on which other examples are measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from robustlip import losses, progress, projections
from robustlip.attacks import Stage
from robustlip.datasets import Split, check_layout
from robustlip.images import check_least, from_bytes
from robustlip.types import DEVICES, Batch, LogitsFn

# (variables, batch, keys [B], **settings) -> a tree of [B, ...]
Measure = Callable[..., chex.ArrayTree]
# (logits_fn, inputs, keys [B]) -> [B]
Ratios = Callable[[LogitsFn, chex.Array, chex.PRNGKey], chex.Array]
UNBROKEN = -1  # in `Attacked.broken_by`
MANY_PASSES = 100  # of a stage, from which shorter last batches are worthwhile


def over_devices(measure: Measure) -> Callable[..., chex.ArrayTree]:
  """Compiles `measure` for uint8 images; splits a batch over local devices."""
  devices = jax.local_devices()
  mesh = jax.sharding.Mesh(np.array(devices), (DEVICES,))
  everywhere = NamedSharding(mesh, PartitionSpec())
  shared = NamedSharding(mesh, PartitionSpec(DEVICES))

  def on_images(variables, images, labels, indices, key, settings):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
    batch = Batch(from_bytes(images), labels)
    return measure(variables, batch, keys, **settings)

  return jax.jit(
    on_images,
    in_shardings=(everywhere, shared, shared, shared, everywhere, everywhere),
    out_shardings=shared,
  )


def per_example(
  program: Callable[..., chex.ArrayTree],
  variables: Any,
  split: Split,
  key: chex.PRNGKey,
  *,
  batch_size: int,
  indices: np.ndarray | None = None,
  settings: Mapping[str, chex.Numeric] | None = None,
  short_tail: bool = False,
  description: str = 'evaluation',
) -> Any:
  """Values of `program` for the examples at `indices`, in order.

  Args:
    program: what `over_devices` returned.
    split: `images` uint8 [N, H, W, C] and `labels` int32 [N].
    batch_size: examples per batch of this process, rounded up to a multiple of
      its devices, and at most the whole split. It does not depend on `indices`,
      so that one compiled program serves all of them.
    indices: integers [M] or a mask, bool [N]; None is all examples.
    settings: numbers that the measure takes besides the batch.
    short_tail: whether the last batch may be shortened by quarters. Each size
      is compiled, which is worthwhile only where a batch takes long.
    description: what the progress bar says.

  Raises:
    ValueError: if there are no examples, not one label for each, or
      `batch_size` is not positive.
  """
  check_layout(split)
  check_least(1, batch_size=batch_size)
  every = np.arange(len(split.labels))
  indices = every if indices is None else every[indices]
  if not len(indices):
    raise ValueError('there are no examples to measure.')
  key, settings = projections.threefry(key), dict(settings or {})
  share = _process_indices(indices.astype(np.uint32))
  size = _dispatch_size(len(split.labels), batch_size)
  values = []
  with progress.bar(len(share), description, unit='img') as bar:
    for first in range(0, len(share), size):
      part = share[first : first + size]
      chosen = np.resize(part, _tail_size(len(part), size, short_tail))
      images, labels = split.images[chosen], split.labels[chosen]
      value = program(variables, images, labels, chosen, key, settings)
      values.append(jax.tree.map(lambda x: np.asarray(x)[: len(part)], value))  # noqa: B023
      bar.update(len(part))
  values = jax.tree.map(lambda *parts: np.concatenate(parts), *values)
  if jax.process_count() > 1:
    values = multihost_utils.process_allgather(values, tiled=True)
  return jax.tree.map(lambda x: x[: len(indices)], values)


def _process_indices(indices: np.ndarray) -> np.ndarray:
  """The indices of this process: as many for each, by repeating the first."""
  processes = jax.process_count()
  count = -(-len(indices) // processes)
  return np.resize(indices, (processes, count))[jax.process_index()]


def _dispatch_size(num_examples: int, batch_size: int) -> int:
  """Examples per batch: a multiple of the devices, no more than needed."""
  devices = jax.local_device_count()
  most = -(-num_examples // jax.process_count())
  return devices * -(-min(batch_size, most) // devices)


def _tail_size(count: int, size: int, short_tail: bool) -> int:
  """Size of a batch for `count` examples: `size`, or as few quarters as fit."""
  if not short_tail:
    return size
  part = size // math.gcd(size // jax.local_device_count(), 4)
  return part * -(-count // part)


class Attacked(NamedTuple):
  """The result of a cascade for each example of a split."""

  correct: np.ndarray  # bool [N], before any attack
  robust: np.ndarray  # bool [N], correct before and after every attack
  broken_by: np.ndarray  # int16 [N], index of the stage, else UNBROKEN
  # float32 [N]: best wrong logit minus the label's, the highest over the image
  # and the points of all attacks; at most 0 if robust
  margins: np.ndarray
  # float32 [N, H, W, C] on request: the point that fools it, else the image
  points: np.ndarray | None = None


class Evaluator:
  """Clean and attacked accuracy and Lipschitz ratios of a network.

  Its programs are compiled once and serve any variables and split. An example
  is attacked only while the network is right on it: one error in its ball is
  enough. Logits with NaN or +inf among them count as an error (-inf is a class
  that is never predicted).

  Args:
    network: from variables to the network in inference mode, such as
      `partial(models.logits_fn, module)`.
    cascade: the attacks in their order, see `attacks.cascade`.
    ratios: local Lipschitz estimates by name, each [B]: the `ratios` of
      `lipschitz.estimate`.
    attacked: like `network`, what the attacks see in its place: the mean of a
      randomised network (`attacks.expected`), or a stand-in with gradients.
    batch_size: examples per batch, see `per_example`.

  Raises:
    ValueError: for a cascade of something else than stages.
  """

  def __init__(
    self,
    network: Callable[[Any], LogitsFn],
    *,
    cascade: Sequence[Stage] = (),
    ratios: Mapping[str, Ratios] | None = None,
    attacked: Callable[[Any], LogitsFn] | None = None,
    batch_size: int = 100,
  ):
    self.cascade = tuple(cascade)
    if not all(isinstance(stage, Stage) for stage in self.cascade):
      raise ValueError(
        "cascade must be stages: attacks.cascade('strong', epsilon=..., "
        'num_classes=...) makes them.'
      )
    self._network, self._attacked = network, attacked
    self._batch_size = batch_size
    self._correct = over_devices(self._classify)
    self._attacks = {  # stages that share an attack share its programs
      (stage.attack, keep): over_devices(
        partial(self._attack, stage.attack, keep)
      )
      for stage in self.cascade
      for keep in (False, True)
    }
    self._ratios = {
      name: over_devices(partial(self._estimate, function))
      for name, function in (ratios or {}).items()
    }

  def _classify(self, variables, batch, keys):
    del keys
    return _classified(self._network(variables)(batch.inputs), batch.labels)

  def _attack(self, attack, keep, variables, batch, keys, **settings):
    attacked = (self._attacked or self._network)(variables)
    points = attack(attacked, batch, keys, **settings)
    judged = _classified(self._network(variables)(points), batch.labels)
    return *judged, points if keep else None

  def _estimate(self, ratios, variables, batch, keys):
    return ratios(self._network(variables), batch.inputs, keys)

  def _measure(self, variables, split, key):
    """`per_example` of a program, which is left to be given."""
    return partial(
      per_example,
      variables=variables,
      split=split,
      key=key,
      batch_size=self._batch_size,
    )

  def accuracies(
    self,
    variables: Any,
    split: Split,
    key: chex.PRNGKey,
    *,
    name: str = '',
    keep_points: bool = False,
    epsilon: float | None = None,
    done: tuple[int, Attacked] | None = None,
    save: Callable[[int, Attacked], None] | None = None,
  ) -> Attacked:
    """Which examples are classified correctly, before and after the cascade.

    Args:
      name: of the split, for the progress bar.
      keep_points: whether to return the points that fooled the network.
      epsilon: radius that replaces the stages' own.
      done: (number of stages to skip, their result), which an interrupted call
        for the same split gave to `save`.
      save: called with such a pair after each stage.

    Raises:
      ValueError: if a label is no class of the network, a radius is out of
        range, `done` is of another split or lacks the points to be kept, or
        see `per_example`.
    """
    measure = self._measure(variables, split, key)
    self._check_radius(epsilon)
    if done is None:
      check_layout(split)
      network = self._network(variables)
      losses.check_classes(network, split.images.shape, split.labels)
      right, margins = measure(
        self._correct, description=f'{name} accuracy'.strip()
      )
      broken_by = np.full(len(right), UNBROKEN, np.int16)
      points = from_bytes(split.images) if keep_points else None
      done = 0, Attacked(right, right.copy(), broken_by, margins, points)
    first, attacked = done
    if len(attacked.robust) != len(split.labels):
      raise ValueError(
        f'what is done already is of {len(attacked.robust)} examples, the '
        f'split has {len(split.labels)}.'
      )
    if keep_points and attacked.points is None:
      raise ValueError('points were not kept in what is done already.')
    if not keep_points:  # those of earlier stages alone would be of no use
      attacked = attacked._replace(points=None)
    for place in range(first, len(self.cascade)):
      stage = self.cascade[place]
      standing = np.flatnonzero(attacked.robust)
      if not len(standing):
        break
      settings = dict(stage.settings)
      if epsilon is not None:
        settings['epsilon'] = epsilon
      found = measure(
        self._attacks[stage.attack, keep_points],
        indices=standing,
        settings=settings,
        short_tail=stage.passes >= MANY_PASSES,
        description=(
          f'{name} {stage.name} ({place + 1} of {len(self.cascade)})'.strip()
        ),
      )
      attacked = _updated(attacked, place, standing, *found)
      if save is not None:
        save(place + 1, attacked)
    return attacked

  def _check_radius(self, epsilon):
    """Raises ValueError for a radius out of range, which jit could not."""
    one = np.zeros(1, np.float32)
    for stage in self.cascade:
      radius = stage.settings.get('epsilon') if epsilon is None else epsilon
      if radius is not None:
        projections.check_radius(radius, one, norm=stage.norm)

  def accuracies_at(
    self,
    variables: Any,
    split: Split,
    key: chex.PRNGKey,
    epsilons: Sequence[float],
    *,
    name: str = '',
  ) -> dict[float, Attacked]:
    """`accuracies` by radius, the smallest first.

    An example broken at a radius is broken at every larger one, and is not
    attacked there.

    Raises:
      ValueError: as `accuracies`; for any of the radii before the first attack.
    """
    for epsilon in epsilons:
      self._check_radius(epsilon)
    results, done = {}, None
    for epsilon in sorted(epsilons):
      results[epsilon] = self.accuracies(
        variables, split, key, name=name, epsilon=epsilon, done=done
      )
      done = 0, results[epsilon]
    return results

  def lipschitz(
    self, variables: Any, split: Split, key: chex.PRNGKey, *, name: str = ''
  ) -> dict[str, np.ndarray]:
    """Local Lipschitz estimates by name, each float32 [N]."""
    measure = self._measure(variables, split, key)
    return {
      kind: measure(program, description=f'{name} {kind} Lipschitz'.strip())
      for kind, program in self._ratios.items()
    }


def _classified(logits, labels):
  """Which examples are classified correctly, and `losses.margins`; [B] each."""
  margins = losses.margins(logits, labels).astype(jnp.float32)
  return losses.correct(logits, labels), margins


def _updated(attacked, place, standing, withstood, margins, points) -> Attacked:
  """What is known after a stage that attacked the `standing` examples."""
  robust, broken_by = attacked.robust.copy(), attacked.broken_by.copy()
  robust[standing] = withstood
  broken = standing[~withstood]
  broken_by[broken] = place
  highest, kept = attacked.margins.copy(), attacked.points
  highest[standing] = np.maximum(highest[standing], margins)
  if points is not None:
    kept = np.array(kept)
    kept[broken] = points[~withstood]
  return Attacked(attacked.correct, robust, broken_by, highest, kept)


def taken(attacked: Attacked, cascade: Sequence[Stage]) -> dict[str, int]:
  """How many examples each attack of a cascade broke, by name, in order."""
  counts = {}
  for place, stage in enumerate(cascade):
    broken = int((attacked.broken_by == place).sum())
    counts[stage.name] = counts.get(stage.name, 0) + broken
  return counts


def passes(attacked: Attacked, cascade: Sequence[Stage]) -> int:
  """Upper bound of the passes through the network that a cascade took."""
  broken_by = attacked.broken_by[attacked.correct]
  return sum(
    stage.passes * int(((broken_by == UNBROKEN) | (broken_by >= place)).sum())
    for place, stage in enumerate(cascade)
  )


def percent(hits: np.ndarray) -> float:
  """Share of True, in percent."""
  return 100.0 * float(np.mean(hits))
