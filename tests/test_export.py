"Export on awkward Learners: agreement, what is measured, what is refused; variants and weights"
import json, re, shutil, zipfile
from dataclasses import replace
from pathlib import Path
import numpy as np, onnxruntime, pandas as pd, pytest, torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import RandomSplitter, get_image_files, parent_label
from fastai.learner import Learner
from fastai.vision.augment import Resize
from fastai.vision.data import ImageBlock, ImageDataLoaders
from fastai.vision.learner import vision_learner
from torch import nn
from torchvision.models import resnet18
import yaml
from tiny_bundle import make_bundle
from PIL import Image, ImageEnhance
import bearcls.export.convert as convert_module
import bearcls.export.held_out as held_out
from bearcls.train.arch import TrainError
from bearcls.inference.bundle import Bundle, bundle_json, card_text, model_bytes, read_bundle, resize_methods, sign_bundle, weights_bytes, zip_bundle
from bearcls.interpret.calibrate import fit_temperature
from bearcls.export.card import model_card
from bearcls.inference.files import BundleError
from bearcls.core import DataError
from bearcls.manifest import ImageRow, read_manifest, write_manifest
from bearcls.images import load_image
from bearcls.folders import image_files
from bearcls.data.loaders import image_dls
from bearcls.export.convert import ExportError, check_dest, export_bundle, validation_files, verify_bundle
from bearcls.export.held_out import error_by_source, image_sources, learner_ood_score, learner_probabilities
from bearcls.export.weights import learner_from_bundle
from bearcls.inference.classifier import Classifier
from bearcls.interpret.evaluate import evaluate
from bearcls.inference.onnxfile import check_model
from bearcls.sample.bears import draw_bears
from bearcls.export.weights import build_network, learner_weights
from bearcls.export.recalibrate import recalibrate
from bearcls.inference.signature import SignatureError, make_keys
from bearcls.train.learner import train
from bearcls.sample.strangers import draw_strangers
from bearcls.export.variants import compare_bundles, compress_bundle

@pytest.fixture(scope='module')
def learned(tmp_path_factory):
    "A Learner with sixty held-back images, everything that it says, and its bundle with weights"
    path = draw_bears(tmp_path_factory.mktemp('learned')/'bears', n_per_label=100, seed=8, faults=False)
    learn = train(path, 'scratch', epochs=5, size=48, quiet=True)
    seen = evaluate(learn, 'all')
    return learn, path, seen, export_bundle(learn, path.parent/'bundle', seen=seen, weights=True)

def test_what_is_measured_is_what_the_bundle_does(learned):
    "Error, temperature and OOD score in the metadata, counted again on the bundle's own answers"
    learn, path, seen, bundle = learned
    metadata, held = read_bundle(bundle), seen.only('valid')
    assert metadata.metrics['n'] == len(held) and metadata.metrics['wrong'] == int((~held.table.correct).sum())
    said = evaluate(bundle, path=path)
    said = said.where(said.table.file.isin(set(held.table.file)))
    assert (said.table.predicted != said.table.actual).sum() == metadata.metrics['wrong']
    fitted = fit_temperature(held)
    assert metadata.temperature == pytest.approx(fitted.value) and metadata.metrics['temperature_fit']['n'] == len(held)  # the body was trained, so only these can say
    rows = Classifier(bundle).predict_batch(list(held.table.file))
    above = np.mean([r.prediction.ood_score > metadata.ood_score['threshold'] for r in rows])
    assert above <= metadata.ood_score['false_positive_rate'] + 2/len(held)

def test_both_sides_within_a_thousandth(learned):
    learn, path, seen, bundle = learned
    assert verify_bundle(learn, bundle, image_files(path)[::5]) < .001
    assert read_bundle(bundle).metrics['largest_difference'] < .001

def test_strangers_are_less_alike_than_bears(learned):
    learn, path, seen, bundle = learned
    classifier = Classifier(bundle)
    bears = [r.prediction.ood_score for r in classifier.predict_batch(validation_files(learn.dls))]
    strangers = [classifier.predict(image).ood_score for _, image in draw_strangers(30)]
    assert np.median(strangers) > np.median(bears)

