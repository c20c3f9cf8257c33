"The book's chapter: every call of the readers, in order, in one kernel; in both orders of imports, online against a web on this machine and offline"
import json, os, subprocess, sys, textwrap
from pathlib import Path
import pytest

nbclient = pytest.importorskip('nbclient')
nbformat = pytest.importorskip('nbformat')
pytest.importorskip('fastai', reason='fastai is not installed')
from bearcls.book.notebooks import _listen_often
from warm_kernels import kernel_path

ours = 'from bearcls.book import *'
theirs = 'from fastai.vision.all import *\nfrom fastai.vision.utils import *\nfrom fastai.vision.widgets import *'

# What stands in for the internet: a server with 40 images of each bear, which also speaks Bing's old interface, and two search engines that know it
web = '''
import functools, io, json, os
from bearcls.book.search import private_hosts
from bearcls.gather.fetch import FetchLimits
from bearcls.gather.providers import providers, search_bing_api
from bearcls.gather.results import SearchResult
from bearcls.sample.figures import draw_bear
from bearcls.sample.loopback import LoopbackWeb, Reply

def image(label, n):
    if n == 3: return Reply(404)
    if n == 5: return b'<!doctype html><title>Please log in</title>'
    out = io.BytesIO()
    draw_bear(label, n, 64).save(out, 'JPEG')
    return out.getvalue()

labels = 'grizzly', 'black', 'teddy'
sent_keys = []
pages = {f'/{label}/{n}.jpg': image(label, n) for label in labels for n in range(36)}
server = LoopbackWeb(pages).start()
def addresses(term): return [server.url + path for path in pages if path.split('/')[1] in term]
def old_bing(request):
    sent_keys.append(request.headers['Ocp-Apim-Subscription-Key'])
    start = int(request.query['offset'])
    value = [dict(contentUrl=a, name='A bear', width=64, height=64) for a in addresses(request.query['q'])]
    return json.dumps(dict(value=value[start:start + 20], nextOffset=start + 20 if start + 20 < len(value) else None)).encode()
server.pages['/v7.0/images/search'] = old_bing
def search_web(term, max_images): return [SearchResult(a, provider='web') for a in addresses(term)[:max_images]]
providers.update(duckduckgo=search_web, bing=search_web, bing_api=functools.partial(search_bing_api, limits=FetchLimits(allow_private=True)))
private_hosts.add('127.0.0.1')
os.environ.update(BING_SEARCH_ENDPOINT=server.url, BEARCLS_OFFLINE='')
'''

# The chapter up to the downloads, once with a network and once without
gather = '''
setup_book()
# %%
doc(verify_images)
# %%
verify_images??
# %%
key = os.environ.get('AZURE_SEARCH_KEY', 'XXX')
# %%
search_images_bing
# %%
results = search_images_bing(key, 'grizzly bear', min_sz=32, max_images=30)
assert type(results) is L and len(results) == 30 and isinstance(results[0], dict)
ims = results.attrgot('contentUrl')
assert ims == results.itemgot('contentUrl') and ims[0].startswith('http')
assert {'webSearchUrl', 'name', 'thumbnailUrl', 'datePublished', 'isFamilyFriendly', 'contentUrl', 'hostPageUrl', 'contentSize', 'encodingFormat',
        'hostPageDisplayUrl', 'width', 'height', 'thumbnail', 'imageId', 'accentColor'} <= {*results[0]}
assert ims == search_images_bing('grizzly bear', key=key, min_sz=32, max_images=30).attrgot('contentUrl')
pd.DataFrame(results).head()
# %%
for found in search_images_ddg('grizzly bear', max_images=20), search_images_dd('grizzly bear'), search_images_google('grizzly bear', 20):
    assert type(found) is L and found[0].startswith('http')
assert len(search_images_ddg('grizzly bear', max_images=20)) == 20
# %%
dest = 'images/grizzly.jpg'
assert download_url(ims[0], dest) == Path(dest)
# %%
im = Image.open(dest)
im.to_thumb(256,256)
# %%
bear_types = 'grizzly','black','teddy'
path = Path('bears')
# %%
if not path.exists():
    path.mkdir()
    for o in bear_types:
        dest = (path/o)
        dest.mkdir(exist_ok=True)
        results = search_images_bing(key, f'{o} bear', min_sz=32, max_images=34)
        download_images(dest, urls=results.attrgot('contentUrl'))
# %%
assert (path/'black'/'00000000.jpg').exists() and not any('-' in f.name for f in path.rglob('*'))
try: download_images('grizzly_bear.jpg', dest='grizzly')
except TypeError as e: assert 'write download_images("bears/grizzly", urls=addresses)' in str(e)
else: raise AssertionError
# %%
fns = get_image_files(path)
assert 85 < len(fns) < 102
fns[:5]
# %%
failed = verify_images(fns)
assert type(failed) is L and 3 <= len(failed) <= 8
failed
# %%
failed.map(Path.unlink);
# %%
assert verify_images(get_image_files(path)) == []
'''

