"""Images a second of the RST step: PGD-10, then the update."""

import logging

import jax
import numpy as np
from flax import jax_utils

from experiments.suites import Candidate, Case, problem
from robustlip import methods, training
from robustlip.augmentations import AUGMENTATIONS

STEPS = 4  # to one run of a candidate


def case(
  arch: str, peers: bool, *, batch_size: int | None, compile_peer: bool
) -> Case:
  """The batch is 64, or 32 for a wide residual network, unless given."""
  batch_size = batch_size or (64 if arch.startswith('cnn') else 32)
  task = problem.make(arch, STEPS * batch_size)
  candidates = {'robustlip': ours(task, batch_size)}
  if peers:
    candidates['PyTorch eager'] = _torch(task, batch_size, compiled=False)
    if compile_peer:
      compiled = _torch(task, batch_size, compiled=True)
      if compiled:
        candidates['PyTorch compiled'] = compiled
  return Case(f'{arch}, batch {batch_size}', 'images', candidates)


def ours(
  task: problem.Problem, batch_size: int, *, steps: int = STEPS
) -> Candidate:
  """The program that `experiments.train` runs, on this problem.

  Raises:
    ValueError: if the devices do not share a batch evenly.
  """
  devices = jax.local_device_count()
  if batch_size % devices:
    raise ValueError(f'{devices} devices cannot share a batch of {batch_size}.')
  recipe = training.Recipe(
    module=task.module,
    method=methods.METHODS['rst'],
    optimizer=training.sgd(momentum=0.9, milestones=(), steps_per_epoch=1),
    augment=AUGMENTATIONS['none'],
  )
  settings = methods.Settings(
    seed=np.zeros(1, np.uint32),
    learning_rate=np.full(1, 1e-3, np.float32),
    epsilon=np.full(1, problem.EPSILON, np.float32),
    lam=np.full(1, problem.LAM, np.float32),
    beta=np.zeros(1, np.float32),
    mu=np.zeros(1, np.float32),
  )
  state = training.initial_state(recipe, settings, task.split.images.shape[1:])
  order = np.arange(steps * batch_size, dtype=np.int32)
  order = order.reshape(steps, devices, -1).swapaxes(0, 1)[:, None]
  images, labels = jax_utils.replicate(tuple(task.split))
  epoch = training.Epoch(images, labels, order)
  states = [jax_utils.replicate(state)]
  arguments = settings, epoch, 0, steps
  program = training.trainer(recipe).lower(states[0], *arguments).compile()
  needs = program.memory_analysis()
  needed = needs.argument_size_in_bytes + needs.temp_size_in_bytes

  def run():
    states[0] = program(states[0], *arguments)
    jax.block_until_ready(states[0])

  return Candidate(run, steps * batch_size, needed / 2**20)


def _torch(task, batch_size, *, compiled):
  import torch

  from experiments.suites import torch_peer

  module = torch_peer.network(task.arch, task.split.images.shape[1:])
  optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)
  inputs, labels = problem.to_torch(task.split)
  network = torch.compile(module) if compiled else module

  def run():
    for first in range(0, len(labels), batch_size):
      chosen = slice(first, first + batch_size)
      torch_peer.rst_step(
        network, optimizer, inputs[chosen], labels[chosen], problem.EPSILON
      )

  try:
    run()
  except Exception as error:  # the compiler can fail in any way it likes
    if not compiled:
      raise
    logging.warning('torch.compile left out: %s', str(error).split('\n')[0])
    return None
  return Candidate(run, len(labels))
