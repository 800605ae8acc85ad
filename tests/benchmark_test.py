"""The benchmark: its arithmetic, and one small suite in a process."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.suites import batches, problem, training

RUN = [sys.executable, '-m', 'experiments.benchmark', '--repeats=1']


def run(*arguments):
  environment = dict(os.environ, JAX_PLATFORMS='cpu')
  return subprocess.run(
    [*RUN, *arguments], capture_output=True, text=True, env=environment
  )


def test_a_suite_prints_a_table_and_one_record(tmp_path):
  path = tmp_path / 'record.json'
  arguments = ('--arch=wrn_10_1', '--batch_size=4', '--num_images=6')
  result = run('--suite=attack', *arguments, f'--output={path}')
  assert result.returncode == 0, result.stderr
  record = json.loads(result.stdout.splitlines()[-1])
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
  [('--arch=wrn_9_1', '6 n + 4'), ('--arch=resnet50', 'no benchmark')],
)
def test_wrong_networks_are_one_line(flag, message, tmp_path):
  result = run(flag, f'--output={tmp_path}/record.json')
  assert result.returncode == 1
  assert message in result.stderr.splitlines()[-1]
  assert not list(tmp_path.iterdir())


def test_the_training_candidate_trains():
  task = problem.make('wrn_10_1', 4)
  candidate = training.ours(task, 4, steps=1)
  assert candidate.work == 4
  candidate.run()
  candidate.run()  # its state was donated and replaced


def test_batches_cover_every_example():
  covered = np.concatenate([np.arange(10)[s] for s in batches(10, 4)])
  np.testing.assert_array_equal(covered, np.arange(10))


def test_one_batch_is_divided_by_the_devices():
  if jax.local_device_count() < 2:
    pytest.skip('one device shares every batch')
  with pytest.raises(ValueError, match='cannot share'):
    training.ours(problem.make('wrn_10_1', 4), 5)
