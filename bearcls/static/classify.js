/* Images in, answers out: the page of the notebook application, of the HTTP service and of the folder that needs no server.

   `mount` draws it. Who answers is not known here: `ask` is given an image and promises an answer. Every image has a card of
   its own, and an answer is written into the card of its image or nowhere; choosing new images takes the old cards away at once.
   `shrink` makes a photograph small before it travels. Words go into the page as text, never as HTML: names come from strangers. */

/* An element with attributes, listeners (`onclick`) and children; `null` children are left out */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? '' : value);
  }
  if (element.matches('button, input, select, summary')) element.dataset.lmSuppressShortcuts = 'true'; // Keys are meant for them, not for JupyterLab's cells
  element.append(...children.filter((child) => child != null));
  return element;
}

/* A small drawing from the path of an SVG of 24 by 24 */
function icon(path) {
  const [svg, line] = ['svg', 'path'].map((name) => document.createElementNS('http://www.w3.org/2000/svg', name));
  for (const [name, value] of [['viewBox', '0 0 24 24'], ['aria-hidden', 'true'], ['class', 'bq-icon']]) svg.setAttribute(name, value);
  line.setAttribute('d', path);
  svg.append(line);
  return svg;
}

const icons = {
  images: 'M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15.5 9.5h.01',
  camera: 'M4 8h4l1.5-2.5h5L16 8h4v11H4zM12 16.5a3.2 3.2 0 1 0 0-6.4 3.2 3.2 0 0 0 0 6.4z',
  up: 'M7 11v9H4v-9zM7 11l4-8c1.6 0 2.4 1 2.2 2.6L12.7 9H18a2 2 0 0 1 2 2.3l-1.2 7A2 2 0 0 1 16.8 20H7',
  down: 'M17 13V4h3v9zM17 13l-4 8c-1.6 0-2.4-1-2.2-2.6l.5-3.4H6a2 2 0 0 1-2-2.3l1.2-7A2 2 0 0 1 7.2 4H17',
};

