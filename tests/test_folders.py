"Every file below an image folder is used, or named with a reason; no label disappears"
import contextlib, os, shutil, subprocess, sys, tempfile, unicodedata, warnings
from pathlib import Path
import numpy as np, pytest
from fastai.callback.schedule import Learner
from fastai.learner import load_learner
from fastai.vision.learner import vision_learner
from PIL import Image
from torchvision.models import squeezenet1_1
from hostile import image_bytes
from bearcls.quickstart import run as quickstart_module
from bearcls.clean.cleaning import Cleaning
from bearcls.core import DataError
from bearcls.manifest import read_manifest
from bearcls.data.loaders import image_dls
from bearcls.data.split import Split
from bearcls.export.convert import export_bundle
from bearcls.folders import LeftOutWarning, file_kind, find_all, image_files, scan_folder
from bearcls.inference.bundle import read_bundle
from bearcls.inference.classifier import Classifier
from bearcls.interpret.evaluate import evaluate
from bearcls.quickstart import quickstart
from bearcls.train.learner import train
from bearcls.verify.balance import balance
from bearcls.verify.quarantine import Suspect, quarantine_files
from bearcls.verify.report import check_images
from tiny_bundle import make_bundle

def put(path, *names, content=None):
    "Small different images, or files with this content"
    for name in names:
        (path/name).parent.mkdir(parents=True, exist_ok=True)
        if content is None: noise(name).save(path/name, 'PNG')
        else: (path/name).write_bytes(content)
    return path

def noise(name):
    "An image that no other name has"
    rng = np.random.default_rng(list(name.encode()))
    return Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((48, 48), Image.Resampling.BICUBIC)

def labelled(path, *labels, n=6, sub=''):
    return put(path, *(f'{label}/{sub}{i}.png' for label in labels for i in range(n)))

@pytest.fixture(autouse=True)
def quiet(): 
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', LeftOutWarning)
        yield

@contextlib.contextmanager
def as_nobody():
    "The rights of somebody who owns nothing here; as root, folders without permission could be read all the same"
    if os.name == 'nt': pytest.skip('Windows has other permissions')
    if os.geteuid(): yield
    else:
        os.seteuid(65534)
        try: yield
        finally: os.seteuid(0)

@pytest.fixture
def open_path():
    "A folder that everybody can reach, which pytest's own are not"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


# Names

def test_a_file_is_what_it_holds(tmp_path):
    "Forty-two of four hundred files of a web folder had no ending that anybody knows"
    labelled(tmp_path, 'black', 'teddy')
    put(tmp_path, 'black/x.jpg?v=1584804420', 'black/x.jpg;w=960', 'teddy/x.php', 'teddy/noending')
    put(tmp_path, 'black/page.php', content=b'<!DOCTYPE html><html>')
    put(tmp_path, 'teddy/readme', content=b'all about teddies')
    used = {'x.jpg?v=1584804420', 'x.jpg;w=960', 'x.php', 'noending'}
    assert used <= {f.name for f in image_files(tmp_path)}
    report = check_images(tmp_path)
    assert {(f.file, f.reason) for f in report.rows if f.issue == 'left_out'} == {('black/page.php', 'a web page'), ('teddy/readme', 'text')}
    dls = image_dls(tmp_path, size=32)
    assert used <= {f.name for f in [*dls.split.train, *dls.split.valid]}
    assert {r.file for r in dls.folder.left_out} == {'black/page.php', 'teddy/readme'}
    assert sum(l.images for l in balance(tmp_path).labels) == 16

def test_image_dls_names_what_it_does_not_use(tmp_path):
    put(labelled(tmp_path, 'black', 'teddy'), 'black/page.php', content=b'<html>')
    with pytest.warns(LeftOutWarning, match=r'1 files .*black/page.php \(a web page\)'): image_dls(tmp_path, size=32)

