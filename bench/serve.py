"""`bearcls serve` beside FastAPI with fastai's `load_learner`: one model, the same images, the same clients, in turn

python bench/serve.py --out serve.json [--rounds 3] [--minutes 10]

The plain side is what people write: `load_learner` when the module is loaded, an endpoint `def predict(file: UploadFile)` with `learn.predict`, started with `uvicorn app:app`. FastAPI runs such an endpoint in a pool of threads, and nobody
promises that a Learner may be asked by several of them, so wrong answers are counted; `--locked` gives the endpoint a lock.
Each side has one process. That is what both commands start, and both use all cores with it, ours by threads that each take a photo, the other by the threads of torch. A second process would cost the plain side as much memory
again; `--workers` gives both as many as wanted.

The clients are one program for both sides: connections that are kept, each of which sends a form with one of the photographs (at most 512 pixels; drawn ones where BEARCLS_SHARED has none), waits for the answer, and sends the next.
Both servers are up all the time and take turns every two seconds, so what else the machine does hits both alike; who does not have the turn is idle. `requests_per_second_*` and `p95_*` are of that; the ratios are medians of the ratios within a round. Every answer is compared with what the model says when it is asked alone: `wrong_*`, `failed_*`.

--minutes: then ours alone is sent twice the requests that it answered in its best round, at a fixed rate whatever comes back. `overload` tells how many were answered (200), refused (503) or anything else, the seconds of the answers, and how the
memory of all its processes grew from the first minute to the last."""
import asyncio, json, os, random, signal, socket, statistics, subprocess, sys, time, urllib.request
from collections import Counter
from pathlib import Path
from common import arguments, save, working_folder

root = Path(__file__).resolve().parents[1]
shared = Path(os.environ.get('BEARCLS_SHARED', root/'..'/'shared')).resolve()
ours = '''
import sys
from bearcls.serve.service import run_server
if __name__ == '__main__': run_server('bundle', port=int(sys.argv[1]), workers=int(sys.argv[2]))
'''
plain = '''
import io, threading, warnings
warnings.filterwarnings('ignore')
from contextlib import nullcontext
from fastai.vision.all import *
from fastapi import FastAPI, File, UploadFile
learn = load_learner('export.pkl')
learn.no_bar().__enter__()
lock = LOCK
app = FastAPI()
@app.post('/predict')
def predict(file: UploadFile = File(...)):
    image = PILImage.create(io.BytesIO(file.file.read()))
    with lock: label, _, probabilities = learn.predict(image)
    return dict(label=str(label), probabilities=dict(zip(learn.dls.vocab, map(float, probabilities))))
'''

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

class Side:
    "A running server"
    def __init__(self, name, work, workers, locked=False):
        (work/'ours.py').write_text(ours, encoding='utf-8')
        (work/'app.py').write_text(plain.replace('LOCK', 'threading.Lock()' if locked else 'nullcontext()'), encoding='utf-8')
        self.name, self.port = name, free_port()
        command = dict(bearcls=['ours.py', str(self.port), str(workers)], plain=['-m', 'uvicorn', 'app:app', '--port', str(self.port), '--no-access-log', *(['--workers', str(workers)] if workers > 1 else [])])[name]
        env = {**os.environ, 'PYTHONWARNINGS': 'ignore', 'PYTHONPATH': os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))}
        for k in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'): env.pop(k, None)
        self.log = open(work/f'{name}.log', 'w', encoding='utf-8')
        self.process = subprocess.Popen([sys.executable, *command], cwd=work, env=env, stdout=self.log, stderr=subprocess.STDOUT)

    def __enter__(self):
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f'http://127.0.0.1:{self.port}/openapi.json', timeout=2).read()
                return self
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end: sys.exit(f'{self.name} does not start; see its log in the --work folder')
                time.sleep(.1)

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try: self.process.wait(60)
        except subprocess.TimeoutExpired: self.process.kill()
        self.log.close()

    def resident(self):
        "Bytes of memory of all its processes"
        import psutil
        me = psutil.Process(self.process.pid)
        return sum(p.memory_info().rss for p in [me, *me.children(recursive=True)])

def form(content):
    "A request with one file"
    head = b'--bench\r\nContent-Disposition: form-data; name="file"; filename="bear.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    body = head + content + b'\r\n--bench--\r\n'
    return b'POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=bench\r\nContent-Length: %d\r\n\r\n' % len(body) + body

