"""The training step: pure, per device, many of them to one dispatch.

    method = methods.rst(epsilon=0.1, lam=2.0)
    recipe = training.Recipe(module, method, optax.sgd(0.05))
    state = training.fit(recipe, split, key, batch_size=64, epochs=5)
    network = models.logits_fn(module, state.variables)

`fit` is `step` over shuffled epochs, compiled by `trainer` with the only
`pmap`. `step` itself can be mapped over seeds and weights by `jax.vmap`.
Shapes: N examples, D devices, S steps to an epoch, B examples to a step on all
devices together. Every draw is of `fold_in(key, step)`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from robustlip import models, progress, projections
from robustlip.datasets import Split, check_layout
from robustlip.images import AUGMENTATIONS, Augment, from_bytes
from robustlip.methods import Method
from robustlip.types import DEVICES, Batch, LogitsFn

STEPS_PER_DISPATCH = 8  # after which the host sees the loss and may stop


class TrainState(NamedTuple):
  """Everything a run needs to go on; nothing in it is static."""

  step: chex.Array  # int32, steps taken since the start
  params: Any
  batch_stats: Any  # {} for a network without BatchNorm
  opt_state: Any
  loss_sum: chex.Array  # float32, over the steps of this epoch
  bad_step: chex.Array  # int32, the first with a loss not finite, or -1

  @property
  def variables(self) -> dict[str, Any]:
    """What the network is applied with."""
    return {'params': self.params, 'batch_stats': self.batch_stats}


class Recipe(NamedTuple):
  """What to train and how.

  Its numbers, such as the learning rate of the optimizer and the weights of
  the method, may be traced. The module is Linen: its `__call__` takes
  `train=`, and BatchNorm is `layers.batch_norm` or has `axis_name=DEVICES`
  while training.
  """

  module: nn.Module
  method: Method | Callable[[chex.Array], Method]  # or a function of the step
  optimizer: optax.GradientTransformation
  augment: Augment = AUGMENTATIONS['none']
  attack_in_training_mode: bool = False  # as the authors' code for at, rst
  accumulate: int = 1  # slices of the batch computed one after the other


class Epoch(NamedTuple):
  """Examples on the devices and the order in which steps take them."""

  images: chex.Array  # uint8 [D, N, H, W, C]
  labels: chex.Array  # int32 [D, N]
  order: chex.Array  # int32 [D, S, B / D], indices into the first two


def initial_state(
  recipe: Recipe, key: chex.PRNGKey, image_shape: tuple[int, ...]
) -> TrainState:
  """A state with freshly drawn parameters, before the first step.

  Raises:
    ValueError: if the module is not one that `step` can train (`models.init`).
  """

  def init(key):
    image = jnp.zeros((1, *image_shape))
    first = jax.random.fold_in(projections.threefry(key), 0)
    variables = models.init(recipe.module, first, image)
    params = variables['params']
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      batch_stats=variables.get('batch_stats', {}),
      opt_state=recipe.optimizer.init(params),
      loss_sum=jnp.zeros(()),
      bad_step=jnp.full((), -1, jnp.int32),
    )

  return jax.jit(init, compiler_options=_run_once())(key)


def _run_once() -> dict[str, Any]:
  """Compiler options for what takes longer to compile than to run."""
  if jax.default_backend() != 'cpu':
    return {}
  return {
    'xla_backend_optimization_level': 0,
    'xla_llvm_disable_expensive_passes': True,
  }


class _TrainingMode:
  """The network in training mode; remembers the statistics of its calls.

  All calls have one dropout mask, so that a loss compares a network with
  itself: under two masks the deviations that LLR and gr penalise are those of
  the masks. The authors' code draws one for each call (`fresh_masks`).
  """

  def __init__(self, module, params, batch_stats, dropout_key, fresh_masks):
    self._module, self._params = module, params
    self.batch_stats, self._key = batch_stats, dropout_key
    self._fresh_masks = fresh_masks

  def __call__(self, inputs: chex.Array) -> chex.Array:
    key = self._key
    if self._fresh_masks:
      self._key, key = jax.random.split(key)
    with nn.intercept_methods(_refuse_device_statistics):
      logits, updated = self._module.apply(
        {'params': self._params, 'batch_stats': self.batch_stats},
        inputs,
        train=True,
        mutable=['batch_stats'],
        rngs={'dropout': key},
      )
    # Without a tangent they are plain values even inside the jvp of LLR.
    self.batch_stats = jax.lax.stop_gradient(updated.get('batch_stats', {}))
    return logits


def _refuse_device_statistics(call, args, kwargs, context):
  """Refuses BatchNorm over the examples of one device of several."""
  module = context.module
  if isinstance(module, nn.BatchNorm) and module.axis_name is None:
    running = kwargs.get('use_running_average', module.use_running_average)
    if not running and models.layers.devices_axis() and jax.device_count() > 1:
      raise ValueError(
        f'{module.name} would normalise by the examples of one device of '
        f'{jax.device_count()}: write models.layers.batch_norm(...) or '
        f'nn.BatchNorm(axis_name={DEVICES!r}) while training.'
      )
  return call(*args, **kwargs)


def _attacked_mode(recipe, method, params, batch_stats, key) -> LogitsFn:
  """The network as the inner problem sees it: in inference mode by default."""
  if not recipe.attack_in_training_mode:
    variables = {'params': params, 'batch_stats': batch_stats}
    return models.logits_fn(recipe.module, variables)
  return lambda inputs: _TrainingMode(
    recipe.module, params, batch_stats, key, method.fresh_masks
  )(inputs)


def _gradients(recipe, method, params, batch_stats, images, labels, keys):
  """Mean loss and its gradients on one device's examples; keys: [B, 3]."""
  augment_keys, attack_keys, dropout_keys = keys.T
  batch = Batch(from_bytes(recipe.augment(images, augment_keys)), labels)
  other_key = jax.random.fold_in(dropout_keys[0], 1)  # than that of the loss
  network = _attacked_mode(recipe, method, params, batch_stats, other_key)
  points = jax.lax.stop_gradient(method.maximize(network, batch, attack_keys))

  def objective(params):
    network = _TrainingMode(
      recipe.module, params, batch_stats, dropout_keys[0], method.fresh_masks
    )
    loss = method.loss(network, batch, points).mean()
    return loss, network.batch_stats

  return jax.value_and_grad(objective, has_aux=True)(params)


