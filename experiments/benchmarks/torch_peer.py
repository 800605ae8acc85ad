"""The peer: PyTorch as the authors of the paper write it, an eager loop.

This module imports torch, so it is imported only with --peers. Images are
[B, C, H, W].
"""

import collections
import contextlib
import math
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from experiments.benchmarks.problem import EPSILON, LAM, Problem
from experiments.benchmarks.timing import Candidate


def device() -> torch.device:
  """The device that JAX computes on, as PyTorch calls it.

  Raises:
    ValueError: if PyTorch cannot use it.
  """
  backend = jax.default_backend()
  if backend == 'cpu':
    return torch.device('cpu')
  if backend == 'gpu' and torch.cuda.is_available():
    if jax.local_device_count() == 1:
      return torch.device('cuda')
    raise ValueError('peers use one GPU: set CUDA_VISIBLE_DEVICES=0')
  raise ValueError(
    f'PyTorch does not see the {backend} that JAX computes on; leave out '
    '--peers or set JAX_PLATFORMS=cpu'
  )


@contextlib.contextmanager
def computing(precision: str):
  """Context that computes in this type, and waits for the device at its end."""
  where, dtype = device().type, getattr(torch, precision)
  low = precision != 'float32'
  # Cached casts would outlive the update of the weights.
  with torch.autocast(where, dtype, enabled=low, cache_enabled=False):
    yield
  if where == 'cuda':
    torch.cuda.synchronize()


def on_device(images: np.ndarray) -> torch.Tensor:
  """Images [B, H, W, C] as [B, C, H, W] on the device."""
  moved = torch.from_numpy(images).permute(0, 3, 1, 2)
  return moved.contiguous().to(device())


def examples(task: Problem) -> tuple[torch.Tensor, torch.Tensor]:
  """The images as [N, C, H, W] in [0, 1], and the labels."""
  labels = torch.from_numpy(task.split.labels).long()
  return on_device(task.split.images).float() / 255, labels.to(device())


class _Block(nn.Module):
  """A pre-activation block of a wide residual network."""

  def __init__(self, channels: int, width: int, stride: int):
    super().__init__()
    self.norm1 = nn.BatchNorm2d(channels)
    self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
    self.norm2 = nn.BatchNorm2d(width)
    self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
    self.shortcut = None
    if channels != width or stride != 1:
      self.shortcut = nn.Conv2d(channels, width, 1, stride, bias=False)

  def forward(self, inputs):
    normalized = functional.relu(self.norm1(inputs))
    features = functional.relu(self.norm2(self.conv1(normalized)))
    shortcut = self.shortcut(normalized) if self.shortcut else inputs
    return self.conv2(features) + shortcut


def _wide_resnet(depth: int, width: int, channels: int) -> nn.Module:
  blocks, features = [nn.Conv2d(channels, 16, 3, 1, 1, bias=False)], 16
  for group in range(3):
    for index in range((depth - 4) // 6):
      stride = 2 if group and not index else 1
      blocks.append(_Block(features, 16 * 2**group * width, stride))
      features = 16 * 2**group * width
  head = [nn.BatchNorm2d(features), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
  return nn.Sequential(*blocks, *head, nn.Flatten(), nn.Linear(features, 10))


def _cnn1(channels: int) -> nn.Module:
  layers = [nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3)]
  layers += [nn.MaxPool2d(2), nn.Dropout2d(0.25), nn.Flatten()]
  layers += [nn.LazyLinear(128), nn.ReLU(), nn.Dropout(0.5)]
  return nn.Sequential(*layers, nn.Linear(128, 10))


def _cnn2(channels: int) -> nn.Module:
  layers, features = [], channels
  for width in (32, 64):
    for _ in range(2):
      layers += [nn.Conv2d(features, width, 3), nn.ReLU()]
      features = width
    layers.append(nn.MaxPool2d(2))
  layers += [nn.Flatten(), nn.LazyLinear(200), nn.ReLU(), nn.Dropout(0.5)]
  layers += [nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)]
  return nn.Sequential(*layers)


def _plain(channels: int, depth: int, width: int) -> nn.Module:
  layers = []
  for index in range(depth):
    inputs, stride = (width, 1) if index else (channels, 2)
    layers += [nn.Conv2d(inputs, width, 3, stride, 1), nn.ReLU()]
  return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(10))


def candidates(
  task: Problem,
  batch_size: int,
  prepare: Callable[[nn.Module], Callable[..., object]],
  *,
  compiled: bool,
) -> dict[str, Candidate]:
  """PyTorch eager and, if asked, compiled, which may fail on some machines.

  Args:
    prepare: from a network to the work on each batch (images, labels):
      `training`, `attack` or `lipschitz`.
  """
  inputs, labels = examples(task)

  def run(work):
    with computing(task.precision):
      for chosen in task.batches(batch_size):
        work(inputs[chosen], labels[chosen])

  work = partial(run, prepare(network(task)))
  found = {'PyTorch eager': Candidate(work, len(labels))}
  if compiled:
    # Each mode and set of gradients is compiled, more often than torch allows.
    torch._dynamo.config.recompile_limit = 64
    work = partial(run, prepare(torch.compile(network(task))))
    found['PyTorch compiled'] = Candidate(work, len(labels), may_fail=True)
  return found


