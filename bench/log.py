"""The prediction log: rows in groups and singly, on SQLite and Postgres, and what it changes about an answer

python bench/log.py --out log.json [--rows 40000] [--answers 1500] [--photos 60]

`rows_per_second_*`: `PredictionLog.write` with groups of 1,000 rows that are made before; each group is one transaction, and returns when it is safe. The plain side writes the same values with the module sqlite3 and its defaults, as a
script would. `through_writer`: the same rows through `LogWriter.add` and a `flush` at the end. `rows_single_*`: one row, and it is safe, then the next. `power` is the mode that waits for the disk.

`p95_*`: `Classifier.predict` of files of photographs (BEARCLS_SHARED; drawn ones without it) with and without a log, in turn, image by image, the order drawn at random; SqueezeNet from fastai's weights where they are cached, an untrained one of the same size otherwise.
`p95_change` is the change of the 95th percentile, with a 95% interval from 400 bootstrap samples of pairs."""
import contextlib, json, os, random, sqlite3, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np
from common import arguments, save

root = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(root), str(root/'tests')]
from bearcls.monitor.log import LogRow, PredictionLog, row_values
from bearcls.monitor.writer import LogWriter

def rows(n):
    "As a service makes them"
    return [LogRow('grizzly', .94, dict(grizzly=.94, black=.05, teddy=.01), ood_score=.31, confidence=.9, model='3f'*32, place='north gate', request='a1'*16, name=f'IMG_{i:05}.jpg', sha256='5c'*32, seconds=.012, width=640, height=480,
        bytes=81_234, brightness=107.3, light=231, sharpness=.61, colour=34.1, scene=i << 40) for i in range(n)]

def grouped(log, some):
    start = time.perf_counter()
    for i in range(0, len(some), 1000): log.write(some[i:i + 1000])
    return len(some)/(time.perf_counter() - start)

def single(log, some):
    start = time.perf_counter()
    for row in some: log.write([row])
    return len(some)/(time.perf_counter() - start)

def through_writer(file, some):
    with LogWriter(file, max_waiting=len(some)) as writer:
        start = time.perf_counter()
        for row in some: writer.add(row)
        assert writer.flush(120)
        return len(some)/(time.perf_counter() - start)

def plain(file, some, group):
    "sqlite3 with its defaults"
    values = [row_values(r) for r in some]
    names = list(values[0])
    with contextlib.closing(sqlite3.connect(file)) as c:
        c.execute(f'CREATE TABLE answers (id INTEGER PRIMARY KEY, {", ".join(names)})')
        start = time.perf_counter()
        for i in range(0, len(values), group):
            c.executemany(f'INSERT INTO answers ({", ".join(names)}) VALUES ({", ".join("?"*len(names))})', [tuple(v.values()) for v in values[i:i + group]])
            c.commit()
        return len(values)/(time.perf_counter() - start)

@contextlib.contextmanager
def postgres():
    "The URL of a server on a socket; None where Postgres is missing"
    import test_log
    try:
        import psycopg
        server = test_log.binaries and test_log.Postgres(Path(tempfile.mkdtemp(prefix='bearcls_pg_')))
    except (ImportError, OSError, subprocess.CalledProcessError): server = None
    if not server: print('Postgres is not installed, so it is left out', file=sys.stderr)
    try: yield server and server.url
    finally:
        if server: server.stop()

