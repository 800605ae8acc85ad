"""The training step: pure, per device, many of them to one dispatch.

The program `trainer` builds runs steps `first` to `last` of an epoch on every
device for every run. Runs that differ only in `methods.Settings` (seed
included) share one program: states and settings carry a leading axis of runs.
Shapes: R runs, D devices, S steps to an epoch, B examples to a step on all
devices together.
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

from robustlip import models
from robustlip.images import from_bytes
from robustlip.methods import Method, Settings
from robustlip.types import DEVICES, Batch, LogitsFn

Augment = Callable[[chex.Array, chex.PRNGKey], chex.Array]


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
  """What is fixed when a program is traced."""

  module: nn.Module
  method: Callable[[Settings], Method]
  optimizer: Callable[[chex.Numeric], optax.GradientTransformation]
  augment: Augment
  attack_in_training_mode: bool = False  # as the authors' code for at, rst
  fresh_masks: bool = False  # as the authors' code: a dropout mask per call
  accumulate: int = 1  # slices of the batch computed one after the other


class Epoch(NamedTuple):
  """Examples on the devices and the order in which steps take them."""

  images: chex.Array  # uint8 [D, N, H, W, C]
  labels: chex.Array  # int32 [D, N]
  order: chex.Array  # int32 [D, R, S, B / D], indices into the first two


# Name -> optimizer of a learning rate, a number or a schedule, and a momentum.
OPTIMIZERS = {
  'sgd': lambda rate, momentum: optax.sgd(rate, momentum=momentum or None),
  'nesterov': lambda rate, momentum: optax.sgd(
    rate, momentum=momentum, nesterov=True
  ),
  'adam': lambda rate, momentum: optax.adam(rate, b1=momentum),
}


def optimizer(
  name: str,
  *,
  momentum: float,
  milestones: tuple[int, ...],
  steps_per_epoch: int,
  onecycle_epochs: int = 0,
) -> Callable[[chex.Numeric], optax.GradientTransformation]:
  """The optimizer as a function of its base rate, tenfold less at milestones.

  Args:
    name: one of `OPTIMIZERS`.
    milestones: epochs at whose start the rate falls.
    onecycle_epochs: instead of milestones, the rate rises to the base rate over
      the first 30 % of that many epochs and falls to 0 by a cosine; 0 for off.
  """
  if onecycle_epochs:
    steps = onecycle_epochs * steps_per_epoch
    return lambda rate: OPTIMIZERS[name](
      optax.cosine_onecycle_schedule(steps, rate), momentum
    )
  scales = {epoch * steps_per_epoch: 0.1 for epoch in milestones}
  return lambda rate: OPTIMIZERS[name](
    optax.piecewise_constant_schedule(rate, scales), momentum
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


def initial_state(
  recipe: Recipe, settings: Settings, image_shape: tuple[int, ...]
) -> TrainState:
  """States of runs with freshly drawn parameters, one per entry of settings."""

  def init(settings):
    key = jax.random.fold_in(jax.random.key(settings.seed), 0)
    variables = recipe.module.init(key, jnp.zeros((1, *image_shape)))
    params = variables['params']
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      batch_stats=variables.get('batch_stats', {}),
      opt_state=recipe.optimizer(settings.learning_rate).init(params),
      loss_sum=jnp.zeros(()),
      bad_step=jnp.full((), -1, jnp.int32),
    )

  return jax.jit(jax.vmap(init), compiler_options=_run_once())(settings)


def _run_once() -> dict[str, Any]:
  """Compiler options for what takes longer to compile than to run."""
  if jax.default_backend() != 'cpu':
    return {}
  return {
    'xla_backend_optimization_level': 0,
    'xla_llvm_disable_expensive_passes': True,
  }


def epoch_order(
  seed: chex.Numeric, epoch: int, *, num_examples: int, batch_size: int
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
  generator = np.random.default_rng([int(seed), epoch])
  order = generator.permutation(num_examples)[: steps * batch_size]
  return order.reshape(steps, batch_size).astype(np.int32)


class _TrainingMode:
  """The network in training mode; remembers the statistics of its calls.

  All calls have one dropout mask, so that a loss compares a network with
  itself: under two masks the deviations that LLR and gr penalise are those of
  the masks.
  """

  def __init__(self, recipe, params, batch_stats, dropout_key):
    self._recipe, self._params = recipe, params
    self.batch_stats, self._dropout_key = batch_stats, dropout_key

  def __call__(self, inputs: chex.Array) -> chex.Array:
    key = self._dropout_key
    if self._recipe.fresh_masks:
      self._dropout_key, key = jax.random.split(key)
    logits, updated = self._recipe.module.apply(
      {'params': self._params, 'batch_stats': self.batch_stats},
      inputs,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': key},
    )
    # Without a tangent they are plain values even inside the jvp of LLR.
    self.batch_stats = jax.lax.stop_gradient(updated.get('batch_stats', {}))
    return logits


def _attacked_mode(recipe, params, batch_stats, dropout_key) -> LogitsFn:
  """The network as the inner problem sees it: in inference mode by default."""
  if not recipe.attack_in_training_mode:
    variables = {'params': params, 'batch_stats': batch_stats}
    return models.logits_fn(recipe.module, variables)
  return lambda inputs: _TrainingMode(recipe, params, batch_stats, dropout_key)(
    inputs
  )


def _gradients(recipe, settings, params, batch_stats, images, labels, keys):
  """Mean loss and its gradients on one device's examples; keys: [B, 3]."""
  augment_keys, attack_keys, dropout_keys = keys.T
  images = recipe.augment(images, augment_keys)
  batch = Batch(from_bytes(images), labels)
  method = recipe.method(settings)
  other_key = jax.random.fold_in(dropout_keys[0], 1)  # than that of the loss
  network = _attacked_mode(recipe, params, batch_stats, other_key)
  points = jax.lax.stop_gradient(method.maximize(network, batch, attack_keys))

  def objective(params):
    network = _TrainingMode(recipe, params, batch_stats, dropout_keys[0])
    loss = method.loss(network, batch, points).mean()
    return loss, network.batch_stats

  return jax.value_and_grad(objective, has_aux=True)(params)


