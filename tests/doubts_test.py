"""Each doubt is seen alone, where there is a reason for it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from evaluation_test import KEY, SPLIT, linear

from robustlip import attacks, doubts, evaluation
from robustlip.datasets import Split

DOUBTFUL = {
  'zero_gradients': (lambda x: linear(jnp.round(15 * x) / 15), 1.0),
  'nonfinite_gradients': (
    lambda x: linear(jnp.where(x > 1, jnp.sqrt(x - 1), x)),
    1.0,
  ),
  'probabilities': (lambda x: jax.nn.softmax(linear(x)), 1.0),
  'half_precision': (lambda x: linear(x).astype(jnp.bfloat16), 1.0),
}


class DoubtsTest(chex.TestCase):
  def facts(self, function, split=SPLIT, **settings):
    return doubts.facts(lambda variables: function, {}, split, KEY, **settings)

  def test_there_are_none_of_a_plain_network(self):
    assert not any(self.facts(linear).values())

  @parameterized.parameters(*DOUBTFUL)
  def test_each_is_seen_alone(self, name):
    function, value = DOUBTFUL[name]
    expected = dict.fromkeys(doubts.ADVICE, 0.0) | {name: value}
    for name in ('gradient_free', 'no_rise', 'more_steps'):  # of a cascade
      del expected[name]
    assert self.facts(function) == expected

  def test_randomness_is_seen(self):
    generator = np.random.default_rng(0)

    def noisy(inputs):
      logits = linear(inputs)
      return logits + jax.pure_callback(
        lambda x: generator.normal(size=x.shape).astype(np.float32),
        jax.ShapeDtypeStruct(logits.shape, logits.dtype),
        jax.lax.stop_gradient(logits),
      )

    assert self.facts(noisy)['randomness'] > 1

  def test_what_only_a_gradient_free_attack_took_is_counted(self):
    stages = attacks.cascade('pgd,square', epsilon=0.1, num_classes=2)
    broken_by = np.array([0, 1, -1, 1], np.int16)
    right = np.ones(4, bool)
    attacked = evaluation.Attacked(right, broken_by < 0, broken_by, right)
    facts = self.facts(linear, attacked=attacked, cascade=stages)
    assert facts['gradient_free'] == 0.5
    assert evaluation.taken(attacked, stages) == {'pgd': 1, 'square': 2}
    pgd, square = stages
    for order, share in (((pgd, square, pgd), 0), ((pgd, square, square), 0.5)):
      facts = self.facts(linear, attacked=attacked, cascade=order)
      assert facts['gradient_free'] == share
    # All four meet PGD (10 gradients), three are left for 5,001 queries.
    assert evaluation.passes(attacked, stages) == 4 * 20 + 3 * 5001

  def test_a_cascade_that_begins_without_gradients_says_nothing_of_them(self):
    stages = attacks.cascade('square,pgd', epsilon=0.1, num_classes=2)
    taken = np.zeros(4, np.int16)
    attacked = evaluation.Attacked(taken == 0, taken > 0, taken, taken)
    facts = self.facts(linear, attacked=attacked, cascade=stages[:1])
    assert 'gradient_free' not in facts

  def test_stages_without_a_radius_and_classes_never_predicted_are_none(self):
    def closed(inputs):
      return jnp.pad(linear(inputs), ((0, 0), (0, 1)), constant_values=-np.inf)

    stages = [attacks.Stage('own', None)] * 2
    assert not any(self.facts(closed, cascade=stages).values())

  def test_gradients_that_lead_away_are_seen(self):
    @jax.custom_jvp
    def misleading(inputs):
      return linear(inputs)

    @misleading.defjvp
    def _(primals, tangents):
      return jax.jvp(linear, primals, (-tangents[0],))

    stages = attacks.cascade('strong', epsilon=0.1, num_classes=2)
    facts = [self.facts(f, cascade=stages) for f in (linear, misleading)]
    assert [x['no_rise'] for x in facts] == [0.0, 1.0]
    assert not any(facts[0].values())

  def test_images_that_take_many_steps_are_seen(self):
    def one_by_one(inputs):
      """A pixel has a gradient once all before it are high."""
      pixels = inputs.reshape(len(inputs), -1) - 0.5
      low = pixels < 0.0499
      first = (jnp.cumsum(low, axis=1) == 1) & low
      seen = jnp.where(first, pixels, jax.lax.stop_gradient(pixels))
      score = seen.sum(axis=1)
      return jnp.stack([jnp.full_like(score, 0.25), score], axis=1)

    split = Split(np.full((20, 3, 3, 1), 128, np.uint8), np.zeros(20, np.int32))
    stages = attacks.cascade('strong', epsilon=0.05, num_classes=2)
    facts = self.facts(one_by_one, split, cascade=stages)
    assert facts['more_steps'] > 0.5 and facts['no_rise'] == 0