@pytest.mark.parametrize('name,content', [('a.ppm', b'P6 1 1 255\n\1\2\3'), ('a.pgm', b'P5 1 1 255\n\1'), ('a.jp2', b'\0\0\0\x0cjP  \r\n\x87\n'), ('a.tga', bytes(40)),
    ('a', b'P5 1 1 255\n\1'), ('a.psd', b'8BPS'), ('a.svg', b'<svg>'), ('a.dcm', bytes(128) + b'DICM'), ('a.mp4', bytes(4) + b'ftypisom'), ('a.zip', b'PK\3\4'), ('a.php', b'<html>'), ('a.cr2', b'II*\0\x10\0\0\0CR\2\0')])
def test_a_label_that_cannot_be_read_is_an_error(tmp_path, name, content):
    "A bundle for two labels must not come out of three folders"
    labelled(tmp_path, 'black', 'grizzly')
    put(tmp_path, *(f'tri/{i}{name}' for i in range(6)), content=content)
    with pytest.raises(DataError, match='tri'): image_dls(tmp_path, size=32)
    with pytest.raises(DataError, match='tri'): quickstart(tmp_path.parent/f'{tmp_path.name}-out', tmp_path, quiet=True)
    named = {f.file for f in check_images(tmp_path).rows}
    assert {f'tri/{i}{name}' for i in range(6)} <= named

@pytest.mark.parametrize('head,kind', [(b'BM' + bytes(12) + b'\x28\0\0\0', 'image'), (b'BMW is a maker of cars', 'text'), (b'GIF89a', 'image'), (b'RIFF\0\0\0\0WEBP', 'image'),
    (b'RIFF\0\0\0\0WAVE', 'other'), (b'RIFF\0\0\0\0AVI ', 'video'), (bytes(4) + b'ftypavif', 'image'), (bytes(4) + b'ftypheic', 'image'), (bytes(4) + b'ftypqt  ', 'video'),
    (b'\xef\xbb\xbf<!doctype html>', 'page'), (b'<?xml version="1.0"?><svg', 'unread'), (b'', 'other'), (b'{"labels": []}', 'text'), (b'MM\0*', 'image'), (b'P7\n', 'text')])
def test_first_bytes(head, kind): assert file_kind(head).kind == kind


# Folders within folders

def test_batches_within_labels_are_used(tmp_path):
    labelled(tmp_path, 'circle', 'square')
    put(tmp_path, *(f'tri/batch{b}/deep/{i}.png' for b in (1, 2) for i in range(3)))
    dls = image_dls(tmp_path, size=32)
    assert list(dls.vocab) == ['circle', 'square', 'tri']
    assert dls.split.counts['tri']['train'] + dls.split.counts['tri']['valid'] == 6
    again = Split.load(dls.split.save(tmp_path.parent/f'{tmp_path.name}.json'))
    assert again.counts == dls.split.counts
    assert {m.label for m in check_images(tmp_path).measures} == {'circle', 'square', 'tri'}

def test_a_learner_with_nested_labels_travels(tmp_path):
    "The rule for labels is pickled with the Learner, and fits the files where they lie"
    labelled(tmp_path/'set', 'circle', 'square')
    put(tmp_path/'set', *(f'tri/batch{b}/{i}.png' for b in (1, 2) for i in range(3)))
    learn = train(tmp_path/'set', route='scratch', epochs=1, size=32, quiet=True)
    seen = evaluate(learn, 'all')
    assert {(Path(r.file).parts[len(tmp_path.parts) + 1], r.actual) for r in seen.table.itertuples()} == {(l, l) for l in ('circle', 'square', 'tri')}
    learn.export(tmp_path/'model.pkl')
    assert load_learner(tmp_path/'model.pkl').predict(image_files(tmp_path/'set')[0])[0] in ('circle', 'square', 'tri')
    bundle = export_bundle(learn, tmp_path/'bundle', seen=seen)
    asked = evaluate(bundle, path=tmp_path/'set')
    assert len(asked) == 18 and (asked.table.actual == seen.table.set_index('file').actual.loc[asked.table.file].values).all()