def _accumulated(recipe, settings, state, images, labels, keys):
  """`_gradients` averaged over `recipe.accumulate` slices, one at a time."""
  parts = recipe.accumulate
  compute = functools.partial(_gradients, recipe, settings, state.params)
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
  settings: Settings,
  state: TrainState,
  images: chex.Array,
  labels: chex.Array,
) -> TrainState:
  """One update of one run on one device's share of the batch.

  Runs under the mapped axis `DEVICES`. Every random draw of an example has a
  key of its place in the whole batch, so that the number of devices does not
  change it (dropout masks excepted, which a device draws for its share).
  """
  key = jax.random.fold_in(jax.random.key(settings.seed), state.step + 1)
  first = jax.lax.axis_index(DEVICES) * len(labels)
  places = first + jnp.arange(len(labels))
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
  keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys)

  (loss, batch_stats), gradients = _accumulated(
    recipe, settings, state, images, labels, keys
  )
  loss, gradients, batch_stats = jax.lax.pmean(
    (loss, gradients, batch_stats), DEVICES
  )
  updates, opt_state = recipe.optimizer(settings.learning_rate).update(
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


def trainer(recipe: Recipe) -> Callable[..., TrainState]:
  """The program `(states, settings, epoch, first, last) -> states`.

  It takes steps `first` to `last` (exclusive) of the order, both traced, so
  that any number of them is one dispatch and one compilation. `states` are
  [D, R, ...] and are donated; `settings` are [R]; `epoch` is an `Epoch`.
  """

  def steps(states, settings, epoch, first, last):
    def advance(index, states):
      def one(settings, state, order):
        chosen = order[index]
        images, labels = epoch.images[chosen], epoch.labels[chosen]
        return step(recipe, settings, state, images, labels)

      return _over_runs(one)(settings, states, epoch.order)

    return jax.lax.fori_loop(first, last, advance, states)

  return jax.pmap(
    steps,
    axis_name=DEVICES,
    in_axes=(0, None, 0, None, None),
    donate_argnums=0,
  )


def _over_runs(function):
  """`function` for every run; a single run is spared the axis."""

  def apply(*args):
    if len(jax.tree.leaves(args)[0]) == 1:
      single = function(*jax.tree.map(lambda x: x[0], args))
      return jax.tree.map(lambda x: x[None], single)
    if _take_turns():
      return jax.lax.map(lambda run: function(*run), args)
    return jax.vmap(function)(*args)

  return apply


def _take_turns() -> bool:
  """Whether runs follow one another within a step instead of at once.

  One run keeps a CPU busy; the features of several only leave its cache.
  """
  return jax.default_backend() == 'cpu'
