"""Tables: what is compared with what, what is said of it, and the script."""

import csv
import dataclasses
import io
import json
import sys
from unittest import mock

import numpy as np
import pytest
import scripts
from absl import flags
from absl.testing import flagsaver

from experiments import common, paper, paper_tables, provenance
from experiments.comparison import (
  findings,
  render,
  separation_table,
  table_record,
  table_rows,
)
from experiments.comparison.table_rows import (
  ROWS,
  TABLE_COLUMNS,
  TABLE_ROWS,
  Target,
)
from experiments.networks import concept, remeasure
from experiments.networks.config import Config
from robustlip import datasets

CNN1, CNN2 = paper_tables.TABLES['2']
CIFAR10, IMAGENET = paper_tables.TABLES['3']
(SVHN,) = paper_tables.TABLES['svhn']


@pytest.fixture(autouse=True)
def parsed_flags():
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


def published_values(panel):
  """The paper's own numbers as if they had been measured."""
  rows = {
    row: dict(zip(panel.columns, values, strict=True))
    for row, values in panel.rows.items()
  }
  for name in ('gr', 'llr'):
    if name in rows:
      rows[f'{name}_reference'] = rows.pop(name)
  return rows


def verdicts(panel):
  found = findings.findings(published_values(panel))
  return {finding.sentence: finding.holds for finding in found}


@pytest.mark.parametrize('panel', [CNN1, CNN2, CIFAR10, SVHN])
def test_the_findings_hold_in_the_papers_own_tables(panel):
  found = verdicts(panel)
  assert len(found) == 3
  assert all(found.values()), found


def test_the_findings_but_one_hold_on_restricted_imagenet():
  order, beta, gap = findings.findings(published_values(IMAGENET))
  assert not order.holds and beta.holds and gap.holds
  assert '(GR, released code is not above TRADES(1)).' in order.sentence


def test_the_findings_name_what_breaks_them():
  rows = published_values(CNN1)
  rows['trades6']['released_lipschitz'] = 7.83
  rows['llr_reference']['released_lipschitz'] = 10.0
  order, trades, _ = findings.findings(rows)
  assert not order.holds
  assert 'LLR, released code is not above RST(.5)' in order.sentence
  assert 'is not above AT' not in order.sentence
  assert not trades.holds
  assert '(TRADES(3) is not above TRADES(6)).' in trades.sentence


def test_dropout_narrows_the_gaps_of_table_4_but_one():
  svhn, cifar10 = paper_tables.TABLES['4']
  for panel, holds in ((svhn, [True, False]), (cifar10, [True, False])):
    dropout = [v for k, v in verdicts(panel).items() if 'Dropout' in k]
    assert dropout == holds  # Natural's adversarial gap: wider; both zero
  (sentence,) = [k for k in verdicts(svhn) if 'under attack' in k]
  assert 'not of Natural' in sentence
  assert 'not of AT' not in sentence


def test_nothing_is_said_of_rows_that_were_not_measured():
  rows = {'natural': {'gap': 1.0}, 'at': {'gap': 2.0}}
  assert findings.findings(rows) == []


def test_a_gap_that_changes_sign_may_grow():
  rows = {
    'natural': {'gap': -0.25, 'adv_gap': 0.5},
    'natural_dropout': {'gap': -1.05, 'adv_gap': -0.2},
  }
  gap, adv_gap = findings.findings(rows)
  assert not gap.holds and 'not of Natural' in gap.sentence
  assert adv_gap.holds


def test_the_texts_gr_and_llr_are_compared_with_nothing():
  assert table_rows.published_row('gr') is None
  assert table_rows.published_row('llr') is None
  assert table_rows.published_row('gr_reference') == 'gr'
  for name, row in ROWS.items():
    if row.protocol == 'text' and row.method not in ('gr', 'llr'):
      assert table_rows.published_row(name) == name


def test_every_published_row_has_one_of_ours():
  for table, panels in paper_tables.TABLES.items():
    for panel in panels:
      ours = table_rows.rows(table, panel.dataset, None)
      compared = {table_rows.published_row(name) for name in ours}
      assert set(panel.rows) <= compared
      assert set(panel.columns) <= set(TABLE_COLUMNS[table])


def test_eq3_is_never_beside_the_published_column():
  for panels in paper_tables.TABLES.values():
    for panel in panels:
      assert 'eq3_lipschitz' not in panel.columns
  assert 'released_lipschitz' in CNN1.columns