async def one(connection, port, request):
    "Status and answer; the connection is kept, and made again where it was closed"
    if not connection: connection[:] = await asyncio.open_connection('127.0.0.1', port)
    reader, writer = connection
    writer.write(request)
    head = await reader.readuntil(b'\r\n\r\n')
    headers = dict(line.split(b': ', 1) for line in head.lower().split(b'\r\n')[1:] if b': ' in line)
    body = await reader.readexactly(int(headers[b'content-length']))
    if headers.get(b'connection') == b'close':
        writer.close()
        connection.clear()
    return int(head[9:12]), body

def label_of(body):
    "What either side says"
    said = json.loads(body)
    return (said['results'][0] if 'results' in said else said)['label']

async def closed(port, requests, clients, seconds, warm):
    "Every client sends, waits for the answer and sends the next: (index, status, seconds, label) of each after the warming"
    out, start = [], time.monotonic()
    async def client(k):
        connection, order = [], random.Random(k)
        while (now := time.monotonic()) < start + warm + seconds:
            i = order.randrange(len(requests))
            try: status, body = await one(connection, port, requests[i])
            except (OSError, asyncio.IncompleteReadError):
                connection.clear()
                status, body = 0, b''
            if now >= start + warm: out.append((i, status, time.monotonic() - now, label_of(body) if status == 200 else ''))
        if connection: connection[1].close()
    await asyncio.gather(*map(client, range(clients)))
    return out

async def steady(port, requests, rate, seconds, look):
    "`rate` requests a second, whatever comes back; `look` is called every five seconds"
    out, idle, tasks, start = [], [], set(), time.monotonic()
    def free():
        while idle:
            if not (connection := idle.pop())[0].at_eof(): return connection
            connection[1].close()
        return []
    async def send(i):
        connection, begun = free(), time.monotonic()
        kept = bool(connection)
        try: status, body = await asyncio.wait_for(one(connection, port, requests[i]), 60)
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as e:
            if kept and not isinstance(e, asyncio.TimeoutError): return await send(i)  # it was idle for too long and has been closed, as every client finds out now and then
            status, connection = type(e).__name__, []
        out.append((status, time.monotonic() - begun))
        if connection: idle.append(connection)
    n = looked = 0
    while (now := time.monotonic() - start) < seconds:
        if now >= looked*5:
            look(now)
            looked += 1
        while n < rate*now:
            tasks.add(task := asyncio.ensure_future(send(random.randrange(len(requests)))))
            task.add_done_callback(tasks.discard)
            n += 1
        await asyncio.sleep(.005)
    await asyncio.gather(*tasks)
    for connection in idle: connection[1].close()
    return out

def percentile(values, p): return sorted(values)[min(len(values) - 1, int(len(values)*p))] if values else float('nan')

def prepare(work, args):
    "Model and images; `args` may name them"
    import shutil
    if args.bundle and args.learner:
        shutil.copytree(args.bundle, work/'bundle', dirs_exist_ok=True)
        shutil.copy(args.learner, work/'export.pkl')
        path = shared/'data'/'bears' if (shared/'data'/'bears').is_dir() else None
    else:
        sys.path.insert(0, str(Path(__file__).parent))
        from inference import prepare
        path, _ = prepare(work, 1)
    from bearcls.folders import image_files
    if path is None:
        from bearcls.sample.bears import draw_bears
        path = draw_bears(work/'bears', n_per_label=30, seed=1, faults=False)
    return [f.read_bytes() for f in image_files(path) if f.suffix.lower() in ('.jpg', '.jpeg')][:120]

def alone(port, requests):
    "What the model says about each when nobody else asks"
    async def all():
        connection = []
        return [label_of((await one(connection, port, r))[1]) for r in requests]
    return asyncio.run(all())

