"""Images a second of the local Lipschitz estimate, ten steps."""

from experiments.benchmarks import Case, problem
from robustlip import lipschitz, models

# The logits of the image, ten steps with gradients, the ratio at the end.
PASSES = 1 + 10 * 2 + 1


def case(
  arch: str,
  peers: bool,
  *,
  batch_size: int | None,
  num_images: int,
  precision: str,
  compile_peer: bool,
) -> Case:
  """The estimate of every image; peers take 64 at a time."""
  task = problem.make(arch, num_images, precision)

  def ratios(variables, batch, keys):
    return lipschitz.estimate(
      models.logits_fn(task.module, variables),
      batch.inputs,
      keys,
      epsilon=problem.EPSILON,
    ).ratios

  candidates = {'robustlip': problem.measured(task, ratios, batch_size)}
  if peers:
    peers_batch = batch_size or problem.PEERS_BATCH_SIZE
    candidates |= _torch(task, peers_batch, compile_peer)
  flops = PASSES * task.forward_flops()
  return Case(f'{arch}, {num_images} images', 'images', candidates, flops)


def _torch(task, batch_size, compile_peer):
  from experiments.benchmarks import torch_peer

  def prepare(network):
    network.eval()
    return lambda inputs, labels: torch_peer.lipschitz(
      network, inputs, problem.EPSILON
    ).cpu()

  return torch_peer.candidates(task, batch_size, prepare, compiled=compile_peer)
