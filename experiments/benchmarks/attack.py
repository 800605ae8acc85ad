"""Images a second of the evaluation under PGD-10."""

from experiments.benchmarks import Candidate, Case, problem
from robustlip import attacks, models

# Ten steps, each with the gradient of the inputs, and the logits at the end.
PASSES = 10 * 2 + 1


def case(
  arch: str,
  peers: bool,
  *,
  batch_size: int | None,
  num_images: int,
  precision: str,
  compile_peer: bool,
) -> Case:
  """Every image is attacked, right or wrong; peers take 64 at a time."""
  task = problem.make(arch, num_images, precision)

  def withstands(variables, batch, keys):
    logits_fn = models.logits_fn(task.module, variables)
    points = attacks.pgd(logits_fn, batch, keys, epsilon=problem.EPSILON)
    return logits_fn(points).argmax(axis=-1) == batch.labels

  candidates = {'robustlip': problem.measured(task, withstands, batch_size)}
  if peers:
    batch_size = batch_size or problem.PEERS_BATCH_SIZE
    candidates |= _torch(task, batch_size, compile_peer)
    from experiments.benchmarks import foolbox_peer

    for name, start in (
      ('foolbox', foolbox_peer.attack),
      ('foolbox, plain Flax', foolbox_peer.attack_apart),
    ):
      run = start(task, batch_size)
      candidates[name] = Candidate(run, num_images, may_fail=True)
  flops = PASSES * task.forward_flops()
  return Case(f'{arch}, {num_images} images', 'images', candidates, flops)


def _torch(task, batch_size, compile_peer):
  import torch

  from experiments.benchmarks import torch_peer

  def prepare(network):
    network.eval()

    def evaluate(inputs, labels):
      points = torch_peer.pgd(network, inputs, labels, problem.EPSILON)
      with torch.no_grad():
        (network(points).argmax(1) == labels).cpu()

    return evaluate

  return torch_peer.candidates(task, batch_size, prepare, compiled=compile_peer)
