"""The benchmark: its arithmetic, and one small suite in a process."""

import json
import time

import jax
import numpy as np
import pytest
import scripts

from experiments.benchmarks import autoattack, cases, problem
from experiments.benchmarks.timing import Candidate, Case
from robustlip import checkpoints, datasets

BENCHMARK = 'experiments.benchmark'


def test_a_suite_prints_a_table_and_one_record(tmp_path, call):
  path = tmp_path / 'record.json'
  flags = '--suite=attack', '--arch=cnn1', '--batch_size=4', '--repeats=1'
  record = scripts.last_json(
    call(BENCHMARK, *flags, '--num_images=6', f'--output={path}')
  )
  assert record == json.loads(path.read_text())
  (case,) = record['cases']
  (ours,) = case['candidates']
  assert case['unit'] == 'images'
  assert ours['ratio_of_ours'] == 1.0
  (seconds,) = ours['seconds']
  np.testing.assert_allclose(ours['per_second'], 1 / seconds)
  assert record['host_peak_mib'] > 50


@pytest.mark.parametrize(
  'flag, message',
  [
    ('--arch=wrn_9_1', '6 n + 4'),
    ('--arch=resnet50', 'no benchmark'),
    ('--arch=', 'no network'),
    ('--suite=separation --num_images=50 --peers', 'leave out --num_images'),
    ('--suite=autoattack --repeats=2', '--repeats means nothing'),
  ],
)
def test_wrong_flags_are_one_line(flag, message, tmp_path, call):
  output = f'--output={tmp_path}/record.json'
  assert message in scripts.error(call(BENCHMARK, *flag.split(), output))
  assert not list(tmp_path.iterdir())


def test_a_folder_is_refused_before_anything_is_timed(tmp_path, call):
  refused = scripts.error(call(BENCHMARK, f'--output={tmp_path}'))
  assert 'is a folder; name a file' in refused


def test_a_peer_that_fails_is_left_out_and_nobody_else():
  calls = []

  def fails_at_last():
    calls.append(1)
    if len(calls) == 3:
      raise RuntimeError('no such operation')

  ours = Candidate(lambda: None, work=1)
  peer = Candidate(fails_at_last, work=1, may_fail=True)
  case = Case('none', 'images', {'ours': ours, 'peer': peer})
  (found,) = case(3)
  (row,) = found['candidates']
  assert row['candidate'] == 'ours' and len(row['seconds']) == 3
  calls.clear()
  broken = Case('none', 'images', {'ours': peer._replace(may_fail=False)})
  with pytest.raises(RuntimeError, match='no such operation'):
    broken(3)


def test_what_a_candidate_found():
  ours = Candidate(lambda: 3, work=2, found=lambda result: {'robust': result})
  (found,) = Case('none', 'images', {'ours': ours})(2)
  (row,) = found['candidates']
  assert row['robust'] == 3 and len(row['cpu_seconds']) == 2


def test_a_large_set_is_the_set_and_then_itself_moved():
  images = np.random.default_rng(0).integers(0, 255, (5, 20, 20, 1), np.uint8)
  found = cases.enlarged(datasets.Split(images, np.arange(5)), 12)
  assert isinstance(found.images, np.memmap)
  assert found.labels.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
  np.testing.assert_array_equal(found.images[:5], images)
  moved, kept = found.images[5], images[0]
  assert (moved != kept).any() and sorted(moved.flat) == sorted(kept.flat)


def test_cpu_time_is_that_of_work_alone():
  sleeps = Candidate(lambda: time.sleep(0.3), work=1)

  def spin():
    end = time.process_time() + 0.2
    while time.process_time() < end:
      pass

  case = Case('none', 'runs', {'sleeps': sleeps, 'works': Candidate(spin, 1)})
  (found,) = case(1)
  (idle,), (busy,) = (row['cpu_seconds'] for row in found['candidates'])
  assert idle < 0.15 < busy


def test_an_attack_that_need_not_move_takes_what_is_wrong():
  task = problem.make('cnn2', 4)  # fresh: every logit is 0, the class is 0
  task = task._replace(
    split=task.split._replace(labels=np.array([0, 1, 0, 2], np.int32))
  )
  work = autoattack.ours(task, task.variables(), 0.1, 10, 2, 4, None)
  found = work('square', np.arange(4))
  assert found['broken'] == [1, 3] and found['unconfirmed'] == []
  assert found['spent'][0] > 0 and found['spent'][2] == 4 * 3


def test_an_attack_is_timed_on_what_stands_and_compared_on_all(tmp_path):
  takes = {'apgd_ce': [0, 3], 'square': [2, 3]}
  calls = []

  def work(attack, given):
    calls.append((attack, given.tolist()))
    broken = [x for x in given.tolist() if x in takes[attack]]
    spent = [1.0, 2.0, 10 * len(given)]
    return {'broken': broken, 'unconfirmed': broken[:1], 'spent': spent}

  correct = np.array([True, True, True, True, False])
  given = (tmp_path / 'us', work, takes, correct, 3)
  found = autoattack.through(*given)
  assert calls == [
    ('apgd_ce', [0, 1, 2]),
    ('apgd_ce', [3]),
    ('square', [1, 2]),
    ('square', [0, 3]),  # broken before
  ]
  assert [x['robust'] for x in found.values()] == [2, 2, 1]
  assert found['square']['taken'] == [2, 3, 4]
  assert found['square']['seconds'] == [1.0] and found['all']['seconds'] == [
    3.0
  ]
  assert found['square']['per_second'] == 1.0  # of two CPU seconds
  assert found['all']['passes'] == 60
  assert found['apgd_ce']['unconfirmed'] == [0, 3]
  assert autoattack.through(*given) == found and len(calls) == 4  # kept
  takes['apgd_ce'] = [0, 1, 2, 3]  # nothing is left for the other
  found = autoattack.through(tmp_path / 'all', work, takes, correct, 3)
  assert np.isnan(found['square']['per_second'])
  assert found['square']['robust'] == 2 and found['all']['robust'] == 0


