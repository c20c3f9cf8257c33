"""How soon a drop of accuracy is noticed from a few verdicts, and whether the intervals hold

python bench/accuracy.py --out accuracy.json [--runs 200] [--rows 1000000]

A simulated model errs in 4% of its answers and, after 3,000 answers, in 15%. It doesn't trust 5% of its answers at first, 25% later; half of these are wrong.
Review looks at 5% of the answers of the first kind: drawn at random, or chosen by a `ReviewRule` with its defaults. The promise is 4%, and the run length
10,000 answers. The limit for any detector at random review (log(run length) over the information of a verdict) is 1,943 answers or 97 verdicts.

delay           answers from the drop to the alarm, median of the runs; `delay_mean` the mean, `delay_90` nine of ten runs are below it
verdicts        given in that time, median
reviewed_after  share of answers that are looked at after the drop
false_alarms    per 10,000 answers at exactly 4%, over 20,000 answers in each run; `false_high` is the upper 95% bound
coverage        share of runs in which the 95% sequence holds after every answer of 8,000, the drop in the middle of them
coverage_once   the same for the usual (Wilson) interval of the verdicts, looked at after every verdict from the 20th on
bias            estimated minus true error after 8,000 answers, mean of the runs; `bias_se` its standard error
bias_plain      the same for the plain share of wrong verdicts

Then a History and a DriftMonitor take `--rows` answers of three cameras in a year, made on the fly, in chunks of 50,000:

us_history      microseconds for an answer in the history; `us_drift` in one monitor of drift
memory_mb       most memory of the process, in MB; `memory_first_mb` after the first 250,000 rows, which is what libraries need
state_mb        size of both states as JSON"""
import json, math, resource, time
import numpy as np
from bearcls.intervals import wilson
from bearcls.monitor.accuracy import AccuracyMonitor, ReviewRule, accuracy_from, count_reviews, doubt, fewer_bets, more_bets
from common import arguments, save

promised = .04
limit = 1943  # answers, at random review
before = dict(doubtful=.05, trusted_error=.0158, doubtful_error=.5)   # 4.0% wrong
after = dict(doubtful=.25, trusted_error=.04, doubtful_error=.48)     # 15.0% wrong

def answers(rng, n, doubtful, trusted_error, doubtful_error):
    "Trusted, confidence and wrong for `n` answers"
    trusted = rng.random(n) >= doubtful
    confidence = np.where(trusted, rng.beta(60, 1, n), rng.beta(4, 4, n))
    return trusted, confidence, rng.random(n) < np.where(trusted, trusted_error, doubtful_error)

def reviewed(rng, rule, trusted, confidence, wrong):
    "Columns `chosen` and `right` after a person has looked at what the rule chooses"
    q = rule.probability(trusted, confidence)
    chosen = np.where(rng.random(len(q)) < q, q, np.nan)
    return dict(chosen=chosen, right=np.where(np.isnan(chosen), np.nan, ~wrong))

def usual_rule(even):
    "A rule of 5% for the answers before the drop"
    trusted, confidence, _ = answers(np.random.default_rng(1), 100_000, **before)
    return ReviewRule(.05, doubt(trusted, confidence).mean(), even)

def alarms(monitor, columns, block):
    "Answers after which the monitor raised an alarm"
    for start in range(0, len(columns['chosen']), block):
        part = {k: v[start:start + block] for k, v in columns.items()}
        if monitor.update(count_reviews(part), start, start + block): yield start + block

def delays(rule, runs, run_length=10_000, lead=3000, most=20_000):
    "Answers from the drop to the alarm, and verdicts in that time, for each run"
    found = []
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        monitor = AccuracyMonitor(promised, run_length)
        for _ in alarms(monitor, reviewed(rng, rule, *answers(rng, lead, **before)), 10): pass  # the game goes on after a false one
        columns = reviewed(rng, rule, *answers(rng, most, **after))
        delay = next(alarms(monitor, columns, 10), most)
        found.append((delay, (~np.isnan(columns['chosen'][:delay])).sum()))
    return np.array(found)

def false_alarms(rule, runs, n=20_000):
    "False alarms, and answers"
    count = 0
    for seed in range(runs):
        rng = np.random.default_rng((seed, 1))
        count += sum(1 for _ in alarms(AccuracyMonitor(promised), reviewed(rng, rule, *answers(rng, n, **before)), 20))
    return count, n*runs

def capital_at(errors, weights, bets):
    "`log_capital` after each answer, against the mean error so far"
    n = np.arange(1, len(errors) + 1)
    won = np.cumsum(np.log1p(weights[:, None]*bets), 0) - n[:, None]*np.log1p(bets*errors[:, None])
    top = won.max(1, keepdims=True)
    return top[:, 0] + np.log(np.exp(won - top).mean(1))

