"Data, split and recipes under conditions that make bad reading: hostile files, every orientation, a fresh process, every recipe through a bundle"
import contextlib, io, itertools, json, os, random, shutil, sqlite3, subprocess, sys, tempfile
from pathlib import Path
import numpy as np, pytest, torch
from fastai.callback.schedule import Learner
from fastai.torch_core import set_seed
from fastai.vision.augment import Flip
from fastai.vision.core import imagenet_stats
from PIL import Image
from torch import nn
from hostile import bomb, image_bytes
from bearcls.data import loaders as data, cache as opening, split as split_module
from bearcls import similarity as likeness
from bearcls.core import DataError, cache_folder, sha256
from bearcls.images import ImageError, load_image
from bearcls.manifest import ImageRow, write_manifest
from bearcls.folders import count_labels, image_files
from bearcls.data.loaders import image_dls
from bearcls.export.convert import export_bundle
from bearcls.sample.figures import draw_bear
from bearcls.inference.bundle import prepare, read_bundle
from bearcls.fingerprints import fingerprint
from bearcls.data.cache import OpenImage, Store, Surveyed, digest_of, survey
from bearcls.data.transforms import augmentations, compare_resizes, pad_fills, recipes, show_augmentations
from bearcls.sample.bears import draw_bears
from bearcls.data.split import Split, near_groups, split_files, split_images

every_recipe = [(r, p) for r in recipes for p in (pad_fills if r == 'pad' else ['zeros'])]
mean, std = (torch.tensor(s)[:, None, None] for s in imagenet_stats)

@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setenv('BEARCLS_CACHE', str(tmp_path/'cache'))

@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    "Twelve bears of each label in wide and tall images"
    folder = draw_bears(tmp_path_factory.mktemp('drawn')/'bears', n_per_label=12, side=200, seed=3, faults=False)
    for n, f in enumerate(image_files(folder)): load_image(f).crop((0, 0, 200, 150) if n % 2 else (20, 0, 150, 200)).save(f, quality=90)
    return folder

