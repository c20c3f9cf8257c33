"OOD score: odd inputs, the promise on false positives, and that the module needs numpy only"
import json, math, subprocess, sys
import numpy as np
import pytest
from bearcls.core import DataError
from bearcls.export.ood import (ClassHead, false_positive_interval, ood_threshold, false_positive_words, auroc, deal_groups,
    find_classes, find_groups, find_neighbours, fit_ood_score, measure_ood_score, share_caught, ood_score_metadata,
    ood_score_html)
from bearcls.sample.strangers import draw_strangers, stranger_kinds

def made_up(n, d=40, seed=0, kind=0):
    "Features as a rectifier gives them: images of one kind share a direction, another kind has another"
    rng = np.random.default_rng(seed)
    at = np.random.default_rng(100 + kind).gamma(.5, 2, d)
    return np.maximum(0, at*rng.gamma(4, .25, (n, 1)) + rng.normal(0, .4, (n, d))).astype(np.float32)

def by_hand(fitted, features):
    "The formulas of the page, image by image, in plain loops"
    scores = []
    for row in features:
        a = [float(x)*float(g) + float(s) for x, g, s in zip(row[fitted.first:], np.broadcast_to(fitted.gain, 40), np.broadcast_to(fitted.shift, 40))]
        length = max(math.sqrt(sum(v*v for v in a)), 1e-6)
        z = [sum(v*float(m) for v, m in zip(a, column))/length for column in fitted.neighbours.map.T]
        near = sorted(sum(v*float(w) for v, w in zip(z, other)) for other in fitted.neighbours.index)
        found = [1 - sum(near[-fitted.neighbours.k:])/fitted.neighbours.k]
        if fitted.classes:
            head = fitted.classes.head
            logits = [sum(v*float(w)*float(s) for v, w in zip(a, weights)) + float(b) for weights, s, b in zip(head.weight, head.scale, head.bias)]
            total = sum(math.exp(v - max(logits)) for v in logits)
            q = [math.exp(v - max(logits))/total for v in logits]
            found.append(-math.log(max(sum(math.sqrt(v)*float(u) for v, u in zip(q, usual)) for usual in fitted.classes.usual)))
        scores.append(max((v - c)/s for v, c, s in zip(found, fitted.centre, fitted.spread)))
    return scores

def class_weights(n=12, d=40):
    rng = np.random.default_rng(7)
    return ClassHead.of(rng.normal(0, .3, (n, d)), rng.normal(0, .3, n))

def test_the_formula():
    fitted = fit_ood_score(made_up(50), np.arange(50) % 2, k=3, n_directions=8, max_n=20)
    assert fitted.neighbours.index.shape == (20, 8) and fitted.neighbours.map.shape == (40, 8)
    some = made_up(5, seed=2, kind=1)
    np.testing.assert_allclose(fitted.score(some), by_hand(fitted, some), rtol=1e-4, atol=1e-4)

def test_the_formula_with_classes():
    features = np.concatenate([made_up(60), made_up(60, kind=2)])
    fitted = fit_ood_score(features, [0]*60 + [1]*60, averages=(0, 1., 0.), head=class_weights())
    fitted.classes = find_classes(class_weights(), features, [0]*60 + [1]*60)
    fitted.centre, fitted.spread = np.array([.1, .2]), np.array([.3, .1])
    some = made_up(5, seed=2, kind=1)
    np.testing.assert_allclose(fitted.score(some), by_hand(fitted, some), rtol=1e-4, atol=1e-4)

def test_strangers_are_told_apart():
    fitted = fit_ood_score(made_up(300), np.arange(300) % 3)
    known, strange = fitted.score(made_up(100, seed=2)), fitted.score(made_up(100, seed=3, kind=1))
    assert auroc(known, strange) > .99 and share_caught(strange, fitted.threshold) > .95
    assert auroc(fitted.usual, strange) > .99 and len(fitted.usual) == fitted.n_held == 300

