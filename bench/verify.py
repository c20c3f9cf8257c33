"""Checking 416 photographs: bearcls's `check_images` beside cleanvision, and beside merely decoding every file once

python bench/verify.py --out verify.json [--cleanvision PYTHON] [--rounds 3] [--full FOLDER]

Two sets are checked: photographs as they lie in BEARCLS_SHARED (default ../shared; otherwise drawn ones), at most 512 pixels a side, and
the same enlarged to sizes as web pages have them. Enlarged files keep their formats, since WebP and PNG cannot be decoded at reduced size.
Sides run in turn, each in a process of its own with its imports done; memory is that of this process, without workers it starts.
cleanvision is no part of bearcls: PYTHON is the interpreter of an environment that has it (`pip install cleanvision`); without one that side is left out."""
import json, os, random, statistics, subprocess, sys, tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from common import arguments, save

root = Path(__file__).resolve().parents[1]
sizes = [(1280, 1199), (5272, 3648), (840, 882), (900, 600), (7487, 4991), (4921, 2780), (4344, 2896), (4000, 4000), (4000, 4000), (847, 913)]  # Ten bears as downloaded
head = '''
import json, os, resource, sys, time, warnings
from pathlib import Path
warnings.filterwarnings('ignore')
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == 'darwin' else 1e3)  # MB
'''
foot = '''
if __name__ == '__main__':
    before, start = peak(), time.perf_counter()
    found = work(*sys.argv[1:])
    print(json.dumps(dict(seconds=time.perf_counter() - start, peak_mb=peak() - before, found=found)))
'''
sides = {
'bearcls': '''
from bearcls.verify.report import check_images
def work(path): return check_images(path).counts
''',
'decode': '''
from concurrent.futures import ThreadPoolExecutor
from PIL import Image
from bearcls.folders import image_files
def decode(file):
    with Image.open(file) as image: image.load()
def work(path):
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool: return {'decoded': len(list(pool.map(decode, image_files(path))))}
''',
'cleanvision': '''
from cleanvision import Imagelab
kinds = 'dark light odd_aspect_ratio odd_size low_information blurry exact_duplicates near_duplicates'.split()
def work(path):
    lab = Imagelab(data_path=path)
    lab.find_issues({kind: {} for kind in kinds}, verbose=False)
    return dict(zip(lab.issue_summary['issue_type'], map(int, lab.issue_summary['num_images'])))
''',
'pairs': '''
import numpy as np
from bearcls.similarity import near_pairs
def work(n):
    rng = np.random.default_rng(0)
    seeds = rng.integers(0, 2**64, int(n)*3//4, dtype=np.uint64)
    flips = np.bitwise_or.reduce(np.uint64(1) << rng.integers(0, 64, (int(n), 6)).astype(np.uint64), axis=1)
    hashes = np.concatenate([seeds, rng.choice(seeds, int(n) - len(seeds))]) ^ flips
    return {'pairs': (len(near_pairs(hashes, hashes)) - int(n))//2}
''',
'copies': '''
import numpy as np
from bearcls.fingerprints import Fingerprint, tiny_side
from bearcls.similarity import near_duplicates
def work(n, kind):
    rng, n = np.random.default_rng(0), int(n)
    whole = rng.integers(0, 2**64, n, dtype=np.uint64)
    if kind == 'one image': whole[:] = whole[0]
    if kind == 'one crowd': whole = whole[0] ^ np.bitwise_or.reduce(np.uint64(1) << rng.integers(0, 64, (n, 5)).astype(np.uint64), axis=1)
    tiny = [rng.integers(0, 256, tiny_side**2*3, dtype=np.uint8).tobytes() for _ in range(1 if kind == 'one image' else n)]
    prints = [Fingerprint(w, w, tiny[k % len(tiny)]) for k, w in enumerate(whole.tolist())]
    return {'copies': sum(1 for _ in near_duplicates(prints))}
'''}

def run(side, *arguments, python=sys.executable):
    "One side in a fresh process: seconds, megabytes beyond the imports, and what it found"
    with tempfile.TemporaryDirectory() as tmp:
        (Path(tmp)/'child.py').write_text(head + sides[side] + foot)
        done = subprocess.run([python, Path(tmp)/'child.py', *map(str, arguments)], env={**os.environ, 'TQDM_DISABLE': '1'}, capture_output=True, text=True)
    if done.returncode: sys.exit(f'{side} failed:\n{done.stderr}')
    return dict(side=side, **json.loads(done.stdout.splitlines()[-1]))

