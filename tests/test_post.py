"What a blog post tells, and what it must not: places, people, paths, images of others; and that nothing of yours is replaced"
import getpass, io, re, socket
from pathlib import Path
import pytest

pytest.importorskip('fastai', reason='fastai is not installed')
import yaml
from PIL import Image
from bearcls.core import DataError
from bearcls.data.split import Split
from bearcls.export.convert import export_bundle
from bearcls.folders import image_files
from bearcls.manifest import ImageRow, read_manifest, write_manifest
from bearcls.sample.bears import draw_bears
from bearcls.teach.post import Post, PostFigure, held_back, make_post, missing_words, places, write_post
from bearcls.teach.privacy import figure_bytes, image_refusal, private_words
from bearcls.train.learner import train

@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "A folder as a quickstart leaves it, with places and names in its photographs"
    folder = tmp_path_factory.mktemp('home-of-ana')/'project'
    bears = draw_bears(folder/'bears', n_per_label=30, seed=1)
    exif = Image.Exif()
    exif[0x010f] = 'SecretCamera'
    exif.get_ifd(0x8825)[1] = 'N'
    for file in image_files(bears):
        if file.suffix != '.jpg': continue
        try:
            with Image.open(file) as image: image.convert('RGB').save(file, exif=exif, comment=b'SecretComment', quality=95)
        except OSError: continue  # drawn as a broken file
    from bearcls.verify.report import broken_issues, check_images
    report = check_images(bears)
    report.quarantine()
    pairs = [(r.file, r.of) for r in report.rows if r.issue in ('duplicate', 'near_duplicate')]
    learn = train(bears, 'scratch', epochs=1, size=32, quiet=True, pairs=pairs, exclude=report.files(*broken_issues))
    export_bundle(learn, folder/'bundle')
    return folder, learn

@pytest.fixture
def rows(project):
    "The manifest, put back after the test"
    bears = project[0]/'bears'
    before = read_manifest(bears)
    yield before
    write_manifest(bears, before)

def texts(out): return {f.name: f.read_text(encoding='utf-8') for f in Path(out).glob('index.*')}

def figure_names(text): return re.findall(r'\(figures/([^)]+)\)', text)

# ---------------------------------------------------------------- what it tells

def test_both_forms_have_the_same_figures_and_each_is_there(project, tmp_path):
    post = write_post(project[0], tmp_path/'post')
    found = texts(tmp_path/'post')
    assert sorted(found) == ['index.md', 'index.qmd']
    files = sorted(f.name for f in (tmp_path/'post/figures').iterdir())
    for text in found.values(): assert sorted(figure_names(text)) == files
    assert len(files) >= 8 and len(set(files)) == len(post.figures)
    for name in files:
        with Image.open(tmp_path/'post/figures'/name) as image: image.load()

def test_the_figures_are_those_of_the_bundle(project):
    folder, learn = project
    seen = held_back(folder/'bundle', folder/'bears')
    assert {str(f) for f in seen.table.file} == {str(f) for f in learn.dls.split.valid}
    text = make_post(folder).to_text('md')
    n, wrong = len(seen), int((~seen.table.correct.astype(bool)).sum())
    assert f'Of {n} images that it had not seen, it answered {wrong} wrongly' in text and '95% interval' in text

def test_another_seed_gives_no_matrix_but_a_reason(project):
    with pytest.raises(DataError, match='`seed` was another'): held_back(project[0]/'bundle', project[0]/'bears', 5)
    post = make_post(project[0], seed=5)
    assert 'confusion.png' not in {f.name for f in post.figures} and 'Neither confusion matrix' in post.notes[0]

@pytest.fixture
def kept(project):
    "The split beside the bundle, as a quickstart writes it"
    file = project[1].dls.split.save(project[0]/'split.json')
    yield file
    file.unlink()

def test_with_the_split_neither_seed_nor_new_images_matter(project, kept):
    seen = held_back(project[0]/'bundle', project[0]/'bears')
    new = project[0]/'bears'/'teddy'/'new.png'
    Image.new('RGB', (90, 90), 'brown').save(new)
    try: assert list(held_back(project[0]/'bundle', project[0]/'bears', 5).table.file) == list(seen.table.file)
    finally: new.unlink()
    assert 'confusion.png' in {f.name for f in make_post(project[0], seed=5).figures}

@pytest.mark.parametrize('other', ['no split', 'another training'])
def test_a_file_that_does_not_fit_is_not_used(project, kept, other):
    split = project[1].dls.split
    if other == 'no split': kept.write_text('{}')
    else: Split(split.valid, split.train, split.digests).save(kept)
    seen = held_back(project[0]/'bundle', project[0]/'bears')
    assert {str(f) for f in seen.table.file} == {str(f) for f in split.valid}

