"""Downloading images from a web that misbehaves: bearcls beside fastai's `download_images` and `verify_images`, both at their defaults

python bench/download.py --out download.json [--rounds 3] [--images 416] [--hosts 64]

A server in a process of its own serves real photographs (BEARCLS_SHARED, default ../shared; otherwise drawn ones) under as many
loopback addresses as `--hosts` says, since the images of a search lie on many hosts (other systems than Linux: 1). Every answer takes
100 ± 80 ms; 5% are 404, 3% HTML with status 200, 2% stall for 30 seconds, 2% are cut, 3% say 429 with Retry-After at first, 5% are redirects.
Each side runs in a process of its own with its imports done, in turn, against a server that has just started."""
import argparse, json, os, statistics, subprocess, sys, tempfile
from pathlib import Path
from common import arguments, save

root = Path(__file__).resolve().parents[1]
fastai = '''
from fastai.vision.utils import download_images, get_image_files, verify_images
def work(dest, urls):
    download_images(dest, urls=urls)
    verify_images(get_image_files(dest)).map(Path.unlink)
'''
bearcls = '''
from bearcls.gather.download import download_images
def work(dest, urls): download_images(dest, urls, label='bears', allow_private=True)
'''
child = '''
import json, sys, time, warnings
from pathlib import Path
warnings.filterwarnings('ignore')
{side}
if __name__ == '__main__':
    dest, urls = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    start = time.perf_counter()
    work(dest, urls)
    print(time.perf_counter() - start)
'''

def serve(folder, n_images, n_hosts):
    "Serve until standard input closes; prints the addresses"
    from bearcls.folders import image_files
    from bearcls.sample.loopback import LoopbackWeb, fault_of, image_pages, image_path
    files = image_files(folder)[:n_images]
    faults = fault_of(map(image_path, files))
    hosts = [f'127.0.0.{n + 1}' for n in range(n_hosts)]
    with LoopbackWeb(image_pages(files, faults), delay=(0.1, 0.08), hosts=hosts) as web:
        print(json.dumps({f'http://{hosts[i % n_hosts]}:{web.port}{path}': fault for i, (path, fault) in enumerate(faults.items())}), flush=True)
        sys.stdin.read()

def run(side, folder, n_images, n_hosts):
    "One download into a fresh folder: seconds, and what lies there afterwards"
    command = [sys.executable, __file__, '--serve', str(folder), '--images', str(n_images), '--hosts', str(n_hosts)]
    with tempfile.TemporaryDirectory() as tmp, subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        faults, tmp = json.loads(server.stdout.readline()), Path(tmp)
        (tmp/'urls.json').write_text(json.dumps(list(faults)))
        (tmp/'child.py').write_text(child.format(side={'bearcls': bearcls, 'fastai': fastai}[side]))
        done = subprocess.run([sys.executable, tmp/'child.py', tmp/'images', tmp/'urls.json'], env={**os.environ, 'TQDM_DISABLE': '1'}, capture_output=True, text=True)
        server.stdin.close()
        if done.returncode: sys.exit(f'{side} failed:\n{done.stderr}')
        return dict(side=side, seconds=float(done.stdout.splitlines()[-1]), addresses=len(faults), **judge(tmp/'images', folder))

def judge(dest, folder):
    "Files that are images as they were served, and files that are anything else"
    from bearcls.core import sha256
    from bearcls.folders import image_files
    from bearcls.verify.report import verify_images
    served = {sha256(f) for f in image_files(folder)}
    files = [f for f in dest.rglob('*') if f.is_file() and f.name != 'manifest.csv']
    unreadable = set(verify_images(files))
    good = {sha256(f) for f in files if f not in unreadable} & served
    return dict(good=len(good), broken_files=sum(f in unreadable or sha256(f) not in served for f in files), files=len(files))

def drawn(dest):
    "A set to serve where there are no photographs"
    from bearcls.sample.bears import draw_bears
    return draw_bears(dest, n_per_label=139, faults=False)

def main():
    parser = arguments(__doc__)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--images', type=int, default=416)
    parser.add_argument('--hosts', type=int, default=64 if sys.platform == 'linux' else 1)
    parser.add_argument('--serve', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve: return serve(args.serve, args.images, args.hosts)
    if not args.out: parser.error('--out is needed')
    with tempfile.TemporaryDirectory() as tmp:
        photos = Path(os.environ.get('BEARCLS_SHARED', root/'..'/'shared'))/'data'/'bears'
        if not photos.is_dir(): print(f'No photographs in {photos}: drawn images are served')
        folder = photos if photos.is_dir() else drawn(Path(tmp)/'bears')
        runs = []
        print(f'{"round":>5}  {"side":8}{"seconds":>9}{"good":>6}{"broken":>8}')
        for n in range(args.rounds):
            for side in ['bearcls', 'fastai'][::1 if n % 2 else -1]:
                runs.append(dict(round=n, **run(side, folder, args.images, args.hosts)))
                print(f'{n:>5}  {side:8}{runs[-1]["seconds"]:>8.2f}s{runs[-1]["good"]:>6}{runs[-1]["broken_files"]:>8}', flush=True)
    ours, theirs = ([r for r in runs if r['side'] == side] for side in ('bearcls', 'fastai'))
    pairs = [b['seconds']/a['seconds'] for a, b in zip(ours, theirs)]
    result = dict(speedup=round(statistics.median(pairs), 2), speedup_lowest=round(min(pairs), 2), good=min(r['good'] for r in ours), good_fastai=max(r['good'] for r in theirs),
        broken_files=max(r['broken_files'] for r in ours), broken_files_fastai=max(r['broken_files'] for r in theirs),
        seconds=round(statistics.median(r['seconds'] for r in ours), 2), seconds_fastai=round(statistics.median(r['seconds'] for r in theirs), 2), runs=runs)
    save(result, args.out)

if __name__ == '__main__': main()
