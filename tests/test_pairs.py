"""Pairs and canaries: many simulated comparisons, states that are hostile, a log that is real, an import that is light"""
import copy, json, math, subprocess, sys
from dataclasses import fields
from pathlib import Path
import numpy as np
import pytest

from bearcls.core import DataError
from bearcls.intervals import wilson
from bearcls.monitor.log import LogRow, PredictionLog, Verdict
from bearcls.rollout.canary import (Canary, SplitTest, Splits, assigned, judged_share, read_canary, split_gains, split_sizes,
    split_test, splits_from)
from bearcls.rollout.pairs import Pairs, PairTest, PairTests, Wealth, log_columns, pair_bets, pair_test, pairs_from

sys.path.insert(0, str(Path(__file__).parents[1]/'bench'))
day = 86400.

@pytest.fixture(scope='module')
def bench():
    import rollout
    return rollout

def not_above(reached, level):
    "Is a share of runs compatible with at most `level`?"
    return wilson(int(np.sum(reached)), len(reached))[0] <= level

# ---------------------------------------------------------------- a short version of bench/rollout.py

def test_a_worse_challenger_is_returned(bench):
    "30% errors against 4%: within 40 judgements by pairs in 95% of the runs; within 200 verdicts by a split, in half of them"
    results, _ = bench.pair_results(np.random.default_rng(1), 300, 1500, .04, .30)
    times = bench.median(bench.pair_times(results)['returned'])
    assert times['median'] <= 20 and times['q95'] <= 40
    for part in (.5, .1):
        assert bench.median(bench.split_times(np.random.default_rng(3), 300, 2000, .04, .30, part)['returned'])['median'] <= 200

def test_a_better_challenger_is_promoted(bench):
    "8% errors against 15%"
    results, _ = bench.pair_results(np.random.default_rng(2), 200, 4000, .15, .08)
    times = bench.pair_times(results)
    assert (times['promoted'] < bench.never).mean() > .98 and not_above(times['returned'] < bench.never, .01)

@pytest.mark.parametrize('error', [.02, .4])
def test_equal_models_are_seldom_mistaken(bench, error):
    "A look after every judgement, for a long time; a z test does far worse on the same runs"
    results, _ = bench.pair_results(np.random.default_rng(4), 200, 4000, error, error)
    times = [bench.pair_times(results)]
    times += [bench.split_times(np.random.default_rng(5), 400, 1000, error, error, part) for part in (.5, .1)]
    for t in times:
        assert not_above(t['returned'] < bench.never, .01) and not_above(t['promoted'] < bench.never, .05)
        assert (t['z_promoted'] < bench.never).mean() > (t['promoted'] < bench.never).mean()

def test_the_classes_do_what_the_benchmark_measures(bench):
    "The same streams, one judgement after the other"
    rng = np.random.default_rng(6)
    results = np.where(rng.random((20, 150)) < .3, 1., -1.)
    times = bench.pair_times(results)['returned']
    for row, expected in zip(results, times):
        test = PairTest()
        found = next((n for n, r in enumerate(row, 1) if test.update([r]) == 'return'), bench.never)
        assert found == expected
    times = bench.split_times(np.random.default_rng(7), 20, 300, .04, .30, .3)['returned']
    rng = np.random.default_rng(7)
    group = rng.random((20, 300)) < .3
    wrong = rng.random((20, 300)) < np.where(group, .30, .04)
    for g, w, expected in zip(group, wrong, times):
        test = SplitTest()
        found = next((n for n in range(1, 301) if test.update(g[n - 1:n], w[n - 1:n], .3) == 'return'), bench.never)
        assert found == expected

# ---------------------------------------------------------------- what the guarantees rest on

