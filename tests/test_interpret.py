"Mistakes, calibration, slices, attention and suspicious labels: small cases computed by hand, wrong input, empty parts, and what is promised about wrong labels"
import csv, math
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import CategoryBlock, DataBlock, ImageBlock, ImageDataLoaders, Learner, MultiCategoryBlock, Resize, resnet18, vision_learner
from PIL import Image
from torch import nn
from bearcls.train.arch import TrainError, get_arch
from bearcls.interpret.gradcam import attend, grad_cam, map_layer, nearest_images, show_attention, show_nearest
from bearcls.inference.bundle import read_bundle
from bearcls.interpret.calibrate import calibration_error, calibration_html, fit_temperature, log_loss_of, reliability, temperature_html, with_temperature
from bearcls.core import DataError
from bearcls.images import ImageError
from bearcls.folders import image_files
from bearcls.data.loaders import image_dls
from bearcls.export.convert import export_bundle
from bearcls.sample.figures import draw_bear
from bearcls.inference.bundle import BundleError
from bearcls.inference.classifier import Classifier
from bearcls.interpret.evaluate import (certain, confusion, error_rate_of, evaluate, f1_interval, label_metrics, most_confused, plot_confusion,
    plot_label_metrics, show_confusion, show_top_losses, tabulate, top_losses)
from bearcls.data.cache import OpenImage, survey
from bearcls.data.split import Split
from bearcls.interpret.label_issues import WrongLabels, count_wrong_labels, duplicate_issues, find_issues, issue_columns, judge_labels, label_issues, likeness_to_label, out_of_fold, show_issues
from bearcls.interpret.slices import coverage, cut_slices, image_metadata, slice_errors, slice_words, slices_html
from bearcls.sample.bears import draw_bears
from bearcls.train.learner import train
from bearcls.verify.report import broken_issues, check_images

labels = ['black', 'grizzly', 'teddy']

def said(actual, predicted, p=.8, split='valid', names=None, n_features=4):
    "Predictions of which the labels are given; the rest of the probability is shared by the others"
    n = len(actual)
    probabilities = np.full((n, 3), (1 - np.broadcast_to(p, n))[:, None]/2)
    probabilities[np.arange(n), predicted] = p
    files = names or [f'{labels[a]}/{i}.jpg' for i, a in enumerate(actual)]
    return tabulate(files, [split]*n, probabilities, actual, labels, np.random.default_rng(0).normal(size=(n, n_features)))

@pytest.fixture
def seven():
    "Black: 2 right, 1 called grizzly, 1 called teddy; grizzly: 2 right, 1 called black; no teddy"
    return said([0, 0, 0, 0, 1, 1, 1], [0, 0, 1, 2, 1, 1, 0], [.9, .6, .5, .8, .7, .95, .6])

@pytest.fixture
def nothing(seven): return seven.where(np.zeros(len(seven)))

# Counting

def test_confusion_by_hand(seven):
    assert confusion(seven).to_numpy().tolist() == [[2, 1, 1], [1, 2, 0], [0, 0, 0]]
    shares = confusion(seven, share=True)
    assert shares.loc['black'].tolist() == [.5, .25, .25] and shares.loc['teddy'].isna().all()
    assert [*confusion(seven).index.names, *confusion(seven).columns.names] == ['actual', 'predicted']
    pairs = most_confused(seven)
    assert pairs[['actual', 'predicted', 'wrong', 'of']].values.tolist() == [['grizzly', 'black', 1, 3], ['black', 'grizzly', 1, 4], ['black', 'teddy', 1, 4]]
    assert len(most_confused(seven, min_n=2)) == 0
    assert plot_confusion(seven) is not None and plot_label_metrics(seven) is not None

def test_label_metrics_by_hand(seven):
    m = label_metrics(seven)
    assert m.images.tolist() == [4, 3, 0]
    assert m.loc['black', ['precision', 'recall', 'f1']].tolist() == pytest.approx([2/3, 1/2, 4/7])
    assert m.loc['grizzly', ['precision', 'recall', 'f1']].tolist() == pytest.approx([2/3, 2/3, 2/3])
    assert m.loc['teddy', ['precision', 'recall', 'f1']].tolist() == [0, 0, 0]
    assert m.loc['teddy', ['recall_low', 'recall_high', 'f1_low']].tolist() == [0, 1, 0]  # nothing is known of its recall
    assert m.loc['teddy', 'f1_high'] == pytest.approx(2*.7935/1.7935, abs=1e-3)  # but one image was called teddy that is none
    for name in ('precision', 'recall', 'f1'): assert (m[f'{name}_low'] <= m[name]).all() and (m[name] <= m[f'{name}_high']).all()

def test_f1_interval_by_hand():
    "Wilson's interval of 8 of 12, worked out on paper, through 2x/(1 + x)"
    n, p, zz = 12, 8/12, 1.96**2
    centre, spread = (p + zz/24)/(1 + zz/12), 1.96*math.sqrt(p*(1 - p)/n + zz/(4*144))/(1 + zz/12)
    assert f1_interval(8, 1, 3) == pytest.approx((.8, *(2*j/(1 + j) for j in (centre - spread, centre + spread))))
    assert f1_interval(5, 0, 0)[::2] == (1, 1) and f1_interval(0, 3, 2)[:2] == (0, 0)

def test_losses_and_certainty(seven):
    assert top_losses(seven, 1).loss.iloc[0] == pytest.approx(-math.log(.1))  # black called teddy with 0.8, which leaves 0.1
    assert top_losses(seven, 100).loss.is_monotonic_decreasing and len(top_losses(seven, 100)) == 7
    assert certain(seven, 1).probability.item() == .95 and certain(seven, 1, least=True).probability.item() == .5
    assert error_rate_of(seven)['wrong'] == 3

