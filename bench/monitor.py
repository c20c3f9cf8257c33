"""How soon drift is noticed in real photographs, and how often nothing is called drift: DriftMonitor beside river's ADWIN, Page–Hinkley and KSWIN

python bench/monitor.py --out monitor.json [--data FOLDER] [--cache TABLE.npz] [--seeds 20] [--images 400000]

The images are yours (`--data`: an image folder), otherwise the photographs of BEARCLS_SHARED (default ../shared), otherwise drawn bears; with the weights
of BEARCLS_SHARED the network is SqueezeNet 1.1. Every photograph and its corrupted copies (night: a quarter of the light; dusk: half of it; infrared; a new place: the
middle of the photograph in a drawn winter scene; bursts: small crops, light and noise) is measured once; `--cache` keeps that table.

For each seed, clusters of near duplicates are dealt into a reference of 333 photographs (also 208 and 83) and a stream of the others, so no photograph is in both. The head, the
temperature and the OOD score are fitted to the reference alone. The numbers of the reference are cross-fitted, those of the stream come from the fit to the whole reference: as in use.
After 1,000 images without change (also after 300), the share of changed images rises from 0 to 1 within 300 images (a ramp), or is 10% from there on. river's detectors look at the brightness, in
standard deviations of the reference, with their default settings. With this ramp ADWIN's delays are those of the first measurements (139, 155, 235 images).

delay_night, delay_dusk, delay_infrared, delay_place  images from the beginning of the ramp to the alarm, median over seeds
found_10_night, found_10_dusk  share of seeds with an alarm within 300 images
found_species  the same for a species that the model doesn't know, at 10%: each label is left out in turn, its photographs are the new species, and the reference has 208
found_things   the same for drawn things at 10%
false_alarms   in 10,000 images without change, with references of 83, 208, 333 and 1, 5, 20 images a scene, over `--images` images each, and over a year of days and nights that
               the reference knows; the worst of these ten. `false_alarms_high` is the upper end of its 95% interval (one-sided, Poisson). Every crossing counts, also what prolongs an alarm.
               The stream draws from finitely many photographs, so its distribution is not quite the reference's: counted are false alarms that a user would see, not an ideal
us_per_image   processor time of the detectors over eight features, in chunks of 1,000 rows; the best of five"""
import os, tempfile, time
from pathlib import Path
import numpy as np
from PIL import Image, ImageDraw, ImageEnhance
from common import arguments, save

targets = dict(delay_night=95, delay_dusk=125, delay_infrared=160, found_species=.95, found_10_night=.98, found_10_dusk=.85, false_alarms=1, us_per_image=20)
at_most = ('delay_night', 'delay_dusk', 'delay_infrared', 'false_alarms', 'us_per_image')
day, n_bursts, ramp = 86_400, 9, 300

# ---------------------------------------------------------------- measure once

def burst(image, rng):
    "A moment later: another crop, a little more or less light, noise"
    w, h = image.size
    a, b, c, d = rng.uniform(0, .05, 4)
    image = image.crop((int(a*w), int(b*h), int(w - c*w), int(h - d*h))).resize((w, h), Image.Resampling.BILINEAR)
    pixels = np.asarray(ImageEnhance.Brightness(image).enhance(rng.uniform(.94, 1.06)), np.float32)
    return Image.fromarray(np.uint8(np.clip(pixels + 3*rng.standard_normal((h, w, 3), np.float32), 0, 255)))

def elsewhere(image, rng):
    "The middle of the image in a winter scene"
    w, h = image.size
    y, x = np.mgrid[:h, :w]
    mask = Image.fromarray(np.uint8(255*np.clip((1.15 - np.hypot((x - w/2)/(.36*w), (y - h/2)/(.36*h)))/.3, 0, 1)))
    line = h*rng.uniform(.3, .5)
    back = np.full((h, w, 3), (236, 240, 246), np.float32)
    back[:int(line)] = (190, 205, 222)
    back = Image.fromarray(np.uint8(np.clip(back + 5*rng.standard_normal((h, w, 1)), 0, 255)))
    pen = ImageDraw.Draw(back)
    for _ in range(14):
        x, tall = rng.uniform(0, w), rng.uniform(.12, .35)*h
        pen.polygon([(x, line - tall), (x - .2*tall, line + 4), (x + .2*tall, line + 4)], fill=(52, 70, 66))
    return Image.composite(image, back, mask)