def test_images_that_were_moved_give_no_matrix(project):
    file = next(f for f in project[1].dls.split.train)
    other = next(d for d in sorted((project[0]/'bears').iterdir()) if d.is_dir() and d != file.parent)
    file.rename(other/file.name)
    try:
        with pytest.raises(DataError, match='as they were in training'): held_back(project[0]/'bundle', project[0]/'bears')
        post = make_post(project[0])
        assert 'confusion.png' not in {f.name for f in post.figures} and post.notes
    finally: (other/file.name).rename(file)

def test_a_bundle_alone_is_enough(project):
    post = make_post(project[0]/'bundle')
    assert post.figures == [] and 'give `data`' in post.notes[0] and 'an error of' in post.to_text('md')

def test_head_is_yaml_whatever_the_title(project, tmp_path):
    title = 'Bears: "which?" --- # [x]\nnew'
    write_post(project[0], tmp_path/'post', title=title)
    head = yaml.safe_load((tmp_path/'post/index.qmd').read_text(encoding='utf-8').split('\n---\n')[0])
    assert head['title'] == title and head['categories'] and re.fullmatch(r'\d{4}-\d\d-\d\d', head['date'])
    assert (tmp_path/'post'/head['image']).exists()

def test_what_only_you_can_write(project):
    post = make_post(project[0])
    assert post.missing() == list(places.values())
    assert make_post(project[0], words={name: 'My words.' for name in places}).missing() == []
    assert missing_words(post.to_text('qmd')) == post.missing()
    with pytest.raises(ValueError, match='`words` has'): make_post(project[0], words=dict(whi='x'))

# ---------------------------------------------------------------- what it must not tell

def test_no_image_keeps_its_past(project, tmp_path):
    write_post(project[0], tmp_path/'post')
    taken = b''.join(f.read_bytes() for f in image_files(project[0]/'bears'))
    assert b'SecretCamera' in taken and b'SecretComment' in taken
    for file in (tmp_path/'post/figures').iterdir():
        content = file.read_bytes()
        for word in (b'Exif', b'Secret', b'Matplotlib', b'ICC_PROFILE'): assert word not in content, (file.name, word)
        with Image.open(io.BytesIO(content)) as image: assert not dict(image.getexif())

@pytest.mark.parametrize('mode,suffix', [('RGBA', '.png'), ('P', '.png'), ('L', '.jpg'), ('CMYK', '.jpg'), ('I;16', '.png')])
def test_any_mode_of_image(mode, suffix, tmp_path):
    Image.new(mode, (90, 400)).save(tmp_path/f'a{suffix}')
    with Image.open(io.BytesIO(figure_bytes(tmp_path/f'a{suffix}', 100))) as image: assert (image.mode, image.format, max(image.size)) == ('RGB', 'JPEG', 100)

def test_no_path_user_or_host(project, tmp_path):
    write_post(project[0], tmp_path/'post')
    for text in texts(tmp_path/'post').values():
        assert private_words(text, [project[0], tmp_path]) == []
        for word in (str(project[0]), str(tmp_path), str(Path.home()), 'home-of-ana'): assert word not in text

def test_names_of_files_do_not_go_out(project, tmp_path):
    write_post(project[0], tmp_path/'post')
    names = {f.name for f in image_files(project[0]/'bears')}
    assert not names & {f.name for f in (tmp_path/'post/figures').iterdir()}
    for text in texts(tmp_path/'post').values(): assert not [n for n in names if n in text]

@pytest.mark.parametrize('words', ['see /home/ana/bears', r'see C:\Users\ana\bears', 'at http://10.0.0.3:8000', 'in /Users/ana/x.jpg'])
def test_words_of_yours_are_looked_at_too(words, project, tmp_path):
    assert private_words(words)
    with pytest.raises(DataError, match='tell about your machine'): write_post(project[0], tmp_path/'post', words=dict(why=words))
    assert not (tmp_path/'post').exists()
    write_post(project[0], tmp_path/'post', words=dict(why=words), allow=private_words(words))

def test_each_path_is_named_once(tmp_path):
    assert private_words(f'In {tmp_path/"a"}, and {tmp_path}.', [tmp_path, tmp_path/'a']) == [str(tmp_path/'a'), str(tmp_path)]