def test_a_label_of_probability_zero_has_a_finite_loss():
    seen = tabulate(['a.jpg'], [''], np.array([[1., 0, 0]]), [2], labels, np.zeros((1, 2)))
    assert seen.table.loss.item() == pytest.approx(-math.log(1e-12)) and math.isfinite(log_loss_of(seen))

def test_nothing_at_all(nothing):
    "Each view of no images says so in its own way, and none fails"
    assert confusion(nothing).to_numpy().sum() == 0 and len(most_confused(nothing)) == 0 and len(top_losses(nothing)) == 0
    assert set(label_metrics(nothing).f1_high) == {1} and error_rate_of(nothing)['n'] == 0
    assert 'no images' in nothing._repr_html_() and '<input' not in show_confusion(nothing) and '<figure' not in show_top_losses(nothing)
    assert reliability(nothing).n.sum() == 0 and math.isnan(calibration_error(nothing)['error']) and math.isnan(log_loss_of(nothing))
    assert 'Too few' in calibration_html(nothing)
    assert len(slice_errors(nothing)) == len(coverage(nothing)) == 0 and 'too few' in slice_words(slice_errors(nothing))[0]
    assert len(label_issues(nothing)) == len(duplicate_issues(nothing)) == len(find_issues(nothing)) == 0
    assert list(find_issues(nothing).columns) == issue_columns
    with pytest.raises(DataError, match='got 0'): fit_temperature(nothing)

def test_one_image():
    one = said([1], [1])
    assert label_metrics(one).loc['grizzly', 'recall'] == 1
    assert reliability(one).n.sum() == 1 and len(label_issues(one)) == 0 and confusion(one).to_numpy().sum() == 1

# Asking models

@pytest.fixture(scope='module')
def learned(tmp_path_factory):
    "A hasty Learner, its folder and its bundle"
    path = draw_bears(tmp_path_factory.mktemp('learned')/'bears', n_per_label=24, seed=4, faults=False)
    learn = train(path, 'scratch', epochs=1, size=32, quiet=True)
    return learn, path, export_bundle(learn, path.parent/'bundle')

def test_bundle_answers_as_the_learner(learned):
    learn, path, bundle = learned
    theirs = evaluate(learn, path=path)
    for source in (bundle, str(bundle), Classifier(bundle)):
        ours = evaluate(source, path=path)
        assert ours.labels == theirs.labels and ours.table.file.tolist() == theirs.table.file.tolist()
        cooled = with_temperature(theirs, read_bundle(bundle).temperature)
        assert np.abs(ours.probabilities - cooled.probabilities).max() < 1e-3 and np.abs(ours.features - theirs.features).max() < 1e-2
        assert set(ours.table.split) == {''}
    own = evaluate(learn, 'all').table.set_index('file').loc[theirs.table.file]
    assert np.allclose(own.loss, theirs.table.loss, atol=1e-4) and own.split.tolist() == theirs.table.split.tolist()

def test_split_is_known_by_content(learned, tmp_path):
    "The split that a training saved tells the sides in a copy of the folder under other names"
    learn, path, bundle = learned
    copy = tmp_path/'copy'
    for f in image_files(path):
        (copy/f.parent.name).mkdir(parents=True, exist_ok=True)
        (copy/f.parent.name/f'renamed {f.name}').write_bytes(f.read_bytes())
    files = [Path(f) for f in learn.dls.train_ds.items], [Path(f) for f in learn.dls.valid_ds.items]
    split = Split(*files, {s.file: s.digest for s in survey(files[0] + files[1])})
    seen = evaluate(bundle, path=copy, known=split)
    assert seen.table.split.value_counts().to_dict() == {'train': len(files[0]), 'valid': len(files[1])}
    assert len(evaluate(bundle, 'valid', path=copy, known=split)) == len(files[1])
    assert len(evaluate(bundle, 'train', path=copy)) == 0  # nobody has told which those are

def test_what_cannot_be_asked_is_told(learned, tmp_path):
    learn, _, bundle = learned
    for name in ('teddy/good.png', 'panda/1.png'):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        draw_bear('teddy', seed=0, side=64).save(tmp_path/name)
    (tmp_path/'teddy'/'page.jpg').write_text('<html>', encoding='utf-8')
    (tmp_path/'teddy'/'empty.png').write_bytes(b'')
    for source in (learn, bundle):
        seen = evaluate(source, path=tmp_path)
        assert [Path(f).name for f in seen.table.file] == ['good.png']
        assert {Path(f).name for f in seen.failed.file} == {'1.png', 'page.jpg', 'empty.png'} and (seen.failed.reason != '').all()
        assert 'panda, which the model does not know' in seen._repr_html_()
    (tmp_path/'teddy'/'good.png').unlink()
    for source in (learn, bundle): assert len(evaluate(source, path=tmp_path)) == 0  # no image that opens, and no error

def test_wrong_questions(learned, tmp_path):
    learn, path, bundle = learned
    with pytest.raises(ValueError, match='must be valid, train or all'): evaluate(learn, 'test')
    with pytest.raises(DataError, match='give `path`'): evaluate(bundle)
    with pytest.raises(DataError, match='There is no folder'): evaluate(learn, path=tmp_path/'nowhere')
    with pytest.raises(DataError, match='holds no images'): evaluate(learn, path=tmp_path)
    with pytest.raises(BundleError, match='There is no bundle'): evaluate(tmp_path/'nowhere', path=path)
    with pytest.raises(DataError, match='takes a Learner, a Classifier or the folder'): evaluate(None, path=path)
    (tmp_path/'panda').mkdir()
    draw_bear('teddy', seed=0, side=64).save(tmp_path/'panda'/'1.png')
    with pytest.raises(DataError, match='images of panda, and the model knows black, grizzly, teddy'): evaluate(bundle, path=tmp_path)

