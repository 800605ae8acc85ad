"""Measurements of a network on every example of a data set.

`per_example` runs a measure over a set in batches and returns one value per
example; the last batch is padded and the padding cut off. The key of an
example is `fold_in(key, its index)`: but for rounding no result depends on the
batch size, on the number of devices or on which other examples are measured.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from robustlip import attacks, losses, progress, projections
from robustlip.attacks import Stage
from robustlip.datasets import Split, check_layout
from robustlip.images import from_bytes
from robustlip.types import DEVICES, Batch, LogitsFn

# (variables, batch, keys [B], **settings) -> a tree of [B, ...]
Measure = Callable[..., chex.ArrayTree]
# (logits_fn, inputs, keys [B]) -> [B]
Ratios = Callable[[LogitsFn, chex.Array, chex.PRNGKey], chex.Array]
UNBROKEN = -1  # in `Attacked.broken_by`
MANY_PASSES = 100  # of a stage, from which a program for its tail is worth it
MANY_IMAGES = 0.05  # share from which `no_rise` and `more_steps` are doubts


def over_devices(measure: Measure) -> Callable[..., chex.ArrayTree]:
  """`measure` on uint8 images, compiled; local devices share a batch."""
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
    batch_size: examples to a dispatch of this process, rounded up so that its
      devices share them evenly; all of a smaller split, whatever the indices,
      so that one program serves any of them.
    indices: None is all examples.
    settings: numbers that the measure takes beside the batch.
    short_tail: whether the last examples go in a half, a quarter, ... of a
      dispatch, which is worth one more program where that takes long.
    description: what the progress bar says.

  Raises:
    ValueError: if there are no examples, not one label for each, or
      `batch_size` is not positive.
  """
  check_layout(split)
  if batch_size < 1:
    raise ValueError(f'batch_size must be at least 1, got {batch_size}.')
  indices = np.arange(len(split.labels)) if indices is None else indices
  if not len(indices):
    raise ValueError('there are no examples to measure.')
  key, settings = projections.threefry(key), dict(settings or {})
  share = _share(indices.astype(np.uint32))
  size = _dispatch_size(len(split.labels), batch_size)
  values = []
  with progress.bar(len(share), description, unit='img') as bar:
    for first in range(0, len(share), size):
      part = share[first : first + size]
      chosen = np.resize(part, _room(len(part), size, short_tail))
      images, labels = split.images[chosen], split.labels[chosen]
      value = program(variables, images, labels, chosen, key, settings)
      values.append(jax.tree.map(lambda x: np.asarray(x)[: len(part)], value))  # noqa: B023
      bar.update(len(part))
  values = jax.tree.map(lambda *parts: np.concatenate(parts), *values)
  if jax.process_count() > 1:
    values = multihost_utils.process_allgather(values, tiled=True)
  return jax.tree.map(lambda x: x[: len(indices)], values)