def measure(path):
    "Every view of every photograph, once: kind, position, features, and what can be measured without a model"
    from bearcls.export.convert import export_bundle
    from bearcls.export.robustness import apply_corruption, reduced_to
    from bearcls.fingerprints import fingerprint
    from bearcls.images import image_size, load_image
    from bearcls.inference.bundle import prepare
    from bearcls.inference.classifier import Classifier
    from bearcls.interpret.evaluate import evaluate
    from bearcls.verify.measure import measure_pixels
    from bearcls.sample.strangers import draw_strangers
    from bearcls.similarity import joined_duplicates
    from bearcls.train.arch import averages_of, class_head
    from bearcls.train.learner import train
    learn = train(path, 'fast', arch='squeezenet1_1', quiet=True)
    seen = evaluate(learn, 'all')
    with tempfile.TemporaryDirectory() as tmp:
        classifier = Classifier(export_bundle(learn, Path(tmp)/'bundle', seen=seen, ood_score=False), threads=1)
        bundle, rows, features, prints = classifier.bundle, [], [], []
        def look(i, size, views):
            pixels = [np.asarray(prepare(view, bundle.size, bundle.method, bundle.pad_mode)) for _, view in views]
            features.append(classifier.run(np.stack(pixels))['features'])
            rows.extend(dict(kind=kind, of=i, width=size[0], height=size[1], **measure_pixels(p)) for (kind, _), p in zip(views, pixels))
        for i, file in enumerate(seen.table.file):
            image = reduced_to(load_image(file, bundle.min_side), round(1.25*min(bundle.size)))
            prints.append(fingerprint(image))
            views = [('none', image), ('place', elsewhere(image, np.random.default_rng((5, i))))]
            views += [(name, apply_corruption(image, kind, strength, (7, i))) for name, kind, strength in (('dusk', 'night', 1), ('night', 'night', 2), ('infrared', 'infrared', 2))]
            views += [(f'burst{b}', burst(image, np.random.default_rng((11, i, b)))) for b in range(1, n_bursts + 1)]
            look(i, image_size(file), views)
        for i, (_, image) in enumerate(draw_strangers(120, seed=7, kinds=('thing',))): look(-1 - i, image.size, [('thing', image)])
    groups = joined_duplicates(prints)
    first, gain, shift = averages_of(learn.model)
    weight, bias = class_head(learn)
    table = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return table | dict(features=np.concatenate(features).astype(np.float32), targets=np.asarray(seen.targets), clusters=np.array([groups.leader(k) for k in range(len(prints))]),
        first=first, gain=gain, shift=shift, weight=weight, bias=bias)

# ---------------------------------------------------------------- a split: reference, and what the stream is drawn from

