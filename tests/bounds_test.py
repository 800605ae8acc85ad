import itertools
import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from lipschitz_test import constant

from robustlip import attacks, bounds, lipschitz, losses, methods, models
from robustlip.bounds import crop, walk
from robustlip.models import layers
from robustlip.models.convolution import convolve
from robustlip.types import Batch

KEY = jax.random.key(0)
SHAPE = (6, 6, 2)
EPSILONS = (0.0, 1e-6, 1e-3, 0.03, 0.3, 1.0)
METHODS = ('interval', 'linear', 'crown')


class Small(nn.Module):
  """Every kind of layer that a classifier of images is made of, but tiny."""

  kind: str

  @nn.compact
  def __call__(self, x):
    match self.kind:
      case 'ours':
        x = layers.conv(x, 8, padding=1)
        x = x + nn.relu(layers.batch_norm(x, train=False))
        x = layers.max_pool(x, size=2, strides=1, padding=1)
        x = layers.max_pool(layers.conv(x, 9, 2))
        x = jnp.concatenate([x, -x[:, ::-1]], axis=-1).mean((1, 2))
      case 'flax':
        x = nn.relu(nn.Conv(5, (3, 3), strides=2)(x))
        x = x * nn.sigmoid(x.mean((1, 2), keepdims=True))  # one gate a channel
        x = nn.avg_pool(nn.max_pool(x, (2, 2), padding='SAME'), (2, 2))
        x = nn.relu(nn.Dense(7)(x.reshape(len(x), -1)))
      case 'smooth':
        x = nn.gelu(nn.Dense(6)(x.reshape(len(x), -1)), approximate=False)
        x = nn.tanh(nn.Dense(6)(x)) * nn.sigmoid(nn.Dense(6)(x))
        x = nn.softplus(x) + nn.silu(jnp.clip(x, -0.5, 0.5)) - jnp.abs(x)
    return nn.Dense(4)(x.reshape(len(x), -1))


KINDS = ('ours', 'flax', 'smooth')


