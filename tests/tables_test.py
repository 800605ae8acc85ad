"""Tables: what is compared with what, what is said of it, and the script."""

import dataclasses
import functools
import json
from unittest import mock

import numpy as np
import pytest
import scripts
from absl import flags
from report_test import row as of_row

from experiments import (
  common,
  config,
  evaluate,
  findings,
  measure,
  paper,
  report,
  runs,
  table_figures,
  table_rows,
  tables,
)
from robustlip import datasets

FLAGS = flags.FLAGS
SHORT = '--epsilon=0.05 --epochs=2 --curve_examples=0 --eval_batch_size=15'
SHORT = SHORT.split()


@pytest.fixture
def given():
  """Sets flags of the script, which exist only during a test."""
  common.define_flags(tables.define)
  yield lambda *words: FLAGS(['tables', *words])
  common.define_flags(lambda: None)
  FLAGS.unparse_flags()


def of_the_paper(table, dataset, arch):
  """The findings in the paper's own numbers."""
  return {
    name: found['holds']
    for name, found in findings.decided(
      paper.panels(table)[dataset, arch]
    ).items()
  }


@pytest.mark.parametrize(
  'panel',
  [
    ('2', 'mnist', 'cnn1'),
    ('2', 'mnist', 'cnn2'),
    ('3', 'cifar10', 'wrn_40_10'),
    ('svhn', 'svhn', 'wrn_40_10'),
  ],
)
def test_the_findings_hold_in_the_papers_own_tables(panel):
  assert of_the_paper(*panel) == {
    'smoother_released': True,
    'smoother_with_beta_released': True,
    'gap_widens': True,
  }


def test_the_findings_that_the_paper_contradicts_are_false():
  imagenet = of_the_paper('3', 'restricted_imagenet', 'resnet50')
  assert [name for name, holds in imagenet.items() if not holds] == [
    'smoother_released'
  ]
  for dataset in ('svhn', 'cifar10'):  # Natural: wider; zero with and without
    found = of_the_paper('4', dataset, 'wrn_40_10')
    assert found['dropout_narrows_gap']
    assert not found['dropout_narrows_adv_gap']


def test_a_finding_names_the_closest_pair_and_all_that_fail():
  rows = {
    'natural': {'eq3_lipschitz': 9.0},
    'gr': {'eq3_lipschitz': 5.0},
    'at': {'eq3_lipschitz': 6.0, 'gap': 1.0, 'adv_gap': 1.5},
    'trades1': {'eq3_lipschitz': 5.0, 'gap': 1.0, 'adv_gap': 4.0},
  }
  found = findings.decided(rows)
  assert found == {
    'smoother_eq3': {
      'holds': False,
      'pairs': 4,
      'failing': ['gr and at', 'gr and trades1'],
      'closest': 'gr and at',
      'numbers': [5.0, 6.0],
    },
    'gap_widens': {
      'holds': True,
      'pairs': 2,
      'failing': [],
      'closest': 'at',
      'numbers': [1.5, 1.0],
    },
  }


def test_equal_differences_are_equal_however_they_round():
  gap, adv_gap = 98 - 96.4, 50 - 48.4
  assert adv_gap > gap
  rows = {'at': {'gap': gap, 'adv_gap': adv_gap}}
  assert not findings.decided(rows)['gap_widens']['holds']
  rows = {
    name: {'test_acc': 90.0, 'adv_test_acc': attacked, 'adv_gap': 1.0}
    for name, attacked in {'at': 60.6, 'at-ema': 100 * 0.601}.items()
  }
  assert findings.place('at-ema', rows) == (False, 1.0)  # half a point lower
  ours = {'eq3_lipschitz': [1.0, 2.0, 3.0], 'gap': [adv_gap, gap, 9.0]}
  row = {'row': 'at', 'ours': ours | {'adv_gap': [1.0, 2.0, 3.0]}}
  found = findings.rank_correlations([row])  # ranks 1.5, 1.5, 3
  assert found == pytest.approx({'gap': 3**0.5 / 2, 'adv_gap': 1.0})


@pytest.mark.parametrize('dropout', ['natural_dropout', 'natural-dropout'])
def test_a_gap_that_changes_sign_may_grow(dropout):
  rows = {
    'natural': {'gap': -0.25, 'adv_gap': 0.5},
    dropout: {'gap': -1.05, 'adv_gap': -0.2},
  }
  found = findings.decided(rows)
  assert not found['dropout_narrows_gap']['holds']
  assert found['dropout_narrows_adv_gap']['holds']