def _accumulated(recipe, method, state, images, labels, keys):
  """`_gradients` averaged over `recipe.accumulate` slices, one at a time."""
  parts = recipe.accumulate
  compute = functools.partial(_gradients, recipe, method, state.params)
  if parts == 1:
    return compute(state.batch_stats, images, labels, keys)
  slices = jax.tree.map(
    lambda x: x.reshape(parts, -1, *x.shape[1:]), (images, labels, keys)
  )

  def add(carry, piece):
    total, batch_stats = carry
    (loss, batch_stats), gradients = compute(batch_stats, *piece)
    return (jax.tree.map(jnp.add, total, (loss, gradients)), batch_stats), None

  zeros = jax.tree.map(jnp.zeros_like, (state.loss_sum, state.params))
  (total, batch_stats), _ = jax.lax.scan(
    add, (zeros, state.batch_stats), slices
  )
  loss, gradients = jax.tree.map(lambda x: x / parts, total)
  return (loss, batch_stats), gradients


def step(
  recipe: Recipe,
  state: TrainState,
  images: chex.Array,
  labels: chex.Array,
  key: chex.PRNGKey,
  *,
  axis_name: str | None = None,
) -> TrainState:
  """One update on a batch, or on one device's share of it.

  Every random draw of an example has a key of its place in the whole batch, so
  that the number of devices does not change it (dropout masks excepted, which a
  device draws for its share).

  Args:
    images: uint8 [B, H, W, C].
    labels: int32 [B].
    key: that of the run, the same at every step.
    axis_name: the mapped axis over devices, `DEVICES`; None without one.
  """
  key = jax.random.fold_in(projections.threefry(key), state.step + 1)
  first = 0 if axis_name is None else jax.lax.axis_index(axis_name)
  places = first * len(labels) + jnp.arange(len(labels))
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
  keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys)

  method = recipe.method
  method = method(state.step) if callable(method) else method
  own = state
  if axis_name is not None:  # else `jax.shard_map` sums gradients over devices
    own = jax.lax.pcast(state, axis_name, to='varying')
  (loss, batch_stats), gradients = _accumulated(
    recipe, method, own, images, labels, keys
  )
  if axis_name is not None:
    loss, gradients, batch_stats = jax.lax.pmean(
      (loss, gradients, batch_stats), axis_name
    )
  updates, opt_state = recipe.optimizer.update(
    gradients, state.opt_state, state.params
  )
  first_bad = (state.bad_step < 0) & ~jnp.isfinite(loss)
  return TrainState(
    step=state.step + 1,
    params=optax.apply_updates(state.params, updates),
    batch_stats=batch_stats,
    opt_state=opt_state,
    loss_sum=state.loss_sum + loss,
    bad_step=jnp.where(first_bad, state.step, state.bad_step),
  )


def trainer(make_recipe: Callable[[Any], Recipe]) -> Callable[..., TrainState]:
  """The program `(state, numbers, key, epoch, first, last) -> state`.

  It takes steps `first` to `last` (exclusive) of the order, both traced, so
  that any number of them is one dispatch and one compilation. `state` is
  [D, ...] and is donated; `epoch` is an `Epoch`.

  Args:
    make_recipe: from `numbers`, which are traced, so that runs that differ in
      them alone are one compilation.
  """

  def steps(state, numbers, key, epoch, first, last):
    recipe = make_recipe(numbers)

    def advance(index, state):
      chosen = epoch.order[index]
      images, labels = epoch.images[chosen], epoch.labels[chosen]
      return step(recipe, state, images, labels, key, axis_name=DEVICES)

    return jax.lax.fori_loop(first, last, advance, state)

  return jax.pmap(
    steps,
    axis_name=DEVICES,
    in_axes=(0, None, None, 0, None, None),
    donate_argnums=0,
  )


