"""Training: a pure step on one device's examples, and programs of many steps.

    method = methods.rst(epsilon=0.1, lam=2.0)
    recipe = training.Recipe(module, method, optax.sgd(0.05))
    state = training.fit(recipe, split, key, batch_size=64, epochs=5)
    network = models.logits_fn(module, state.variables)

`fit` is `step` over shuffled epochs, compiled by `trainer` with the only
`pmap`. `step` itself can be mapped over seeds and weights by `jax.vmap`. If
the optimizer keeps an average of the parameters, `averaged` gives its network.
All random draws of a step come from `fold_in(key, step + 1)`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from robustlip import losses, models, parameters, progress, projections
from robustlip.augmentations import AUGMENTATIONS, Augment, cutmix, swapped
from robustlip.datasets import Split, check_layout
from robustlip.feed import Feed, epoch_order, replicate, unreplicate
from robustlip.images import check_least, from_bytes
from robustlip.methods import Method
from robustlip.types import DEVICES, Batch, LogitsFn

SETTLING_STEPS = 50  # see `settled`


class TrainState(NamedTuple):
  """Everything a run needs to resume; all of it arrays."""

  step: chex.Array  # int32, steps taken since the start
  params: Any
  batch_stats: Any  # {} for a network without BatchNorm
  opt_state: Any
  loss_sum: chex.Array  # float32, over the steps since it was set to 0
  bad_step: chex.Array  # int32, the first step of a loss not finite, or -1

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

  For better generalisation: the optimizer may decay weights and average them
  (`parameters`; BatchNorm's momentum must then be at most 0.9, see `settled`);
  a method that is a function of the step may let its radius grow, by
  `methods.at(epsilon=optax.linear_schedule(0.0, 0.1, 1000)(step))`; the last
  three fields do nothing if None. Only the loss sees mixed or smoothed labels:
  the inner problem takes the label with the larger share, as in Pang et al.
  2021, arXiv:2010.00467.
  """

  module: nn.Module
  method: Method | Callable[[chex.Array], Method]  # or a function of the step
  optimizer: optax.GradientTransformation
  augment: Augment = AUGMENTATIONS['none']
  attack_in_training_mode: bool = False  # as the authors' code for at, rst
  accumulate: int = 1  # slices of the batch computed one after the other
  cutmix: chex.Numeric | None = None  # probability, see `augmentations.cutmix`
  label_smoothing: chex.Numeric | None = None  # `losses.shares_of_classes`
  awp: chex.Numeric | None = None  # gamma of `parameters.perturbation`


def initial_state(
  recipe: Recipe, key: chex.PRNGKey, image_shape: tuple[int, ...]
) -> TrainState:
  """A state with freshly drawn parameters, before the first step.

  Raises:
    ValueError: if the module is not one that `step` can train (`models.init`).
  """

  def init(key):
    image = jnp.zeros((1, *image_shape), jnp.float32)
    first = jax.random.fold_in(projections.threefry(key), 0)
    variables = models.init(recipe.module, first, image)
    variables = _method(recipe, 0).prepare(variables)
    params = variables['params']
    opt_state = recipe.optimizer.init(params)
    parameters.average(opt_state)  # raises where it would not be of `params`
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      batch_stats=variables.get('batch_stats', {}),
      opt_state=opt_state,
      loss_sum=jnp.zeros((), jnp.float32),
      bad_step=jnp.full((), -1, jnp.int32),
    )

  options = {}
  # On a CPU it takes longer to compile than to run: do not optimise it, unless
  # an outer jit compiles it with its own options.
  outermost = not isinstance(jnp.zeros(()), jax.core.Tracer)
  if jax.default_backend() == 'cpu' and outermost:
    options['xla_backend_optimization_level'] = 0
    options['xla_llvm_disable_expensive_passes'] = True
  return jax.jit(init, compiler_options=options)(key)


def _method(recipe: Recipe, step: chex.Numeric) -> Method:
  method = recipe.method
  return method(step) if callable(method) else method


