"""What bearcls promises about images of another source, measured on images that nothing was fitted to

python bench/ood.py --out ood.json [--data FOLDER [--sources-in-names]] [--photographs FOLDER] [--splits 20] [--seeds 3]

The images are yours (`--data`: an image folder), otherwise the photographs of BEARCLS_SHARED (default ../shared), otherwise drawn bears; with the
weights of BEARCLS_SHARED the network is SqueezeNet 1.1. A source is a group of images that look alike: k-means of the network's averages, 20 groups
over all labels, so not the groups that `fit_ood_score` makes for itself. In each split by source, groups with 15% of the images or somewhat more are
held back, and everything is fitted to the rest. With `--sources-in-names` a source is what stands before the first `-` in a file's name
(`google-1f43b.png`), and each split holds back one whole source.

auroc_left_out    each label left out once, its images as strangers beside held-back images of the others; mean over labels and seeds
caught_left_out   the share of them above the threshold
auroc_neighbours  like `auroc_left_out`, without the ImageNet classes
auroc_drawn       the same for 120 drawn strangers; the lowest of all splits
caught_photographs  the share of FOLDER's images above the threshold, such as examples of other packages without a bear; mean over splits
rate_as_stated    splits of 20 in which the share of held-back images above the threshold lies in the range that the bundle states
rate              that share, the mean over splits; `rate_low` and `rate_high` are the mean range
ece_excess        calibration error on the held-back images beyond what chance gives, mean over splits; `ece_excess_se` is its standard error
error             of the held-back images, mean over splits
error_as_stated   share of the splits in which that error lies in the interval by source that the images of the rest give; `error_stated` is its mean

Trust is measured on corrupted copies of the held-back images, in splits by source, too. Half of the copies are corrupted as the fit's are (night, rain and so on), half in ways
that it does not know: blur, noise, grey, a crop, a small file.

auroc_wrong       wrong answers told from right ones by the confidence; mean over splits
auroc_probability the same by the probability alone
error_copies      of all answers on the copies
trusted_error     of the trusted ones, all splits together; at most `trusted_stated`
trusted_stated    what the bundles state, mean over splits; `trusted_high` is the upper end of their interval
trusted_copies    share of the answers on the copies that are trusted; `trusted_as_is` on the images as they are"""
import os, tempfile
from pathlib import Path
import numpy as np
import torch
from PIL import Image, ImageFilter
from common import arguments, save

targets = {'auroc_left_out': .98, 'auroc_drawn': .995, 'rate_as_stated': 18, 'ece_excess': .005, 'auroc_wrong': .85}
at_most = ('ece_excess',)

def source_of(file): return Path(file).name.partition('-')[0]

def look(path, photographs):
    "The Learner, its averages, what enters its head, and the averages of strangers"
    from bearcls.train.arch import averages_of, class_head
    from bearcls.images import load_image
    from bearcls.interpret.evaluate import evaluate
    from bearcls.train.learner import train
    from bearcls.export.ood import ClassHead
    from bearcls.sample.strangers import draw_strangers
    learn = train(path, 'fast', arch='squeezenet1_1', quiet=True)
    seen = evaluate(learn, 'all')
    first, gain, shift = averages_of(learn.model)
    head = class_head(learn)
    strangers = {'drawn': [image for _, image in draw_strangers(120, seed=7)]}
    if photographs: strangers['photographs'] = [load_image(f) for f in sorted(Path(photographs).rglob('*')) if f.is_file()]
    found = {}
    with tempfile.TemporaryDirectory() as tmp:
        for name, images in strangers.items():
            folder = Path(tmp)/name/seen.labels[0]
            folder.mkdir(parents=True)
            for i, image in enumerate(images): image.save(folder/f'{i:04}.png')
            found[name] = evaluate(learn, path=folder.parent).features
    return learn, seen, (first, gain, shift), head and ClassHead.of(*head), found

def sources(averages, n, seed):
    "Groups of images that look alike"
    from sklearn.cluster import KMeans
    return KMeans(n, n_init=3, random_state=seed).fit_predict(averages/np.linalg.norm(averages, axis=1, keepdims=True))

