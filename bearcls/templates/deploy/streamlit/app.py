"A page around a classifier, made with Streamlit: choose, drop or take pictures, and read what they show"
import re, threading
from html import escape
from pathlib import Path
import streamlit as st
from classifier import BundleError, Classifier, ImageError, data_uri, image_reasons, load_image, usable_cores

folder = Path(__file__).resolve().parent
max_bytes = 32 << 20  # of one file; .streamlit/config.toml says the same
max_files = 20        # at a time
patience = 20         # seconds to wait for a free core
kinds = 'jpg jpeg jfif png webp gif bmp tif tiff avif heic heif'.split()

@st.cache_resource(show_spinner=False)
def model():
    "The classifier, loaded once for all visitors, and a place for each core: each picture takes one"
    return Classifier(folder/'bundle', threads=1), threading.BoundedSemaphore(usable_cores())

classifier, places = model()
labels = classifier.labels

def heading():
    "The first heading of README.md, or else the labels"
    readme = folder/'README.md'
    found = re.search(r'^# (.+)$', readme.read_text(encoding='utf-8'), re.M) if readme.exists() else None
    if found: return found[1].strip()
    return ', '.join(labels[:-1]) + ' or ' + labels[-1] + '?' if len(labels) <= 6 else 'What does the picture show?'

def look(content):
    "What is seen on a picture: the prediction and a small copy, or a reason why there is none"
    if len(content) > max_bytes: return None, '', f'it has {len(content)/1e6:.0f} MB, and up to {max_bytes/1e6:.0f} MB can be looked at'
    try:
        image = load_image(content, classifier.bundle.min_side)
        small = load_image(content, 320) if max(image.size) < 320 else image
        return classifier.predict(image), data_uri(small, 320), ''
    except ImageError as e: return None, '', image_reasons.get(e.reason, image_reasons['unreadable'])
    except MemoryError: return None, '', 'it is too large a picture for this computer'
    except BundleError as e:
        print(f'The model cannot answer: {e}', flush=True)
        return None, '', 'the model cannot answer just now'

def bar(label, p):
    "One label: name, bar, number"
    number = '>99%' if .995 < p < 1 else '<1%' if 0 < p < .005 else f'{100*p:.0f}%'
    return (f'<div class="bar"><span class="label">{escape(label)}</span><span class="track" aria-hidden="true"><span style="width:{100*p:.1f}%"></span></span>'
        f'<span class="number">{escape(number)}</span></div>')

def card(name, content):
    "The answer to one file as HTML: the picture, the label or a request to ask a person, and all labels as bars"
    found, picture, problem = look(content)
    if problem: return f'<div class="card problem"><div><b>{escape(name)}</b> cannot be looked at: {escape(problem)}. Please choose another picture.</div></div>'
    bars = [bar(*pair) for pair in found.probabilities.items()]
    more = f'<details><summary>show all {len(bars)} labels</summary>{"".join(bars[8:])}</details>' if len(bars) > 8 else ''
    head = f'<div class="head">{escape(found.label)}</div>' if found.trusted else (
        f'<div class="head">None of these? Ask a person</div><div class="why">The model would rather not decide: {escape(found.reason)}.</div>')
    return (f'<div class="card{"" if found.trusted else " doubt"}"><img src="{picture}" alt="{escape(name, quote=True)}">'
        f'<div class="said"><div class="name">{escape(name)}</div>{head}{"".join(bars[:8])}{more}</div></div>')

def answers(files):
    "Cards for what was chosen or taken"
    if not places.acquire(timeout=patience): return [busy]
    try: cards = [card(file.name, file.getvalue()) for file in files[:max_files]]
    finally: places.release()
    if len(files) > max_files: cards.append(f'<div class="card problem"><div>Only the first {max_files} of {len(files)} pictures were looked at.</div></div>')
    return cards

busy = '<div class="card problem"><div>Too many are asking just now. Please choose the picture again in a moment.</div></div>'
css = '''<style>
.stMainBlockContainer {padding-top: 3rem}
.stMainBlockContainer h1 {padding: 0; margin-bottom: -.5rem}
.stApp:has([data-testid=stFileChip]) .answers {visibility: hidden}  /* old answers go as soon as something is chosen */
[data-testid=stFileChip] {flex-wrap: wrap; max-width: none !important}
[data-testid=stFileChip] [role=alert] {position: static !important; width: auto !important; height: auto !important; clip: auto !important; clip-path: none !important; white-space: normal !important}
.answers .card {display: flex; flex-wrap: wrap; gap: 16px; padding: 12px; margin-bottom: 12px; border: 1px solid #8886; border-radius: 8px; line-height: 1.5; overflow-wrap: anywhere}
.answers .problem, .answers .doubt {border-left: 4px solid #c77700}
.answers img {max-width: 100%; max-height: 240px; margin: 0; border-radius: 6px}
.answers .said {flex: 1 1 14em; min-width: 0}
.answers .name, .answers .why, .answers summary {font-size: .9em; opacity: .8}
.answers .why {margin-bottom: .4em}
.answers .head {font-size: 1.5em; font-weight: 600; margin: .1em 0 .3em}
.answers .bar {display: flex; align-items: center; gap: 8px}
.answers .label {flex: 0 1 8em} .answers .number {flex: 0 0 3.5em; text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums}
.answers .track {flex: 1; height: 10px; background: #8883; border-radius: 5px; overflow: hidden}
.answers .track span {display: block; height: 100%; background: #3b7ea1}
</style>'''

title, state = heading(), st.session_state
state.setdefault('turn', 0)     # new inputs after each answer, ready for the next
state.setdefault('cards', [])
st.set_page_config(page_title=title)
st.html(css)
st.html(f'<h1>{escape(title)}</h1>')
chosen = st.file_uploader('Choose one or several pictures, or drop them here. This server keeps none of them.', type=kinds, accept_multiple_files=True, key=f'files{state.turn}')
photo = st.camera_input('Take a picture', key=f'photo{state.turn}') if st.toggle('Use the camera') else None
st.html(f'<div class="answers" role="status">{"".join(state.cards)}</div>')
if files := [*chosen, *([photo] if photo else [])]:
    with st.spinner('Looking …'): state.cards = answers(files)
    state.turn += 1
    st.rerun()