def test_learner_of_a_table(learned):
    "fastai's DataLoaders may hold rows of a table instead of files"
    _, path, _ = learned
    files = image_files(path)[::4]
    table = pd.DataFrame(dict(name=[f.relative_to(path).as_posix() for f in files], kind=[f.parent.name for f in files]))
    dls = ImageDataLoaders.from_df(table, path, item_tfms=Resize(32), bs=8, num_workers=0, seed=1)
    seen = evaluate(Learner(dls, get_arch('xresnet18_thin')(3)), 'all')
    assert sorted(map(Path, seen.table.file)) == sorted(files)
    assert (seen.table.actual == [Path(f).parent.name for f in seen.table.file]).all()

def test_learner_of_a_table_with_getters(learned):
    "The book's DataBlock on a DataFrame, whose getters take a row"
    _, path, _ = learned
    files = image_files(path)[::4]
    table = pd.DataFrame({'file name': [f.relative_to(path).as_posix() for f in files], 'kind': [f.parent.name for f in files]})
    block = DataBlock((ImageBlock, CategoryBlock), get_x=lambda r: path/r['file name'], get_y=lambda r: r['kind'], item_tfms=Resize(32))
    seen = evaluate(Learner(block.dataloaders(table, bs=8, num_workers=0), get_arch('xresnet18_thin')(3)), 'all')
    assert sorted(map(Path, seen.table.file)) == sorted(files) and (seen.table.actual == [Path(f).parent.name for f in seen.table.file]).all()

@pytest.mark.parametrize('loss', [nn.functional.cross_entropy, nn.CrossEntropyLoss()])
def test_probabilities_under_losses_of_pytorch(learned, loss):
    "fastai knows the softmax of its own losses only"
    learn, _, _ = learned
    ours, theirs = evaluate(Learner(learn.dls, learn.model, loss_func=loss)), evaluate(learn)
    assert np.allclose(ours.probabilities, theirs.probabilities, atol=1e-5) and np.allclose(ours.table.loss, theirs.table.loss, atol=1e-4)

def test_images_that_are_gone(learned, tmp_path):
    "Somebody cleaned between training and looking"
    path = draw_bears(tmp_path/'bears', n_per_label=6, faults=False)
    learn = Learner(image_dls(path, size=32, recipe='squish', bs=4), get_arch('xresnet18_thin')(3))
    gone = learn.dls.valid_ds.items[0]
    gone.unlink()
    for split in ('valid', 'all'):
        seen = evaluate(learn, split)
        assert seen.failed.values.tolist() == [[str(gone), 'it is not there any more']] and str(gone) not in set(seen.table.file)
        assert (seen.table.actual == [Path(f).parent.name for f in seen.table.file]).all()
    for f in learn.dls.valid_ds.items[1:]: f.unlink()
    with pytest.raises(DataError, match='images of this Learner is where it was'): evaluate(learn)

def test_the_folder_through_a_link(learned, tmp_path):
    "The same images under another path are on the side of the split where they were"
    learn, path, _ = learned
    try: (tmp_path/'link').symlink_to(path, target_is_directory=True)
    except OSError: pytest.skip('links cannot be made here')
    seen = evaluate(learn, path=tmp_path/'link')
    assert seen.table.split.value_counts().to_dict() == {'train': len(learn.dls.train_ds), 'valid': len(learn.dls.valid_ds)}
    assert not seen.only('valid').table.empty and set(image_metadata(seen, path).columns) == {'brightness', 'size', 'aspect', 'site', 'term'}

@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_a_model_that_diverged(bad):
    "An error rate of nothing but nan would look like a result"
    with pytest.raises(DataError, match='its training has diverged'): tabulate(['a.jpg'], ['valid'], np.array([[.5, .4, bad]]), [0], labels, np.zeros((1, 2)))
    with pytest.raises(DataError, match='1 images have features that are nan'): judge_labels(tabulate([f'{i}.jpg' for i in range(20)], ['']*20, np.eye(3)[np.arange(20) % 3], np.arange(20) % 3, labels, np.where(np.arange(20)[:, None] == 7, bad, np.ones((20, 4)))))

def test_several_labels_and_no_images_are_refused(learned):
    _, path, _ = learned
    block = DataBlock((ImageBlock, MultiCategoryBlock), get_items=image_files, get_y=lambda f: [f.parent.name, 'bear'], item_tfms=Resize(32))
    several = block.dataloaders(path, bs=8, num_workers=0)
    with pytest.raises(DataError, match='must have one label'): evaluate(Learner(several, get_arch('xresnet18_thin')(4), loss_func=nn.BCEWithLogitsLoss()))
    block = DataBlock((ImageBlock, CategoryBlock), get_items=image_files, get_y=lambda f: f.parent.name, item_tfms=Resize(32), splitter=lambda items: (list(range(len(items))), []))
    unsplit = block.dataloaders(path, bs=8, num_workers=0)
    with pytest.raises(DataError, match='no images to validate with'): evaluate(Learner(unsplit, get_arch('xresnet18_thin')(3), loss_func=nn.CrossEntropyLoss()))

def test_a_label_without_validation_images(learned):
    learn, _, _ = learned
    seen = evaluate(learn)
    part = seen.where(seen.table.actual != 'teddy')
    assert label_metrics(part).loc['teddy', 'images'] == 0 and confusion(part).loc['teddy'].sum() == 0
    assert 'teddy' in show_confusion(part) and coverage(part, by=['brightness'])['teddy'].sum() == 0
    assert fit_temperature(part).n == len(part)