@pytest.mark.parametrize(
  'words, expected',
  [
    (['--table=2'], [('mnist5k', None)]),
    (['--table=4'], [('mnist5k', 'wrn_10_1')]),
    (['--table=2', '--preset=paper'], [('mnist', 'cnn1'), ('mnist', 'cnn2')]),
    (['--table=2', '--preset=short', '--arch=cnn2'], [('mnist', 'cnn2')]),
    (
      ['--table=2', '--preset=short', '--dataset=fashion_mnist'],
      [('fashion_mnist', None)],
    ),
    (
      ['--table=3', '--preset=paper', '--dataset=cifar10', '--arch=wrn_10_2'],
      [('cifar10', 'wrn_10_2')],
    ),
  ],
)
def test_what_the_flags_ask_for(given, words, expected):
  given(*words)
  assert table_rows.panels() == expected


def test_numbers_are_compared_with_those_of_the_same_network(given):
  given('--table=2')
  assert table_rows.published('mnist5k', 'cnn2')[0] == ('mnist', 'cnn2')
  assert table_rows.published('mnist5k', 'wrn_10_1')[0] == ('mnist', 'cnn1')
  assert table_rows.published('fashion_mnist', 'cnn2') == (None, {})
  given('--table=3', '--augment=none')
  _, rows = table_rows.published('cifar10', 'wrn_10_1')
  assert rows == paper.panels('no_augmentation')['cifar10', 'wrn_40_10']


def test_settings_that_are_not_the_papers(given):
  given('--table=2', '--preset=paper', '--epochs=5', '--holdout=100')
  dataset = datasets.load('mnist5k')
  found = table_rows.settings(dataset, 'cnn1', 'rst2')
  assert (found.epochs, found.batch_size, found.lam) == (5, 64, 2.0)
  assert table_rows.paper_settings(found, dataset, 'rst2') == {
    'dataset': 'mnist',
    'epochs': 160,
    'holdout': 0,
  }
  assert table_rows.paper_settings(found, dataset, 'gr') == {}  # of the text
  part = dataset._replace(name='mnist', fingerprint='x')
  found = table_rows.settings(part, 'cnn1', 'rst2')
  theirs = table_rows.paper_settings(found, part, 'rst2')
  assert theirs['dataset'] == 'the whole of mnist'


def test_cifar10_without_augmentation_has_settings_of_its_own(given):
  given('--table=3', '--preset=paper', '--augment=none')
  arrays = scripts.tiny_arrays()
  split = datasets.Split(arrays['train_images'], arrays['train_labels'])
  cifar10 = datasets.Dataset('cifar10', split, split, tuple('abc'), 0.031)

  def differing(row):
    found = table_rows.settings(cifar10, 'wrn_40_10', row)
    return table_rows.paper_settings(found, cifar10, row)

  assert differing('trades1') == {}
  assert differing('at') == {'learning_rate': 0.064}


def test_a_row_of_table_5_is_a_method_with_tools(given):
  given('--table=5', '--awp=.02', '--rows=at,at-cutout-awp-ema,rst2-early')
  names = ['at', 'at-ema-awp-cutout', 'rst2-early']
  assert table_rows.row_names({}) == names
  dataset = datasets.load('mnist5k')
  alone, tooled, early = (
    table_rows.settings(dataset, None, name) for name in names
  )
  changed = dict(ema=0.999, awp=0.02, augment='cutout')
  assert dataclasses.replace(alone, **changed) == tooled
  assert (alone.awp, alone.dropout, alone.holdout) == (0.0, 0.0, 500)
  assert (early.lam, table_rows.folder('rst2-early')) == (2.0, 'rst2-alone')
  assert table_rows.settings(dataset, None, 'at-dropout').dropout is None
  assert table_rows.label(tooled_name := names[1]) == 'AT + EMA + AWP + cutout'
  assert table_rows.folder(tooled_name) == tooled_name
  given('--table=5', '--ema=.99', '--swa=.5')  # two averages, of two rows
  ema, swa = (
    table_rows.settings(dataset, None, f'at-{tool}') for tool in ('ema', 'swa')
  )
  assert (ema.ema, ema.swa, swa.ema, swa.swa) == (0.99, 0.0, 0.0, 0.5)
  given('--table=5', '--rows=at-magic')
  with pytest.raises(ValueError, match="no row 'at-magic'"):
    table_rows.row_names({})