def test_metrics_of_your_own_stay(learned, tmp_path):
    learn, _, seen, _ = learned
    metadata = read_bundle(export_bundle(learn, tmp_path/'b', metrics={'error_rate': np.float32(.25)}, temperature=2, ood_score=False, seen=seen))
    assert (metadata.metrics['error_rate'], metadata.temperature, metadata.ood_score) == (.25, 2, None) and 'log_loss' not in metadata.metrics

def test_images_are_asked_once(learned, tmp_path, monkeypatch):
    "With `seen` at hand, the Learner is not asked again"
    learn, _, seen, _ = learned
    monkeypatch.setattr(learn, 'get_preds', lambda *args, **kwargs: pytest.fail('the Learner was asked again'))
    export_bundle(learn, tmp_path/'b', seen=seen)

def test_a_learner_that_is_too_sure_is_compared_by_its_logits(learned, tmp_path):
    "Probabilities that were rounded to 0 do not say what the Learner answers at the bundle's temperature"
    learn, *_ = learned
    last = [m for m in learn.model.modules() if isinstance(m, nn.Linear)][-1]
    kept = last.weight.data.clone()
    last.weight.data *= 3000
    try:
        seen = evaluate(learn, 'all')
        assert (seen.only('valid').probabilities == 0).any()
        bundle = export_bundle(learn, tmp_path/'b', seen=seen, ood_score=False)
        metadata = read_bundle(bundle)
        assert metadata.temperature > 2 and metadata.metrics['largest_difference'] < .001
    finally: last.weight.data = kept

def test_lost_images_are_told(learned, tmp_path):
    "Where training images are gone, the rest is measured, and the card says so"
    _, path, _, _ = learned
    for file in image_files(path)[::3]:
        (tmp_path/'bears'/file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path/'bears'/file.parent.name)
    learn = train(tmp_path/'bears', 'scratch', epochs=1, size=32, quiet=True)
    for f in learn.dls.train_ds.items[:9]: Path(f).unlink()
    bundle = export_bundle(learn, tmp_path/'without')
    metadata = read_bundle(bundle)
    assert metadata.data['fingerprint'] == '' and metadata.ood_score['images'] == len(learn.dls.train_ds) + len(learn.dls.valid_ds) - 9
    assert '9 of its images could not be found any more' in (bundle/'README.md').read_text(encoding='utf-8')
    Path(learn.dls.valid_ds.items[0]).unlink()
    assert read_bundle(export_bundle(learn, tmp_path/'some', ood_score=False)).metrics['images_compared'] == len(learn.dls.valid_ds) - 1
    for f in learn.dls.valid_ds.items: Path(f).unlink(missing_ok=True)
    with pytest.raises(ExportError, match='None of the validation images is where it was'): export_bundle(learn, tmp_path/'none')
    assert not (tmp_path/'none').exists() and not list(tmp_path.glob('.none*'))

def test_sources_come_into_the_card(tmp_path):
    path = draw_bears(tmp_path/'bears', n_per_label=12, seed=3, faults=False)
    rows = read_manifest(path)
    for i, r in enumerate(rows): r.page, r.license = f'https://www.site{i % 20}.example/<b>|{i}', 'CC BY' if i % 2 else ''
    write_manifest(path, rows)
    learn = train(path, 'scratch', epochs=1, size=32, quiet=True)
    bundle = export_bundle(learn, tmp_path/'bundle')
    sources = read_bundle(bundle).data['sources']
    assert len(sources['site']) == 13 and sources['site']['others'] == 36 - sum(n for s, n in sources['site'].items() if s != 'others')
    assert sources['license'] == {'CC BY': 18, '': 18}
    card = (bundle/'README.md').read_text(encoding='utf-8')
    assert 'site0.example' in card and 'not known (18)' in card
    assert yaml.safe_load(card.split('---\n')[1])['model-index'][0]['name'] == 'bundle'