def pixels(x): return (x.cpu()*std + mean).mul(255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()

def names(files): return sorted('/'.join(Path(f).parts[-2:]) for f in files)

def shuffled_copy(folder, dest, seed=0):
    "The folder elsewhere, its files written in another order under other names"
    files = image_files(folder)
    random.Random(seed).shuffle(files)
    for n, f in enumerate(files):
        (dest/f.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(f, dest/f.parent.name/f'{sha256(f)[:6]}{n}{f.suffix}')
    return dest


# Opening

def turned(image, orientation):
    "The bytes of a JPEG that is stored so that `orientation` turns it back"
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions that undo each orientation
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    (image if orientation == 1 else image.transpose(Image.Transpose(back[orientation]))).save(out, 'JPEG', quality=95, subsampling=0, exif=exif)
    return out.getvalue()

@pytest.mark.parametrize('recipe,pad_mode', every_recipe)
def test_all_orientations_reach_training_as_they_reach_prediction(tmp_path, recipe, pad_mode):
    image = Image.new('RGB', (150, 100), '#3060c0')
    image.paste('#e04020', (0, 0, 75, 50))  # the upper left quarter tells how an image lies
    for label in ('left', 'right'):
        (tmp_path/'all'/label).mkdir(parents=True)
        for o in range(1, 9):
            noise = image.copy()
            noise.putpixel((140, 90 - o), (255, 255, 255) if label == 'left' else (0, 0, 0))
            (tmp_path/'all'/label/f'{o}.jpg').write_bytes(turned(noise, o))
    dls = image_dls(tmp_path/'all', size=48, bs=4, recipe=recipe, pad_mode=pad_mode, augment='none', near_duplicates=False)
    for f in image_files(tmp_path/'all'):
        x = dls.test_dl([f]).one_batch()[0][0]
        method = 'crop' if recipe == 'presize' else recipe
        assert np.array_equal(pixels(x), np.asarray(prepare(load_image(f, 96), 48, method, pad_mode)))
        assert load_image(f).size == (150, 100)
    seen = [one[..., 0].astype(int) - one[..., 2] for x, _ in dls.train for one in map(pixels, x)]
    red = [one for one in seen if (one > 60).any()]  # what is cut out at random may miss it
    assert len(red) >= len(seen)/2
    for one in red: assert one[:24, :24].mean() > one[24:, 24:].mean()  # in training too it lies at the upper left

def test_every_kind_of_file_reaches_the_model(tmp_path):
    folder = tmp_path/'kinds'
    saved = dict(jpg='JPEG', jfif='JPEG', png='PNG', webp='WEBP', gif='GIF', bmp='BMP', tiff='TIFF')
    for k, label in enumerate(('one', 'two')):
        (folder/label).mkdir(parents=True)
        for n, (suffix, fmt) in enumerate(saved.items()): (folder/label/f'{n}.{suffix}').write_bytes(image_bytes(10*k + n, fmt=fmt))
        image = Image.open(io.BytesIO(image_bytes(30 + k)))
        for n, mode in enumerate(('L', 'P', 'RGBA', 'LA', '1', 'CMYK', 'I;16')):
            (Image.fromarray(np.asarray(image.convert('L')).astype(np.uint16)*257) if mode == 'I;16' else image.convert(mode)).save(folder/label/f'm{n}.{"tif" if mode == "CMYK" else "png"}')
    dls = image_dls(folder, size=32, bs=4, near_duplicates=False)
    assert sum(len(x) for x, _ in dls.train) + len(dls.valid_ds) >= 28 - 3  # the last batch of training may be dropped
    assert dls.one_batch()[0].shape[1:] == (3, 32, 32)

def test_transparency_is_white_in_training(tmp_path):
    folder = tmp_path/'clear'
    for label, colour in (('red', (255, 0, 0)), ('blue', (0, 0, 255))):
        (folder/label).mkdir(parents=True)
        for n in range(6):
            image = Image.new('RGBA', (64, 64), (0, 0, 0, 0))
            image.paste((*colour, 255), (16 + n, 16, 48, 48))
            image.save(folder/label/f'{n}.png')
    dls = image_dls(folder, size=32, bs=4, augment='none', near_duplicates=False)
    for batch in (dls.train.one_batch()[0], dls.valid.one_batch()[0]):
        for x in batch: assert (pixels(x)[0, 0] == 255).all() and (pixels(x)[-1, -1] == 255).all()


# Folders that cannot be trained on

def test_hostile_files_are_named_before_training(bears):
    (bears/'black'/'bomb.png').write_bytes(bomb())
    (bears/'black'/'empty.gif').write_bytes(b'')
    (bears/'black'/'random.jpg').write_bytes(b'\xff\xd8\xff' + os.urandom(3000))
    with pytest.raises(DataError) as e: image_dls(bears, size=32, min_per_label=2)
    for name in ('black/bomb.png', 'black/empty.gif', 'black/random.jpg', 'black/broken.jpg', 'grizzly/page.jpg'): assert name in str(e.value)
    assert '5 of 11 images' in str(e.value) and 'exclude' in str(e.value)
    left_out = ['black/bomb.png', 'black/empty.gif', 'black/random.jpg', 'black/broken.jpg', 'grizzly/page.jpg']
    dls = image_dls(bears, size=32, exclude=left_out, min_per_label=2)
    assert len(dls.train_ds) + len(dls.valid_ds) == 6 and len(dls.survey) == 6

def test_many_broken_files_are_counted(drawn, tmp_path):
    folder = shuffled_copy(drawn, tmp_path/'b')
    for n in range(9): (folder/'black'/f'broken{n}.jpg').write_bytes(b'<html>')
    with pytest.raises(DataError, match='9 of 45 images.*and 4 more'): image_dls(folder, size=32)

@pytest.mark.parametrize('spoil,message', [
    (lambda p: shutil.rmtree(p/'grizzly') or shutil.rmtree(p/'teddy'), 'one label only, black'),
    (lambda p: [f.unlink() for f in (p/'teddy').iterdir()], 'without usable images: teddy'),
    (lambda p: (p/'polar').mkdir(), 'without usable images: polar'),
    (lambda p: [f.unlink() for f in sorted((p/'teddy').iterdir())[1:]], 'teddy has 1'),
    (lambda p: [shutil.rmtree(d) for d in p.iterdir() if d.is_dir()], 'holds no images in label folders'),
    (lambda p: [shutil.copy(min((p/'teddy').iterdir()), f) for f in sorted((p/'teddy').iterdir())[1:]], 'All 12 images of teddy are copies'),
])
def test_label_problems_name_the_label(drawn, tmp_path, spoil, message):
    spoil(folder := shuffled_copy(drawn, tmp_path/'spoilt'))
    with pytest.raises(DataError, match=message): image_dls(folder, size=32)

def test_everything_left_out_of_a_label_names_it(drawn):
    with pytest.raises(DataError, match='without usable images: teddy'): image_dls(drawn, size=32, exclude=[f for f in image_files(drawn) if f.parent.name == 'teddy'])

@pytest.mark.parametrize('kept', ['models/best.pth', 'bundle/model.onnx', 'notes/read me.txt'])
def test_folders_of_other_things_are_no_labels(drawn, tmp_path, kept):
    folder = shuffled_copy(drawn, tmp_path/'b')
    (folder/kept).parent.mkdir()
    (folder/kept).write_bytes(b'not an image')
    assert list(image_dls(folder, size=32).vocab) == ['black', 'grizzly', 'teddy']

def test_settings_are_refused_before_images_are_opened(bears):
    for settings in (dict(recipe='stretch'), dict(augment='rotation'), dict(pad_mode='white'), dict(size=4), dict(min_scale=2)):
        with pytest.raises(ValueError) as e: image_dls(bears, min_per_label=2, **settings)
        assert 'images in' not in str(e.value)


# The split

def in_a_fresh_process(folder, tmp_path):
    "Digests held back and the first batch of training, as another Python process has them"
    code = ('import json, sys, torch\nfrom bearcls.data.loaders import image_dls\nfrom bearcls.core import sha256\nfrom fastai.torch_core import set_seed\n'
        'dls = image_dls(sys.argv[1], size=32, bs=8, seed=7)\nset_seed(7)\n'
        'print(json.dumps([sorted(sha256(f) for f in dls.split.valid), [sha256(bytes(x.numpy())) for x, _ in dls.train]]))')
    env = {**os.environ, 'TQDM_DISABLE': '1', 'PYTHONHASHSEED': str(random.randrange(1000)), 'BEARCLS_CACHE': str(tmp_path/'fresh')}
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, str(folder)], capture_output=True, text=True, encoding='utf-8', env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])