def test_a_row_with_swa_averages_two_epochs_at_least(given):
  dataset = datasets.load('mnist5k')
  for epochs, expected in {2: 0.25, 3: 0.5, 4: 0.625, 15: 0.75}.items():
    given('--table=5', f'--epochs={epochs}')
    found = table_rows.settings(dataset, None, 'at-swa')
    assert found.swa == pytest.approx(expected)
    runs.check(found, dataset)


def test_tools_are_ordered_by_the_gap_at_equal_accuracy(given, tmp_path):
  given('--table=5')
  numbers = {  # test and attacked accuracy, gap under attack, Lipschitz
    'trades6': (90.0, 60.0, 20.0, 9.0),
    'at-swa': (89.0, 60.0, 5.0, 5.0),  # loses a point
    'at-awp': (91.0, 61.0, 9.0, 6.0),
    'at': (90.0, 60.0, 20.0, 8.0),
    'at-ema': (89.6, 59.6, 12.0, 7.0),
  }
  rows = [
    of_row(
      name,
      {
        'test_acc': [test],
        'adv_test_acc': [attacked],
        'gap': [1.0 + test / 100],
        'adv_gap': [gap],
        'eq3_lipschitz': [constant],
      },
      label=table_rows.label(name),
      settings={},
      seconds=1.0,
    )
    for name, (test, attacked, gap, constant) in numbers.items()
  ]
  record = tables.table(rows)
  order = ['at-awp', 'at-ema', 'at', 'at-swa', 'trades6']
  assert [row['row'] for row in record['rows']] == order
  (title,) = record['findings']
  found = record['findings'][title]['a_tool_halves_adv_gap']
  assert found['holds'] and found['numbers'] == [10.0, 9.0]
  assert found['closest'] == 'at and at-awp'
  # Ranks 5, 1, 2, 4, 3 and 4.5, 1, 2, 4.5, 3, of which two are tied.
  assert record['correlations'][title]['adv_gap'] == pytest.approx(0.9747, 1e-4)
  text = report.markdown(record)
  assert '0.97 with the adv. gap' in text and 'at most 0.5 points' in text
  table_figures.draw(record, tmp_path / 'tools')
  assert (tmp_path / 'tools.png').stat().st_size > 1000
  again = rows + [rows[0] | {'row': 'at-early'}]  # the network of another row
  known = findings.rank_correlations(rows)
  assert findings.rank_correlations(again) == known
  rough = {'gap': [9.0], 'adv_gap': [0.0], 'eq3_lipschitz': [999.0]}
  natural = {'row': 'natural', 'ours': rough}
  assert findings.rank_correlations([*rows, natural]) == known
  rows[0]['ours'].pop('eq3_lipschitz')  # it was not finite
  table_figures.draw(record, tmp_path / 'others')
  assert (tmp_path / 'others.png').exists()
  for row in rows[1:]:
    row['ours']['gap'] = [1.0]
  found = findings.rank_correlations(rows)
  assert found == {'adv_gap': pytest.approx(1.0)}


def test_rows_of_a_record_are_kept_unless_they_contradict(given, tmp_path):
  given('--table=2', '--epsilon=0.1')
  dataset, output = datasets.load('mnist5k'), tmp_path / 'table.json'
  rows = {
    name: {
      'dataset': 'mnist5k',
      'arch': 'cnn1',
      'row': name,
      'seeds': [0, 1, 2],
      'settings': table_rows.settings_of(
        table_rows.settings(dataset, 'cnn1', name)
      ),
    }
    for name in ('natural', 'at')
  }
  for row in rows.values():
    del row['settings']['remat']  # as if the record were older than a setting
  common.write_json({'rows': list(rows.values())}, output)
  asked = [(dataset, 'cnn1', 'gr'), (dataset, 'cnn1', 'natural')]
  assert set(tables.kept(output, asked[:1])) == {
    ('mnist5k', 'cnn1', 'natural'),
    ('mnist5k', 'cnn1', 'at'),
  }
  with pytest.raises(ValueError, match=r'natural of other settings \(seeds\)'):
    tables.kept(output, asked)
  other = dataset._replace(name='other')
  assert tables.kept(output, [*asked[:1], (other, 'cnn1', 'natural')])
  given('--table=2', '--epsilon=0.1', '--seeds=4')
  assert tables.kept(output, asked)
  given('--table=2', '--epsilon=0.1', '--epochs=9', '--seeds=4')
  with pytest.raises(ValueError, match=r'other settings \(epochs\)'):
    tables.kept(output, asked)