def split_by_source(averages, seed, given=None, n=20):
    "True for the images of one source if `given` names them, otherwise for those of some groups, 15% or somewhat more"
    if given is not None: return given == np.unique(given)[seed % len(set(given))]
    groups = sources(averages, n, seed)
    held = np.zeros(len(groups), bool)
    for g in np.random.default_rng(seed).permutation(n):
        if held.mean() >= .15: break
        held |= groups == g
    return held

def left_out(seen, parts, head, seeds, given):
    "Every label as strangers"
    from bearcls.export.ood import auroc, fit_ood_score, share_caught
    first, gain, shift = parts
    rows = []
    for label in range(len(seen.labels)):
        for seed in range(seeds):
            others = np.flatnonzero(seen.targets != label)
            averages = seen.features[others, first:]*gain + shift
            held = split_by_source(averages, seed, given if given is None else given[others])
            known, later = others[~held], others[held]
            fitted = fit_ood_score(seen.features[known], seen.targets[known], averages=parts, head=head, seed=seed)
            strange = fitted.score(seen.features[seen.targets == label])
            rows.append(dict(label=seen.labels[label], seed=seed, auroc=auroc(fitted.score(seen.features[later]), strange),
                caught=share_caught(strange, fitted.threshold), classes=fitted.classes is not None))
    return rows

def by_source(learn, seen, parts, head, strangers, splits, given):
    "Threshold, temperature and error on sources held back"
    from bearcls.interpret.calibrate import calibration_error, fit_temperature, with_temperature
    from bearcls.train.arch import linear_head
    from bearcls.train.fast import held_out_logits
    from bearcls.export.held_out import error_by_source
    from bearcls.interpret.evaluate import tabulate
    from bearcls.export.ood import auroc, deal_groups, find_groups, fit_ood_score, share_caught
    first, gain, shift = parts
    averages, rows = seen.features[:, first:]*gain + shift, []
    def answers(logits, which):
        p = np.exp(logits - logits.max(1, keepdims=True))
        return tabulate(seen.table.file[which], ['valid']*which.sum(), p/p.sum(1, keepdims=True), seen.targets[which], seen.labels, np.zeros((which.sum(), 0)))
    for seed in range(splits):
        held = split_by_source(averages, seed, given)
        x, y = seen.features[~held], seen.targets[~held]
        known = None if given is None else np.unique(given[~held], return_inverse=True)[1]  # sources of the rest, as their owner knows them
        fitted = fit_ood_score(x, y, groups=known, averages=parts, head=head, seed=seed)
        rate = share_caught(fitted.score(seen.features[held]), fitted.threshold)
        folds = deal_groups(find_groups(averages[~held], y, seed=seed) if known is None else known, y)
        temperature = fit_temperature(answers(held_out_logits(learn, x, y, folds), ~held)).value
        loss = torch.nn.CrossEntropyLoss(reduction='none')
        rest = linear_head(torch.from_numpy(x), torch.from_numpy(y.astype(np.int64)), loss, len(seen.labels)).eval()
        with torch.no_grad(): found = with_temperature(answers(rest(torch.from_numpy(seen.features[held])).numpy(), held), temperature)
        ece = calibration_error(found)
        stated, error = error_by_source(learn, seen.where(~held), group_by=source_of if known is not None else None), float((~found.table.correct).mean())
        rows.append(dict(seed=seed, n=int(held.sum()), rate=rate, low=fitted.sources[0], high=fitted.sources[1], stated=fitted.sources[0] <= rate <= fitted.sources[1],
            temperature=temperature, ece_excess=ece['error'] - ece['chance'], error=error,
            error_stated=stated['error'], error_as_stated=stated['low'] <= error <= stated['high'],
            **{f'auroc_{name}': auroc(fitted.score(seen.features[held]), fitted.score(f)) for name, f in strangers.items()},
            **{f'caught_{name}': share_caught(fitted.score(f), fitted.threshold) for name, f in strangers.items()}))
    return rows