def _training_mode(recipe, params, batch_stats, key):
  """The network in training mode, and the BatchNorm statistics by call.

  All calls share one dropout mask, so that a loss compares a network with
  itself: with two, LLR and GR would penalise the difference of the masks. The
  authors' code draws a mask for each call (`fresh_masks`).
  """
  statistics = [batch_stats]

  def network(inputs):
    nonlocal key
    mask_key = key
    if recipe.method.fresh_masks:
      key, mask_key = jax.random.split(key)
    with nn.intercept_methods(_refuse_device_statistics):
      logits, updated = recipe.module.apply(
        {'params': params, 'batch_stats': statistics[-1]},
        inputs,
        train=True,
        mutable=['batch_stats'],
        rngs={'dropout': mask_key},
      )
    # Without tangents, so that none of the jvp in `losses.llr` leaks out.
    updated = jax.lax.stop_gradient(updated.get('batch_stats', {}))
    statistics.append(updated)
    return logits

  return network, statistics


def _refuse_device_statistics(call, args, kwargs, context):
  """Raises ValueError for BatchNorm over only one device's examples."""
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


def _attacked_mode(recipe, params, batch_stats, key) -> LogitsFn:
  """The network as the inner problem sees it: in inference mode by default."""
  if not recipe.attack_in_training_mode:
    variables = {'params': params, 'batch_stats': batch_stats}
    return models.logits_fn(recipe.module, variables)

  def always_the_first_call(inputs):
    network, _ = _training_mode(recipe, params, batch_stats, key)
    return network(inputs)

  return always_the_first_call


def _attacked(recipe, params, batch_stats, images, labels, keys):
  """Batch, points and dropout keys for the loss of one device; keys: [B, 4]."""
  augment_keys, attack_keys, dropout_keys, mix_keys = keys.T
  images = recipe.augment(images, augment_keys)
  others, own, smoothing = None, None, recipe.label_smoothing
  if recipe.cutmix is not None:
    images, own = cutmix(images, mix_keys, probability=recipe.cutmix)
    others = swapped(labels)
  largest = labels if own is None else jnp.where(own < 0.5, others, labels)
  batch = Batch(from_bytes(images), largest)
  other_key = jax.random.fold_in(dropout_keys[0], 1)  # the loss has its own
  network = _attacked_mode(recipe, params, batch_stats, other_key)
  points = recipe.method.maximize(network, batch, attack_keys)
  if own is not None or smoothing is not None:
    num_classes = jax.eval_shape(network, batch.inputs).shape[-1]
    shares = losses.shares_of_classes(
      labels, num_classes, others=others, own=own, smoothing=smoothing
    )
    batch = batch._replace(labels=shares)
  return batch, jax.lax.stop_gradient(points), dropout_keys


def _gradients(recipe, params, batch_stats, batch, points, keys):
  """((mean loss, statistics), gradients), given what `_attacked` returns."""

  def objective(params):
    network, statistics = _training_mode(recipe, params, batch_stats, keys[0])
    loss = recipe.method.loss(network, batch, points)
    if jnp.shape(loss) != (len(batch.inputs),):
      raise ValueError(
        f'a loss must be a number for each example, {(len(batch.inputs),)}, '
        f'got {jnp.shape(loss)}; a norm of logits takes axis=-1.'
      )
    return loss.mean(dtype=jnp.float32), statistics[-1]

  return jax.value_and_grad(objective, has_aux=True)(params)


def _over_slices(compute, state, slices):
  """Averages of `compute` over slices [S, ...], one at a time.

  Args:
    compute: (batch_stats, *slice) -> ((loss, batch_stats), gradients).
  """

  def add(carry, piece):
    total, batch_stats = carry
    (loss, batch_stats), gradients = compute(batch_stats, *piece)
    return (jax.tree.map(jnp.add, total, (loss, gradients)), batch_stats), None

  zeros = jax.tree.map(jnp.zeros_like, (state.loss_sum, state.params))
  (total, batch_stats), _ = jax.lax.scan(
    add, (zeros, state.batch_stats), slices
  )
  parts = len(jax.tree.leaves(slices)[0])
  loss, gradients = jax.tree.map(lambda x: x / parts, total)
  return (loss, batch_stats), gradients