def test_a_ball_in_l2_has_its_own_radius_and_no_bounds(given):
  given('--table=2')
  dataset, l2 = datasets.load('mnist5k'), measure.Attack(norm='l2')
  for attack in (l2, l2._replace(epsilons=(1.0,), certify='linear')):
    with pytest.raises(ValueError, match='--norm=l2'):
      measure.evaluator(config.Config(), dataset, attack)
  measure.evaluator(config.Config(), dataset, l2._replace(epsilons=(1.0,)))


def test_a_bound_that_is_not_finite_is_none_at_once(given, trained):
  given('--table=2', '--eval_batch_size=15')
  _, work = trained
  dataset = datasets.load(config.read(work).dataset)
  attack = measure.Attack(num_steps=1, certify='interval')
  bounds = {'upper_lipschitz': np.inf}
  with mock.patch.object(measure, 'certificates', lambda *given: bounds):
    found = evaluate.evaluate(work, dataset, attack)
  assert found['upper_lipschitz'] is None
  assert found == evaluate.evaluate(work, dataset, attack)  # from its file


def test_a_tighter_bound_on_the_constant_has_a_column_of_its_own(
  given, tmp_path
):
  bounds = {'linear': 9.0, 'crown': 5.0}
  run = {'step': 1, 'seed': 0, 'seconds': 1.0, 'test_acc': 90.0}
  run |= {'measured_train': 1, 'measured_test': 1}
  run |= dict.fromkeys(common.ORIGIN, 'x')

  def measured(path, dataset, attack, **_):
    found = {'certified_test_acc': 80.0, 'seconds': 1.0}
    found['upper_lipschitz'] = bounds[attack.certify]
    return run | found

  row = None
  for method in bounds:
    given('--table=2', '--attacks=', f'--certify={method}')
    with (
      mock.patch.object(tables.runs, 'train', lambda *_: dict(run)),
      mock.patch.object(evaluate, 'evaluate', measured),
    ):
      made = tables.finished(datasets.load('mnist5k'), None, 'at', tmp_path)
      row = tables.joined(row, made)
  assert row['ours']['upper_lipschitz'] == [9.0]
  assert row['ours']['crown_upper_lipschitz'] == [5.0]
  heading = 'test Lipschitz, upper bound, crown'
  assert report.heading('crown_upper_lipschitz') == heading


def test_other_attacks_of_the_same_runs_are_kept(caplog):
  same = {'runs': [{'commit': 'x'}]}
  before = same | {'ours': {'a': [1.0]}, 'paper': {'a': 2.0}, 'measured': ['a']}
  row = same | {'ours': {'b': [3.0]}, 'paper': {}, 'measured': ['a', 'b']}
  both = tables.joined(before, row)
  assert both['ours'] == {'a': [1.0], 'b': [3.0]}
  assert both['paper'] == {'a': 2.0}
  assert both['measured'] == ['a', 'b'] and not caplog.text
  again = row | {'runs': [{'commit': 'y'}]}  # other networks
  assert tables.joined(before, again) == again
  assert 'The table loses a, which are of other runs' in caplog.text
  more = row | {'runs': 2 * same['runs']}  # of two seeds
  assert tables.joined(before, more) == more
  assert tables.joined(None, row) == row


def test_bad_requests_are_one_line(call, tmp_path):
  common.write_json({'table': '2'}, tmp_path / 'table_2-quick.json')
  for words, message in (
    (['--lam=1'], "Unknown command line flag 'lam'"),
    (['--rows=trades9'], 'has no rows trades9'),
    (['--rows='], '--rows names none'),
    (['--render_only', '--workdir=/nowhere'], 'table_2-quick.json to render'),
    (['--render_only', f'--workdir={tmp_path}'], "it has no 'rows'"),
    (['--attacks=pgd,typo', '--workdir=/nowhere'], 'typo'),
    (['--table=5', '--rows=at-ema', '--ema=0'], '--ema=0 leaves nothing'),
    (['--table=5', '--rows=at-early', '--holdout=0'], '--holdout=0 leaves'),
    (['--table=5', '--rows=at-dropout', '--dropout=0'], '--dropout=0 leaves'),
    (['--table=4', '--dropout=0'], '--dropout=0 leaves'),
    (['--table=1', '--epochs=3'], '--epochs means nothing'),
    (['--table=sizes', '--seeds=2'], '--seeds means nothing'),
    (['--table=sizes', '--workdir=/nowhere'], 'has no table of a part'),
    (['--table=4', '--arch=cnn1'], 'has it already'),
  ):
    assert message in scripts.error(call('experiments.tables', *words))