def test_split_and_batches_repeat_in_a_fresh_process_and_in_a_copied_folder(drawn, tmp_path):
    dls = image_dls(drawn, size=32, bs=8, seed=7)
    set_seed(7)  # for what augmentations leave to chance
    here = [sorted(sha256(f) for f in dls.split.valid), [sha256(bytes(x.cpu().numpy())) for x, _ in dls.train]]
    assert in_a_fresh_process(shuffled_copy(drawn, tmp_path/'elsewhere'), tmp_path) == here

def test_order_of_the_files_does_not_matter(drawn):
    files = image_files(drawn)
    looked = survey(files)
    valid = set(split_images(looked).valid)
    for seed in range(5):
        random.Random(seed).shuffle(looked)
        assert set(split_images(looked).valid) == valid

def test_near_duplicates_never_fall_on_both_sides(drawn, tmp_path):
    folder, kin = shuffled_copy(drawn, tmp_path/'b'), []
    for n, f in enumerate(image_files(folder)[::4]):
        image = load_image(f)
        kin.append([f, f.with_name(f'small{n}.png'), folder/'teddy'/f'again{n}.jpg', folder/'black'/f'same{n}{f.suffix}'])
        image.resize((image.width*2//3, image.height*2//3)).save(kin[-1][1])
        image.crop((2, 2, image.width - 3, image.height - 2)).save(kin[-1][2], quality=60)
        shutil.copy(f, kin[-1][3])
    looked = survey(image_files(folder))
    assert len(set(near_groups(looked))) == 36
    for seed in range(10):
        split = split_images(looked, seed=seed)
        for family in kin: assert len({f in split.valid for f in family}) == 1
        assert {label: bool(n['train'] and n['valid']) for label, n in split.counts.items()} == dict.fromkeys(('black', 'grizzly', 'teddy'), True)

def test_each_label_gives_its_share():
    files = [Path(label)/f'{n}.jpg' for label, many in (('a', 500), ('b', 40), ('c', 2)) for n in range(many)]
    digests = [f'{n:064x}' for n in range(len(files))]
    for share in (.01, .1, .2, .5, .9):
        train, valid = split_files(files, share, digests=digests)
        held = count_labels(files[i] for i in valid)
        assert held == {'a': max(1, round(500*share)), 'b': max(1, round(40*share)), 'c': 1}
        assert sorted(train + valid) == list(range(542))

def test_uneven_groups_leave_both_sides_to_every_label():
    rng = random.Random(0)
    for trial in range(200):
        n = rng.randint(4, 30)
        files = [Path(rng.choice('ab'))/f'{i}.jpg' for i in range(n)]
        groups = [rng.randint(0, n//2) for _ in range(n)]
        digests = [sha256(f'{trial} {i}'.encode()) for i in range(n)]
        of = {label: {g for f, g in zip(files, groups) if f.parent.name == label} for label in 'ab'}
        try: train, valid = split_files(files, rng.choice([.2, .5, .8]), trial, groups=groups, digests=digests)
        except DataError:
            assert min(map(len, of.values())) < 2 or of['a'] & of['b']  # refused only where copies leave no choice
            continue
        assert not {groups[i] for i in train} & {groups[i] for i in valid}
        for label in count_labels(files): assert all(any(files[i].parent.name == label for i in part) for part in (train, valid))

def test_an_added_image_moves_no_other_of_a_saved_split(drawn, tmp_path):
    folder = shuffled_copy(drawn, tmp_path/'b')
    split = image_dls(folder, size=32).split
    saved = split.save(tmp_path/'split.json')
    for n in range(6):
        draw_bear(('black', 'grizzly', 'teddy')[n % 3], 1000 + n, side=150).save(folder/('black', 'grizzly', 'teddy')[n % 3]/f'new{n}.png')
        grown = image_dls(folder, size=32, split=saved).split
        assert {d: grown.sides[d] for d in split.sides} == split.sides
        saved = grown.save(saved)
        split = grown
    assert len(split.sides) == 42

def test_a_saved_split_survives_deletion_copies_and_strange_names(drawn, tmp_path):
    folder = shuffled_copy(drawn, tmp_path/'b')
    split = image_dls(folder, size=32).split
    split.valid[0].rename(split.valid[0].with_name('Bär "quoted", ümlaut & co.jpg'))
    split = image_dls(folder, size=32).split
    saved = split.save(tmp_path/'split.json')
    assert Split.load(saved).sides == split.sides
    gone, twin = split.train[0], folder/'teddy'/'twin.jpg'
    shutil.copy(split.valid[0], twin)
    gone.unlink()
    again = image_dls(folder, size=32, split=str(saved)).split
    assert twin in again.valid and gone not in again.digests
    assert {again.sides[d] == split.sides[d] for d in again.sides} == {True}
    assert Split.load(again.save(tmp_path/'again.json')).sides == again.sides

def test_a_saved_split_that_lost_a_side_names_the_label(drawn, tmp_path):
    folder = shuffled_copy(drawn, tmp_path/'b')
    split = image_dls(folder, size=32).split
    for f in split.valid:
        if f.parent.name == 'teddy': f.unlink()
    with pytest.raises(DataError, match='no image of teddy to validate with'): image_dls(folder, size=32, split=split)

def broken_splits(good):
    yield b'', 'Expecting value'
    yield b'\xff\xfe\x00', 'is not a split'
    yield b'[' * 100_000, 'is not a split'
    yield b'{"format": "something else"}', '"format"'
    for change in (dict(version=2), dict(seed='42'), dict(seed=None), dict(valid_pct=2), dict(valid_pct=True), dict(valid=[]), dict(train={}), dict(train={'abc': 'x'}),
                   dict(train={'g'*64: 'x'}), dict(train={'a'*64: 3}), dict(train=good['valid'])):
        yield json.dumps({**good, **change}).encode(), 'is not a split that bearcls saved'
    without = {k: v for k, v in good.items() if k != 'valid'}
    yield json.dumps(without).encode(), 'valid holds no images'

def test_bad_split_files_are_named(drawn, tmp_path):
    saved = image_dls(drawn, size=32).split.save(tmp_path/'split.json')
    good = json.loads(saved.read_text(encoding='utf-8'))
    for content, problem in broken_splits(good):
        (tmp_path/'bad.json').write_bytes(content)
        with pytest.raises(DataError, match='bad.json') as e: Split.load(tmp_path/'bad.json')
        assert problem in str(e.value)
    with pytest.raises(DataError, match='cannot be read'): image_dls(drawn, split=tmp_path/'none.json')
    with pytest.raises(DataError, match='cannot be read'): Split.load(tmp_path)

def test_an_interrupted_save_leaves_the_old_split(drawn, tmp_path, monkeypatch):
    split = image_dls(drawn, size=32).split
    saved = split.save(tmp_path/'split.json')
    before = saved.read_bytes()
    monkeypatch.setattr(os, 'replace', lambda *a: (_ for _ in ()).throw(OSError('disk full')))
    with pytest.raises(OSError, match='disk full'): split.save(saved)
    assert saved.read_bytes() == before and [f.name for f in tmp_path.iterdir() if f.suffix == '.part'] == []


# Recipes

def tiny_learner(dls):
    "A network that answers differently for images that differ"
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 3))
    with torch.no_grad(): model[-1].weight.mul_(20)
    return Learner(dls, model, loss_func=nn.CrossEntropyLoss())

@pytest.mark.parametrize('recipe,pad_mode', every_recipe)
def test_every_recipe_can_be_exported(drawn, tmp_path, recipe, pad_mode):
    learn = tiny_learner(image_dls(drawn, size=40, bs=8, recipe=recipe, pad_mode=pad_mode))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    bundle = read_bundle(export_bundle(learn, tmp_path/'bundle'))
    assert (bundle.method, bundle.metrics['largest_difference'] < .001) == ('crop' if recipe == 'presize' else recipe, True)
    assert bundle.pad_mode == pad_mode or recipe != 'pad'

@pytest.mark.parametrize('augment', [*augmentations, ['rotate', 'erase']], ids=str)
def test_every_augmentation_trains_and_leaves_validation_alone(drawn, augment):
    dls = image_dls(drawn, size=40, bs=8, augment=augment)
    learn = tiny_learner(dls)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    plain = image_dls(drawn, size=40, bs=8, augment='none')
    for (x, y), (x2, y2) in zip(dls.valid, plain.valid): assert torch.allclose(x, x2, atol=1e-3) and torch.equal(y, y2)
    assert all(torch.isfinite(x).all() for x, _ in dls.train)

def test_presized_training_sees_large_parts_and_changes_every_time(drawn):
    dls = image_dls(drawn, size=40, bs=8, recipe='presize', augment='none')
    kinds = [(type(t).__name__, t.split_idx) for t in dls.train.after_item.fs if hasattr(t, 'size')]
    assert sorted(i for _, i in kinds) == [0, 1]  # a DataBlock keeps one transform of each class
    first, second = (torch.stack([x for x, _ in dls.train]) for _ in range(2))
    assert first.shape[2:] == (3, 40, 40) and not torch.equal(first, second)

def test_galleries_of_photographs_are_small_and_whole(shared):
    files = image_files(shared/'data'/'bears')
    for f in files[::100]:
        comparison = compare_resizes(f)
        assert len(comparison.views) == 7 and len(comparison._repr_html_()) < 400_000
        assert comparison._repr_html_().count('aria-label') == 7
    assert len(show_augmentations(files[0])._repr_html_()) < 600_000

def test_hostile_names_do_not_break_a_gallery(tmp_path):
    with pytest.raises(DataError, match='holds no images'): compare_resizes(tmp_path)
    for size in ((1, 1), (1, 300), (400, 2)):
        for view in compare_resizes(Image.new('RGB', size, 'teal'), size=32).views: assert view.valid.image.size == (32, 32)


# What only comes up with other people's files, folders and machines

def blocky(seed, size=(120, 90), cells=12):
    "An image that no other is like"
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (cells, cells, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)

def test_a_image_that_pillow_opened_is_opened_as_its_file_is(tmp_path):
    "`Image.open` decodes nothing yet, and must stay what it was"
    (tmp_path/'phone.jpg').write_bytes(turned(blocky(1), 6))
    opened = Image.open(tmp_path/'phone.jpg')
    kind = type(opened)
    assert np.array_equal(np.asarray(OpenImage()(opened)), np.asarray(load_image(tmp_path/'phone.jpg')))
    assert type(opened) is kind

def test_fingerprints_do_not_depend_on_the_size_that_is_trained_with(tmp_path):
    "A phone's photograph with a second image in the file is not decoded at a part of its size, and a very large one is reduced twice"
    blocky(1, (2000, 1500)).save(tmp_path/'two.jpg', 'MPO', save_all=True, append_images=[blocky(2)])
    blocky(3, (6400, 6400)).save(tmp_path/'large.jpg', quality=60)
    blocky(4, (500, 400)).save(tmp_path/'small.jpg')
    files = sorted(tmp_path.glob('*.jpg'))
    plain = [s.fingerprint for s in survey(files)]
    for min_side in (64, 256, 300, 448, 600): assert [s.fingerprint for s in survey(files, OpenImage(min_side))] == plain

@pytest.fixture
def two_files(tmp_path):
    files = [tmp_path/'a.png', tmp_path/'b.png']
    for n, f in enumerate(files): blocky(n).save(f)
    return files

def test_a_file_that_changes_while_it_is_surveyed_is_opened_anew(two_files, monkeypatch):
    real = opening._look
    def slow(file, **kwargs):
        found = real(file, **kwargs)
        if file == two_files[0]: blocky(7).save(file)
        return found
    monkeypatch.setattr(opening, '_look', slow)
    opener = OpenImage(keep_mb=10, store=Store())
    survey(two_files, opener)
    assert np.array_equal(np.asarray(opener(two_files[0])), np.asarray(blocky(7)))
    assert digest_of(two_files[0], opener) == sha256(two_files[0])

def test_files_that_change_places_are_opened_anew_though_their_times_are_the_same(two_files):
    "As after unpacking an archive, whose files share one time"
    a, b = two_files
    Image.new('RGB', (300, 300), 'red').save(b)
    for f in two_files: os.utime(f, ns=(10**18, 10**18))
    opener = OpenImage(keep_mb=10)
    before = [np.asarray(opener(f)) for f in two_files]
    a.rename(a.with_suffix('.old')), b.rename(a), a.with_suffix('.old').rename(b)
    assert [np.array_equal(np.asarray(opener(f)), x) for f, x in zip(two_files, before[::-1])] == [True, True]

def test_memory_is_counted_as_pillow_uses_it(two_files):
    opener = OpenImage(keep_mb=120*90*4*1.5/1e6)  # room for one image and a half
    for f in two_files: opener(f)
    assert len(opener.kept) == 1 and opener.kept_bytes == 120*90*4

def test_a_store_counts_each_value_once_and_keeps_what_is_used(tmp_path):
    store = Store(tmp_path/'s.sqlite', max_mb=.001)
    for _ in range(3): Store(store.file).put('often', {'x': bytes(300)})  # as several programs do with one folder
    assert store.kinds() == [('often', 300)]
    store.put('once', {'x': bytes(300)})
    assert Store(store.file).get('often', ['x'])
    store.put('new', {'x': bytes(500)})
    assert {kind for kind, _ in store.kinds()} == {'often', 'new'}

def test_images_are_the_same_with_workers_and_after_a_change(drawn, tmp_path):
    "Kept or not, in this process or in others, between two epochs an image changes and is seen as it is now"
    folder = shuffled_copy(drawn, tmp_path/'b')
    def seen(dls): return torch.cat([x.cpu() for x, _ in dls.valid])
    how = dict(size=32, bs=8, augment='none')
    kept, workers = image_dls(folder, **how), image_dls(folder, num_workers=2, **how)
    assert seen(kept).equal(seen(image_dls(folder, cache=False, keep_mb=0, **how))) and seen(workers).equal(seen(kept))
    changed = kept.valid_ds.items[0]
    blocky(5).save(changed, 'JPEG')
    assert np.array_equal(pixels(seen(kept)[0]), np.asarray(prepare(load_image(changed, 64), 32)))
    assert seen(workers).equal(seen(kept))

def test_a_folder_that_lr_find_has_used_can_be_used_again(drawn, tmp_path):
    "fastai leaves an empty folder `models` beside the labels"
    folder = shuffled_copy(drawn, tmp_path/'b')
    learn = tiny_learner(image_dls(folder, size=32, bs=8))
    with learn.no_bar(), learn.no_logging(): learn.lr_find(show_plot=False, num_it=10)
    assert (folder/'models').is_dir()
    assert list(image_dls(folder, size=32).vocab) == ['black', 'grizzly', 'teddy']

def test_images_of_one_name_from_two_folders_keep_their_sides(drawn, tmp_path):
    "The file has names for people only; two on different sides may share one"
    other = draw_bears(tmp_path/'other', n_per_label=12, side=96, seed=9, faults=False)
    split = split_images(survey([*image_files(drawn), *image_files(other)]))
    again = Split.load(split.save(tmp_path/'split.json'))
    assert again.sides == split.sides and (len(again.train), len(again.valid)) == (len(split.train), len(split.valid))

@pytest.mark.skipif(sys.platform != 'linux', reason='other systems take names in Unicode only')
def test_a_split_with_a_name_that_is_no_utf8_can_be_read_again(drawn, tmp_path):
    folder = shuffled_copy(drawn, tmp_path/'b')
    os.rename(os.fsencode(image_files(folder)[0]), os.fsencode(folder/'black') + b'/B\xe4r.jpg')
    split = image_dls(folder, size=32).split
    assert Split.load(split.save(tmp_path/'split.json')).sides == split.sides

def test_copies_that_are_alike_through_a_third_stay_together(monkeypatch):
    "What is joined to a copy was compared with nothing else, so a star of copies fell apart"
    alike = {frozenset(p) for p in (('1', '3'), ('2', '3'), ('4', '3'))}  # 3 is like all others, which are not like each other
    prints = {d: fingerprint(blocky(0).crop((n, 0, 110 + n, 90))) for n, d in enumerate('1234')}
    name = {p.tiny: d for d, p in prints.items()}
    def similarity(a, b): return .99 if frozenset((name[a], name[b])) in alike else .9
    for module in (likeness, split_module): monkeypatch.setattr(module, 'similarity', similarity, raising=False)
    assert len(set(near_groups([Surveyed(Path('a')/d, d, p) for d, p in prints.items()]))) == 1

def test_no_near_duplicate_is_left_alone_in_large_families():
    "Of many trims of one image, each that is like any other is in its group"
    rng = np.random.default_rng(0)
    looked = []
    for n in range(12):
        whole = blocky(n, (200, 160), cells=4)
        for k in range(10):
            left, top, right, bottom = rng.uniform(0, .06, 4)
            trimmed = whole.crop((int(200*left), int(160*top), int(200*(1 - right)), int(160*(1 - bottom))))
            looked.append(Surveyed(Path(f'{n}')/f'{k}.jpg', sha256(f'{n} {k}'.encode()), fingerprint(trimmed)))
    groups = near_groups(looked)
    for (a, x), (b, y) in itertools.combinations(zip(groups, looked), 2):
        if a != b: assert x.file.parent != y.file.parent or likeness.similarity(x.fingerprint.tiny, y.fingerprint.tiny) < .96

@pytest.mark.parametrize('wrong,message', [
    (dict(size=(32, 32)), '`size` must be a whole number'), (dict(size=32.), '`size` must be a whole number'), (dict(size='32'), '`size` must be'), (dict(size=np.int64(7)), '`size` must be'),
    (dict(recipe=['crop']), '`recipe` must be one of'), (dict(valid_pct='0.2'), '`valid_pct` must lie'), (dict(valid_pct=float('nan')), '`valid_pct` must lie'), (dict(valid_pct=0), '`valid_pct` must lie'),
    (dict(valid_pct=True), '`valid_pct` must lie'), (dict(seed=None), '`seed` must be a whole number, got None'), (dict(seed=1.5), '`seed` must be'), (dict(seed='1'), '`seed` must be'),
    (dict(bs=0), '`bs` must be at least 1'), (dict(augment=False), '`augment` must be made of'), (dict(pairs=('a.jpg', 'b.jpg')), '`pairs` must hold pairs'), (dict(split='none.json'), 'none.json cannot be read')])
def test_wrong_arguments_are_named_before_images_are_opened(drawn, wrong, message, monkeypatch):
    monkeypatch.setattr(opening, '_look', lambda *args, **kwargs: pytest.fail('an image was opened'))
    with pytest.raises(ValueError, match=message): image_dls(drawn, **{**dict(size=32), **wrong})

def test_what_people_naturally_pass(drawn, tmp_path):
    "One name to leave out, NumPy's numbers, one transform; and the split that comes of it can be kept"
    first = image_files(drawn)[0]
    for one in ('/'.join(first.parts[-2:]), first, [str(first)]): assert first not in image_dls(drawn, size=32, exclude=one).split.digests
    dls = image_dls(str(drawn), size=32, bs=8, seed=np.int64(4), valid_pct=np.float32(.25), augment=Flip())
    assert dls.split.sides == image_dls(drawn, size=32, seed=4, valid_pct=.25).split.sides == Split.load(dls.split.save(tmp_path/'split.json')).sides
    assert len(dls.train.one_batch()[0]) == 8 and [view.name for view in compare_resizes(first, only='squish').views] == ['squish']

def test_an_exif_record_that_pillow_trips_over_costs_nothing():
    "Pillow raises an AttributeError while it writes the record of the upright image; its pixels and its orientation are whole"
    exif = Image.Exif()
    exif[0x0112], exif[0x010f] = 6, 'Maker'
    out = io.BytesIO()
    blocky(0).save(out, 'JPEG', exif=exif)
    bad = out.getvalue().replace(bytes([1, 15, 0, 2, 0, 0, 0, 6]), bytes([1, 15, 0, 11, 0, 0, 0, 1]))  # the maker's name as one number
    assert bad != out.getvalue()
    assert load_image(bad).size == blocky(0).size[::-1]

def test_an_iphones_photographs_say_what_they_need(drawn, tmp_path):
    if 'HEIF' in Image.OPEN: pytest.skip('this Pillow reads HEIF')
    folder = shuffled_copy(drawn, tmp_path/'b')
    (folder/'black'/'IMG_1.HEIC').write_bytes(b'\0\0\0\x18ftypheic\0\0\0\0mif1heic' + bytes(500))
    with pytest.raises(DataError, match='black/IMG_1.HEIC is a HEIF image.*pip install pillow-heif'): image_dls(folder, size=32)

def test_images_with_holes_in_the_cache_are_opened_from_their_files(drawn, tmp_path):
    "A power cut leaves blocks of zeros, and a training must not see them"
    how = dict(size=32, bs=8, augment='none', cache=tmp_path/'kept', keep_mb=0)
    def seen(dls): return torch.cat([x.cpu() for x, _ in dls.valid])
    whole = seen(image_dls(drawn, **how))
    with contextlib.closing(sqlite3.connect(tmp_path/'kept'/'images.sqlite')) as db, db:
        rows = db.execute("SELECT rowid, value FROM entries").fetchall()
        assert len(rows) > 36
        for row, value in rows: db.execute('UPDATE entries SET value=? WHERE rowid=?', (value[:len(value)//2] + bytes(200) + value[len(value)//2 + 200:], row))
    assert seen(image_dls(drawn, **how)).equal(whole)

@pytest.mark.parametrize('system,has_workers', [('linux', True), ('win32', False), ('darwin', False)])
def test_workers_are_the_default_only_where_they_start_with_what_is_kept(monkeypatch, system, has_workers):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(sys, 'platform', system)
    assert bool(data._n_workers(None)) == has_workers and data._n_workers(2) == 2

@pytest.mark.parametrize('system,place', [('linux', '.cache'), ('darwin', 'Library/Caches'), ('win32', 'AppData/Local'), ('freebsd14', '.cache')])
def test_the_cache_has_a_place_with_and_without_a_home(monkeypatch, tmp_path, system, place):
    "In a container the user's number may stand in no list of users, so that nobody knows its home"
    for name in ('BEARCLS_CACHE', 'XDG_CACHE_HOME', 'LOCALAPPDATA'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, 'platform', system)
    monkeypatch.setattr(Path, 'home', lambda: tmp_path)
    assert cache_folder() == tmp_path/place/'bearcls'
    monkeypatch.setattr(Path, 'home', lambda: (_ for _ in ()).throw(RuntimeError('Could not determine home directory.')))
    assert cache_folder() == Path(tempfile.gettempdir())/'bearcls'

# Whole sources held back

@pytest.fixture
def sourced(drawn, tmp_path):
    "The drawn bears with a manifest: each three images in a row come from one site, the last label's last three from an unknown one"
    path = shutil.copytree(drawn, tmp_path/'bears')
    files = image_files(path)
    sites = {f: f'site{i//3}.example' for i, f in enumerate(files)}
    for f in files[-3:]: sites[f] = ''
    write_manifest(path, [ImageRow(file=f.relative_to(path).as_posix(), page=f'https://www.{sites[f]}/{f.stem}' if sites[f] else '', license='CC0') for f in files])
    return path, sites

def test_a_site_stands_on_one_side(sourced):
    path, sites = sourced
    for seed in range(3):
        split = image_dls(path, size=32, seed=seed, group_by='site', near_duplicates=False).split
        both = {sites[f] for f in split.train} & {sites[f] for f in split.valid} - {''}
        assert not both and len(split.train) + len(split.valid) == len(sites)
        assert {f.parent.name for f in split.valid} == {f.parent.name for f in split.train} == {'black', 'grizzly', 'teddy'}
    by_chance = image_dls(path, size=32, near_duplicates=False).split
    assert {sites[f] for f in by_chance.train} & {sites[f] for f in by_chance.valid}

def test_a_function_names_the_source(sourced):
    path, sites = sourced
    split = image_dls(path, size=32, group_by=sites.get).split
    assert not {sites[f] for f in split.train} & {sites[f] for f in split.valid} - {''}

def test_sources_that_cannot_be_held_back(sourced, drawn):
    path, sites = sourced
    with pytest.raises(DataError, match='all images of black come from one source .CC0.'): image_dls(path, size=32, group_by='license')
    with pytest.raises(ValueError, match="site, label, url.*got 'photographer'"): image_dls(path, size=32, group_by='photographer')
    with pytest.raises(ValueError, match='a column of the manifest or a function, got 3'): image_dls(path, size=32, group_by=3)
    with pytest.raises(DataError, match='of none of the 36 images'): image_dls(path, size=32, group_by=lambda f: '')
    parts = path.parent/'sided'
    for i, f in enumerate(image_files(path)):
        to = parts/('valid' if i % 3 == 0 else 'train')/f.parent.name
        to.mkdir(parents=True, exist_ok=True)
        shutil.copy(f, to)
    with pytest.raises(DataError, match='has its own split'): image_dls(parts, size=32, group_by='site')