def test_what_is_kept_of_a_run_is_of_its_weights(trained, monkeypatch):
  _, work = trained
  prefixes = []

  def through(prefix, *_):
    prefixes.append(prefix)
    return {k: {'per_second': 1.0, 'taken': []} for k in ('square', 'all')}

  monkeypatch.setattr(autoattack, 'through', through)
  monkeypatch.setattr(autoattack.common, 'load_dataset', datasets.load)
  given = work, False, ['square'], 30, 30, 2, 1
  autoattack.compared(*given)
  autoattack.compared(*given)
  with checkpoints.Store(work / 'checkpoints') as store:
    last = store.numbers()[-1]
    progress = store.restore(last)
    zeros = jax.tree.map(np.zeros_like, progress['state']['params'])
    progress['state']['params'] = zeros
    store.save(last, progress)
  autoattack.compared(*given)  # a run trained anew to the same step
  assert prefixes[0] == prefixes[1] != prefixes[2]


def test_points_are_measured_exactly():
  images = np.full((3, 2, 2, 1), 0.75, np.float32)
  points = images + np.float32([0.1, 0.1001, 0.1]).reshape(3, 1, 1, 1)
  points[2, 0, 0] = -1e-9
  inside = autoattack.within(points, images, 0.1)
  np.testing.assert_array_equal(inside, [True, False, False])


def test_what_autoattack_refuses(tmp_path):
  with pytest.raises(ValueError, match='--workdir is needed'):
    autoattack.cases(peers=False)
  with pytest.raises(ValueError, match='not the folder of a run'):
    autoattack.cases(workdir=str(tmp_path), peers=False)
  with pytest.raises(ValueError, match='--attack takes .* got pgd'):
    autoattack.cases(workdir='run', peers=False, attack=['pgd'])


@pytest.mark.parametrize('arch', ['cnn1', 'cnn2', 'wrn_10_1'])
def test_the_twin_computes_our_logits(arch):
  pytest.importorskip('torch', reason='needs the extra `bench`')
  from experiments.benchmarks import torch_peer

  task = problem.make(arch, 3)
  leaves, structure = jax.tree.flatten(task.variables())
  keys = jax.random.split(jax.random.key(1), len(leaves))
  noisy = [  # the last layer of cnn2 starts at 0
    leaf + 0.05 * jax.random.normal(key, leaf.shape)
    for leaf, key in zip(leaves, keys, strict=True)
  ]
  variables = jax.tree.unflatten(structure, noisy)
  images, _ = torch_peer.examples(task)
  theirs = torch_peer.twin(task, variables)(images).numpy()
  ours = task.module.apply(variables, task.split.images / np.float32(255))
  np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-3)
  assert np.ptp(ours) > 0.1


def test_the_training_candidate_trains():
  task = problem.make('cnn1', 4)
  candidate = cases.trained(task, 4)
  assert candidate.work == 4
  candidate.run()
  candidate.run()  # its state was donated and replaced


def test_foolbox_attacks_our_network_and_plain_flax():
  pytest.importorskip('foolbox', reason='needs the extra `bench`')
  from experiments.benchmarks import foolbox_peer

  task = problem.make('cnn2', 3)
  found = foolbox_peer.candidates(task, 2)
  assert list(found) == ['foolbox', 'foolbox, plain Flax']
  for candidate in found.values():
    candidate.run()
  images = np.zeros((1, 28, 28, 1), np.float32)
  for arch in ('cnn1', 'cnn2'):
    plain = foolbox_peer.plain_flax(arch, 'float32')
    variables = plain.init(jax.random.key(0), images)
    ours = problem.make(arch, 1).variables()
    shapes = [
      sorted(x.shape for x in jax.tree.leaves(tree))
      for tree in (variables, ours)
    ]
    assert shapes[0] == shapes[1]
    assert plain.apply(variables, images).shape == (1, 10)


def test_the_peer_has_our_network_and_only_the_attacks_gradient():
  torch = pytest.importorskip('torch', reason='needs the extra `bench`')
  from experiments.benchmarks import torch_peer

  task = problem.make('cnn1', 4)
  network, asked = torch_peer.network(task).eval(), []
  sizes = [x.size for x in jax.tree.leaves(task.variables()['params'])]
  assert sum(x.numel() for x in network.parameters()) == sum(sizes)

  def spied(points):
    asked.append(any(x.requires_grad for x in network.parameters()))
    return network(points)

  spied.requires_grad_ = network.requires_grad_
  images, labels = torch_peer.examples(task)
  points = torch_peer.pgd(spied, images, labels)
  assert asked == [False] * 10  # frozen, or a compiled network computes theirs
  assert all(x.requires_grad for x in network.parameters())
  moves = (points - images).abs()
  assert moves.max() <= problem.EPSILON + 1e-6 and moves.max() > 0.05
  assert isinstance(points, torch.Tensor)


def test_batches_cover_every_example():
  covered = np.concatenate(
    [np.arange(10)[s] for s in problem.make('cnn1', 10).batches(4)]
  )
  np.testing.assert_array_equal(covered, np.arange(10))


def test_one_batch_is_divided_by_the_devices():
  if jax.local_device_count() < 2:
    pytest.skip('one device shares every batch')
  with pytest.raises(ValueError, match='cannot share'):
    cases.trained(problem.make('wrn_10_1', 5), 5)