def test_table_1_from_separation_records(given, tmp_path):
  given('--table=1')
  with pytest.raises(FileNotFoundError, match='experiments.separation'):
    tables.separations(tmp_path)
  common.write_json({}, tmp_path / 'separation_other.json')
  with pytest.raises(ValueError, match="other.json .* has no 'dataset'"):
    tables.separations(tmp_path)
  (tmp_path / 'separation_other.json').unlink()
  record = {'dataset': 'svhn', 'norm': 'linf', 'random_labels': False}
  record |= {'dropped': [], 'num_train': 73257, 'num_test': 26032}
  record |= {'epsilon': 0.031, 'train_train_min': 0.0, 'test_train_min': 0.11}
  record['seconds'] = 1.0
  common.write_json(record, tmp_path / 'separation_svhn.json')
  common.write_json(record | {'norm': 'l2'}, tmp_path / 'separation_l2.json')
  found = tables.separations(tmp_path)
  (row,) = found['rows']
  assert row['ours']['train_train_min'] == [0.0]
  assert row['paper']['train_train_min'] == 0.094
  assert row['paper_settings'] == {}
  assert found['findings']['']['separated']['failing'] == [
    'svhn train_train_min'
  ]
  # As the paper searched: without the conflicting examples.
  record |= {'dropped': [3, 7], 'num_train': 73000, 'train_train_min': 0.1}
  common.write_json(record, tmp_path / 'separation_svhn-dropped.json')
  found = tables.separations(tmp_path)
  (row,) = found['rows']
  assert row['ours']['train_train_min'] == [0.1]
  assert row['paper_settings'] == {'num_train': 73255}
  assert found['findings']['']['separated']['holds']


def test_sizes_join_tables_of_parts_of_the_training_set(given, tmp_path):
  given('--table=sizes', '--preset=short')
  with pytest.raises(FileNotFoundError, match='--train_examples=500'):
    tables.sizes(tmp_path)
  common.write_json({}, tmp_path / 'table_2-short-500examples.json')
  with pytest.raises(ValueError, match="500examples.json .* has no 'rows'"):
    tables.sizes(tmp_path)
  gaps = {1000: ([2.0, 4.0], [8.0, 8.0]), 500: ([3.5, 4.5], [7.0, 7.0])}
  for size, (gap, adv_gap) in gaps.items():
    ours = {'gap': gap, 'adv_gap': adv_gap}
    ours |= {'test_acc': [90.0, 92.0], 'adv_test_acc': [80.0, 80.0]}
    settings = {'epsilon': 0.1, 'train_examples': size, 'epochs': 2}
    row = {'dataset': 'mnist', 'arch': 'cnn1', 'row': 'at', 'label': 'AT'}
    row |= {'settings': settings, 'ours': ours, 'seconds': 1.0, 'runs': []}
    path = tmp_path / f'table_2-short-{size}examples.json'
    common.write_json({'rows': [row]}, path)
  again = tmp_path / 'table_2-short-b-1examples.json'  # of the same runs
  common.write_json({'rows': [row]}, again)
  record = tables.sizes(tmp_path)
  assert [row['label'] for row in record['rows']] == [
    'AT, 500 examples, 2 epochs',
    'AT, 1,000 examples, 2 epochs',
  ]
  found = record['findings']['cnn1 on mnist']
  assert found['examples_narrow_gap']['holds']
  assert found['examples_narrow_gap']['numbers'] == [4.0, 3.0]
  assert found['examples_narrow_adv_gap']['failing'] == [
    'at of 500 and of 1000'
  ]
  assert '80.00 ± 0.00' in tables.write(record, tmp_path / 'table_sizes.json')
  assert (tmp_path / 'table_sizes.png').stat().st_size > 10_000
  row['settings']['epochs'] = 3
  common.write_json({'rows': [row]}, again)
  with pytest.raises(ValueError, match='b-1examples.* other settings'):
    tables.sizes(tmp_path)
  row['settings'] |= {'train_examples': 200, 'epsilon': 0.3}
  common.write_json({'rows': [row]}, again)
  with pytest.raises(ValueError, match=r'b-1examples.* settings \(epsilon\)'):
    tables.sizes(tmp_path)