@pytest.mark.parametrize('names,words', [
    (('cats/tabby/1.png', 'cats/persian/1.png', 'dogs/poodle/1.png'), 'cats, dogs.*persian, poodle, tabby'),
    (('site1/cat/1.png', 'site1/dog/1.png', 'site2/cat/1.png', 'site2/dog/2.png'), 'site1, site2.*cat, dog'),
    (('bears/black/1.png', 'bears/teddy/1.png'), 'black, teddy.*bears'),
    (('black/1.png', 'black/teddy/1.png', 'teddy/1.png'), 'black/teddy'),
    (('images/1.png', 'masks/1.png'), 'images, masks'),
    (('train/1.png', 'test/1.png'), 'test, train'),
    (('train/cat/1.png', 'train/dog/1.png', 'valid/cat/1.png', 'valid/bird/1.png'), 'bird'),
])
def test_what_can_be_read_in_two_ways_is_refused(tmp_path, names, words):
    put(tmp_path, *names)
    for call in (lambda: image_dls(tmp_path, size=32, min_per_label=1), lambda: quickstart(tmp_path.parent/f'{tmp_path.name}-out', tmp_path, quiet=True)):
        with pytest.raises(DataError, match=words): call()
    assert check_images(tmp_path).problems

@pytest.mark.parametrize('names', [('cats/images/1.png', 'dogs/images/1.png'), ('a/1.png', 'b/1/1.png', 'b/2/2.png'), ('train/cat/1.png', 'VAL/cat/2.png', 'train/dog/1.png')])
def test_what_is_clear_is_read(tmp_path, names):
    put(tmp_path, *names)
    folder = scan_folder(tmp_path)
    assert folder.problems == [] and len(folder.names) == len(names) and len(folder.labels) == 2

def sided(path, n=4, sides=('train', 'valid', 'test'), labels=('cat', 'dog')):
    return put(path, *(f'{side}/{label}/{side}{i}.png' for side in sides for label in labels for i in range(n)))

def test_a_split_of_the_folder_is_used(tmp_path):
    sided(tmp_path)
    dls = image_dls(tmp_path, size=32, bs=4)
    assert list(dls.vocab) == ['cat', 'dog']
    assert {f.parts[-3] for f in dls.split.train} == {'train'} and {f.parts[-3] for f in dls.split.valid} == {'valid'}
    assert dls.split.counts == {'cat': dict(train=4, valid=4), 'dog': dict(train=4, valid=4)}
    assert balance(tmp_path).table.index.tolist() == ['cat', 'dog']

def test_test_images_are_left_alone_and_named(tmp_path):
    sided(tmp_path)
    with pytest.warns(LeftOutWarning, match='8 images of the test side'): image_dls(tmp_path, size=32, bs=4)

def test_train_and_test_without_a_valid_side(tmp_path):
    "A share of the training images is held back, and the test side stays out"
    sided(tmp_path, n=6, sides=('train', 'test'))
    dls = image_dls(tmp_path, size=32, bs=4)
    assert {f.parts[-3] for f in [*dls.split.train, *dls.split.valid]} == {'train'} and len(dls.split.valid) == 2

def test_the_same_image_on_both_sides_is_told(tmp_path):
    sided(tmp_path)
    shutil.copy(tmp_path/'train'/'cat'/'train0.png', tmp_path/'valid'/'cat'/'copy.png')
    with pytest.warns(LeftOutWarning, match='1 images of .* are trained on and validated with'): image_dls(tmp_path, size=32, bs=4)

def test_cleaning_in_a_folder_with_sides(tmp_path):
    "A wrong label is moved on its own side, and comes back"
    sided(tmp_path)
    cleaning = Cleaning(tmp_path)
    assert cleaning.labels == ['cat', 'dog']
    cleaning.mark('train/cat/train0.png', 'relabel', 'dog')
    assert [m.to for m in cleaning.apply()] == ['train/dog/train0-1.png']
    cleaning.undo()
    assert (tmp_path/'train'/'cat'/'train0.png').exists()

