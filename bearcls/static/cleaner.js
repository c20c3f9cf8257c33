/* The cleaner in the browser. It shows what Python sends and sends what the user asks; every decision is taken in Python.

   One `Store` holds what has arrived for a widget: pages, images and marks, so that what was seen once is shown again at
   once. Each place that shows the widget has a `Board`, which draws the store and listens to mouse and keyboard.
   Messages are named in bearcls/clean/widget.py. Text goes into the page as text, never as HTML: file names come from strangers. */

const patience = 5000; // Milliseconds without an answer before the user is told

/* An element with attributes, listeners (`onclick`) and children; `null` children are left out */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

const hidden = (words) => make('span', { class: 'bc-hidden' }, words); // Read by screen readers only
const percent = (share) => `${Math.round(100 * share)}%`;
const plural = (n, word) => `${n.toLocaleString('en')} ${word}${n === 1 ? '' : 's'}`;
const keyOf = (query) => JSON.stringify(query, Object.keys(query).sort());

/* ---------------------------------------------------------------- what has arrived */

class Store {
  constructor(model) {
    this.model = model;
    this.boards = new Set();
    this.items = new Map(); // file -> item, with its mark
    this.pages = new Map(); // query -> page, as long as it is still true
    this.images = new Map(); // file -> address of its thumbnail
    this.asked = new Set(); // files whose thumbnail is on its way
    this.waiting = new Map(); // number of a request -> since when, and the timer that gives up hope
    this.count = 0;
    this.outdated = false; // Is the page on show another one by now?
    this.state = {};
    this.said = '';
    this.listen = (message, buffers) => this.take(message, buffers);
    model.on('msg:custom', this.listen);
    // `now` is made anew whenever the state is asked for, so a reloaded page starts with what is true now
    const { bytes, ...answer } = model.get('now') ?? {};
    this.take(answer, bytes);
  }

  close() {
    this.model.off('msg:custom', this.listen);
    this.forget();
  }

  send(message) {
    const id = ++this.count;
    this.waiting.set(id, { since: Date.now(), timer: setTimeout(() => this.tell({}), patience + 50) });
    this.model.send({ ...message, id });
  }

  /* Requests without an answer for too long: Python is busy, or it is gone */
  get late() {
    return [...this.waiting.values()].some(({ since }) => Date.now() - since > patience);
  }

  /* An answer has any of: id, page, state, marks, images (with buffers), plan, large, said, refused, forget */
  take(answer, buffers = []) {
    clearTimeout(this.waiting.get(answer.id)?.timer);
    this.waiting.delete(answer.id);
    if (answer.forget) this.forget();
    if (answer.refused) this.asked.clear(); // Among them may be the images that were refused
    if (answer.state) this.takeState(answer.state);
    if (answer.page) this.takePage(answer.page);
    for (const [file, mark] of Object.entries(answer.marks ?? {})) this.setMark(file, mark);
    (answer.images ?? []).forEach((file, k) => this.takeImage(file, buffers[k]));
    if (answer.said !== undefined || answer.refused) this.said = answer.refused || answer.said;
    this.renew(answer.forget);
    this.tell(answer, buffers);
  }

  /* Ask for the page on show once more if it is outdated; unless files have moved, that can wait until nobody is at work on it */
  renew(atOnce = false) {
    if (!this.outdated || !atOnce && [...this.boards].some((board) => board.isBusy)) return;
    this.outdated = false;
    if (this.query.label && !this.state.labels.includes(this.query.label)) this.query = { ...this.query, label: '', page: 0 }; // Its folder has gone
    this.send({ do: 'page', query: this.query });
  }

  /* Predictions have come or files have moved if there is a new revision; then what was shown is outdated */
  takeState(state) {
    const isNew = this.query && 'revision' in state && state.revision !== this.state.revision;
    if (isNew) this.pages.clear();
    this.outdated ||= Boolean(isNew);
    this.state = { ...this.state, ...state };
  }

  takePage(page) {
    for (const item of page.items) this.items.set(item.file, item);
    page.files = page.items.map((item) => item.file);
    this.pages.set(keyOf(page.query), page);
    if (!this.query || keyOf(page.query) === keyOf(this.query)) this.turnTo(page);
  }