def test_rows_train_are_measured_and_join_one_record(tmp_path, call):
  workdir = tmp_path / 'runs'
  run = functools.partial(
    call,
    'experiments.tables',
    '--table=2',
    *SHORT,
    f'--dataset={scripts.tiny(tmp_path)}',
    f'--workdir={workdir}',
  )
  output = workdir / 'table_2-quick-tiny.json'
  finished = tables.finished

  def diverging(dataset, arch, row, root):
    if row == 'gr':
      raise ValueError('the loss is not finite')
    return finished(dataset, arch, row, root)

  with mock.patch.object(tables, 'finished', diverging):
    failed = run('--rows=natural,gr', '--attacks=pgd', '--certify=interval')
  assert '1 rows failed: the loss' in scripts.error(failed)
  (row,) = common.read_json(output)['rows']
  assert set(row['ours']) == {
    *('train_acc', 'test_acc', 'adv_test_acc', 'gap', 'adv_gap'),
    *('eq3_lipschitz', 'released_lipschitz', 'pgd_adv_test_acc', 'pgd_adv_gap'),
    *('interval_certified_test_acc', 'upper_lipschitz'),
  }
  certified = row['ours']['interval_certified_test_acc']
  assert certified <= row['ours']['adv_test_acc']
  assert row['ours']['pgd_adv_test_acc'] == row['ours']['adv_test_acc']
  assert row['ours']['eq3_lipschitz'] > row['ours']['released_lipschitz']
  assert row['settings']['epochs'] == 2 and row['paper'] == {}
  result = workdir / 'tiny-cnn1' / 'natural' / 'seed0' / 'result.json'
  record = json.loads(result.read_text())
  assert row['ours']['test_acc'] == [record['test_acc']]
  written = result.stat().st_mtime_ns
  both = scripts.last_json(run('--rows=natural,gr'))
  assert [row['row'] for row in both['rows']] == ['natural', 'gr']
  assert both['rows'][0]['ours'] == row['ours']
  assert result.stat().st_mtime_ns == written
  assert 'of other settings (learning_rate)' in scripts.error(
    run('--rows=gr', '--learning_rate=0.5')
  )
  assert json.loads(output.read_text())['rows'] == both['rows']
  kept = result.parent / 'checkpoints'
  (kept / str(record['step'])).rename(kept / '1')  # of an earlier epoch
  lost = run('--rows=natural', '--attacks=strong')
  assert f'has lost step {record["step"]}' in scripts.error(lost)
  assert json.loads(output.read_text())['rows'] == both['rows']
  output.with_suffix('.md').unlink()
  output.with_suffix('.png').unlink()
  shown = run('--render_only')
  assert scripts.last_json(shown) == both
  assert output.with_suffix('.md').read_text().strip() in shown.out
  assert output.with_suffix('.png').exists()


def test_early_stopping_is_the_best_of_the_run_without_it(tmp_path, call):
  finished = call(
    'experiments.tables',
    '--table=5',
    '--rows=natural,natural-early',
    '--attacks=pgd',
    *SHORT,
    f'--dataset={scripts.tiny(tmp_path)}',
    f'--workdir={tmp_path / "runs"}',
  )
  last, best = sorted(
    scripts.last_json(finished)['rows'], key=lambda row: len(row['row'])
  )
  panel = tmp_path / 'runs' / 'tiny-cnn1'
  assert [path.name for path in panel.glob('*')] == ['natural-alone']
  record = common.read_json(panel / 'natural-alone' / 'seed0' / 'result.json')
  assert record['holdout'] == 9
  for row, of in ((last, record), (best, record['best'])):
    assert row['ours']['adv_gap'] == [of['adv_gap']]
    assert row['ours']['pgd_adv_gap'] == [of['adv_gap']]
    assert row['ours']['train_seconds'] == [record['train_seconds']]