def test_cifar10_without_augmentation_is_held_against_the_appendix():
  with flagsaver.flagsaver(preset='paper', augment='none'):
    cifar10, imagenet = table_rows.targets('3')
  assert cifar10.published is paper_tables.NO_AUGMENTATION
  assert imagenet.published.dataset == 'restricted_imagenet'
  run = config('at', 0).to_json() | {'augment': 'none', 'learning_rate': 0.064}
  departures = '; '.join(table_record._departures(cifar10, run, {'at': run}))
  assert 'optimizer' not in departures and 'augment' not in departures
  assert 'learning rate' not in departures  # the tenth of Table 3's


def test_unknown_rows_are_refused():
  with pytest.raises(ValueError, match='names none'):
    table_rows.rows('2', 'mnist', [])
  with pytest.raises(ValueError, match='has no rows trades9'):
    table_rows.rows('2', 'mnist', ['at', 'trades9'])
  assert table_rows.rows('2', 'mnist', ['trades1', 'at']) == ['at', 'trades1']


@pytest.mark.parametrize(
  'table, given, expected',
  [
    ('2', dict(preset='quick'), [('mnist5k', 'cnn1', CNN1)]),
    ('2', dict(preset='quick', arch='cnn2'), [('mnist5k', 'cnn2', CNN2)]),
    (
      '2',
      dict(preset='paper'),
      [('mnist', 'cnn1', CNN1), ('mnist', 'cnn2', CNN2)],
    ),
    ('2', dict(preset='paper', arch='cnn2'), [('mnist', 'cnn2', CNN2)]),
    ('3', dict(preset='quick'), [('mnist5k', 'cnn1', None)]),
  ],
)
def test_targets(table, given, expected):
  with flagsaver.flagsaver(**given):
    assert table_rows.targets(table) == [Target(*x) for x in expected]


def test_table_4_refuses_a_network_that_has_dropout():
  with flagsaver.flagsaver(arch='cnn1'):
    with pytest.raises(ValueError, match='has it already'):
      table_rows.targets('4')


def config(row, seed):
  return Config(
    dataset='mnist5k',
    arch='cnn1',
    method=ROWS[row].method,
    epsilon=0.1,
    lam=1.0,
    beta=3.0,
    mu=0.0,
    seed=seed,
    epochs=5,
    batch_size=64,
    optimizer='sgd',
    learning_rate=0.05,
    momentum=0.9,
    milestones=(4,),
    augment='none',
    dropout=None,
    protocol=ROWS[row].protocol,
    attack_mode='eval',
    precision='float32',
    holdout=0,
  )


def result(row, seed):
  return {
    **config(row, seed).to_json(),
    'device': '1 x cpu',
    'train_acc': 99.0,
    'test_acc': 96.0 + seed,
    'adv_test_acc': 80.0,
    'test_lipschitz': 40.0,
    'gap': 3.0 - seed,
    'adv_gap': 2.0,
    'measured_train': 5000,
    'measured_test': 1000,
    'train_seconds': 100.0 + len(row),
    'seconds': 112.0,
  }


@pytest.fixture
def runs(tmp_path):
  """Finished runs of three seeds of two rows; one more is unfinished."""
  target = Target('mnist5k', 'cnn1', CNN1)
  for row in ('gr', 'gr_reference', 'trades3'):
    for seed in range(3):
      path = table_record.folder(tmp_path, target, row, seed)
      common.write_json(config(row, seed).to_json(), path / 'config.json')
      common.write_json(result(row, seed), path / 'result.json')
      other = {'text': 'released', 'reference': 'eq3'}[ROWS[row].protocol]
      common.write_json(
        {f'{other}_lipschitz': 7.0 + seed, 'seconds': 5.0},
        path / 'evaluations' / f'{other}_lipschitz.json',
      )
  unfinished = table_record.folder(tmp_path, target, 'natural', 0)
  common.write_json({}, unfinished / 'config.json')
  return target, tmp_path


def make(runs, seeds=range(3)):
  target, root = runs
  wanted = {row: [config(row, s) for s in seeds] for row in TABLE_ROWS['2']}
  panel = table_record.panel('2', target, wanted, root)
  return table_record.table('2', 'Table 2', [panel])


