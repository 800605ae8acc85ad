"""Sizes, initial values, modes and devices of the networks."""

import functools
import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from robustlip import models
from robustlip.models import cnn, convolution, resnet, wide_resnet
from robustlip.types import DEVICES

KEY = jax.random.key(0)


def images(*shape):
  return jax.random.uniform(jax.random.key(1), shape)


def shapes(module, *shape):
  """Of the variables for images of a shape."""
  return jax.eval_shape(module.init, KEY, jnp.zeros((1, *shape)))


@pytest.mark.parametrize(
  'name, shape, count',
  [
    ('cnn1', (28, 28, 1), 1_199_882),
    ('cnn2', (28, 28, 1), 312_202),
    ('wrn_40_10', (32, 32, 3), 55_841_754),
    ('wrn_28_10', (32, 32, 3), 36_479_194),
    ('resnet50', (64, 64, 3), 23_508_032 + 2048 * 10 + 10),
  ],
)
def test_published_number_of_parameters(name, shape, count):
  params = shapes(models.build(name, 10), *shape)['params']
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize(
  'name, shape',
  [
    ('cnn1', (28, 28, 1)),
    ('cnn2', (32, 32, 3)),
    ('wrn_10_1', (32, 32, 3)),
    ('resnet26', (64, 64, 3)),
  ],
)
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_logits_and_parameters_are_float32(name, shape, dtype):
  module = models.build(name, 7, dtype=dtype)
  variables = shapes(module, *shape)
  logits = jax.eval_shape(module.apply, variables, jnp.zeros((2, *shape)))
  assert logits.shape == (2, 7)
  dtypes = {leaf.dtype for leaf in jax.tree.leaves((variables, logits))}
  assert dtypes == {jnp.dtype('float32')}


def drawn(name, *shape):
  """The parameters that a network starts with."""
  module = models.build(name, 10)
  return jax.jit(module.init)(KEY, images(1, *shape))['params']


def test_cnn_initial_values():
  params = drawn('cnn1', 28, 28, 1)
  for name, fan_in in (('Conv_1', 288), ('Dense_0', 9216)):
    for leaf in jax.tree.leaves(params[name]):
      assert abs(leaf).max() <= fan_in**-0.5
      np.testing.assert_allclose(leaf.std(), (3 * fan_in) ** -0.5, rtol=0.15)
  params = drawn('cnn2', 28, 28, 1)
  kernel = params['Conv_1']['kernel']
  np.testing.assert_allclose(kernel.std(), (2 / 288) ** 0.5, rtol=0.05)
  assert abs(kernel).max() > 3 * kernel.std()  # not truncated
  assert not params['Dense_2']['kernel'].any()
  assert not params['Conv_0']['bias'].any()


def test_wide_resnet_initial_values():
  params = drawn('wrn_10_1', 8, 8, 3)
  kernel = params['Block_2']['Conv_0']['kernel']
  np.testing.assert_allclose(kernel.std(), (2 / (9 * 64)) ** 0.5, rtol=0.05)
  assert abs(kernel).max() > 3 * kernel.std()  # not truncated
  assert not params['Dense_0']['bias'].any()


@pytest.mark.parametrize(
  'name, message',
  [
    ('wrn_17_4', '6 n [+] 4'),
    ('wrn_4_4', '6 n [+] 4'),
    ('wrn_16_0', 'no network'),
    ('vgg', 'cnn1, cnn2'),
  ],
)
def test_wrong_names_are_refused(name, message):
  with pytest.raises(ValueError, match=message):
    models.build(name, 10)


@pytest.mark.parametrize(
  'build',
  [
    functools.partial(models.build, 'wrn_10_1', 3),
    functools.partial(resnet.ResNet, 3, stage_sizes=(1,)),
  ],
)
def test_recomputed_blocks_have_the_same_gradients(build):
  inputs = images(2, 8, 8, 1)
  whole, recomputed = (build(remat=remat) for remat in (False, True))
  variables = jax.jit(whole.init)(KEY, inputs)
  chex.assert_trees_all_equal_structs(
    variables, jax.eval_shape(recomputed.init, KEY, inputs)
  )

  def gradients(module):
    def loss(params):
      logits, _ = module.apply(
        dict(variables, params=params),
        inputs,
        train=True,
        mutable=['batch_stats'],
      )
      return (logits**2).sum()

    return jax.jit(jax.grad(loss))(variables['params'])

  chex.assert_trees_all_close(
    gradients(whole), gradients(recomputed), rtol=1e-3, atol=1e-4
  )


