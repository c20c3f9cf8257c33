"""Seconds per stage and validation error of `bearcls quickstart`, each run in a process of its own

python bench/quickstart.py --out quickstart.json [--seeds 42 1 2] [--arch NAME] [--no-photos]

The drawn set is made anew for every seed. With a folder of real photographs (BEARCLS_SHARED, default ../shared) the same is
measured on them, with the cached weights that lie beside them."""
import json, os, statistics, subprocess, sys, tempfile
from pathlib import Path
from common import arguments, save

root = Path(__file__).resolve().parents[1]
child = '''
import json, sys, time, warnings
warnings.filterwarnings('ignore')
start = time.perf_counter()
from bearcls.quickstart import quickstart
loaded = time.perf_counter() - start
q = quickstart(**json.loads(sys.argv[1]), quiet=True)
print(json.dumps(dict(seconds={'import': loaded, **q.seconds, 'total': time.perf_counter() - start}, error=q.error, difference=q.difference,
    route=q.learn.plan.route, arch=q.learn.plan.arch, epochs=q.learn.plan.epochs, images=len(q.learn.dls.train_ds) + len(q.learn.dls.valid_ds))))
'''

def run(name, torch_home=None, **arguments):
    "One quickstart in a fresh process and a fresh folder"
    env = {**os.environ, 'TQDM_DISABLE': '1', **({'TORCH_HOME': str(torch_home)} if torch_home else {})}
    with tempfile.TemporaryDirectory() as dest:
        done = subprocess.run([sys.executable, '-c', child, json.dumps(dict(dest=dest, **arguments))], env=env, capture_output=True, text=True)
    if done.returncode: sys.exit(f'{name} failed:\n{done.stderr}')
    return dict(name=name, seed=arguments['seed'], **json.loads(done.stdout.splitlines()[-1]))

def figures(runs, prefix=''):
    "Medians over the runs, flat"
    stages = runs[0]['seconds']
    return {**{f'{prefix}seconds_{s}': round(statistics.median(r['seconds'][s] for r in runs), 2) for s in stages},
        f'{prefix}validation_error': round(statistics.mean(r['error']['error'] for r in runs), 4),
        f'{prefix}validation_error_max': round(max(r['error']['error'] for r in runs), 4),
        f'{prefix}largest_difference': max(r['difference'] for r in runs)}

def table(runs):
    "A line for each run"
    stages = list(runs[0]['seconds'])
    print(f'{"run":10}{"seed":>6}{"images":>10}{"error":>9}' + ''.join(f'{s:>10}' for s in stages))
    for r in runs: print(f'{r["name"]:10}{r["seed"]:>6}{r["images"]:>10,}{r["error"]["error"]:>9.1%}' + ''.join(f'{r["seconds"][s]:>9.1f}s' for s in stages), flush=True)

def main():
    parser = arguments(__doc__)
    parser.add_argument('--seeds', type=int, nargs='+', default=[42, 1, 2])
    parser.add_argument('--arch', default='squeezenet1_1', help='architecture for the photographs')
    parser.add_argument('--no-photos', action='store_true', help='measure the drawn set only')
    args = parser.parse_args()
    shared = Path(os.environ.get('BEARCLS_SHARED', root/'..'/'shared'))
    with_photos = not args.no_photos and (shared/'data'/'bears').is_dir()
    if not with_photos and not args.no_photos: print(f'No photographs in {shared}: only the drawn set is measured')
    drawn, photos = [], []
    for seed in args.seeds:
        drawn.append(run('drawn', seed=seed))
        if with_photos: photos.append(run('photos', shared/'torch', seed=seed, data=str(shared/'data'/'bears'), arch=args.arch))
    table(drawn + photos)
    result = {**figures(drawn), **(figures(photos, 'photos_') if photos else {}), 'runs': drawn + photos}
    save(result, args.out, quiet=True)

if __name__ == '__main__': main()
