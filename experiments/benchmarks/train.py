"""Images a second of the RST step: PGD-10, then the update."""

from functools import partial

import jax
import numpy as np

from experiments.benchmarks import Candidate, Case, problem
from robustlip import methods, training
from robustlip.images import AUGMENTATIONS

STEPS = 4  # to one run of a candidate
# An attack of ten steps with the gradient of the inputs, then the logits of the
# images and of the points with the gradients of inputs and kernels.
PASSES = 10 * 2 + 2 * 3


def case(
  arch: str,
  peers: bool,
  *,
  batch_size: int | None,
  precision: str,
  num_runs: int,
  compile_peer: bool,
) -> Case:
  """The batch is 64, or 32 for a wide residual network, unless given."""
  batch_size = batch_size or (64 if arch.startswith('cnn') else 32)
  task = problem.make(arch, STEPS * batch_size, precision)
  candidates = {'robustlip': ours(task, batch_size, num_runs=num_runs)}
  name = f'{arch}, batch {batch_size}'
  if num_runs > 1:
    name += f', {num_runs} runs'
    candidates['one at a time'] = _in_turn(task, batch_size, num_runs)
  if peers:
    candidates |= _torch(task, batch_size, compile_peer)
  return Case(name, 'images', candidates, PASSES * task.forward_flops())


def ours(
  task: problem.Problem,
  batch_size: int,
  *,
  steps: int = STEPS,
  num_runs: int = 1,
) -> Candidate:
  """The program that `experiments.train` runs, on this problem.

  Args:
    num_runs: networks that it trains at once.

  Raises:
    ValueError: if the devices do not share a batch evenly.
  """
  devices = jax.local_device_count()
  if batch_size % devices:
    raise ValueError(f'{devices} devices cannot share a batch of {batch_size}.')
  recipe = training.Recipe(
    module=task.module,
    method=methods.METHODS['rst'],
    optimizer=training.optimizer(
      'sgd', momentum=0.9, milestones=(), steps_per_epoch=1
    ),
    augment=AUGMENTATIONS['none'],
  )
  settings = methods.Settings(
    seed=np.arange(num_runs, dtype=np.uint32),
    learning_rate=np.full(num_runs, 1e-3, np.float32),
    epsilon=np.full(num_runs, problem.EPSILON, np.float32),
    lam=np.full(num_runs, problem.LAM, np.float32),
    beta=np.zeros(num_runs, np.float32),
    mu=np.zeros(num_runs, np.float32),
  )
  state = training.initial_state(recipe, settings, task.split.images.shape[1:])
  order = np.arange(steps * batch_size, dtype=np.int32)
  order = order.reshape(steps, devices, -1).swapaxes(0, 1)
  order = np.stack([order] * num_runs, axis=1)
  images, labels = training.replicate(tuple(task.split))
  epoch = training.Epoch(images, labels, order)
  states = [training.replicate(state)]
  arguments = settings, epoch, 0, steps
  program = training.trainer(recipe).lower(states[0], *arguments).compile()
  needs = program.memory_analysis()
  needed = needs.argument_size_in_bytes + needs.temp_size_in_bytes

  def run():
    states[0] = program(states[0], *arguments)
    jax.block_until_ready(states[0])

  return Candidate(run, num_runs * steps * batch_size, needed / 2**20)


def _in_turn(task, batch_size, num_runs):
  """The program of one run, as often as there are runs."""
  one = ours(task, batch_size)

  def run():
    for _ in range(num_runs):
      one.run()

  return Candidate(run, num_runs * one.work, one.memory)


def _torch(task, batch_size, compile_peer):
  import torch

  from experiments.benchmarks import torch_peer

  def prepare(network):
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    return partial(
      torch_peer.rst_step, network, optimizer, epsilon=problem.EPSILON
    )

  return torch_peer.candidates(task, batch_size, prepare, compiled=compile_peer)