# The confusion matrix in a browser

def test_confusion_opens_its_images(browser, learned, tmp_path):
    "A click on a number shows its images and hides the others; so do the arrow keys; two matrices on a page mind their own business"
    learn, _, _ = learned
    seen = evaluate(learn, 'all')
    page, file = browser.new_page(), tmp_path/'page.html'
    file.write_text(f'<!doctype html><meta charset="utf-8">{show_confusion(seen, 4, 60)}<hr>{show_confusion(seen, 4, 60)}', encoding='utf-8')
    page.goto(file.as_uri())
    counts, panels = confusion(seen), page.locator('.panel')
    def shown(): return [i for i in range(panels.count()) if panels.nth(i).is_visible()]
    half, start = panels.count()//2, shown()
    assert len(start) == 2 and half == (counts > 0).to_numpy().sum()
    numbers = page.locator('table').first.locator('label')
    for i in range(numbers.count()):
        numbers.nth(i).click()
        assert shown() == [i, start[1]]
        images = panels.nth(i).locator('img')
        n = int(numbers.nth(i).inner_text())
        assert images.count() == min(4, n) and f': {n}' in panels.nth(i).inner_text()
    page.keyboard.press('ArrowLeft')
    assert shown() == [numbers.count() - 2, start[1]]
    assert page.locator('input').first.get_attribute('aria-label')
    page.close()

def test_large_matrix_stays_where_it_is(browser, tmp_path):
    "Choosing a number at the foot of a long matrix does not lead the page away from it, and every number can be read"
    n = 40
    names = [f'label {i}' for i in range(n)]
    seen = tabulate([f'{i}.jpg' for i in range(2*n)], ['']*(2*n), np.eye(n)[[*range(n), *range(1, n), 0]], [*range(n), *range(n)], names, np.zeros((2*n, 1)))
    page, file = browser.new_page(viewport=dict(width=900, height=600)), tmp_path/'page.html'
    file.write_text(f'<!doctype html><meta charset="utf-8">{show_confusion(seen, 1, 30)}', encoding='utf-8')
    page.goto(file.as_uri())
    last = page.locator('table label').last
    last.scroll_into_view_if_needed()
    before = page.evaluate('scrollY')
    last.click()
    assert before > 0 and abs(page.evaluate('scrollY') - before) < 5
    page.keyboard.press('ArrowRight')  # on to the first number, which comes into view
    assert page.evaluate('document.activeElement.getBoundingClientRect().top') >= 0 and page.evaluate('scrollY') < before
    page.close()

def test_labels_are_text_in_the_matrix():
    "A label is a folder's name, and folders come from strangers"
    names = ['<script>alert(1)</script>', '"quoted"', 'plain']
    seen = tabulate(['a.jpg', 'b.jpg'], ['', ''], np.array([[.8, .1, .1], [.1, .8, .1]]), [1, 0], names, np.zeros((2, 1)))
    html = show_confusion(seen)
    assert '<script' not in html and 'aria-label="filed as &quot;quoted&quot;' in html

# Calibration

def test_reliability_by_hand(seven):
    rows = reliability(seven, 2).to_dict('records')
    assert [r['n'] for r in rows] == [1, 6]  # 0.5 is in the lower half
    assert rows[1]['promised'] == pytest.approx((.9 + .6 + .8 + .7 + .95 + .6)/6) and rows[1]['kept'] == pytest.approx(4/6)
    by_hand = abs(0 - .5)*1/7 + abs(4/6 - (.9 + .6 + .8 + .7 + .95 + .6)/6)*6/7
    assert calibration_error(seven, 2)['error'] == pytest.approx(by_hand)
    assert reliability(said([0], [0], 1.)).n.tolist()[-1] == 1  # a probability of 1 has a bin

def test_temperature_by_hand():
    "Two labels with logits ±z: right on three of four, the best temperature makes the probability three quarters"
    p = 1/(1 + math.exp(-4))
    seen = tabulate(list('abcd'), ['valid']*4, np.tile([p, 1 - p], (4, 1)), [0, 0, 0, 1], ['black', 'teddy'], np.zeros((4, 1)))
    fitted = fit_temperature(seen, prior=None)
    assert fitted.value == pytest.approx(4/math.log(3), rel=1e-3)
    assert fitted.after == pytest.approx(-.75*math.log(.75) - .25*math.log(.25), abs=1e-6) and fitted.low < fitted.value < fitted.high
    assert with_temperature(seen, fitted.value).probabilities[0, 0] == pytest.approx(.75, abs=1e-4)
    assert 'Temperature' in temperature_html(fitted)

@pytest.mark.parametrize('value', [0, -1, math.nan, math.inf])
def test_no_such_temperature(seven, value):
    with pytest.raises(ValueError, match='must be positive'): with_temperature(seven, value)

def test_temperature_is_not_fitted_to_training_images(seven):
    with pytest.raises(DataError, match='trained on'): fit_temperature(said([0, 1], [0, 0], split='train'))
    for part in (seven.where(seven.table.correct), seven.where(~seven.table.correct)): assert fit_temperature(part, prior=None).value == 1

def test_few_answers_leave_the_temperature_to_the_prior(seven):
    "All right: no nonsense of 0.05; none: the prior's own; many: the images decide"
    right = seven.where(seven.table.correct)
    assert 1 < fit_temperature(right).value < math.exp(.2) + 1e-3
    rng, n = np.random.default_rng(0), 4000
    logits = rng.normal(size=(n, 3))*2
    p = np.exp(logits)/np.exp(logits).sum(1, keepdims=True)
    y = (rng.random(n)[:, None] > np.cumsum(p, 1)).sum(1)
    hot = np.exp(2*logits)/np.exp(2*logits).sum(1, keepdims=True)
    many = tabulate([f'{i}.jpg' for i in range(n)], ['valid']*n, hot, y, labels, np.zeros((n, 1)))
    assert fit_temperature(many).value == pytest.approx(2, rel=.05)
    with pytest.raises(ValueError, match='`prior` must be'): fit_temperature(many, prior=(0, 0))