def test_cleaning_of_nested_images(tmp_path):
    labelled(tmp_path, 'square')
    put(tmp_path, 'tri/batch1/1.png', 'tri/batch1/x.png')
    cleaning = Cleaning(tmp_path)
    assert {i.file: i.label for i in cleaning.items}['tri/batch1/x.png'] == 'tri'
    cleaning.mark('tri/batch1/x.png', 'relabel', 'square')
    cleaning.mark('tri/batch1/1.png', 'relabel', 'tri')  # it has that label: a mark to keep
    assert [m.to for m in cleaning.apply()] == ['square/x.png']


# What lies beside the labels

def test_folders_that_programs_make_are_no_labels(tmp_path):
    labelled(tmp_path, 'black', 'teddy')
    for name in ('__MACOSX/black/._1.png', 'black/@eaDir/thumb.jpg', '$RECYCLE.BIN/x.png', '.ipynb_checkpoints/x.png', 'black/.thumbs/x.png', 'teddy/Thumbs.db'): put(tmp_path, name)
    put(tmp_path, 'bearcls-quickstart/bears/black/1.png', 'bearcls-quickstart/bundle/x.png')
    put(tmp_path, 'bearcls-quickstart/bundle/bundle.json', content=b'{}')
    folder = scan_folder(tmp_path)
    assert folder.counts == {'black': 6, 'teddy': 6} and folder.labels == ['black', 'teddy'] and not folder.problems
    assert {r.file for r in folder.left_out} == {'__MACOSX/', 'black/@eaDir/', '$RECYCLE.BIN/', '.ipynb_checkpoints/', 'black/.thumbs/', 'teddy/Thumbs.db', 'bearcls-quickstart/'}

@pytest.mark.parametrize('name,content', [('teddy/.DS_Store', b'x'), ('teddy/Thumbs.db', b'x'), ('teddy/batch/page.php', b'<html>'), ('teddy/.keep', b'')])
def test_a_label_with_nothing_but_hidden_files_and_pages_is_an_error(tmp_path, name, content):
    "A download that failed leaves such folders"
    put(labelled(tmp_path, 'black', 'grizzly'), name, content=content)
    with pytest.raises(DataError, match='without usable images: teddy'): image_dls(tmp_path, size=32)

def test_an_empty_folder_of_weights_is_no_label(tmp_path):
    labelled(tmp_path, 'black', 'grizzly')
    (tmp_path/'models').mkdir()
    put(tmp_path, 'weights/best.pth', content=b'\x80\2}q')
    assert scan_folder(tmp_path).labels == ['black', 'grizzly']

@pytest.mark.parametrize('one,other', [('Bär', unicodedata.normalize('NFD', 'Bär')), ('teddy', 'teddy '), ('Teddy', 'teddy'), ('black bear', 'black  bear')])
def test_one_label_in_two_spellings_is_refused(tmp_path, one, other):
    labelled(tmp_path, one, 'grizzly')
    labelled(tmp_path, other)
    if len(list(tmp_path.iterdir())) < 3: pytest.skip('this file system takes them for one folder')
    with pytest.raises(DataError, match='one label in several spellings'): image_dls(tmp_path, size=32)
    assert any('spellings' in p for p in check_images(tmp_path).problems)

def test_a_linked_label_is_used_everywhere(tmp_path):
    labelled(tmp_path/'set', 'black', 'grizzly')
    labelled(tmp_path/'elsewhere', 'teddy')
    os.symlink(tmp_path/'elsewhere'/'teddy', tmp_path/'set'/'teddy', target_is_directory=True)
    os.symlink(tmp_path/'set', tmp_path/'set'/'black'/'again', target_is_directory=True)
    assert scan_folder(tmp_path/'set').counts == {'black': 6, 'grizzly': 6, 'teddy': 6}
    assert list(image_dls(tmp_path/'set', size=32).vocab) == ['black', 'grizzly', 'teddy']
    rows = Classifier(make_bundle(tmp_path/'bundle')).predict_batch(tmp_path/'set', quiet=True)
    assert sum(r.status == 'ok' for r in rows) == 18
    assert [(r.status, r.reason) for r in rows if r.status != 'ok'] == [('skipped', 'a link that leads back to a folder above it')]