# From the data to the application
rest = '''
bears = DataBlock(
    blocks=(ImageBlock, CategoryBlock),
    get_items=get_image_files,
    splitter=RandomSplitter(valid_pct=0.2, seed=42),
    get_y=parent_label,
    item_tfms=Resize(128))
# %%
dls = bears.dataloaders(path)
# %%
dls.valid.show_batch(max_n=4, nrows=1)
# %%
for how in Resize(128, ResizeMethod.Squish), Resize(128, ResizeMethod.Pad, pad_mode='zeros'):
    bears = bears.new(item_tfms=how)
    dls = bears.dataloaders(path)
    dls.valid.show_batch(max_n=4, nrows=1)
# %%
bears = bears.new(item_tfms=RandomResizedCrop(128, min_scale=0.3))
dls = bears.dataloaders(path)
dls.train.show_batch(max_n=4, nrows=1, unique=True)
# %%
bears = bears.new(item_tfms=Resize(128), batch_tfms=aug_transforms(mult=2))
dls = bears.dataloaders(path)
dls.train.show_batch(max_n=8, nrows=2, unique=True)
# %%
bears = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, splitter=RandomSplitter(valid_pct=0.2, seed=42),
    get_y=lambda x: x.parent.name, item_tfms=Resize(128))
bears = bears.new(
    item_tfms=RandomResizedCrop(32, min_scale=0.5),  # 224 in the book
    batch_tfms=aug_transforms())
dls = bears.dataloaders(path)
# %%
learn = cnn_learner(dls, resnet34, metrics=error_rate)
# %%
learn = vision_learner(dls, resnet18, metrics=error_rate)
learn.fine_tune(4)
# %%
interp = ClassificationInterpretation.from_learner(learn)
interp.plot_confusion_matrix()
# %%
interp.plot_confusion_matrix(figsize=(4, 4))
# %%
interp.plot_top_losses(5, nrows=1)
# %%
cleaner = ImageClassifierCleaner(learn)
cleaner
# %%
one, other = [f'{f.parent.name}/{f.name}' for f in cleaner.fns[:2]]
to = next(o for o in bear_types if not other.startswith(o) and not one.startswith(o))
n_before = len(list((path/to).iterdir()))
cleaner.cleaning.mark([one], 'delete')  # what a click does
cleaner.cleaning.mark([other], 'relabel', to)
# %%
for idx in cleaner.delete(): cleaner.fns[idx].unlink()
for idx,cat in cleaner.change(): shutil.move(str(cleaner.fns[idx]), path/cat)
# %%
assert not (path/one).exists() and not (path/other).exists() and len(list((path/to).iterdir())) == n_before + 1
# %%
learn.export()
# %%
path = Path()
path.ls(file_exts='.pkl')
# %%
learn_inf = load_learner(path/'export.pkl')
# %%
answer = learn_inf.predict('images/grizzly.jpg')
assert answer[0] in bear_types and len(answer) == 3 and answer[2].shape == (3,)
answer
# %%
img = PILImage.create('images/grizzly.jpg')
pred,_,probs = learn.predict(img)
learn_inf.dls.vocab
# %%
from datetime import datetime
btn_upload = widgets.FileUpload()
uploader = FileUpload()
btn_upload
# %%
content = Path('images/grizzly.jpg').read_bytes()
for button in btn_upload, uploader:  # what a browser does
    button.value = [dict(name='grizzly.jpg', type='image/jpeg', size=len(content), content=content, last_modified=datetime.now())]
assert btn_upload.data[-1] == uploader.data[0] == content
img = PILImage.create(uploader.data[0])
# %%
btn_upload = SimpleNamespace(data=['images/grizzly.jpg'])
img = PILImage.create(btn_upload.data[-1])
# %%
out_pl = widgets.Output()
out_pl.clear_output()
with out_pl: display(img.to_thumb(128,128))
out_pl
# %%
pred,pred_idx,probs = learn_inf.predict(img)
lbl_pred = widgets.Label()
lbl_pred.value = f'Prediction: {pred}; Probability: {probs[pred_idx]:.04f}'
# %%
btn_run = widgets.Button(description='Classify')
def on_click_classify(change):
    img = PILImage.create(btn_upload.data[-1])
    out_pl.clear_output()
    with out_pl: display(img.to_thumb(128,128))
    pred,pred_idx,probs = learn_inf.predict(img)
    lbl_pred.value = f'Prediction: {pred}; Probability: {probs[pred_idx]:.04f}'
btn_run.on_click(on_click_classify)
btn_run
# %%
lbl_pred.value = ''
btn_upload = widgets.FileUpload()
btn_upload.value = [dict(name='grizzly.jpg', type='image/jpeg', size=len(content), content=content, last_modified=datetime.now())]
btn_run.click()
assert lbl_pred.value.startswith('Prediction: ')
# %%
VBox([widgets.Label('Select your bear!'),
      btn_upload, btn_run, out_pl, lbl_pred])
# %%
for wrong, right in dict(download_image='download_images', aug_transform='aug_transforms', ImageClassiferCleaner='ImageClassifierCleaner').items():
    try: globals()[wrong](learn)
    except NameError as e: assert right in str(e)
    else: raise AssertionError(wrong)
'''


