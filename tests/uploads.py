"Every kind of file that people choose, and what a page should say about it when its model knows the colours of furs"
import io, os
import numpy as np
from PIL import Image
from bearcls.sample.standins import furs

def image_bytes(colour, size=(400, 300), format='JPEG', noise=0, mode='RGB', **options):
    "An image of one colour, or with noise around it, as the bytes of a file"
    out, image = io.BytesIO(), Image.new(mode, size, colour)
    if noise:
        grain = np.random.default_rng(0).integers(-noise, noise + 1, (*size[::-1], 3), dtype=np.int16)
        image = Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))
    image.save(out, format, **options)
    return out.getvalue()

def write_uploads(folder):
    "The files, in `folder`"
    sideways, veil = Image.Exif(), io.BytesIO()
    sideways[0x0112] = 6
    Image.new('RGBA', (300, 300), (0, 0, 0, 0)).save(veil, 'PNG')
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {
        'brown.jpg': image_bytes(furs['brown']), 'sideways.jpg': image_bytes('white', (900, 400), exif=sideways), 'twelve.jpg': image_bytes(furs['brown'], (4000, 3000), noise=60, quality=95),
        'large.png': image_bytes(furs['brown'], (3700, 2950), 'PNG', noise=60, compress_level=1), 'alpha.png': veil.getvalue(), 'web.webp': image_bytes('white', format='WEBP'),
        'text.jpg': b'this is text', 'empty.jpg': b'', 'again.png': image_bytes(furs['brown'], (500, 300), 'PNG'),
    }.items(): (folder/name).write_bytes(content)
    assert (folder/'large.png').stat().st_size > 29_000_000 and (folder/'twelve.jpg').stat().st_size > 5_000_000
    return folder

labels_expected = {'brown.jpg': 'brown', 'sideways.jpg': 'white', 'twelve.jpg': 'brown', 'large.png': 'brown', 'alpha.png': 'white', 'web.webp': 'white', 'text.jpg': '', 'empty.jpg': '', 'again.png': 'brown'}  # '': a sentence