const percent = (p) => (p > 0.995 && p < 1 ? '>99%' : p > 0 && p < 0.005 ? '<1%' : `${Math.round(100 * p)}%`);
const size = (bytes) => (bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0).replace('.0', '')} MB`);

/* ---------------------------------------------------------------- making images small */

/* What is tried in turn until the bytes fit: longest side in pixels, and JPEG's quality. A model sees a few hundred pixels,
   so pixels are given up before the quality falls to where blocks would show */
const steps = [[1600, 0.88], [1600, 0.8], [1280, 0.85], [1280, 0.75], [1024, 0.8], [1024, 0.7], [800, 0.75], [640, 0.75], [480, 0.7], [320, 0.65], [160, 0.5], [64, 0.4]];
const webpHead = /^RIFF[^]{4}WEBP/;
const readEverywhere = /^(\xff\xd8\xff|\x89PNG|GIF8|BM|RIFF[^]{4}WEBP)/; // Formats that every answering side can open

/* An image drawn upright on white, `side` pixels at its longest; long narrow ones keep 256 pixels across, or `least` where that made them longer than 8192 */
function draw(source, side, least = 64) {
  const [long, short] = [Math.max(source.width, source.height), Math.min(source.width, source.height)];
  const scale = Math.min(1, Math.max(side / long, Math.min(Math.min(256, side) / short, Math.max(8192 / long, Math.min(least, short) / short))));
  const canvas = make('canvas', { width: Math.max(1, Math.round(source.width * scale)), height: Math.max(1, Math.round(source.height * scale)) });
  const context = canvas.getContext('2d');
  context.fillStyle = 'white';
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = 'high';
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas;
}

const encode = (canvas, quality) => new Promise((done) => canvas.toBlob(done, 'image/jpeg', quality));

/* The image in a file, upright and with the numbers that stand in it (Python ignores colour profiles, too); null if this browser cannot open it */
async function decode(file, head) {
  let turn = 1;
  if (webpHead.test(head)) {
    const bytes = new Uint8Array(await file.arrayBuffer());
    turn = webpTurn(bytes);
    if (turn > 1) file = new Blob([bytes], { type: 'image/webp' });
  }
  for (const options of [{ imageOrientation: 'from-image', colorSpaceConversion: 'none' }, {}]) {
    try { return turned(await createImageBitmap(file, options), turn); } catch { /* an older browser knows fewer options, or it is no image */ }
  }
  return null;
}

/* How EXIF wants a WebP file turned, 1 to 8. In `bytes` it is set to 1: Chromium heeds it in other formats only, other browsers here, too */
export function webpTurn(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), word = (at) => view.getUint32(at, true);
  for (let at = 12; at + 14 <= bytes.length; at += 8 + word(at + 4) + word(at + 4) % 2) {
    if (word(at) === 0x46495845) return reduceTurn(bytes.subarray(at + 8, at + 8 + word(at + 4))); // "EXIF"
  }
  return 1;
}

/* How an EXIF record wants an image turned; in `bytes` it is set to 1. Damaged ones say nothing */
export function reduceTurn(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  try {
    const start = view.getUint32(0) === 0x45786966 ? 6 : 0, little = bytes[start] === 0x49; // Some programs put "Exif\0\0" before it
    const first = start + view.getUint32(start + 4, little);
    for (let entry = first + 2, left = view.getUint16(first, little); left > 0; entry += 12, left--) {
      if (view.getUint16(entry, little) !== 0x112) continue;
      const place = entry + (view.getUint16(entry + 2, little) === 4 && !little ? 10 : 8), turn = view.getUint16(place, little);
      view.setUint16(place, 1, little);
      return turn >= 2 && turn <= 8 ? turn : 1;
    }
  } catch (error) { if (!(error instanceof RangeError)) throw error; }
  return 1;
}

/* What moves an image of `w` by `h` pixels to where turns 2 to 8 want it */
const turns = [(w) => [-1, 0, 0, 1, w, 0], (w, h) => [-1, 0, 0, -1, w, h], (w, h) => [1, 0, 0, -1, 0, h], () => [0, 1, 1, 0, 0, 0],
  (w, h) => [0, 1, -1, 0, h, 0], (w, h) => [0, -1, -1, 0, h, w], (w) => [0, -1, 1, 0, 0, w]];

/* An image turned as EXIF wants, on white; null if it is too large for a canvas of this browser, which then holds nothing at all */
export function turned(image, turn) {
  if (turn === 1) return image;
  const { width, height } = image, canvas = make('canvas', turn > 4 ? { width: height, height: width } : { width, height }), context = canvas.getContext('2d', { willReadFrequently: true });
  context.fillStyle = 'white';
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.setTransform(...turns[turn - 2](width, height));
  context.drawImage(image, 0, 0);
  image.close?.();
  return context.getImageData(canvas.width - 1, canvas.height - 1, 1, 1).data[3] ? canvas : null;
}

/* What to send for a file: at most `maxBytes` of anything the browser can open, the file itself up to `rawBytes` of anything else.
   Gives {blob, width, height, shrunk, preview}; width and height are 0 and preview (a canvas) is null if it could not be opened.
   An Error's message is the sentence to show. */
export async function shrink(file, { maxBytes = 200_000, rawBytes = 8_000_000 } = {}) {
  const name = file.name || 'The image';
  let head;
  try { head = String.fromCharCode(...new Uint8Array(await file.slice(0, 16).arrayBuffer())); }
  catch { throw new Error(`${name} cannot be read: it is a folder, or it has been moved or changed. Please choose it again.`); }
  if (!file.size) throw new Error(`${name} cannot be looked at: the file holds no bytes. Please choose another image.`);
  const image = await decode(file, head);
  if (!image) {
    if (file.size <= rawBytes) return { blob: file, width: 0, height: 0, shrunk: false, preview: null };
    if (!rawBytes) throw new Error(`${name} cannot be looked at: this browser cannot open it as an image. Please choose another image.`);
    throw new Error(`${name} cannot be opened by this browser, and its ${size(file.size)} are too much to send as they are (up to ${size(rawBytes)}).`
      + ' It may be broken, or of a rare format: please save it as JPEG, or choose another image.');
  }
  const { width, height } = image;
  try {
    if (file.size <= maxBytes && (maxBytes === Infinity || readEverywhere.test(head))) return { blob: file, width, height, shrunk: false, preview: draw(image, 480, 1) };
    let canvas = draw(image, steps[0][0]);
    const preview = draw(canvas, 480, 1);
    for (const [side, quality] of steps) {
      if (Math.max(canvas.width, canvas.height) > side) canvas = draw(canvas, side);
      const blob = await encode(canvas, quality);
      if (blob && blob.size <= maxBytes) return { blob, width, height, shrunk: true, preview };
    }
  } finally { image.close?.(); }
  throw new Error(`${name} cannot be made small enough to be sent (up to ${size(maxBytes)}).`);
}

/* ---------------------------------------------------------------- light or dark */

/* Is the page behind the element dark? A notebook's or host's background decides; where there is none, and on Voilà's pages, the reader's setting */
function isDark(element) {
  if (!document.body.dataset.voila) {
    for (let el = element.parentElement; el; el = el.parentElement) {
      const [r, g, b, a = 1] = (getComputedStyle(el).backgroundColor.match(/^rgba?\((.*)\)$/)?.[1] ?? '0,0,0,0').split(/[ ,/]+/).map(Number);
      if (a > 0.5) return 0.299 * r + 0.587 * g + 0.114 * b < 128;
    }
  }
  return matchMedia('(prefers-color-scheme: dark)').matches;
}

/* Keeps `data-theme` of the element in step with the page; returns a function that ends it */
function followTheme(element) {
  let timer;
  const look = () => (element.dataset.theme = isDark(element) ? 'dark' : 'light');
  const later = () => { look(); clearTimeout(timer); timer = setTimeout(look, 400); }; // Style sheets of a theme load after its switch
  const attributes = new MutationObserver(later);
  for (const el of [document.documentElement, document.body]) attributes.observe(el, { attributes: true });
  const attached = new ResizeObserver(later); // Fires when the element first gets a place in the page
  attached.observe(element);
  const wish = matchMedia('(prefers-color-scheme: dark)');
  wish.addEventListener('change', later);
  look();
  return () => { attributes.disconnect(); attached.disconnect(); clearTimeout(timer); wish.removeEventListener('change', later); };
}

/* ---------------------------------------------------------------- the page */

const atOnce = 60; // Images that may be chosen together
const shownLabels = 8; // Bars before "show all"

/* Draw it into `root`. `ask(item)` promises {label, probability, probabilities, trusted, reason, ood_score}, and may add `image`, a data: address,
   for what the browser could not open; an Error's message is shown. An item is {id, name, file, blob, width, height, shrunk, signal}: `signal` aborts when
   its card is taken away. `open(item)`, where the page itself looks at images, stands in for making them small: it promises {width, height, preview}.
   `tell(item, answer, {right, label})` keeps what a visitor thinks of the answer. Returns {choose(files), destroy(), button} */
export function mount(root, options) { return new Page(root, options); }

class Page {
  constructor(root, { title = '', labels = [], ask, tell = null, shrink: small = true, maxBytes = 200_000, rawBytes = 8_000_000, note = '', heading = 'h2', open = null }) {
    Object.assign(this, { root, title, labels, ask, tell, small, maxBytes, rawBytes, open });
    this.ending = new AbortController(); // Ends all listeners
    this.round = new AbortController(); // Ends the work on the images that are shown
    this.key = Math.random().toString(36).slice(2, 10); // Pages that share a server have different names for their images
    this.count = 0;
    this.cardHeading = `h${Number(heading[1]) + 1}`; // One level below the page's own
    this.build(note, heading);
    this.listen();
    this.stopTheme = followTheme(root);
  }

  destroy() {
    this.ending.abort();
    this.round.abort();
    this.camera.close();
    this.stopTheme();
    this.root.replaceChildren();
    this.root.classList.remove('bearcls-classify');
  }

  build(note, heading) {
    const input = (more) => make('input', {
      type: 'file', accept: 'image/*,.heic,.heif,.avif', class: 'bq-file', tabindex: '-1', 'aria-hidden': 'true', onchange: (event) => this.chosen(event), ...more,
    });
    this.files = input({ multiple: true });
    this.snapshot = input({ capture: 'environment' });
    this.button = make('button', { type: 'button', class: 'bq-button bq-main', onclick: () => this.files.click() }, icon(icons.images), 'Choose images');
    this.take = make('button', { type: 'button', class: 'bq-button', hidden: true, onclick: () => this.openCamera() }, icon(icons.camera), 'Take a photo');
    const key = /Mac|iP(hone|ad|od)/.test(navigator.platform) ? '⌘V' : 'Ctrl+V';
    this.drop = make('div', { class: 'bq-drop', role: 'group', 'aria-label': 'Choose images' }, make('div', { class: 'bq-actions' }, this.button, this.take),
      make('p', { class: 'bq-hint' }, `or drop them here, or paste with ${key}`), this.files, this.snapshot);
    this.status = make('p', { class: 'bq-status', role: 'status', 'aria-live': 'polite' });
    this.trouble = make('p', { class: 'bq-trouble', role: 'status' });
    this.cards = make('div', { class: 'bq-cards', role: 'region', 'aria-label': 'Answers' });
    this.camera = new Camera((file) => this.choose([file]), (words) => this.say(words));
    this.root.classList.add('bearcls-classify');
    const words = [this.title && make(heading, { class: 'bq-title' }, this.title), note && make('p', { class: 'bq-note' }, note)].filter(Boolean);
    this.root.replaceChildren(...words, this.drop, this.status, this.trouble, this.cards, this.camera.dialog);
  }

  listen() {
    const on = (target, names, act) => names.split(' ').forEach((name) => target.addEventListener(name, act, { signal: this.ending.signal }));
    const hasFiles = (event) => event.dataTransfer?.types.includes('Files') || event.dataTransfer?.types.includes('text/uri-list');
    on(this.root, 'dragenter dragover', (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      event.dataTransfer.dropEffect = 'copy';
      this.drop.classList.add('bq-over');
    });
    on(this.root, 'dragleave', (event) => { if (!this.root.contains(event.relatedTarget)) this.drop.classList.remove('bq-over'); });
    on(this.root, 'drop', (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      event.stopPropagation();
      this.drop.classList.remove('bq-over');
      this.choose([...event.dataTransfer.files], 'What was dropped is not a file. Please save the image first, and choose it here.');
    });
    // Letters and arrows are meant for what has the focus here; with Ctrl or ⌘ they are for the notebook around it
    on(this.root, 'focusin keydown keyup', (event) => event.target.toggleAttribute('data-lm-suppress-shortcuts', !event.ctrlKey && !event.metaKey));
    on(document, 'paste', (event) => this.pasted(event));
    this.lookForCamera();
    on(navigator.mediaDevices ?? new EventTarget(), 'devicechange', () => this.lookForCamera());
  }

  /* A sentence that stays for as long as it is true, such as that the log cannot be written; empty when it is over */
  warn(words) { if (this.trouble.textContent !== words) this.trouble.textContent = words; }

  /* Read out to those who cannot see it; `quiet` where it stands in a card already */
  say(words, quiet = false) {
    this.status.textContent = words;
    this.status.classList.toggle('bq-quiet', quiet);
  }

  /* Pasting means this page where it has the focus, or where nothing has it and there is no other place for images */
  pasted(event) {
    const alone = event.target === document.body && document.querySelectorAll('.bearcls-classify').length === 1;
    if (!this.root.contains(event.target) && !alone) return;
    event.preventDefault();
    this.choose([...(event.clipboardData?.files ?? [])], 'There is no image in the clipboard.');
  }

  /* The system's own camera on phones; elsewhere a window, if there is a camera and the page may ask for it */
  async lookForCamera() {
    this.touch = matchMedia('(pointer: coarse)').matches;
    const devices = await navigator.mediaDevices?.enumerateDevices?.().catch(() => []) ?? [];
    this.take.hidden = !this.touch && !devices.some((device) => device.kind === 'videoinput');
  }

  openCamera() {
    if (this.touch) this.snapshot.click();
    else this.camera.open(this.take);
  }

  chosen(event) {
    const files = [...event.target.files];
    event.target.value = ''; // The same file may be chosen again
    if (files.length) this.choose(files);
  }

  /* New images: whatever was shown or on its way belongs to the past, from now on */
  choose(files, otherwise = 'There is no image among what was chosen.') {
    this.round.abort();
    this.round = new AbortController();
    const { signal } = this.round;
    const cards = files.slice(0, atOnce).map((file) => new Card(this, { id: `${this.key}-${++this.count}`, name: file.name || 'image', file, signal }));
    this.cards.replaceChildren(...cards.map((card) => card.element));
    this.cards.classList.toggle('bq-one', cards.length === 1);
    if (!cards.length) return this.say(otherwise);
    if (files.length > atOnce) this.say(`${files.length} images were chosen; these are the first ${atOnce}.`);
    else this.say(`Looking at ${cards.length > 1 ? `${cards.length} images` : cards[0].item.name} …`);
    return this.work(cards, signal);
  }

  /* Images are made small one after another, since a photograph takes 50 MB while it is open; meanwhile up to four wait for their answers */
  async work(cards, signal) {
    const queue = [...cards];
    let turn = Promise.resolve();
    const small = (card) => (turn = turn.catch(() => null).then(() => (signal.aborted ? null : card.prepare())));
    const one = async (card) => {
      try {
        await small(card);
        if (signal.aborted) return;
        const answer = await this.ask(card.item);
        if (!signal.aborted) card.answered(answer);
      } catch (error) {
        if (!signal.aborted) card.failed(error?.message || 'Something went wrong. Please try again.');
      }
      if (!signal.aborted) this.report(cards, card);
    };
    const hand = async () => { while (queue.length && !signal.aborted) await one(queue.shift()); };
    await Promise.all([hand(), hand(), hand(), hand()]);
  }

  /* One image: its answer is read out. Several: how many are done, and at the end that all are */
  report(cards, card) {
    const done = cards.filter((c) => c.words).length;
    if (cards.length === 1) this.say(card.words, true);
    else this.say(done < cards.length ? `${done} of ${cards.length} images are done …` : `All ${cards.length} images are done.`);
  }
}

/* ---------------------------------------------------------------- one image and its answer */

class Card {
  constructor(page, item) {
    Object.assign(this, { page, item, words: '' });
    this.image = make('div', { class: 'bq-image' });
    this.body = make('div', { class: 'bq-body' }, make('p', { class: 'bq-wait' }, make('span', { class: 'bq-spin', 'aria-hidden': 'true' }), 'Looking …'));
    this.name = make(page.cardHeading, { class: 'bq-name', id: `bq-${item.id}`, title: item.name }, item.name);
    this.element = make('article', { class: 'bq-card', 'aria-labelledby': `bq-${item.id}`, 'aria-busy': 'true', 'data-state': 'waiting', 'data-name': item.name },
      this.image, make('div', { class: 'bq-side' }, this.name, this.body));
  }

  /* The image is shown, and what will be sent is ready */
  async prepare() {
    const { maxBytes, rawBytes, small, open } = this.page;
    const made = await (open ? open(this.item) : shrink(this.item.file, { maxBytes: small ? maxBytes : Infinity, rawBytes }));
    Object.assign(this.item, { blob: small ? made.blob : this.item.file, width: made.width, height: made.height, shrunk: small && made.shrunk });
    if (made.preview) this.show(made.preview);
  }

  show(element) {
    element.classList.add('bq-preview');
    element.setAttribute('role', 'img');
    element.setAttribute('aria-label', this.item.name);
    this.image.replaceChildren(element);
  }

  finish(state, words, ...children) {
    this.words = words;
    this.element.dataset.state = state;
    this.element.removeAttribute('aria-busy');
    this.body.replaceChildren(...children.filter(Boolean));
  }

  failed(sentence) { this.finish('problem', sentence, make('p', { class: 'bq-problem' }, sentence)); }

  answered(answer) {
    if (!this.item.width && answer.image?.startsWith('data:image/')) this.show(make('img', { src: answer.image, alt: this.item.name }));
    const sure = percent(answer.probability);
    const head = answer.trusted ? make('p', { class: 'bq-head' }, make('strong', {}, answer.label), ' ', make('span', { class: 'bq-sure' }, sure))
      : make('p', { class: 'bq-head' }, make('strong', {}, 'None of these? Ask a person'));
    const why = !answer.trusted && make('p', { class: 'bq-why' }, `The model would rather not decide: ${answer.reason || `it is not sure enough of ${answer.label}`}.`);
    const words = answer.trusted ? `${this.item.name}: ${answer.label}, ${sure}.` : `${this.item.name}: ask a person. ${why.textContent}`;
    this.finish(answer.trusted ? 'answered' : 'doubtful', words, head, why, bars(answer.probabilities), this.page.tell && this.vote(answer));
  }

  /* Thumbs up or down, and then what would have been right */
  vote(answer) {
    const said = make('span', { class: 'bq-said', role: 'status' });
    const labels = Object.keys(answer.probabilities).sort(); // of the model that answered: another may have taken over since
    const other = labels.includes('other') ? [] : [['other', 'none of these']];
    const choices = [['', 'What is it?'], ...labels.filter((label) => label !== answer.label).map((label) => [label, label]), ...other];
    const keep = async (right, label) => {
      up.setAttribute('aria-pressed', right);
      down.setAttribute('aria-pressed', !right);
      select.hidden = right;
      if (right) select.value = '';
      said.textContent = '';
      const number = (this.votes = (this.votes ?? 0) + 1);
      const last = (words) => { if (number === this.votes) said.textContent = words; };
      try {
        await this.page.tell(this.item, answer, { right, label });
        last(right || label ? 'Thank you.' : 'Thank you. What would be right?');
      } catch (error) { last(error?.message || 'This could not be kept.'); }
    };
    const thumb = (path, name, right) => make('button', {
      type: 'button', class: 'bq-thumb', 'aria-pressed': 'false', 'aria-label': name, title: name, onclick: () => keep(right, ''),
    }, icon(path));
    const up = thumb(icons.up, 'Right', true);
    const down = thumb(icons.down, 'Wrong', false);
    const select = make('select', { class: 'bq-select', hidden: true, 'aria-label': 'What would be right', onchange: () => keep(false, select.value) },
      ...choices.map(([value, words]) => make('option', { value }, words)));
    const question = answer.trusted ? 'Is this right?' : `Would “${answer.label}” be right?`;
    return make('div', { class: 'bq-vote', role: 'group', 'aria-label': question }, make('span', { class: 'bq-question' }, question), up, down, select, said);
  }
}

/* A bar for each label, the most probable first; many labels hide behind a line to open */
function bars(probabilities) {
  const rows = Object.entries(probabilities).sort(([, a], [, b]) => b - a).map(([label, p]) => {
    const fill = make('span', { class: 'bq-fill' });
    fill.style.width = `${100 * p}%`;
    return make('li', { class: 'bq-row' }, make('span', { class: 'bq-label' }, label),
      make('span', { class: 'bq-bar', 'aria-hidden': 'true' }, fill), make('span', { class: 'bq-number' }, percent(p)));
  });
  const list = (some) => make('ul', { class: 'bq-bars', role: 'list' }, ...some);
  if (rows.length <= shownLabels + 1) return list(rows);
  return make('div', {}, list(rows.slice(0, shownLabels)),
    make('details', { class: 'bq-more' }, make('summary', {}, `Show all ${rows.length} labels`), list(rows.slice(shownLabels))));
}

/* ---------------------------------------------------------------- the camera, in a window */

const refusals = {
  NotAllowedError: 'The camera may not be used here. Allow it in the browser, or choose an image.',
  NotFoundError: 'There is no camera. Please choose an image.',
  NotReadableError: 'The camera is in use by another program. Close that, or choose an image.',
};

class Camera {
  constructor(taken, say) {
    Object.assign(this, { taken, say });
    this.video = make('video', { autoplay: true, playsinline: true, class: 'bq-video', 'aria-label': 'What the camera sees' });
    this.video.muted = true;
    this.shoot = make('button', { type: 'button', class: 'bq-button bq-main', onclick: () => this.shot() }, icon(icons.camera), 'Take the photo');
    const cancel = make('button', { type: 'button', class: 'bq-button', onclick: () => this.dialog.close() }, 'Cancel');
    this.dialog = make('dialog', { class: 'bq-dialog', 'aria-label': 'Camera', onclose: () => this.close() }, this.video, make('div', { class: 'bq-actions' }, this.shoot, cancel));
  }

  async open(button) {
    this.opener = button;
    button.disabled = true; // Until it is known whether there will be images
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment', width: { ideal: 1920 }, height: { ideal: 1080 } }, audio: false });
      if (!this.dialog.isConnected) return stream.getTracks().forEach((track) => track.stop());
      this.video.srcObject = stream;
      this.dialog.showModal();
      this.shoot.focus();
    } catch (error) { this.say(refusals[error?.name] ?? 'The camera cannot be used. Please choose an image.'); }
    finally { button.disabled = false; }
  }

  async shot() {
    const { videoWidth: width, videoHeight: height } = this.video;
    if (!width) return; // The first image has not come yet
    const canvas = make('canvas', { width, height });
    canvas.getContext('2d').drawImage(this.video, 0, 0);
    this.dialog.close();
    const blob = await encode(canvas, 0.92);
    if (blob) this.taken(new File([blob], 'camera.jpg', { type: 'image/jpeg' }));
  }

  close() {
    this.video.srcObject?.getTracks().forEach((track) => track.stop());
    this.video.srcObject = null;
    if (this.dialog.open) this.dialog.close();
    else this.opener?.focus(); // Who works with the keyboard goes on where the window was opened
  }
}

/* ---------------------------------------------------------------- in a notebook: a widget whose answers come from the kernel */

const patience = 30_000; // Milliseconds in which the kernel says nothing at all before an image is given up
const slowest = 50; // Bytes per millisecond on the slowest way to the server that is waited for
const lost = () => `No answer has come: the connection to the server is lost, or it is busy. Please ${document.body.dataset.voila ? 'reload the page' : 'run the cell again'}.`;

/* Questions to Python, each with a number by which its answer finds it; bearcls/app/notebook.py names the messages */
class Line {
  constructor(model) {
    Object.assign(this, { model, waiting: new Map(), key: Math.random().toString(36).slice(2, 10), count: 0, until: 0 });
    this.take = (message) => this.took(message);
    model.on('msg:custom', this.take);
    this.clock = setInterval(() => this.look(), 1000);
  }

  send(message, buffers = [], signal = null) {
    return new Promise((done, refuse) => {
      const number = `${this.key}-${++this.count}`;
      this.waiting.set(number, { done, refuse });
      this.wait(buffers.reduce((sum, bytes) => sum + bytes.byteLength, 0) / slowest);
      signal?.addEventListener('abort', () => this.waiting.delete(number));
      try { this.model.send({ ...message, number }, undefined, buffers); }
      catch { this.giveUp(); }
    });
  }

  took({ number, problem, ...rest }) {
    this.wait();
    const asked = this.waiting.get(number);
    this.waiting.delete(number);
    if (problem) asked?.refuse(new Error(problem));
    else asked?.done(rest);
  }

  wait(more = 0) { this.until = Math.max(this.until, Date.now() + patience + more); }

  look() { if (this.waiting.size && Date.now() > this.until) this.giveUp(); }

  giveUp() {
    for (const { refuse } of this.waiting.values()) refuse(new Error(lost()));
    this.waiting.clear();
  }

  close() {
    clearInterval(this.clock);
    this.model.off('msg:custom', this.take);
    this.waiting.clear();
  }
}

function render({ model, el }) {
  const line = new Line(model);
  const { feedback, ...metadata } = model.get('metadata');
  const ask = async (item) => line.send({ do: 'ask', name: item.name, unseen: !item.width }, [await item.blob.arrayBuffer()], item.signal);
  const tell = (item, answer, { right, label }) => line.send({ do: 'tell', answer: answer.answer, right, label });
  const root = make('div');
  el.append(root);
  const page = mount(root, { ...metadata, ask, tell: feedback ? tell : null, heading: document.body.dataset.voila ? 'h1' : 'h2' });
  const warn = () => page.warn(model.get('metadata').trouble ?? '');
  model.on('change:metadata', warn);
  warn();
  return () => { model.off('change:metadata', warn); page.destroy(); line.close(); root.remove(); };
}

export default { render };