def test_a_fair_bet_stays_fair():
    "The mean factor of each bettor is at most 1 wherever its hypothesis holds, for all shares, weights and differences"
    for share in (.01, .1, .5, .9):
        for difference in (0., .05, -.3, 1., -1.):
            for weight in (1., .1):
                for champion in (0., .02, .3, 1.):
                    for further in (0., .1, 1.):
                        worse, better = champion + difference - further, champion + difference + further
                        for sign, error in ((1, worse), (-1, better)):  # the hypothesis that `sign` bets against
                            if not 0 <= error <= 1: continue
                            gains = np.exp(split_gains(share, weight, sign, difference))
                            rates = np.array([[1 - champion, champion], [1 - error, error]])
                            mean = (np.array([1 - share, share])[:, None, None]*rates[:, :, None]*gains).sum((0, 1))
                            assert (gains > 0).all() and (mean <= 1 + 1e-12).all()

def test_money_that_comes_into_play_later_is_no_new_money():
    "All coins together are 1 at most"
    wealth = Wealth(9)
    for _ in range(5000): wealth.grow(np.zeros(9))
    assert .9999 < wealth.capital <= 1

def test_a_challenger_that_becomes_worse_late_is_returned():
    "500 equal pairs, then the champion wins nine of ten: what has been lost does not matter"
    late = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        test = PairTest()
        test.update(np.where(rng.random(500) < .5, 1, -1))
        late.append(next((n for n in range(1, 300) if test.update([1 if rng.random() < .09 else -1]) == 'return'), 300))
    assert np.median(late) <= 60

def test_night_for_both_models_is_no_reason_to_return():
    "Both errors jump from 2 to 40% and back every 50 verdicts"
    runs, n = 400, 1000
    rng = np.random.default_rng(8)
    error = np.where(np.arange(n)//50 % 2, .4, .02)
    group = (rng.random((runs, n)) < .1).astype(int)
    wrong = (rng.random((runs, n)) < error).astype(int)
    gains = split_gains(.1, 1., 1)
    wealth = Wealth(len(split_sizes))
    returned = np.zeros(runs, bool)
    for k in range(n):
        wealth.grow(gains[group[:, k], wrong[:, k]])
        returned |= wealth.capital >= 100
    assert not_above(returned, .01)

def test_intervals_of_the_difference_hold_at_every_look():
    "In 95% of the runs at all looks together; the last estimate is near the truth"
    held, estimates = [[], []], [[], []]
    for seed in range(80):
        rng = np.random.default_rng(seed)
        wrong = rng.random((2, 3000)) < np.array([[.12], [.07]])
        group = rng.random(3000) < .3
        pair, split = PairTest(), SplitTest()
        fine = [True, True]
        for k in range(0, 3000, 750):
            both = wrong[:, k:k + 750]
            results = both[0]*1. - both[1]
            pair.update(results[results != 0], images=750)
            g = group[k:k + 750]
            split.update(g, np.where(g, both[1], both[0]), .3)
            for i, (found, truth) in enumerate(((pair.difference(), .05), (split.difference(), -.05))):
                fine[i] &= found[1] <= truth <= found[2]
        for i, test in enumerate((pair, split)):
            held[i].append(fine[i])
            estimates[i].append(test.difference()[0])
    assert min(np.mean(h) for h in held) >= .95
    assert abs(np.mean(estimates[0]) - .05) < .005 and abs(np.mean(estimates[1]) + .05) < .005

def test_two_models_are_seldom_called_the_same_at_the_margin():
    "The difference is exactly the margin, to either side; looked at every 250 images"
    for champion, challenger in ((.04, .06), (.06, .04)):
        same = []
        for seed in range(60):
            rng = np.random.default_rng(seed)
            test = PairTest(margin=.02, return_level=1e-9)
            wrong = rng.random((2, 6000)) < np.array([[champion], [challenger]])
            results = wrong[0]*1. - wrong[1]
            seen = False
            for k in range(0, 6000, 250):
                part = results[k:k + 250]
                test.update(part[part != 0], images=250)
                seen |= min(test._beyond(s) for s in (1, -1)) >= math.log(20)
            same.append(seen)
        assert not_above(same, .05)

# ---------------------------------------------------------------- keys

def test_assignment_is_even_sticky_and_takes_any_text():
    keys = [f'{i}' for i in range(20_000)] + ['', '\0', 'ä' * 1000, '\ud800']
    drawn = [assigned(k, .3, 's') for k in keys]
    low, high = wilson(sum(drawn), len(drawn), z=4)
    assert low < .3 < high and drawn == [assigned(k, .3, 's') for k in keys]
    assert all(assigned(k, 1, 's') and not assigned(k, 0, 's') for k in keys)
    assert assigned('a\0b', .5, 'c') in (True, False)

def test_a_visitor_counts_once():
    "Visitors of the dark forest send a hundred images each; judged one by one they would be evidence"
    returned, careless = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        visitors = np.repeat(np.arange(60), 100)
        dark = (rng.random(60) < .1)[visitors]
        new = (rng.random(60) < .5)[visitors]
        wrong = rng.random(6000) < np.where(dark, .9, .02)
        columns = dict(answer=np.arange(6000), time=np.full(6000, 5.), role=np.where(new, 'challenger', ''), right=1. - wrong,
            chosen=np.ones(6000), request=visitors)
        for unit, found in (('request', returned), ('answer', careless)):
            canary = Canary('v', steps=(.5, 1.), review=(1., 1.))
            canary.start(0)
            canary.look(splits_from(columns, unit), 10)
            assert canary.tests[''].judged == (60 if unit == 'request' else 6000)
            found.append(canary.decision == 'return')
    assert not_above(returned, .01) and np.mean(careless) > .1

# ---------------------------------------------------------------- a canary from day to day

def play(errors, seed, places=('gate',), days=30, n=1000, stop=True):
    "A canary with a look each day; `errors` of champion and challenger by place"
    rng = np.random.default_rng(seed)
    canary = Canary(f'salt {seed}', places=places if len(places) > 1 else ())
    canary.start(0)
    parts = []
    for i in range(days):
        ids = np.array([f'{seed}-{i}-{k}' for k in range(n)], object)
        place = rng.choice(np.array(places, object), n)
        new = np.array([canary.uses(a, p) for a, p in zip(ids, place)])
        chosen = np.where(new, *canary.review)
        asked = rng.random(n) < chosen
        error = np.array([errors[p][int(g)] for p, g in zip(place, new)])
        wrong = np.where(asked, rng.random(n) < error, np.nan)
        parts.append(Splits(ids, day*i + np.sort(rng.random(n))*day, place, new, wrong, np.where(asked, chosen, np.nan)))
        both = Splits(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Splits)))
        if rng.random() < .2: canary = read_canary(json.loads(json.dumps(canary.state())))
        canary.look(both, day*(i + 1))
        if stop and canary.share in (0, 1): break
    return canary