def network(kind):
  """The function of variables and inputs, and variables for a key."""
  module = Small(kind)

  def draw(key):
    variables = module.init(key, jnp.zeros((1, *SHAPE)))
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(key, len(leaves))
    return tree.unflatten(
      jnp.abs(leaf) + 0.3
      if leaf.min() == 1
      else leaf + 0.3 * jax.random.normal(key, leaf.shape)
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
  entropy = None
  if kind == 'smooth':  # the quickest to compile: all have one formula
    entropy = bounds.cross_entropy(logits_fn, batch, epsilon=epsilon, lines=0.5)
  ratios = lipschitz.estimate(logits_fn, inputs, key, epsilon=epsilon)
  found = [attacks.pgd(logits_fn, batch, key, epsilon=epsilon), ratios.points]
  noise = jax.random.uniform(key, (3, *inputs.shape), minval=-1.0)
  for direction in (*noise, *jnp.sign(noise)):
    found.append(jnp.clip(inputs + epsilon * direction, 0.0, 1.0))
  return {
    'outputs': jnp.stack([logits_fn(x) for x in (inputs, *found)]),
    'interval': bounds.interval(logits_fn, *box),
    'linear': bounds.linear(logits_fn, *box),
    'crown': bounds.linear(logits_fn, *box, tighten=True),
    'certified': bounds.certified(logits_fn, batch, epsilon=epsilon),
    'entropy': entropy,
    'upper': lipschitz.upper_bound(logits_fn, inputs, epsilon=epsilon),
    'tightened': lipschitz.upper_bound(
      logits_fn, inputs, epsilon=epsilon, tighten=True
    ),
    'lower': ratios.ratios,
  }


def contained(bound, outputs):
  """Whether all outputs [N, B, C] lie within a bound, to the last bit."""
  lower, upper = map(np.asarray, bound)
  outputs = np.asarray(outputs)
  return bool(((lower <= outputs) & (outputs <= upper)).all())


@pytest.mark.parametrize('kind', KINDS)
def test_no_point_is_outside_of_any_bound(kind):
  apply, draw = network(kind)

  @settings(max_examples=6, deadline=None)
  @given(st.integers(0, 999), st.sampled_from(EPSILONS))
  def check(seed, epsilon):
    key = jax.random.key(seed)
    variables = draw(key)
    inputs = jax.random.uniform(jax.random.fold_in(key, 1), (4, *SHAPE))
    inputs = inputs.at[0].set(inputs[0] > 0.5)  # where the pixel box cuts
    labels = apply(variables, inputs).argmax(axis=-1)
    labels = labels.at[1].set((labels[1] + 1) % 4)  # one is wrong already
    both = everything(variables, inputs, labels, key, epsilon, kind=kind)
    outputs = both['outputs']
    for method in METHODS:
      # Of a point it is the plain output, which rounds as it is compiled.
      assert epsilon == 0 or contained(both[method], outputs)
    kept = (outputs.argmax(-1) == labels[None]).all(0)
    assert (kept >= both['certified']).all()
    # The bound is of exact arithmetic; logits rounded apart have slopes too.
    rounding = 1e-6 * (1 + jnp.abs(outputs).max()) / max(epsilon, 1e-6)
    assert (both['lower'] <= both['tightened'] + rounding).all()
    assert (both['tightened'] <= both['upper'] * (1 + 1e-6)).all()
    for logits in outputs if kind == 'smooth' else ():
      entropy = losses.cross_entropy(logits, labels)
      assert (entropy <= both['entropy'] + 1e-4 + 1e-4 * entropy).all()
    if epsilon == 0:
      assert (both['certified'] == kept).all()
      for method in METHODS:
        for side in both[method]:
          chex.assert_trees_all_close(side, outputs[0], rtol=1e-5)

  check()


SLOPES = np.array([[0.1, 0.2, -0.3, 0.0, 1.5]], np.float32)


def scanned(x):
  """Layers with weights of their own, last first, and what each gives."""

  def layer(x, weights_and_place):
    weights, place = weights_and_place
    x = nn.relu(x * weights + 0.1 * place)
    return x, x[:, :2]

  weights = SLOPES[None] * jnp.array([1.0, -1.0, 2.0]).reshape(3, 1, 1)
  x, found = lax.scan(layer, x, (weights, jnp.arange(3)), reverse=True)
  return x + found[0, :, :1] - found[2, :, 1:]


def attention(x):
  """A mean of values [B, 5, 2] with weights that are features too."""
  weights = nn.softmax(0.1 * jnp.einsum('bi,bj->bij', x, x))
  values = jnp.stack([x, 2.0 - x], axis=-1)
  return jnp.einsum('bij,bjh->bhi', weights, values)[:, 0]


# Functions of features [B, 5] that are written with rarer primitives.
PIECES = {
  'leaky ReLU': nn.leaky_relu,
  'slopes of two signs': lambda x: jnp.where(x < 0, -0.5 * x, 2.0 * x),
  'slopes of features': lambda x: jnp.where(x > 0, x, SLOPES * x),
  'CELU': nn.celu,
  'soft sign': nn.soft_sign,
  'pieces that meet': lambda x: jnp.where(x < 0.5, jnp.tanh(x - 0.5), x - 0.5),
  'softmax': lambda x: nn.softmax(jnp.where(SLOPES > 0, x, -jnp.inf)),
  'quotient': lambda x: x / (1.0 + jnp.square(x)),
  'square root': lambda x: jnp.sqrt(1.0 + jnp.square(x)),
  'reciprocal': lambda x: (1.0 + jnp.square(x)) ** -2,
  'polynomial': lambda x: sum(0.5**i * x**i for i in range(4)),
  'normalized': lambda x: nn.GroupNorm(1).apply(
    {'params': {'scale': jnp.full(5, 2.0), 'bias': jnp.ones(5)}}, x
  ),
  'least': lambda x: x - x.min(axis=-1, keepdims=True),
  'picked': lambda x: jnp.take(x, jnp.array([3, 0, 3]), axis=1),
  'filled': lambda x: x.at[:, jnp.array([0, 9])].get(
    mode='fill', fill_value=0.5
  ),
  'sliced': lambda x: lax.dynamic_slice(x, (0, 1), (len(x), 3)),
  'stacked': lambda x: jnp.stack([x, 2.0 * x], axis=1).sum(axis=1),
  'tiled': lambda x: jnp.tile(x, (1, 2))[:, 2:],
  'stopped': lax.stop_gradient,
  'attention': attention,
  'layers of one shape': scanned,
}


@pytest.mark.parametrize('name', PIECES)
def test_no_point_is_outside_of_the_bounds_of_a_piece(name):
  weights = jax.random.normal(KEY, (12, 5))

  def logits_fn(x):
    features = PIECES[name](x.reshape(len(x), -1) @ weights)
    difference = features[:, :1] - features[:, 1:2]
    return jnp.concatenate([features, difference], axis=1)

  inputs = jax.random.uniform(KEY, (4, 2, 2, 3))
  noise = jax.random.uniform(KEY, (100, *inputs.shape), minval=-1.0)
  for epsilon in (1e-3, 0.1):
    points = jnp.clip(inputs[None] + epsilon * noise, 0.0, 1.0)
    outputs = jax.vmap(logits_fn)(points)
    box = bounds.ball(inputs, epsilon=epsilon)
    for bound in (bounds.interval, bounds.linear):
      found = jax.jit(partial(bound, logits_fn))(*box)
      assert contained(found, outputs)
      assert jnp.isfinite(jnp.stack(found)).all()
    change = jnp.abs(outputs - logits_fn(inputs)[None]).sum(axis=-1)
    ratios = change / jnp.abs(points - inputs[None]).max(axis=(2, 3, 4))
    upper = lipschitz.upper_bound(logits_fn, inputs, epsilon=epsilon)
    assert (ratios <= upper[None] + 1e-5 / epsilon).all()


def test_what_is_gathered_from_outside_is_not_forgotten():
  def logits_fn(x):
    x = x.reshape(len(x), -1)
    return x.at[:, jnp.array([0, 5])].get(mode='fill', fill_value=0.5)

  batch = Batch(jnp.full((1, 2, 1, 1), 0.6), jnp.array([0]))
  for method in bounds.METHODS:
    least = bounds.margins(logits_fn, batch, epsilon=0.2, method=method)
    np.testing.assert_allclose(least, [[0.0, -0.1]], atol=1e-4)


@pytest.mark.parametrize('function', [jnp.sqrt, jnp.log, jnp.log1p])
def test_a_box_that_leaves_the_domain_certifies_nothing(function):
  start = -0.5 if function is not jnp.log1p else -1.5

  def logits_fn(x):
    x = x.reshape(len(x), -1)
    return function(jnp.concatenate([x + 3.0, x + start], axis=1))

  batch = Batch(jnp.full((1, 1, 1, 1), 0.6), jnp.array([0]))
  for method in bounds.METHODS:
    margins = partial(bounds.margins, logits_fn, batch, method=method)
    assert jnp.isnan(margins(epsilon=0.2)[0, 1])
    assert margins(epsilon=0.05)[0, 1] > 0


@pytest.mark.parametrize(
  'product',
  [
    lambda x: jnp.exp(100 * x) - jnp.exp(99 * x),  # inf - inf at 1
    lambda x: jnp.exp(100 * x) * (x - 1.0),  # inf * 0
    lambda x: jnp.exp(100 * x) @ jnp.array([[1.0, -1.0], [-1.0, 1.0]]),
  ],
)
@pytest.mark.parametrize('method', bounds.METHODS)
def test_where_the_logits_may_be_no_number_nothing_is_certified(
  product, method
):
  def logits_fn(x):
    kept = 2.0 + jnp.tanh(product(x)[:, :1])  # bounded, if it is a number
    return jnp.concatenate([kept, x[:, :1] - 1.0], axis=1)

  batch = Batch(jnp.full((1, 2), 0.8), jnp.array([0]))
  assert not losses.correct(logits_fn(jnp.ones((1, 2))), batch.labels)
  certified = partial(bounds.certified, logits_fn, batch, method=method)
  assert not certified(epsilon=0.2)
  assert certified(epsilon=0.05)


def test_leaky_relu_is_bounded_by_its_ends_and_its_chord():
  def logits_fn(x):
    return nn.leaky_relu(x, 0.2)

  box = jnp.array([[-1.0, -2.0, 0.5]]), jnp.array([[3.0, -1.0, 1.0]])
  lower, upper = bounds.interval(logits_fn, *box)
  np.testing.assert_allclose(lower, [[-0.2, -0.4, 0.5]], atol=1e-4)
  np.testing.assert_allclose(upper, [[3.0, -0.2, 1.0]], atol=1e-4)
  lower, upper = bounds.linear(lambda x: logits_fn(x) - x, *box)
  np.testing.assert_allclose(lower, [[0.0, 0.8, 0.0]], atol=1e-4)
  np.testing.assert_allclose(upper, [[0.8, 1.6, 0.0]], atol=1e-4)


def test_a_modulus_is_bounded_by_0_its_ends_and_its_chord():
  box = jnp.array([[-1.0, -2.0, 0.5]]), jnp.array([[3.0, -1.0, 1.0]])
  lower, upper = bounds.interval(jnp.abs, *box)
  np.testing.assert_allclose(lower, [[0.0, 1.0, 0.5]], atol=1e-4)
  np.testing.assert_allclose(upper, [[3.0, 2.0, 1.0]], atol=1e-4)
  lower, upper = bounds.linear(lambda x: jnp.abs(x) - x / 2, *box)
  np.testing.assert_allclose(lower, [[-0.5, 1.5, 0.25]], atol=1e-4)
  np.testing.assert_allclose(upper, [[1.5, 3.0, 0.5]], atol=1e-4)


def test_bounds_of_affine_networks_are_exact():
  weights = jax.random.normal(KEY, (12, 3))
  biases = jax.random.normal(jax.random.fold_in(KEY, 1), (1, 3))
  inputs = jax.random.uniform(KEY, (5, 2, 2, 3), minval=0.2, maxval=0.8)
  logits_fn = partial(apply_dense, [(weights.T, biases[0])])
  middle = np.asarray(logits_fn(inputs), np.float64)
  spread = 0.1 * np.abs(np.asarray(weights, np.float64)).sum(0)
  box = bounds.ball(inputs, epsilon=0.1)
  for function in (bounds.interval, bounds.linear):
    lower, upper = jax.jit(partial(function, logits_fn))(*box)
    np.testing.assert_allclose(lower, middle - spread, atol=1e-4)
    np.testing.assert_allclose(upper, middle + spread, atol=1e-4)
  upper = lipschitz.upper_bound(logits_fn, inputs, epsilon=0.1)
  np.testing.assert_allclose(upper, constant(weights), rtol=1e-4)


def numpy_bounds(layers, x, epsilon, *, tighten):
  """IBP, and CROWN of ReLU layers (W, b), float64, as in the papers.

  With `tighten` CROWN is the whole of it, without it CROWN-IBP.
  """
  lower = [x - epsilon]
  upper = [x + epsilon]
  for index, (weights, biases) in enumerate(layers):
    low, high = lower[-1], upper[-1]
    if index:
      low, high = np.maximum(low, 0), np.maximum(high, 0)
    middle, spread = (low + high) / 2, (high - low) / 2
    lower.append(weights @ middle + biases - np.abs(weights) @ spread)
    upper.append(weights @ middle + biases + np.abs(weights) @ spread)
    below, above = numpy_lines(layers[: index + 1], lower, upper, x, epsilon)
    if tighten:
      lower[-1] = np.maximum(lower[-1], below)
      upper[-1] = np.minimum(upper[-1], above)
  return (lower[-1], upper[-1]), (below, above)


def numpy_lines(layers, lower, upper, x, epsilon):
  """CROWN of the last layer, given the inputs' bounds of each ReLU."""
  rows, offset = layers[-1]
  lines = []
  for sign in (1, -1):
    a, total = sign * rows, sign * offset
    for (weights, biases), low, high in reversed(
      list(zip(layers[:-1], lower[1:-1], upper[1:-1], strict=True))
    ):
      chord = np.where(low >= 0, 1.0, np.where(high <= 0, 0.0, 0.0))
      unstable = (low < 0) & (high > 0)
      chord[unstable] = (high / (high - low))[unstable]
      below = np.where(unstable, high > -low, chord)
      shift = np.where(unstable, -chord * low, 0.0)
      total = total + np.minimum(a, 0) @ shift
      a = np.maximum(a, 0) * below + np.minimum(a, 0) * chord
      total = total + a @ biases
      a = a @ weights
    lines.append(total + a @ x - epsilon * np.abs(a).sum(1))
  return lines[0], -lines[1]


def dense_layers(key, sizes):
  keys = jax.random.split(key, 2 * len(sizes))
  return [
    (
      jax.random.normal(keys[2 * i], (m, n)) / np.sqrt(n),
      0.3 * jax.random.normal(keys[2 * i + 1], (m,)),
    )
    for i, (n, m) in enumerate(itertools.pairwise(sizes))
  ]


@jax.jit
def certify(layers, inputs, epsilon):
  logits_fn = partial(apply_dense, layers)
  return lipschitz.upper_bound(logits_fn, inputs, epsilon=epsilon)


def apply_dense(layers, x):
  x = x.reshape(len(x), -1)
  for index, (weights, biases) in enumerate(layers):
    x = (x if index == 0 else nn.relu(x)) @ weights.T + biases[None]
  return x


@jax.jit
def dense_bounds(layers, box, weights):
  logits_fn = partial(apply_dense, layers)
  return (
    bounds.interval(logits_fn, *box),
    bounds.linear(logits_fn, *box),
    bounds.linear(logits_fn, *box, tighten=True),
    bounds.linear(logits_fn, *box, weights=weights),
  )


def test_bounds_are_those_of_the_papers():
  weights = jnp.asarray([[[1.0, -1.0, 0.0]]])
  for key in jax.random.split(KEY, 3):
    layers = dense_layers(key, (12, 15, 66, 3))  # 66: two rounds
    inputs = jax.random.uniform(key, (1, 2, 2, 3), minval=0.3, maxval=0.7)
    box = inputs - 0.05, inputs + 0.05
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), layers)
    x = np.asarray(inputs, np.float64).ravel()
    expected = [
      *numpy_bounds(exact, x, 0.05, tighten=False),
      numpy_bounds(exact, x, 0.05, tighten=True)[1],
    ]
    *found, difference = dense_bounds(layers, box, weights)
    for ours, theirs in zip(found, expected, strict=True):
      np.testing.assert_allclose(np.stack(ours)[:, 0], theirs, atol=1e-4)
    for wider, narrower in itertools.pairwise(expected):
      assert (np.ptp(narrower, axis=0) < np.ptp(wider, axis=0)).all()
    lower, upper = found[1]
    assert difference[0][0, 0] >= lower[0, 0] - upper[0, 1]


