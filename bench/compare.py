"""What fastai, bearcls and cleanvision make of the same files: odd files, copies of photographs, and a split

python bench/compare.py --out compare.json [--cleanvision PYTHON] [--originals 120]

odd     files of `draw_odd_files`, each sound or broken. bearcls draws them and its own tests open every one, so it cannot fail here; the figures say what you meet elsewhere.
        fastai: `verify_images`, then `PILImage.create` of what it keeps; bearcls: `check_images`, then `load_image`; cleanvision: `Imagelab` over the folder, then over one file at a time.
        `right` opens a sound file and shows its pixels within its tolerance, `other` shows others, `other_transparent` of these where the file is partly transparent: bearcls puts it on white, fastai
        drops its transparency, and you may want either. `refused` and `kept` say how many sound files are refused and how many broken ones are kept, `broken_opened` how many of those open.
copies  photographs as they lie in BEARCLS_SHARED (default ../shared; otherwise drawn ones), each with one copy, made in one of six ways: bytes, saved again at quality 60, half as wide and high,
        a twenty-fifth cut off each edge, a third brighter, mirrored. `found` counts the copies that stand beside their original; `others` are pairs of files that were not made from each other.
split   how many of these copies lie on the other side than their original, by kind, and `apart` in all: fastai's `RandomSplitter`, and bearcls's split, both with seed 42 and a fifth held back.

cleanvision is no part of bearcls: PYTHON is the interpreter of an environment that has it; without one that side is left out."""
import json, os, subprocess, sys, tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from common import arguments, save

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root))
other = '''
import contextlib, json, sys
from importlib.metadata import version
from cleanvision import Imagelab

def look(**where):
    "The issues of some files, or what was raised"
    with contextlib.redirect_stdout(sys.stderr):
        lab = Imagelab(**where)
        lab.find_issues({'exact_duplicates': {}, 'near_duplicates': {}} if 'copies' in str(where) else None, n_jobs=1, verbose=False)
    return lab

def tried(**where):
    try: look(**where)
    except Exception as e: return type(e).__name__
    return ''

odd, copies = sys.argv[1:]
lab = look(data_path=copies)
sets = [s for kind in ('exact_duplicates', 'near_duplicates') for s in lab.info[kind]['sets']]
listed = list(Imagelab(data_path=odd).issues.index.map(str))
print(json.dumps(dict(version=version('cleanvision'), whole=tried(data_path=odd), single={f: tried(filepaths=[f]) for f in listed}, sets=[[str(f) for f in s] for s in sets])))
'''

def draw_odd(folder):
    "The odd files in a folder of one label"
    from bearcls.sample.odd_files import draw_odd_files
    files = draw_odd_files()
    folder.mkdir(parents=True)
    for file in files: (folder/file.name).write_bytes(file.data)
    return {folder/file.name: file for file in files}

