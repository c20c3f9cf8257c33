"Files that are not what they seem: Python does with each of them what the drawn list says, from wherever it comes"
import io, struct, time, tracemalloc, zlib
import numpy as np
import pytest
from PIL import Image
from bearcls.images import ImageError, image_size, load_image
from bearcls.gather.download import _accept
from bearcls.inference.classifier import Classifier
from bearcls.sample.drawing import colour_card, grey_card, png_chunk, white_levels, write_png
from bearcls.sample.odd_files import _tiff, draw_odd_files
from bearcls.serve.workers import claimed_pixels
from bearcls.verify.measure import measure_file
from bearcls.verify.report import Thresholds, check_images
from tiny_bundle import make_bundle

files = draw_odd_files()
names = [o.name for o in files]

def outcome(function, *args):
    "What a function gives, or the reason of its ImageError"
    try: return function(*args)
    except ImageError as e: return e.reason

def test_names_are_unique(): assert len(set(names)) == len(names) > 200

@pytest.mark.parametrize('odd', files, ids=names)
def test_every_way_to_open_it(odd, tmp_path):
    "Bytes, path, open file and a file that cannot seek; its size, what `check_images` says, and a download"
    file = tmp_path/'label'/odd.name
    file.parent.mkdir()
    file.write_bytes(odd.data)
    class Stream(io.BytesIO):
        def seekable(self): return False
    results = [outcome(load_image, source) for source in (odd.data, file, str(file), io.BytesIO(odd.data), Stream(odd.data))]
    measured = measure_file(file, tmp_path)
    if odd.reason:
        assert results == [odd.reason]*5 and outcome(_accept, odd.data) in (odd.reason, 'unreadable', 'not_an_image')
        assert measured.issue == ('unsupported' if odd.name == 'raw.ppm' else odd.reason) and measured.message
        return
    for image in results:
        assert image.mode == 'RGB' and np.asarray(image).shape == odd.pixels.shape
        assert np.abs(np.asarray(image).astype(int) - odd.pixels).max() <= odd.within
    assert image_size(file) == image_size(odd.data) == results[0].size == (measured.width, measured.height)
    assert not measured.issue and measured.format
    assert _accept(odd.data).width == results[0].width
    assert claimed_pixels(odd.data) == results[0].width*results[0].height

def test_training_and_bundle_see_the_same(tmp_path):
    from bearcls.data.cache import OpenImage
    seen, classifier = OpenImage(), Classifier(make_bundle(tmp_path/'bundle'))
    for odd in files:
        (tmp_path/odd.name).write_bytes(odd.data)
        theirs, answer = outcome(seen, tmp_path/odd.name), outcome(classifier.predict, tmp_path/odd.name)
        if odd.reason: assert theirs == answer == odd.reason, odd.name
        else: assert np.array_equal(np.asarray(theirs), np.asarray(load_image(odd.data))) and answer.label, odd.name

@pytest.mark.parametrize('how', [dict(), dict(progressive=True), dict(subsampling=2), dict(optimize=True, quality=60), dict(restart_marker_blocks=2), dict(progressive=True, restart_marker_rows=1)])
@pytest.mark.parametrize('seed', range(5))
def test_a_jpeg_that_breaks_off_is_whole_or_refused(seed, how):
    "Wherever it ends: other pixels never come out of it"
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (6, 7, 3), np.uint8)).resize((75, 61), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, 'JPEG', **how)
    data, right = out.getvalue(), np.asarray(load_image(out.getvalue()))
    assert np.array_equal(np.asarray(load_image(data[:-2])), right)
    kept = 0
    for n in [*range(3, 12), *rng.integers(12, len(data) - 20, 12)]:
        for tail in (b'', bytes(300)):
            result = outcome(load_image, data[:-n] + tail)
            kept += not isinstance(result, str)
            assert isinstance(result, str) or np.array_equal(np.asarray(result), right), (n, len(tail))
    assert kept <= 6  # bits that only fill the last byte

@pytest.mark.parametrize('n', range(1, 60, 3))
def test_a_png_that_breaks_off_is_whole_or_refused(n):
    whole = write_png(colour_card(), 'RGB')
    result = outcome(load_image, whole[:-n])
    assert result == 'truncated' if n > 20 else np.array_equal(np.asarray(result), colour_card())

def saved(image, **how):
    out = io.BytesIO()
    image.save(out, 'TIFF', **how)
    return out.getvalue()

grey = grey_card()
deep = {'16': ((grey*65535).round().astype(np.uint16), white_levels(grey)), 'float': (grey.astype(np.float32), white_levels(grey)),
        '32': ((grey*(2**31 - 1)).astype(np.int32), white_levels(.5 + grey/2))}
@pytest.mark.parametrize('kind', deep)
@pytest.mark.parametrize('compression', [None, 'tiff_lzw', 'tiff_adobe_deflate', 'packbits'])
def test_what_pillow_writes(kind, compression):
    values, pixels = deep[kind]
    for predictor in (1, 2, 3) if compression in ('tiff_lzw', 'tiff_adobe_deflate') and kind == 'float' else (1,):
        data = saved(Image.fromarray(values), compression=compression, tiffinfo={317: predictor})
        for source in (data, Image.open(io.BytesIO(data))):
            assert np.abs(np.asarray(load_image(source)).astype(int) - pixels).max() <= 1, predictor

def test_an_opened_tiff_keeps_its_declaration():
    for name in ('float-declared.tif', 'white-is-zero16-II.tif', 'grey32-II.tif', 'signed16-II.tif', 'grey12-II.tif'):
        odd = next(o for o in files if o.name == name)
        assert np.abs(np.asarray(load_image(Image.open(io.BytesIO(odd.data)))).astype(int) - odd.pixels).max() <= 1, name