class Split:
    "Columns of a reference, and of every kind of view of the other photographs"
    def __init__(self, table, seed, m, left=None):
        import torch
        from bearcls.export.ood import ClassHead, deal_groups, fit_ood_score
        from bearcls.train.arch import linear_head
        t, targets = table, table['targets']
        rng = np.random.default_rng((seed, m))
        pool = np.concatenate([np.flatnonzero(t['clusters'] == c) for c in rng.permutation(np.unique(t['clusters']))])
        known = pool if left is None else pool[targets[pool] != left]
        mine, others = np.sort(known[:m]), np.sort(known[m:])
        labels = np.unique(targets[mine])
        x, y = t['features'][np.flatnonzero(t['kind'] == 'none')][mine], np.searchsorted(labels, targets[mine])
        far = fit_ood_score(x, y, groups=t['clusters'][mine], averages=(int(t['first']), t['gain'], t['shift']), head=ClassHead.of(t['weight'], t['bias']), seed=seed)
        def head(which):
            fitted = linear_head(torch.from_numpy(x[which]), torch.from_numpy(y[which].astype(np.int64)), torch.nn.CrossEntropyLoss(reduction='none'), len(labels), threads=1).eval()
            def say(features):
                with torch.no_grad(): return fitted(torch.from_numpy(features)).softmax(1).numpy()
            return say
        folds = deal_groups(t['clusters'][mine], y, seed=seed)
        p = np.zeros((len(mine), len(labels)), np.float32)
        for fold in np.unique(folds): p[folds == fold] = head(folds != fold)(x[folds == fold])
        say = head(np.ones(len(mine), bool))
        self.names = labels.astype(str).astype(object)
        at = {(k, o): i for i, (k, o) in enumerate(zip(t['kind'].tolist(), t['of'].tolist()))}
        def columns(p, scores, rows):
            best = p.max(1)
            trusted = (best >= .6) & (scores <= far.threshold) & (t['light'][rows] >= 20)
            return dict(label=self.names[p.argmax(1)], probability=best, trusted=trusted, ood_score=scores, **{n: t[n][rows] for n in ('brightness', 'light', 'sharpness', 'colour', 'width', 'height', 'scene')})
        def views(kind, of):
            rows = np.array([at[kind, o] for o in of])
            return columns(say(t['features'][rows]), far.score(t['features'][rows]), rows)
        self.reference = columns(p, far.usual, np.array([at['none', o] for o in mine]))
        kinds = ['none', 'place', 'dusk', 'night', 'infrared', *(f'burst{b}' for b in range(1, n_bursts + 1))]
        self.kinds = {kind: views(kind, others.tolist()) for kind in kinds}
        self.kinds['thing'] = views('thing', [-1 - i for i in range(120)])
        if left is not None: self.kinds['species'] = views('none', np.flatnonzero(targets == left).tolist())
    def draw(self, kinds, rng):
        "Columns of images of these kinds, in this order"
        kinds = np.asarray(kinds)
        return self.rows(kinds, {kind: rng.integers(len(self.kinds[str(kind)]['label']), size=len(kinds)) for kind in np.unique(kinds)})

    def rows(self, kinds, picked):
        "Columns of the picked photographs, in the view of `kinds`"
        out = {}
        for kind, at in picked.items():
            mine = kinds == kind
            for name, v in self.kinds[str(kind)].items(): out.setdefault(name, np.empty(len(kinds), v.dtype))[mine] = v[at[mine]]
        return out

# ---------------------------------------------------------------- detectors

def watch_ours(known, names, columns, by_hour=False):
    "Positions of all crossings; `known` are the columns of the reference"
    from bearcls.monitor.drift import DriftMonitor
    from bearcls.monitor.reference import Reference
    crossed = []
    class Counting(DriftMonitor):
        def _alarm(self, f, wealth, whole, first, number):
            crossed.append(int(whole['id'][number - first]))
            return super()._alarm(f, wealth, whole, first, number)
    monitor = Counting(Reference.from_columns(known, list(names)), by_hour=by_hour, seed=1)
    n = len(columns['label'])
    monitor.update(dict(time=600.*np.arange(n), id=np.arange(n)) | columns)
    return crossed

def watch_river(make, split, columns):
    "The same for a detector of river on the brightness"
    values = (columns['brightness'] - split.reference['brightness'].mean())/split.reference['brightness'].std()
    detector, crossed = make(), []
    for i, v in enumerate(values.tolist()):
        detector.update(v)
        if detector.drift_detected: crossed.append(i)
    return crossed

def peers():
    try: from river.drift import ADWIN, KSWIN, PageHinkley
    except ImportError: raise SystemExit('The other side is missing: pip install river')
    return dict(ADWIN=ADWIN, PageHinkley=PageHinkley, KSWIN=lambda: KSWIN(seed=0))

def sides(split, columns, which):
    found = dict(ours=watch_ours(split.reference, split.names, columns))
    return found | {name: watch_river(make, split, columns) for name, make in which.items()}

# ---------------------------------------------------------------- streams