@pytest.mark.parametrize('labels', [['a|b', '*c*', '<script>'], ['grizzly bear', 'Bär 🐻', '熊'], ["it's", '"q"', '`x`'], ['a: b', '- c', '#d']], ids=str)
def test_labels_of_any_kind(learned, tmp_path, labels):
    "Through folder, model, metadata, card and answer"
    _, path, _, _ = learned
    for old, new in zip(('black', 'grizzly', 'teddy'), labels):
        (tmp_path/'p'/new).mkdir(parents=True)
        for f in image_files(path):
            if f.parent.name == old and len(list((tmp_path/'p'/new).iterdir())) < 10: shutil.copy(f, tmp_path/'p'/new)
    learn = Learner(image_dls(tmp_path/'p', size=32, bs=8, augment=()), nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)), loss_func=nn.CrossEntropyLoss())
    bundle = export_bundle(learn, tmp_path/'bundle.zip')
    assert sorted(Classifier(bundle).predict(validation_files(learn.dls)[0]).probabilities) == sorted(labels)
    head = yaml.safe_load(model_card(read_bundle(bundle), 'x').split('---\n')[1])
    assert head['library_name'] == 'bearcls'

@pytest.mark.parametrize('method', resize_methods)
def test_the_card_s_lines_answer_without_bearcls(tmp_path, method, monkeypatch, capsys):
    "Run as they stand in the card, on an upright photograph that lies on its side in the file"
    bundle = make_bundle(tmp_path/'furs', method=method)
    card = model_card(read_bundle(bundle), 'furs')
    lines = next(block for block in re.findall(r'```python\n(.*?)```', card, re.DOTALL) if 'bearcls' not in block)
    noise = np.random.default_rng(0).integers(0, 90, (120, 300, 3), dtype=np.uint8)
    image, turned = Image.fromarray(noise), Image.Exif()
    turned[0x0112] = 6
    image.paste((150, 90, 40), (100, 0, 200, 120))
    image.save(bundle/'photo.jpg', exif=turned)
    monkeypatch.chdir(bundle)
    exec(compile(lines, 'card', 'exec'), {})
    label, probability = capsys.readouterr().out.split()
    ours = Classifier(bundle).predict(bundle/'photo.jpg')
    assert label == ours.label and float(probability) == pytest.approx(ours.probability, abs=.01)

@pytest.mark.parametrize('n_trusted, words', [(0, '0 of 240 answers were trusted, too few'), (1, '1 of 240 answers were trusted, too few'), (19, '19 of 240 answers were trusted, too few'), (20, '8.3% were trusted, and 50.0% of these were wrong')])
def test_a_share_of_few_trusted_answers_is_a_count_in_the_card(n_trusted, words):
    found = dict(images=120, copies=240, groups=20, trusted=n_trusted/240, error=.5, error_low=.3, error_high=.7, trusted_as_is=.5, error_as_is=.1)
    bundle = Bundle(['black', 'grizzly'], (64, 64), confidence=dict(bias=0., evidence=dict(probability=[0., 1., 1.]), **found))
    card = model_card(bundle, 'bears')
    assert words in card and ('50.0% of these were wrong' in card) == (n_trusted == 20)
    as_is = model_card(replace(bundle, confidence=bundle.confidence | dict(trusted=.5, trusted_as_is=3/120)), 'bears')
    assert '3 of 120 answers were trusted, too few' in as_is and '50.0% of the answers were trusted' in as_is
    assert 'an unknown share' in model_card(replace(bundle, confidence=dict(bias=0., evidence=dict(probability=[0., 1., 1.]))), 'bears')

def test_book_learner_from_end_to_end(learned, tmp_path):
    "fastai's own DataBlock, and a residual network of vision_learner: bundle, weights, Learner again"
    _, path, _, _ = learned
    block = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, splitter=RandomSplitter(seed=1), get_y=parent_label, item_tfms=Resize(64))
    learn = vision_learner(block.dataloaders(path, bs=16, num_workers=0), resnet18, pretrained=False)
    bundle = export_bundle(learn, tmp_path/'bundle', weights=True)
    assert verify_bundle(learn, bundle) < .001
    again = learner_from_bundle(bundle)
    files = validation_files(learn.dls)[:6]
    assert np.abs(learner_probabilities(learn, files) - learner_probabilities(again, files)).max() < 1e-5