def test_a_canary_goes_up_with_a_good_challenger_and_back_with_a_bad_one():
    good = [play({'gate': (.06, .04)}, seed).share for seed in range(15)]
    bad = [play({'gate': (.06, .40)}, seed).share for seed in range(15)]
    assert np.mean(np.array(good) == 1) > .8 and 0 not in good
    assert set(bad) == {0}

def test_a_place_is_returned_for_itself():
    "Better at the gate, worse at the hut: the hut gets the champion back; later answers there say nothing about the challenger"
    errors = {'gate': (.2, .02), 'hut': (.02, .6)}
    alone = 0
    for seed in range(10):
        canary = play(errors, seed, places=('gate', 'hut'))
        back = [c for c in canary.changes if c.place == 'hut']
        alone += bool(back)
        if back:
            assert back[0].share == 0 and not canary.uses('anything', 'hut') and len(back) == 1
            after = back[0].time + 1
            assert canary.share_at(np.array([after, after]), np.array(['hut', 'gate'])).tolist() == [0, canary.share_at(np.array([after]), np.array(['gate']))[0]]
    assert alone >= 3

def test_the_order_of_judging_does_not_matter():
    "A person judges the challenger's answers of a day first; the others come half a day later. Without waiting, equal models would be returned"
    found = {86400.: [], 0.: []}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        n = 600
        new = rng.random(n) < .5
        wrong = np.where(rng.random(n) < .4, 1., 0.)
        time = np.arange(n) + 1.
        for wait, decisions in found.items():
            canary = Canary('order', steps=(.5, 1.), review=(1., 1.), wait=wait, verdicts=10**6)
            canary.start(0)
            for judged in (new, np.ones(n, bool)):
                canary.look(Splits(np.arange(n), time, np.full(n, ''), new, np.where(judged, wrong, np.nan), np.ones(n)), n + 1)
            decisions.append(canary.decision == 'return')
            assert canary.tests[''].judged == n or canary.decision == 'return'
    assert not_above(found[86400.], .01) and np.mean(found[0.]) > .1