def test_wrong_settings_are_refused():
  for settings, message in (
    (dict(num_classes=1), 'num_classes'),
    (dict(dropout_rate=1.0), 'dropout_rate'),
    (dict(activation='gelu'), "relu, silu, got 'gelu'"),
    (dict(remat=True), 'blocks'),
  ):
    with pytest.raises(ValueError, match=message):
      models.build('cnn1', **dict(num_classes=10) | settings)
  with pytest.raises(ValueError, match='too small'):
    shapes(models.build('cnn2', 10), 12, 12, 1)


def test_inference_is_deterministic_and_training_drops():
  module = models.build('cnn1', 10)
  inputs = images(4, 8, 8, 1)
  variables = jax.jit(module.init)(KEY, inputs)
  logits_fn = models.logits_fn(module, variables)
  chex.assert_trees_all_equal(logits_fn(inputs), logits_fn(inputs))
  first, second = (
    module.apply(
      variables, inputs, train=True, rngs={'dropout': jax.random.key(seed)}
    )
    for seed in (1, 2)
  )
  assert abs(first - second).max() > 0
  plain = models.build('cnn1', 10, dropout_rate=0.0)
  chex.assert_trees_all_close(
    plain.apply(variables, inputs, train=True), logits_fn(inputs)
  )


def dropped_positions(name, shape):
  """Shapes of the masks that training draws, in order."""
  module = models.build(name, 10, dropout_rate=0.5)

  def apply(variables, key):
    return module.apply(
      variables,
      jnp.zeros((2, *shape)),
      train=True,
      rngs={'dropout': key},
      mutable=['batch_stats'],
    )

  jaxpr = jax.make_jaxpr(apply)(shapes(module, *shape), KEY)
  return [
    equation.outvars[0].aval.shape
    for equation in flat_equations(jaxpr.jaxpr)
    if equation.primitive.name == 'random_bits'
  ]


def flat_equations(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      inner = getattr(value, 'jaxpr', None)
      if inner is not None:
        yield from flat_equations(inner)


def test_dropout_sits_where_the_authors_put_it():
  assert dropped_positions('cnn1', (28, 28, 1)) == [(2, 1, 1, 64), (2, 128)]
  assert dropped_positions('cnn2', (28, 28, 1)) == [(2, 200)]
  assert dropped_positions('wrn_10_1', (32, 32, 3)) == [
    (2, 32, 32, 16),
    (2, 16, 16, 32),
    (2, 8, 8, 64),
  ]
  # The first of the two blocks of each stage does not drop.
  assert dropped_positions('resnet26', (64, 64, 3)) == [
    (2, 16, 16, 64),
    (2, 8, 8, 128),
    (2, 4, 4, 256),
    (2, 2, 2, 512),
  ]


def test_two_devices_normalize_like_one():
  module = models.build('wrn_10_1', 10)
  inputs = images(8, 8, 8, 3)
  variables = jax.jit(module.init)(KEY, inputs)
  apply = functools.partial(
    module.apply, variables, train=True, mutable=['batch_stats']
  )
  logits, updates = jax.jit(apply)(inputs)
  halves = inputs.reshape(2, 4, *inputs.shape[1:])
  many, many_updates = jax.pmap(apply, axis_name=DEVICES)(halves)
  chex.assert_trees_all_close(many.reshape(8, 10), logits, atol=1e-4)
  for device in range(2):
    chex.assert_trees_all_close(
      jax.tree.map(lambda leaf, i=device: leaf[i], many_updates),
      updates,
      atol=1e-5,
    )


@pytest.mark.parametrize(
  'network, shape',
  [
    (cnn.CNN1, (8, 8, 1)),
    (cnn.CNN2, (16, 16, 1)),
    (functools.partial(wide_resnet.WideResNet, depth=10, width=1), (8, 8, 3)),
    (functools.partial(resnet.ResNet, stage_sizes=(1,)), (32, 32, 3)),
  ],
)
def test_activations(network, shape):
  def activations(**settings):
    module = network(3, **settings)
    variables, inputs = shapes(module, *shape), jnp.zeros((1, *shape))
    jaxpr = jax.make_jaxpr(module.apply)(variables, inputs)
    return str(jaxpr).count('relu'), str(jaxpr).count('logistic')

  relus, logistics = activations()
  assert relus and not logistics
  relus, logistics = activations(activation=models.ACTIVATIONS['silu'])
  assert logistics and not relus
  built = models.build('cnn1', 3, activation='silu')
  assert built == cnn.CNN1(3, activation=jax.nn.silu)
  assert models.build('cnn1', 3) == cnn.CNN1(3, activation=jax.nn.relu)


class Training(nn.Module):
  """Somebody's module, whose argument has another name."""

  @nn.compact
  def __call__(self, inputs, training=False):
    features = nn.Dropout(0.5, deterministic=not training)(inputs)
    return nn.Dense(3)(features.reshape(len(features), -1))


class Deterministic(nn.Module):
  @nn.compact
  def __call__(self, inputs, *, deterministic):
    return nn.Dropout(0.5, deterministic=deterministic)(inputs)


class Masked(nn.Module):
  def __call__(self, inputs, mask):
    return inputs * mask


class Counting(nn.Module):
  @nn.compact
  def __call__(self, inputs, train):
    self.variable('counters', 'calls', jnp.zeros, ())
    return nn.Dropout(0.5, deterministic=not train)(inputs)


def test_modules_of_others():
  inputs = images(2, 3, 3, 1)
  module = Training()
  variables = module.init(KEY, inputs)
  logits = models.logits_fn(module, variables)(inputs)
  np.testing.assert_array_equal(logits, module.apply(variables, inputs))
  with pytest.raises(ValueError, match='takes training .*expected train: wrap'):
    models.init(module, KEY, inputs)

  with pytest.raises(ValueError, match='wants mask .*functools.part'):
    models.logits_fn(Masked(), {})
  chex.assert_trees_all_equal(
    models.logits_fn(Deterministic(), {})(inputs), inputs
  )
  with pytest.raises(ValueError, match='takes deterministic'):
    models.init(Deterministic(), KEY, inputs)

  variables = Counting().init(KEY, inputs, train=False)
  logits = models.logits_fn(Counting(), variables)(inputs)
  np.testing.assert_array_equal(logits, inputs)
  with pytest.raises(ValueError, match='has variables in counters; only para'):
    models.init(Counting(), KEY, inputs)
  module = models.build('cnn2', 3)
  inputs = images(1, 16, 16, 1)
  chex.assert_trees_all_equal(
    jax.jit(functools.partial(models.init, module))(KEY, inputs),
    jax.jit(module.init)(KEY, inputs),
  )


def test_networks_that_are_no_linen_modules():
  network = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match='Linen module, got Linear: .* `lambda'):
    models.logits_fn(network, {})
  with pytest.raises(ValueError, match='Linen module, got Linear'):
    models.init(network, KEY, images(2, 3))
  with pytest.raises(ValueError, match='variables must be a dict .*got Linear'):
    models.logits_fn(Training(), network)


