"A page around a classifier, made with Gradio: choose, drop, paste or take pictures, and read what they show"
import os, re
os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'  # before Gradio is loaded: it would tell its makers about every start
os.environ['HF_HUB_DISABLE_TELEMETRY'] = '1'
from html import escape
from pathlib import Path
import gradio as gr
from classifier import BundleError, Classifier, ImageError, data_uri, image_reasons, load_image, usable_cores

folder = Path(__file__).resolve().parent
classifier = Classifier(folder/'bundle', threads=1)  # each picture takes one core; as many at a time as there are cores
labels = classifier.labels
max_bytes = 32 << 20  # of one file
max_files = 20        # at a time
max_waiting = 64      # questions in the queue

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

def read(file):
    "The bytes of an uploaded file, but not more than are looked at"
    with open(file, 'rb') as f: return f.read(max_bytes + 1)

def files_of(payload):
    "What was chosen, as files. Gradio's own components would open them here, and show only the word Error where they cannot"
    if payload is None: return []
    if not hasattr(payload, 'root'): return [payload]
    return [getattr(one, 'image', None) or one.video for one in payload.root]

def answer(pictures, photo):
    "Cards for what was chosen or taken; both inputs are then empty again, ready for the next"
    files = pictures + photo
    cards = [card(file.orig_name or 'The picture', read(file.path)) for file in files[:max_files]]
    if len(files) > max_files: cards.append(f'<div class="card problem"><div>Only the first {max_files} of {len(files)} pictures were looked at.</div></div>')
    return ''.join(cards), None, None

def predict(picture: gr.FileData) -> dict:
    "Classify one picture: label, probability, all probabilities, whether to trust it and why not; or an error in words"
    found, _, problem = look(read(picture['path'] if isinstance(picture, dict) else picture.path))
    if problem: return dict(error=f'The file cannot be looked at: {problem}.')
    return dict(label=found.label, probability=found.probability, probabilities=found.probabilities, trusted=found.trusted, reason=found.reason)

css = '''
[data-testid=status-tracker]:has(.error) {display: none !important}
#answers[data-old] .card {display: none}
#answers .card {display: flex; flex-wrap: wrap; gap: 16px; padding: 12px; margin-bottom: 12px; border: 1px solid var(--border-color-primary);
  border-radius: var(--radius-lg); line-height: 1.5; overflow-wrap: anywhere}
#answers .problem, #answers .doubt {border-left: 4px solid #c77700}
#answers img {max-width: 100%; max-height: 240px; margin: 0; border-radius: var(--radius-md)}
#answers .said {flex: 1 1 14em; min-width: 0}
#answers .name, #answers .why, #answers summary {font-size: .9em; opacity: .8}
#answers .why {margin-bottom: .4em}
#answers .head {font-size: 1.5em; font-weight: 600; margin: .1em 0 .3em}
#answers .bar {display: flex; align-items: center; gap: 8px}
#answers .label {flex: 0 1 8em} #answers .number {flex: 0 0 3.5em; text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums}
#answers .track {flex: 1; height: 10px; background: #8883; border-radius: 5px; overflow: hidden}
#answers .track span {display: block; height: 100%; background: #3b7ea1}
'''
watch = """<script>{  // old answers go as soon as something is chosen, also where it will be refused; screen readers hear of new ones
  const answers = () => document.querySelector('#answers'), first = () => document.querySelector('#answers .card')
  let old = null
  const hide = () => { if (old = first()) answers().dataset.old = '' }
  document.addEventListener('change', event => event.target.type == 'file' && hide(), true)
  document.addEventListener('drop', hide, true)
  new MutationObserver(() => {
    answers()?.setAttribute('aria-live', 'polite')
    if (first() != old) delete answers()?.dataset.old
  }).observe(document, {childList: true, subtree: true})
}</script>"""
busy = '<div class="card problem"><div>No answer came: too many are asking just now, or the connection is gone. Please choose the picture again in a moment.</div></div>'
title = heading()

with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(60, 300)) as demo:
    with gr.Column(elem_id='page'):
        gr.HTML(f'<h1>{escape(title)}</h1><p>Choose one or several pictures, or drop them here. This server deletes them after some minutes.</p>')
        pictures = gr.Gallery(label='Pictures', sources=['upload'], type='filepath', file_types=['image', '.heic', '.heif', '.avif'], height=220, columns=6, allow_preview=False, interactive=True, buttons=[])
        with gr.Accordion('Take or paste a picture', open=False):
            photo = gr.Image(label='Camera or clipboard', sources=['webcam', 'clipboard'], type='filepath', image_mode=None, height=360, buttons=[])
        answers = gr.HTML(elem_id='answers')
    pictures.preprocess = photo.preprocess = files_of
    cleared = gr.on([pictures.upload, photo.input], None, None, answers, js="() => ''", api_visibility='private', queue=False)
    asked = cleared.then(answer, [pictures, photo], [answers, pictures, photo], concurrency_limit=usable_cores(), trigger_mode='always_last',
        api_visibility='private', show_progress='full')
    asked.failure(None, None, [answers, pictures, photo], js=f'() => [{busy!r}, null, null]')
    gr.api(predict, api_name='predict', concurrency_limit=usable_cores())
demo.queue(max_size=max_waiting)

settings = dict(share=False, ssr_mode=False, pwa=False, run_history=False, enable_monitoring=False, max_file_size=max_bytes, footer_links=['api'], css=css, head=watch,
    theme=gr.themes.Default(font=['system-ui', 'sans-serif'], font_mono=['ui-monospace', 'monospace']), show_error=False)

if __name__ == '__main__': demo.launch(**settings)