def make_copies(source, dest, n):
    "Some photographs under new names, each with a copy beside it: the kind of each copy"
    from PIL import Image, ImageEnhance, ImageOps
    from bearcls.folders import image_files
    cut = lambda image: image.crop((image.width//25, image.height//25, image.width - image.width//25, image.height - image.height//25))
    ways = {'bytes': None, 'saved again': lambda image: image, 'smaller': lambda image: image.resize((image.width//2, image.height//2)),
        'trimmed': cut, 'brighter': lambda image: ImageEnhance.Brightness(image).enhance(4/3), 'mirrored': ImageOps.mirror}
    files, kinds = image_files(source), {}
    for k, file in enumerate(files[i*len(files)//n] for i in range(n)):
        folder, kind = dest/file.parent.name, list(ways)[k % len(ways)]
        folder.mkdir(parents=True, exist_ok=True)
        original, copy = folder/f'{k:03}-a.jpg', folder/f'{k:03}-b.jpg'
        image = ImageOps.exif_transpose(Image.open(file)).convert('RGB')
        image.save(original, quality=90)
        if kind == 'bytes': copy.write_bytes(original.read_bytes())
        else: ways[kind](image).save(copy, quality=60 if kind == 'saved again' else 90)
        kinds[f'{k:03}'] = kind
    return kinds

def judge(odd, keeps, opens):
    "Files kept, and how those that are kept open, counted against what each file is"
    import numpy as np
    counts = Counter()
    for path, file in odd.items():
        if not keeps(path): counts['refused' if not file.reason else 'broken_refused'] += 1
        else:
            if file.reason: counts['kept'] += 1
            try: seen = np.asarray(opens(path)).astype(int)
            except Exception: outcome = 'raised'
            else: outcome = 'broken_opened' if file.reason else 'right' if seen.shape == file.pixels.shape and np.abs(seen - file.pixels).max() <= file.within else 'other'
            counts[outcome] += 1
            if outcome == 'other' and ('transparen' in file.what or 'alpha' in file.what): counts['other_transparent'] += 1
    return dict(counts)

def named(pairs, kinds):
    "Copies found beside their originals, by kind, and the number of other pairs"
    pairs = {tuple(sorted(Path(f).stem for f in pair)) for pair in pairs}
    own = Counter(kinds[a[:3]] for a, b in pairs if a[:3] == b[:3])
    return dict(found={kind: own[kind] for kind in dict.fromkeys(kinds.values())}, others=len({p for p in pairs if p[0][:3] != p[1][:3]}))

def main():
    parser = arguments(__doc__)
    parser.add_argument('--cleanvision', metavar='PYTHON', help='interpreter of an environment with cleanvision')
    parser.add_argument('--originals', type=int, default=120, help='photographs of which a copy is made')
    args = parser.parse_args()
    os.environ['TQDM_DISABLE'] = '1'
    import warnings
    warnings.filterwarnings('ignore')
    from fastai.data.transforms import RandomSplitter
    from fastai.vision.core import PILImage
    from fastai.vision.utils import verify_images
    from bearcls.data.cache import survey
    from bearcls.data.split import split_images
    from bearcls.folders import image_files
    from bearcls.images import load_image
    from bearcls.verify.report import broken_issues, check_images
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        os.environ['BEARCLS_CACHE'] = str(tmp/'cache')
        photos = Path(os.environ.get('BEARCLS_SHARED', root/'..'/'shared'))/'data'/'bears'
        is_drawn = not photos.is_dir()
        if is_drawn:
            from bearcls.sample.bears import draw_bears
            photos = draw_bears(tmp/'drawn', n_per_label=139, faults=False)
        odd, kinds = draw_odd(tmp/'odd'/'files'), make_copies(photos, tmp/'copies', args.originals)
        bad = set(verify_images(list(odd)))
        broken = {tmp/'odd'/f for f in check_images(tmp/'odd').files(*broken_issues)}
        sides = {'fastai': dict(odd=judge(odd, lambda f: f not in bad, PILImage.create)), 'bearcls': dict(odd=judge(odd, lambda f: f not in broken, load_image))}
        report = check_images(tmp/'copies')
        sides['bearcls']['copies'] = named([(f.file, f.of) for f in report.rows if f.of], kinds)
        files = image_files(tmp/'copies')
        held = {files[i] for i in RandomSplitter(valid_pct=.2, seed=42)(files)[1]}
        split = split_images(survey(files), seed=42)
        for side, valid in (('fastai', held), ('bearcls', set(map(Path, split.valid)))):
            where = {f.stem: f in valid for f in files}
            assert 0 < sum(where.values()) < len(files)
            apart = Counter(kind for k, kind in kinds.items() if where[f'{k}-a'] != where[f'{k}-b'])
            sides[side]['split'] = {kind: apart[kind] for kind in dict.fromkeys(kinds.values())}
            sides[side]['apart'] = apart.total()
        if args.cleanvision:
            done = subprocess.run([args.cleanvision, '-c', other, str(tmp/'odd'), str(tmp/'copies')], capture_output=True, text=True)
            if done.returncode: sys.exit(f'cleanvision failed:\n{done.stderr}')
            told = json.loads(done.stdout.splitlines()[-1])
            failed = {Path(f).name for f, raised in told['single'].items() if raised}
            seen = {Path(f).name for f in told['single']} - failed
            of = {f.name: f for f in odd.values()}
            sides['cleanvision'] = dict(version=told['version'], odd=dict(whole=told['whole'] or 'goes through', not_listed=len(odd) - len(told['single']), sound=sum(not of[n].reason for n in seen),
                sound_raised=sum(not of[n].reason for n in failed), broken=sum(bool(of[n].reason) for n in seen), broken_raised=sum(bool(of[n].reason) for n in failed)),
                copies=named([pair for s in told['sets'] for pair in ((s[i], s[j]) for i in range(len(s)) for j in range(i))], kinds))
        else: print('cleanvision is left out: --cleanvision names no interpreter that has it')
    sound = sum(not f.reason for f in odd.values())
    save(dict(fastai=version('fastai'), pillow=version('pillow'), photographs='drawn' if is_drawn else 'as they lie', odd_files=len(odd), sound=sound, broken=len(odd) - sound, copies=len(kinds), sides=sides), args.out)

if __name__ == '__main__': main()