def photos(n, folder):
    "Files of photographs, or of drawn bears"
    shared = os.environ.get('BEARCLS_SHARED')
    found = sorted(f for f in Path(shared, 'data').rglob('*') if f.suffix.lower() in ('.jpg', '.jpeg')) if shared else []
    if len(found) < n:
        from bearcls.folders import image_files
        from bearcls.sample.bears import draw_bears
        print('there are no photographs, so bears are drawn', file=sys.stderr)
        found = sorted(image_files(draw_bears(folder/'bears', n_per_label=n//3 + 1, faults=False)))
    random.Random(0).shuffle(found)
    return found[:n]

def squeezenet(folder):
    "A bundle of SqueezeNet, with ImageNet's weights where they are cached"
    from bearcls.export.convert import export_bundle
    from bearcls.sample.bears import draw_bears
    from bearcls.train.arch import TrainError
    from bearcls.train.learner import train
    shared = Path(os.environ.get('BEARCLS_SHARED', root/'..'/'shared'))
    if (shared/'torch').is_dir(): os.environ['TORCH_HOME'] = str(shared/'torch')
    bears = draw_bears(folder/'train', n_per_label=20, faults=False)
    try: learn = train(bears, 'fine_tune', 'squeezenet1_1', 1, quiet=True)
    except TrainError: learn = train(bears, 'scratch', 'squeezenet1_1', 1, quiet=True)
    return export_bundle(learn, folder/'bundle')

def answers(bundle, files, n, folder, seed=0):
    "Seconds of each answer with and without a log, in pairs"
    from bearcls.inference.classifier import Classifier
    rng = random.Random(seed)
    with LogWriter(folder/'answers.sqlite') as writer:
        sides = dict(without=Classifier(bundle, threads=1), log=Classifier(bundle, threads=1, log=writer))
        seconds = dict(without=[], log=[])
        for k in range(n + 20):
            file = files[k % len(files)]
            for name in rng.sample(list(sides), 2):
                start = time.perf_counter()
                sides[name].predict(file)
                if k >= 20: seconds[name].append(time.perf_counter() - start)
        assert writer.flush() and not writer.status().lost
    return np.array(seconds['without']), np.array(seconds['log'])

def p95_change(without, log, rng):
    k = rng.integers(0, len(log), len(log))
    return np.percentile(log[k], 95)/np.percentile(without[k], 95) - 1

def main():
    parser = arguments(__doc__)
    parser.add_argument('--rows', type=int, default=40_000)
    parser.add_argument('--answers', type=int, default=1500)
    parser.add_argument('--photos', type=int, default=60)
    args = parser.parse_args()
    result = {}
    with tempfile.TemporaryDirectory() as tmp, postgres() as url:
        tmp = Path(tmp)
        some = rows(args.rows)
        few = some[:3000]
        for mode in ('process', 'power'):
            result[f'rows_per_second_{mode}'] = grouped(PredictionLog(tmp/f'{mode}.sqlite', mode), some)
            result[f'rows_single_{mode}'] = single(PredictionLog(tmp/f'{mode}-single.sqlite', mode), few)
        result['rows_per_second'] = result['rows_per_second_process']
        result['rows_single'] = result['rows_single_process']
        result['rows_per_second_through_writer'] = through_writer(tmp/'writer.sqlite', some)
        result['rows_per_second_plain'] = plain(tmp/'plain.sqlite', some, 1000)
        result['rows_single_plain'] = plain(tmp/'plain-single.sqlite', few[:500], 1)
        if url:
            log = PredictionLog(url)
            result['rows_per_second_postgres'] = grouped(log, some[3000:])
            result['rows_single_postgres'] = single(log, few)
        start = time.perf_counter()
        n = sum(len(c['id']) for c in PredictionLog(tmp/'process.sqlite').read(['id', 'time', 'ood_score', 'brightness', 'scene', 'trusted']))
        result['rows_read_per_second'] = n/(time.perf_counter() - start)
        result['bytes_per_row'] = PredictionLog(tmp/'process.sqlite').size()/len(some)
        without, log = answers(squeezenet(tmp), photos(args.photos, tmp), args.answers, tmp)
        rng = np.random.default_rng(0)
        low, high = np.percentile([p95_change(without, log, rng) for _ in range(400)], [2.5, 97.5])
        result |= dict(answers=args.answers, median_ms_without=1000*np.median(without), median_ms_log=1000*np.median(log), p95_ms_without=1000*np.percentile(without, 95), p95_ms_log=1000*np.percentile(log, 95),
            p95_change=np.percentile(log, 95)/np.percentile(without, 95) - 1, p95_change_low=low, p95_change_high=high, median_change=np.median(log)/np.median(without) - 1)
    lines = [(k, f'{v:,.0f}' if v > 100 else f'{v:.3f}') for k, v in result.items()]
    for k, v in lines: print(f'{k:34}{v:>12}')
    save(result, args.out, quiet=True)

if __name__ == '__main__': main()