def coverage(rule, runs, n=8000):
    "For each run: does the sequence hold at every time, does a usual interval, and the two estimates' errors at the end"
    found = []
    for seed in range(runs):
        rng = np.random.default_rng((seed, 2))
        parts = [answers(rng, n//2, **before), answers(rng, n//2, **after)]
        trusted, confidence, wrong = (np.concatenate(p) for p in zip(*parts))
        columns = reviewed(rng, rule, trusted, confidence, wrong)
        seen = ~np.isnan(columns['chosen'])
        error = np.cumsum(wrong)/np.arange(1, n + 1)
        weights = np.where(seen & wrong, 1/np.where(seen, columns['chosen'], 1), 0)
        lowest = columns['chosen'][seen].min()
        held = max(capital_at(error, weights, more_bets).max(), capital_at(error, weights, lowest*fewer_bets).max()) < math.log(40)
        places = np.flatnonzero(seen)[19:]
        verdicts = np.arange(20, 20 + len(places))
        wrongs = np.cumsum(wrong[seen])[19:]
        usual = all(low <= e <= high for (low, high), e in zip(map(wilson, wrongs.tolist(), verdicts.tolist()), error[places]))
        estimate = 1 - accuracy_from(count_reviews(columns)).accuracy
        found.append((held, usual, estimate - wrong.mean(), wrong[seen].mean() - wrong.mean()))
    return np.array(found, float)

def measure(even, runs):
    "All figures for one way of review"
    rule = usual_rule(even)
    delay, verdicts = delays(rule, runs).T
    longer = delays(rule, runs, 200_000)[:, 0]
    count, n = false_alarms(rule, runs)
    held, usual, bias, plain = coverage(rule, runs).T
    q = rule.probability(*answers(np.random.default_rng(2), 100_000, **after)[:2])
    return dict(delay=np.median(delay), delay_mean=delay.mean(), delay_90=np.quantile(delay, .9), verdicts=np.median(verdicts), delay_run_length_200_000=np.median(longer),
        reviewed_after=q.mean(), false_alarms=1e4*count/n, false_high=1e4*poisson_high(count)/n, coverage=held.mean(), coverage_once=usual.mean(), bias=bias.mean(),
        bias_se=bias.std()/math.sqrt(runs), bias_plain=plain.mean())

def poisson_high(count):
    "Upper 95% bound of the mean of a count"
    from scipy.stats import chi2
    return chi2.ppf(.95, 2*count + 2)/2

def rows_on_the_fly(n, size=50_000):
    "Columns of a log, a chunk at a time"
    rng = np.random.default_rng(7)
    cameras, labels = (np.array(names, object) for names in (['gate', 'pond', 'hut'], ['black', 'grizzly', 'teddy']))
    for first in range(0, n, size):
        k = min(size, n - first)
        chosen = np.where(rng.random(k) < .05, .05, np.nan)
        yield dict(id=first + 1 + np.arange(k), time=1767225600 + (first + np.arange(k))*365*86400/n, place=cameras[rng.integers(3, size=k)], label=labels[rng.integers(3, size=k)],
            trusted=rng.random(k) < .95, probability=rng.random(k), confidence=rng.random(k), ood_score=rng.random(k), brightness=rng.normal(120, 20, k), sharpness=rng.random(k),
            width=np.full(k, 640), height=np.full(k, 480), chosen=chosen, right=np.where(np.isnan(chosen), np.nan, rng.random(k) < .96))

def long_log(n):
    "Time and memory for a log of `n` rows"
    from bearcls.monitor.drift import DriftMonitor
    from bearcls.monitor.history import History
    from bearcls.monitor.reference import Reference
    history, monitor, spent, first = History(), None, np.zeros(2), 0
    def memory(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    for i, columns in enumerate(rows_on_the_fly(n)):
        monitor = monitor or DriftMonitor(Reference.from_columns({k: v[:2000] for k, v in columns.items()}), by_hour=False)
        begun = time.perf_counter()
        history.add(columns)
        history.join(columns['time'][-1])
        between = time.perf_counter()
        monitor.update(columns)
        spent += [between - begun, time.perf_counter() - between]
        if i == 4: first = memory()
    most = memory()
    states = len(json.dumps(history.state())), len(json.dumps(monitor.state()))
    return dict(rows=n, us_history=1e6*spent[0]/n, us_drift=1e6*spent[1]/n, memory_mb=most, memory_first_mb=first, state_mb=sum(states)/1e6, alarms=len(monitor.alarms))

if __name__ == '__main__':
    parser = arguments(__doc__)
    parser.add_argument('--runs', type=int, default=200, help='simulated streams for each figure (default: %(default)s)')
    parser.add_argument('--rows', type=int, default=1_000_000, help='answers of a log that is made on the fly (default: %(default)s)')
    args = parser.parse_args()
    long = long_log(args.rows)  # first, since it measures memory
    result = dict(random=measure(1, args.runs), chosen=measure(.5, args.runs))
    print(f'{args.runs} runs{"":17}{"random review":>16}{"chosen review":>16}')
    for name in result['random']: print(f'{name:26}' + ''.join(f'{result[way][name]:16,.4g}' for way in result))
    met = result['random']['delay'] <= 1.3*limit and result['chosen']['delay'] <= 800 and min(r['coverage'] for r in result.values()) >= .95
    print()
    for name, value in long.items(): print(f'{name:26}{value:16,.4g}')
    save(result | dict(long_log=long, runs=args.runs, limit=limit, met=met), args.out, quiet=True)
    print(f'\nasked: delay at most {1.3*limit:,.0f} at random and 800 chosen, coverage at least 0.95: {"met" if met else "NOT MET"}')