def in_a_kernel(folder, *texts):
    "Run cells in one kernel; the text of all outputs, cell by cell"
    parts = '\n# %%\n'.join(texts).split('\n# %%\n')
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(part.strip()) for part in parts])
    client = nbclient.NotebookClient(notebook, timeout=300, startup_timeout=240, kernel_name='python3', resources={'metadata': {'path': str(folder)}})
    client.on_notebook_start = lambda notebook: _listen_often(client)
    client.execute()
    said = {}
    for c in notebook.cells: said[c.source] = said.get(c.source, '') + json.dumps(c.outputs)  # some cells run twice
    return said


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    "No weights, no keys, no colours in tracebacks; kernels that are there at once"
    monkeypatch.setenv('JUPYTER_PATH', kernel_path())
    for name in ('AZURE_SEARCH_KEY', 'BING_SEARCH_KEY', 'BING_SEARCH_ENDPOINT', 'GOOGLE_API_KEY', 'GOOGLE_CSE_ID'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'torch'))
    monkeypatch.setenv('BEARCLS_CACHE', str(tmp_path/'cache'))
    monkeypatch.setenv('TQDM_DISABLE', '1')
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get('PYTHONPATH', '')]))


offline = "import os, shutil as files  # the star import's own `shutil` stays\nos.environ.update(BEARCLS_OFFLINE='1')\nfiles.rmtree('bears', ignore_errors=True)\nfiles.rmtree('images', ignore_errors=True)"
online = "shutil.rmtree('bears', ignore_errors=True)\nshutil.rmtree('images', ignore_errors=True)\nkey = '0123456789abcdef0123456789abcdef'\nos.environ['AZURE_SEARCH_KEY'] = key"


@pytest.mark.parametrize('imports', [[ours, theirs], [theirs, ours]], ids=['fastai last', 'fastai first'])
def test_every_call_of_the_readers(imports, tmp_path):
    "Offline and online up to the data, then to the application"
    said = in_a_kernel(tmp_path, *imports, 'defaults.cpus = 0  # no processes that load images', offline, gather, web, online, gather, 'assert {*sent_keys} == {key}', rest)
    assert '(key, term, min_sz=128, max_images=150)' in said['search_images_bing']
    assert {*said['doc(verify_images)']} == {*'[]'}  # Jupyter opens a pager, which is no output
    everything = ' '.join(said.values())
    assert everything.count('cnn_learner works.') == everything.count('setup_book() works.') == everything.count('FileUpload.data works.') == 1
    assert everything.count('Training resnet18 from scratch: ') == everything.count('Training resnet34 from scratch: ') == 1
    assert 'UserWarning' not in everything or 'renamed' not in everything


def python(code, folder):
    "What a fresh process prints"
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(code)], cwd=folder, capture_output=True, text=True, encoding='utf-8')
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_kernel_less(tmp_path):
    "Single names change nothing in fastai; the star import does, and it can be undone and done again; no network, no search engine"
    out = python('''
        import os, sys
        import bearcls.book
        assert not {'torch', 'fastai', 'fastcore', 'pandas', 'ipywidgets'} & {*sys.modules}
        from bearcls.book import search_images_bing as book_search
        assert 'torch' not in sys.modules
        import fastai.vision.all as fv, fastai.vision.utils as fu, fastai.vision.widgets as fw, ipywidgets
        theirs = fv.search_images_bing
        assert theirs is not book_search and not hasattr(ipywidgets.FileUpload, 'data')
        from bearcls.book import *
        from bearcls.book import *
        assert fv.search_images_bing is fu.search_images_bing is search_images_bing is book_search
        assert fw.ImageClassifierCleaner is ImageClassifierCleaner and ImageClassifierCleaner.__module__ == 'bearcls.clean.widget'
        import fastai.vision.learner, fastai.learner
        assert fastai.vision.learner.vision_learner is not vision_learner
        assert search_images_bing.__module__ == 'bearcls.book.search' and hasattr(ipywidgets.FileUpload, 'data')
        unpatch_fastai()
        assert fv.search_images_bing is fu.search_images_bing is theirs and not hasattr(ipywidgets.FileUpload, 'data')
        from bearcls.book import *
        assert fv.search_images_bing is book_search
        os.environ['https_proxy'] = os.environ['http_proxy'] = 'http://127.0.0.1:9'
        for search in (lambda: search_images_bing('XXX', 'bear'), lambda: search_images_ddg('bear')):
            try: search()
            except Exception as e: print(type(e).__name__, e)
    ''', tmp_path)
    assert out.count('BEARCLS_OFFLINE=1') == out.count('SearchError') == 2, out