def crop(image, rng):
    "A part of the image, 35 to 70% of its sides"
    w, h = (max(8, int(s*rng.uniform(.35, .7))) for s in image.size)
    x, y = int(rng.integers(0, image.width - w + 1)), int(rng.integers(0, image.height - h + 1))
    return image.crop((x, y, x + w, y + h))

def noise(image, rng):
    "Noise of 15 to 70 grey levels"
    pixels = np.asarray(image, np.float32)
    return Image.fromarray(np.uint8(np.clip(pixels + rng.uniform(15, 70)*rng.standard_normal(pixels.shape, np.float32), 0, 255)))

def small(image, rng):
    "A file of 40 to 96 pixels"
    factor = rng.uniform(40, 96)/min(image.size)
    return image.resize([max(1, round(s*factor)) for s in image.size])

unknown_kinds = dict(blur=lambda image, rng: image.filter(ImageFilter.GaussianBlur(min(image.size)*rng.uniform(.006, .03))), noise=noise,
    grey=lambda image, rng: image.convert('L').convert('RGB'), crop=crop, small=small)

def look_at_copies(classifier, seen):
    "Lightness and features of the images, and of ten copies of each: position, kind, lightness, features"
    from bearcls.inference.bundle import prepare
    from bearcls.images import load_image
    from bearcls.inference.prediction import lightness
    from bearcls.export.robustness import apply_corruption, reduced_to, corruptions
    bundle, rows = classifier.bundle, []
    for i, file in enumerate(seen.table.file):
        rng = np.random.default_rng((99, i))
        image = reduced_to(load_image(file, bundle.min_side), round(1.25*min(bundle.size)))
        views = {'none': image} | {f'unknown: {kind}': change(image, rng) for kind, change in unknown_kinds.items()}
        views |= {f'known: {kind}': apply_corruption(image, kind, int(rng.integers(1, 4)), (99, i)) for kind in rng.choice(list(corruptions), 5, replace=False)}
        pixels = [np.asarray(prepare(view, bundle.size, bundle.method, bundle.pad_mode)) for view in views.values()]
        out = classifier.run(np.stack(pixels))
        rows += [(i, kind, lightness(p), f) for kind, p, f in zip(views, pixels, out['features'])]
    of, kinds, light, features = zip(*rows)
    return np.array(of), np.array(kinds), np.array(light), np.stack(features)

def trusted(learn, seen, parts, splits, given):
    "Confidence and trust on corrupted copies of sources held back"
    from bearcls.inference.prediction import confidence_of, evidence_of
    from bearcls.export.convert import export_bundle
    from bearcls.train.arch import linear_head
    from bearcls.export.held_out import choose_temperature, fit_trust, held_out_answers, learner_ood_score
    from bearcls.inference.classifier import Classifier
    from bearcls.images import min_light
    from bearcls.export.ood import auroc
    first, gain, shift = parts
    averages, rows = seen.features[:, first:]*gain + shift, []
    with tempfile.TemporaryDirectory() as tmp:
        classifier = Classifier(export_bundle(learn, Path(tmp)/'bundle', seen=seen), threads=1)
        of, kinds, light, features = look_at_copies(classifier, seen)
        for seed in range(splits):
            held = split_by_source(averages, seed, given)
            rest = seen.where(~held)
            group_by = None if given is None else source_of
            far = learner_ood_score(learn, rest, group_by=group_by)
            classifier.bundle.temperature, _ = choose_temperature(held_out_answers(learn, rest, group_by=group_by))
            fitted = fit_trust(learn, classifier, rest, far, group_by=group_by)
            head = linear_head(torch.from_numpy(rest.features), torch.from_numpy(rest.targets.astype(np.int64)), torch.nn.CrossEntropyLoss(reduction='none'), len(seen.labels))
            with torch.no_grad(): p = (head.eval()(torch.from_numpy(features))/classifier.bundle.temperature).softmax(1).numpy()
            score = far.score(features)
            sure = confidence_of(fitted.confidence, evidence_of(p, light, score, far.classes and far.classes.overlaps(far.averages(features))))
            ok = (sure >= fitted.threshold) & (light >= min_light) & (score <= far.threshold)
            right = p.argmax(1) == seen.targets[of]
            copy, as_is = held[of] & (kinds != 'none'), held[of] & (kinds == 'none')
            rows.append(dict(seed=seed, n=int(copy.sum()), wrong=int((~right[copy]).sum()), n_trusted=int(ok[copy].sum()), bad=int((ok & ~right)[copy].sum()), n_as_is=int(as_is.sum()),
                trusted_as_is=float(ok[as_is].mean()), auroc=auroc(-sure[copy & right], -sure[copy & ~right]), auroc_probability=auroc(-p.max(1)[copy & right], -p.max(1)[copy & ~right]),
                stated=fitted.confidence['error'], high=fitted.confidence['error_high'], threshold=fitted.threshold))
    return rows