  turnTo(page) {
    this.query = page.query;
    this.page = page;
    const missing = page.files.filter((file) => !this.images.has(file) && !this.asked.has(file));
    // After the images that came with this very answer were taken
    queueMicrotask(() => this.askImages(missing.filter((file) => !this.images.has(file))));
  }

  askImages(files) {
    if (!files.length) return;
    files.forEach((file) => this.asked.add(file));
    this.send({ do: 'images', files });
  }

  takeImage(file, bytes) {
    this.asked.delete(file);
    if (bytes && !this.images.has(file)) this.images.set(file, URL.createObjectURL(new Blob([bytes])));
  }

  /* Files were moved: the same name may now be another image */
  forget() {
    for (const url of this.images.values()) URL.revokeObjectURL(url);
    this.images.clear();
    this.asked.clear();
    this.pages.clear();
  }

  show(change) {
    this.query = { ...this.query, page: 0, ...change };
    this.outdated = false; // Whatever was remembered has been forgotten
    const known = this.pages.get(keyOf(this.query));
    this.send({ do: known ? 'stay' : 'page', query: this.query });
    if (known) this.turnTo(known);
    this.tell({});
  }

  setMark(file, mark) {
    const item = this.items.get(file);
    if (item) item.mark = mark;
    // What is undecided has changed, so these pages have to be asked for again; the one on show stays until it is left
    for (const [key, page] of this.pages) if (page.query.show !== 'all') this.pages.delete(key);
  }

  /* Shown at once, and confirmed or taken back by the answer */
  mark(files, action, to = '') {
    if (!files.length) return;
    for (const file of files) this.setMark(file, action ? { action, to } : null);
    this.send({ do: 'mark', files, action, to });
    this.tell({});
  }

  /* Marks each file as is suggested for it, all in one stroke */
  accept(files) {
    if (!files.length) return;
    for (const { file, proposal, to } of files.map((f) => this.items.get(f))) {
      if (proposal === 'delete' || proposal === 'relabel') this.setMark(file, { action: proposal, to: proposal === 'relabel' ? to : '' });
    }
    this.send({ do: 'accept', files });
    this.tell({});
  }

  tell(answer, buffers) {
    for (const board of this.boards) board.update(answer, buffers);
  }
}

/* ---------------------------------------------------------------- light or dark */