def test_destinations(learned, tmp_path):
    learn, _, seen, _ = learned
    (tmp_path/'file').write_text('text')
    (tmp_path/'other.zip').write_bytes(b'PK')
    with zipfile.ZipFile(tmp_path/'photos.zip', 'w') as z: z.writestr('1.jpg', b'')
    for name in ('file', 'other.zip', 'photos.zip'):
        with pytest.raises(ExportError, match='so it is not replaced|is a file'): check_dest(tmp_path/name)
    zipped = export_bundle(learn, tmp_path/'deep'/'b.zip', seen=seen)
    assert export_bundle(learn, zipped, seen=seen) == zipped and read_bundle(zipped).labels == ['black', 'grizzly', 'teddy']
    assert [f.name for f in zipped.parent.iterdir()] == ['b.zip']

def test_failed_export_leaves_the_old_bundle(learned, tmp_path):
    learn, _, seen, bundle = learned
    copy = shutil.copytree(bundle, tmp_path/'copy')
    before = {f.name: f.read_bytes() for f in copy.iterdir()}
    with pytest.raises(ExportError, match='would not answer'): export_bundle(learn, copy, seen=seen, tolerance=-1)
    assert {f.name: f.read_bytes() for f in copy.iterdir()} == before and [f.name for f in tmp_path.iterdir()] == ['copy']

def test_export_leaves_no_weights_of_the_older_bundle(learned, tmp_path):
    learn, _, seen, bundle = learned
    copy = shutil.copytree(bundle, tmp_path/'copy')
    export_bundle(learn, copy, seen=seen)
    assert not (copy/'weights.safetensors').exists()

def test_exported_models_pass_the_look_at_them(learned):
    found = check_model(model_bytes(read_bundle(learned[3])))
    assert found.opset == 18 and found.tensors['float16'] > 0

# Weights

def test_learner_again_is_the_same(learned):
    learn, _, _, bundle = learned
    again = learner_from_bundle(bundle)
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(learn.model.state_dict().values(), again.model.state_dict().values()))

@pytest.mark.parametrize('content', [b'', b'\0'*8, b'\xff'*100, b'\x10\0\0\0\0\0\0\0{"a": [1, 2, 3]}', b'\x80\x04pickle'], ids=range(5))
def test_broken_weights(learned, tmp_path, content):
    from bearcls.core import sha256
    copy = shutil.copytree(learned[3], tmp_path/'copy')
    (copy/'weights.safetensors').write_bytes(content)
    with pytest.raises(BundleError): learner_from_bundle(copy)
    metadata = json.loads((copy/'bundle.json').read_text())
    metadata['weights'].update(sha256=sha256(content), bytes=max(1, len(content)))
    (copy/'bundle.json').write_text(json.dumps(metadata))
    with pytest.raises(BundleError): learner_from_bundle(copy)

@pytest.mark.parametrize('recipe', [dict(builder='os.system'), dict(builder='vision_learner'), dict(builder='vision_learner', head='x'), dict(builder='vision_learner', head=[['Linear', dict(in_features=10**9, out_features=10**9)]]),
    dict(builder='vision_learner', head=[['Linear', dict(in_features=-1, out_features=3)]]), dict(builder='vision_learner', head=[['Sequential', {}]]), dict(builder='vision_learner', head=[['Dropout', dict(p='0')]]),
    dict(builder='arch', arch='../../x')], ids=str)
def test_recipes_that_build_nothing(learned, tmp_path, recipe):
    copy = shutil.copytree(learned[3], tmp_path/'copy')
    metadata = json.loads((copy/'bundle.json').read_text())
    metadata['weights'] = {**{k: metadata['weights'][k] for k in ('sha256', 'bytes')}, **recipe}
    metadata['model']['arch'] = recipe.get('arch', 'squeezenet1_1')
    (copy/'bundle.json').write_text(json.dumps(metadata))
    with pytest.raises(BundleError): learner_from_bundle(copy)

# Variants

