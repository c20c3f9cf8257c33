"""How soon a worse model is returned and a better one promoted, and how often equal ones are taken for different

python bench/rollout.py --out rollout.json [--runs 1000]

Two simulated models. With pairs both answer every image, and a person judges where their labels differ; if both are wrong, they give the same label in half of the
cases. With a split each image goes to one model, and a person judges every answer. The tests look after every judgement. Beside them stands what is done without
correction: a z test for the same rate (2.33 for 1%, 1.64 for 5%), looked at after every judgement from the 20th on.

returned_pairs  judgements until a challenger that errs in 30%, against 4%, is returned: median, and 95% of the runs are below `q95`
returned_split  the same for a split in halves, and of one to nine; verdicts on both models together
promoted        judgements, and images, until a challenger that errs in 8%, against 15%, is promoted by pairs; `share`: runs in which it is within 4,000 images
false_return    share of the runs in which one of two equal models is returned, at errors of 2, 10 and 40%: within 20,000 images (pairs), 3,000 verdicts (split)
false_promoted  the same for promoting
unseen          share of 200 simulated logs in which the interval of `unseen_share` holds the true share; `alarms`: share with an alarm where people look at random

Intervals are 95%: of a median by order statistics, of a share by Wilson."""
import math
import numpy as np
from bearcls.intervals import wilson
from bearcls.rollout.canary import split_gains, split_sizes
from bearcls.rollout.loops import unseen_share
from bearcls.rollout.pairs import Wealth, pair_bets, pair_capital
from common import arguments, save

never = 10**9   # in place of a time that did not come
z_return, z_promote, z_first = 2.326, 1.645, 20

def pair_results(rng, runs, images, champion, challenger):
    "Results of the judged disagreements in their order (nan after the last), and the image of each"
    wrong = rng.random((2, runs, images)) < np.array([champion, challenger])[:, None, None]
    differ = (wrong[0] != wrong[1]) | (wrong[0] & (rng.random((runs, images)) < .5))
    most = differ.sum(1).max()
    order = np.argsort(~differ, 1, kind='stable')[:, :most]
    rows = np.arange(runs)[:, None]
    found = np.where(differ[rows, order], wrong[0][rows, order].astype(float) - wrong[1][rows, order], np.nan)
    return found, order + 1

def first(reached):
    "Number of the first step (from 1) at which each run got there"
    return np.where(reached.any(1), reached.argmax(1) + 1, never)

def pair_times(results, level_return=.01, level_promote=.05):
    "Judgements until each run is returned, promoted, and until a z test does the same"
    runs, n = results.shape
    wealth = Wealth(len(pair_bets))
    returned = np.zeros((runs, n), bool)
    for k in range(n):
        counts = np.nan_to_num(results[:, k])  # both wrong: no bet. It takes one coin more than the class, which skips it; so it is a little slower
        wealth.grow(np.log1p(-pair_bets*counts[:, None]))
        returned[:, k] = wealth.capital >= 1/level_return
    wins = np.cumsum(results == 1, 1)
    losses = np.cumsum(results == -1, 1)
    promoted = np.zeros((runs, n), bool)
    for i in range(runs):
        counts = np.stack([wins[i], losses[i]], -1)[:, None]
        promoted[i] = pair_capital(counts, np.ones(1), pair_bets) >= -math.log(level_promote)
    z = (losses - wins)/np.sqrt(np.maximum(1, wins + losses))
    z[:, :z_first - 1] = 0
    return dict(returned=first(returned), promoted=first(promoted), z_returned=first(z >= z_return), z_promoted=first(z <= -z_promote))

def split_times(rng, runs, n, champion, challenger, share, level_return=.01, level_promote=.05):
    "Verdicts until each run is returned, promoted, and until a z test does the same"
    group = (rng.random((runs, n)) < share).astype(int)
    wrong = (rng.random((runs, n)) < np.where(group, challenger, champion)).astype(int)
    worse, better = split_gains(share, 1., 1), split_gains(share, 1., -1)
    wealth = Wealth(len(split_sizes))
    plain = np.full((runs, len(split_sizes)), -math.log(len(split_sizes)))
    returned, promoted = np.zeros((2, runs, n), bool)
    for k in range(n):
        wealth.grow(worse[group[:, k], wrong[:, k]])
        plain = plain + better[group[:, k], wrong[:, k]]
        returned[:, k] = wealth.capital >= 1/level_return
        promoted[:, k] = np.exp(np.minimum(plain, 600)).sum(1) >= 1/level_promote
    m1, m0 = np.cumsum(group, 1), np.cumsum(1 - group, 1)
    k1, k0 = np.cumsum(group*wrong, 1), np.cumsum((1 - group)*wrong, 1)
    pooled = (k1 + k0)/(m1 + m0)
    spread = np.sqrt(pooled*(1 - pooled)*(1/np.maximum(m1, 1) + 1/np.maximum(m0, 1)))
    z = np.where((spread > 0) & (m1 > 0) & (m0 > 0), (k1/np.maximum(m1, 1) - k0/np.maximum(m0, 1))/np.maximum(spread, 1e-9), 0)
    z[:, :z_first - 1] = 0
    return dict(returned=first(returned), promoted=first(promoted), z_returned=first(z >= z_return), z_promoted=first(z <= -z_promote))