def test_temperature_of_a_bundle(learned, tmp_path):
    "What was fitted to the Learner's validation images is what the bundle then says"
    learn, path, _ = learned
    seen = evaluate(learn)
    warm = export_bundle(learn, tmp_path/'warm', temperature=2.)
    ours = evaluate(warm, path=path).table.set_index('file')
    theirs = with_temperature(seen, 2.).table.set_index('file')
    assert np.abs(ours.loc[theirs.index].probability - theirs.probability).max() < 1e-3

# Slices

def test_interval_ends_where_the_likelihood_says():
    "The ends are those of the likelihood itself, however many images there are"
    rng, n = np.random.default_rng(0), 5000
    logits = rng.normal(size=(n, 3))*2
    p = np.exp(logits)/np.exp(logits).sum(1, keepdims=True)
    y = (rng.random(n)[:, None] > np.cumsum(p, 1)).sum(1)
    seen = tabulate([f'{i}.jpg' for i in range(n)], ['valid']*n, p, y, labels, np.zeros((n, 1)))
    fitted = fit_temperature(seen, prior=None)
    for end in (fitted.low, fitted.high): assert n*(log_loss_of(with_temperature(seen, end)) - fitted.after) == pytest.approx(1.92, abs=.01)

@pytest.mark.parametrize('n_bins', [0, -1])
def test_no_bins(seven, n_bins):
    for f in (reliability, calibration_error):
        with pytest.raises(ValueError, match='`n_bins` must be at least 1'): f(seven, n_bins)

def test_slices_by_hand():
    "Ten dark images of which eight are wrong, thirty bright ones of which three are: Fisher's test worked out with binomial coefficients"
    wrong = np.array([1]*8 + [0]*2 + [1]*3 + [0]*27, bool)
    seen = said([0]*40, np.where(wrong, 1, 0))
    metadata = pd.DataFrame(dict(light=['dark']*10 + ['bright']*30))
    table = slice_errors(seen, metadata).set_index('slice')
    ways = [math.comb(11, k)*math.comb(29, 10 - k)/math.comb(40, 10) for k in range(11)]
    p = sum(w for w in ways if w <= ways[8]*(1 + 1e-9))
    assert table.loc['dark', ['n', 'wrong', 'error', 'elsewhere', 'verdict']].tolist() == [10, 8, .8, .1, 'more errors']
    assert table.loc['dark', 'p'] == pytest.approx(p) and table.loc['dark', 'p_adjusted'] == pytest.approx(2*p)
    assert 'light dark: more errors than elsewhere, 8 of 10' in slice_words(slice_errors(seen, metadata))[0] or 'light bright' in slice_words(slice_errors(seen, metadata))[0]

def test_small_slices_are_not_judged():
    wrong = np.array([1]*5 + [0]*35, bool)
    seen, metadata = said([0]*40, np.where(wrong, 1, 0)), pd.DataFrame(dict(camera=['a']*5 + ['b']*35))
    table = slice_errors(seen, metadata).set_index('slice')
    assert table.verdict['a'] == 'too few' and math.isnan(table.p['a'])
    assert any('too few images to be judged: camera a (5)' in w for w in slice_words(slice_errors(seen, metadata)))

def test_a_term_is_held_against_its_own_label():
    "All black bears are wrong, whatever was searched for: no term stands out"
    seen = said([0]*30 + [1]*30, [1]*30 + [1]*30)
    metadata = pd.DataFrame(dict(term=['black bear']*15 + ['bear, black']*15 + ['grizzly']*30))
    table = slice_errors(seen, metadata).set_index('slice')
    assert table.verdict.to_dict() == {'grizzly': 'nothing to compare', 'black bear': 'cannot tell', 'bear, black': 'cannot tell'} and table.elsewhere['black bear'] == 1

def test_gaps_are_named():
    seen = said([0]*20 + [1]*20, [0]*20 + [1]*20)
    metadata = pd.DataFrame(dict(site=['a.example']*25 + ['b.example']*15))
    counted = coverage(seen, metadata)
    assert counted.loc[('site', 'b.example')].tolist() == [0, 15, 0]
    assert any('No image of black has site b.example' in w for w in slice_words(slice_errors(seen, metadata), counted))

def test_metadata_of_broken_files_and_folders_without_manifest(tmp_path):
    (tmp_path/'black').mkdir()
    draw_bear('black', seed=0, side=64).save(tmp_path/'black'/'0.png')
    (tmp_path/'black'/'1.png').write_bytes(b'no image')
    seen = said([0, 0], [0, 1], names=[str(tmp_path/'black'/f'{i}.png') for i in range(2)])
    metadata = image_metadata(seen)
    assert metadata['size'].tolist()[0] == 64 and metadata.iloc[1][['brightness', 'size', 'aspect']].isna().all() and set(metadata.site) == {''}
    assert 'not known' in slice_errors(seen, metadata).slice.tolist() and 'too few' in slices_html(seen, metadata)

@pytest.mark.parametrize('values', [[], [math.nan]*3, [None, ''], [True, False], [1]*5, ['<b>']*3, range(1000)])
def test_any_column_can_be_cut(values):
    parts = cut_slices(values)
    assert len(parts) == len(list(values)) and (parts != '').all() and parts.nunique() <= 3