def network(task: Problem) -> nn.Module:
  """The network of the problem, [B, C, H, W] -> [B, 10]."""
  height, width, channels = task.split.images.shape[1:]
  arch = task.arch
  if arch == 'cnn1':
    module = _cnn1(channels)
  elif arch == 'cnn2':
    module = _cnn2(channels)
  elif arch.startswith('plain_'):
    module = _plain(channels, *map(int, arch.split('_')[1:]))
  else:
    depth, factor = map(int, arch.removeprefix('wrn_').split('_'))
    module = _wide_resnet(depth, factor, channels)
  module(torch.zeros(2, channels, height, width))  # sizes the lazy layers
  return module.to(device())


def twin(task: Problem, variables) -> nn.Module:
  """The network with our weights, in inference mode."""
  module = network(task).eval().requires_grad_(False)
  channels = task.image_shape[-1]
  for layer, path in _layers(module):
    found = {}
    for tree in variables.values():  # parameters, statistics
      for name in path:
        tree = tree.get(name, {})
      found |= {name: np.asarray(array) for name, array in tree.items()}
    if 'kernel' in found:
      kernel = found.pop('kernel')
      if kernel.ndim == 2:  # of features that were [H, W, C]
        side = math.isqrt(len(kernel) // channels)
        kernel = kernel.reshape(side, side, channels, -1)
      kernel = kernel.transpose(3, 2, 0, 1)
      channels = kernel.shape[0]
      found['weight'] = kernel.reshape(layer.weight.shape)
    for name, array in found.items():
      getattr(layer, _ARRAYS.get(name, name)).copy_(
        torch.from_numpy(array.copy())
      )
  return module


_ARRAYS = {'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var'}
_KINDS = {nn.Conv2d: 'Conv', nn.Linear: 'Dense', nn.BatchNorm2d: 'BatchNorm'}
_IN_BLOCK = {
  'norm1': 'BatchNorm_0',
  'norm2': 'BatchNorm_1',
  'conv1': 'Conv_0',
  'conv2': 'Conv_1',
  'shortcut': 'Conv_2',
}


def _layers(module: nn.Module):
  """Yields each layer that has weights, and the path of its Flax variables."""
  counts = collections.Counter()
  for child in module:
    kind = _KINDS.get(type(child))
    if isinstance(child, _Block):
      kind = 'Block'
      for name, layer in child.named_children():
        yield layer, (f'Block_{counts[kind]}', _IN_BLOCK[name])
    elif kind:
      yield child, (f'{kind}_{counts[kind]}',)
    counts[kind] += 1


def _ascend(module, objective, inputs) -> torch.Tensor:
  """Ten sign steps of EPSILON / 5 up `objective`, from a random start."""
  noise = torch.empty_like(inputs).uniform_(-EPSILON, EPSILON)
  points = (inputs + noise).clamp(0, 1)
  # A compiled network would compute the gradients of its weights too.
  module.requires_grad_(False)
  for _ in range(10):
    points.requires_grad_(True)
    (gradient,) = torch.autograd.grad(objective(points).sum(), points)
    points = points.detach() + EPSILON / 5 * gradient.sign()
    points = torch.min(torch.max(points, inputs - EPSILON), inputs + EPSILON)
    points = points.clamp(0, 1)
  module.requires_grad_(True)
  return points.detach()


def pgd(module: nn.Module, inputs, labels) -> torch.Tensor:
  """PGD-10 on the cross entropy, from a random start."""

  def objective(points):
    return functional.cross_entropy(module(points), labels, reduction='none')

  return _ascend(module, objective, inputs)


def attack(module: nn.Module) -> Callable[..., object]:
  """A function that attacks a batch and returns who is robust, bool [B]."""
  module.eval()

  def evaluate(inputs, labels):
    points = pgd(module, inputs, labels)
    with torch.no_grad():
      return (module(points).argmax(1) == labels).cpu()

  return evaluate


def lipschitz(module: nn.Module) -> Callable[..., object]:
  """The value of ||f(x) - f(x')||_1 / ||x - x'||_inf after ten ascent steps."""
  module.eval()

  def estimate(inputs, labels):
    del labels
    with torch.no_grad():
      clean = module(inputs)

    def ratios(points):
      top = (module(points) - clean).abs().sum(1)
      return top / (points - inputs).flatten(1).abs().amax(1)

    points = _ascend(module, ratios, inputs)
    with torch.no_grad():
      return ratios(points).cpu()

  return estimate


def training(module: nn.Module) -> Callable[..., object]:
  """One update on CE(x) + LAM CE(x'), x' from PGD in inference mode."""
  optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)

  def step(inputs, labels):
    module.eval()
    points = pgd(module, inputs, labels)
    module.train()
    optimizer.zero_grad()
    loss = functional.cross_entropy(module(inputs), labels)
    loss = loss + LAM * functional.cross_entropy(module(points), labels)
    loss.backward()
    optimizer.step()

  return step


WORKS = {'attack': attack, 'lipschitz': lipschitz}


def search(queries, others) -> Callable[[], object]:
  """The nearest of `others` to each of `queries`, NumPy arrays, in l-inf."""
  left, right = (torch.from_numpy(x).to(device()) for x in (queries, others))

  def run():
    with computing('float32'):
      torch.cdist(left, right, p=float('inf')).min(dim=1)

  return run
