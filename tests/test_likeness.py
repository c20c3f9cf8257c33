"Images of one layout, and many of them: what would make bad reading in the notebook on likeness"
import io, pickle, tempfile
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter
from bearcls import fingerprints
from bearcls.verify import measure
from bearcls.images import load_image
from bearcls.folders import image_files
from bearcls.fingerprints import Fingerprint, Prints, fingerprint
from bearcls.similarity import joined_duplicates, near_duplicates, similarity
from bearcls.verify.measure import MeasuresTable, measure_file
from bearcls.data.cache import survey
from bearcls.data.split import near_groups
from bearcls.verify.report import check_images

def xray(rng):
    "A chest: the same two lungs, ribs and heart, each a little elsewhere"
    image = Image.new('L', (256, 256), 15)
    draw = ImageDraw.Draw(image)
    def by(place, spread=5): return place + rng.normal(0, spread)
    draw.rounded_rectangle([by(20), by(30), by(236), by(270)], 60, fill=int(by(135)))
    for left, right in ((52, 118), (138, 204)): draw.ellipse([by(left), by(60), by(right), by(205)], fill=int(by(60)))
    draw.ellipse([by(105), by(125), by(175), by(200)], fill=int(by(160)))
    for n in range(8): draw.arc([by(35), by(50 + 18*n, 3), by(221), by(120 + 18*n, 3)], 180, 360, fill=int(by(120)), width=3)
    return _grain(image.filter(ImageFilter.GaussianBlur(2)).convert('RGB'), rng)

def _grain(image, rng): return Image.fromarray((np.asarray(image) + rng.normal(0, 3, (256, 256, 1))).clip(0, 255).astype(np.uint8))

def form(rng):
    "A form with the same fields, filled in by different people"
    image = Image.new('RGB', (200, 256), 'white')
    draw = ImageDraw.Draw(image)
    draw.rectangle([10, 10, 190, 34], fill=(40, 60, 120))
    for n in range(9):
        draw.rectangle([60, 43 + 22*n, 190, 60 + 22*n], outline=(90, 90, 90))
        draw.text((64, 46 + 22*n), ''.join(rng.choice(list('abcdefghiklmnop'), rng.integers(2, 16))), fill=(20, 20, 150))
    return image

def field(rng):
    "What a microscope shows: round, and other cells each time"
    image = Image.new('RGB', (256, 256), (236, 214, 226))
    draw = ImageDraw.Draw(image)
    for x, y in rng.uniform(0, 256, (50, 2)):
        r = rng.uniform(8, 15)
        draw.ellipse([x - r, y - r, x + r, y + r], fill=(222, 170, 195))
    round_ = Image.new('L', (256, 256), 0)
    ImageDraw.Draw(round_).ellipse([3, 3, 253, 253], fill=255)
    return Image.composite(image.filter(ImageFilter.GaussianBlur(1)), Image.new('RGB', (256, 256), (10, 10, 10)), round_)

def again(image, rng, trim=.03):
    "A copy: trimmed a little, rescaled, brighter or darker, saved again"
    (w, h), (left, top, right, bottom) = image.size, rng.uniform(0, trim, 4)
    image = image.crop((round(w*left), round(h*top), round(w*(1 - right)), round(h*(1 - bottom)))).resize((160, 160))
    out = io.BytesIO()
    ImageEnhance.Brightness(image).enhance(rng.uniform(.9, 1.1)).save(out, 'JPEG', quality=70)
    return load_image(out.getvalue())

@pytest.mark.parametrize('kind', [xray, form, field])
def test_images_of_one_layout_are_no_copies(kind):
    "Of 48 drawn chest images 29 were called copies, 18 of them across labels"
    rng = np.random.default_rng(0)
    prints = [fingerprint(kind(rng)) for _ in range(48)]
    assert list(near_duplicates(prints)) == []

@pytest.mark.parametrize('kind,trim', [(xray, .01), (field, 0)])
def test_copies_among_images_of_one_layout_are_found(kind, trim):
    "Nearly all that are alike enough to be copies anywhere"
    rng = np.random.default_rng(1)
    images = [kind(rng) for _ in range(48)]
    prints = [fingerprint(image) for image in images] + [fingerprint(again(image, rng, trim)) for image in images[:12]]
    found = [(a, b) for a, b, _ in near_duplicates(prints)]
    alike = [k for k in range(12) if similarity(prints[k].tiny, prints[48 + k].tiny) >= .96]
    assert all(b - a == 48 for a, b in found)
    assert len(alike) >= 8 and len(found) >= .8*len(alike)