def test_slices_of_large_numbers_keep_apart():
    "Years, and sides in pixels, differ in their last digits"
    years = [2015 + i % 10 for i in range(100)]
    parts = cut_slices(years)
    assert list(parts.cat.categories) == ['2015 to 2018', '2019 to 2021', '2022 to 2024'] and parts.notna().all()
    assert cut_slices([1000.25, 1000.5, 1000.75], 3).nunique() == 3
    wrong = np.array([y >= 2022 for y in years])
    seen = said([0]*100, np.where(wrong, 1, 0), [.9]*100)
    metadata = pd.DataFrame(dict(year=years))
    assert slice_errors(seen, metadata, by='year').set_index('slice').verdict['2022 to 2024'] == 'more errors'

# Attention

def test_maps_of_our_architectures(learned):
    learn, path, _ = learned
    file = image_files(path)[0]
    dls = image_dls(path, size=64, recipe='crop', bs=8)
    for model in (learn, vision_learner(dls, resnet18, pretrained=False), vision_learner(dls, get_arch('squeezenet1_1'), pretrained=False).fit_fast()):
        before = [p.grad is None or p.grad.clone() for p in model.model.parameters()]
        found = attend(model, file)
        assert found.heat.ndim == 2 and found.heat.shape[0] > 1 and 0 <= found.heat.min() and found.heat.max() <= 1 + 1e-6
        assert found.draw(100).size == (100, 100) and '<img' in found._repr_html_()
        assert all(b is True and p.grad is None or torch.equal(p.grad, b) for b, p in zip(before, model.model.parameters())) and not any(m._forward_hooks for m in model.model.modules())
        direct, _ = grad_cam(model.model, dls.test_dl([file]).one_batch()[0].as_subclass(torch.Tensor), 0)
        assert direct.ndim == 2

def test_attention_agrees_with_predict(learned):
    learn, path, _ = learned
    file = image_files(path)[3]
    with learn.no_bar(), learn.no_logging(): label, _, probabilities = learn.predict(file)
    found = attend(learn, file)
    assert found.label == found.predicted == label and found.probability == pytest.approx(float(probabilities.max()), abs=1e-4)

def test_no_maps_and_no_image(learned, tmp_path):
    learn, path, _ = learned
    with pytest.raises(TrainError, match='no layer that gives maps'): map_layer(nn.Sequential(nn.Flatten(), nn.Linear(27, 2)), torch.zeros(1, 3, 3, 3))
    with pytest.raises(DataError, match="got 'panda'"): attend(learn, image_files(path)[0], 'panda')
    (tmp_path/'page.jpg').write_text('<html>', encoding='utf-8')
    with pytest.raises(ImageError): attend(learn, tmp_path/'page.jpg')

def test_transformers_have_no_maps(learned):
    pytest.importorskip('timm')
    _, path, _ = learned
    former = vision_learner(image_dls(path, size=224, recipe='squish', bs=4), 'vit_tiny_patch16_224', pretrained=False)
    with pytest.raises(TrainError, match='no maps'): attend(former, image_files(path)[0])

def test_maps_with_their_features_last_are_refused():
    "Some networks keep (height, width, features); read as (features, height, width) they would give an image of nothing"
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.turn, self.head = nn.Conv2d(3, 16, 4, 4), nn.Identity(), nn.Linear(16, 3)
        def forward(self, x): return self.head(self.turn(self.conv(x).permute(0, 2, 3, 1)).mean((1, 2)))
    with pytest.raises(TrainError, match='features last'): map_layer(Last(), torch.zeros(1, 3, 32, 32))

def test_a_layer_used_for_maps_and_for_numbers():
    class Reused(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu, self.fc, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3)
        def forward(self, x): return self.head(self.relu(self.fc(self.relu(self.conv(x)).mean((2, 3)))))
    heat, logits = grad_cam(Reused(), torch.randn(1, 3, 16, 16))
    assert heat.shape == (16, 16) and logits.shape == (3,)

def test_the_image_under_the_map_lies_as_the_network_saw_it(learned, tmp_path):
    "fastai's own opening does not turn a photograph that was taken upright; the map must not lie across it"
    _, path, _ = learned
    image = draw_bear('teddy', seed=0, side=96).crop((0, 0, 96, 48))
    exif = image.getexif()
    exif[0x112] = 6
    image.save(tmp_path/'turned.jpg', exif=exif)
    block = DataBlock((ImageBlock, CategoryBlock), get_items=image_files, get_y=lambda f: f.parent.name, item_tfms=Resize(64, 'squish'))
    theirs = attend(Learner(block.dataloaders(path, bs=8, num_workers=0), get_arch('xresnet18_thin')(3)), tmp_path/'turned.jpg')
    ours = attend(Learner(image_dls(path, size=64, recipe='squish', bs=8), get_arch('xresnet18_thin')(3)), tmp_path/'turned.jpg')
    assert theirs.image.size == (64, 64) and ours.image.size == (48, 96)
    with Image.open(tmp_path/'turned.jpg') as opened: assert attend(Learner(image_dls(path, size=64, recipe='squish', bs=8), get_arch('xresnet18_thin')(3)), opened).heat.ndim == 2

def test_nearest_by_hand():
    x = np.array([[1., 0], [.9, .1], [-1, 0], [0, -1], [-1, -.1]])
    seen = tabulate([f'{i}.jpg' for i in range(5)], ['valid'] + ['train']*4, np.tile([.8, .1, .1], (5, 1)), [0, 1, 0, 2, 0], labels, x)
    near = nearest_images(seen, '0.jpg', 10)
    centred = x - x.mean(0)
    cosines = [centred[0] @ c/np.linalg.norm(centred[0])/np.linalg.norm(c) for c in centred[1:]]
    assert near.file.tolist() == [f'{i + 1}.jpg' for i in np.argsort([-c for c in cosines])] and near.likeness.tolist() == pytest.approx(sorted(cosines, reverse=True))
    with pytest.raises(DataError, match='none of the 5'): nearest_images(seen, 'x.jpg')
    with pytest.raises(DataError, match='evaluate'): nearest_images(seen.only('valid'), '0.jpg')