def test_mean_deviation_and_difference(runs):
  (panel,) = make(runs)['panels']
  assert list(panel['rows']) == ['gr', 'gr_reference', 'trades3']
  found = panel['rows']['trades3']['columns']
  assert found['test_acc']['ours'] == pytest.approx(97.0)
  assert found['test_acc']['std'] == pytest.approx(1.0)
  assert found['test_acc']['published'] == 98.96
  assert found['test_acc']['difference'] == pytest.approx(97.0 - 98.96)
  assert found['released_lipschitz']['values'] == [7.0, 8.0, 9.0]
  assert found['released_lipschitz']['published'] == 7.83
  assert found['eq3_lipschitz']['ours'] == 40.0
  assert found['eq3_lipschitz']['published'] is None
  gr = panel['rows']['gr']['columns']
  assert all(cell['published'] is None for cell in gr.values())
  reference = panel['rows']['gr_reference']['columns']
  assert reference['released_lipschitz']['ours'] == 40.0
  assert reference['eq3_lipschitz']['values'] == [7.0, 8.0, 9.0]
  assert reference['adv_test_acc']['published'] == 91.03


def test_runs_of_other_settings_are_left_out(runs):
  target, root = runs
  other = dataclasses.replace(config('gr', 0), epochs=6)
  wanted = {'gr': [other], 'trades3': [config('trades3', 0)]}
  panel = table_record.panel('2', target, wanted, root)
  assert list(panel['rows']) == ['trades3']


def test_rows_that_only_another_table_measured_are_left_out(runs):
  target, root = runs
  wanted = {'trades3': [config('trades3', 0)]}
  assert not table_record.panel('mt', target, wanted, root)['rows']
  path = table_record.folder(root, target, 'trades3', 0) / 'evaluations'
  numbers = dict.fromkeys(table_rows.OWN_COLUMNS['mt'], 70.0)
  common.write_json(numbers | {'seconds': 1.0}, path / 'multi_targeted.json')
  assert table_record.panel('mt', target, wanted, root)['rows']


def test_one_seed_has_no_deviation(runs):
  (panel,) = make(runs, seeds=[1])['panels']
  assert panel['rows']['gr']['columns']['test_acc']['std'] is None
  assert panel['rows']['gr']['columns']['test_acc']['ours'] == 97.0


def test_training_together_is_counted_once(runs):
  measured = 9 * 5.0 + sum(
    3 * (112.0 - 100.0 - len(row)) for row in ('gr', 'gr_reference', 'trades3')
  )
  trained = 300.0 + len('gr') + len('gr_reference') + len('trades3')
  assert make(runs)['seconds'] == pytest.approx(trained + measured)


def test_departures_are_named(runs):
  (panel,) = make(runs)['panels']
  text = '; '.join(panel['departures'])
  assert 'data set mnist5k, not mnist' in text
  assert 'epochs 5, not 160' in text
  assert 'learning rate 0.05 for a mean loss, not 0.0064' in text


def test_departures_of_single_rows_name_them():
  target = Target('cifar10', 'wrn_40_10', paper_tables.TABLES['3'][0])
  setup = paper.SETUPS['cifar10']
  shared = config('at', 0).to_json() | {
    key: getattr(setup, key)
    for key in (*table_record._SCHEDULE, 'arch', 'learning_rate')
    if key != 'epsilon'
  }
  shared |= {'epsilon': 0.031, 'attack_mode': 'train', 'dataset': 'cifar10'}
  slow = shared | {'learning_rate': 0.064}

  def found(runs, **others):
    settings = shared | others
    return table_record._departures(target, settings, runs)

  as_published = {'natural': shared, 'at': shared, 'rst1': slow}
  assert found(as_published) == []
  assert found(as_published, epsilon=0.3) == ['radius 0.3, not 0.031']
  assert found(as_published, holdout=9) == ['examples held out 9, not 0']
  (rate,) = found({'natural': slow, 'at': shared})
  assert rate == 'learning rate 0.064 for a mean loss, not 0.64 (Natural)'
  (mode,) = found({'natural': shared, 'at': shared | {'attack_mode': 'eval'}})
  assert mode.endswith('inference mode (AT)')
  trades = shared | {'dropout': 0.0, 'beta': 6.0, 'attack_mode': 'eval'}
  (mask,) = found({'trades6': trades | {'protocol': 'reference'}})
  assert mask == "dropout 0, not the network's own"
  (_, start) = found({'trades6': trades})
  assert start == 'training attacks that start within the pixel range'
  llr = shared | {'protocol': 'reference', 'attack_mode': 'eval', 'mu': 3.0}
  assert found({'llr_reference': llr | {'lam': 4.0}}) == []
  (mode,) = found({'llr_reference': llr | {'lam': 4.0, 'attack_mode': 'train'}})
  assert mode.endswith('with the network in training mode')
  (weight,) = found({'llr_reference': llr | {'lam': 3.0}})
  assert weight == 'lam 3, not 4'
  (dropout,) = found({'natural': shared | {'dropout': 0.5}})
  assert dropout == "dropout 0.5, not the network's own"