@pytest.mark.parametrize('kind, smaller, moved', [('fp16', .62, .01), ('int8', .5, .5)])
def test_variants(learned, tmp_path, kind, smaller, moved):
    learn, _, _, bundle = learned
    train_files, held = ([Path(f) for f in ds.items] for ds in (learn.dls.train_ds, learn.dls.valid_ds))
    secret, public = make_keys(tmp_path/'mine')
    made = compress_bundle(bundle, tmp_path/'small.zip', kind, train_files[:60], held, max_changed=.5, key=secret)  # a hasty model is unsure, and rounding turns many of its answers
    metadata, changes = read_bundle(made, key=public), read_bundle(made).metrics['compressed']
    assert metadata.variant == dict(fp16='float16').get(kind, kind) and metadata.weights is None
    assert changes['bytes_after'] < smaller*changes['bytes_before'] and changes['largest_change'] < moved
    again = compare_bundles(bundle, made, held)
    assert again['changed'] == changes['changed'] and again['n'] == len(held)
    assert 'Made smaller' in model_card(metadata, 'x')
    with pytest.raises(BundleError, match='no weights|holds no'): weights_bytes(metadata)

def test_photographs(shared, tmp_path, monkeypatch):
    "Real photographs and ImageNet's features: both sides, in the folder, in half the bytes and in whole numbers"
    if not (shared/'torch').is_dir() or not (shared/'data'/'bears').is_dir(): pytest.skip('no photographs or weights')
    monkeypatch.setenv('TORCH_HOME', str(shared/'torch'))
    learn = train(shared/'data'/'bears', 'fast', arch='squeezenet1_1', quiet=True)
    bundle = export_bundle(learn, tmp_path/'bundle', weights=True)
    assert verify_bundle(learn, bundle) < .001
    metadata = read_bundle(bundle)
    assert metadata.metrics['calibration_error'] < .05 and metadata.weights['builder'] == 'vision_learner'
    train_files, held = ([Path(f) for f in ds.items] for ds in (learn.dls.train_ds, learn.dls.valid_ds))
    again = learner_from_bundle(bundle)
    assert np.abs(learner_probabilities(learn, held[:8], metadata.min_side) - learner_probabilities(again, held[:8], metadata.min_side)).max() < 1e-4
    for kind, most in (('float16', .01), ('int8', .5)):
        changes = read_bundle(compress_bundle(bundle, tmp_path/kind, kind, train_files[:60], held)).metrics['compressed']
        assert changes['largest_change'] < most and abs(changes['error_after'] - changes['error_before']) < .05

def tiny(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

def test_learner_from_a_table(learned, tmp_path):
    "Items that are rows of a table are counted, named and compared as files are"
    _, path, _, _ = learned
    files = image_files(path)[::6]
    table = pd.DataFrame(dict(name=[f.relative_to(path).as_posix() for f in files], label=[f.parent.name for f in files]))
    learn = Learner(ImageDataLoaders.from_df(table, path, item_tfms=Resize(32), bs=8, num_workers=0, seed=1), tiny(), loss_func=nn.CrossEntropyLoss())
    metadata = read_bundle(export_bundle(learn, tmp_path/'b'))
    assert (metadata.data['train'], metadata.data['valid']) == (len(learn.dls.train_ds), len(learn.dls.valid_ds)) and len(metadata.data['fingerprint']) == 64
    assert sum(n['train'] + n['valid'] for n in metadata.data['labels'].values()) == len(files)

def test_folders_of_others_stay(learned, tmp_path):
    learn, _, seen, bundle = learned
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'bundle.json').write_text('{"webpack": 1}')
    (tmp_path/'mine'/'README.md').write_text('my words')
    with pytest.raises(ExportError, match='is no bundle that can be read'): export_bundle(learn, tmp_path/'mine', seen=seen)
    assert (tmp_path/'mine'/'README.md').read_text() == 'my words'
    copy = shutil.copytree(bundle, tmp_path/'copy')
    with open(copy/'README.md', 'a') as f: f.write('by hand')
    with pytest.raises(ExportError, match='was changed by hand'): export_bundle(learn, copy, seen=seen)

@pytest.mark.parametrize('how,error,words', [(dict(max_check=0), ValueError, '`max_check` must be at least 1'), (dict(files=[]), ExportError, '`files` is empty'), (dict(key='no-such.key'), SignatureError, 'cannot be read'),
    (dict(metrics={'error_rate': float('nan')}), BundleError, 'metrics.error_rate')], ids=['max_check', 'files', 'key', 'metrics'])
