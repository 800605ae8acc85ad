"""Evaluations of several networks as one record and one picture."""

import json

import pytest
import scripts

from experiments import curves, plots
from experiments.config import Config


def write(folder, name, **changes):
  of_radius = {'0.05': 90.0, '0.1': 80.0}
  measured = {f'{x}_at': of_radius for x in curves.COLUMNS}
  run = Config(**changes).to_json() | measured | {'test_acc': 99.0}
  run |= {'attack': 'pgd', 'measured_test': 200}
  path = folder / f'{name}.json'
  path.write_text(json.dumps(run))
  return path


def test_runs_are_joined_and_drawn(tmp_path):
  paths = [
    write(tmp_path, 'a', method='natural'),
    write(tmp_path, 'b', method='trades', beta=6.0),
  ]
  record = curves.joined(paths)
  labels = [run['label'] for run in record['runs']]
  assert labels == ['Natural', 'TRADES(6)']
  radii = [0.0, 0.05, 0.1 + 2e-17, 0.5]  # as they are rounded
  g = {'epsilons': radii, 'certified': [0.7, 0.5, 0.3, 0.1]}
  g = plots.of_g(g, 0.1) | {'label': 'g'}
  assert [*g['certified_test_acc_at'].values()] == [70.0, 50.0, 30.0]
  plots.both_sides([*record['runs'], g], tmp_path / 'both')
  assert (tmp_path / 'both.png').stat().st_size > 10_000


def test_networks_of_one_method_are_told_apart(tmp_path):
  paths = [
    write(tmp_path, 'a', method='at'),
    write(tmp_path, 'b', method='at', arch='cnn2', seed=1),
    write(tmp_path, 'c', method='natural'),
  ]
  labels = [run['label'] for run in curves.joined(paths)['runs']]
  assert labels == ['AT, arch cnn1, seed 0', 'AT, arch cnn2, seed 1', 'Natural']
  run = json.loads(paths[2].read_text())
  for path, checkpoint in zip(paths, ('best', 'newest'), strict=False):
    path.write_text(json.dumps(run | {'checkpoint': checkpoint}))
  labels = [run['label'] for run in curves.joined(paths[:2])['runs']]
  assert labels == ['Natural, checkpoint best', 'Natural, checkpoint newest']


def test_what_cannot_be_drawn_is_refused(tmp_path):
  one, other = write(tmp_path, 'a'), write(tmp_path, 'b', dataset='mnist')
  with pytest.raises(ValueError, match='2 data sets'):
    curves.joined([one, other])
  one = write(tmp_path, 'a', fingerprint='x')
  for fingerprint in ('y', None):  # of one name
    other = write(tmp_path, 'b', fingerprint=fingerprint)
    with pytest.raises(ValueError, match='2 data sets'):
      curves.joined([one, other])
  run = json.loads(one.read_text())
  tight = {'certified_by': {'interval': 1, 'linear': 2}}
  loose = {'certified_by': {'interval': 1}}
  one.write_text(json.dumps(run | loose))
  other.write_text(json.dumps(run | tight))
  with pytest.raises(ValueError, match='has bounds=linear, .*=interval'):
    curves.joined([one, other])
  one.write_text(json.dumps(run))
  for key, value in {'attack': 'strong', 'measured_test': 10}.items():
    other.write_text(json.dumps(run | {key: value}))
    with pytest.raises(ValueError, match=f'b.json has {key}={value}, .*a.json'):
      curves.joined([one, other])
  other.write_text(json.dumps(Config().to_json()))
  with pytest.raises(ValueError, match='--certify'):
    curves.joined([other])


def test_a_name_that_is_no_file_is_not_left_out(tmp_path, call):
  there = write(tmp_path, 'a')
  picture = f'--output={tmp_path}/curves.png'  # it would replace the record
  refused = scripts.error(
    call('experiments.curves', f'--records={there}', picture)
  )
  assert 'name a .json file' in refused
  records = f'--records={there},{tmp_path}/*-linear.json'
  refused = scripts.error(call('experiments.curves', records))
  assert 'there is no' in refused and '*-linear.json' in refused


def test_beside_ones_own_file_stands_no_published_set(tmp_path, call):
  path = write(tmp_path, 'a', dataset='/own/mnist.npz')
  output = f'--output={tmp_path}/curves.json'
  finished = call('experiments.curves', f'--records={path}', output)
  assert scripts.last_json(finished)['g'] is None


def test_g_is_of_the_same_part_of_a_data_set(tmp_path, call):
  path = write(tmp_path, 'a', dataset='/own/mine.npz', fingerprint='x')
  theory, curve = tmp_path / 'theory.json', {'epsilons': [0], 'certified': [1]}
  flags = f'--records={path}', f'--output={tmp_path}/curves.json'
  g = {'dataset': 'mine', 'fingerprint': 'x'}
  g['data'] = {'test': {'curve': curve}}
  theory.write_text(json.dumps(g))
  finished = call('experiments.curves', *flags, f'--theory={theory}')
  assert scripts.last_json(finished)['g'] == curve
  theory.write_text(json.dumps(g | {'fingerprint': 'y'}))
  refused = call('experiments.curves', *flags, f'--theory={theory}')
  assert 'of other data' in scripts.error(refused)
  write(tmp_path, 'a', dataset='mnist', fingerprint='x')  # a part of it
  assert scripts.last_json(call('experiments.curves', *flags))['g'] is None


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    ({'dataset': 'cifar10'}, 'of cifar10, not of mnist5k'),
    ({'data': {'name': 'cifar10'}}, 'of cifar10, not of mnist5k'),  # before 0.2
    ({}, 'another record'),
  ],
)
def test_g_is_of_the_same_data_set(tmp_path, call, data, message):
  path, theory = write(tmp_path, 'a'), tmp_path / 'theory.json'
  theory.write_text(json.dumps(data))
  flags = f'--records={path}', f'--theory={theory}'
  assert message in scripts.error(call('experiments.curves', *flags))