/* Is the page behind the element dark? The page's own background decides; where it has none, the browser's setting */
function isDark(element) {
  for (let el = element.parentElement; el; el = el.parentElement) {
    const [r, g, b, a = 1] = (getComputedStyle(el).backgroundColor.match(/^rgba?\((.*)\)$/)?.[1] ?? '0,0,0,0').split(/[ ,/]+/).map(Number);
    if (a > 0.5) return 0.299 * r + 0.587 * g + 0.114 * b < 128;
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

/* ---------------------------------------------------------------- one place that shows it */

const help = [
  ['Arrow keys, Home, End', 'move from image to image'],
  ['Page Up, Page Down', 'previous and next page'],
  ['D', 'delete; once more takes the mark off'],
  ['K', 'keep; once more takes the mark off'],
  ['1 to 9, 0', 'relabel to that label (0 is the tenth)'],
  ['A', 'accept what is suggested'],
  ['U', 'undo the last mark'],
  ['Space', 'select, or take out of the selection'],
  ['Shift + arrows, Shift + click', 'select up to there'],
  ['Ctrl + click, Ctrl + A', 'select one more; the whole page'],
  ['Enter', 'look at it larger'],
  ['Escape', 'clear the selection, close a window, show what has come'],
];

class Board {
  constructor(store, host) {
    this.store = store;
    this.cards = new Map(); // file -> its element
    this.selected = new Set();
    this.current = 0; // Index of the image that has the focus, or will have it
    this.anchor = 0; // Where a selection with Shift begins
    this.build();
    host.append(this.root);
    this.stopTheme = followTheme(this.root);
    store.boards.add(this);
    this.update({});
  }

  close() {
    this.store.boards.delete(this);
    this.stopTheme();
    this.root.remove();
  }

  get files() { return this.store.page?.files ?? []; }
  get file() { return this.files[this.current]; }
  get isLarge() { return this.dialog.open && this.dialog.dataset.kind === 'large'; }
  /* Is there an image under the user's hand, which must not be exchanged now? */
  get isBusy() { return this.dialog.open || this.selected.size > 0 || this.grid.contains(document.activeElement); }
  get targets() { return this.isLarge ? [this.large] : this.selected.size ? this.files.filter((f) => this.selected.has(f)) : this.file ? [this.file] : []; }

  /* ---- the parts */

  build() {
    const button = (words, onclick, kind = '') => make('button', { type: 'button', class: `bc-button ${kind}`, onclick: (event) => { if (event.currentTarget.ariaDisabled !== 'true') onclick(); } }, words);
    this.filters = make('div', { class: 'bc-filters', role: 'group', 'aria-label': 'Which images to show' });
    this.chosen = make('span', { class: 'bc-chosen' });
    this.keep = button('Keep', () => this.act('keep'));
    this.delete = button('Delete', () => this.act('delete'));
    this.relabel = make('select', { class: 'bc-select', 'aria-label': 'Relabel to', onchange: () => this.chooseLabel(this.relabel) });
    this.undoMark = button('Undo mark', () => this.store.send({ do: 'undo_mark' }));
    this.plan = button('Review and apply…', () => this.store.send({ do: 'plan' }), 'bc-main');
    this.undo = button('Undo last apply', () => this.store.send({ do: 'undo' }));
    const ask = make('button', { type: 'button', class: 'bc-button', 'aria-label': 'Keyboard help', onclick: () => this.showHelp() }, '?');
    this.status = make('div', { class: 'bc-status', role: 'status', 'aria-live': 'polite' });
    this.trouble = make('div', { class: 'bc-trouble', role: 'alert' });
    this.grid = make('div', { class: 'bc-grid', role: 'grid', 'aria-label': 'Images', 'aria-multiselectable': 'true' });
    this.previous = button('Previous', () => this.turn(-1));
    this.where = make('span');
    this.next = button('Next', () => this.turn(1));
    this.dialog = make('dialog', { class: 'bc-dialog', onclose: () => this.closed() });
    this.root = make('div', {
      class: 'bearcls-cleaner', role: 'region', 'aria-label': 'Cleaner',
      onfocusin: (event) => event.target.setAttribute('data-lm-suppress-shortcuts', 'true'), // Jupyter asks what has the focus: otherwise D twice deletes the notebook's cell
      onkeydown: (event) => this.key(event),
      onfocusout: (event) => { if (!this.root.contains(event.relatedTarget)) this.store.renew(); },
    }, this.filters,
    make('div', { class: 'bc-bar' },
      make('div', { class: 'bc-group', role: 'group', 'aria-label': 'Mark the selected images' }, this.chosen, this.keep, this.delete, this.relabel, this.undoMark),
      make('div', { class: 'bc-group', role: 'group', 'aria-label': 'Carry out' }, this.plan, this.undo, ask)),
    this.trouble, this.status, this.grid,
    make('nav', { class: 'bc-paging', 'aria-label': 'Pages' }, this.previous, this.where, this.next), this.dialog);
    this.grid.addEventListener('click', (event) => this.click(event));
    this.grid.addEventListener('dblclick', (event) => { if (event.target.closest('.bc-face')) this.showLarge(); });
    this.grid.addEventListener('focusin', (event) => this.focused(event));
  }

  /* ---- drawing */

  update(answer, buffers) {
    const { page, state } = this.store;
    this.drawFilters();
    this.drawLabels();
    if (page && page !== this.drawn) this.drawGrid(page);
    else for (const [file, card] of this.cards) this.drawCard(card, this.store.items.get(file));
    this.drawBar(state, page);
    if (answer.plan) this.showPlan(answer.plan);
    if (answer.large) this.drawLarge(answer.large, buffers[0]);
    this.drawLargeMark();
  }

  drawFilters() {
    const filters = this.store.state.filters ?? [];
    const words = JSON.stringify(filters);
    if (words !== this.filterWords) {
      this.filterWords = words;
      const had = this.filters.querySelector(':focus')?.name;
      this.filters.replaceChildren(...filters.map(({ name, title, options }) => make('label', { class: 'bc-filter' }, make('span', {}, title),
        make('select', { class: 'bc-select', name, onchange: (event) => this.store.show({ [name]: event.target.value }) },
          ...options.map(([value, text]) => make('option', { value }, text))))));
      if (had) this.filters.querySelector(`[name="${had}"]`)?.focus();
    }
    for (const select of this.filters.querySelectorAll('select')) select.value = this.store.query?.[select.name] ?? '';
  }

  drawLabels() {
    const labels = this.store.state.labels ?? [];
    if (this.labelWords === labels.join('\n')) return;
    this.labelWords = labels.join('\n');
    const digit = (k) => (k < 10 ? `  (${(k + 1) % 10})` : '');
    this.relabel.replaceChildren(make('option', { value: '' }, 'Relabel to…'), ...labels.map((label, k) => make('option', { value: label }, label + digit(k))));
  }

  drawGrid(page) {
    const hadFocus = this.grid.contains(document.activeElement);
    const isSame = this.drawn && keyOf(this.drawn.query) === keyOf(page.query);
    const before = isSame ? this.drawn.files[this.current] : null;
    this.drawn = page;
    this.selected = new Set(isSame ? page.files.filter((file) => this.selected.has(file)) : []);
    if (this.isLarge && !page.files.includes(this.large)) this.dialog.close(); // It has moved
    this.current = Math.max(0, page.files.indexOf(before));
    this.anchor = this.current;
    this.cards = new Map(page.files.map((file, k) => [file, this.card(this.store.items.get(file), page.first + k + 1)]));
    this.grid.setAttribute('aria-rowcount', page.total);
    this.grid.replaceChildren(...this.cards.values());
    if (!page.files.length) this.grid.append(make('p', { class: 'bc-none' }, 'No image fits these filters.'));
    this.moveTo(this.current, hadFocus);
  }

  /* An image is a row of the grid with two cells: its face, which takes the focus, and its buttons */
  card(item, number) {
    const name = item.file.split('/').pop();
    const button = (action, words) => make('button', { type: 'button', class: 'bc-small', tabindex: -1, 'data-action': action }, words, hidden(` ${name}`));
    const relabel = make('select', { class: 'bc-small', tabindex: -1, 'aria-label': `Relabel ${name}`, onchange: () => this.store.mark([item.file], relabel.value ? 'relabel' : '', relabel.value) },
      make('option', { value: '' }, 'Relabel'), ...(this.store.state.labels ?? []).filter((label) => label !== item.label).map((label) => make('option', { value: label }, label)));
    const check = make('input', { type: 'checkbox', class: 'bc-check', tabindex: -1, 'aria-label': `Select ${name}` });
    const face = make('div', { class: 'bc-face', role: 'gridcell', tabindex: -1, title: item.file },
      make('div', { class: 'bc-image' }, make('img', { alt: `${name}, filed as ${item.label}`, draggable: 'false' }), make('span', { class: 'bc-badge' })),
      make('div', { class: 'bc-words' }));
    const card = make('div', { class: 'bc-card', role: 'row', 'aria-rowindex': number, 'data-file': item.file }, face,
      make('div', { class: 'bc-actions', role: 'gridcell' }, button('keep', 'Keep'), button('delete', 'Delete'), relabel), make('div', { class: 'bc-corner', role: 'gridcell' }, check));
    this.drawCard(card, item);
    return card;
  }

  drawCard(card, item) {
    if (!item) return;
    const { action = '', to = '' } = item.mark ?? {};
    const image = card.querySelector('img');
    const source = this.store.images.get(item.file);
    if (source && image.src !== source) image.src = source;
    card.dataset.mark = action;
    const selected = this.selected.has(item.file);
    card.setAttribute('aria-selected', selected);
    card.querySelector('.bc-check').checked = selected;
    card.querySelector('.bc-badge').replaceChildren(...badge(action, to));
    for (const button of card.querySelectorAll('button')) button.setAttribute('aria-pressed', button.dataset.action === action);
    card.querySelector('select').value = action === 'relabel' ? to : '';
    if (card.item !== item) { // Words change with predictions only
      card.item = item;
      card.querySelector('.bc-words').replaceChildren(...describe(item));
    }
  }

  drawBar(state, page) {
    const n = this.selected.size, { keep = 0, delete: gone = 0, relabel = 0, undecided = 0 } = state.summary ?? {};
    this.chosen.textContent = n ? `${n} selected` : 'This image';
    this.plan.ariaDisabled = !(gone + relabel); // Unlike `disabled`, this leaves the focus where it is
    this.undo.ariaDisabled = !state.can_undo;
    const parts = [`${gone} to delete`, `${relabel} to relabel`, `${keep} kept`, `${undecided.toLocaleString('en')} undecided`];
    const waits = this.store.outdated && 'This page stays as it is while you are at work on it; Escape shows the new one.';
    const words = [parts.join(', ') + '.', state.predictions, this.store.said, waits].filter(Boolean).join(' ');
    if (this.status.textContent !== words) this.status.textContent = words; // Only what changed is read aloud
    const trouble = this.store.late ? 'Python has not answered for a while. It may be busy with another cell; if it was restarted, run the cell again: confirmed marks are kept.' : state.notes ?? '';
    if (this.trouble.textContent !== trouble) this.trouble.textContent = trouble;
    if (!page) return;
    this.where.textContent = page.total ? `${plural(page.total, 'image')}, page ${page.page + 1} of ${page.pages}` : 'No images';
    this.previous.ariaDisabled = page.page <= 0;
    this.next.ariaDisabled = page.page + 1 >= page.pages;
  }

  /* ---- where the focus is, and what is selected */

  moveTo(index, focus = true) {
    this.current = Math.max(0, Math.min(index, this.files.length - 1));
    for (const [file, card] of this.cards) card.querySelector('.bc-face').tabIndex = file === this.file ? 0 : -1;
    if (this.isLarge) this.showLarge();
    else if (focus) this.cards.get(this.file)?.querySelector('.bc-face').focus();
  }

  move(index, extend) {
    index = Math.max(0, Math.min(index, this.files.length - 1));
    if (extend) this.select(this.files.slice(Math.min(this.anchor, index), Math.max(this.anchor, index) + 1));
    else { this.anchor = index; this.select([]); }
    this.moveTo(index);
  }

  select(files) {
    this.selected = new Set(files);
    for (const [file, card] of this.cards) this.drawCard(card, this.store.items.get(file));
    this.drawBar(this.store.state, this.store.page);
  }

  toggle(file) {
    const files = new Set(this.selected);
    if (!files.delete(file)) files.add(file);
    this.anchor = this.files.indexOf(file);
    this.select(files);
  }

  focused(event) {
    const card = event.target.closest('.bc-card');
    if (card) this.moveTo(this.files.indexOf(card.dataset.file), false);
  }

  click(event) {
    const card = event.target.closest('.bc-card');
    if (!card) return;
    const { file } = card.dataset, action = event.target.closest('button')?.dataset.action;
    if (action) return this.act(action, [file]);
    if (event.target.closest('.bc-check')) return this.toggle(file);
    if (!event.target.closest('.bc-face')) return;
    const index = this.files.indexOf(file);
    if (event.shiftKey) this.move(index, true);
    else if (event.ctrlKey || event.metaKey) this.toggle(file);
    else { this.move(index, false); this.select([file]); }
  }

  /* How many images stand side by side: arrows up and down move by this much */
  get columns() {
    const cards = [...this.cards.values()];
    const below = cards.findIndex((card) => card.offsetTop > cards[0].offsetTop);
    return below < 0 ? cards.length : below;
  }

  turn(by) {
    const { page, pages, files, query } = this.store.page;
    const hasLeft = (file) => query.show !== 'all' && Boolean(this.store.items.get(file)?.mark) !== (query.show === 'marked');
    if (by > 0 && (this.store.outdated || page + 1 < pages && files.some(hasLeft))) { // Others stand here now: those behind have moved up
      this.selected.clear();
      return this.store.show({ page });
    }
    if (page + by >= 0 && page + by < pages) this.store.show({ page: page + by });
  }

  /* ---- what the user asks for */

  /* Marks the files, or takes the mark off where all of them have it already */
  act(action, files = this.targets, to = '') {
    const same = (file) => { const mark = this.store.items.get(file)?.mark; return mark?.action === action && (mark.to || '') === to; };
    if (files.every(same)) this.store.mark(files, '');
    else this.store.mark(files, action, to);
  }

  chooseLabel(select) {
    if (select.value) this.store.mark(this.targets, 'relabel', select.value);
    select.value = '';
  }

  key(event) {
    if (event.ctrlKey || event.metaKey) return this.keyWithControl(event);
    if (event.altKey || event.key === 'Tab') return;
    const inForm = event.target.matches('select, textarea');
    const done = inForm ? false : this.keyPlain(event);
    if (done) event.preventDefault();
    event.stopPropagation(); // The page's own shortcuts are not meant
  }

  keyPlain(event) {
    const { key, shiftKey, repeat } = event, large = this.isLarge;
    if (this.dialog.open && !large) return false; // Plan and help are closed first; the browser handles Escape
    const onFace = large || event.target.closest('.bc-face');
    if (onFace) {
      const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: large ? 1 : this.columns, ArrowUp: large ? -1 : -this.columns, Home: -Infinity, End: Infinity };
      if (key in steps) return this.step(steps[key], shiftKey), true;
      if (key === ' ' && !large) return repeat || this.toggle(this.file), true;
      if (key === 'Enter' && !large) return this.showLarge(), true;
      if (key === 'PageDown' || key === 'PageUp') return this.turn(key === 'PageDown' ? 1 : -1), true;
    }
    if (key === 'Escape' && !large) return this.select([]), this.store.renew(true), true;
    return this.letter(key.toLowerCase(), repeat);
  }

  step(by, extend) {
    const to = this.current + by;
    if (Math.abs(by) > 1 && Number.isFinite(by) && (to < 0 || to >= this.files.length)) return; // No image above or below
    this.move(to, extend);
  }

  letter(key, repeat) {
    const deeds = { d: () => this.act('delete'), k: () => this.act('keep'), a: () => this.store.accept(this.targets), u: () => this.store.send({ do: 'undo_mark' }), '?': () => this.showHelp() };
    const isDigit = /^[0-9]$/.test(key);
    if (!isDigit && !(key in deeds)) return false;
    if (repeat) return true; // A key held down is pressed once
    if (!isDigit) return deeds[key](), true;
    const label = this.store.state.labels?.[(Number(key) + 9) % 10];
    if (label) this.act('relabel', this.targets, label);
    return true;
  }

  /* Ctrl+A selects the page. Everything else, such as saving, is for the host, which does not listen in here: it is told again from outside */
  keyWithControl(event) {
    if (event.key === 'a' && event.target.closest('.bc-face')) {
      event.preventDefault();
      event.stopPropagation();
      return this.select(this.files);
    }
    if (!event.isTrusted || ['Control', 'Meta', 'c', 'v', 'x', 'a', 'f'].includes(event.key)) return;
    const again = new KeyboardEvent(event.type, event);
    event.stopPropagation();
    if (!this.root.parentElement.dispatchEvent(again)) event.preventDefault();
  }

  /* ---- windows */

  open(kind, title, ...content) {
    const close = make('button', { type: 'button', class: 'bc-button', onclick: () => this.dialog.close() }, 'Close');
    this.dialog.dataset.kind = kind;
    this.dialog.setAttribute('aria-label', title);
    this.dialog.replaceChildren(make('h2', {}, title), ...content.filter((part) => part != null), make('div', { class: 'bc-group bc-end' }, close));
    if (!this.dialog.open) { this.opener = document.activeElement; this.dialog.showModal(); }
    return close;
  }

  closed() {
    const large = this.dialog.dataset.kind === 'large';
    this.dialog.replaceChildren();
    if (large) this.moveTo(this.files.indexOf(this.large)); // The browser has put the focus back to where it was before
    else if (this.root.contains(this.opener)) this.opener.focus();
    this.store.renew();
  }

  showHelp() {
    const digits = (this.store.state.labels ?? []).slice(0, 10).map((label, k) => `${(k + 1) % 10} ${label}`).join(', ');
    this.open('help', 'Keyboard', make('dl', {}, ...help.flatMap(([keys, words]) => [make('dt', {}, keys), make('dd', {}, words)])), make('p', {}, `Labels: ${digits}.`));
  }

  showPlan({ token, words, rows, more, note }) {
    const apply = make('button', { type: 'button', class: 'bc-button bc-main', onclick: () => { this.store.send({ do: 'apply', token }); this.dialog.close(); } }, 'Apply');
    const cell = (file) => { const src = this.store.images.get(file); return make('td', {}, src ? make('img', { src, alt: '' }) : null); };
    const close = this.open('plan', 'What would happen', make('p', {}, words),
      make('div', { class: 'bc-scroll', tabindex: 0, role: 'region', 'aria-label': 'Plan' }, make('table', {},
        make('thead', {}, make('tr', {}, make('th', {}, hidden('Image')), ...['File', 'What', 'Why'].map((word) => make('th', { scope: 'col' }, word)))),
        make('tbody', {}, ...rows.map((row) => make('tr', {}, cell(row.file), make('td', {}, row.file), make('td', {}, row.what), make('td', {}, row.why)))))),
      more ? make('p', {}, `… and ${plural(more, 'more file')}`) : null, make('p', { class: 'bc-muted' }, note));
    close.before(apply);
    close.textContent = 'Not yet';
    apply.focus();
  }

  showLarge() {
    if (!this.file) return;
    this.large = this.file;
    this.store.send({ do: 'large', file: this.file });
    const item = this.store.items.get(this.file);
    this.largeImage = make('img', { class: 'bc-large', alt: `${item.file}, filed as ${item.label}`, src: this.store.images.get(this.file) ?? false });
    this.largeMark = make('p', { class: 'bc-largemark' });
    const close = this.open('large', item.file, this.largeImage, this.largeMark, ...describe(item));
    close.focus();
    this.drawLargeMark();
  }

  drawLargeMark() {
    if (!this.isLarge) return;
    const { action = '', to = '' } = this.store.items.get(this.large)?.mark ?? {};
    this.largeMark.replaceChildren(...badge(action, to));
  }

  drawLarge(file, bytes) {
    if (file !== this.large || !bytes || !this.dialog.open) return;
    const url = URL.createObjectURL(new Blob([bytes]));
    this.largeImage.onload = () => URL.revokeObjectURL(url);
    this.largeImage.src = url;
  }
}

/* The mark as words on the image, so that it is not told by colour alone */
function badge(action, to) {
  if (action === 'delete') return ['✕ Delete'];
  if (action === 'keep') return ['✓ Keep'];
  if (action === 'relabel') return [hidden('Relabel to '), make('span', { 'aria-hidden': 'true' }, '→ '), to];
  return [];
}

/* Label, prediction, probability, loss and reason under an image */
function describe({ label, predicted, probability, loss, reason, split, proposal, to }) {
  const aside = [split, loss != null ? `loss ${loss.toFixed(2)}` : ''].filter(Boolean).join(', ');
  const lines = [make('div', { class: 'bc-line' }, make('strong', {}, hidden('filed as '), label), make('span', { class: 'bc-muted' }, aside))];
  if (predicted) {
    const bar = make('span', { class: 'bc-bar-of', 'aria-hidden': 'true' }, make('span', { style: `width:${percent(probability)}` }));
    lines.push(make('div', { class: 'bc-line' }, make('span', {}, `model: ${predicted}`), make('span', {}, percent(probability))), bar);
  }
  if (reason) lines.push(make('div', { class: 'bc-reason' }, reason));
  const suggestion = { delete: 'suggested: delete', relabel: `suggested: relabel to ${to}` }[proposal];
  if (suggestion) lines.push(make('div', { class: 'bc-suggestion' }, suggestion));
  return lines;
}

/* ---------------------------------------------------------------- what anywidget calls */

export default () => {
  let store; // This function is called once for each widget
  return {
    initialize({ model }) {
      store = new Store(model);
      return () => store.close();
    },
    render({ model, el }) {
      store ??= new Store(model);
      const board = new Board(store, el);
      return () => board.close();
    },
  };
};
