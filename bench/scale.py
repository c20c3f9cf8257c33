"""What a Ray cluster costs and brings: equal rows, growth, speed, memory, duplicates among a million hashes, and how good a plan is

python bench/scale.py --out scale.json [--sizes 10000,100000] [--parts equal,growth,workers,duplicates,plan,kills] [--kills 5] [--work FOLDER]

equal       row for row against the local engine: the shared photographs (BEARCLS_SHARED), and drawn images, odd and broken files among them
growth      images a second, threads against Ray, and the memory of the program that waits, at each of `--sizes`; Ray's start is not counted
workers     one process of Ray against two, in turn, three times; the median of the ratios
duplicates  a million random hashes, a tenth of them near to another one: seconds, memory, and the pairs against `near_pairs` on 20,000
plan        the forecast of `measure_work` for the largest size, from 200 of its images, against what it took
kills       processes of Ray killed at random, then the program that waits for them, in prediction and in gathering, `--kills` of each: are the rows the same?

Images are crops of drawn faces, 64 to 200 pixels, in shards of 1,000. Two cores, one machine: it says nothing of a network."""
import os, resource, signal, subprocess, sys, threading, time
from pathlib import Path
from common import arguments, save, working_folder

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root))
shared = Path(os.environ.get('BEARCLS_SHARED', root/'..'/'shared')).resolve()