def test_refused_before_the_work(learned, tmp_path, monkeypatch, how, error, words):
    learn, _, seen, _ = learned
    monkeypatch.setattr(convert_module, 'onnx_model', lambda *args: pytest.fail('the work was begun'))
    with pytest.raises(error, match=words): export_bundle(learn, tmp_path/'b', seen=seen, **how)
    assert not list(tmp_path.iterdir())

def test_half_an_evaluation_is_not_enough(learned, tmp_path):
    learn, path, seen, bundle = learned
    with pytest.raises(ExportError, match='holds no training images'): export_bundle(learn, tmp_path/'b', seen=seen.only('valid'))
    assert compare_bundles(bundle, bundle, path/'teddy')['changed'] == 0  # a folder is taken too

@pytest.mark.parametrize('recipe,arch', [(dict(builder='vision_learner', head=[]), 'regnet_y_128gf'), (dict(builder='vision_learner', head=[['Linear', dict(in_features=1000, out_features=1000)]]*2000), 'resnet18'),
    (dict(builder='vision_learner', head=[['AdaptiveConcatPool2d', dict(size=700)]]), 'resnet18'), (dict(builder='arch'), 'vit_b_16'), (dict(builder='arch'), 'os.system')], ids=['body', 'head', 'pool', 'other', 'name'])
def test_no_network_is_larger_than_its_weights(recipe, arch):
    with pytest.raises(TrainError): build_network(arch, recipe, 3, limit=1000)

def test_weights_of_other_heads(learned):
    "torch's own Flatten in a head, and a head that ends in batch norm"
    dls = learned[0].dls
    plain = vision_learner(dls, resnet18, pretrained=False, custom_head=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 3)))
    assert learner_weights(plain)[1]['builder'] == 'own'
    assert learner_weights(vision_learner(dls, resnet18, pretrained=False, bn_final=True))[1]['builder'] == 'vision_learner'

def test_a_learner_again_can_be_frozen(learned, tmp_path):
    learn = vision_learner(learned[0].dls, resnet18, pretrained=False)
    again = learner_from_bundle(export_bundle(learn, tmp_path/'b', weights=True, ood_score=False))
    for l in (learn, again): l.freeze()
    counts = [sum(not p.requires_grad for p in l.model.parameters()) for l in (learn, again)]
    assert counts[0] == counts[1] > 0

def test_the_limit_of_small_images_follows_from_the_training_images(tmp_path):
    "Digits of 28 by 28 pixels are no reason to ask a person, if the model has learned from such; crumbs are"
    from bearcls.data.loaders import image_dls
    from bearcls.export.convert import bundle_metadata, trained_smallest
    from bearcls.inference.prediction import judge
    rng, limits = np.random.default_rng(0), {}
    for name, sides in {'digits': [28]*20, 'photographs': [300]*20, 'mixed': [300]*18 + [20]*2}.items():
        for k, side in enumerate(sides):
            (tmp_path/name/'ab'[k % 2]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(tmp_path/name/'ab'[k % 2]/f'{k:02}.png')
        dls = image_dls(tmp_path/name, size=32, bs=4)
        limits[name] = trained_smallest(dls)
    assert limits['digits'] == 14 and limits['photographs'] == 32 and limits['mixed'] <= 32
    metadata = bundle_metadata(Learner(image_dls(tmp_path/'digits', size=32, bs=4), torch.nn.Identity(), torch.nn.CrossEntropyLoss()))
    assert metadata.smallest == 14 and bundle_json(metadata, '0'*64, 1)['trust']['smallest'] == 14
    sure = dict(a=.99, b=.01)
    assert judge(metadata, sure, (28, 28)) == judge(metadata, sure, (14, 20)) == '' and judge(metadata, sure, (28, 13)) == 'the image is only 28 by 13 pixels'

# OOD score with the classes of ImageNet

@pytest.fixture(scope='module')
def photographed(shared, tmp_path_factory):
    "A fast Learner of a third of the real photographs, what it says, and its bundle"
    folder = tmp_path_factory.mktemp('photographed')
    for file in image_files(shared/'data'/'bears')[::3]:
        (folder/'bears'/file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder/'bears'/file.parent.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TORCH_HOME', str((shared/'torch').resolve()))
        learn = train(folder/'bears', 'fast', 'squeezenet1_1', quiet=True)
        seen = evaluate(learn, 'all')
        return learn, seen, export_bundle(learn, folder/'bundle', seen=seen), export_bundle(learn, folder/'without', seen=seen, ood_score=False)

def test_imagenet_classes_go_along(photographed, shared, monkeypatch):
    "The model in ONNX scores as NumPy does, and the bundle stays small"
    learn, seen, bundle, without = photographed
    metadata = read_bundle(bundle).ood_score
    assert metadata['score'] == 'neighbours and ImageNet classes' and set(metadata['left_out']) == set(seen.labels)
    assert metadata['held_back'] == len(seen) and metadata['false_positive_rate_low'] <= .05 <= metadata['false_positive_rate_high']
    assert model_size(bundle) - model_size(without) < 700_000
    monkeypatch.setenv('TORCH_HOME', str((shared/'torch').resolve()))
    fitted = learner_ood_score(learn, seen)  # finds the weights where the export did
    files = [Path(f) for f in seen.table.file[::7]]
    rows = Classifier(bundle).predict_batch(files)
    assert np.abs([r.prediction.ood_score for r in rows] - fitted.score(seen.features[::7])).max() < .02

def model_size(bundle): return (bundle/'model.onnx').stat().st_size

def test_without_weights_at_hand_neighbours_alone(photographed, tmp_path, monkeypatch):
    "A Learner on another machine: nothing is downloaded, and nothing fails"
    learn, seen, _, _ = photographed
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'nothing'))
    assert read_bundle(export_bundle(learn, tmp_path/'bundle', seen=seen)).ood_score['score'] == 'neighbours'

