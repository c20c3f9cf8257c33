"""Every kind of folder that `bearcls deploy` writes: how large it is, what it installs, how soon it answers, and whether it answers as the library does

python bench/deploy.py --out deploy.json [--bundle FOLDER] [--targets fastapi streamlit]

Without a bundle, one that knows three colours stands in. Each folder is started by `check_folder`: a fresh environment, its own command, an image through its own front door (a page in Chromium).

folder_mb     what is pushed
installed_mb  what its requirements install, and install_s how long that took here, with whatever pip has cached
start_s       from the command to the first good answer of its server
page_s        from opening the page in a browser to the answer, the browser's start included"""
import sys, tempfile
from pathlib import Path
from common import arguments, save

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root))

def measure(target, bundle, work):
    "One row of the table"
    from bearcls.deploy.check import check_folder
    from bearcls.deploy.targets import deploy
    dest = deploy(target, bundle, work/target)
    check = check_folder(dest, bundle)
    steps = {s.name: s for s in check.steps}
    words = steps['environment'].words if 'environment' in steps else ''
    seconds = lambda name: round(steps[name].seconds, 1) if name in steps else None
    return dict(target=target, ok=check.ok, folder_mb=round(sum(f.stat().st_size for f in dest.rglob('*') if f.is_file())/1e6, 1),
        installed_mb=int(words.split()[0].replace(',', '')) if 'MB' in words else 0, install_s=seconds('environment'), start_s=seconds('start'), page_s=seconds('page'),
        failed=next((f'{s.name}: {s.words}' for s in check.steps if s.status == 'failed'), ''))

def main():
    parser = arguments(__doc__)
    parser.add_argument('--bundle', type=Path, help='folder of a bundle')
    parser.add_argument('--targets', nargs='+', metavar='TARGET', help='only these')
    args = parser.parse_args()
    from bearcls.inference.bundle import Bundle, write_bundle
    from bearcls.sample.standins import colour_model, furs
    from bearcls.deploy.targets import deploy_targets
    with tempfile.TemporaryDirectory() as tmp:
        work = Path(tmp)
        bundle = args.bundle or write_bundle(Bundle(list(furs), (64, 64)), colour_model(), work/'bundle')
        rows = [measure(t, bundle, work) for t in args.targets or deploy_targets]
    for r in rows: print('  '.join(f'{k} {v}' for k, v in r.items() if v != ''))
    save(dict(all_ok=all(r['ok'] for r in rows), targets=rows), args.out, quiet=True)

if __name__ == '__main__': main()