def test_markdown_and_csv_have_every_cell(runs):
  record = make(runs)
  text = render.markdown(record)
  assert '| 97.00 ± 1.00 / 98.96 / -1.96 |' in text
  assert '| 97.00 ± 1.00 / – / – |' in text
  assert 'Not the published experiment: ' in text
  assert 'descends the ratio' in text
  lines = list(csv.DictReader(io.StringIO(render.comma_separated(record))))
  assert len(lines) == 3 * len(TABLE_COLUMNS['2'])
  (line,) = (
    x for x in lines if x['row'] == 'trades3' and x['column'] == 'test_acc'
  )
  assert float(line['difference']) == pytest.approx(97.0 - 98.96)
  assert int(line['seeds']) == 3


def test_table_1_from_separation_records(tmp_path):
  with pytest.raises(FileNotFoundError, match='experiments.separation'):
    separation_table.panel(tmp_path)
  record = {'epsilon': 0.1, 'train_train_min': 188 / 255, 'seconds': 2.0}
  record['test_train_min'] = 207 / 255
  record |= {'norm': 'linf', 'random_labels': False, 'dropped': []}
  record |= {'dataset': 'mnist', 'num_train': 60000, 'num_test': 10000}
  path = tmp_path / 'separation_mnist.json'
  common.write_json(record | {'norm': 'l2'}, path)
  with pytest.raises(ValueError, match='not of Table 1'):
    separation_table.panel(tmp_path)
  common.write_json(record, path)
  panel = separation_table.panel(tmp_path)
  table = table_record.table('1', 'Table 1', [panel])
  assert '0.737 / 0.737 / +0.000 | 0.812 / 0.812 / -0.000' in render.markdown(
    table
  )
  assert table['findings'] == []
  assert len(panel['notes']) == 1
  common.write_json(record | {'num_train': 6000}, path)
  panel = separation_table.panel(tmp_path)
  assert '6,000 of 60,000 training' in panel['notes'][1]


def test_table_1_has_what_is_left_where_the_paper_left_out_examples(tmp_path):
  whole = {'dataset': 'svhn', 'norm': 'linf', 'random_labels': False}
  whole |= {'dropped': [], 'num_train': 73257, 'num_test': 26032}
  whole |= {'epsilon': 0.031, 'train_train_min': 0.0, 'test_train_min': 0.11}
  path = tmp_path / 'separation_svhn.json'
  common.write_json(whole | {'seconds': 1.0}, path)
  shown = separation_table.panel(tmp_path)
  assert shown['rows']['svhn']['columns']['train_train_min']['ours'] == 0
  assert 'one noisy image; this row 0 training' in shown['notes'][1]
  part = {'dropped': [3, 7], 'num_train': 73255, 'train_train_min': 24 / 255}
  path = tmp_path / 'separation_svhn-without_conflicts.json'
  common.write_json(whole | part | {'seconds': 1.0}, path)
  shown = separation_table.panel(tmp_path)
  cell = shown['rows']['svhn']['columns']['train_train_min']
  assert (cell['ours'], cell['published']) == (24 / 255, 0.094)
  assert shown['notes'][1].endswith('this row 2 training examples.')
  assert len(shown['notes']) == 2


def test_what_is_not_finite_is_left_out():
  run = {'seed': 0, 'learning_rate': 0.1, 'test_acc': 50.0, 'gap': None}
  target = Target('mnist', 'cnn1', None)
  row = table_record._row(target, 'natural', ('test_acc', 'gap'), [run])
  assert list(row['columns']) == ['test_acc']


def test_the_papers_contradictions_are_noted():
  panel = paper_tables.TABLES['4'][0]
  rows = {'natural': {}, 'natural_dropout': {}}
  (first, *_) = table_record._inconsistencies('4', panel, rows)
  assert 'Natural 149.82, Natural + dropout 152.38' in first
  assert table_record._inconsistencies('3', panel, rows) == []


def test_an_unfinished_run_is_no_record(tmp_path):
  assert remeasure.merged(tmp_path) is None