def test_a_rule_that_chooses_is_weighed():
    "The challenger doubts more and errs more where it doubts, and as often in all: counts of what was judged say that it is worse"
    decisions, weighed, plain = [], [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        n = 6000
        new = rng.random(n) < .5
        doubtful = rng.random(n) < np.where(new, .3, .1)
        wrong = rng.random(n) < np.where(new, np.where(doubtful, .3, .1/7), np.where(doubtful, .3, .07/.9))  # 10% of both
        q = np.where(doubtful, .5, .1)
        asked = rng.random(n) < q
        canary = Canary('rule', steps=(.5, 1.), review=None, verdicts=10**6, lowest=.1)
        canary.start(0)
        columns = dict(answer=np.arange(n), time=np.arange(n) + 1., role=np.where(new, 'challenger', ''), right=np.where(asked, 1. - wrong, np.nan),
            chosen=np.where(asked, q, np.nan))
        canary.look(splits_from(columns), n)
        decisions.append(canary.decision)
        weighed.append(canary.tests[''].difference()[0])
        plain.append(wrong[asked & new].mean() - wrong[asked & ~new].mean())
    assert not_above([d == 'return' for d in decisions], .01) and not_above([d == 'promote' for d in decisions], .05)
    assert abs(np.mean(weighed)) < 4*np.std(weighed)/math.sqrt(60) and np.mean(plain) > .03

def test_looking_twice_changes_nothing():
    canary = play({'gate': (.06, .06)}, 3, days=4)
    state = copy.deepcopy(canary.state())
    empty = Splits(*(np.zeros(0, t) for t in (str, float, str, bool, float, float)))
    assert canary.look(empty, 1e9) == [] or canary.share in (0, 1)
    assert canary.state()['tests'] == state['tests']

def test_judged_share_is_what_a_review_sees():
    rng = np.random.default_rng(9)
    new = rng.random(200_000) < .05
    seen = rng.random(200_000) < np.where(new, .8, .1)
    low, high = wilson(int((new & seen).sum()), int(seen.sum()), z=4)
    assert low < judged_share(.05, .8, .1) < high

# ---------------------------------------------------------------- logs and states

def test_pairs_of_any_order_and_with_more_models():
    "Rows out of order, a third model, the same pair twice"
    def columns(rows):
        names = ('pair', 'role', 'model', 'label', 'right', 'correct')
        return {n: np.array(v, float if n == 'right' else object) for n, v in zip(names, zip(*rows))}
    nan = math.nan
    rows = [('b', 'shadow', 'm2', 'teddy', nan, ''), ('a', '', 'm1', 'black', 0, 'teddy'), ('b', '', 'm1', 'black', nan, ''),
        ('a', 'shadow', 'm2', 'teddy', nan, ''), ('a', 'shadow', 'm3', 'grizzly', nan, ''), ('', '', 'm1', 'black', 1, '')]
    found = pairs_from(columns(rows))
    assert (found.pair.tolist(), found.unpaired) == (['b'], 3)
    found = pairs_from(columns(rows), models=('m1', 'm2'))
    assert (found.pair.tolist(), found.unpaired) == (['a', 'b'], 0) or found.pair.tolist() == ['b', 'a']
    assert dict(zip(found.pair.tolist(), found.result.tolist()))['a'] == 1
    found = pairs_from(columns(rows), models=('m1', 'm3'))
    assert found.result[found.pair == 'a'].tolist() == [0] and found.unpaired == 1
    assert len(pairs_from(columns(rows[-1:]))) == 0

def test_a_real_log(tmp_path):
    "Answers of two models, verdicts that come later, and a look each day"
    pytest.importorskip('sqlalchemy', reason='sqlalchemy is not installed')
    log = PredictionLog(tmp_path/'log.sqlite')
    rng = np.random.default_rng(10)
    test = PairTest()
    for today in range(6):
        rows, verdicts = [], []
        for i in range(60):
            wrong = rng.random(2) < [.04, .5]
            for role, bad in zip(('', 'shadow'), wrong):
                rows.append(LogRow('teddy' if bad else 'black', .9, role=role, pair=f'{today}-{i}', answer=f'{role or "seen"}{today}-{i}', time=1e9 + today*day + i))
            verdicts.append(Verdict(f'seen{today}-{i}', bool(not wrong[0]), 'black' if wrong[0] else ''))
        log.write(rows)
        test.look(pairs_from(log_columns(log)))
        before = test.judged
        assert test.open == test.disagreeing - before
        for verdict in verdicts: log.write_verdict(verdict)
        test.look(pairs_from(log_columns(log)))
        assert test.judged > before and test.open == 0 and test.images == 60*(today + 1)
    assert test.decision == 'return'

def test_a_test_goes_on_where_it_was():
    rng = np.random.default_rng(12)
    one, two = PairTest(lowest=.1), PairTest(lowest=.1)
    for _ in range(30):
        results = rng.choice([-1., 0., 1.], 5)
        chosen = rng.choice([.1, .5, 1.], 5)
        two = pair_test(json.loads(json.dumps(two.state())))
        assert one.update(results, 9, chosen) == two.update(results, 9, chosen)
    assert one.state() == two.state() and one.difference() == two.difference() and one.outlook() == two.outlook()

@pytest.mark.parametrize('read, good', [(pair_test, PairTest().state()), (split_test, SplitTest().state()), (read_canary, Canary('x').state())])
def test_hostile_states(read, good):
    assert read(good).state() == good
    for name in good:
        for bad in (None, 'x', [], [[1]], -1, {}):
            state = {**good, name: bad}
            try: read(state)
            except (DataError, TypeError) as e: assert str(e)
        with pytest.raises(DataError, match='is not that of'): read({k: v for k, v in good.items() if k != name})

def test_bad_arguments():
    for bad in ([2], [math.nan], ['x']):
        with pytest.raises(ValueError): PairTest().update(bad)
    with pytest.raises(ValueError, match='one per result'): PairTest(lowest=.5).update([1, 1], chosen=[.5])
    with pytest.raises(ValueError, match='`chosen` must lie'): PairTest(lowest=.5).update([1], chosen=[.4])
    with pytest.raises(ValueError, match='one length'): SplitTest().update([True], [True, False], .5)
    with pytest.raises(ValueError, match='`share`'): SplitTest().update([True], [True], 1.5)
    with pytest.raises(ValueError, match='begun'): Canary('x').look(Splits(*(np.zeros(0),)*6), 0)

def test_places_share_the_rates():
    tests = PairTests(['a', 'b', 'c'])
    assert sum(t.return_level for t in tests.values()) == pytest.approx(.01)
    assert sum(t.promote_level for t in tests.values()) == pytest.approx(.05)
    assert [t.place for t in tests.values()] == ['', 'a', 'b', 'c'] and len(pair_bets) == 9
    assert isinstance(tests.look(Pairs(*(np.zeros(0, t) for t in (str, str, bool, float, float)))), dict)

def test_the_import_is_light():
    words = 'import sys, bearcls.rollout.pairs, bearcls.rollout.canary, bearcls.rollout.loops; '
    words += "print([m for m in ('torch', 'fastai', 'pandas', 'sqlalchemy', 'ipywidgets', 'matplotlib', 'scipy') if m in sys.modules])"
    found = subprocess.run([sys.executable, '-c', words], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == '[]'