def test_features_before_the_first_are_left_out():
    averages = made_up(200)
    features = np.concatenate([np.random.default_rng(1).normal(0, 50, (200, 8)), (averages - 3)/2], 1)
    plain, behind = (fit_ood_score(f, None, averages=a) for f, a in ((averages, (0, 1., 0.)), (features, (8, 2., 3.))))
    np.testing.assert_allclose(plain.usual, behind.usual, atol=1e-3)

def test_one_wrong_training_image_vouches_for_nobody():
    train, strange = made_up(300), made_up(50, seed=3, kind=1)
    fitted = fit_ood_score(np.concatenate([train, strange[:1]]), None)
    assert share_caught(fitted.score(strange[1:]), fitted.threshold) > .9

def test_classes_are_used_where_they_help():
    "A classifier that knows the labels' difference from a label left out is kept; one of random weights that blurs it is not"
    kinds = [made_up(80, seed=k, kind=k) for k in range(3)]
    features, targets = np.concatenate(kinds), np.repeat(range(3), 80)
    means = np.stack([k.mean(0) for k in kinds])
    knows = ClassHead.of((means - means.mean(0))*.5, np.zeros(3))
    blind = ClassHead.of(np.zeros((3, 40)), np.zeros(3))
    how = dict(averages=(0, 1., 0.), n_directions=1)  # neighbours that see one direction only
    alone, helped, idle = (fit_ood_score(features, targets, **how, head=h) for h in (None, knows, blind))
    assert helped.classes is not None and idle.classes is None and alone.classes is None
    assert np.mean([r['auroc'] for r in helped.left_out.values()]) > np.mean([r['auroc'] for r in alone.left_out.values()])

def test_images_of_one_source_are_held_back_together():
    "Images of a source are near to each other, so a threshold chosen one by one is too tight for the next source"
    rng = np.random.default_rng(0)
    sources = np.repeat(np.arange(30), 20)
    def of(sources, seed): return np.abs(np.random.default_rng(9).normal(5, 1, 40) + np.random.default_rng(1).normal(0, 3, (40, 40))[sources] + np.random.default_rng(seed).normal(0, .5, (len(sources), 40)))
    known, later = of(sources, 2).astype(np.float32), of(np.repeat(np.arange(30, 40), 20), 3).astype(np.float32)
    together, single = (fit_ood_score(known, None, groups=g, averages=(0, 1., 0.)) for g in (sources, np.arange(600)))
    rates = [share_caught(f.score(later), f.threshold) for f in (together, single)]
    assert rates[0] < .3 < rates[1] and together.sources[0] <= rates[0] and together.n_groups == 30

def test_groups_and_folds():
    "Groups hold one label; folds hold whole groups, and a part of every label"
    averages, targets = np.concatenate([made_up(90), made_up(30, seed=1, kind=1), made_up(9, seed=2, kind=2)]), [0]*90 + [1]*30 + [2]*9
    groups = find_groups(averages, targets)
    folds = deal_groups(groups, targets)
    for g in np.unique(groups): assert len(set(np.array(targets)[groups == g])) == len(set(folds[groups == g])) == 1
    for t in (0, 1): assert set(folds[np.array(targets) == t]) == set(range(5))
    assert len(np.unique(groups)) >= 15 and np.array_equal(groups, find_groups(averages, targets))

def test_only_held_back_images_choose_the_threshold():
    "Features that were trained on are tighter than new ones"
    train, held = made_up(200)*.2 + made_up(1, seed=5), made_up(100, seed=1)
    features = np.concatenate([train, held])
    fitted = fit_ood_score(features, None, np.arange(300) >= 200)
    assert fitted.n_held == len(fitted.usual) == 100
    assert fitted.threshold == pytest.approx(ood_threshold(fitted.usual)[0])

@pytest.mark.parametrize('n', [5, 19, 40, 83])
def test_false_positive_rate_are_kept_on_average(n):
    draws = np.random.default_rng(n).lognormal(size=(4000, n + 1))
    rate = np.mean([d[n] > ood_threshold(d[:n])[0] for d in draws])
    promised = ood_threshold(draws[0][:n])[1]
    assert rate < promised + .012 and promised == max(.05, 1/(n + 1))
    low, high = false_positive_interval(n)
    assert low < rate < high

