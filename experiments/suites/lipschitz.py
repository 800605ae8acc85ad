"""Images a second of the local Lipschitz estimate, ten steps."""

import jax

from experiments.suites import Candidate, Case, batches, problem
from robustlip import evaluation, lipschitz, models


def case(
  arch: str, peers: bool, *, batch_size: int | None, num_images: int
) -> Case:
  """The estimate of every image; peers take 64 at a time."""
  task = problem.make(arch, num_images)

  def ratios(variables, batch, keys):
    return lipschitz.estimate(
      models.logits_fn(task.module, variables),
      batch.inputs,
      keys,
      epsilon=problem.EPSILON,
    ).ratios

  program, variables = evaluation.over_devices(ratios), task.variables()
  ours = batch_size or task.fitting()

  def run():
    evaluation.per_example(
      program,
      variables,
      task.split,
      jax.random.key(0),
      batch_size=ours,
    )

  candidates = {'robustlip': Candidate(run, num_images)}
  if peers:
    candidates['PyTorch'] = _torch(task, batch_size or problem.PEERS_BATCH_SIZE)
  return Case(f'{arch}, {num_images} images', 'images', candidates)


def _torch(task, batch_size):
  from experiments.suites import torch_peer

  module = torch_peer.network(task.arch, task.split.images.shape[1:]).eval()
  inputs, labels = problem.to_torch(task.split)

  def run():
    for chosen in batches(len(labels), batch_size):
      torch_peer.lipschitz(module, inputs[chosen], problem.EPSILON).numpy()

  return Candidate(run, len(labels))