def test_provenance():
  record = provenance.record()
  assert record['command'].startswith('python -m experiments.')
  assert 'cores of' in record['machine']
  assert record['jax_version']
  argv = ['benchmark.py', '--output=/a/b.json', '--data_dir', '/c', '--peers']
  with mock.patch.object(sys, 'argv', argv):
    command = provenance.command()
  assert command == ('python -m experiments.benchmark --output=b.json --peers')


def test_certificate_counts_each_split_against_both():
  random = np.random.default_rng(1)
  images = random.integers(0, 256, (40, 3, 2, 1)).astype(np.uint8)
  labels = random.integers(0, 3, 40).astype(np.int32)
  train = datasets.Split(images[:30], labels[:30])
  test = datasets.Split(images[30:], labels[30:])
  dataset = datasets.Dataset('small', train, test, ('a', 'b', 'c'), None)
  pairs = np.abs(images[:, None].astype(int) - images[None])
  pairs = pairs.reshape(40, 40, -1).max(axis=2) / 255
  pairs[labels[:, None] == labels[None]] = np.inf
  half = pairs.min(axis=1) / 2
  epsilon = float(np.median(half)) + 1e-4
  found = concept.certificate(dataset, epsilon)
  assert found['separation_of_both'] == pytest.approx(2 * half.min())
  certified = 100 * (half > epsilon)
  assert found['certified_train'] == pytest.approx(certified[:30].mean())
  assert found['certified_test'] == pytest.approx(certified[30:].mean())


def test_the_record_says_that_the_test_set_was_trained_on():
  with flagsaver.flagsaver(preset='quick'):
    data = datasets.load('mnist5k')
    config = concept.config(data)
  assert config.train_on == 'train+test'
  assert (config.method, config.lam) == ('rst', 4.0)
  assert 'test set was trained on' in concept.NOTE


def script(folder, *args):
  return scripts.run('experiments.tables', *args, folder=folder)


def test_render_only_needs_the_record_alone(runs):
  _, root = runs
  record = make(runs)
  path = root / 'published' / 'table_2-quick.json'
  common.write_json(record, path)
  shown = script(root, '--table=2', '--render_only', f'--workdir={path.parent}')
  assert scripts.last_json(shown) == common.plain(record)
  written = {file.suffix for file in path.parent.iterdir()}
  assert written == {'.json', '.md', '.csv', '.png', '.pdf'}
  assert path.with_suffix('.md').read_text().strip() in shown.out


def test_bad_requests_are_one_line(tmp_path):
  for args, words in (
    (['--lam=1'], "Unknown command line flag 'lam'"),
    (['--rows=trades9'], 'has no rows trades9'),
    (['--render_only', '--workdir=/nowhere'], 'table_2-quick.json to render'),
    (['--table=1', '--epochs=3'], '--epochs means nothing'),
  ):
    assert words in scripts.error(script(tmp_path, '--table=2', *args))


def test_rows_train_measure_and_are_reused(tmp_path):
  arguments = [
    '--table=2',
    '--rows=natural',
    f'--dataset={scripts.tiny(tmp_path)}',
    '--epsilon=0.05',
    '--epochs=1',
    '--curve_examples=0',
    f'--workdir={tmp_path / "runs"}',
  ]
  first = scripts.last_json(script(tmp_path, *arguments))
  columns = first['panels'][0]['rows']['natural']['columns']
  assert set(columns) == set(TABLE_COLUMNS['2'])
  assert (
    columns['eq3_lipschitz']['ours'] > columns['released_lipschitz']['ours']
  )
  run = tmp_path / 'runs' / 'tiny-cnn1' / 'natural' / 'seed0'
  written = (run / 'result.json').stat().st_mtime_ns
  again = scripts.last_json(script(tmp_path, *arguments))
  assert again['panels'] == first['panels']
  assert (run / 'result.json').stat().st_mtime_ns == written
  more = [x if '--rows' not in x else '--rows=gr' for x in arguments]
  both = scripts.last_json(script(tmp_path, *more))['panels'][0]['rows']
  assert list(both) == ['natural', 'gr']
  refused = script(tmp_path, *more, '--learning_rate=0.5')
  assert 'of other settings' in scripts.error(refused)
  other = (x.replace('=2', '=mt') for x in arguments)
  refused = script(tmp_path, *other, '--epsilon=.3')
  assert 'epsilon' in scripts.error(refused)
  measured = (run / 'evaluations').glob('*.json')
  assert [path.stem for path in measured] == ['released_lipschitz']
  (path,) = (tmp_path / 'runs').glob('table_2-*.json')
  kept = json.loads(path.read_text())['panels'][0]['rows']
  assert list(kept) == ['natural', 'gr']