def _accumulated(recipe, state, images, labels, keys, mean):
  """`_gradients` over `recipe.accumulate` slices; at perturbed weights for AWP.

  Args:
    mean: averages a tree over devices, so that all perturb their weights alike.
  """
  attack = functools.partial(_attacked, recipe, state.params)
  descend = functools.partial(_gradients, recipe)

  def compute(batch_stats, *piece):
    return descend(state.params, batch_stats, *attack(batch_stats, *piece))

  examples = images, labels, keys
  if recipe.accumulate == 1 and recipe.awp is None:
    return compute(state.batch_stats, *examples)
  slices = jax.tree.map(
    lambda x: x.reshape(recipe.accumulate, -1, *x.shape[1:]), examples
  )
  if recipe.awp is None:
    return _over_slices(compute, state, slices)
  attacked = jax.lax.map(lambda x: attack(state.batch_stats, *x), slices)

  def descend_at(params):
    return _over_slices(functools.partial(descend, params), state, attacked)

  _, gradients = descend_at(state.params)
  moves = parameters.perturbation(
    state.params, mean(gradients), gamma=recipe.awp
  )
  return descend_at(optax.apply_updates(state.params, moves))


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

  The key of an example's random draws depends on its position in the whole
  batch, not on the number of devices (except for dropout masks, which a device
  draws for its share at once).

  Args:
    images: uint8 [B, H, W, C].
    labels: int32 [B].
    key: the key of the run, the same at every step.
    axis_name: the mapped axis over devices, `DEVICES`; None without one.

  Raises:
    ValueError: for an axis of another name, over which BatchNorm would not
      average.
  """
  if axis_name not in (None, DEVICES):
    raise ValueError(f'axis_name must be {DEVICES!r}, got {axis_name!r}.')
  key = jax.random.fold_in(projections.threefry(key), state.step + 1)
  first = 0 if axis_name is None else jax.lax.axis_index(axis_name)
  places = first * len(labels) + jnp.arange(len(labels))
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
  keys = jax.vmap(lambda key: jax.random.split(key, 4))(keys)

  recipe = recipe._replace(method=_method(recipe, state.step))

  def mean(tree):
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

  own = state
  if axis_name is not None:  # else `jax.shard_map` sums gradients over devices
    own = jax.lax.pcast(state, axis_name, to='varying')
  (loss, batch_stats), gradients = _accumulated(
    recipe, own, images, labels, keys, mean
  )
  loss, gradients, batch_stats = mean((loss, gradients, batch_stats))
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
  """Compiles the program `(state, numbers, key, epoch, first, last) -> state`.

  It runs steps `first` to `last` (exclusive) of `epoch.order`. Both are traced,
  so that any number of steps is one dispatch of one program. `state` is
  [D, ...] and is donated; `epoch` is a `feed.Epoch`.

  Args:
    make_recipe: makes the recipe from `numbers`, which are traced: runs that
      differ only in them share one program.
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


def settler(make_recipe: Callable[[Any], Recipe]) -> Callable[..., TrainState]:
  """`trainer` of steps that update nothing but the BatchNorm statistics."""
  still = dict(optimizer=optax.set_to_zero(), awp=None)
  return trainer(lambda numbers: make_recipe(numbers)._replace(**still))


def check_batch_size(
  batch_size: int, *, accumulate: int = 1, pairs: bool = False
) -> None:
  """Raises ValueError unless a batch splits evenly over devices and slices.

  Args:
    pairs: whether pairs must stay together, see `augmentations.cutmix`.
  """
  devices = jax.device_count()
  check_least(1, accumulate=accumulate)
  if batch_size < 1 or batch_size % (devices * accumulate * (1 + pairs)):
    raise ValueError(
      f'a batch_size of {batch_size} does not split evenly over {devices} '
      f'devices and accumulate={accumulate}' + ', in pairs for cutmix' * pairs
    )