def test_ties_are_not_flagged():
    assert ood_threshold([.3]*50) == (.3, .05) and share_caught([.3]*10, .3) == 0

def test_rare_labels_stay_in_the_index():
    features = np.concatenate([made_up(900), made_up(8, seed=9, kind=1)])
    kept = find_neighbours(features, [0]*900 + [1]*8, max_n=64)
    assert len(kept.index) == 64
    assert kept.distance(made_up(20, seed=10, kind=1)).mean() < find_neighbours(features[:900], None, max_n=64).distance(made_up(20, seed=10, kind=1)).mean()

@pytest.mark.parametrize('features, settings, words', [
    (np.ones((2, 3)), {}, 'got 2'),
    (np.ones((4, 3)), dict(held=[False]*4), 'got none'),
    (np.ones((4, 3)), dict(held=[True]), '`held` has 1 numbers for 4'),
    (np.ones((4, 3)), dict(groups=[1]), '`groups` has 1 numbers for 4'),
    (np.ones(3), {}, 'got the shape (3,)'),
    (np.ones((4, 3)), dict(targets=[0]), '`targets` has 1 numbers for 4'),
    (np.full((4, 3), np.inf), {}, '`features` holds nan or infinity')])
def test_what_cannot_be_fitted(features, settings, words):
    with pytest.raises(DataError) as e: fit_ood_score(features, **{'targets': None} | settings)
    assert words in str(e.value)

@pytest.mark.parametrize('given', [dict(k=0), dict(max_n=0), dict(n_directions=0), dict(false_positive_rate=0), dict(false_positive_rate=1.)])
def test_impossible_settings(given):
    with pytest.raises(ValueError, match='|'.join(given)): fit_ood_score(made_up(9), None, **given)

def test_all_the_same_and_nothing_at_all():
    "Constant features have no spread, and a row of nothing has no direction; numbers come all the same"
    fitted = fit_ood_score(np.ones((8, 3)), None)
    assert np.isfinite(fitted.score(np.array([[1, 1, 1], [9, 1, 1], [0, 0, 0]]))).all()
    few = fit_ood_score(made_up(3), None)
    assert np.isfinite(few.threshold) and few.false_positive_rate == 1/4
    assert few.score(np.zeros((0, 40), np.float32)).shape == (0,)

def test_it_is_the_same_every_time():
    def one(): return fit_ood_score(made_up(700), np.arange(700) % 3)
    a, b = one(), one()
    assert len(a.neighbours.index) == 512 and np.array_equal(a.neighbours.index, b.neighbours.index) and a.threshold == b.threshold

def test_many_images_are_thinned():
    fitted = fit_ood_score(made_up(900), np.arange(900) % 3, max_fit=120)
    assert fitted.n == 900 and fitted.n_held == 120

def test_metadata_are_json():
    fitted = fit_ood_score(made_up(60), np.arange(60) % 2)
    fitted.measured = {r.pop('kind'): r for r in measure_ood_score(fitted.usual, {'other <b>': fitted.score(made_up(9, kind=1))})}
    metadata = json.loads(json.dumps(ood_score_metadata(fitted, ['black', 'teddy']), allow_nan=False))
    assert metadata['images'] == 60 and metadata['held_back'] == 60 and metadata['measured']['other <b>']['n'] == 9
    assert set(metadata['left_out']) == {'black', 'teddy'} and 'depending on the source' in false_positive_words(metadata)
    assert '<b>' not in ood_score_html(fitted).replace('<b>Ask', '')

def test_older_metadata_have_words_too():
    assert false_positive_words(dict(threshold=.3, false_positive_rate=.05)) == 'about 5% of images like the training’s are noticed by mistake'
    assert '1% to 10%, from 83 held-back images' in false_positive_words(dict(threshold=.3, false_positive_rate=.05, false_positive_rate_low=.01, false_positive_rate_high=.1, held_back=83))

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
    code = 'import sys, bearcls.export.ood; print([m for m in ("torch", "fastai", "fastcore", "pandas", "scipy", "matplotlib", "onnxruntime") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