def measure(work, requests, args):
    "Rounds in which both sides are up, and take turns every other second or so: what else the machine does hits both alike"
    runs = []
    with Side('bearcls', work, args.workers, args.locked) as ours, Side('plain', work, args.workers, args.locked) as theirs:
        known = {side.name: alone(side.port, requests) for side in (ours, theirs)}
        for number in range(args.rounds):
            seen, turns = dict(bearcls=[], plain=[]), max(1, round(args.seconds/2))
            for turn in range(turns):
                for side in (ours, theirs) if (number + turn) % 2 == 0 else (theirs, ours): seen[side.name] += asyncio.run(closed(side.port, requests, args.clients, args.seconds/turns, .4))
            row = dict(round=number)
            for side in (ours, theirs):
                name, out = side.name, seen[side.name]
                good = [o for o in out if o[1] == 200]
                row |= {f'requests_per_second_{name}': len(good)/args.seconds, f'p95_{name}': percentile([o[2] for o in good], .95), f'p50_{name}': percentile([o[2] for o in good], .5),
                    f'failed_{name}': len(out) - len(good), f'wrong_{name}': sum(o[3] != known[name][o[0]] for o in good), f'resident_mb_{name}': side.resident()/1e6}
            print('  '.join(f'{k} {v:.3f}' if isinstance(v, float) else f'{k} {v}' for k, v in row.items()), flush=True)
            runs.append(row)
    return runs, sum(a == b for a, b in zip(known['bearcls'], known['plain']))/len(requests)

def overload(work, requests, args, rate):
    "Twice what it can answer, for some minutes"
    memory = []
    with Side('bearcls', work, args.workers) as side:
        out = asyncio.run(steady(side.port, requests, 2*rate, args.minutes*60, lambda now: memory.append((now, side.resident()))))
        alive = side.process.poll() is None
    minute = max(10, min(60, args.minutes*60/4))
    first, last = ([m for t, m in memory if low <= t <= high] for low, high in ((min(10, minute/2), minute), (args.minutes*60 - minute, 1e9)))
    log = (work/'bearcls.log').read_text(encoding='utf-8')
    good = [s for status, s in out if status == 200]
    return dict(minutes=args.minutes, rate_sent=round(2*rate, 1), sent=len(out), answered=len(good), refused=sum(s == 503 for s, _ in out), other=sum(s not in (200, 503) for s, _ in out), others=dict(Counter(str(s) for s, _ in out if s not in (200, 503))), answered_per_second=round(len(good)/args.minutes/60, 1),
        p50=round(percentile(good, .5), 3), p95=round(percentile(good, .95), 3), p95_refused=round(percentile([s for status, s in out if status == 503], .95), 4), alive=alive, died=log.count('process_died'),
        resident_mb_first=round(statistics.median(first)/1e6, 1), resident_mb_last=round(statistics.median(last)/1e6, 1), growth=round(statistics.median(last)/statistics.median(first) - 1, 4),
        resident_mb=[round(m/1e6, 1) for _, m in memory][::12])

def figures(runs):
    "Medians; of ratios within a round"
    median = lambda f: statistics.median(f(r) for r in runs)
    out = dict(speedup_requests=round(median(lambda r: r['requests_per_second_bearcls']/r['requests_per_second_plain']), 2), p95_ratio=round(median(lambda r: r['p95_bearcls']/r['p95_plain']), 3))
    for side in ('bearcls', 'plain'):
        for name, digits in (('requests_per_second', 1), ('p50', 4), ('p95', 4), ('resident_mb', 1)): out[f'{name}_{side}'] = round(median(lambda r: r[f'{name}_{side}']), digits)
        for name in ('failed', 'wrong'): out[f'{name}_{side}'] = sum(r[f'{name}_{side}'] for r in runs)
    return out

def main():
    parser = arguments(__doc__, keeps='model and images')
    parser.add_argument('--rounds', type=int, default=3, help='measurements of each side, in turn')
    parser.add_argument('--seconds', type=float, default=16, help='of each side in a round')
    parser.add_argument('--clients', type=int, default=8, help='connections that ask at the same time')
    parser.add_argument('--workers', type=int, default=1, help='processes of each side')
    parser.add_argument('--locked', action='store_true', help='a lock around `learn.predict` on the plain side')
    parser.add_argument('--minutes', type=float, default=0, help='of twice the load that ours can answer')
    parser.add_argument('--bundle', type=Path, help='a bundle that is there already (with --learner)')
    parser.add_argument('--learner', type=Path, help='the same model as an exported Learner')
    args = parser.parse_args()
    with working_folder(args.work) as work:
        requests = list(map(form, prepare(work, args)))
        runs, agree = measure(work, requests, args)
        result = {**figures(runs), 'same_label': round(agree, 4), 'clients': args.clients, 'workers': args.workers, 'images': len(requests), 'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}
        if args.minutes: result['overload'] = overload(work, requests, args, max(r['requests_per_second_bearcls'] for r in runs))
    save({**result, 'runs': runs}, args.out)

if __name__ == '__main__': main()