def changes(splits, left, which, before):
    "For each change and each side: images until the alarm, by seed; the change begins after `before` images"
    found = {}
    cases = [(f'delay_{kind}', kind, None, splits) for kind in ('night', 'dusk', 'infrared', 'place')]
    cases += [(f'found_10_{kind}', kind, .1, splits) for kind in ('night', 'dusk')] + [('found_species', 'species', .1, left), ('found_things', 'thing', .1, splits)]
    for name, kind, share, some in cases:
        for seed, split in enumerate(some):
            rng = np.random.default_rng((seed, 1))
            shares = np.concatenate([np.zeros(before), np.minimum(1, np.arange(900)/ramp) if share is None else np.full(900, share)])
            columns = split.draw(np.where(rng.random(len(shares)) < shares, kind, 'none'), rng)
            for side, crossed in sides(split, columns, which).items():
                late = [c - before for c in crossed if c >= before]
                found.setdefault(name, {}).setdefault(side, []).append(dict(seed=seed, delay=late[0] if late else None, early=sum(c < before for c in crossed)))
    return found

def quiet(splits, n, per_scene, which):
    "False alarms of each side on streams without change"
    counts = {}
    for seed, split in enumerate(splits):
        rng = np.random.default_rng((seed, 2, per_scene))
        n_scenes = n//len(splits)//per_scene
        photo = np.repeat(rng.integers(len(split.kinds['none']['label']), size=n_scenes), per_scene)
        view = rng.integers(1, n_bursts + 1, len(photo))
        view[::per_scene] = 0  # a scene begins with the photograph as it is, as those of the reference are
        kinds = np.array(['none', *(f'burst{b}' for b in range(1, n_bursts + 1))])[view]
        columns = split.rows(kinds, dict.fromkeys(np.unique(kinds), photo))
        time = 600.*np.repeat(np.arange(n_scenes), per_scene) + 5.*np.tile(np.arange(per_scene), n_scenes)
        for side, crossed in sides(split, columns | dict(time=time), which).items(): counts[side] = counts.get(side, 0) + len(crossed)
    return counts