@pytest.mark.parametrize('n', range(2, 11))
def test_in_small_folders_too(n):
    "Ten folders of each size: hardly any pair of X-rays is a copy, a copy saved again is one always"
    false = 0
    for seed in range(10):
        rng = np.random.default_rng(100*n + seed)
        images = [xray(rng) for _ in range(n)]
        false += len(list(near_duplicates([fingerprint(image) for image in images])))
        out = io.BytesIO()
        images[0].save(out, 'JPEG', quality=60)
        assert (0, n) in {(a, b) for a, b, _ in near_duplicates([fingerprint(i) for i in [*images, load_image(out.getvalue())]])}
    assert false <= 2

def test_report_split_and_label_issues_go_by_one_rule(tmp_path):
    rng = np.random.default_rng(2)
    for label in ('healthy', 'ill'):
        (tmp_path/label).mkdir()
        for n in range(16): xray(rng).save(tmp_path/label/f'{n}.png')
    load_image(tmp_path/'ill'/'3.png').save(tmp_path/'healthy'/'again.jpg', quality=70)
    report = check_images(tmp_path)
    assert [(f.file, f.of) for f in report.rows if f.issue == 'near_duplicate'] == [('healthy/again.jpg', 'ill/3.png')]
    assert report.files('across_labels') == ['healthy/again.jpg']
    looked = survey(image_files(tmp_path))
    groups = near_groups(looked)
    together = [s.file.relative_to(tmp_path).as_posix() for s, g in zip(looked, groups) if groups.count(g) > 1]
    assert together == ['healthy/again.jpg', 'ill/3.png']

def test_a_family_of_copies_is_found_among_others():
    "Eight trims of one image beside forty different ones"
    rng = np.random.default_rng(3)
    def blocky(): return Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((240, 240), Image.Resampling.BICUBIC)
    images = [blocky() for _ in range(40)]
    prints = [fingerprint(i) for i in images] + [fingerprint(again(images[0], rng)) for _ in range(8)]
    assert {b for a, b, _ in near_duplicates(prints) if a == 0} == set(range(40, 48))
    groups = joined_duplicates(prints)
    assert [k for k in range(48) if groups.leader(k) == 0] == [0, *range(40, 48)]

def some_prints(n): return [Fingerprint(k, 2*k, bytes([k % 256])*3072) for k in range(n)]

def test_thumbnails_outlive_a_disk_that_is_full(monkeypatch):
    def full(**kwargs): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(fingerprints.tempfile, 'TemporaryFile', full)
    many = Prints(some_prints(100), in_memory=10)
    assert list(many) == some_prints(100) and many.hashes[:, 1].tolist() == list(range(0, 200, 2))

def test_many_thumbnails_do_not_stay_in_memory():
    many = Prints(some_prints(95), in_memory=10)
    assert len(many._tail) == 5*3072 and list(many) == some_prints(95)
    assert many[-1] == many[94] and many[3:5] == some_prints(5)[3:]
    with pytest.raises(IndexError): many[95]
    assert list(pickle.loads(pickle.dumps(many))) == some_prints(95)

def test_a_report_does_not_read_files_again_and_its_rows_are_measures(bears, monkeypatch):
    report = check_images(bears)
    rows = [measure_file(f, bears) for f in image_files(bears)]
    assert list(report.measures) == rows and report.measures[-1] == rows[-1] and report.measures[1:3] == rows[1:3]
    assert [m.real for m in report.measures] == [m.real for m in rows]
    assert len(pickle.dumps(report.measures[0])) < 5000 and pickle.loads(pickle.dumps(report.measures[0])) == rows[0]
    monkeypatch.setattr(measure, '_read', lambda file: pytest.fail('a file was read again'))
    assert report.adjust().rows == report.rows

def test_a_table_keeps_odd_names_and_links():
    rows = [measure.Measures('a/b\udce4r.jpg', real='/elsewhere/x.jpg'),
            measure.Measures('a/ü.jpg', 'a', issue='unreadable', message='why', real='/photos/a/ü.jpg')]
    assert list(MeasuresTable(rows, '/photos')) == rows
