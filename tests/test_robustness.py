"Corruptions on odd images, and the table they lead to"
import json, shutil
import numpy as np
import pytest
from PIL import Image
from bearcls.core import DataError
from bearcls.export.card import add_metrics
from bearcls.export.robustness import Corruption, apply_corruption, show_corruptions, evaluate_robustness, robustness_columns, robustness_metadata, robustness_html, robustness_words, corruptions, trust_on_corruptions
from bearcls.inference.bundle import card_text, read_bundle
from bearcls.inference.classifier import Classifier
from tiny_bundle import furs, make_bundle

@pytest.fixture
def asked(tmp_path):
    "A classifier of fur colours, and two images of each colour"
    rng = np.random.default_rng(0)
    for label, colour in furs.items():
        (tmp_path/'furs'/label).mkdir(parents=True)
        for i in range(2): Image.fromarray(np.uint8(np.clip(rng.normal(colour, 6, (90, 120, 3)), 0, 255))).save(tmp_path/'furs'/label/f'{i}.png')
    return Classifier(make_bundle(tmp_path/'bundle')), tmp_path/'furs'

@pytest.mark.parametrize('size', [(1, 1), (3, 200), (200, 3), (97, 61)])
@pytest.mark.parametrize('kind', corruptions)
def test_any_image_keeps_its_size(kind, size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    before = image.tobytes()
    for strength in (0, 1, 2, 3):
        done = apply_corruption(image, kind, strength)
        assert (done.size, done.mode) == (size, 'RGB')
    assert image.tobytes() == before

@pytest.mark.parametrize('kind', [k for k in corruptions if k not in ('far away', 'tilt')])  # these two move everything at once
def test_stronger_is_stronger(kind):
    "On an image with shapes, the strongest is further from the image than the weakest"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).resize((200, 160), Image.Resampling.NEAREST)
    far = [np.abs(np.asarray(apply_corruption(image, kind, s), float) - np.asarray(image)).mean() for s in (1, 2, 3)]
    assert far[0] > .5 and far[0] < far[1] < far[2]

def test_the_seed_decides():
    image = Image.new('RGB', (80, 60), (90, 120, 70))
    a, b, c = (apply_corruption(image, 'rain', 2, seed).tobytes() for seed in (1, 1, 2))
    assert a == b != c

def test_columns_and_first_row(asked):
    table = evaluate_robustness(*asked, kinds=['night', 'tilt'])
    assert list(table.columns) == robustness_columns and len(table) == 7
    assert (table.kind[0], table.strength[0], table.n[0], table.error[0]) == ('none', 0, 6, 0)
    assert table.error[1:4].max() > 0  # by night all furs are black
    assert ((table.low <= table.error + 1e-9) & (table.error <= table.high + 1e-9)).all()

def test_images_come_from_all_labels(asked):
    classifier, path = asked
    for i in range(2, 30): (path/'black'/f'{i}.png').write_bytes((path/'black'/'0.png').read_bytes())
    from bearcls.export.robustness import _robustness_images
    assert sorted(_robustness_images(classifier, path, 6, 0)[1]) == ['black']*2 + ['brown']*2 + ['white']*2

def test_broken_files_are_passed_over(asked):
    classifier, path = asked
    (path/'black'/'0.png').write_bytes(b'<html>')
    assert evaluate_robustness(classifier, path, ['rain'], [1]).n.tolist() == [5, 5]
    for f in path.rglob('*.png'): f.write_bytes(b'<html>')
    with pytest.raises(DataError, match='None of the 6 images'): evaluate_robustness(classifier, path, ['rain'])

def test_one_of_ones_own(asked, monkeypatch):
    monkeypatch.setitem(corruptions, 'mud', Corruption(lambda image, share, rng: Image.new('RGB', image.size, 'brown'), (.5,), '{:.0%} of the lens'))
    table = evaluate_robustness(*asked, kinds=['mud'], strengths=[1])
    assert table.level[1] == '50% of the lens' and 'mud, 50% of the lens' in show_corruptions(Image.new('RGB', (50, 40)), ['mud'], [1])
    with pytest.raises(ValueError, match='from 0 to 1, got 2'): apply_corruption(Image.new('RGB', (9, 9)), 'mud', 2)

def test_nobody_trusted(asked):
    "A table without a trusted answer has words and no division by nothing"
    classifier, path = asked
    classifier.bundle.smallest = 10_000
    table = evaluate_robustness(classifier, path, ['rain'], [1, 2])
    assert table.trusted.max() == 0 and table.trusted_error.isna().all()
    assert 'none of which are answered with trust' in robustness_words(table)
    assert 'none trusted' in robustness_html(table) and json.loads(json.dumps(robustness_metadata(table), allow_nan=False))['rows'][1]['trusted_error'] is None
    assert trust_on_corruptions(table)['harmful'] == []

def test_few_trusted(asked):
    "A share of a handful would say more than is known"
    table = evaluate_robustness(*asked, ['rain'], [1])
    n = int(table[table.strength > 0].n.sum())
    n_trusted = round(trust_on_corruptions(table)['trusted']*n)
    assert 0 < n_trusted < 20, 'the test needs a few trusted answers'
    assert f'too few trusted answers to say how many are wrong: {n_trusted} of {n}.' in robustness_words(table)

def test_into_the_card(asked, tmp_path):
    "Every way is a line of the card, and the model stays the same"
    classifier, path = asked
    bundle = shutil.copytree(classifier.bundle.path, tmp_path/'copy')
    before = read_bundle(bundle)
    add_metrics(bundle, dict(robustness=robustness_metadata(evaluate_robustness(classifier, path, kinds=['rain', 'tilt'], strengths=[2]))), replace_card=True)
    section = card_text(after := read_bundle(bundle)).partition('### Under bad conditions')[2].partition('\n#')[0]
    lines = [line for line in section.splitlines() if line.startswith('|')]
    assert len(lines) == 5 and len({line.count('|') for line in lines}) == 1
    assert after.digest == before.digest and {k: v for k, v in after.metrics.items() if k != 'robustness'} == before.metrics
