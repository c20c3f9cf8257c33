"""Feedback loops: many runs against exact distributions, and intervals against the truth"""
import math
import numpy as np
import pytest

from bearcls.core import DataError
from bearcls.intervals import wilson
from bearcls.rollout.loops import (loop_equilibrium, loop_png, loop_widget, polya_moments, simulate_loop, true_labels, unseen_share,
    unseen_shares)
from front_ends import voila_page, write_notebook

labels = np.array(['black', 'grizzly', 'teddy'], object)

def reviewed(seed, n=4000, queue=.9, p=(.6, .3, .1), told=1.):
    "Answers that are right in 90%; teddies are checked with probability `queue`; people say the right label with probability `told`"
    rng = np.random.default_rng((seed, 7))
    truth = rng.choice(labels, n, p=p)
    label = np.where(rng.random(n) < .9, truth, rng.choice(labels, n))
    chosen = np.where(rng.random(n) < .1, .1, np.nan)
    seen = ~np.isnan(chosen) | ((truth == 'teddy') & (rng.random(n) < queue))
    right = np.where(seen, label == truth, np.nan)
    correct = np.where(seen & (label != truth) & (rng.random(n) < told), truth, '')
    return dict(label=label, chosen=chosen, correct=correct, right=right), truth

# ---------------------------------------------------------------- theory

@pytest.mark.parametrize('start, step', [((1, 1), 1), ((4, 2), 2), ((6, 3), 1), ((.5, .5), 1)])
def test_without_exploration_it_is_an_urn(start, step):
    "Kolmogorov's distance to the exact distribution after 400 days and to its limit, and exact moments"
    stats = pytest.importorskip('scipy.stats')
    runs, days = 4000, 400
    shares = simulate_loop([1., 1.], days, start=start, step=step, runs=runs).shares[:, -1, 0]
    a, b = start[0]/step, start[1]/step
    draws = np.round((shares*(a + b + days) - a)).astype(int)
    assert np.abs(draws - (shares*(a + b + days) - a)).max() < 1e-6
    exact = stats.betabinom(days, a, b)
    grid = np.arange(days + 1)
    found = np.searchsorted(np.sort(draws), grid, 'right')/runs
    assert np.abs(found - exact.cdf(grid)).max() < 1.63/math.sqrt(runs)
    assert stats.kstest(shares, stats.beta(a, b).cdf).statistic < 1.63/math.sqrt(runs) + .02
    mean, spread = polya_moments(start, step, days)
    assert mean == pytest.approx((a + exact.mean())/(a + b + days)) and spread == pytest.approx(exact.std()/(a + b + days))
    assert polya_moments(start, step) == pytest.approx((stats.beta(a, b).mean(), stats.beta(a, b).std()))
    assert abs(shares.mean() - mean) < 4*spread/math.sqrt(runs)

def test_the_mean_never_moves():
    "At all moments, within four standard errors"
    loop = simulate_loop([1., 1.], 1000, start=(3, 1), runs=4000)
    assert (np.abs(loop.shares[:, :, 0].mean(0) - .75) < 4*loop.shares[:, :, 0].std(0)/math.sqrt(4000) + 1e-12).all()