def _share(indices: np.ndarray) -> np.ndarray:
  """Those of this process: as many for each, the last repeat the first."""
  processes = jax.process_count()
  count = -(-len(indices) // processes)
  return np.resize(indices, (processes, count))[jax.process_index()]


def _dispatch_size(num_examples: int, batch_size: int) -> int:
  """Examples to a dispatch: a multiple of the devices, no more than needed."""
  devices = jax.local_device_count()
  most = -(-num_examples // jax.process_count())
  return devices * -(-min(batch_size, most) // devices)


def _room(count: int, size: int, short_tail: bool) -> int:
  """Examples to a dispatch for the last `count`."""
  devices = jax.local_device_count()
  while short_tail and 2 * count <= size and size % (2 * devices) == 0:
    size //= 2
  return size


class Attacked(NamedTuple):
  """How the examples of a split fared under a cascade."""

  correct: np.ndarray  # bool [N], before any attack
  robust: np.ndarray  # bool [N], correct before and after every attack
  broken_by: np.ndarray  # int16 [N], place of the stage, else UNBROKEN
  # float32 [N]: the highest seen, on the image and where each attack ended, of
  # the best wrong logit over the label's; at most 0 where the example stands
  margins: np.ndarray
  # float32 [N, H, W, C] on request: where the network errs, else the image
  points: np.ndarray | None = None


class Evaluator:
  """Clean and attacked accuracy and Lipschitz ratios of a network.

  Its programs are compiled once and serve any variables and split. Examples
  that are misclassified are not attacked, nor attacked again once fooled: their
  ball holds a mistake already. Logits with NaN or infinity among them classify
  nothing (-inf is a class that is never predicted).

  Args:
    network: from variables to the network in inference mode, such as
      `partial(models.logits_fn, module)`.
    cascade: the attacks in their order, see `attacks.cascade`.
    ratios: local Lipschitz estimates by name, each [B]: the `ratios` of
      `lipschitz.estimate`.
    attacked: of the same kind as `network`, what the attacks see in its place:
      the mean of a randomised one (`attacks.expected`), or something with
      gradients.
    batch_size: examples to a dispatch, see `per_example`.
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
    return _judged(self._network(variables)(batch.inputs), batch.labels)

  def _attack(self, attack, keep, variables, batch, keys, **settings):
    attacked = (self._attacked or self._network)(variables)
    points = attack(attacked, batch, keys, **settings)
    judged = _judged(self._network(variables)(points), batch.labels)
    return *judged, points if keep else None

  def _estimate(self, ratios, variables, batch, keys):
    return ratios(self._network(variables), batch.inputs, keys)

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
    """Who is classified correctly, and who still is under the cascade.

    Args:
      name: of the split, for the progress bar.
      keep_points: whether to return the points that fooled the network.
      epsilon: radius in the place of the stages' own.
      done: how many stages need not run, and what came of them: what `save`
        was given by a call that was interrupted.
      save: called with the same after each stage.

    Raises:
      ValueError: if a label is no class of the network, if points were not
        kept in what is done, or see `per_example`.
    """
    measure = partial(
      per_example,
      variables=variables,
      split=split,
      key=key,
      batch_size=self._batch_size,
    )
    if done is None:
      self._check_labels(variables, split)
      right, margins = measure(
        self._correct, description=f'{name} accuracy'.strip()
      )
      broken_by = np.full(len(right), UNBROKEN, np.int16)
      points = from_bytes(split.images) if keep_points else None
      done = 0, Attacked(right, right.copy(), broken_by, margins, points)
    first, attacked = done
    if keep_points and attacked.points is None:
      raise ValueError('points were not kept in what is done already.')
    for place in range(first, len(self.cascade)):
      stage = self.cascade[place]
      standing = np.flatnonzero(attacked.robust)
      if not len(standing):
        break
      settings = dict(stage.settings)
      if epsilon is not None:
        one = np.zeros(1, np.float32)
        projections.check_radius(epsilon, one, norm=stage.norm)
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
      attacked = _after(attacked, place, standing, *found)
      if save is not None:
        save(place + 1, attacked)
    return attacked

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
    """
    results, done = {}, None
    for epsilon in sorted(epsilons):
      results[epsilon] = self.accuracies(
        variables, split, key, name=name, epsilon=epsilon, done=done
      )
      done = 0, results[epsilon]
    return results

  def _check_labels(self, variables, split):
    check_layout(split)
    images = jax.ShapeDtypeStruct(split.images.shape, jnp.float32)
    logits = jax.eval_shape(lambda v, x: self._network(v)(x), variables, images)
    losses.check_labels(logits, split.labels)

  def lipschitz(
    self, variables: Any, split: Split, key: chex.PRNGKey, *, name: str = ''
  ) -> dict[str, np.ndarray]:
    """Local Lipschitz estimates by name, each float32 [N]."""
    return {
      procedure: per_example(
        program,
        variables,
        split,
        key,
        batch_size=self._batch_size,
        description=f'{name} {procedure} Lipschitz'.strip(),
      )
      for procedure, program in self._ratios.items()
    }


def _judged(logits, labels):
  """Who is classified correctly, and the margins of the errors."""
  margins = losses.margins(logits, labels).astype(jnp.float32)
  return losses.correct(logits, labels), margins


def _after(attacked, place, standing, withstood, margins, points) -> Attacked:
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
  """Passes through the network that a cascade took, at most."""
  broken_by = attacked.broken_by[attacked.correct]
  return sum(
    stage.passes * int(((broken_by == UNBROKEN) | (broken_by >= place)).sum())
    for place, stage in enumerate(cascade)
  )


# Fact of `doubts` -> what it means and what to do, where it is not 0.
ADVICE = {
  'zero_gradients': 'share of images whose input gradient is exactly 0: '
  'attacks that follow it stand still; trust a gradient-free one (square), or '
  'give what has no gradient one by attacks.straight_through.',
  'nonfinite_gradients': 'share of images whose logits are finite and whose '
  'input gradient is not: mend the function (a safe where), attacks take the '
  'rest of the gradient.',
  'probabilities': 'the outputs are probabilities: measure the logits, whose '
  'gradients do not vanish where the network is certain.',
  'randomness': 'largest change of a logit between two calls on the same '
  'images: fix the draw, and attack the mean of others (attacks.expected).',
  'mixed_examples': 'largest change of a logit when other images of its batch '
  'change: put the network into inference mode (BatchNorm).',
  'half_precision': 'the logits are computed in half precision: ratios and '
  'margins are those of its rounding.',
  'gradient_free': 'share of images that only a gradient-free attack took: '
  'the gradients mislead the others; robust accuracy may be lower still.',
  'no_rise': 'share of images on which no number of PGD steps ends above its '
  'random start, though they have gradients: these mislead; attack something '
  'smoother in the place of the network, or without gradients (square).',
  'more_steps': 'share of images that 40 steps of PGD take and 10 do not: few '
  'steps are too few here; attack with more, or with apgd_ce.',
}


def doubts(
  network: Callable[[Any], LogitsFn],
  variables: Any,
  split: Split,
  key: chex.PRNGKey,
  *,
  attacked: Attacked | None = None,
  cascade: Sequence[Stage] = (),
  batch_size: int = 100,
) -> dict[str, float]:
  """Facts that make an evaluation doubtful, each 0 where it does not.

  Args:
    network: as that of an `Evaluator`.
    split: examples to look at; a hundred are enough.
    attacked: what came of the cascade, on any split.
    cascade: its stages.

  Returns:
    A number for each key of `ADVICE`; `gradient_free` if it is known what came
    of the cascade and it begins with gradients; `no_rise` and `more_steps`, 0
    below `MANY_IMAGES`, if it has several stages and a radius: a quick look
    with one does not pay for these.
  """

  def facts(variables, batch, keys):
    del keys

    def objective(inputs):
      logits = network(variables)(inputs)
      return losses.log_odds(logits, batch.labels).sum(), logits

    gradients, logits = jax.grad(objective, has_aux=True)(batch.inputs)
    flat = gradients.reshape(len(gradients), -1)
    sums = logits.astype(jnp.float32).sum(axis=-1)
    half = len(flat) // 2
    company = batch.inputs.at[half:].set(1 - batch.inputs[half:])
    beside = network(variables)(company)[:half]
    return {
      'zero_gradients': (flat == 0).all(axis=1),
      'nonfinite_gradients': ~jnp.isfinite(flat).all(axis=1)
      & ~jnp.isnan(logits).any(axis=-1)
      & (logits < jnp.inf).all(axis=-1),
      'probabilities': (logits >= 0).all(axis=-1) & (abs(sums - 1) < 1e-3),
      'logits': logits,
      'beside_others': logits.at[:half].set(beside),
    }

  measure = partial(
    per_example,
    variables=variables,
    split=split,
    key=key,
    batch_size=batch_size,
    description='doubts',
  )
  program = over_devices(facts)
  first, second = measure(program), measure(program)
  logits, beside = first.pop('logits'), first.pop('beside_others')

  def change(others):
    same = (logits == others) | (np.isnan(logits) & np.isnan(others))
    before, after = (np.where(same, 0, x) for x in (logits, others))
    return float(np.abs(before - after).max())

  found = {name: float(share.mean()) for name, share in first.items()}
  found['probabilities'] = float(first['probabilities'].all())
  found['randomness'] = change(second['logits'])
  mixed = change(beside)
  scale = np.abs(logits[np.isfinite(logits)]).max(initial=0)
  is_rounding = found['randomness'] or mixed <= 0.01 * scale
  found['mixed_examples'] = 0.0 if is_rounding else mixed
  found['half_precision'] = float(logits.dtype.itemsize < 4)
  if attacked is not None and cascade and cascade[0].name != 'square':
    count = taken(attacked, cascade).get('square', 0)
    found['gradient_free'] = count / len(attacked.correct)
  radius = cascade[0].settings.get('epsilon', 0) if len(cascade) > 1 else 0
  if radius > 0:
    values, right = measure(
      over_devices(partial(_ascents, network, cascade[0].norm)),
      settings={'epsilon': radius},
    )
    misled = (values[:, 1:].max(axis=1) <= values[:, 0]) & ~(
      first['zero_gradients'] | first['nonfinite_gradients']
    )
    late = right[:, :2].all(axis=1) & ~right.all(axis=1)
    shares = {'no_rise': misled.mean(), 'more_steps': late.mean()}
    found |= {k: float(v * (v >= MANY_IMAGES)) for k, v in shares.items()}
  return found


def _ascents(network, norm, variables, batch, keys, *, epsilon):
  """Log odds, and who is right, after 0, 10, ... 40 steps of PGD, [B, 5]."""
  logits_fn = network(variables)
  settings = dict(epsilon=epsilon, norm=norm)

  def ten_steps(points, _):
    logits = logits_fn(points)
    onward = attacks.pgd(logits_fn, batch, keys, start=points, **settings)
    return onward, (
      losses.log_odds(logits, batch.labels),
      losses.correct(logits, batch.labels),
    )

  start = projections.random_start(batch.inputs, keys, **settings)
  _, found = jax.lax.scan(ten_steps, start, length=5)
  return jax.tree.map(jnp.transpose, found)


def percent(hits: np.ndarray) -> float:
  """Share of True, in percent."""
  return 100.0 * float(np.mean(hits))