def tiled(values, side=16, order='<'):
    "An uncompressed TIFF of 16-bit tiles, of which the last ones are padded"
    height, width = values.shape
    down, across = -(-height//side), -(-width//side)
    padded = np.pad(values, ((0, down*side - height), (0, across*side - width))).astype(order + 'u2')
    tiles = [padded[y:y + side, x:x + side].tobytes() for y in range(0, down*side, side) for x in range(0, across*side, side)]
    n, start = len(tiles), 8
    offsets = [start + k*len(tiles[0]) for k in range(n)]
    at = start + sum(map(len, tiles))
    lists = struct.pack(f'{order}{n}I', *offsets), struct.pack(f'{order}{n}I', *map(len, tiles))
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1),
            (322, 4, 1, side), (323, 4, 1, side), (324, 4, n, at), (325, 4, n, at + len(lists[0]))]
    def entry(tag, kind, count, value):
        place = struct.pack(order + 'HH', value, 0) if kind == 3 else struct.pack(order + 'I', value)
        return struct.pack(order + 'HHI', tag, kind, count) + place
    head = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(order + 'I', at + sum(map(len, lists)))
    return head + b''.join(tiles) + b''.join(lists) + struct.pack(order + 'H', len(tags)) + b''.join(entry(*t) for t in tags) + bytes(4)

@pytest.mark.parametrize('order', '<>')
def test_tiles(order):
    data = tiled((grey_card(50, 70)*65535).round().astype(np.uint16), order=order)
    assert np.abs(np.asarray(load_image(data)).astype(int) - white_levels(grey_card(50, 70))).max() <= 1
    assert outcome(load_image, data.replace(struct.pack(order + 'HHII', 325, 4, 20, 0)[:8], struct.pack(order + 'HHI', 325, 4, 3))) in ('truncated', 'unreadable') \
        or np.asarray(load_image(data)).shape == (50, 70, 3)

def test_turned_deep_tiff():
    data = bytearray(_tiff((grey*65535).round(), 16))
    at = data.index(struct.pack('<HHI', 277, 3, 1))  # SamplesPerPixel is 1 by itself
    data[at:at + 12] = struct.pack('<HHIHH', 274, 3, 1, 6, 0)
    assert load_image(bytes(data)).size == image_size(bytes(data)) == (40, 48)

@pytest.mark.parametrize('array', [np.array([[0, 3000.]], np.float32), np.array([[0, np.nan]], np.float32), np.array([[0, 70_000]], np.int32), np.array([[-900, 5]], np.int32)])
def test_arrays_without_a_scale_are_refused(array):
    with pytest.raises(ImageError, match='nothing says which is white|not numbers'): load_image(Image.fromarray(array))

def test_one_peak_does_not_change_the_others():
    dim, hot = np.full((4, 4), .25, np.float32), np.full((4, 4), .25, np.float32)
    hot[0, 0] = 1
    for make in (Image.fromarray, lambda a: io.BytesIO(_tiff(a, 32, 3)), lambda a: io.BytesIO(_tiff((a*65535).round(), 16))):
        assert load_image(make(dim)).getpixel((3, 3)) == load_image(make(hot)).getpixel((3, 3)) == (64, 64, 64)

def test_bombs_stay_outside():
    "Small files that claim much, or unpack to much, are refused or passed over quickly, and without memory"
    claims = lambda data: data.replace(struct.pack('>HH', 40, 48), struct.pack('>HH', 60_000, 60_000))
    jpeg = next(o for o in files if o.name == 'baseline-no-end.jpg').data
    tiff = _tiff(grey, 32, 3).replace(struct.pack('<HHII', 256, 4, 1, 48), struct.pack('<HHII', 256, 4, 1, 4_000_000)).replace(
        struct.pack('<HHII', 257, 4, 1, 40), struct.pack('<HHII', 257, 4, 1, 4_000))
    text = write_png(colour_card(), 'RGB', before=[png_chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(300_000_000)))])
    more = write_png(colour_card(), 'RGB', idat=lambda p: png_chunk(b'IDAT', zlib.compress(bytes(300_000_000)), 1))
    tracemalloc.start()
    begun = time.monotonic()
    assert outcome(load_image, claims(jpeg)) == outcome(load_image, tiff) == 'bomb'
    assert load_image(text).size == (48, 40) and not isinstance(outcome(load_image, more), str)
    assert tracemalloc.get_traced_memory()[1] < 30_000_000
    tracemalloc.stop()
    assert time.monotonic() - begun < 20

def test_small_images_among_small_ones_are_in_order(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(20):
        (tmp_path/str(k % 2)).mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(tmp_path/str(k % 2)/f'{k}.png')
    Image.fromarray(rng.integers(0, 256, (9, 28), np.uint8)).save(tmp_path/'1'/'strip.png')
    report = check_images(tmp_path)
    assert report.files('too_small') == ['1/strip.png'] and report.thresholds.min_side == 14
    assert len(report.adjust(min_side=29).files('too_small')) == 21
    assert report.adjust(min_side=5).files('too_small') == []
    assert check_images(tmp_path, Thresholds(min_side=29)).thresholds.min_side == 29

def test_an_image_is_turned_once(tmp_path):
    "What `load_image` has opened may be opened again: by `predict`, by a Learner, by a gallery"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (30, 20), 'red').save(tmp_path/'phone.jpg', exif=exif)
    once = load_image(tmp_path/'phone.jpg')
    assert once.size == load_image(once).size == (20, 30)
    assert load_image(load_image(tmp_path/'phone.jpg', 10)).size == (10, 15)
    assert load_image(Image.open(tmp_path/'phone.jpg')).size == (20, 30)
    assert load_image(load_image(Image.open(tmp_path/'phone.jpg'))).size == (20, 30)