def test_a_small_lead_takes_everything():
    "The share of the better place grows without end, however long one waits"
    ends = simulate_loop([.5, .25], 20_000, runs=60).shares[:, :, 0].mean(0)
    assert ends[-1] > .97 and ends[-1] > ends[len(ends)//2] > ends[len(ends)//4]

@pytest.mark.parametrize('rates, exploration', [([.6, .3], .5), ([.5, .4], .8), ([.6, .3, .3], .6)])
def test_it_settles_where_theory_says(rates, exploration):
    loop = simulate_loop(rates, 20_000, exploration, runs=60)
    assert np.abs(loop.shares[:, -1].mean(0) - loop_equilibrium(rates, exploration)).max() < .02

@pytest.mark.parametrize('exploration', [.1, .3, 1.])
def test_weights_take_the_loop_out(exploration):
    loop = simulate_loop([.3, .2], 5000, exploration, weighed=True, runs=200)
    ends = loop.shares[:, -1, 0]
    assert abs(ends.mean() - .6) < .01 + 4*ends.std()/math.sqrt(200)
    plain = simulate_loop([.3, .2], 5000, exploration, runs=200).shares[:, -1, 0]
    assert exploration == 1 or plain.mean() > .65

def test_shares_are_shares():
    loop = simulate_loop([.1, .5, .9], 300, .1, runs=20)
    assert loop.shares.shape == (20, len(loop.days), 3) and np.allclose(loop.shares.sum(2), 1) and loop.days[[0, -1]].tolist() == [0, 300]
    assert (simulate_loop([.1, .5, .9], 300, .1, runs=20).shares == loop.shares).all()
    assert loop_png(loop)[:8] == b'\x89PNG\r\n\x1a\n'

# ---------------------------------------------------------------- the log

def test_the_interval_holds_the_truth():
    "In 95% of 200 logs at least, although nine of ten checked images come from the queue"
    held, alarms = [], []
    for seed in range(200):
        columns, truth = reviewed(seed)
        found = unseen_share(columns, 'teddy')
        held.append(found.low <= (truth == 'teddy').mean() <= found.high)
        alarms.append(found.alarm)
    assert np.mean(held) >= .95 and np.mean(alarms) >= .95

def test_looking_at_random_raises_no_alarm():
    alarms = []
    for seed in range(200):
        columns, _ = reviewed(seed, queue=0)
        alarms.append(any(s.alarm for s in unseen_shares(columns)))
    assert wilson(sum(alarms), len(alarms))[0] <= .05

def test_the_estimate_has_no_bias():
    found = [unseen_share(reviewed(seed)[0], 'teddy').share for seed in range(200)]
    assert abs(np.mean(found) - .1) < 4*np.std(found)/math.sqrt(200)

def test_verdicts_without_the_right_label():
    "`wrong` alone says that it is not this label, and nothing about the others"
    columns = dict(label=np.array(['black', 'black', 'teddy'], object), right=np.array([0., 1., 0.]),
        correct=np.array(['', '', 'grizzly'], object), chosen=np.ones(3))
    assert true_labels(columns).tolist() == ['', 'black', 'grizzly']
    assert unseen_share(columns, 'black').images == 2
    assert unseen_share(columns, 'black').share == pytest.approx(1/3)
    assert unseen_share(columns, 'teddy').share == 0
    assert [s.label for s in unseen_shares(columns)] == ['black', 'grizzly']

def test_missing_labels_at_their_worst():
    "Half of the wrong answers come without the right label; teddies are often called black"
    held = {'chance': [], 'worst': []}
    for seed in range(60):
        columns, truth = reviewed(seed, queue=0, told=.5)
        for missing, found in held.items():
            share = unseen_share(columns, 'teddy', missing=missing)
            found.append(share.low <= (truth == 'teddy').mean() <= share.high)
    assert np.mean(held['worst']) >= .95 and np.mean(held['worst']) >= np.mean(held['chance'])

def test_odd_columns():
    with pytest.raises(DataError, match='no chosen'): unseen_share(dict(label=['a'], right=[1.], correct=['']), 'a')
    with pytest.raises(DataError, match='no label, right, correct'): unseen_share({}, 'a')
    with pytest.raises(ValueError, match='`level`'): unseen_share(reviewed(0)[0], 'a', 1.)
    for bad in ([.5], [.5, 0], [.5, 1.5]):
        with pytest.raises(ValueError, match='`rates`'): simulate_loop(bad)

def test_the_widget_draws_again():
    pytest.importorskip('ipywidgets')
    box = loop_widget()
    drawing, numbers = box.children[5:7]
    seen = {drawing.value}
    for i, value in enumerate((.5, .9, .1, 20.)):
        box.children[i].value = value
        seen.add(drawing.value)
    box.children[4].value = True
    seen.add(drawing.value)
    assert len(seen) == 6 and '50%' in numbers.value

def test_the_widget_in_a_browser(browser, tmp_path):
    "In Voilà: a slider, by keyboard and by its number, and the switch change drawing and table"
    write_notebook(tmp_path, 'loop', 'from bearcls.rollout.loops import loop_widget\nloop_widget()')
    with voila_page(tmp_path, 'loop') as url:
        page = browser.new_page(viewport=dict(width=800, height=900))
        page.goto(url, timeout=120_000)
        drawing, table = page.locator('img.widget-image'), page.locator('.widget-html table')
        table.wait_for(timeout=120_000)
        seen = [drawing.get_attribute('src')]
        def changed(words):
            page.wait_for_function('([old, words]) => document.querySelector("img.widget-image").src !== old'
                ' && document.querySelector(".widget-html table").innerText.includes(words)', arg=[seen[-1], words], timeout=60_000)
            seen.append(drawing.get_attribute('src'))
        number = page.locator('.widget-readout').first
        number.fill('0.5')
        number.press('Enter')
        changed('50%')
        handle = page.locator('.noUi-handle').first
        handle.focus()
        handle.press('Home')
        changed('0%')
        page.get_by_role('checkbox').check()
        changed('yes')
        page.screenshot(path=tmp_path/'loop.png')
        page.close()
    assert len(set(seen)) == 4