def enlarge(source, dest, seed=0):
    "Every photograph enlarged, never made smaller, to about as many pixels as one of `sizes`; its format stays"
    from PIL import Image
    from bearcls.folders import image_files
    rng, jobs = random.Random(seed), []
    for file in image_files(source):
        w, h = rng.choice(sizes)
        jobs.append((file, dest/file.relative_to(source), w*h))
        jobs[-1][1].parent.mkdir(parents=True, exist_ok=True)
    def make(file, target, n_pixels):
        with Image.open(file) as image:
            image.load()
            scale = max(1, (n_pixels/(image.width*image.height))**.5)
            large = image.resize((round(image.width*scale), round(image.height*scale)), Image.Resampling.BICUBIC)
            large.save(target, image.format, quality=90)
    with ThreadPoolExecutor(os.cpu_count()) as pool: list(pool.map(lambda job: make(*job), jobs))
    return dest

def twice(source, dest):
    "The same files under two names each"
    from bearcls.folders import image_files
    for file in image_files(source):
        for n in range(2):
            target = dest/file.parent.name/f'{n}-{file.name}'
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, target)
    return dest

def measure(name, path, rounds, python):
    "All sides on one set, in turn"
    order, runs = ['bearcls', 'decode', *(['cleanvision'] if python else [])], []
    for n in range(rounds):
        for side in order[::-1 if n % 2 else 1]:
            runs.append(dict(set=name, round=n, **run(side, path, python=python if side == 'cleanvision' else sys.executable)))
            print(f'{name:10}{n:>3}  {side:12}{runs[-1]["seconds"]:>8.2f} s{runs[-1]["peak_mb"]:>8.0f} MB  {runs[-1]["found"]}', flush=True)
    return runs

def figures(runs, prefix=''):
    "Medians over rounds; a ratio is taken within its round"
    of = lambda side: [r for r in sorted(runs, key=lambda r: r['round']) if r['side'] == side]
    ratios = lambda side: [r['seconds']/b['seconds'] for b, r in zip(of('bearcls'), of(side))]
    out = {'seconds': round(statistics.median(r['seconds'] for r in of('bearcls')), 2), 'times_decode': round(1/statistics.median(ratios('decode')), 2),
           'peak_mb': round(max(r['peak_mb'] for r in of('bearcls')))}
    if of('cleanvision'): out |= {'speedup_cleanvision': round(statistics.median(ratios('cleanvision')), 2), 'seconds_cleanvision': round(statistics.median(r['seconds'] for r in of('cleanvision')), 2)}
    return {prefix + k: v for k, v in out.items()}

def main():
    parser = arguments(__doc__)
    parser.add_argument('--cleanvision', metavar='PYTHON', help='interpreter of an environment with cleanvision')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--full', type=Path, help='keep the enlarged set in this folder, and use what lies there')
    args = parser.parse_args()
    why = '' if args.cleanvision else '--cleanvision names no interpreter that has it'
    if args.cleanvision:
        try: subprocess.run([args.cleanvision, '-c', 'import cleanvision'], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError) as e: why = f'{args.cleanvision} has none: {e}'
    if why: print(f'cleanvision is left out: {why}')
    python = None if why else args.cleanvision
    with tempfile.TemporaryDirectory(dir=args.full.parent if args.full else None) as tmp:
        tmp, photos = Path(tmp), Path(os.environ.get('BEARCLS_SHARED', root/'..'/'shared'))/'data'/'bears'
        if not photos.is_dir():
            print(f'No photographs in {photos}: drawn images are checked')
            from bearcls.sample.bears import draw_bears
            photos = draw_bears(tmp/'drawn', n_per_label=139, faults=False)
        full = args.full or tmp/'full'
        if not full.is_dir(): enlarge(photos, full)
        runs = measure('full size', full, args.rounds, python) + measure('512 px', photos, args.rounds, python)
        doubled = run('bearcls', twice(full, tmp/'twice'))
    hashes = run('pairs', 100_000)
    crowds = {kind: run('copies', 100_000, kind) for kind in ('one image', 'one crowd')}
    result = {**figures([r for r in runs if r['set'] == 'full size']), **figures([r for r in runs if r['set'] == '512 px'], 'small_'), 'peak_mb_twice_as_many': round(doubled['peak_mb']),
        'seconds_100k_hashes': round(hashes['seconds'], 2), 'peak_mb_100k_hashes': round(hashes['peak_mb']),
        **{f'{figure}_100k_{kind.replace(" ", "_")}': round(r[figure], 2) for kind, r in crowds.items() for figure in ('seconds', 'peak_mb')},
        'runs': [*runs, doubled, hashes, *({'kind': kind, **r} for kind, r in crowds.items())]}
    save(result, args.out)

if __name__ == '__main__': main()