def test_a_folder_that_may_not_be_read(open_path):
    "`lost+found` is passed over; a folder of yours is named, and stops the training only"
    labelled(open_path, 'black', 'grizzly', 'teddy')
    for name in ('lost+found', 'polar'):
        (open_path/name).mkdir()
        (open_path/name).chmod(0o700 if os.geteuid() == 0 else 0)
    try:
        with as_nobody():
            assert {f.file for f in check_images(open_path).rows if f.issue == 'left_out'} == {'polar/'}
            assert len(find_all(open_path)[0]) == 18
            with pytest.raises(DataError, match='polar/: the folder cannot be read'): image_dls(open_path, size=32, cache=False)
    finally:
        for name in ('lost+found', 'polar'): (open_path/name).chmod(0o755)

def test_predicting_a_folder_names_what_is_no_image(tmp_path):
    labelled(tmp_path/'set', 'black')
    put(tmp_path/'set', 'black/x.jpg?v=1', 'loose')
    put(tmp_path/'set', 'black/page.html', content=b'<html>')
    put(tmp_path/'set', 'black/broken.jpg', content=image_bytes(1)[:200])
    bundle = make_bundle(tmp_path/'bundle')
    rows = {Path(r.file).name: r for r in Classifier(bundle).predict_batch(tmp_path/'set', quiet=True)}
    assert rows['x.jpg?v=1'].status == rows['loose'].status == 'ok'
    assert (rows['page.html'].status, rows['page.html'].reason, rows['broken.jpg'].status) == ('skipped', 'a web page', 'failed')
    done = subprocess.run([Path(sys.executable).parent/'bearcls', 'predict', bundle, tmp_path/'set'], capture_output=True, text=True)
    assert 'page.html: a web page' in done.stdout and done.returncode == 1

def test_a_table_of_your_own_stops_nothing(tmp_path):
    "It used to end a quickstart at the export, with the training lost"
    labelled(tmp_path/'set', 'black', 'teddy', n=8)
    table = 'name;kind\nblack/1.png;bear\n'
    (tmp_path/'set'/'manifest.csv').write_text(table)
    learn = train(tmp_path/'set', route='scratch', epochs=1, size=32, quiet=True)
    export_bundle(learn, tmp_path/'bundle')
    assert len(balance(tmp_path/'set').labels) == 2
    cleaning = Cleaning(tmp_path/'set')
    cleaning.mark('black/1.png', 'delete')
    assert [m.status for m in cleaning.apply()] == ['moved']
    assert [m.status for m in quarantine_files(tmp_path/'set', [Suspect('black/2.png')])] == ['moved']
    assert (tmp_path/'set'/'manifest.csv').read_text() == table

@pytest.mark.parametrize('content', ['file,width\nblack/1.png,broad\n', 'file;label\n', '\0\0', 'file,label\n"unfinished'])
def test_any_table_called_manifest_lets_training_finish(tmp_path, content):
    labelled(tmp_path/'set', 'black', 'teddy')
    (tmp_path/'set'/'manifest.csv').write_text(content)
    said = []
    quickstart_module._check(tmp_path/'set', True, type('S', (), {'say': staticmethod(said.append)}))
    try: read_manifest(tmp_path/'set')
    except DataError: assert any('manifest.csv' in line and 'left as it is' in line for line in said)
    balance(tmp_path/'set')

def test_labels_in_a_table_are_pointed_out(tmp_path):
    put(tmp_path, *(f'images/{i}.png' for i in range(6)))
    (tmp_path/'train.csv').write_text('file,label\n')
    with pytest.raises(DataError, match='one label only, images.*train.csv.*from_csv'): image_dls(tmp_path, size=32)