def year(splits, per_day, seasons):
    "False alarms in a year of days and nights; the reference are two weeks before, of other photographs"
    total = images = 0
    for seed, split in enumerate(splits):
        rng = np.random.default_rng((seed, 3, seasons))
        n = len(split.kinds['none']['label'])
        def some(time, of):
            hours = 12 + seasons*4*np.sin(2*np.pi*time/(365*day))
            kinds = np.where(abs(time/3600 % 24 - 12) > hours/2, 'night', 'none')
            picked = rng.choice(of, len(time))
            return split.rows(kinds, dict.fromkeys(np.unique(kinds), picked)) | dict(time=time)
        photos = rng.permutation(n)
        known = some(np.sort(rng.uniform(-14*day, 0, 14*per_day)), photos[:n//2])
        columns = some(np.sort(rng.uniform(0, 365*day, 365*per_day)), photos[n//2:])
        total += len(watch_ours(known, split.names, columns, by_hour=True))
        images += len(columns['time'])
    return total, images

def us_per_image(split):
    "Processor time of an image, in microseconds: eight features, scenes included"
    from bearcls.monitor.drift import DriftMonitor
    from bearcls.monitor.reference import Reference
    rng = np.random.default_rng(0)
    columns = split.draw(np.full(20_000, 'none'), rng) | dict(time=600.*np.arange(20_000))
    reference = Reference.from_columns({n: v for n, v in split.reference.items() if n != 'label'})
    columns.pop('label')
    best = np.inf
    for _ in range(5):
        monitor = DriftMonitor(reference)
        start = time.process_time()
        for at in range(0, 20_000, 1000): monitor.update({n: v[at:at + 1000] for n, v in columns.items()})
        best = min(best, (time.process_time() - start)/20_000)
    return best*1e6

def upper(k):
    "Upper end of the one-sided 95% interval of a Poisson count"
    from scipy.stats import chi2
    return chi2.ppf(.95, 2*(k + 1))/2

# ---------------------------------------------------------------- the table

def main():
    parser = arguments(__doc__)
    parser.add_argument('--data', type=Path, help='image folder, instead of the photographs of BEARCLS_SHARED')
    parser.add_argument('--cache', type=Path, help='npz file that keeps what was measured on the images')
    parser.add_argument('--seeds', type=int, default=20, help='splits')
    parser.add_argument('--images', type=int, default=400_000, help='images without change, for each reference and burst')
    args = parser.parse_args()
    which = peers()
    fast = {name: make for name, make in which.items() if name != 'KSWIN'}
    shared = Path(os.environ.get('BEARCLS_SHARED', '../shared'))
    if (shared/'torch').is_dir(): os.environ['TORCH_HOME'] = str(shared/'torch')
    if args.cache and args.cache.exists(): table = dict(np.load(args.cache, allow_pickle=False))
    else:
        with tempfile.TemporaryDirectory() as tmp:
            path = args.data or shared/'data'/'bears'
            if not path.is_dir():
                from bearcls.sample.bears import draw_bears
                path = draw_bears(Path(tmp)/'bears', n_per_label=140, faults=False)
            table = measure(path)
        if args.cache: np.savez(args.cache, **table)
    n = len(table['targets'])
    sizes = [round(n*share) for share in (.2, .5, .8)]
    splits = {m: [Split(table, seed, m) for seed in range(args.seeds)] for m in sizes}
    n_labels = int(table['targets'].max()) + 1
    def without_label(m): return [Split(table, seed, m, left=seed % n_labels) for seed in range(args.seeds)]
    moved = changes(splits[sizes[2]], without_label(sizes[1]), which, 1000)
    smaller = {f'{m} scenes, after {b} images': changes(splits[m], without_label(m) if m < sizes[2] else [], {}, b) for m in sizes for b in (300, 1000) if (m, b) != (sizes[2], 1000)}
    still = {f'{m}, {k}': quiet(splits[m], args.images, k, fast) for m in sizes for k in (1, 5, 20)}
    years = {name: year(splits[sizes[1]], max(1, args.images//args.seeds//365), seasons) for name, seasons in (('year', 0), ('year with seasons', 1))}
    def delays(name, side, found=moved): return [900 if r['delay'] is None else r['delay'] for r in found[name][side]]
    result = {}
    for name in moved:
        per = {side: float(np.median(delays(name, side))) if name.startswith('delay') else float(np.mean(np.array(delays(name, side)) <= 300)) for side in moved[name]}
        result |= {name: per.pop('ours')} | {f'{name}_{side}': v for side, v in per.items()}
    rates = {name: (c['ours'], args.images) for name, c in still.items()} | {'year': years['year']}
    worst = max(rates, key=lambda name: rates[name][0]/rates[name][1])
    result |= dict(false_alarms=1e4*rates[worst][0]/rates[worst][1], false_alarms_high=1e4*upper(rates[worst][0])/rates[worst][1], worst=worst,
        false_alarms_seasons=1e4*years['year with seasons'][0]/years['year with seasons'][1])
    for side in fast: result[f'false_alarms_{side}'] = 1e4*max(c[side] for c in still.values())/args.images
    result['us_per_image'] = us_per_image(splits[sizes[1]][0])
    for name in targets:
        others = '  '.join(f'{side} {result[f"{name}_{side}"]:.3g}' for side in which if f'{name}_{side}' in result)
        print(f'{name:16}{result[name]:>9.3g}   {"at most" if name in at_most else "at least"} {targets[name]:g}   {others}')
    print(f'worst of false alarms: {worst}; at most {result["false_alarms_high"]:.2f} (95%); with seasons {result["false_alarms_seasons"]:.2f}; place {result["delay_place"]:g}, things {result["found_things"]:.0%}')
    for name, (k, images) in rates.items(): print(f'  {name:10} {k:4} in {images:,} images: {1e4*k/images:.2f} (at most {1e4*upper(k)/images:.2f})   ' + '  '.join(f'{s} {still[name][s]}' for s in fast if name in still))
    for case, found in smaller.items():
        print(f'  {case}: ' + ', '.join(f'{name} {np.median(delays(name, "ours", found)):g} ({np.mean(np.array(delays(name, "ours", found)) <= 300):.0%} within 300)' for name in found))
    save(result | dict(runs=moved, still=still, years=years, smaller=smaller), args.out, quiet=True)

if __name__ == '__main__': main()