def branching(x, conv):
  """Two paths, dilation, padding on one side only."""
  x = nn.relu(conv(x, padding=((1, 1), (1, 1))))
  x = x + conv(nn.relu(conv(x, padding=((1, 1), (2, 0)))), dilation=2)
  return nn.relu(x).mean((1, 2))


def pooled(x, conv):
  """Strides and two kinds of pooling."""
  x = layers.max_pool(nn.relu(conv(x, padding=((0, 1), (1, 0)))))
  x = nn.tanh(conv(x, strides=2, padding=((0, 1), (0, 1))))
  x = nn.max_pool(x, (2, 2), (1, 1))
  return nn.relu(conv(x)).mean((1, 2))


def convolution(x, *, kernel, strides=1, dilation=1, padding='SAME'):
  return lax.conv_general_dilated(
    x,
    kernel,
    (strides,) * 2,
    padding,
    rhs_dilation=(dilation,) * 2,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def product(x, **settings):
  """The same convolution as one matrix, on which no window is small."""
  one = jax.ShapeDtypeStruct((1, *x.shape[1:]), jnp.float32)
  shape = jax.eval_shape(partial(convolution, **settings), one).shape[1:]
  eye = jnp.eye(math.prod(x.shape[1:])).reshape(-1, *x.shape[1:])
  matrix = convolution(eye, **settings).reshape(len(eye), -1)
  return (x.reshape(len(x), -1) @ matrix).reshape(len(x), *shape)


def check_close(bound, expected):
  """Longer sums leave more room for rounding, a few thousandths here."""
  width = (expected[1] - expected[0]).max()
  for one, other in zip(bound, expected, strict=True):
    np.testing.assert_allclose(one, other, atol=0.01 * width)


@pytest.mark.parametrize('network', [branching, pooled])
def test_windows_bound_as_the_matrices_of_convolutions_do(network):
  kernel = jax.random.normal(KEY, (3, 3, 8, 8)) / 8
  inputs = jax.random.uniform(KEY, (1, 12, 12, 8))
  box = inputs - 0.1, inputs + 0.1

  def fast(x, **settings):
    if 'padding' in settings:
      return convolve(x, kernel, **dict(strides=1) | settings)
    return convolution(x, kernel=kernel, **settings)

  found, expected = (
    jax.jit(partial(bounds.linear, partial(network, conv=conv), tighten=True))(
      *box
    )
    for conv in (fast, partial(product, kernel=kernel))
  )
  check_close(found, expected)


def last_part(logits_fn, shape, count):
  """Windows for the inputs of the last ReLU, and the input's."""
  network = walk.trace_one(logits_fn, (1, *shape))
  last = [step for step in network.steps if step.name == 'max'][-1]
  part = crop.part(network, last.variables[0], count)
  return part, part.windows[network.input]


@pytest.mark.parametrize('ours', [False, True])
def test_windows_are_receptive_fields(ours):
  kernel = jnp.ones((3, 3, 16, 16))

  def conv(x, strides):
    if not ours:
      return convolution(x, kernel=kernel, strides=strides)
    same = (int(strides == 1), 1)
    return convolve(x, kernel, strides=strides, padding=(same, same))

  def logits_fn(x):
    for strides in (1, 2, 1):
      x = nn.relu(conv(x, strides))
    return x.mean((1, 2))

  part, spans = last_part(logits_fn, (40, 40, 16), 16)
  assert len(part.origins) == 20 * 20  # one place each, all its features
  # 3, 7 with gaps of 2, 9 places wide.
  assert [span.size for span in spans] == [9, 9, 16]
  # SAME pads 0 before and 1 behind at stride 2: 2 * (0 - 1) - 0 - 1.
  assert [span.start((0, 5, 7, 0)) for span in spans] == [7, 11, 0]


def test_windows_pass_a_pooling_that_pads_nothing():
  kernel = jnp.ones((3, 3, 16, 16))

  def logits_fn(x):
    x = nn.max_pool(nn.relu(convolution(x, kernel=kernel)), (2, 2), (2, 2))
    return nn.relu(convolution(x, kernel=kernel)).mean((1, 2))

  _, spans = last_part(logits_fn, (40, 40, 16), 16)  # 3 pooled ones, 6, 8
  assert [span.size for span in spans] == [8, 8, 16]


PICKS = {
  'channels': lambda x: jnp.take(x, jnp.array([1, 0]), axis=3),
  'mask': lambda x: jnp.where(jnp.arange(12)[:, None] % 5 > 0, x, 0.5),
  'sliced': lambda x: lax.dynamic_slice(x, (0, 1, 0, 0), (len(x), 10, 12, 2)),
}


@pytest.mark.parametrize('name', PICKS)
def test_windows_reach_what_is_picked_or_masked(name, monkeypatch):
  kernels = [jax.random.normal(KEY, (3, 3, n, 8)) / n for n in (2, 8, 8)]

  def logits_fn(x):
    x = PICKS[name](x)
    for kernel in kernels:
      x = nn.relu(convolution(x, kernel=kernel))
    return x.mean((1, 2))

  monkeypatch.setattr(walk, '_UNITS', 8)  # small windows of small images
  part, _ = last_part(logits_fn, (12, 12, 2), 8)
  assert len(part.origins) > 1
  inputs = jax.random.uniform(KEY, (1, 12, 12, 2))
  box = inputs - 0.05, inputs + 0.05

  def bound():
    return jax.jit(partial(bounds.linear, logits_fn, tighten=True))(*box)

  found = bound()
  monkeypatch.setattr(crop, 'part', lambda *args: None)
  check_close(found, bound())


def mixed_rows(x):
  """Of one image: rows are mixed by a matrix on the left."""
  x = (jnp.tri(6) @ x.reshape(6, 8)).reshape(1, 6, 8)
  return nn.relu(x @ jnp.ones((8, 64)))


def grouped_batch(x):
  """Of one image: its quarters go through kernels of their own."""
  x, kernel = x.reshape(4, 10, 10, 1), jnp.ones((3, 3, 1, 16))
  layout = 'NHWC', 'HWIO', 'NHWC'
  x = lax.conv_general_dilated(
    x, kernel, (1, 1), 'SAME', dimension_numbers=layout, batch_group_count=4
  )
  x = nn.relu(convolution(nn.relu(x), kernel=jnp.ones((3, 3, 16, 16))))
  return nn.relu(convolution(x, kernel=jnp.ones((3, 3, 16, 16))))


@pytest.mark.parametrize(
  ('features', 'shape'), [(mixed_rows, (6, 8)), (grouped_batch, (20, 20, 1))]
)
def test_products_that_have_no_windows_are_left_whole(features, shape):
  def logits_fn(x):
    x = features(x)
    x = nn.relu(x @ jnp.ones((x.shape[-1], 64)))
    return nn.relu(x @ jnp.ones((64, 64))).reshape(1, -1)[:, :3]

  box = jnp.zeros((1, *shape)), jnp.ones((1, *shape))
  tight = partial(bounds.linear, logits_fn, tighten=True)
  lower, upper = jax.eval_shape(tight, *box)
  assert lower.shape == upper.shape == (1, 3)


def test_optimised_slopes_and_tighter_layers_only_help():
  layers = dense_layers(KEY, (12, 20, 15, 3))
  inputs = jax.random.uniform(KEY, (3, 2, 2, 3))
  found = inputs[None] + 0.1 * jax.random.uniform(
    KEY, (500, *inputs.shape), minval=-1.0
  )

  logits_fn = partial(apply_dense, layers)
  outputs = jax.vmap(logits_fn)(found)
  widths = []
  for options in ({}, {'num_steps': 15}, {'tighten': True}):
    function = jax.jit(partial(bounds.linear, logits_fn, **options))
    bound = function(inputs - 0.1, inputs + 0.1)
    assert contained(bound, outputs)
    widths.append(bound[1] - bound[0])
  plain, optimised, tightened = widths
  assert (optimised <= plain).all() and (optimised < 0.99 * plain).any()
  assert (tightened < 0.95 * plain).all()


@pytest.mark.skipif(
  jax.default_backend() != 'cpu', reason='other backends have one convolution'
)
def test_the_widest_convolutions_are_bounded_as_sums_of_products():
  # Tiles, by which they are computed, round otherwise than bounds allow for.
  def network(x):
    settings = dict(strides=1, padding=((1, 1), (1, 1)), tiles=True)
    return convolve(x, jnp.ones((3, 3, 128, 128)), **settings).sum((1, 2))

  inputs = jnp.zeros((1, 40, 40, 128))
  bounded = jax.jit(lambda x: bounds.interval(network, x, x))
  for function, by_sums in ((bounded, True), (jax.jit(network), False)):
    program = function.lower(inputs).compile().as_text()
    assert ('convolution(' in program) == by_sums


def test_roundings_are_inside_of_the_bounds():
  """Sums that cancel, at a point, in any order, and what is exact."""
  rng = np.random.default_rng(0)
  weights = 1e4 * rng.standard_normal((400, 2)).astype(np.float32)
  x = rng.random(400, np.float32)
  box = jnp.asarray(x)[None], jnp.nextafter(jnp.asarray(x), 2.0)[None]
  orders = [rng.permutation(400) for _ in range(50)]
  sums = [np.cumsum(x[o, None] * weights[o], 0)[-1] for o in orders]
  exact = x.astype(np.float64) @ weights.astype(np.float64)
  assert np.ptp(sums, axis=0).min() > 0  # they do differ
  for function in (bounds.interval, bounds.linear):
    lower, upper = function(lambda x: x @ weights, *box)
    for value in (*sums, exact):
      assert (lower[0] <= value).all() and (value <= upper[0]).all()
    assert (upper[0] - lower[0] < 1e-3 * (x @ np.abs(weights))).all()


def test_the_upper_bound_is_the_norm_of_the_jacobian_where_linear():
  """In a ball without kinks, against float64 and all sign vectors."""
  layers = dense_layers(KEY, (12, 30, 20, 4))
  inputs = jax.random.uniform(KEY, (4, 2, 2, 3), minval=0.1, maxval=0.9)

  logits_fn = partial(apply_dense, layers)
  upper = certify(layers, inputs, epsilon=1e-5)
  for image, value in zip(inputs, upper, strict=True):
    jacobian = jax.jacobian(lambda x: logits_fn(x[None])[0])(image)
    jacobian = np.asarray(jacobian, np.float64).reshape(4, -1)
    np.testing.assert_allclose(value, constant(jacobian.T), rtol=1e-3)


def test_many_classes_have_an_upper_bound_too():
  layers = dense_layers(KEY, (12, 10, 13))
  inputs = jax.random.uniform(KEY, (4, 2, 2, 3))

  logits_fn = partial(apply_dense, layers)
  upper = certify(layers, inputs, epsilon=0.1)
  found = lipschitz.estimate(logits_fn, inputs, KEY, epsilon=0.1)
  assert (found.ratios <= upper).all()
  assert (upper < 10 * found.ratios).all()


UNARY = {
  'relu': nn.relu,
  'relu6': nn.relu6,
  'abs': jnp.abs,
  'clip': lambda x: jnp.clip(x, -1.0, 0.5),
  'square': jnp.square,
  'where': lambda x: jnp.where(x > 0.0, x, 0.0),
  'where_min': lambda x: jnp.where(x < 0.1, x, 0.1),
  'tanh': jnp.tanh,
  'sigmoid': nn.sigmoid,
  'exp': jnp.exp,
  'erf': lax.erf,
  'softplus': nn.softplus,
  'silu': nn.silu,
  'gelu': nn.gelu,
  'exact_gelu': lambda x: nn.gelu(x, approximate=False),
  'elu': nn.elu,
  'selu': nn.selu,
  'hard_tanh': nn.hard_tanh,
  'sparse_plus': jax.nn.sparse_plus,
  'soft_sign': nn.soft_sign,
  'root': lambda x: jnp.sqrt(0.1 + jnp.abs(x)),
}


def test_every_activation_lies_between_its_lines():
  def logits_fn(x):  # [B, 1] -> each activation, and all of them minus lines
    values = jnp.concatenate([f(x) for f in UNARY.values()], axis=-1)
    return jnp.concatenate([values, values - x / 2], axis=-1)

  ends = jax.random.uniform(KEY, (2, 30, 1), minval=-4.0, maxval=4.0)
  lower, upper = ends.min(0), ends.max(0)
  grid = jnp.linspace(lower, upper, 101)
  grid = jnp.clip(grid, lower[None], upper[None])
  outputs = np.asarray(jax.vmap(logits_fn)(grid))
  true = (outputs.max(0) - outputs.min(0))[:, : len(UNARY)]
  names = ('relu', 'tanh', 'sigmoid', 'exp', 'erf', 'clip')
  tight = [list(UNARY).index(name) for name in names]
  for function in (bounds.interval, bounds.linear):
    bound = jax.jit(partial(function, logits_fn))(lower, upper)
    assert contained(bound, outputs)
    assert jnp.isfinite(jnp.stack(bound)).all()
    width = np.asarray(bound[1] - bound[0])[:, tight]
    slack = 1e-3 if function is bounds.interval else 2.0 * true[:, tight].max(0)
    assert (width <= true[:, tight] + slack).all()


@pytest.mark.parametrize(
  ('name', 'shape'),
  [('cnn1', (16, 16, 1)), ('cnn2', (16, 16, 1)), ('wrn_10_1', (8, 8, 3))],
)
def test_every_primitive_of_our_networks_has_a_rule(name, shape):
  module, inputs = models.build(name, 3), jnp.zeros((2, *shape))
  batch = Batch(inputs, jnp.array([0, 1]))
  variables = jax.eval_shape(module.init, KEY, inputs)

  def both(variables):
    logits_fn = models.logits_fn(module, variables)
    margins = bounds.margins(logits_fn, batch, epsilon=1e-3)
    return margins, lipschitz.upper_bound(logits_fn, inputs, epsilon=1e-3)

  margins, upper = jax.eval_shape(both, variables)
  assert margins.shape == (2, 3) and upper.shape == (2,)


def test_training_on_the_bound_lowers_it():
  layers = dense_layers(KEY, (12, 20, 3))
  inputs = jax.random.uniform(KEY, (6, 2, 2, 3))
  labels = jnp.array([0, 1, 2, 0, 1, 2])
  for lines in (None, 0.5):

    def objective(layers, lines=lines):
      logits_fn = partial(apply_dense, layers)
      batch = Batch(inputs, labels)
      return bounds.cross_entropy(
        logits_fn, batch, epsilon=0.05, lines=lines
      ).mean()

    step = jax.jit(jax.value_and_grad(objective))
    trained, values = layers, []
    for _ in range(20):
      value, gradients = step(trained)
      trained = jax.tree.map(lambda p, g: p - 0.05 * g, trained, gradients)
      values.append(value)
    chex.assert_tree_all_finite(trained)
    assert values[-1] < 0.8 * values[0]


def test_a_weight_of_lines_out_of_range_is_no_bound():
  # Beyond 1 what is called an upper bound lay below the loss itself.
  logits_fn = partial(apply_dense, dense_layers(KEY, (4, 5, 3)))
  batch = Batch(jnp.full((2, 4), 0.5), jnp.array([0, 1]))

  def worst(lines):
    return bounds.cross_entropy(logits_fn, batch, epsilon=0.2, lines=lines)

  for lines in (3.0, -0.5, np.nan):
    with pytest.raises(
      ValueError, match='lines must be at least 0 and at most'
    ):
      worst(lines)
    assert jnp.isnan(jax.jit(worst)(lines)).all()
  assert (jax.jit(worst)(1.0) >= losses.natural(logits_fn, batch, None)).all()


@pytest.mark.parametrize('name', ['ibp', 'crown_ibp'])
def test_certified_training_starts_natural_and_ends_above_any_attack(name):
  layers = dense_layers(KEY, (12, 20, 3))
  inputs = jax.random.uniform(KEY, (6, 2, 2, 3))
  batch = Batch(inputs, jnp.array([0, 1, 2, 0, 1, 2]))

  logits_fn = partial(apply_dense, layers)

  @jax.jit
  def loss(progress):
    method = getattr(methods, name)(epsilon=0.1, kappa=0.2, progress=progress)
    return method.loss(logits_fn, batch, inputs)

  clean = losses.natural(logits_fn, batch, inputs)
  chex.assert_trees_all_close(loss(0.0), clean, rtol=1e-5)
  points = attacks.pgd(logits_fn, batch, KEY, epsilon=0.1)
  attacked = losses.at(logits_fn, batch, points)
  assert (loss(1.0) >= 0.2 * clean + 0.8 * attacked).all()
  assert (loss(0.35) < loss(1.0)).all()


BOX = jnp.zeros((2, 4)), jnp.ones((2, 4))


@pytest.mark.parametrize(
  ('logits_fn', 'message'),
  [
    (jnp.sin, "no rule for 'sin'"),
    (lambda x: jnp.sort(x), "no rule for 'sort'"),
    (lambda x: x * x.astype(jnp.bfloat16), 'float32'),
    (lambda x: lax.top_k(x, 2)[0], "'top_k' gives int32"),
    (lambda x: jnp.where(x > 0.5, 2.0 * x, x), "'select_n'"),
    (lambda x: x @ x.T, 'each example by itself'),
    (jax.vmap(lambda x: jnp.convolve(x, x)), "no rule for 'conv_general_dil"),
    (lambda x: jnp.ones((2, 3)), 'do not depend'),
    (lambda x: jnp.where(x > 0.5, x, 0.0), 'kink at 0'),
    (lambda x: jnp.cumsum(x, axis=-1), "no rule for 'cumsum'"),
    (nn.Dropout(0.5, deterministic=False), 'inference mode'),
  ],
)
def test_what_has_no_bounds_is_named(logits_fn, message):
  if isinstance(logits_fn, nn.Module):
    logits_fn = partial(logits_fn.apply, {}, rngs={'dropout': KEY})
  with pytest.raises(ValueError, match=message):
    bounds.interval(logits_fn, *BOX)


def test_what_returns_no_logits_is_named():
  flat, inputs = (lambda x: x.sum(axis=1)), jnp.full((2, 4), 0.5)
  for bound in (
    lambda: bounds.interval(flat, *BOX),
    lambda: bounds.linear(flat, *BOX),
    lambda: lipschitz.upper_bound(flat, inputs, epsilon=0.1),
  ):
    with pytest.raises(ValueError, match='logits must be'):
      bound()
  with pytest.raises(ValueError, match=r'weights must be \[2, K, 4\]'):
    bounds.linear(lambda x: x, *BOX, weights=jnp.ones((2, 5, 3)))


def test_where_a_primitive_without_rule_stands_is_said():
  class Sine(nn.Module):
    @nn.compact
    def __call__(self, x):
      return jnp.sin(nn.Dense(3)(x))

  class Outer(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(Sine(name='wave')(x))

  variables = Outer().init(KEY, BOX[0])
  with pytest.raises(ValueError, match="'sin'.*wave"):
    bounds.linear(models.logits_fn(Outer(), variables), *BOX)


def test_bad_boxes_and_methods_are_refused():
  with pytest.raises(ValueError, match='one shape'):
    bounds.interval(jnp.abs, BOX[0], BOX[1][:1])
  with pytest.raises(ValueError, match='float32'):
    bounds.linear(jnp.abs, jnp.zeros((2, 4), int), jnp.ones((2, 4), int))
  with pytest.raises(ValueError, match='method'):
    bounds.certified(
      jnp.abs, Batch(BOX[0], jnp.zeros(2, int)), epsilon=0.1, method='best'
    )
  with pytest.raises(ValueError, match='lower <= upper'):
    bounds.interval(jnp.abs, *BOX[::-1])
  for function in (bounds.interval, bounds.linear):
    with pytest.raises(ValueError, match='there are no boxes'):
      function(jnp.abs, BOX[0][:0], BOX[1][:0])


@pytest.mark.parametrize('settings', [None, {}, {'tighten': True}])
def test_corners_that_are_out_of_order_bound_nothing_within_jit(settings):
  layers = dense_layers(KEY, (4, 5, 3))
  function = bounds.interval
  if settings is not None:
    function = partial(bounds.linear, **settings)
  bounded = jax.jit(partial(function, partial(apply_dense, layers)))
  lower = BOX[0].at[1, 2].set(1.5)  # above its upper end, in one box of two
  wrong, right = bounded(lower, BOX[1]), bounded(*BOX)
  for found, expected in zip(wrong, right, strict=True):
    assert jnp.isnan(found[1]).all()
    chex.assert_trees_all_close(found[0], expected[0], rtol=1e-6)


@pytest.mark.parametrize(
  ('epsilon', 'pixel', 'message'),
  [(1.5, 0.5, 'at most 1'), (-0.1, 0.5, 'at least 0'), (0.1, np.nan, 'inputs')],
)
def test_no_such_ball(epsilon, pixel, message):
  batch = Batch(jnp.full((1, 3), pixel), jnp.zeros(1, int))
  for function, argument in (
    (bounds.certified, batch),
    (lipschitz.upper_bound, batch.inputs),
  ):
    with pytest.raises(ValueError, match=message):
      function(jnp.abs, argument, epsilon=epsilon)
    known = jax.jit(lambda x, e, f=function: f(jnp.abs, x, epsilon=e))
    value = known(argument, epsilon)  # unknown values: nothing is certain
    assert not value[0] if function is bounds.certified else jnp.isnan(value[0])


def test_a_ball_ends_where_the_pixels_do():
  box = bounds.ball(jax.random.uniform(KEY, (3, 4)), epsilon=1.0)
  chex.assert_trees_all_equal(box, (jnp.zeros((3, 4)), jnp.ones((3, 4))))


def test_lines_between_ends_that_nearly_meet_have_a_gradient():
  # Black pixels and no bias: features are 0 up to the room for rounding.
  inputs = jnp.zeros((2, 4)).at[:, 0].set(0.7)
  batch = Batch(inputs, jnp.array([0, 1]))
  given = [jax.random.normal(KEY, (4, 5)).at[0].set(0), jnp.ones((5, 3)) / 3]

  def network(kernels, inputs):
    return jax.nn.relu(inputs @ kernels[0]) @ kernels[1] - jnp.arange(3.0)[None]

  def worst(kernels, epsilon):
    logits_fn = partial(network, kernels)
    return bounds.cross_entropy(logits_fn, batch, epsilon=epsilon, lines=1.0)

  def clean(kernels):
    return losses.cross_entropy(network(kernels, inputs), batch.labels)

  expected = jax.grad(lambda x: clean(x).sum())(given)
  for epsilon in (0.0, 1e-9):
    found = jax.grad(lambda x, e=epsilon: worst(x, e).sum())(given)
    chex.assert_tree_all_finite(found)
    chex.assert_trees_all_close(found[1], expected[1], atol=1e-5)


def test_a_class_that_is_never_predicted_has_no_larger_bound():
  def masked(inputs):
    return inputs @ jnp.ones((4, 3)) - jnp.array([[1.0, jnp.inf, 0.0]])

  box = jnp.full((2, 4), 0.25), jnp.full((2, 4), 0.5)
  lower, upper = bounds.interval(masked, *box)
  assert (lower[:, 1] == -jnp.inf).all() and (upper[:, 1] == -jnp.inf).all()
  expected = jnp.array([[0.0, 1.0], [1.0, 2.0]])
  for end, value in zip((lower, upper), expected, strict=True):
    chex.assert_trees_all_close(end[:, ::2], jnp.tile(value, (2, 1)), atol=1e-5)


@pytest.mark.parametrize('method', bounds.METHODS)
def test_a_class_that_is_never_predicted_leaves_the_other_margins(method):
  logits_fn = partial(apply_dense, dense_layers(KEY, (4, 5, 3)))

  def masked(inputs):
    never = jnp.full((len(inputs), 1), -jnp.inf)
    return jnp.concatenate([logits_fn(inputs), never], axis=1)

  inputs = jax.random.uniform(KEY, (3, 4))
  batch = Batch(inputs, logits_fn(inputs).argmax(axis=-1))
  settings = dict(epsilon=0.01, method=method)
  found = bounds.margins(masked, batch, **settings)
  expected = bounds.margins(logits_fn, batch, **settings)
  chex.assert_trees_all_close(found[:, :3], expected, rtol=1e-5, atol=1e-6)
  assert (found[:, 3] > 1e30).all()


@pytest.mark.parametrize('method', bounds.METHODS)
def test_features_as_large_as_what_replaces_infinities_are_not_certified(
  method,
):
  def large(x):
    return 1e-30 * nn.relu(x * 3e38 - 1.8e38)  # 3e7 at 0.7

  def infinite(x):
    return (x - 0.45) * -jnp.inf  # inf at 0.3

  batch = Batch(jnp.full((1, 1, 1, 1), 0.5), jnp.array([1]))
  for feature in (large, infinite):

    def logits_fn(x, feature=feature):
      x = x.reshape(len(x), 1)
      return jnp.concatenate([feature(x), 0.4 + 0.0 * x], axis=1)

    assert logits_fn(batch.inputs).argmax() == 1
    assert not bounds.certified(logits_fn, batch, epsilon=0.2, method=method)


def test_a_label_that_is_no_class_has_no_margin_where_it_is_not_known():
  logits_fn = partial(apply_dense, dense_layers(KEY, (4, 5, 3)))

  @jax.jit
  def measured(labels):
    batch = Batch(jnp.full((3, 4), 0.5), labels)
    entropy = bounds.cross_entropy(logits_fn, batch, epsilon=0.1)
    return entropy, bounds.margins(logits_fn, batch, epsilon=0.1)[:, 0]

  for values in measured(jnp.array([-1, 0, 3])):
    np.testing.assert_array_equal(np.isnan(values), [True, False, True])