def test_attention_and_neighbours_are_shown(learned):
    learn, _, _ = learned
    seen = evaluate(learn, 'all')
    worst = top_losses(seen.only('valid'), 2)
    assert show_attention(learn, worst, 60).count('<img') >= 4 and show_nearest(seen, worst.file, 3, 60).count('<img') == 8
    assert 'No mistakes' in show_nearest(seen.where(seen.table.correct), [])

# Suspicious labels

def clouds(n=40, seed=0):
    "Three clouds of points, and their labels"
    rng = np.random.default_rng(seed)
    y = np.repeat(range(3), n)
    return rng.normal(0, 1, (3*n, 6)) + 5*np.eye(3, 6)[y], y

def as_seen(x, y): return tabulate([f'{labels[k]}/{i}.jpg' for i, k in enumerate(y)], ['train']*len(y), np.eye(3)[y], y, labels, x.astype(np.float32))

def test_swapped_and_strange_are_told_apart():
    x, y = clouds()
    y[[3, 50]] = [1, 2]
    x = np.concatenate([x, [[-6, -6, -6, 6, -6, 6]]])
    y = np.append(y, 0)
    found = label_issues(as_seen(x, y)).set_index('file')
    assert found.kind[f'{labels[1]}/3.jpg'] == 'wrong_label' and found.suggested['grizzly/3.jpg'] == 'black'
    assert found.kind['teddy/50.jpg'] == 'wrong_label' and found.suggested['teddy/50.jpg'] == 'grizzly'
    assert f'black/{len(y) - 1}.jpg' in found.index and set(found.index[:2]) == {'grizzly/3.jpg', 'teddy/50.jpg'}

def test_clean_labels_are_left_alone():
    found = label_issues(as_seen(*clouds()))
    assert (found.kind != 'wrong_label').all() and len(found) <= 12

def test_share_decides_the_length():
    seen = as_seen(*clouds())
    assert [len(label_issues(seen, share)) for share in (0, .05, 1)] == [0, 6, 120]
    with pytest.raises(ValueError, match='between 0 and 1'): label_issues(seen, -1)

def test_judging_is_the_same_every_time_and_blind_to_order():
    x, y = clouds()
    y[3] = 1
    first, again = label_issues(as_seen(x, y)), label_issues(as_seen(x, y))
    pd.testing.assert_frame_equal(first, again)
    assert out_of_fold(x, y, seed=1).argmax(1).tolist() == out_of_fold(x, y, seed=2).argmax(1).tolist()

def test_rare_labels_and_dead_features():
    "A label of three images is not judged, a feature that never changes does no harm"
    x, y = clouds()
    x[:, 5] = 7.
    keep = (y != 2) | (np.cumsum(y == 2) <= 3)
    judged = judge_labels(as_seen(x[keep], y[keep]))
    assert judged.score[judged.actual == 'teddy'].isna().all() and judged.score[judged.actual != 'teddy'].notna().all()
    assert np.isfinite(likeness_to_label(x, y)).all()
    with pytest.raises(DataError, match='without features'): label_issues(as_seen(np.zeros((10, 0)), np.arange(10) % 2))

def test_copies_across_labels_and_split(tmp_path):
    for label, seed, side in (('black', 0, 128), ('grizzly', 0, 64), ('teddy', 1, 128)):
        (tmp_path/label).mkdir()
        draw_bear('black', seed=seed, side=128).resize((side, side)).save(tmp_path/label/'1.png')
    (tmp_path/'teddy'/'2.png').write_bytes((tmp_path/'teddy'/'1.png').read_bytes())
    files = image_files(tmp_path)
    seen = tabulate(files, ['train', 'valid', 'train', 'train'], np.eye(3)[[0, 1, 2, 2]], [0, 1, 2, 2], labels, np.zeros((4, 2)))
    found = duplicate_issues(seen).set_index('file')
    assert [Path(f).parent.name for f in found.index] == ['teddy', 'grizzly'] and found.score.iloc[0] == 1 and set(found.kind) == {'copy'}
    small = found.loc[str(tmp_path/'grizzly'/'1.png')]
    assert small.suggested == 'black' and small.reason == 'looks like black/1.png, which is filed as black; one is trained on, the other validated with'
    assert found.reason.iloc[0] == 'the same bytes as teddy/1.png' and show_issues(duplicate_issues(seen), 'copy').count('<img') == 2
    with pytest.raises(DataError, match='`surveyed` lacks'): duplicate_issues(seen, survey(files[:2]))

def test_a_file_listed_twice_is_no_copy(tmp_path):
    "Whoever lists a rare image several times must not be told to delete it"
    file = tmp_path/'teddy'/'1.png'
    file.parent.mkdir()
    draw_bear('teddy', seed=0, side=64).save(file)
    seen = tabulate([file]*3 + ['other.png'], ['valid']*3 + ['train'], np.eye(3)[[2, 2, 2, 0]], [2]*3 + [0], labels, np.eye(4))
    assert len(duplicate_issues(seen.only('valid'))) == 0 and 'filed as teddy, called teddy' in show_nearest(seen, [file], 1, 40)

def test_a_rare_label_is_not_called_wrong():
    "Eight images beside two clouds of a hundred and fifty"
    rng = np.random.default_rng(1)
    y = np.repeat([0, 1, 2], [150, 150, 8])
    x = rng.normal(size=(len(y), 16))
    x[np.arange(len(y)), y] += 3
    found = label_issues(as_seen(x, y))
    assert (found[found.actual == 'teddy'].kind == 'wrong_label').sum() <= 1

