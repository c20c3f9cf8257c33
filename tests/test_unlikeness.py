"Unlikeness: odd inputs, the promise on false alarms, and that the room needs numpy only"
import json, math, subprocess, sys
import numpy as np
import pytest
from bearcls.core import DataError
from bearcls.unlikeness import (Unlikeness, alarm_interval, alarm_threshold, auroc, draw_strangers, fit_unlikeness, measure_unlikeness,
    share_caught, stranger_kinds, unlikeness_facts, unlikeness_html)

def made_up(n, d=40, seed=0, kind=0):
    "Features as a rectifier gives them: pictures of one kind share a direction, another kind has another"
    rng = np.random.default_rng(seed)
    at = np.random.default_rng(100 + kind).gamma(.5, 2, d)
    return np.maximum(0, at*rng.gamma(4, .25, (n, 1)) + rng.normal(0, .4, (n, d))).astype(np.float32)

def by_hand(fitted, features):
    "The formula of the page, picture by picture, in plain loops"
    scores = []
    for row in features:
        u = [(float(x) - float(o))*float(s) for x, o, s in zip(row, fitted.origin, fitted.scale)]
        length = max(math.sqrt(sum(v*v for v in u)), 1e-6)
        z = [sum(v*float(m) for v, m in zip(u, column))/length for column in fitted.map.T]
        near = sorted(sum(a*float(b) for a, b in zip(z, other)) for other in fitted.index)
        scores.append(1 - sum(near[-fitted.k:])/fitted.k)
    return scores

def test_the_formula():
    fitted = fit_unlikeness(made_up(50), None, made_up(30, seed=1), k=3, n_directions=8, max_n=20)
    assert fitted.index.shape == (20, 8) and fitted.map.shape == (40, 8)
    some = made_up(5, seed=2, kind=1)
    np.testing.assert_allclose(fitted.score(some), by_hand(fitted, some), atol=1e-5)

def test_strangers_are_told_apart():
    fitted = fit_unlikeness(made_up(200), np.arange(200) % 3, made_up(100, seed=1))
    known, strange = fitted.score(made_up(100, seed=2)), fitted.score(made_up(100, seed=3, kind=1))
    assert auroc(known, strange) > .99 and share_caught(strange, fitted.threshold) > .95

def test_it_is_the_same_behind_a_normalising_layer():
    "Features that were shifted and stretched one by one point in the same directions"
    rng = np.random.default_rng(5)
    mean, std = rng.normal(0, 3, 40), rng.uniform(.2, 5, 40)
    def norm(x): return ((x - mean)/std).astype(np.float32)
    train, held, other = made_up(200), made_up(60, seed=1), made_up(60, seed=2, kind=1)
    train[0] = 0  # something that has nothing
    plain, after = fit_unlikeness(train, None, held), fit_unlikeness(norm(train), None, norm(held))
    a, b = plain.score(other), after.score(norm(other))
    assert np.corrcoef(a, b)[0, 1] > .98 and abs(auroc(plain.score(held), a) - auroc(after.score(norm(held)), b)) < .01

def test_one_wrong_training_picture_vouches_for_nobody():
    train, strange = made_up(200), made_up(50, seed=3, kind=1)
    mixed = np.concatenate([train, strange[:1]])
    fitted = fit_unlikeness(mixed, None, made_up(100, seed=1))
    assert share_caught(fitted.score(strange[1:]), fitted.threshold) > .9

@pytest.mark.parametrize('n', [5, 19, 40, 83])
def test_false_alarms_are_kept_on_average(n):
    draws = np.random.default_rng(n).lognormal(size=(4000, n + 1))
    rate = np.mean([d[n] > alarm_threshold(d[:n])[0] for d in draws])
    promised = alarm_threshold(draws[0][:n])[1]
    assert rate < promised + .012 and promised == max(.05, 1/(n + 1))
    low, high = alarm_interval(n)
    assert low < rate < high

def test_ties_do_not_alarm():
    assert alarm_threshold([.3]*50) == (.3, .05) and share_caught([.3]*10, .3) == 0