def make_shards(dest, n, size=1000):
    "Shards of small JPEG images; every image is another crop, so that no two are the same bytes"
    import io, tarfile
    import numpy as np
    from bearcls.sample.standins import draw_face, furs
    random = np.random.default_rng(n)
    faces = [draw_face(260, 260, fur, fur) for fur in furs.values()]
    dest.mkdir(parents=True, exist_ok=True)
    for number in range(-(-n//size)):
        file = dest/f'images-{number:05d}.tar'
        if file.exists(): continue
        with tarfile.open(file.with_suffix('.part'), 'w') as shard:
            for k in range(min(size, n - number*size)):
                x, y, side = random.integers(0, 60), random.integers(0, 60), random.integers(64, 200)
                data = io.BytesIO()
                faces[k % len(faces)].crop((x, y, x + side, y + side)).save(data, 'JPEG', quality=int(random.integers(60, 95)))
                info = tarfile.TarInfo(f'{k:06d}.jpg')
                info.size = len(data.getvalue())
                data.seek(0)
                shard.addfile(info, data)
        file.with_suffix('.part').rename(file)
    return dest

def memory_mb():
    "Memory of this process now, in megabytes"
    return int(Path('/proc/self/statm').read_text().split()[1])*resource.getpagesize()/1e6

def timed(bundle, source, dest, engine, n_workers=2):
    "Seconds that all images take"
    import shutil
    from bearcls.scale.predict import predict_collection
    shutil.rmtree(dest, ignore_errors=True)
    done = predict_collection(bundle, source, dest, engine, n_workers, quiet=True)
    return done.seconds, done.images

def cropped_set(drawn, dest, n):
    "`n` files: parts of drawn images, each image many times, and all odd and broken files"
    import numpy as np
    from PIL import Image
    from bearcls.sample.odd_files import draw_odd_files
    odd = list(draw_odd_files())
    originals = sorted(p for p in drawn.rglob('*.jpg') if p.name not in {o.name for o in odd})
    random = np.random.default_rng(5)
    for k in range(n - len(odd)):
        source = originals[k % len(originals)]
        (dest/source.parent.name).mkdir(parents=True, exist_ok=True)
        try: image = Image.open(source).convert('RGB')
        except OSError: continue  # one of the planted faults
        side = int(random.integers(64, 140))
        x, y = random.integers(0, np.maximum(1, np.array(image.size) - side))
        image.crop((int(x), int(y), int(x) + side, int(y) + side)).save(dest/source.parent.name/f'{k:05}.jpg', quality=90)
    for o in odd: (dest/originals[0].parent.name/o.name).write_bytes(o.data)
    return dest

def equal(work, bundle, n):
    "How many rows of how many are the same"
    from bearcls.inference.classifier import Classifier
    from bearcls.sample.bears import draw_bears
    from bearcls.sample.odd_files import draw_odd_files
    from bearcls.verify.report import check_images
    drawn = draw_bears(work/'drawn', 400, 150, seed=3) if not (work/'drawn').exists() else work/'drawn'
    for odd in draw_odd_files(): (next(p for p in drawn.iterdir() if p.is_dir())/odd.name).write_bytes(odd.data)
    found = {}
    cropped = work/'cropped'
    if n and not cropped.exists(): cropped_set(drawn, cropped, n)
    for name, path in dict(photographs=shared/'data'/'bears', drawn=drawn, cropped=cropped).items():
        if not path.is_dir(): continue
        classifier = Classifier(bundle)
        here = classifier.predict_batch(path, bs=1, quiet=True)
        there = classifier.predict_batch(path, quiet=True, engine='ray')
        a, b = check_images(path), check_images(path, engine='ray')
        found[name] = dict(images=len(here), predictions=sum(x == y for x, y in zip(here, there, strict=True)),
            measures=sum(x == y for x, y in zip(a.measures, b.measures, strict=True)), findings=a.rows == b.rows)
    return found

def duplicates(n=1_000_000):
    "A million hashes"
    import numpy as np
    from bearcls.scale.duplicates import hash_pairs
    from bearcls.similarity import near_pairs
    random = np.random.default_rng(1)
    hashes = random.integers(0, 2**64, n, np.uint64)
    half = n//2
    near = random.choice(half, n//10, replace=False)
    hashes[half + near] = hashes[near] ^ (np.uint64(1) << random.integers(0, 64, len(near)).astype(np.uint64))
    some = np.unique(np.concatenate([hashes[:10_000], hashes[half:half + 10_000]]))
    here = near_pairs(some, some, 4)
    here = here[here[:, 0] < here[:, 1]]
    found = dict(hashes=n, same_on_sample=bool(np.array_equal(hash_pairs(some, 4, quiet=True), here[np.lexsort(here.T[::-1])])))
    for engine in (None, 'ray'):
        before, begin = memory_mb(), time.perf_counter()
        pairs = hash_pairs(hashes, 4, engine, 2, quiet=True)
        found[engine or 'threads'] = dict(seconds=time.perf_counter() - begin, pairs=len(pairs), more_mb=memory_mb() - before)
    return found

predicting = """
import sys
from bearcls.scale.predict import predict_collection
predict_collection(*sys.argv[1:4], 'ray', 2, quiet=True)
"""
gathering = """
import sys
from pathlib import Path
from bearcls.gather.gathering import download_collection
download_collection(sys.argv[1], Path(sys.argv[2]).read_text().split(), 'brown', 'ray', 2, allow_private=True, per_host=2)
"""

def killed_workers(work, n, between):
    "Call `work` again until `n` processes of Ray were killed while it ran; how many were"
    import numpy as np
    random, stop, kills = np.random.default_rng(n), threading.Event(), []
    def kill():
        while not stop.wait(float(random.uniform(*between))):
            found = subprocess.run(['pgrep', '-f', 'ray::.*MapWorker'], capture_output=True, text=True).stdout.split()
            if found and len(kills) < n:
                os.kill(victim := int(random.choice(found)), signal.SIGKILL)
                kills.append(victim)
    thread = threading.Thread(target=kill)
    thread.start()
    try:
        while len(kills) < n: work()
    finally:
        stop.set()
        thread.join()
    return len(kills)

def killed_drivers(script, arguments, n, longest):
    "Start a program and kill it at a random moment, `n` times; then let it finish"
    import numpy as np
    random, kills = np.random.default_rng(n), 0
    def start(): return subprocess.Popen([sys.executable, '-c', script, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(n):
        run = start()
        time.sleep(float(random.uniform(5, longest)))
        kills += run.poll() is None
        run.kill()
        run.wait()
    if status := start().wait(): raise SystemExit(f'After {n} kills, the last run ended with status {status}')
    return kills

def random_kills(work, bundle, shards, n):
    "Kills, and whether the rows are those of a run without"
    import shutil
    from bearcls.gather.gathering import download_collection
    from bearcls.sample.loopback import LoopbackWeb
    from bearcls.sample.standins import draw_face, furs
    from bearcls.scale.predict import predict_collection, read_predictions
    import io
    found = {}
    def fresh(name):
        shutil.rmtree(work/name, ignore_errors=True)
        return work/name
    predict_collection(bundle, shards, fresh('whole'), quiet=True)
    expected = list(read_predictions(work/'whole'))
    def rows_of(name): return list(read_predictions(work/name)) == expected
    def again(): predict_collection(bundle, shards, fresh('out'), 'ray', 2, quiet=True)
    found['prediction, processes'] = dict(kills=killed_workers(again, n, (4, 9)), images=len(expected), same=rows_of('out'))
    found['prediction, program'] = dict(kills=killed_drivers(predicting, (bundle, shards, fresh('out')), n, 25), images=len(expected), same=rows_of('out'))
    def png(k):
        file = io.BytesIO()
        draw_face(60 + k % 90, 60 + k//90, furs['brown'], furs['brown']).save(file, 'png')
        return file.getvalue()
    hosts = [f'127.0.0.{k}' for k in range(1, 33)]
    with LoopbackWeb({f'/{k}.png': png(k) for k in range(900)}, delay=(.5, .2), hosts=hosts) as web:
        addresses = [f'http://{hosts[k % 32]}:{web.port}/{k}.png' for k in range(910)]  # ten are missing
        (work/'addresses.txt').write_text('\n'.join(addresses))
        def content(folder): return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob('*') if f.is_file()}
        def collect(name, engine=None): return download_collection(fresh(name), addresses, 'brown', engine, 2, allow_private=True, per_host=2)
        collect('gathered')
        expected = content(work/'gathered')
        def same(name): return content(work/name) == expected
        found['gathering, processes'] = dict(kills=killed_workers(lambda: collect('out', 'ray'), n, (2, 5)), addresses=len(addresses), same=same('out'))
        found['gathering, program'] = dict(kills=killed_drivers(gathering, (fresh('out'), work/'addresses.txt'), n, 25), addresses=len(addresses), same=same('out'))
    return found

def main():
    parser = arguments(__doc__, keeps='drawn images')
    parser.add_argument('--sizes', default='10000,100000')
    parser.add_argument('--parts', default='equal,growth,workers,duplicates,plan,kills')
    parser.add_argument('--equal', type=int, default=20_000, help='files of the cropped set, on which rows are compared; 0: none')
    parser.add_argument('--kills', type=int, default=5, help='of processes and of programs, in prediction and in gathering')
    args = parser.parse_args()
    import numpy as np
    from bearcls.engines import start_engine
    from bearcls.inference.bundle import Bundle, write_bundle
    from bearcls.sample.standins import colour_model, furs
    from bearcls.scale.plan import measure_work, plan_work
    sizes = [int(n) for n in args.sizes.split(',')]
    parts = args.parts.split(',')
    result = {}
    with working_folder(args.work) as work:
        bundle = write_bundle(Bundle(list(furs), (64, 64)), colour_model(), work/'furs')
        begin = time.perf_counter()
        start_engine()
        result['ray_start_s'] = time.perf_counter() - begin
        if 'equal' in parts: result['equal'] = equal(work, bundle, args.equal)
        if {'growth', 'workers', 'plan', 'kills'} & set(parts): shards = {n: make_shards(work/f'shards-{n}', n) for n in sizes}
        if {'growth', 'workers'} & set(parts): timed(bundle, shards[sizes[0]], work/'out', 'ray')  # processes load their libraries
        if 'growth' in parts:
            rows = []
            for n in sizes:
                there, _ = timed(bundle, shards[n], work/'out', 'ray')
                mb = memory_mb()
                here, _ = timed(bundle, shards[n], work/'out', None)
                rows.append(dict(images=n, threads_s=here, ray_s=there, overhead=there/here - 1, ms_per_image=1000*there/n, driver_mb=mb))
            result['growth'] = rows
            result['growth_ratio'] = rows[-1]['ms_per_image']/rows[0]['ms_per_image']
        if 'workers' in parts:
            source = shards[sizes[0]]
            pairs = [(timed(bundle, source, work/'out', 'ray', 1)[0], timed(bundle, source, work/'out', 'ray', 2)[0]) for _ in range(3)]
            result['workers'] = pairs
            result['speedup_2'] = float(np.median([one/two for one, two in pairs]))
        if 'plan' in parts:
            source = shards[sizes[-1]]
            forecast = plan_work(measure_work(bundle, source), sizes[-1]).hours*3600
            took, _ = timed(bundle, source, work/'out', None)
            result['plan'] = dict(images=sizes[-1], forecast_s=forecast, took_s=took, off=forecast/took - 1)
        if 'duplicates' in parts: result['duplicates'] = duplicates()
        if 'kills' in parts: result['kills'] = random_kills(work, bundle, shards[sizes[0]], args.kills)
    save(result, args.out, ())

if __name__ == '__main__': main()