def torch_names(stages):
  """Layer of a wide residual network -> its PyTorch name."""
  names = {('Conv_0',): 'conv1', ('BatchNorm_0',): 'bn1', ('Dense_0',): 'fc'}
  for i in range(3 * stages):
    for layer, name in (
      ('BatchNorm_0', 'bn1'),
      ('Conv_0', 'conv1'),
      ('BatchNorm_1', 'bn2'),
      ('Conv_1', 'conv2'),
      ('Conv_2', 'convShortcut'),
    ):
      block = f'block{i // stages + 1}.layer.{i % stages}'
      names[f'Block_{i}', layer] = f'{block}.{name}'
  return names


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_weights_from_torch_by_name(prefix):
  module = wide_resnet.WideResNet(3, depth=16, width=2)
  random = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda leaf: random.normal(size=leaf.shape).astype(np.float32),
    shapes(module, 8, 8, 3),
  )
  names = torch_names(2)
  state_dict = {f'{prefix}bn1.num_batches_tracked': np.array(7)}
  for path, value in jax.tree_util.tree_leaves_with_path(variables):
    _, *layer, leaf = (entry.key for entry in path)
    name = f'{prefix}{names[tuple(layer)]}'
    suffix = {'scale': 'weight', 'kernel': 'weight', 'bias': 'bias'}.get(
      leaf, f'running_{leaf}'
    )
    if value.ndim == 4:
      value = value.transpose(3, 2, 0, 1)  # output, input, height, width
    state_dict[f'{name}.{suffix}'] = value.T if value.ndim == 2 else value
  if prefix:  # as TRADES saves it: a block that is never called
    state_dict['module.sub_block1.layer.0.conv1.weight'] = np.zeros(3)
  chex.assert_trees_all_equal(models.from_torch(state_dict), variables)