def test_the_temperature_is_fitted_to_all_images(photographed):
    learn, seen, bundle, _ = photographed
    metadata = read_bundle(bundle)
    assert metadata.metrics['temperature_fit']['n'] == len(seen) and .6 < metadata.temperature < 2

def test_sites_are_sources(photographed, tmp_path):
    "Where the manifest knows at least five sites of each label, these are held back together; otherwise groups that look alike"
    learn, seen, _, _ = photographed
    files = []
    for i, label in enumerate(seen.targets):
        file = tmp_path/seen.labels[label]/f'{i}.jpg'
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes([i % 256]))
        files.append(file)
    rows = [ImageRow(file=f'{f.parent.name}/{f.name}', page=f'https://site{i % 7}.example/{i}') for i, f in enumerate(files)]
    averages = np.random.default_rng(0).random((len(files), 8))
    assert image_sources(files, averages, seen.targets)[1] == 'groups of similar images'
    write_manifest(tmp_path, rows)
    groups, words = image_sources(files, averages, seen.targets)
    assert words == 'sites that the images come from' and len(set(groups)) == 7 and groups[0] == groups[7] != groups[1]

def test_the_error_on_other_sources_is_told(photographed, learned):
    "Measured where the body is frozen, with an interval wide enough for groups; the card quotes it"
    learn, seen, bundle, _ = photographed
    found = read_bundle(bundle).metrics['by_source']
    assert found['n'] == len(seen) and found['low'] <= found['error'] <= found['high']
    assert {k: v for k, v in error_by_source(learn, seen).items() if k in ('wrong', 'groups')} == {k: found[k] for k in ('wrong', 'groups')}
    assert 'sources that it was not trained on' in card_text(read_bundle(bundle)) and found['grouped_by'] == 'groups of similar images'
    trained, _, everything, other = learned
    assert error_by_source(trained, everything) == {} and 'by_source' not in read_bundle(other).metrics

def test_sources_that_differ_cost_more_than_chance(photographed, monkeypatch):
    "Images of one source share a tint that tells the label; held back by chance, the head can use it, and by source it cannot"
    learn, seen, _, _ = photographed
    rng = np.random.default_rng(0)
    sources = np.arange(len(seen)) % 15
    tints = rng.normal(size=(15, seen.features.shape[1]))*4
    table = seen.table.assign(actual=[seen.labels[s % 3] for s in sources])  # a source has one label
    seen = replace(seen, table=table, features=(rng.normal(size=seen.features.shape) + tints[sources]).astype(np.float32))
    monkeypatch.setattr(held_out, 'image_sources', lambda *a, **k: (sources, 'made up'))
    found = error_by_source(learn, seen)
    assert found['random'] < .05 < .4 < found['error'] and found['groups'] == 15 and found['high'] - found['low'] > .2