def _check_batches(recipe, batch_size):
  check_batch_size(
    batch_size, accumulate=recipe.accumulate, pairs=recipe.cutmix is not None
  )


def _check_state(recipe, state, key, image_shape):
  """Raises ValueError unless the state has the arrays of a new one."""

  def kinds(state):
    return jax.tree.structure(state), *map(jnp.shape, jax.tree.leaves(state))

  new = functools.partial(initial_state, recipe, image_shape=image_shape)
  if kinds(state) != kinds(jax.eval_shape(new, key)):
    raise ValueError(
      'the state is not one of this recipe: of another module or optimizer, or '
      'read from a file as plain dicts and lists.'
    )


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
  """Trains on all devices; returns the state after the last step.

  Args:
    split: uint8 images [N, H, W, C] and int32 labels [N].
    key: for the initial parameters and all random draws of the steps.
    batch_size: examples per step, a multiple of the number of devices.
    seed: for the order of the examples.
    state: where to continue, for `epochs` more; None starts a new network.

  Raises:
    ValueError: if `split` is not a `Split`, has fewer examples than a batch or
      labels that are no classes of the network, if a batch does not split
      evenly, if `state` is of another recipe, or if the loss at some step or
      the last weights are not finite.
  """
  check_layout(split)
  _check_batches(recipe, batch_size)
  check_least(0, epochs=epochs)
  if state is None:
    state = initial_state(recipe, key, split.images.shape[1:])
  else:
    _check_state(recipe, state, key, split.images.shape[1:])
  network = models.logits_fn(recipe.module, state.variables)
  losses.check_classes(network, split.images.shape, split.labels)
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
  state = unreplicate(states)
  if (bad := diverged_at(state)) >= 0:
    raise ValueError(
      f'the weights are not finite at step {bad}; a lower learning rate helps'
    )
  return state


def diverged_at(state: TrainState) -> int:
  """The first step whose loss is not finite, -1 if there is none.

  No loss shows yet what the last update did: it is the last step if a weight is
  not finite.
  """
  leaves = jax.tree.leaves(state.variables)
  if state.bad_step < 0 and not all(np.isfinite(x).all() for x in leaves):
    return int(state.step)
  return int(state.bad_step)


def averaged(
  recipe: Recipe,
  state: TrainState,
  split: Split,
  key: chex.PRNGKey,
  *,
  batch_size: int,
) -> TrainState:
  """The state with the averaged parameters in place of the last, see `settled`.

  Returns `state` itself if the optimizer keeps no average.

  Raises:
    ValueError: if a batch does not split evenly, or `state` is of another
      recipe.
  """
  _check_batches(recipe, batch_size)
  _check_state(recipe, state, key, split.images.shape[1:])
  order = epoch_order(
    0, 0, num_examples=len(split.labels), batch_size=batch_size
  )
  program = settler(lambda numbers: recipe)
  return settled(program, state, {}, key, Feed(split), order)


def settled(
  program: Callable[..., TrainState],
  state: TrainState,
  numbers: Any,
  key: chex.PRNGKey,
  feed: Feed,
  order: np.ndarray,
) -> TrainState:
  """The state with the averaged parameters in place of the last.

  BatchNorm's running statistics belong to the last parameters, so they are
  computed anew by `SETTLING_STEPS` steps of the recipe that update nothing
  else. At momentum 0.9 this leaves 0.5 % of the old statistics.

  Args:
    program: what `settler` returned.
    state: without the device axis, like the result.
    order: int32 [S, B], see `feed.epoch_order`.
  """
  average = parameters.average(state.opt_state)
  if average is None:
    return state
  average = optax.tree.cast_like(average, state.params)
  if state.batch_stats:
    states = replicate(
      state._replace(params=average, opt_state=optax.EmptyState())
    )
    order = np.resize(order, (SETTLING_STEPS, order.shape[1]))
    for arguments in feed.dispatches(order):
      states = program(states, numbers, key, *arguments)
    state = state._replace(batch_stats=unreplicate(states.batch_stats))
  return state._replace(params=average)