@pytest.mark.parametrize(
  'names, message',
  [
    ([], 'has no weights'),
    (['features.0.weight'], 'has features.0.weight, expected'),
    (['conv1.weight', 'layer1.0.shortcut.0.weight'], 'shortcut'),
    (['layer1.0.conv1.weight', 'layer1.0.conv2.weight'], 'without conv3'),
    # No layer here would add it.
    (['block1.layer.0.conv1.weight', 'conv1.bias'], 'has conv1.bias'),
    (['conv1.weight', 'layer1.0.downsample.0.bias'], 'downsample.0.bias'),
  ],
)
def test_other_networks_from_torch_are_refused(names, message):
  with pytest.raises(ValueError, match=message):
    models.from_torch({name: np.zeros((1, 1, 1, 1)) for name in names})


def torch_wide_resnet(torch, activation):
  """A WRN-16-2 with the modules and names of TRADES."""

  class Block(torch.nn.Module):
    def __init__(self, inside, outside, stride):
      super().__init__()
      conv = functools.partial(torch.nn.Conv2d, bias=False)
      self.bn1 = torch.nn.BatchNorm2d(inside)
      self.conv1 = conv(inside, outside, 3, stride, 1)
      self.bn2 = torch.nn.BatchNorm2d(outside)
      self.conv2 = conv(outside, outside, 3, 1, 1)
      self.convShortcut = None
      if inside != outside:
        self.convShortcut = conv(inside, outside, 1, stride)

    def forward(self, inputs):
      normalized = activation(self.bn1(inputs))
      features = activation(self.bn2(self.conv1(normalized)))
      features = self.conv2(features)
      if self.convShortcut is None:
        return inputs + features
      return self.convShortcut(normalized) + features

  class Group(torch.nn.Module):
    def __init__(self, inside, outside, stride):
      super().__init__()
      self.layer = torch.nn.Sequential(
        Block(inside, outside, stride), Block(outside, outside, 1)
      )

    def forward(self, inputs):
      return self.layer(inputs)

  class Network(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.conv1 = torch.nn.Conv2d(3, 16, 3, 1, 1, bias=False)
      self.block1, self.block2 = Group(16, 32, 1), Group(32, 64, 2)
      self.block3 = Group(64, 128, 2)
      self.bn1, self.fc = torch.nn.BatchNorm2d(128), torch.nn.Linear(128, 5)

    def forward(self, inputs):
      features = self.block1(self.conv1(inputs))
      features = self.block3(self.block2(features))
      return self.fc(activation(self.bn1(features)).mean((2, 3)))

  return Network()


def check_same_logits(torch, network, module, side):
  inputs = torch.rand(4, 3, side, side, generator=torch.manual_seed(0))
  network.train()
  with torch.no_grad():
    for _ in range(3):
      network(4 * inputs - 1)  # moves the running statistics
    expected = network.eval()(inputs)
  variables = models.from_torch(network.state_dict())
  found = models.logits_fn(module, variables)(
    jnp.asarray(inputs.numpy().transpose(0, 2, 3, 1))
  )
  np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)
  assert expected.std() > 1e-2


@pytest.mark.parametrize('activation', ['relu', 'silu'])
def test_a_wide_resnet_has_the_logits_of_pytorch(activation):
  torch = pytest.importorskip('torch')
  function = {'relu': torch.relu, 'silu': torch.nn.functional.silu}[activation]
  network = torch_wide_resnet(torch, function)
  module = models.build('wrn_16_2', 5, activation=activation)
  check_same_logits(torch, network, module, 16)


def test_a_resnet_has_the_logits_of_torchvision():
  torch = pytest.importorskip('torch')
  torchvision = pytest.importorskip('torchvision')
  sizes = (2, 1, 3, 1)
  network = torchvision.models.ResNet(
    torchvision.models.resnet.Bottleneck, list(sizes), num_classes=5
  )
  check_same_logits(torch, network, resnet.ResNet(5, stage_sizes=sizes), 64)


@pytest.mark.parametrize(
  'version, given, changes',
  [
    ((0, 10, 2), '', True),
    ((0, 12, 0), '--xla_a=1', True),
    ((0, 10, 1), '', False),
    ((0, 10, 2), '/a/file/of/flags', False),
  ],
)
def test_fast_convolutions_on_a_cpu(monkeypatch, version, given, changes):
  monkeypatch.setattr(jax, '__version_info__', version)
  monkeypatch.setenv('XLA_FLAGS', given)
  for _ in range(2):
    convolution.enable_fast_cpu()
    flags = os.environ['XLA_FLAGS']
    assert flags.endswith(given)
    assert flags.count('ynn_fusion_type') == changes