# What is promised

def weights(shared, monkeypatch):
    "The cached ImageNet weights, or the test is skipped"
    if not (shared/'torch').is_dir(): pytest.skip(f'there is no folder {shared/"torch"}')
    monkeypatch.setenv('TORCH_HOME', str(shared/'torch'))

def test_wrong_labels_among_photographs(shared, monkeypatch):
    "A twentieth of the labels made wrong: at least 95% of them among the first 1.5 times as many candidates, three times"
    weights(shared, monkeypatch)
    photos = evaluate(train(shared/'data'/'bears', 'fast', arch='squeezenet1_1', quiet=True), 'all')
    for seed in range(3):
        rng, y = np.random.default_rng(seed), photos.targets
        wrong = rng.choice(len(y), round(.05*len(y)), replace=False)
        y[wrong] = (y[wrong] + rng.integers(1, 3, len(wrong))) % 3
        spoilt = tabulate(photos.table.file, photos.table.split, photos.probabilities, y, photos.labels, photos.features)
        first = set(label_issues(spoilt).file[:int(1.5*len(wrong))])
        assert np.mean([f in first for f in photos.table.file.iloc[wrong]]) >= .95

def test_swapped_labels_and_strangers_among_drawn_bears(shared, monkeypatch, tmp_path):
    "At least 85% of both among the first twice as many candidates"
    weights(shared, monkeypatch)
    path = draw_bears(tmp_path/'bears', n_per_label=400, seed=42)
    seen = evaluate(train(path, 'fast', arch='squeezenet1_1', exclude=check_images(path).files(*broken_issues), quiet=True), 'all')
    with open(path/'faults.csv', encoding='utf-8', newline='') as f: bad = {r['file'] for r in csv.DictReader(f) if r['fault'] in ('swapped_label', 'not_a_bear')}
    first = ['/'.join(Path(f).parts[-2:]) for f in label_issues(seen).file[:2*len(bad)]]
    assert len(bad) == 36 and np.mean([f in first for f in bad]) >= .85

# How many labels are wrong

def made_up_labels(n=500, n_wrong=0, clear=6., seed=0, habit=False, n_labels=3):
    "Features with a direction for each label, `clear` deviations apart, and labels of which some are wrong"
    rng = np.random.default_rng(seed)
    true = rng.integers(0, n_labels, n)
    features = (rng.normal(size=(n, 12)) + clear*np.eye(12)[true]).astype(np.float32)
    wrong = rng.permutation(np.flatnonzero(true == 1) if habit else np.arange(n))[:n_wrong]
    given = true.copy()
    given[wrong] = 0 if habit else (given[wrong] + rng.integers(1, n_labels, n_wrong)) % n_labels
    p = np.full((n, n_labels), 1/n_labels)
    seen = tabulate([f'{i}.jpg' for i in range(n)], ['valid']*n, p, given, [f'label {i}' for i in range(n_labels)], features)
    return seen, np.isin(np.arange(n), wrong)

@pytest.mark.parametrize('n_wrong', [0, 5, 25, 75])
@pytest.mark.parametrize('clear', [6., 3., 1.5])
def test_wrong_labels_are_counted(n_wrong, clear):
    "From features that tell all to features that tell little: the interval holds the truth on two of three seeds at least"
    held = []
    for seed in range(3):
        seen, wrong = made_up_labels(n_wrong=n_wrong, clear=clear, seed=seed)
        p = out_of_fold(seen.features, seen.targets)
        count = count_wrong_labels(seen)
        listed = p.argmax(1) != seen.targets
        assert count.listed == listed.sum()
        held.append(count.low <= wrong[listed].sum() <= count.high)
        if clear == 6: assert abs(count.n - wrong[listed].sum()) <= 2 + .1*n_wrong
    assert sum(held) >= 2

def test_one_way_of_going_wrong_is_counted_too():
    seen, wrong = made_up_labels(n_wrong=40, habit=True)
    count = count_wrong_labels(seen)
    assert count.low <= 40 <= count.high and count.n > 20 and count.worth_a_look

def test_a_poor_model_does_not_call_labels_wrong():
    "Four in ten contradicted, none wrong: at most a few are called so, and the list is not worth a look"
    seen, _ = made_up_labels(clear=.8)
    count = count_wrong_labels(seen)
    assert count.listed > 100 and count.low == 0 and count.n < 15 and not count.worth_a_look

def test_only_the_list_is_counted():
    seen, wrong = made_up_labels(n_wrong=30)
    half = pd.DataFrame(dict(file=seen.table.file[wrong][:15]))
    count = count_wrong_labels(seen, half)
    assert (count.listed, round(count.n)) == (15, 15)
    none = count_wrong_labels(seen, half[:0])
    assert (none.listed, none.n, none.words) == (0, 0, 'no label is contradicted by its image') and not none.worth_a_look

def test_words_of_a_count():
    assert WrongLabels(.1, 0, 1, 9).words == '9 labels are contradicted by their images; probably none of them is wrong (at most 1)'
    assert WrongLabels(12.4, 9, 15, 20).words.endswith('about 12 of them are probably wrong (9 to 15)')
    assert 'too few images' in WrongLabels(math.nan, 0, 3, 3).words and WrongLabels(math.nan, 0, 3, 3).worth_a_look

def test_many_labels_and_many_images():
    seen, wrong = made_up_labels(n=3000, n_wrong=100, clear=6., n_labels=11)
    count = count_wrong_labels(seen, max_fit=800)
    assert abs(count.n - 100) < 15