def test_rare_labels_stay_in_the_index():
    train = np.concatenate([made_up(900), made_up(4, seed=9, kind=1)])
    fitted = fit_unlikeness(train, [0]*900 + [1]*4, made_up(40, seed=1), max_n=64)
    assert len(fitted.index) == 64 and fitted.score(made_up(20, seed=10, kind=1)).mean() < fit_unlikeness(train[:900], None, made_up(40, seed=1), max_n=64).score(made_up(20, seed=10, kind=1)).mean()

@pytest.mark.parametrize('features, targets, held, words', [
    (np.ones((1, 3)), None, np.ones((2, 3)), 'got 1'),
    (np.ones((4, 3)), None, np.ones((0, 3)), 'got none'),
    (np.ones((4, 3)), None, np.ones((2, 2)), '`held_features` must be rows of 3 numbers'),
    (np.ones(3), None, np.ones((2, 3)), 'got the shape (3,)'),
    (np.ones((4, 3)), [0], np.ones((2, 3)), '`targets` has 1 numbers for 4'),
    (np.full((4, 3), np.inf), None, np.ones((2, 3)), '`features` holds nan or infinity')])
def test_what_cannot_be_fitted(features, targets, held, words):
    with pytest.raises(DataError) as e: fit_unlikeness(features, targets, held)
    assert words in str(e.value)

@pytest.mark.parametrize('given', [dict(k=0), dict(max_n=0), dict(n_directions=0), dict(false_alarms=0), dict(false_alarms=1.)])
def test_impossible_settings(given):
    with pytest.raises(ValueError, match='|'.join(given)): fit_unlikeness(made_up(9), None, made_up(3, seed=1), **given)

def test_all_the_same_and_nothing_at_all():
    "Constant features have no spread, and a row of nothing has no direction; numbers come all the same"
    fitted = fit_unlikeness(np.ones((8, 3)), None, np.ones((3, 3)))
    assert np.isfinite(fitted.score(np.array([[1, 1, 1], [9, 1, 1], [0, 0, 0]]))).all()
    few = fit_unlikeness(made_up(3), None, made_up(2, seed=1))
    assert few.k == 3 and np.isfinite(few.threshold) and few.false_alarms == 1/3
    assert few.score(np.zeros((0, 40), np.float32)).shape == (0,)

def test_it_is_the_same_every_time():
    def one(): return fit_unlikeness(made_up(700), np.arange(700) % 3, made_up(50, seed=1))
    a, b = one(), one()
    assert len(a.index) == 512 and np.array_equal(a.index, b.index) and a.threshold == b.threshold

def test_facts_are_json():
    fitted = fit_unlikeness(made_up(60), None, made_up(30, seed=1))
    fitted.measured = {r.pop('kind'): r for r in measure_unlikeness(fitted.score(made_up(30, seed=1)), {'other <b>': fitted.score(made_up(9, kind=1))})}
    facts = json.loads(json.dumps(unlikeness_facts(fitted), allow_nan=False))
    assert facts['pictures'] == 60 and facts['held_back'] == 30 and facts['measured']['other <b>']['n'] == 9
    assert '<b>' not in unlikeness_html(fitted).replace('<b>Ask', '')

def test_auroc_is_a_probability():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 40), rng.integers(3, 12, 30)
    assert auroc(a, b) == pytest.approx(np.mean([(y > x) + .5*(y == x) for x in a for y in b]))
    assert auroc(a, b) == pytest.approx(1 - auroc(b, a))

def test_strangers_are_drawn_alike_and_apart():
    once, again = draw_strangers(12, side=64), draw_strangers(12, side=64)
    assert [k for k, _ in once] == [*stranger_kinds]*2 and all(a.tobytes() == b.tobytes() for (_, a), (_, b) in zip(once, again))
    assert len({image.tobytes() for _, image in once}) == 12 and all(image.mode == 'RGB' for _, image in once)
    assert draw_strangers(0) == []

def test_numpy_is_enough():
    code = 'import sys, bearcls.unlikeness; print([m for m in ("torch", "fastai", "fastcore", "pandas", "scipy", "matplotlib", "onnxruntime") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