def replicate(tree: Any) -> Any:
  """Copies on the local devices, [...] -> [D, ...], placed as results are.

  An argument placed otherwise would have the program compiled twice.
  """
  devices = jax.local_devices()
  mesh = jax.sharding.Mesh(np.array(devices), (DEVICES,))
  sharding = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec(DEVICES)
  )
  return jax.tree.map(
    lambda x: jax.device_put(
      np.broadcast_to(x, (len(devices), *np.shape(x))), sharding
    ),
    tree,
  )


def unreplicate(tree: Any) -> Any:
  """The copy of the first local device as NumPy arrays, [D, ...] -> [...]."""
  return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)[0]), tree)


def epoch_order(
  seed: int, epoch: int, *, num_examples: int, batch_size: int
) -> np.ndarray:
  """Shuffled examples of one epoch in full batches, int32 [S, B].

  The `num_examples % batch_size` examples left over differ every epoch.

  Raises:
    ValueError: if there are fewer examples than one batch takes.
  """
  steps = num_examples // batch_size
  if steps < 1:
    raise ValueError(
      f'a batch of {batch_size} needs at least as many training examples, '
      f'got {num_examples}.'
    )
  generator = np.random.default_rng([seed, epoch])
  order = generator.permutation(num_examples)[: steps * batch_size]
  return order.reshape(steps, batch_size).astype(np.int32)


def _share(order: np.ndarray) -> np.ndarray:
  """[S, B] -> [D, S, B / D] for the devices of this process."""
  parts = np.stack(np.split(order, jax.device_count(), axis=-1))
  mine = jax.local_device_count()
  return parts[jax.process_index() * mine :][:mine]


class Feed:
  """Training examples on their way to the devices.

  Resident: the whole set is on every device as uint8 and a dispatch is told
  where in the epoch's order to start and stop. Streamed: each dispatch brings
  the images of its own steps. The steps see the same examples either way.

  Args:
    stream: None streams if the images would take more than half of the memory
      of a device.
  """

  def __init__(self, split: Split, *, stream: bool | None = None):
    self._split = split
    if stream is None:
      stats = jax.local_devices()[0].memory_stats() or {}
      stream = split.images.nbytes > stats.get('bytes_limit', np.inf) / 2
    self._resident = None
    if not stream:
      self._resident = replicate((split.images, split.labels))

  def dispatches(self, order: np.ndarray, first: int = 0):
    """Yields (epoch, first, last), the arguments of each dispatch of an epoch.

    Args:
      order: int32 [S, B], see `epoch_order`.
      first: step to begin with.
    """
    order = _share(order)
    for start in range(first, order.shape[1], STEPS_PER_DISPATCH):
      stop = min(start + STEPS_PER_DISPATCH, order.shape[1])
      if self._resident:
        yield Epoch(*self._resident, order), start, stop
      else:
        yield self._streamed(order[:, start:stop]), 0, stop - start

  def _streamed(self, order: np.ndarray) -> Epoch:
    """The images of these steps and their places, in arrays of one size."""
    devices, steps, share = order.shape
    chosen = np.resize(
      order.swapaxes(0, 1), (STEPS_PER_DISPATCH, devices, share)
    )
    flat = chosen.swapaxes(0, 1).reshape(devices, -1)
    places = np.arange(flat.shape[1], dtype=np.int32)
    places = places.reshape(STEPS_PER_DISPATCH, share)
    images, labels = self._split.images[flat], self._split.labels[flat]
    return Epoch(images, labels, np.stack([places] * devices))


def fit(
  recipe: Recipe,
  split: Split,
  key: chex.PRNGKey,
  *,
  batch_size: int,
  epochs: int,
  seed: int = 0,
  state: TrainState | None = None,
) -> TrainState:
  """Trains from start to end on all devices; the state after the last step.

  Args:
    split: uint8 images [N, H, W, C] and int32 labels [N].
    key: of the initial parameters and of everything drawn in a step.
    batch_size: examples to a step, a multiple of the number of devices.
    seed: of the order of the examples.
    state: what to go on from, None for a new network; `epochs` more are made.

  Raises:
    ValueError: if the split is none or has fewer examples than a batch, or the
      loss became not finite.
  """
  if not isinstance(split, Split):
    raise ValueError(
      'split must be a datasets.Split of uint8 images and labels, got '
      f'{type(split).__name__}.'
    )
  check_layout(split.images)
  if state is None:
    state = initial_state(recipe, key, split.images.shape[1:])
  done = int(state.step)
  order = functools.partial(
    epoch_order, seed, num_examples=len(split.labels), batch_size=batch_size
  )
  program, feed = trainer(lambda numbers: recipe), Feed(split)
  states, total = replicate(state), epochs * len(order(0))
  with progress.bar(total, 'training', unit='step') as bar:
    for epoch in range(epochs):
      for arguments in feed.dispatches(order(done // len(order(0)) + epoch)):
        states = program(states, {}, key, *arguments)
        if (bad := int(unreplicate(states.bad_step))) >= 0:
          raise ValueError(
            f'the loss is not finite at step {bad}; a lower learning rate helps'
          )
        bar.update(arguments[2] - arguments[1])
  return unreplicate(states)