def median(times):
    "Median with its interval, and the time within which 95% of the runs are through"
    times = np.sort(times)
    n = len(times)
    half = 1.96*math.sqrt(n)/2
    low, high = times[max(0, math.floor(n/2 - half))], times[min(n - 1, math.ceil(n/2 + half))]
    return dict(median=int(times[n//2]), low=int(low), high=int(high), q95=int(times[math.ceil(.95*n) - 1]))

def share(reached):
    "Share of the runs with its interval"
    low, high = wilson(int(reached.sum()), len(reached))
    return dict(share=float(reached.mean()), low=low, high=high)

def false_rates(runs, errors=(.02, .1, .4)):
    "Equal models"
    rows = {}
    for error in errors:
        pairs = [pair_times(pair_results(np.random.default_rng((int(100*error), i)), 50, 20_000, error, error)[0]) for i in range(runs//50)]
        found = {'pairs': {k: np.concatenate([p[k] for p in pairs]) for k in pairs[0]}}
        for part in (.5, .1): found[f'split {part:.0%}'] = split_times(np.random.default_rng((int(100*error), 9)), runs, 3000, error, error, part)
        for name, times in found.items(): rows[f'{name}, {error:.0%} errors'] = {k: share(t < never) for k, t in times.items()}
    return rows

def unseen(runs=200, n=4000):
    "Coverage of `unseen_share`, and its alarms without a reason"
    held, alarms = [], []
    for seed in range(runs):
        for queue, noted in ((.9, held), (0, alarms)):
            rng = np.random.default_rng((seed, 5))
            truth = rng.choice(np.array(['black', 'grizzly', 'teddy'], object), n, p=(.6, .3, .1))
            label = np.where(rng.random(n) < .9, truth, 'black')
            chosen = np.where(rng.random(n) < .05, .05, np.nan)
            seen = ~np.isnan(chosen) | ((truth == 'teddy') & (rng.random(n) < queue))
            found = unseen_share(dict(label=label, chosen=chosen, correct=np.where(seen, truth, ''), right=np.where(seen, label == truth, np.nan)), 'teddy')
            noted.append(found.low <= (truth == 'teddy').mean() <= found.high if queue else found.alarm)
    return dict(coverage=share(np.array(held)), alarms=share(np.array(alarms)))

def measure(runs):
    "All figures"
    worse, _ = pair_results(np.random.default_rng(1), runs, 1500, .04, .30)
    worse = pair_times(worse)
    better, image = pair_results(np.random.default_rng(2), runs, 4000, .15, .08)
    better = pair_times(better)
    through = better['promoted'] < never
    at = image[np.flatnonzero(through), better['promoted'][through] - 1]
    halves, tenth = (split_times(np.random.default_rng(3), runs, 2000, .04, .30, part) for part in (.5, .1))
    return dict(returned_pairs=median(worse['returned']), returned_split=median(halves['returned']), returned_split_10=median(tenth['returned']),
        promoted=median(better['promoted'][through]) | dict(images=median(at), through=share(through)), promoted_wrongly_returned=share(better['returned'] < better['promoted']),
        rates=false_rates(runs), unseen=unseen())

if __name__ == '__main__':
    parser = arguments(__doc__)
    parser.add_argument('--runs', type=int, default=1000, help='simulated comparisons for each figure, a multiple of 50 (default: %(default)s)')
    args = parser.parse_args()
    result = measure(args.runs)
    print(f'{args.runs} runs{"":24}{"median":>8}{"interval":>14}{"95% within":>12}')
    for name, words in dict(returned_pairs='returned by pairs', returned_split='returned by a split 50:50', returned_split_10='returned by a split 10:90', promoted='promoted by pairs').items():
        m = result[name]
        interval = f'{m["low"]} to {m["high"]}'
        print(f'{words:34}{m["median"]:8}{interval:>14}{m["q95"]:12}')
    def words(s): return f'{s["share"]:.1%} ({s["low"]:.1%} to {s["high"]:.1%})'
    m = result['promoted']
    print(f'promoted in {words(m["through"])} of the runs, after {m["images"]["median"]} images (median), {m["images"]["q95"]} in 95%')
    print(f'\n{"equal models":26}{"returned":>24}{"z test":>9}{"promoted":>24}{"z test":>9}')
    for name, r in result['rates'].items():
        print(f'{name:26}{words(r["returned"]):>24}{r["z_returned"]["share"]:9.1%}{words(r["promoted"]):>24}{r["z_promoted"]["share"]:9.1%}')
    print(f'\nunseen share: {words(result["unseen"]["coverage"])} of the intervals hold, alarms without a reason {words(result["unseen"]["alarms"])}')
    rates = result['rates'].values()
    met = (result['returned_pairs']['q95'] <= 40 and max(result[k]['median'] for k in ('returned_split', 'returned_split_10')) <= 200
        and max(r['returned']['low'] for r in rates) <= .01 and max(r['promoted']['low'] for r in rates) <= .05 and result['unseen']['coverage']['share'] >= .95)
    save(result | dict(runs=args.runs, met=met), args.out, quiet=True)
    print(f'\nasked: returned within 40 judgements (pairs, 95% of runs) and 200 verdicts (split, median), false returns 1%, false promotions 5%: {"met" if met else "NOT MET"}')