def test_you_say_what_a_source_is(photographed, tmp_path):
    "By a function, or by a column; images of unknown source are each their own"
    learn, seen, _, _ = photographed
    found = error_by_source(learn, seen, group_by=lambda f: f.stem[-1] if f.stem[-1] in '012' else '')
    known = seen.table.file.map(lambda f: Path(f).stem[-1] in '012')
    assert found['groups'] == seen.table.file[known].map(lambda f: Path(f).stem[-1]).nunique() + (~known).sum() and found['n'] == len(seen)
    assert found['grouped_by'] == 'your function'
    with pytest.raises(DataError, match="is known by 'site'"): error_by_source(learn, seen, group_by='site')
    bundle = export_bundle(learn, tmp_path/'bundle', seen=seen, group_by=lambda f: f.stem[-1])
    metadata = read_bundle(bundle)
    assert {metadata.ood_score['grouped_by'], metadata.confidence['grouped_by'], metadata.metrics['by_source']['grouped_by']} == {'your function'}

# Recalibration

def test_recalibrated_for_a_place(photographed, shared, tmp_path):
    "Dark images of another place are passed on as often as asked; card, zip and signature follow"
    learn, seen, bundle, _ = photographed
    place = tmp_path/'place'
    place.mkdir()
    others = image_files(shared/'data'/'bears')[1::3]
    for i, file in enumerate(others): ImageEnhance.Brightness(load_image(file, 256)).enhance(.3).save(place/f'{i:03}.jpg')
    (place/'page.jpg').write_text('<html>')
    secret, public = make_keys(tmp_path/'keys')
    zipped = zip_bundle(shutil.copytree(bundle, tmp_path/'copy'), tmp_path/'bundle.zip')
    sign_bundle(zipped, secret)
    with pytest.raises(BundleError, match='signed'): recalibrate(zipped, place)
    done = recalibrate(zipped, place, .1, key=secret)
    assert .1 - 2/done.n <= done.flagged <= .1 and done.flagged != done.flagged_before and [Path(r.file).name for r in done.skipped] == ['page.jpg'] and done.n == len(others)
    metadata = read_bundle(zipped, public)
    assert metadata.ood_score['threshold'] == done.after and metadata.ood_score['recalibrated'][0]['before'] == done.before
    assert 'About 10% of images' in card_text(metadata) and done.low < .1 < done.high
    assert read_bundle(bundle).ood_score['threshold'] == done.before  # the copy alone was changed

@pytest.mark.parametrize('share', [0, 1, 5])
def test_recalibration_refuses(photographed, tmp_path, share):
    _, seen, bundle, without = photographed
    with pytest.raises(ValueError, match='`false_positive_rate` must be between 0 and 1'): recalibrate(bundle, seen.table.file, share)
    with pytest.raises(DataError, match='at least 19 are needed'): recalibrate(bundle, list(seen.table.file[:9]))
    with pytest.raises(BundleError, match='does not tell how unlike'): recalibrate(without, list(seen.table.file[:30]))

def test_either_exporter_will_do(learned, monkeypatch):
    "Where torch has no older exporter any more, the newer one makes a model that answers alike"
    model = learned[0].model
    arguments = (64, 64), [.5]*3, [.25]*3
    def no_older(*args, dynamo, **kwargs):
        if not dynamo: raise TypeError('there is one exporter only')
        return newer(*args, dynamo=True, **kwargs)
    quick = convert_module.onnx_model(model, *arguments)
    newer = torch.onnx.export
    monkeypatch.setattr(torch.onnx, 'export', no_older)
    slow = convert_module.onnx_model(model, *arguments)
    image = np.random.default_rng(1).integers(0, 256, (5, 64, 64, 3), np.uint8)
    answers = [onnxruntime.InferenceSession(m).run(['probabilities'], {'image': image})[0] for m in (quick, slow)]
    assert np.abs(answers[0] - answers[1]).max() < 1e-5
    assert quick != slow