def main():
    parser = arguments(__doc__)
    parser.add_argument('--data', type=Path, help='image folder, instead of the photographs of BEARCLS_SHARED')
    parser.add_argument('--sources-in-names', action='store_true', help='a source is the part of a file\'s name before its first -')
    parser.add_argument('--photographs', help='folder of images without a bear')
    parser.add_argument('--splits', type=int, default=20, help='splits by source')
    parser.add_argument('--seeds', type=int, default=3, help='splits for each label left out')
    args = parser.parse_args()
    shared = Path(os.environ.get('BEARCLS_SHARED', '../shared'))
    if (shared/'torch').is_dir(): os.environ['TORCH_HOME'] = str(shared/'torch')
    with tempfile.TemporaryDirectory() as tmp:
        path = args.data or shared/'data'/'bears'
        if not path.is_dir():
            from bearcls.sample.bears import draw_bears
            path = draw_bears(Path(tmp)/'bears', n_per_label=140, faults=False)
        learn, seen, parts, head, strangers = look(path, args.photographs)
        given = np.array([source_of(f) for f in seen.table.file]) if args.sources_in_names else None
        alone = left_out(seen, parts, None, args.seeds, given)
        labels = left_out(seen, parts, head, args.seeds, given)
        splits = by_source(learn, seen, parts, head, strangers, args.splits, given)
        trust = trusted(learn, seen, parts, args.splits, given)
    def mean(rows, name): return round(float(np.mean([r[name] for r in rows])), 4)
    excess = [r['ece_excess'] for r in splits]
    result = dict(auroc_left_out=mean(labels, 'auroc'), caught_left_out=mean(labels, 'caught'), auroc_neighbours=mean(alone, 'auroc'),
        auroc_drawn=round(min(r['auroc_drawn'] for r in splits), 4),
        rate_as_stated=round(20*mean(splits, 'stated'), 1), rate=mean(splits, 'rate'), rate_low=mean(splits, 'low'), rate_high=mean(splits, 'high'),
        ece_excess=mean(splits, 'ece_excess'), ece_excess_se=round(float(np.std(excess)/len(excess)**.5), 4), error=mean(splits, 'error'),
        error_stated=mean(splits, 'error_stated'), error_as_stated=mean(splits, 'error_as_stated'))
    if args.photographs: result |= dict(auroc_photographs=mean(splits, 'auroc_photographs'), caught_photographs=mean(splits, 'caught_photographs'))
    n, n_trusted = (sum(r[name] for r in trust) for name in ('n', 'n_trusted'))
    result |= dict(auroc_wrong=mean(trust, 'auroc'), auroc_probability=mean(trust, 'auroc_probability'), error_copies=round(sum(r['wrong'] for r in trust)/n, 4),
        trusted_error=round(sum(r['bad'] for r in trust)/n_trusted, 4), trusted_stated=mean(trust, 'stated'), trusted_high=mean(trust, 'high'),
        trusted_copies=round(n_trusted/n, 4), trusted_as_is=mean(trust, 'trusted_as_is'))
    for name, value in result.items(): print(f'{name:22}{value:>10}' + (f'   {"at most" if name in at_most else "at least"} {targets[name]:g}' if name in targets else ''))
    save(result | dict(labels=labels, splits=splits, trust=trust), args.out, quiet=True)

if __name__ == '__main__': main()