def test_user_and_host_name(monkeypatch):
    monkeypatch.setattr(getpass, 'getuser', lambda: 'anna7')
    monkeypatch.setattr(socket, 'gethostname', lambda: 'marmalade')
    assert private_words('By Anna7 on marmalade.') == ['anna7', 'marmalade']
    assert private_words('By anna77.') == []
    def nobody(): raise KeyError('no such user')
    monkeypatch.setattr(getpass, 'getuser', nobody)
    assert private_words('By Anna7.') == []

@pytest.mark.parametrize('text', ['bearcls 0.1.0, Python 3.11.7', 'https://example.org/home/x', 'either/or', 'a 1/var/2', '8.8.8.8', '300.1.2.3'])
def test_ordinary_words_pass(text): assert private_words(text) == []

def test_hosts_of_your_own_network_are_not_named(project, rows):
    write_manifest(project[0]/'bears', [ImageRow(r.file, r.label, page='http://nas/x', url='http://192.168.0.9/y', license='CC0') for r in rows])
    text = make_post(project[0]).to_text('md')
    assert 'nas' not in re.findall(r'\w+', text) and '192.168' not in text and 'CC0' in text

# ---------------------------------------------------------------- images of others

def test_without_a_licence_no_image_and_each_is_named(project, rows):
    write_manifest(project[0]/'bears', [ImageRow(r.file, r.label) for r in rows])
    post = make_post(project[0])
    assert {f.name for f in post.figures} == {'confusion.png', 'labels.png'}
    files = {r.file for r in rows}
    assert len(post.left_out) > 10 and all(r['file'] in files and r['reason'] == 'its licence is not known' for r in post.left_out)
    assert 'whose licence is not known' in post.to_text('md')
    assert make_post(project[0], license='CC BY 4.0').left_out == []

def test_one_that_may_not_be_shown_gives_way_to_another(project, rows):
    write_manifest(project[0]/'bears', [ImageRow(r.file, r.label, license='CC0' if i % 2 else 'All rights reserved') for i, r in enumerate(rows)])
    post = make_post(project[0])
    assert len([f for f in post.figures if re.match(r'\d-', f.name)]) == 6 and post.left_out
    assert all('allows nothing' in r['reason'] for r in post.left_out)

def test_credit(project, rows):
    page = 'https://photos.example.org/bear_1?x=1'
    write_manifest(project[0]/'bears', [ImageRow(r.file, r.label, page=page, license='CC BY-SA 4.0') for r in rows])
    text = make_post(project[0]).to_text('md')
    assert f'CC BY-SA 4.0, [photos.example.org]({page})' in text
    write_manifest(project[0]/'bears', [ImageRow(r.file, r.label, page='https://a.example.org/x) <script>', license='CC0') for r in rows])
    assert '<script' not in make_post(project[0]).to_text('md')

@pytest.mark.parametrize('row', [dict(title='A man and a bear'), dict(term='family picnic'), dict(label='Selfie')])
def test_people(row):
    row = ImageRow('a.jpg', **row, license='CC0')
    assert 'people' in image_refusal(row) and image_refusal(row, people=True) == ''

def test_mandrill_is_not_a_man(): assert image_refusal(ImageRow('a.jpg', 'mandrill', title='Mankind of facets', license='CC0')) == ''

# ---------------------------------------------------------------- folders

def test_nothing_is_replaced(project, tmp_path):
    (tmp_path/'post').mkdir()
    (tmp_path/'post/notes.txt').write_text('mine')
    with pytest.raises(DataError, match='is not replaced'): write_post(project[0], tmp_path/'post')
    assert [f.name for f in (tmp_path/'post').iterdir()] == ['notes.txt']
    with pytest.raises(DataError, match='is not replaced'): Post('a', 'b', []).write(tmp_path/'post/notes.txt')
    (tmp_path/'empty').mkdir()
    write_post(project[0], tmp_path/'empty', forms=['md'])
    assert sorted(f.name for f in (tmp_path/'empty').iterdir()) == ['figures', 'index.md']

def test_not_among_the_images_nor_in_the_bundle(project, tmp_path):
    for inside in ('bears/post', 'bundle/post'):
        with pytest.raises(DataError, match='which stays as it is'): write_post(project[0], project[0]/inside)
        assert not (project[0]/inside).exists()
    with pytest.raises(DataError, match='holds no bundle'): write_post(tmp_path, tmp_path/'post')

def test_captions_cannot_break_out(tmp_path):
    figure = PostFigure('a.jpg', figure_bytes(Image.new('RGB', (9, 9))), 'x', 'a "quoted" {word} ] end')
    post = Post('t', 'd', [(figure,)])
    assert 'fig-alt="a \\"quoted\\" {word} ] end"' in post.to_text('qmd')
    assert '\\] end](figures/a.jpg)' in post.to_text('md')