# Before a long step, and after it

@pytest.mark.parametrize('spoil,words', [
    (lambda p: (p/'polar').mkdir(), 'polar'),
    (lambda p: labelled(p, 'a\nb'), 'no bundle can have'),
    (lambda p: put(p, 'few/1.png'), 'few has 1'),
])
def test_what_names_tell_is_told_before_anything_is_opened(tmp_path, spoil, words, monkeypatch):
    spoil(labelled(tmp_path/'set', 'black', 'teddy'))
    monkeypatch.setattr('bearcls.quickstart.steps.check_images', lambda *args: pytest.fail('the files were opened'))
    with pytest.raises(DataError, match=words): quickstart(tmp_path/'out', tmp_path/'set', quiet=True)

def test_results_do_not_go_into_the_image_folder(tmp_path):
    labelled(tmp_path/'set', 'black', 'teddy')
    for dest in (tmp_path/'set', tmp_path/'set'/'out', tmp_path/'set'/'black'):
        with pytest.raises(DataError, match='lies in the image folder'): quickstart(dest, tmp_path/'set', quiet=True)
    assert sorted(f.name for f in (tmp_path/'set').iterdir()) == ['black', 'teddy']

def test_a_training_survives_what_fails_after_it(tmp_path, monkeypatch, capsys):
    "The same command goes on: it does not train again"
    labelled(tmp_path/'set', 'black', 'teddy', n=8)
    call = dict(data=tmp_path/'set', arch='xresnet18_thin', epochs=2)
    real = quickstart_module.export_bundle
    def full(*args, **kwargs): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(quickstart_module, 'export_bundle', full)
    with pytest.raises(OSError): quickstart(tmp_path/'out', **call)
    assert 'the same command goes on' in capsys.readouterr().out
    monkeypatch.setattr(quickstart_module, 'export_bundle', real)
    monkeypatch.setattr(Learner, 'fit_one_cycle', lambda *args, **kwargs: pytest.fail('it trains again'))
    q = quickstart(tmp_path/'out', **call)
    assert read_bundle(q.bundle).labels == ['black', 'teddy'] and not (tmp_path/'out'/'training').exists()

def test_an_unfinished_training_of_other_images_gives_way(tmp_path, monkeypatch, capsys):
    for name, n in (('one', 8), ('other', 10)): labelled(tmp_path/name, 'black', 'teddy', n=n)
    call = dict(arch='xresnet18_thin', epochs=1)
    real = quickstart_module.evaluate
    monkeypatch.setattr(quickstart_module, 'evaluate', lambda *args: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt): quickstart(tmp_path/'out', tmp_path/'one', **call)
    monkeypatch.setattr(quickstart_module, 'evaluate', real)
    q = quickstart(tmp_path/'out', tmp_path/'other', **call)
    assert 'it is replaced' in capsys.readouterr().out and len(q.everything) == 20

def test_a_folder_that_can_only_be_read(open_path, monkeypatch):
    "As on Kaggle: `lr_find` and `save` write where one works"
    data, work = open_path/'data', open_path/'work'
    labelled(data, 'black', 'teddy')
    work.mkdir()
    monkeypatch.chdir(work)
    def use(dls):
        learn = vision_learner(dls, squeezenet1_1, pretrained=False)
        learn.lr_find(num_it=12, show_plot=False)
        return learn.save('mine')
    use(image_dls(data, size=32, bs=4, cache=False))  # also loads all that is imported late, which nobody may not read
    shutil.rmtree(data/'models')
    for folder in (data, *data.iterdir()): folder.chmod(0o555)
    work.chmod(0o777)
    with as_nobody(): saved = use(image_dls(data, size=32, bs=4, cache=False))
    for folder in (data, *data.iterdir()): folder.chmod(0o755)
    assert Path(saved).resolve() == (work/'models'/'mine.pth').resolve()
    assert sorted(f.name for f in data.iterdir()) == ['black', 'teddy']
